//! The outer user namespace: one for each user and host, in which FUSE views are mounted and container namespaces nest.
//!
//! Its map is chosen by the first rung that holds:
//!
//! | rung | who | map |
//! |---|---|---|
//! | `subuid` | a user with subordinate ids | `0 → the user`, `1… → the range`, written by newuidmap and newgidmap |
//! | `one-id` | any user, and root where nothing but its own id exists | `0 → the user`; groups cannot be set |
//! | `root` | root | `0… → 65,536 ids that belong to nobody else` ([`crate::root_ids`]), written directly |
//!
//! A namespace lives as long as a process is in it or a descriptor is open on it. It is made by a child that only
//! waits for its map; nothing else ever runs in that child.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use base::{Explain, Kind, Ladder, Trial};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use oci_spec::runtime::Capability;
use serde::{Deserialize, Serialize};
use sys::namespace::{Extent, IdMap, map_text, open_namespace, proc_dir, write_proc};
use sys::process::{Flags, fork, pidfd_send_signal, reap};
use sys::{Call, SysError};

use crate::capabilities::bit;
use crate::root_ids;

/// How many ids a full map offers to containers: those that images use.
pub(crate) const FULL_RANGE: u32 = 65_536;
/// Why root's containers may have one id.
const NO_OTHER_ID: &str = "no id but 0 exists in this user namespace";
/// The way out of that.
const MORE_IDS: &str = "give the surrounding container or user namespace more ids";

/// What the outer namespace maps, as far as container maps depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OuterMap {
    /// User ids, `inside` counted from 0 without gaps.
    pub uids: IdMap,
    /// Group ids, likewise.
    pub gids: IdMap,
    /// Whether processes inside may set supplementary groups.
    pub setgroups: bool,
}

impl OuterMap {
    /// The map of a container whose ids are the outer ones, split at the outer extents: a nested line must lie inside
    /// one of them (user_namespaces(7); else `EPERM`).
    pub fn identity(extents: &[Extent]) -> IdMap {
        extents.iter().map(|outer| Extent { inside: outer.inside, outside: outer.inside, size: outer.size }).collect()
    }

    /// The map of a container in which `id` is the user (outer 0) and the ids below it move up by one place.
    pub fn keep_id(extents: &[Extent], id: u32) -> IdMap {
        let total: u32 = extents.iter().map(|extent| extent.size).sum();
        let kept = Extent { inside: id, outside: 0, size: 1 };
        let below = Extent { inside: 0, outside: 1, size: id.min(total - 1) };
        let above = Extent { inside: id + 1, outside: below.size + 1, size: total - 1 - below.size };
        let shifted = [below, kept, above];
        split(extents, shifted.iter().filter(|extent| extent.size > 0))
    }

    /// How many user ids are mapped.
    pub fn uid_count(&self) -> u32 {
        self.uids.iter().map(|extent| extent.size).sum()
    }

    /// How many group ids are mapped.
    pub fn gid_count(&self) -> u32 {
        self.gids.iter().map(|extent| extent.size).sum()
    }
}

/// Cuts map lines where an outer extent ends.
fn split<'a>(outer: &[Extent], lines: impl Iterator<Item = &'a Extent>) -> IdMap {
    let mut map = IdMap::new();
    for line in lines {
        let mut done = 0;
        while done < line.size {
            let at = line.outside + done;
            let Some(extent) = outer.iter().find(|extent| at >= extent.inside && at - extent.inside < extent.size)
            else {
                break;
            };
            let size = (extent.inside + extent.size - at).min(line.size - done);
            map.push(Extent { inside: line.inside + done, outside: at, size });
            done += size;
        }
    }
    map
}

/// A new outer user namespace.
#[derive(Debug)]
pub struct Outer {
    /// The namespace; it lives as long as this or a copy of it is open.
    pub namespace: OwnedFd,
    /// What it maps.
    pub map: OuterMap,
    /// How the ladder was climbed.
    pub ladder: Ladder,
    /// Where the block of ids begins that root has taken for itself, to be given as [`Caller::block`] the next time.
    pub block: Option<u32>,
}

/// Who asks: the facts of the calling process that decide the rung.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Login name, as `/etc/subuid` may have it; empty when unknown.
    pub name: String,
    /// [`Outer::block`] of the last time, where there is a record of it.
    pub block: Option<u32>,
}

