//! Running one libtest binary: its output is passed on, its result counted, its time limited.
//!
//! Where several run at once each has a tally of its own, which keeps the output to itself until it is added to the first.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::shell::{self, Fallible};

/// What was counted so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Tests that ran and held.
    pub passed: u64,
    /// Names of the tests that did not hold.
    pub failed: Vec<String>,
    /// Names of the tests that did not run, with the reason.
    pub skipped: Vec<String>,
    /// What the failed tests printed, as far as [`REPORT`] goes; said again at the end, where a cut log still has it.
    reports: Vec<String>,
    /// The output, where it is not printed as it comes.
    held: Option<Vec<String>>,
}

/// How many lines of a failed test are said again, and how many characters of each.
const REPORT: usize = 30;
const REPORT_WIDTH: usize = 1_000;

/// Processes that a tally waits for.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());
/// When the first tests began.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Tally {
    /// A tally for what runs beside others.
    pub fn apart() -> Self {
        Tally { held: Some(Vec::new()), ..Tally::default() }
    }

    /// Takes over what one that ran apart has counted, and prints its output.
    pub fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.reports.extend(other.reports);
        other.held.into_iter().flatten().for_each(|line| self.print(line));
    }

    fn print(&mut self, line: String) {
        match &mut self.held {
            Some(held) => held.push(line),
            None => println!("{line}"),
        }
    }

    /// Notes a test or a group of tests that cannot run here.
    pub fn skip(&mut self, name: impl Into<String>) {
        self.skipped.push(name.into());
    }

    /// Takes the skips that tests wrote down themselves; each was counted as passed by libtest.
    pub fn take_skips(&mut self, file: &std::path::Path, prefix: &str) -> Fallible<()> {
        for line in std::fs::read_to_string(file)?.lines() {
            self.passed = self.passed.saturating_sub(1);
            self.skip(format!("{prefix} {line}"));
        }
        Ok(())
    }

    /// Runs a test binary as the leader of its own process group and adds its result; at the limit the group is killed
    /// and the binary counts as one failure.
    pub fn run(&mut self, name: &str, command: &mut Command, limit: Duration) -> Fallible<()> {
        use std::os::unix::process::CommandExt;
        self.print(format!("== {name} (after {} s)", BEGAN.elapsed().as_secs()));
        let began = Instant::now();
        let line = shell::line(command);
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.map_err(|source| shell::ShellError::Start { line, source })?;
        let group = Pid::from_raw(child.id() as i32);
        running.push(group.as_raw());
        drop(running);
        let done = Arc::new(AtomicBool::new(false));
        let watch = std::thread::spawn({
            let done = Arc::clone(&done);
            move || watchdog(group, &done, began + limit)
        });
        let before = self.failed.len();
        let mut summary = false;
        let mut report = 0;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let line = line?;
                summary |= self.read(name, &line);
                self.report(name, &line, &mut report);
                if !line.is_empty() {
                    self.print(line);
                }
            }
        }
        let status = child.wait()?;
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).retain(|pid| *pid != group.as_raw());
        done.store(true, Ordering::Release);
        watch.thread().unpark();
        let expired = watch.join().unwrap_or(true);
        if expired {
            self.failed.push(format!("{name}: not finished after {} s", limit.as_secs()));
        } else if !status.success() && (self.failed.len() == before || !summary) {
            self.failed.push(format!("{name}: {status}"));
        }
        Ok(())
    }

    /// Reads one line of libtest's output; true for the summary line.
    fn read(&mut self, binary: &str, line: &str) -> bool {
        if let Some((test, rest)) = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... ")) {
            if rest == "FAILED" {
                self.failed.push(format!("{binary} {test}"));
            } else if rest.starts_with("ignored") {
                self.skip(format!("{binary} {test}: {rest}"));
            }
        }
        let Some(result) = line.strip_prefix("test result: ") else { return false };
        let passed = result.split(' ').zip(result.split(' ').skip(1)).find(|(_, word)| word.starts_with("passed"));
        self.passed += passed.and_then(|(number, _)| number.parse::<u64>().ok()).unwrap_or(0);
        true
    }

    /// Keeps a line of what a failed test printed; `left` is how many more are kept of this test.
    fn report(&mut self, binary: &str, line: &str, left: &mut usize) {
        if let Some(test) = line.strip_prefix("---- ") {
            *left = REPORT;
            self.reports.push(format!("{binary} {}", test.trim_end_matches(" ----")));
        } else if line == "stack backtrace:" || line == "failures:" {
            *left = 0;
        } else if *left > 0 && !line.is_empty() {
            *left -= 1;
            self.reports.push(format!("  {}", line.chars().take(REPORT_WIDTH).collect::<String>()));
        }
    }

    /// Prints the skips by name, what the failed tests printed, their names and the last line; true when nothing failed.
    pub fn finish(&self) -> bool {
        println!();
        for name in &self.skipped {
            println!("skipped: {name}");
        }
        for line in &self.reports {
            println!("{line}");
        }
        for name in &self.failed {
            println!("failed: {name}");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
        self.failed.is_empty()
    }
}

