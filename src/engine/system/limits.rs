//! How much more the store may take: the file system's limits and the user's quota, of bytes and of inodes.
//!
//! A quota is asked of the kernel for the block device below the mount point (quotactl(2)), which any user may do for its
//! own id; a network file system keeps its quotas to itself, and there a full one shows as `EDQUOT` alone.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use base::units::human_size;
use base::{Kind, Report};
use nix::sys::quota::{QuotaType, quotactl_get};
use nix::sys::statvfs::statvfs;
use store::StoreError;
use sys::error::Cause;
use sys::{Call, Errno};

use crate::file::failed;

/// A failure with no more bytes left than this is told with the limits.
const SCARCE_BYTES: u64 = 1 << 20;
/// As many inodes as an image of some size may take: one for each large file.
const SCARCE_INODES: u64 = 500;

/// A limit and what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The most that there may be.
    pub total: u64,
    /// How much more the user may take.
    pub free: u64,
}

/// The limits that hold for a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file system.
    pub bytes: Option<Limit>,
    /// Its inodes; `None` where it makes as many as are wanted.
    pub inodes: Option<Limit>,
    /// Bytes of the user's quota.
    pub quota_bytes: Option<Limit>,
    /// Inodes of the user's quota.
    pub quota_inodes: Option<Limit>,
}

/// What holds for the file system of a directory and for the calling user there.
pub fn of(path: &Path) -> Result<Limits, Report> {
    let stat = statvfs(path).call(|| format!("statvfs({})", path.display()))?;
    let limit = |total: u64, free: u64| (total > 0).then_some(Limit { total, free });
    let (quota_bytes, quota_inodes) = quota(path)?;
    // What a file system says is its word alone: a network's or a user's may answer any number.
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Ok(Limits {
        bytes: limit(bytes(stat.blocks()), bytes(stat.blocks_available())),
        inodes: limit(stat.files(), stat.files_available()),
        quota_bytes,
        quota_inodes,
    })
}

/// Adds to a failure of a full disk what the store has left, and what helps. What filled it may be gone again by now.
pub(crate) fn explain(path: &Path, report: Report) -> Report {
    let is_full = is_of_a_full_disk(&report);
    // An internal failure may have lost its errno on the way; a mistake of the user or of another machine is none of the disk's,
    // whatever is left.
    if !is_full && report.kind() != Kind::Internal {
        return report;
    }
    match of(path) {
        Ok(limits) if is_full || limits.forbids(SCARCE_BYTES) => report
            .with_step(format!("writing to a store that has {limits}"))
            .with_hint("free some space (rmi and system prune do) and run the same command again"),
        _ => report,
    }
}

/// Whether the kernel has said that there is no space, or a quota is used up.
fn is_of_a_full_disk(report: &Report) -> bool {
    let full = |errno: Errno| matches!(errno, Errno::ENOSPC | Errno::EDQUOT);
    report.causes().any(|cause| {
        let of_io = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).map(Errno::from_raw);
        let errno = cause.downcast_ref::<Cause>().map(|cause| cause.0).or(of_io);
        errno.is_some_and(full) || matches!(cause.downcast_ref(), Some(StoreError::Full { .. }))
    })
}

/// The user's quota of bytes and of inodes, where the kernel tells one.
fn quota(path: &Path) -> Result<(Option<Limit>, Option<Limit>), Report> {
    let device = std::fs::metadata(path).map_err(|error| failed("looking at", path, error))?.dev();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let Some(special) = source_of(&mounts, device) else { return Ok((None, None)) };
    let user = nix::unistd::geteuid().as_raw().cast_signed();
    // Without quotas, and where the device is not to be seen, that is no limit.
    let Ok(quota) = quotactl_get(QuotaType::USRQUOTA, &special, user) else { return Ok((None, None)) };
    let limit = |hard: Option<u64>, soft: Option<u64>, used: u64| {
        let total = [hard, soft].into_iter().flatten().filter(|limit| *limit > 0).min()?;
        Some(Limit { total, free: total.saturating_sub(used) })
    };
    // The kernel counts limits in blocks of 1 KiB.
    let bytes = |blocks: Option<u64>| blocks.map(|blocks| blocks.saturating_mul(1024));
    let space = limit(
        bytes(quota.blocks_hard_limit()),
        bytes(quota.blocks_soft_limit()),
        quota.occupied_space().unwrap_or_default(),
    );
    let inodes =
        limit(quota.inodes_hard_limit(), quota.inodes_soft_limit(), quota.allocated_inodes().unwrap_or_default());
    Ok((space, inodes))
}

