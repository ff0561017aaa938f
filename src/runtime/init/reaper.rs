//! Pid 1 with `--init`: starts the payload as its child, forwards signals to it, reaps orphans, exits as it exits.
//!
//! The process is not dumpable, and was executed in the host's user namespace, so that nothing in the container may look
//! at its memory or its binary. It keeps `CAP_KILL` alone.

use std::convert::Infallible;

use base::{Context, Report};
use nix::sys::signal::{SigSet, Signal};
use sys::Call;
use sys::process::{Flags, fork};
use sys::security::{CapabilitySets, limit_bounding, set_capabilities};

use crate::channel::Channel;
use crate::init::payload::{self, Ready};

const CAP_KILL: u64 = 1 << 5;

/// Forks the payload, lives until it ends, and exits with its code as a shell shows it.
pub fn run(channel: &Channel, ready: &Ready<'_>) -> Result<Infallible, Report> {
    // Hooks may have had to look into init until now.
    nix::sys::prctl::set_dumpable(false).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
    let signals = SigSet::all();
    signals.thread_block().call(|| "sigprocmask(SIG_BLOCK)".to_owned())?;
    let child = fork(Flags::empty(), None, || match payload::become_it(channel, ready) {
        Ok(code) => code,
        Err(report) => {
            channel.fail(&report);
            i32::from(report.kind().exit_code_of_run())
        }
    })
    .step(|| "starting the command below init".to_owned())?;
    // The channel too: its end must come from the payload's exec.
    drop(child.pidfd);
    sys::process::close_from(3)?;
    limit_bounding(CAP_KILL)?;
    set_capabilities(&CapabilitySets { effective: CAP_KILL, permitted: CAP_KILL, ..CapabilitySets::default() })?;
    // Not by a return: what the callers own, as the terminal, was closed above, and closing it twice is a bug that builds with
    // debug assertions end the process for.
    std::process::exit(serve(&signals, child.pid))
}

fn serve(signals: &SigSet, payload: i32) -> i32 {
    loop {
        match sys::process::wait_signal(signals) {
            Ok(number) if number == Signal::SIGCHLD as i32 => {
                if let Some(code) = reap(payload) {
                    return code;
                }
            }
            // The payload may have ended in between; then SIGCHLD follows.
            Ok(number) => drop(sys::process::kill(payload, number)),
            Err(_) => {}
        }
    }
}

/// Reaps all that has ended; the code once the payload is among it.
fn reap(payload: i32) -> Option<i32> {
    let mut code = None;
    // An error says that there is no child.
    while let Ok(Some((pid, exit))) = sys::process::reap_any() {
        if pid == payload {
            code = Some(exit.shell_code());
        }
    }
    code
}
