//! What is done after a container has ended: its runtime directory goes, its upper directory is given back to the
//! user, and with `--rm` everything goes.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::role::Config;

/// What the engine wants done after the exit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Arguments of our own binary that remove the container (`--rm`); executed in place of the monitor.
    pub remove: Option<Vec<String>>,
}

/// The last acts of a monitor. Failures have no listener left; what stays behind the next command repairs.
pub fn after_exit(config: &Config, _outer: &OwnedFd) -> ExitCode {
    for name in ["sock", "stdout", "stderr", "pid.json"] {
        let _ = fs::remove_file(config.run_dir.join(name));
    }
    let _ = fs::remove_dir(config.run_dir.join("root"));
    let _ = fs::remove_dir(&config.run_dir);
    if let Some(arguments) = &config.after.remove {
        let _ = sys::role::execute_command(arguments);
    }
    ExitCode::SUCCESS
}
