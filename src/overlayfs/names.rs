//! Names and attributes: everything that changes the tree without touching contents, and listing a directory.

use nix::errno::Errno;

use crate::acl::{self, Acl};
use crate::attr::{
    Attr, Make, NAME_MAX, Request, Result, S_IFDIR, S_IFLNK, S_IFMT, S_ISGID, SetAttr, SetTime, Time,
    without_privileges,
};
use crate::lower::damaged;
use crate::overlay::{Overlay, Policy, State};
use crate::record::Record;
use crate::tree::CAPABILITY;

/// Cookies of `.` and `..`; the lower entry at position `p` has `FIRST_LOWER + p`.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
const FIRST_LOWER: u64 = 3;
/// The upper entry with serial `s` has `FIRST_UPPER + s`.
const FIRST_UPPER: u64 = 1 << 32;
/// As many names as `link_max` of ext4; a u32 count could hold more.
const LINK_MAX: u32 = 65_000;

/// The flags of `renameat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameHow {
    /// Fail with `EEXIST` when the new name exists.
    pub no_replace: bool,
    /// Exchange the two names.
    pub exchange: bool,
    /// Leave a whiteout (character device 0:0) under the old name.
    pub whiteout: bool,
}

/// One name of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Attributes of its inode.
    pub attr: Attr,
    /// A property of the entry, stable under any change of the directory: listing goes on behind it.
    pub cookie: u64,
}

fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(Errno::ENOENT),
        b"." | b".." => Err(Errno::EEXIST),
        _ if name.len() > NAME_MAX => Err(Errno::ENAMETOOLONG),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

fn is_dir(attr: &Attr) -> bool {
    attr.mode & S_IFMT == S_IFDIR
}

/// A directory that still has a name: in a removed one nothing can be made.
fn check_parent(state: &State, parent: u64) -> Result<Attr> {
    let attr = state.tree.attr(parent)?;
    if !is_dir(&attr) {
        return Err(Errno::ENOTDIR);
    }
    if attr.nlink == 0 {
        return Err(Errno::ENOENT);
    }
    Ok(attr)
}

fn existing(state: &State, parent: u64, name: &[u8]) -> Result<Attr> {
    state.tree.attr(state.tree.lookup(parent, name)?.ok_or(Errno::ENOENT)?)
}

fn check_empty(state: &State, dir: &Attr) -> Result<()> {
    if state.tree.visible(dir.ino)? == 0 { Ok(()) } else { Err(Errno::ENOTEMPTY) }
}

