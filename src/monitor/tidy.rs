//! What is done after a container has ended: its runtime directory goes, its upper directory is given back to the
//! user, and with `--rm` everything goes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use base::Report;
use serde::{Deserialize, Serialize};

use crate::role::Config;

/// What the engine wants done after the exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The snapshot whose files of subordinate ids are given back to the user.
    pub reclaim: Option<PathBuf>,
    /// What [`Remove`] needs to remove the container (`--rm`), passed on unread.
    pub remove: Option<String>,
}

/// The engine's removal of a container. The engine knows this crate and not the reverse, so the binary hands it in: an
/// exec of our own binary for it would cost a container with `--rm` a sixth of its time.
pub type Remove = fn(&str) -> Result<(), Report>;

/// The last acts of a monitor. Failures have no listener left; what stays behind the next command repairs.
pub fn after_exit(config: &Config, outer: &OwnedFd, remove: Remove) -> ExitCode {
    for name in ["sock", "stdout", "stderr", "pid.json"] {
        let _ = fs::remove_file(config.run_dir.join(name));
    }
    let _ = fs::remove_dir(&config.run_dir);
    if let Some(snapshot) = &config.after.reclaim {
        // What could not be given back is tried again by the removal, which can delete it in any case.
        let _ = snapshot::owner_client::reclaim(outer.as_fd(), snapshot);
    }
    if let Some(order) = &config.after.remove {
        let _ = remove(order);
    }
    ExitCode::SUCCESS
}
