//! Which of the host's mounts a `host:` view may touch, decided from `/proc/self/mountinfo` alone.
//!
//! A network mount whose server is gone blocks whoever looks at it, so nothing below may be touched to find out what it
//! is. Source of the format: proc_pid_mountinfo(5).

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use sys::error::{Call, Result};

/// What may be done with a mount point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A local file system: shown.
    Shown,
    /// A kernel file system: its root may be looked at, its contents are not shown.
    Empty,
    /// May block (network, FUSE, automounter, unknown type): never touched.
    Untouchable,
}

/// File systems on disks, in memory, or over those.
const LOCAL: &[&str] = &[
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "iso9660", "jfs", "nilfs2",
    "ntfs3", "overlay", "ramfs", "rootfs", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// File systems that are windows into the kernel.
const KERNEL: &[&str] = &[
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// The mount points of this mount namespace, by path from its root.
pub struct HostMounts {
    mountinfo: File,
    by_path: HashMap<Vec<u8>, Mounted>,
}

impl HostMounts {
    /// Reads the table.
    pub fn read() -> Result<Self> {
        let mountinfo = File::open("/proc/self/mountinfo").call(|| "open(/proc/self/mountinfo)".to_owned())?;
        let mut mounts = HostMounts { mountinfo, by_path: HashMap::new() };
        mounts.load()?;
        Ok(mounts)
    }

    /// Whether the table changed since it was read: the kernel signals `POLLPRI` on the file.
    pub fn changed(&self) -> bool {
        let mut fds = [PollFd::new(self.mountinfo.as_fd(), PollFlags::POLLPRI)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Reads the table again.
    pub fn load(&mut self) -> Result<()> {
        let mut text = Vec::new();
        self.mountinfo
            .rewind()
            .and_then(|()| self.mountinfo.read_to_end(&mut text))
            .call(|| "read(/proc/self/mountinfo)".to_owned())?;
        self.by_path = parse(&text);
        Ok(())
    }

    /// What is mounted on exactly this path (`etc/hosts`, no leading slash), if anything.
    pub fn at(&self, path: &[u8]) -> Option<Mounted> {
        self.by_path.get(path).copied()
    }
}

fn classify(fs_type: &[u8]) -> Mounted {
    let is = |table: &[&str]| table.iter().any(|known| known.as_bytes() == fs_type);
    if is(LOCAL) {
        Mounted::Shown
    } else if is(KERNEL) {
        Mounted::Empty
    } else {
        Mounted::Untouchable
    }
}

/// Later lines are mounted over earlier ones at the same path.
fn parse(text: &[u8]) -> HashMap<Vec<u8>, Mounted> {
    let mut by_path = HashMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let (Some(point), Some(fs_type)) = (fields.nth(4), fields.skip_while(|field| *field != b"-").nth(1)) else {
            continue;
        };
        let point = unescape(point);
        by_path.insert(point.strip_prefix(b"/").unwrap_or(&point).to_vec(), classify(fs_type));
    }
    by_path
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal =
            |part: &[u8]| part.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit.wrapping_sub(b'0')));
        match tail.get(..3) {
            Some(digits) if byte == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)) => {
                out.push(octal(digits) as u8);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_classified_by_type_and_the_last_one_wins() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:30 / /home/u/a\\040b rw,nosuid shared:1 master:2 - nfs4 server:/x rw\n\
            31 22 0:31 / /proc rw - proc proc rw\n\
            32 22 0:32 / /mnt rw - nfs s:/ rw\n\
            33 32 8:2 / /mnt rw - xfs /dev/sdb rw\n\
            34 22 0:33 / /strange rw - newfs none rw\n\
            broken line\n";
        let mounts = parse(text);
        assert_eq!(mounts.get(&b""[..]), Some(&Mounted::Shown));
        assert_eq!(mounts.get(&b"home/u/a b"[..]), Some(&Mounted::Untouchable));
        assert_eq!(mounts.get(&b"proc"[..]), Some(&Mounted::Empty));
        assert_eq!(mounts.get(&b"mnt"[..]), Some(&Mounted::Shown));
        assert_eq!(mounts.get(&b"strange"[..]), Some(&Mounted::Untouchable));
        assert_eq!(mounts.len(), 5);
    }

    #[test]
    fn the_running_system_has_a_root_and_a_proc() {
        let mounts = HostMounts::read().ok();
        assert_eq!(mounts.as_ref().and_then(|mounts| mounts.at(b"proc")), Some(Mounted::Empty));
        assert!(mounts.is_some_and(|mounts| !mounts.changed()));
    }
}