impl Overlay {
    /// Creates an inode of any type under a new name, counting one lookup of it when `held`.
    pub fn create(&self, request: &Request, parent: u64, name: &[u8], make: &Make<'_>, held: bool) -> Result<Attr> {
        check_name(name)?;
        let mut state = self.write();
        if let Some(ino) = Overlay::was_done(&state, request) {
            return self.answered(&state, ino, held);
        }
        let dir = check_parent(&state, parent)?;
        if state.tree.lookup(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.make(&mut state, request, &dir, name, make, held)
    }

    /// Creates a regular file without a name, which [`Overlay::link`] may give it, counting one lookup of it when `held`. It
    /// gets from the directory what a file with a name gets.
    pub fn create_unnamed(&self, request: &Request, parent: u64, make: &Make<'_>, held: bool) -> Result<Attr> {
        let mut state = self.write();
        if let Some(ino) = Overlay::was_done(&state, request) {
            return self.answered(&state, ino, held);
        }
        let dir = check_parent(&state, parent)?;
        self.make(&mut state, request, &dir, &[], make, held)
    }

    /// What a request that made or linked `ino` is answered with.
    fn answered(&self, state: &State, ino: u64, held: bool) -> Result<Attr> {
        if held {
            self.hold(state, ino);
        }
        state.tree.attr(ino)
    }

    fn make(
        &self,
        state: &mut State,
        request: &Request,
        dir: &Attr,
        name: &[u8],
        make: &Make<'_>,
        held: bool,
    ) -> Result<Attr> {
        // A set-group-id directory hands down its group, and to directories the bit itself (`inode_init_owner`).
        let inherit = dir.mode & S_ISGID != 0;
        let bit = if inherit && make.mode & S_IFMT == S_IFDIR { S_ISGID } else { 0 };
        let default = if make.mode & S_IFMT == S_IFLNK { None } else { state.tree.xattr(dir.ino, acl::DEFAULT)? };
        let mode = match default.and_then(Acl::parse) {
            Some(acl) => acl.inherit(make.mode).1,
            None => make.mode & !make.umask,
        };
        let ino = state.tree.next_ino;
        let record = Record::Create {
            parent: dir.ino,
            name: name.to_vec(),
            ino,
            mode: mode | bit,
            uid: request.uid,
            gid: if inherit { dir.gid } else { request.gid },
            rdev: make.rdev,
            target: if make.mode & S_IFMT == S_IFLNK { make.target.to_vec() } else { Vec::new() },
            at: Time::now(),
        };
        self.commit(state, request, &record)?;
        self.answered(state, ino, held)
    }

    /// Gives an inode that is not a directory another name, or one made without a name its first, counting one lookup of it
    /// when `held`. That one whose last name was removed stays without is seen to by the kernel.
    pub fn link(&self, request: &Request, ino: u64, parent: u64, name: &[u8], held: bool) -> Result<Attr> {
        check_name(name)?;
        let mut state = self.write();
        if Overlay::was_done(&state, request) == Some(ino) {
            return self.answered(&state, ino, held);
        }
        check_parent(&state, parent)?;
        let attr = state.tree.attr(ino)?;
        if is_dir(&attr) {
            return Err(Errno::EPERM);
        }
        if attr.nlink >= LINK_MAX {
            return Err(Errno::EMLINK);
        }
        if state.tree.lookup(parent, name)?.is_some() {
            return Err(Errno::EEXIST);
        }
        self.commit(&mut state, request, &Record::Link { ino, parent, name: name.to_vec(), at: Time::now() })?;
        self.answered(&state, ino, held)
    }

    /// Removes a name of something that is not a directory.
    pub fn unlink(&self, request: &Request, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(request, parent, name, |_, attr| if is_dir(attr) { Err(Errno::EISDIR) } else { Ok(()) })
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, request: &Request, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(
            request,
            parent,
            name,
            |state, attr| {
                if is_dir(attr) { check_empty(state, attr) } else { Err(Errno::ENOTDIR) }
            },
        )
    }

    fn remove(
        &self,
        request: &Request,
        parent: u64,
        name: &[u8],
        allowed: impl Fn(&State, &Attr) -> Result<()>,
    ) -> Result<()> {
        let mut state = self.write();
        if Overlay::was_done(&state, request).is_some() {
            return Ok(());
        }
        let attr = existing(&state, parent, name)?;
        allowed(&state, &attr)?;
        let record = Record::Unlink { parent, name: name.to_vec(), at: Time::now() };
        let gone = self.commit(&mut state, request, &record)?;
        drop(state);
        self.remove_data(gone);
        Ok(())
    }

    /// `renameat2(2)`. A directory moves with all its lower contents in one record.
    pub fn rename(
        &self,
        request: &Request,
        (parent, name): (u64, &[u8]),
        (to, to_name): (u64, &[u8]),
        how: RenameHow,
    ) -> Result<()> {
        check_name(to_name)?;
        if how.exchange && (how.no_replace || how.whiteout) {
            return Err(Errno::EINVAL);
        }
        let mut state = self.write();
        if Overlay::was_done(&state, request).is_some() {
            return Ok(());
        }
        check_parent(&state, to)?;
        let moved = existing(&state, parent, name)?;
        let target = match state.tree.lookup(to, to_name)? {
            Some(ino) => Some(state.tree.attr(ino)?),
            None => None,
        };
        check_rename(&state, parent, to, &moved, target.as_ref(), how)?;
        if target.is_some_and(|target| target.ino == moved.ino) {
            return Ok(());
        }
        self.start_writeback(&state, moved.ino, target.is_some() && !how.exchange);
        let record = Record::Rename {
            parent,
            name: name.to_vec(),
            to,
            to_name: to_name.to_vec(),
            exchange: how.exchange,
            whiteout: if how.whiteout { state.tree.next_ino } else { 0 },
            at: Time::now(),
        };
        let gone = self.commit(&mut state, request, &record)?;
        drop(state);
        self.remove_data(gone);
        Ok(())
    }

    /// Editors and package managers replace a file by renaming a new one over it, without a sync. The new data is sent
    /// on its way before the record, as ext4 does (`auto_da_alloc`), so that a crash hardly finds the name without data.
    fn start_writeback(&self, state: &State, ino: u64, replaces: bool) {
        let upper = state.tree.nodes.get(&ino).is_some_and(crate::node::Node::has_upper_data);
        if replaces
            && upper
            && self.policy == Policy::Durable
            && let Ok(file) = self.files.get(ino)
        {
            let _only_a_head_start = sys::file::start_writeback(&*file);
        }
    }

    /// Changes attributes; returns all of them as they are afterwards.
    pub fn setattr(&self, request: &Request, ino: u64, change: &SetAttr) -> Result<Attr> {
        let touches_data = change.size.is_some() || change.mtime.is_some();
        let _writing = touches_data.then(|| self.busy.enter(ino));
        if let Some(size) = change.size {
            if change.kill_privileges {
                // First, so that no crash leaves privileges with other contents.
                self.kill_privileges(request, ino)?;
            }
            self.truncate(request, ino, size)?;
        }
        let mut state = self.write();
        let old = state.tree.attr(ino)?;
        let now = Time::now();
        let Some(record) = attributes(&state, request, &old, change, now)? else { return Ok(old) };
        if let Record::Attributes { mtime, atime, .. } = &record
            && change.mtime.is_some()
            && state.tree.nodes.get(&ino).is_some_and(crate::node::Node::has_upper_data)
        {
            self.stamp(ino, *atime, *mtime)?;
        }
        self.commit(&mut state, request, &record)?;
        state.tree.attr(ino)
    }

    /// The target of a symbolic link.
    pub fn readlink<'a>(&'a self, ino: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let state = self.read();
        if let Some(node) = state.tree.nodes.get(&ino) {
            let crate::node::Body::Link(target) = &node.body else { return Err(Errno::EINVAL) };
            let part = buffer.get_mut(..target.len()).ok_or(Errno::ENAMETOOLONG)?;
            part.copy_from_slice(target);
            return Ok(part);
        }
        let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
        self.lower.index().symlink_target(lower).map_err(damaged)?.ok_or(Errno::EINVAL)
    }

