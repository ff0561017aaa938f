//! Several threads on a list of jobs, which all end early when one of them fails.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Builder;

use base::{Kind, Report};

/// Does each job on one of at most `threads` threads, in the order of the list. The first failure is the answer: those
/// after it may be its consequence. `failed` is set by then, for jobs that look at it.
pub(crate) fn each<T: Sync>(
    jobs: &[T],
    threads: usize,
    failed: &AtomicBool,
    work: impl Fn(&T) -> Result<(), Report> + Sync,
) -> Result<(), Report> {
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let worker = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(report) = work(job)
                && !failed.swap(true, Ordering::Relaxed)
                && let Ok(mut failure) = failure.lock()
            {
                *failure = Some(report);
            }
        }
    };
    std::thread::scope(|scope| {
        let wanted = 0..threads.min(jobs.len());
        let spawned = wanted.filter(|_| Builder::new().spawn_scoped(scope, worker).is_ok()).count();
        // Where the kernel gives fewer threads (RLIMIT_NPROC) it takes longer.
        if spawned == 0 {
            worker();
        }
    });
    match failure.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(report)) => Err(report),
        Err(_) => Err(Report::new(Kind::Internal, "a worker panicked")),
    }
}