/// The block device that is mounted as this device number, by `/proc/self/mountinfo` (proc(5)).
fn source_of(mounts: &str, device: u64) -> Option<PathBuf> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number))?;
    let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
    source.starts_with("/dev/").then(|| PathBuf::from(source))
}

impl Limits {
    /// Whether this many bytes more are surely too many.
    pub fn forbids(&self, bytes: u64) -> bool {
        [self.bytes, self.quota_bytes].into_iter().flatten().any(|limit| limit.free < bytes)
            || [self.inodes, self.quota_inodes].into_iter().flatten().any(|limit| limit.free == 0)
    }

    /// Whether an image may well need more inodes than are left: how many it does nobody knows before its layers are here.
    pub fn has_few_inodes(&self) -> bool {
        [self.inodes, self.quota_inodes].into_iter().flatten().any(|limit| limit.free < SCARCE_INODES)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let space =
            |name: &str, limit: Limit| format!("{} of {} free{name}", human_size(limit.free), human_size(limit.total));
        let count = |name: &str, limit: Limit| format!("{} of {} inodes free{name}", limit.free, limit.total);
        let parts = [
            self.bytes.map(|limit| space(" on the file system", limit)),
            self.inodes.map(|limit| count("", limit)),
            self.quota_bytes.map(|limit| space(" by the user's quota", limit)),
            self.quota_inodes.map(|limit| count(" by the user's quota", limit)),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "no limit" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number() {
        let mounts = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n23 22 0:21 / /tmp rw - tmpfs tmpfs rw\n";
        assert_eq!(source_of(mounts, nix::sys::stat::makedev(8, 1)), Some(PathBuf::from("/dev/sda1")));
        assert_eq!(source_of(mounts, nix::sys::stat::makedev(0, 21)), None);
        assert_eq!(source_of(mounts, nix::sys::stat::makedev(9, 9)), None);
    }

    #[test]
    fn a_full_disk_is_known_however_it_is_told() {
        let full = || StoreError::from(sys::SysError::new("write(3)", Errno::EDQUOT));
        let read = |source| Report::from(layer::LayerError::Read { source });
        for report in [
            Report::from(full()),
            read(io::Error::from_raw_os_error(Errno::ENOSPC as i32)),
            read(io::Error::other(full())),
            read(io::Error::other(io::Error::from_raw_os_error(Errno::ENOSPC as i32))),
        ] {
            assert!(is_of_a_full_disk(&report), "{report:?}");
        }
        for report in [
            Report::new(Kind::Usage, "the archive is empty"),
            read(io::Error::from_raw_os_error(Errno::ECONNRESET as i32)),
            read(io::ErrorKind::UnexpectedEof.into()),
        ] {
            assert!(!is_of_a_full_disk(&report), "{report:?}");
        }
    }

    #[test]
    fn limits_are_told_in_words() {
        let limit = |total, free| Some(Limit { total, free });
        let limits = Limits { bytes: limit(2_000_000, 500_000), inodes: limit(100, 7), ..Limits::default() };
        assert_eq!(limits.to_string(), "500kB of 2MB free on the file system, 7 of 100 inodes free");
        assert!(limits.forbids(500_001) && !limits.forbids(500_000));
        assert!(limits.has_few_inodes() && !Limits::default().has_few_inodes());
        let quota = Limits { quota_bytes: limit(1000, 0), quota_inodes: limit(5, 0), ..Limits::default() };
        let words = "0B of 1kB free by the user's quota, 0 of 5 inodes free by the user's quota";
        assert_eq!(quota.to_string(), words);
        assert!(quota.forbids(0));
        assert_eq!(Limits::default().to_string(), "no limit");
        assert!(of(Path::new("/")).unwrap().bytes.is_some());
    }
}