    /// Lists a directory behind `cookie` (0: from the start), `.` and `..` first, until `each` says `false`. With
    /// `held`, every name that `each` took counts one lookup, except `.` and `..`.
    pub fn list(&self, dir: u64, cookie: u64, held: bool, mut each: impl FnMut(&Listed<'_>) -> bool) -> Result<()> {
        let state = self.read();
        let tree = &state.tree;
        let view = tree.dir(dir)?;
        for (own, name, ino) in [(DOT, &b"."[..], dir), (DOT_DOT, b"..", view.parent)] {
            if cookie < own && !each(&Listed { name, attr: tree.attr(ino)?, cookie: own }) {
                return Ok(());
            }
        }
        let mut offer = |name: &[u8], ino: u64, cookie: u64| -> Result<bool> {
            let taken = each(&Listed { name, attr: tree.attr(ino)?, cookie });
            if taken && held {
                self.hold(&state, ino);
            }
            Ok(taken)
        };
        if let Some(lower) = view.lower.filter(|_| cookie < FIRST_UPPER) {
            let names = self.lower.index().dirents(lower).map_err(damaged)?;
            let covering = view.over.filter(|over| !over.masks_nothing());
            for position in (cookie + 1).saturating_sub(FIRST_LOWER) as u32..names.len() {
                let Some(entry) = names.get(position).map_err(damaged)? else { break };
                let covered = covering.is_some_and(|over| over.slot(entry.name).is_some());
                if !covered && !offer(entry.name, entry.node.ino(), FIRST_LOWER + u64::from(position))? {
                    return Ok(());
                }
            }
        }
        if let Some(over) = view.over {
            let first = (cookie + 1).saturating_sub(FIRST_UPPER);
            for (serial, name, child) in over.children_from(first) {
                if !offer(name, child, FIRST_UPPER + serial)? {
                    break;
                }
            }
        }
        Ok(())
    }
}

fn check_rename(
    state: &State,
    parent: u64,
    to: u64,
    moved: &Attr,
    target: Option<&Attr>,
    how: RenameHow,
) -> Result<()> {
    if is_dir(moved) && state.tree.is_below(to, moved.ino)? {
        return Err(Errno::EINVAL);
    }
    let Some(target) = target else {
        return if how.exchange { Err(Errno::ENOENT) } else { Ok(()) };
    };
    if how.no_replace {
        return Err(Errno::EEXIST);
    }
    if is_dir(target) && state.tree.is_below(parent, target.ino)? {
        return Err(if how.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
    }
    match (how.exchange, is_dir(moved), is_dir(target)) {
        _ if target.ino == moved.ino => Ok(()),
        (true, ..) | (false, false, false) => Ok(()),
        (false, true, true) => check_empty(state, target),
        (false, true, false) => Err(Errno::ENOTDIR),
        (false, false, true) => Err(Errno::EISDIR),
    }
}

/// The record of a change of attributes; `None` when only the size was to change.
fn attributes(state: &State, request: &Request, old: &Attr, change: &SetAttr, now: Time) -> Result<Option<Record>> {
    // A chown to nobody (-1, -1) arrives as a change of nothing, and whether the caller may has not been checked. What the
    // kernel sends ahead of a write to a privileged file looks the same: that must succeed for whoever may write, and the
    // write takes the privileges itself. On an id-mapped mount nobody is told who asks: then nothing changes.
    let to_nobody = *change == SetAttr::default() && (request.uid == 0 || request.uid == old.uid);
    let chown = to_nobody || change.uid.is_some() || change.gid.is_some();
    // What takes privileges away, beside truncation: chown of anything but a directory.
    let dropping = chown && !is_dir(old);
    let mut mode = old.mode;
    if dropping {
        mode = without_privileges(mode);
    }
    if let Some(new) = change.mode {
        mode = old.mode & S_IFMT | new & !S_IFMT;
    }
    let drop_caps = dropping && state.tree.xattr(old.ino, CAPABILITY)?.is_some();
    let times = change.atime.is_some() || change.mtime.is_some();
    if !chown && !times && change.mode.is_none() {
        return Ok(None);
    }
    let set = |time: Option<SetTime>, old: Time| match time {
        None => old,
        Some(SetTime::Now) => now,
        Some(SetTime::At(time)) => Time { nanos: time.nanos.min(999_999_999), ..time },
    };
    Ok(Some(Record::Attributes {
        ino: old.ino,
        mode,
        uid: change.uid.unwrap_or(old.uid),
        gid: change.gid.unwrap_or(old.gid),
        atime: set(change.atime, old.atime),
        mtime: set(change.mtime, old.mtime),
        ctime: now,
        drop_caps,
    }))
}
