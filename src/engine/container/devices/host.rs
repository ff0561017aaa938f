//! Devices of the host by path: one node, or every node below a directory, as with Docker.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use base::{Kind, Report};
use cdi::DeviceNode;
use nix::sys::stat::{FileStat, SFlag, lstat};
use nix::unistd::{AccessFlags, access};
use sys::{Errno, SysError};

use super::wrong;
use crate::container::record::DeviceMapping;
use crate::file::failed;

/// How many files are looked at below a directory; all of `/dev` has some hundred.
const FILES_MAX: usize = 8192;

/// The nodes that a mapping means. What it asks for and the caller cannot give becomes a line of `steps_down`.
pub(super) fn nodes(mapping: &DeviceMapping, steps_down: &mut Vec<String>) -> Result<Vec<DeviceNode>, Report> {
    let asked = &mapping.path_on_host;
    let link = lstat(asked).map_err(|errno| missing(asked, errno))?;
    let path = if kind(&link) == SFlag::S_IFLNK {
        fs::canonicalize(asked).map_err(|error| failed("following", asked, error))?
    } else {
        asked.clone()
    };
    let stat = lstat(&path).map_err(|errno| missing(&path, errno))?;
    let found = match kind(&stat) {
        kind if is_device(kind) => vec![(path.clone(), stat)],
        SFlag::S_IFDIR => below(&path, &|_| false)?,
        _ => {
            return Err(wrong(format!("{} is not a device", path.display()))
                .with_hint("a file or a directory of the host is shared with -v SOURCE:DESTINATION"));
        }
    };
    steps_down.extend(check_access(mapping, &found)?);
    let node = |(host, _): (PathBuf, FileStat)| {
        let rest = host.strip_prefix(&path).unwrap_or(Path::new("")).to_owned();
        let container = Path::new(&mapping.path_in_container);
        DeviceNode {
            path: if rest.as_os_str().is_empty() { container.to_owned() } else { container.join(rest) },
            host_path: Some(host),
            permissions: Some(mapping.permissions.clone()),
            ..DeviceNode::default()
        }
    };
    Ok(found.into_iter().map(node).collect())
}

/// Every device of the machine that the caller may open (`--privileged`), at its own path: by a supplementary group only where
/// those are kept. Terminals are not among them, nor what every container has of its own.
pub(super) fn all(keeps_groups: bool) -> Result<Vec<DeviceNode>, Report> {
    let is_one = |(path, stat): &(PathBuf, FileStat)| {
        let opens = [AccessFlags::R_OK, AccessFlags::W_OK].iter().any(|flags| access(path, *flags).is_ok());
        opens && (keeps_groups || !is_by_group(stat))
    };
    let node = |(path, _): (PathBuf, FileStat)| DeviceNode {
        path: path.clone(),
        host_path: Some(path),
        permissions: Some("rwm".to_owned()),
        ..DeviceNode::default()
    };
    Ok(below(Path::new("/dev"), &is_containers_own)?.into_iter().filter(is_one).map(node).collect())
}

/// Whether a name in `/dev` is a terminal, or is what a container has of its own or is a world-writable place.
fn is_containers_own(path: &Path) -> bool {
    const NAMES: [&str; 11] =
        ["console", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero"];
    let name = path.strip_prefix("/dev").ok().and_then(Path::to_str).unwrap_or_default();
    NAMES.contains(&name) || ["tty", "vcs"].iter().any(|kind| name.starts_with(kind) && !name.contains('/'))
}

/// Refuses what the caller may not open at all, as the container could not either; the line for what it may half. Of
/// several devices one will do: a directory often has some for everybody and some for root. Nothing is opened, since
/// that does something to some devices, as to a watchdog.
fn check_access(mapping: &DeviceMapping, found: &[(PathBuf, FileStat)]) -> Result<Option<String>, Report> {
    let may = |flags| found.iter().any(|(path, _)| access(path, flags).is_ok());
    let asks = |permission: char| mapping.permissions.contains(permission);
    let rights = [("read", 'r', AccessFlags::R_OK), ("written", 'w', AccessFlags::W_OK)];
    let asked: Vec<_> = rights.into_iter().filter(|(_, permission, _)| asks(*permission)).collect();
    let given: Vec<&str> = asked.iter().filter(|(_, _, flags)| may(*flags)).map(|(right, _, _)| *right).collect();
    match (given.as_slice(), found.first()) {
        ([], Some((path, stat))) if !asked.is_empty() => Err(closed(path, stat)),
        ([right], _) if asked.len() == 2 => {
            let path = mapping.path_on_host.display();
            Ok(Some(format!("device {path}: you may not read and write it, so it can only be {right}")))
        }
        _ => Ok(None),
    }
}

/// Every device below a directory, but for paths that are passed over; links are not followed.
fn below(directory: &Path, is_passed_over: &dyn Fn(&Path) -> bool) -> Result<Vec<(PathBuf, FileStat)>, Report> {
    let (mut found, mut seen) = (Vec::new(), 0);
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        let entries = match fs::read_dir(&directory) {
            // What the caller may not list has nothing for it, and one that is gone by now neither.
            Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => continue,
            entries => entries.map_err(|error| failed("listing", &directory, error))?,
        };
        for entry in entries.flatten().filter(|entry| !is_passed_over(&entry.path())) {
            seen += 1;
            if seen > FILES_MAX {
                return Err(wrong(format!("there are more than {FILES_MAX} files below {}", directory.display())));
            }
            // One that is gone by now is none.
            let Ok(stat) = lstat(&entry.path()) else { continue };
            match kind(&stat) {
                kind if is_device(kind) => found.push((entry.path(), stat)),
                SFlag::S_IFDIR => waiting.push(entry.path()),
                _ => {}
            }
        }
    }
    if found.is_empty() {
        return Err(Report::new(Kind::NotFound, format!("there is no device below {}", directory.display()))
            .with_hint("a directory of the host is shared with -v SOURCE:DESTINATION"));
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// The type of a file.
pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn is_device(kind: SFlag) -> bool {
    kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK
}

fn missing(path: &Path, errno: Errno) -> Report {
    let report = Report::from(SysError::new(format!("lstat({path:?})"), errno));
    match errno {
        Errno::ENOENT => report.with_hint("the module of its driver may not be loaded"),
        _ => report,
    }
}

fn closed(path: &Path, stat: &FileStat) -> Report {
    let (mode, user, group) = (stat.st_mode & 0o777, stat.st_uid, stat.st_gid);
    let call = format!("access({path:?}), whose mode is {mode:04o}, user {user}, group {group}");
    let acl = format!("as root: setfacl -m u:{}:rw {}", nix::unistd::geteuid(), path.display());
    // Nobody becomes a member of root's group for a device.
    let hint =
        if group != 0 && mode & 0o060 != 0 { format!("become a member of group {group}, or {acl}") } else { acl };
    Report::from(SysError::new(call, Errno::EACCES)).with_hint(hint)
}

/// Whether the caller may open a node as a member of a supplementary group only, as far as its mode tells.
pub(super) fn is_by_group(stat: &FileStat) -> bool {
    const READ_WRITE: u32 = 0o6;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (group, others) = (stat.st_mode >> 3 & READ_WRITE, stat.st_mode & READ_WRITE);
    let member =
        || nix::unistd::getgroups().is_ok_and(|groups| groups.iter().any(|group| group.as_raw() == stat.st_gid));
    uid != 0 && uid != stat.st_uid && gid != stat.st_gid && group & !others != 0 && member()
}
