//! A command's wall time and the largest memory that it or a child of its had, as the kernel counts both for whoever waited.
//!
//! `getrusage(2)` gives the peak over all children that ever were; so each command gets a process of ours of its own.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};

use crate::shell::Fallible;

/// Runs a command and writes seconds and bytes to a file; what `xtask peak FILE COMMAND…` does.
pub fn run(arguments: &[String]) -> Fallible<bool> {
    let [file, program, rest @ ..] = arguments else { return Err("peak needs a file and a command".into()) };
    let began = Instant::now();
    let status = Command::new(program).args(rest).status()?;
    let took_s = began.elapsed().as_secs_f64();
    let peak_bytes = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss() * 1024;
    std::fs::write(file, format!("{took_s} {peak_bytes}"))?;
    Ok(status.success())
}

/// The same command run by [`run`].
pub fn wrapped(command: &Command, file: &Path) -> Fallible<Command> {
    let mut wrapped = Command::new(std::env::current_exe()?);
    wrapped.arg("peak").arg(file).arg(command.get_program()).args(command.get_args());
    Ok(wrapped)
}

/// What [`run`] has written: seconds and bytes.
pub fn read(file: &Path) -> Option<(f64, u64)> {
    let text = std::fs::read_to_string(file).ok()?;
    let (took_s, peak_bytes) = text.split_once(' ')?;
    Some((took_s.parse().ok()?, peak_bytes.parse().ok()?))
}
