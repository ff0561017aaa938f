//! What is done after a container has ended: its runtime directory goes, its upper directory is given back to the
//! user, and with `--rm` everything goes.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use base::Report;
use serde::{Deserialize, Serialize};
use sys::Call;

use crate::record::{self, PidRecord};

/// What the engine wants done after the exit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The snapshots whose files of subordinate ids are given back to the user.
    pub reclaim: Vec<PathBuf>,
    /// What [`Callbacks::volumes`] needs, passed on unread; `None` where there is nothing to do.
    pub volumes: Option<String>,
    /// What [`Callbacks::remove`] needs to remove the container (`--rm`), passed on unread.
    pub remove: Option<String>,
    /// The file system goes before the removal, not while it goes on: until then its server has files of the writable layer open,
    /// which an NFS client does not let go of.
    #[serde(default)]
    pub unmount_first: bool,
}

/// [`Callbacks::remove`].
pub type Remove = fn(&str, BorrowedFd<'_>, &mut dyn FnMut()) -> Result<(), Report>;

/// What the engine does after the exit. The engine knows this crate and not the reverse, so the binary hands it in: an
/// exec of our own binary for it would cost a container with `--rm` a sixth of its time.
#[derive(Clone, Copy, Debug)]
pub struct Callbacks {
    /// Gives the files of volumes and of the image's tree back, as root of this outer user namespace.
    pub volumes: fn(&str, BorrowedFd<'_>) -> Result<(), Report>,
    /// The removal of a container, as root of this outer user namespace where that is needed. It calls back once no command
    /// finds it any more and its writable layer is gone.
    pub remove: Remove,
    /// Tells of a change of the container: what it is, and what is to be known of it by name.
    pub event: fn(&str, &str, &[(&str, String)]),
}

/// Removes the runtime directory, unless the container has been started again since its exit was recorded: then it is the
/// new monitor's. What stays behind the next start or removal takes away.
pub fn forget_run_dir(container_dir: &Path, run_dir: &Path) {
    if !is_ours(container_dir) {
        return;
    }
    for name in ["sock", "stdout", "stderr"] {
        let _ = fs::remove_file(run_dir.join(name));
    }
    // With what is not ours in it: a start waits until it is gone.
    let _ = fs::remove_dir(run_dir).or_else(|_| fs::remove_dir_all(run_dir));
}

/// Whether the container's last start was that of the calling monitor.
fn is_ours(container_dir: &Path) -> bool {
    let ours = |pids: PidRecord| pids.monitor_pid == std::process::id() as i32;
    record::read_pid(container_dir).ok().flatten().is_some_and(ours)
}

/// Gives the container's files back and removes `pid.json`, whose being there without its monitor tells the next command
/// that this is still to be done. The container's lock keeps a start away meanwhile.
pub fn reclaim(container_dir: &Path, outer: &OwnedFd, snapshots: &[PathBuf]) -> Result<(), Report> {
    let path = container_dir.join("lock");
    let lock = File::options().write(true).open(&path).call(|| format!("open({path:?})"))?;
    sys::lock::exclusive(&lock, &path)?;
    if !is_ours(container_dir) {
        return Ok(());
    }
    // The layer of a volume may have been dropped meanwhile.
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.exists()) {
        snapshot::owner_client::reclaim(outer.as_fd(), snapshot)?;
    }
    // A run that was short has none; of another run it is not read.
    let _ = fs::remove_file(container_dir.join(record::KEPT));
    let path = container_dir.join("pid.json");
    Ok(fs::remove_file(&path).call(|| format!("unlink({path:?})"))?)
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
                networks: Vec::new(),
            };
            record::write_pid(root.path(), &pids).unwrap();
            forget_run_dir(root.path(), &run_dir);
            assert_eq!(run_dir.join("sock").exists(), left);
            assert_eq!(run_dir.exists(), left);
        }
    }
}
