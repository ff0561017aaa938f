//! Who the payload runs as: the `--user` text looked up in the container's own `/etc/passwd` and `/etc/group`.
//!
//! Both files are the image's, thus hostile: they are opened inside the root, must be regular, and are read up to a
//! limit. Numbers are parsed strictly (CVE-2026-30892: a loose parse gave another user).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use base::{Kind, Report};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat};
use oci_spec::runtime::Process;
use sys::Call;
use sys::namespace::{Extent, covers};
use sys::path::open_in;

use crate::init::payload::{Groups, server_ended, unserved};

/// More of a passwd or group file than this is not read.
const FILE_MAX: u64 = 8 << 20;

/// Ids inside the container's user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The user's home directory by the passwd file.
    pub home: Option<String>,
}

/// The identity for `USER[:GROUP]`, or the specification's own numbers when the text is empty; with the specification's
/// additional groups in either case, and with these, by name or number. The root directory must be the container's already.
///
/// The primary group of a `USER` is a supplementary one too, as with Docker: a program with a set-group-id bit that gives the
/// primary one up would else have access where that group is shut out (CVE-2022-36109).
pub fn resolve(text: &str, groups: &[String], process: &Process) -> Result<Identity, Report> {
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(/, O_PATH)".to_owned())?;
    let user = process.user();
    let mut identity = if text.is_empty() {
        let passwd = read(root.as_fd(), "/etc/passwd")?;
        let home = passwd_entry(&passwd, |entry| entry.uid == user.uid()).map(|entry| entry.home.to_owned());
        Identity { uid: user.uid(), gid: user.gid(), groups: Vec::new(), home }
    } else {
        let identity = in_root(root.as_fd(), text)?;
        Identity { groups: [&[identity.gid], &identity.groups[..]].concat(), ..identity }
    };
    identity.groups.extend(user.additional_gids().iter().flatten());
    if !groups.is_empty() {
        let group = read(root.as_fd(), "/etc/group")?;
        for text in groups {
            identity.groups.push(gid_of(text, &group)?);
        }
    }
    Ok(identity)
}

/// The identity for `USER[:GROUP]` by the two files in a root directory, which no link in them leaves. A name that they do
/// not have is an error.
pub fn in_root(root: BorrowedFd<'_>, text: &str) -> Result<Identity, Report> {
    from_files(text, &read(root, "/etc/passwd")?, &read(root, "/etc/group")?)
}

/// Refuses a specification's own user where the container's user namespace, with these maps, has no id for it: the kernel
/// says so only when the process is to become it. The additional groups count where they are to be set.
pub fn check_mapped(process: &Process, groups: Groups, uids: &[Extent], gids: &[Extent]) -> Result<(), Report> {
    let user = process.user();
    let additional = user.additional_gids().iter().flatten().filter(|_| groups == Groups::Set);
    let asked = [("uid", user.uid(), uids), ("gid", user.gid(), gids)];
    let mut asked = asked.into_iter().chain(additional.map(|gid| ("additional gid", *gid, gids)));
    match asked.find(|(_, id, map)| !covers(map, *id)) {
        None => Ok(()),
        Some((kind, id, _)) => {
            let message = format!("the {kind} {id} of the process has no place in the container's user namespace");
            Err(Report::new(Kind::Usage, message).with_hint(UNMAPPED))
        }
    }
}

/// What helps then.
pub(super) const UNMAPPED: &str =
    "this id is not mapped: give the user subordinate ids (subuid, subgid), or run as root";

/// Looks `USER[:GROUP]` up in the texts of the two files.
pub fn from_files(text: &str, passwd: &str, group: &str) -> Result<Identity, Report> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let named = passwd_entry(passwd, |entry| entry.name == user);
    let entry = named.or_else(|| {
        let uid = number(user)?;
        passwd_entry(passwd, |entry| entry.uid == uid)
    });
    let (uid, gid) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            let message = format!("unable to find user {user}: no matching entries in passwd file");
            return Err(Report::new(Kind::NotFound, message));
        }
    };
    let gid = match wanted_group {
        None => gid,
        Some(wanted) => gid_of(wanted, group)?,
    };
    let member = |members: &str| entry.as_ref().is_some_and(|entry| members.split(',').any(|name| name == entry.name));
    let groups = match wanted_group {
        Some(_) => Vec::new(),
        None => group_lines(group).filter(|(_, _, members)| member(members)).map(|(_, gid, _)| gid).collect(),
    };
    Ok(Identity { uid, gid, groups, home: entry.map(|entry| entry.home.to_owned()) })
}

/// The group of this name, or number, in the text of the group file.
fn gid_of(wanted: &str, group: &str) -> Result<u32, Report> {
    let named = group_lines(group).find(|(name, _, _)| *name == wanted).map(|(_, gid, _)| gid);
    named.or_else(|| number(wanted)).ok_or_else(|| {
        Report::new(Kind::NotFound, format!("unable to find group {wanted}: no matching entries in group file"))
    })
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn passwd_entry<'a>(passwd: &'a str, wanted: impl Fn(&Entry<'a>) -> bool) -> Option<Entry<'a>> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = number(fields.nth(1)?)?;
        let gid = number(fields.next()?)?;
        let entry = Entry { name, uid, gid, home: fields.nth(1).unwrap_or("/") };
        wanted(&entry).then_some(entry)
    })
}

fn group_lines(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

/// Decimal digits only: no sign, no blanks, at most 2^32 - 2 (the last value means "no id").
pub fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|id| *id != u32::MAX)
}

/// The text of a file of the container; empty when there is none.
fn read(root: BorrowedFd<'_>, path: &str) -> Result<String, Report> {
    let fd = match open_in(root, Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK, Mode::empty()) {
        Ok(fd) => fd,
        Err(error) if unserved(error.errno()) => return Err(server_ended(format!("open({path:?})"))),
        Err(_) => return Ok(String::new()),
    };
    let stat = fstat(&fd).call(|| format!("fstat({path:?})"))?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err(Report::new(Kind::Denied, format!("{path} of the container is no regular file")));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(FILE_MAX).read_to_end(&mut bytes).call(|| format!("read({path:?})"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nwww:x:33:33::/var/www:/bin/sh\nbroken:x:-1:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:syslog,www\n";

    fn ids(text: &str) -> Option<(u32, u32, Vec<u32>)> {
        from_files(text, PASSWD, GROUP).ok().map(|identity| (identity.uid, identity.gid, identity.groups))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids("www"), Some((33, 33, vec![4])));
        assert_eq!(ids("33"), Some((33, 33, vec![4])));
        assert_eq!(ids("www:adm"), Some((33, 4, vec![])));
        assert_eq!(ids("1234"), Some((1234, 0, vec![])));
        assert_eq!(ids("1234:5678"), Some((1234, 5678, vec![])));
        assert_eq!(ids("nobody"), None);
        assert_eq!(ids("www:nogroup"), None);
    }

    #[test]
    fn numbers_are_parsed_strictly() {
        for text in ["-1", "+1", " 1", "1 ", "0x1", "4294967295", "broken"] {
            assert_eq!(ids(text), None, "{text:?}");
        }
    }
}