impl Caller {
    /// The calling process, with its name from `/etc/passwd`: a static binary has no NSS, so names of directory users
    /// stay unknown here and `getsubids` is asked for their ranges.
    pub fn current(block: Option<u32>) -> Self {
        let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Caller { uid, gid, name: login_name(uid).unwrap_or_default(), block }
    }
}

/// The name of a user in this machine's `/etc/passwd`.
pub fn login_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Why no outer user namespace could be made.
#[derive(Debug, thiserror::Error)]
pub enum OuterError {
    /// The kernel or the host's policy refuses user namespaces.
    #[error("cannot make a user namespace")]
    Forbidden {
        /// The refused call.
        #[source]
        source: SysError,
        /// Which setting forbids it and how to change that.
        hint: String,
    },
    /// A step that should not fail.
    #[error("cannot set up the outer user namespace")]
    System(#[from] SysError),
    /// Real root in a user namespace that has no other id: containers never get root's own.
    #[error("containers of root need ids of their own, and none but root's exists in this user namespace")]
    OnlyRoot,
}

impl Explain for OuterError {
    fn kind(&self) -> Kind {
        match self {
            OuterError::Forbidden { .. } | OuterError::OnlyRoot => Kind::Denied,
            OuterError::System(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            OuterError::Forbidden { hint, .. } => Some(hint.clone()),
            OuterError::OnlyRoot => Some(MORE_IDS.to_owned()),
            OuterError::System(_) => None,
        }
    }
}

/// Makes an outer user namespace on the best rung that holds.
pub fn make(caller: &Caller) -> Result<Outer, OuterError> {
    let rung = if caller.uid == 0 { "root" } else { "subuid" };
    let reason = match many_ids(caller)? {
        Ok((namespace, map, block)) => {
            let trials = vec![Trial { rung, failure: None }];
            return Ok(Outer { namespace, map, ladder: ladder(trials, rung, None), block });
        }
        Err(reason) => reason,
    };
    let map = single_map(caller);
    let namespace = make_with(|pid| write_maps_directly(pid, &map))?;
    let trials = vec![Trial { rung, failure: Some(reason) }, Trial { rung: "one-id", failure: None }];
    Ok(Outer { namespace, map, ladder: ladder(trials, "one-id", Some(fix_of_one_id(caller))), block: None })
}

/// What a plain user's namespace maps when nothing is said: itself to 0 and its subordinate ids behind, or itself alone.
pub fn default_maps(caller: &Caller) -> (IdMap, IdMap) {
    let map = subordinate_map(caller).unwrap_or_else(|_| single_map(caller));
    (map.uids, map.gids)
}

/// A user namespace with these maps that no process is in, to shift the owners of a mount by.
pub fn namespace_of(uids: &[Extent], gids: &[Extent]) -> Result<OwnedFd, OuterError> {
    let map = OuterMap { uids: uids.to_vec(), gids: gids.to_vec(), setgroups: true };
    make_with(|pid| write_maps_directly(pid, &map))
}

/// Writes the maps of the process `pid`, whose user namespace is new: directly where the caller may, which for a plain
/// user means one line with its own id, else by newuidmap(1) and newgidmap(1).
pub fn write_maps(pid: i32, uids: &[Extent], gids: &[Extent]) -> Result<(), SysError> {
    let own = |map: &[Extent], id: u32| matches!(map, [extent] if extent.outside == id && extent.size == 1);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let map = OuterMap { uids: uids.to_vec(), gids: gids.to_vec(), setgroups: true };
    let needed = bit(Capability::Setgid) | bit(Capability::Setuid);
    if sys::security::capabilities()?.effective & needed == needed {
        return write_maps_directly(pid, &map);
    }
    if own(uids, uid) && own(gids, gid) {
        return write_maps_directly(pid, &OuterMap { setgroups: false, ..map });
    }
    write_maps_by_helpers(pid, &map)
}

/// The ladder of a namespace that is there already, as far as its map and the caller tell.
pub fn ladder_of(caller: &Caller, map: &OuterMap) -> Ladder {
    let rung = if caller.uid == 0 { "root" } else { "subuid" };
    if map.uid_count() > 1 {
        return ladder(vec![Trial { rung, failure: None }], rung, None);
    }
    let reason = if caller.uid == 0 { Some(NO_OTHER_ID.to_owned()) } else { subordinate_map(caller).err() };
    let reason = reason.unwrap_or_else(|| "the namespace in use was made without".to_owned());
    let trials = vec![Trial { rung, failure: Some(reason) }, Trial { rung: "one-id", failure: None }];
    ladder(trials, "one-id", Some(fix_of_one_id(caller)))
}

fn ladder(trials: Vec<Trial>, chosen: &'static str, fix: Option<String>) -> Ladder {
    Ladder { part: "ids", trials, chosen: Some(chosen), fix }
}

fn fix_of_one_id(caller: &Caller) -> String {
    if caller.uid == 0 {
        return MORE_IDS.to_owned();
    }
    format!(
        "as root: install the package uidmap and run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}`",
        if caller.name.is_empty() { caller.uid.to_string() } else { caller.name.clone() }
    )
}

/// A namespace with many ids, what it maps, and root's block; or why it must be one id.
type ManyIds = Result<(OwnedFd, OuterMap, Option<u32>), String>;

/// The rungs `root` and `subuid`.
fn many_ids(caller: &Caller) -> Result<ManyIds, OuterError> {
    if caller.uid == 0 {
        let host = root_ids::Host::read();
        return match root_ids::choose(&host, caller.block) {
            // Not the next rung when this fails: it would map root itself.
            Some((map, block)) => Ok(Ok((make_with(|pid| write_maps_directly(pid, &map))?, map, block))),
            None if host.root_is_everybodys => Err(OuterError::OnlyRoot),
            None => Ok(Err(NO_OTHER_ID.to_owned())),
        };
    }
    let map = match subordinate_map(caller) {
        Ok(map) => map,
        Err(reason) => return Ok(Err(reason)),
    };
    match make_with(|pid| write_maps_by_helpers(pid, &map)) {
        Ok(namespace) => Ok(Ok((namespace, map, None))),
        Err(OuterError::System(error)) => Ok(Err(format!("{error}: {}", error.cause))),
        Err(error) => Err(error),
    }
}

/// Makes the namespace: a child unshares by birth and waits; `write` fills its maps; the descriptor outlives it.
fn make_with(write: impl FnOnce(i32) -> Result<(), SysError>) -> Result<OwnedFd, OuterError> {
    let (ours, theirs) = sys::socket::pair()?;
    let ours = Cell::new(Some(ours));
    let holder = fork(Flags::NEWUSER, None, || {
        // The end of the socket, which the parent's death brings too, ends the holder: it must not keep the other end
        // open itself, nor the parent's locks.
        drop(ours.take());
        let mut byte = [0];
        let _ = nix::unistd::read(&theirs, &mut byte);
        0
    })
    .map_err(forbidden)?;
    let process = proc_dir(holder.pid)?;
    let result = write(holder.pid).and_then(|()| open_namespace(process.as_fd(), "user"));
    drop(ours.take());
    // The holder only reads from a socket, so it always ends; a stray signal changes nothing.
    let _ = pidfd_send_signal(holder.pidfd.as_fd(), Signal::SIGKILL as i32);
    reap(holder.pidfd.as_fd(), true)?;
    result.map_err(|error| match error.errno() {
        Errno::EPERM | Errno::EACCES if restricted_by_apparmor() => forbidden(error),
        _ => OuterError::System(error),
    })
}

fn write_maps_directly(pid: i32, map: &OuterMap) -> Result<(), SysError> {
    let process = proc_dir(pid)?;
    if !map.setgroups {
        write_proc(process.as_fd(), "setgroups", "deny")?;
    }
    write_proc(process.as_fd(), "uid_map", &map_text(&map.uids))?;
    write_proc(process.as_fd(), "gid_map", &map_text(&map.gids))
}

/// Runs newuidmap and newgidmap side by side: both are set-id programs that start slowly.
fn write_maps_by_helpers(pid: i32, map: &OuterMap) -> Result<(), SysError> {
    let helper = |program: &str, extents: &[Extent]| {
        let mut command = Command::new(program);
        command.arg(pid.to_string());
        for extent in extents {
            command.args([extent.inside.to_string(), extent.outside.to_string(), extent.size.to_string()]);
        }
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::piped()).spawn().call(|| format!("exec({program})"))
    };
    let helpers = [("newuidmap", helper("newuidmap", &map.uids)?), ("newgidmap", helper("newgidmap", &map.gids)?)];
    let mut failures = String::new();
    for (program, child) in helpers {
        let output = child.wait_with_output().call(|| format!("wait({program})"))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            // Writing to a String cannot fail.
            let _ = write!(failures, "{program}: {} ", text.trim());
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(SysError::new(failures.trim().to_owned(), Errno::EPERM)) }
}

fn single_map(caller: &Caller) -> OuterMap {
    let one = |id| vec![Extent { inside: 0, outside: id, size: 1 }];
    OuterMap { uids: one(caller.uid), gids: one(caller.gid), setgroups: false }
}

/// The user as 0 and the subordinate range from 1 on; says why there is none.
fn subordinate_map(caller: &Caller) -> Result<OuterMap, String> {
    let map = |id: u32, range: Extent| {
        vec![
            Extent { inside: 0, outside: id, size: 1 },
            Extent { inside: 1, outside: range.outside, size: range.size.min(FULL_RANGE) },
        ]
    };
    let uids = subordinate_range("/etc/subuid", &[], caller)?;
    let gids = subordinate_range("/etc/subgid", &["-g"], caller)?;
    Ok(OuterMap { uids: map(caller.uid, uids), gids: map(caller.gid, gids), setgroups: true })
}

/// The largest range of the caller in a subordinate id file, else what `getsubids` knows from the directory service.
fn subordinate_range(path: &str, getsubids: &[&str], caller: &Caller) -> Result<Extent, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let own = caller.uid.to_string();
    let from_file = text.lines().filter_map(|line| {
        let (owner, range) = line.split_once(':')?;
        let (start, count) = range.split_once(':')?;
        let ours = owner == own || (!caller.name.is_empty() && owner == caller.name);
        ours.then_some((start.trim().parse().ok()?, count.trim().parse().ok()?))
    });
    let largest = from_file.max_by_key(|(_, count): &(u32, u32)| *count).or_else(|| ask_getsubids(getsubids, caller));
    match largest {
        Some((start, count)) if count > 0 && start.checked_add(count).is_some() => {
            Ok(Extent { inside: 1, outside: start, size: count })
        }
        _ => Err(format!("no line for {} in {path}", if caller.name.is_empty() { &own } else { &caller.name })),
    }
}