/// How often orphans are looked for.
const REAP_PAUSE: Duration = Duration::from_millis(100);

/// Kills the group at the deadline unless the run is over before; true when it had to. Meanwhile it does what an init is
/// for: in a container nobody else may, and a dead process that is never reaped keeps its pid namespace from ending.
fn watchdog(group: Pid, done: &AtomicBool, deadline: Instant) -> bool {
    // Without it the orphans are the business of an init.
    let _ = nix::sys::prctl::set_child_subreaper(true);
    while !done.load(Ordering::Acquire) {
        reap_orphans();
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // The group may have ended by itself a moment ago (ESRCH).
            let _ = killpg(group, Signal::SIGKILL);
            return true;
        }
        std::thread::park_timeout(left.min(REAP_PAUSE));
    }
    false
}

/// Reaps what has been left to us by its parents' deaths.
fn reap_orphans() {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let others =
            children.split_whitespace().filter_map(|pid| pid.parse().ok()).filter(|pid| !running.contains(pid));
        for pid in others.filter(|pid| sys::process::is_zombie(*pid)) {
            let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtests_lines_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test c ... FAILED",
            "test d ... ignored, needs a kernel",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.read("unit", line);
        }
        assert_eq!(tally.passed, 1);
        assert_eq!(tally.failed, ["unit c"]);
        assert_eq!(tally.skipped, ["unit d: ignored, needs a kernel"]);
    }

    #[test]
    fn what_a_failed_test_printed_is_kept_without_its_stack() {
        let mut tally = Tally::default();
        let mut left = 0;
        for line in [
            "failures:",
            "",
            "---- a::b stdout ----",
            "panicked: it",
            "stack backtrace:",
            "   0: c",
            "failures:",
            "    a::b",
        ] {
            tally.report("unit", line, &mut left);
        }
        assert_eq!(tally.reports, ["unit a::b stdout", "  panicked: it"]);
    }

    #[test]
    fn what_ran_apart_is_added() {
        let mut tally = Tally { passed: 1, ..Tally::default() };
        let mut apart = Tally::apart();
        apart.read("vm", "test a ... FAILED");
        apart.read("vm", "test result: FAILED. 2 passed; 1 failed; 0 ignored");
        apart.skip("b");
        tally.add(apart);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (3, vec!["vm a".to_owned()], vec!["b".to_owned()]));
    }

    #[test]
    fn a_test_that_wrote_down_its_skip_has_not_passed() {
        let file = std::env::temp_dir().join(format!("sublet-skips-{}", std::process::id()));
        std::fs::write(&file, "tls::a: no registry\n").expect("a temporary file");
        let mut tally = Tally { passed: 3, ..Tally::default() };
        let taken = tally.take_skips(&file, "unit");
        std::fs::remove_file(&file).expect("our own file");
        assert!(taken.is_ok() && tally.passed == 2);
        assert_eq!(tally.skipped, ["unit tls::a: no registry"]);
    }
}
