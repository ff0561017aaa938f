//! What is done after a container has ended: its runtime directory goes, its upper directory is given back to the
//! user, and with `--rm` everything goes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base::Report;
use serde::{Deserialize, Serialize};

use crate::record::{self, PidRecord};
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

/// Removes the runtime directory and `pid.json`, unless the container has been started again since its exit was recorded:
/// then all of it is the new monitor's. What stays behind the next start or removal takes away.
pub fn forget_run_dir(container_dir: &Path, run_dir: &Path) {
    let ours = |pids: PidRecord| pids.monitor_pid == std::process::id() as i32;
    if !record::read_pid(container_dir).ok().flatten().is_some_and(ours) {
        return;
    }
    for name in ["sock", "stdout", "stderr"] {
        let _ = fs::remove_file(run_dir.join(name));
    }
    let _ = fs::remove_dir(run_dir);
    let _ = fs::remove_file(container_dir.join("pid.json"));
}

/// The last acts of a monitor. Failures have no listener left; what stays behind the next command repairs.
pub fn after_exit(config: &Config, outer: &OwnedFd, remove: Remove) -> ExitCode {
    if let Some(snapshot) = &config.after.reclaim {
        // What could not be given back is tried again by the removal, which can delete it in any case.
        let _ = snapshot::owner_client::reclaim(outer.as_fd(), snapshot);
    }
    if let Some(order) = &config.after.remove {
        let _ = remove(order);
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_later_monitor_stay() {
        let root = tempfile::tempdir().unwrap();
        let run_dir = root.path().join("c");
        fs::create_dir(&run_dir).unwrap();
        fs::write(run_dir.join("sock"), "").unwrap();
        let own = std::process::id() as i32;
        for (monitor_pid, left) in [(own + 1, true), (own, false)] {
            let pids = PidRecord {
                format: record::FORMAT,
                pid: 0,
                start_time: 0,
                boot_id: String::new(),
                monitor_pid,
                monitor_start_time: 0,
                cgroup: None,
                published: Vec::new(),
            };
            record::write_pid(root.path(), &pids).unwrap();
            forget_run_dir(root.path(), &run_dir);
            assert_eq!(run_dir.join("sock").exists(), left);
            assert_eq!(run_dir.exists(), left);
        }
    }
}