/// `getsubids [-g] USER` prints `0: USER START COUNT`.
fn ask_getsubids(options: &[&str], caller: &Caller) -> Option<(u32, u32)> {
    let name = if caller.name.is_empty() { caller.uid.to_string() } else { caller.name.clone() };
    let output = Command::new("getsubids").args(options).arg(name).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut fields = text.lines().next()?.split_whitespace().rev();
    let count = fields.next()?.parse().ok()?;
    Some((fields.next()?.parse().ok()?, count))
}

/// Names the setting that forbids user namespaces.
fn forbidden(source: SysError) -> OuterError {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).map(|text| text.trim().to_owned()).ok();
    let hint = if read("user/max_user_namespaces").as_deref() == Some("0") {
        "user namespaces are switched off; as root: `sysctl -w user.max_user_namespaces=15000`".to_owned()
    } else if read("kernel/unprivileged_userns_clone").as_deref() == Some("0") {
        "user namespaces are for root only; as root: `sysctl -w kernel.unprivileged_userns_clone=1`".to_owned()
    } else if restricted_by_apparmor() {
        "AppArmor restricts user namespaces; as root: install packaging/apparmor/sublet to /etc/apparmor.d, or \
         `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            .to_owned()
    } else {
        "the surrounding container or a security module refuses clone(CLONE_NEWUSER); allow it there".to_owned()
    };
    OuterError::Forbidden { source, hint }
}

fn restricted_by_apparmor() -> bool {
    fs::read_to_string("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTER: [Extent; 2] =
        [Extent { inside: 0, outside: 1000, size: 1 }, Extent { inside: 1, outside: 100_000, size: 65_536 }];

    fn triples(map: &[Extent]) -> Vec<(u32, u32, u32)> {
        map.iter().map(|extent| (extent.inside, extent.outside, extent.size)).collect()
    }

    #[test]
    fn an_identity_map_is_split_at_the_outer_extents() {
        assert_eq!(triples(&OuterMap::identity(&OUTER)), [(0, 0, 1), (1, 1, 65_536)]);
    }

    #[test]
    fn keep_id_moves_the_user_and_keeps_every_other_id() {
        assert_eq!(triples(&OuterMap::keep_id(&OUTER, 1000)), [(0, 1, 1000), (1000, 0, 1), (1001, 1001, 64_536)]);
        let one = [Extent { inside: 0, outside: 1000, size: 1 }];
        assert_eq!(triples(&OuterMap::keep_id(&one, 1000)), [(1000, 0, 1)]);
        assert_eq!(triples(&OuterMap::keep_id(&OUTER, 0)), [(0, 0, 1), (1, 1, 65_536)]);
    }
}
