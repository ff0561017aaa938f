//! User namespaces' maps and the facts about a namespace that is held by a descriptor.
//!
//! Entering (`setns`, `unshare`) is nix's. A map file takes exactly one write; a line of a nested map must lie inside
//! one extent of the outer map (user_namespaces(7)).

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::error::{Call, Result, check};

/// One line of `uid_map` or `gid_map`: `size` ids from `inside` map to those from `outside`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id in the parent namespace.
    pub outside: u32,
    /// How many ids.
    pub size: u32,
}

impl Extent {
    /// The id inside that a map gives to one of the parent namespace.
    pub fn to_inside(map: &[Extent], outside: u32) -> Option<u32> {
        map.iter().find_map(|extent| {
            let offset = outside.checked_sub(extent.outside).filter(|offset| *offset < extent.size);
            offset.map(|offset| extent.inside + offset)
        })
    }

    /// The id of the parent namespace that a map gives to one inside.
    pub fn to_outside(map: &[Extent], inside: u32) -> Option<u32> {
        map.iter().find_map(|extent| {
            let offset = inside.checked_sub(extent.inside).filter(|offset| *offset < extent.size);
            offset.map(|offset| extent.outside + offset)
        })
    }
}

/// The map of one kind of id; at most 340 extents (Linux 4.15).
pub type IdMap = Vec<Extent>;

/// The text of a map file.
pub fn map_text(map: &[Extent]) -> String {
    map.iter().fold(String::new(), |mut text, extent| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} {} {}", extent.inside, extent.outside, extent.size);
        text
    })
}

/// Whether the text of a map file, as `/proc/PID/uid_map` shows it, maps the id `inside`.
pub fn maps(text: &str, inside: u32) -> bool {
    parse_map(text).is_some_and(|map| covers(&map, inside))
}

/// Whether a map has the id `inside`.
pub fn covers(map: &[Extent], inside: u32) -> bool {
    let has = |extent: &Extent| inside.checked_sub(extent.inside).is_some_and(|offset| offset < extent.size);
    map.iter().any(has)
}

/// The map that a map file shows; `None` when a line is not of three numbers.
pub fn parse_map(text: &str) -> Option<IdMap> {
    let extent = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>().ok()?;
        let [inside, outside, size] = numbers[..] else { return None };
        Some(Extent { inside, outside, size })
    };
    text.lines().map(extent).collect()
}

/// The maps of users and groups of the calling process's user namespace.
pub fn own_maps() -> Result<(IdMap, IdMap)> {
    let read = |path: &str| {
        let text = crate::file::read_text(path).call(|| format!("read({path})"))?;
        Ok(parse_map(&text).unwrap_or_default())
    };
    Ok((read("/proc/self/uid_map")?, read("/proc/self/gid_map")?))
}

/// Whether the calling process's user namespace maps every id, as only the machine's first and copies of it do.
pub fn maps_every_id() -> Result<bool> {
    let map = crate::file::read_text("/proc/self/uid_map").call(|| "read(/proc/self/uid_map)".to_owned())?;
    Ok(parse_map(&map).is_some_and(|map| map == [Extent { inside: 0, outside: 0, size: u32::MAX }]))
}

/// Whether setgroups(2) is allowed in the user namespace of a process, which `/proc` has by this name: a pid, or `self`. Linux
/// 3.19.
pub fn allows_setgroups(process: impl Display) -> Result<bool> {
    let path = format!("/proc/{process}/setgroups");
    Ok(crate::file::read_text(&path).call(|| format!("read({path})"))?.trim() == "allow")
}

/// Writes one file of `/proc/PID/` (held as a directory descriptor) in one write: `uid_map`, `gid_map`, `setgroups`.
pub fn write_proc(process: BorrowedFd<'_>, name: &str, text: &str) -> Result<()> {
    let fd = nix::fcntl::openat(process, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open(/proc/PID/{name})"))?;
    File::from(fd).write_all(text.as_bytes()).call(|| format!("write(/proc/PID/{name}, {text:?})"))
}

/// Opens `/proc/PID/` of a process of ours as a directory.
pub fn proc_dir(pid: i32) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}");
    nix::fcntl::open(path.as_str(), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?})"))
}

/// Opens a namespace of the process whose `/proc/PID/` this is: `user`, `mnt`, `net`, `pid`.
pub fn open_namespace(process: BorrowedFd<'_>, kind: &str) -> Result<OwnedFd> {
    nix::fcntl::openat(process, format!("ns/{kind}").as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open(/proc/PID/ns/{kind})"))
}

/// Opens a namespace of the calling process.
pub fn open_own(kind: &str) -> Result<OwnedFd> {
    let path = format!("/proc/self/ns/{kind}");
    nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?})"))
}

/// The user namespace that a user namespace was made in: `NS_GET_PARENT`, ioctl_nsfs(2), Linux 4.9. `EPERM` when that is
/// neither the caller's nor below it.
pub fn parent(namespace: impl AsFd) -> Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_PARENT) };
    let fd = check(result.into(), || "ioctl(NS_GET_PARENT)".to_owned())?;
    // SAFETY: a fresh descriptor, owned by nobody else; the kernel makes it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The user namespace that a namespace of another kind belongs to: `NS_GET_USERNS`, ioctl_nsfs(2), Linux 4.9. `EPERM` when that
/// is neither the caller's nor below it.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    let result = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_USERNS) };
    let fd = check(result.into(), || "ioctl(NS_GET_USERNS)".to_owned())?;
    // SAFETY: a fresh descriptor, owned by nobody else; the kernel makes it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// `setdomainname(2)` of the caller's UTS namespace; at most 64 bytes.
pub fn set_domain_name(name: &str) -> Result<()> {
    // SAFETY: the kernel copies `len` bytes from a live string; it needs no terminating NUL.
    let result = unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) };
    check(result.into(), || format!("setdomainname({name:?})"))?;
    Ok(())
}

/// What makes two namespace descriptors the same namespace: device and inode of its nsfs file (ioctl_ns(2)).
pub fn identity(namespace: impl AsFd) -> Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(namespace).call(|| "fstat(namespace)".to_owned())?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_one_line_an_extent() {
        let map = [Extent { inside: 0, outside: 1000, size: 1 }, Extent { inside: 1, outside: 100_000, size: 65_536 }];
        assert_eq!(map_text(&map), "0 1000 1\n1 100000 65536\n");
        // As the kernel pads it.
        let shown = "         0       1000          1\n         1     100000      65536\n";
        assert!([0, 1, 65_536].iter().all(|id| maps(shown, *id)) && !maps(shown, 65_537) && !maps("", 0));
        assert_eq!((parse_map(shown), parse_map("")), (Some(map.to_vec()), Some(Vec::new())));
        for bad in ["0 1000", "0 1000 1 2", "0 1000 x", "-1 0 1"] {
            assert_eq!(parse_map(bad), None, "{bad}");
        }
    }
}
