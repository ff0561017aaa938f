//! Extended attributes: a full store of every name that the kernel lets through.

use nix::errno::Errno;

use crate::acl;
use crate::attr::{Attr, Request, Result, S_ISGID, Time, UPPER_BASE};
use crate::lower::damaged;
use crate::overlay::{Overlay, State};
use crate::record::Record;

/// Longest value (`XATTR_SIZE_MAX`), longest name (`XATTR_NAME_MAX`), longest list of names (`XATTR_LIST_MAX`).
const VALUE_MAX: usize = 1 << 16;
const NAME_MAX: usize = 255;
const LIST_MAX: usize = 1 << 16;

/// How [`Overlay::set_xattr`] sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetXattrHow {
    /// Fail with `EEXIST` when there is one.
    pub create: bool,
    /// Fail with `ENODATA` when there is none.
    pub replace: bool,
    /// An access ACL takes the set-group-id bit away: who sets it is not of the file's group.
    pub kill_sgid: bool,
}

/// Labels of the host's security modules are not the container's to keep.
fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(&0) {
        return Err(Errno::ERANGE);
    }
    if matches!(name, b"security.selinux" | b"security.ima" | b"security.evm") {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}

impl Overlay {
    /// The value of an attribute, in `buffer` or in the mapped index; `ENODATA` when absent.
    pub fn xattr<'a>(&'a self, ino: u64, name: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        let state = self.read();
        match state.tree.nodes.get(&ino) {
            Some(node) if node.xattrs.is_some() || ino >= UPPER_BASE => {}
            _ => {
                let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
                return self.lower.xattr(lower, name)?.ok_or(Errno::ENODATA);
            }
        }
        let value = state.tree.xattr(ino, name)?.ok_or(Errno::ENODATA)?;
        let part = buffer.get_mut(..value.len()).ok_or(Errno::ERANGE)?;
        part.copy_from_slice(value);
        Ok(part)
    }

    /// Appends the name of each attribute and a NUL byte.
    pub fn xattr_names(&self, ino: u64, names: &mut Vec<u8>) -> Result<()> {
        let state = self.read();
        let mut add = |name: &[u8]| {
            names.extend_from_slice(name);
            names.push(0);
        };
        match state.tree.nodes.get(&ino).map(|node| &node.xattrs) {
            Some(Some(own)) => own.keys().for_each(|name| add(name)),
            Some(None) if ino >= UPPER_BASE => {}
            _ => {
                let lower = self.lower.node(ino).ok_or(Errno::ENOENT)?;
                for attribute in self.lower.index().xattrs(lower).map_err(damaged)? {
                    add(attribute.map_err(damaged)?.0);
                }
            }
        }
        Ok(())
    }

    /// Sets an attribute.
    pub fn set_xattr(
        &self,
        request: &Request,
        ino: u64,
        name: &[u8],
        value: &[u8],
        SetXattrHow { create, replace, kill_sgid }: SetXattrHow,
    ) -> Result<()> {
        check_name(name)?;
        if value.len() > VALUE_MAX {
            return Err(Errno::E2BIG);
        }
        let mut state = self.write();
        if Overlay::was_done(&state, request).is_some() {
            return Ok(());
        }
        let exists = state.tree.xattr(ino, name)?.is_some();
        if create && exists {
            return Err(Errno::EEXIST);
        }
        if replace && !exists {
            return Err(Errno::ENODATA);
        }
        let listed: usize = match state.tree.nodes.get(&ino).and_then(|node| node.xattrs.as_ref()) {
            Some(own) => own.keys().map(|name| name.len() + 1).sum(),
            None => 0,
        };
        if !exists && listed + name.len() + 1 > LIST_MAX {
            return Err(Errno::ENOSPC);
        }
        if kill_sgid && name == acl::ACCESS {
            // First: what has happened so far may be done again, should the process be killed in between.
            self.take_sgid(&mut state, request, ino)?;
        }
        let record = Record::Xattr { ino, name: name.to_vec(), value: Some(value.to_vec()), at: Time::now() };
        self.commit(&mut state, request, &record).map(drop)
    }

    fn take_sgid(&self, state: &mut State, request: &Request, ino: u64) -> Result<()> {
        let Attr { mode, uid, gid, atime, mtime, .. } = state.tree.attr(ino)?;
        if mode & S_ISGID == 0 {
            return Ok(());
        }
        let mode = mode & !S_ISGID;
        let record = Record::Attributes { ino, mode, uid, gid, atime, mtime, ctime: Time::now(), drop_caps: false };
        self.commit(state, request, &record).map(drop)
    }

    /// Removes an attribute; `ENODATA` when absent, but for an ACL, of which the mode says the same then.
    pub fn remove_xattr(&self, request: &Request, ino: u64, name: &[u8]) -> Result<()> {
        let mut state = self.write();
        if Overlay::was_done(&state, request).is_some() {
            return Ok(());
        }
        if state.tree.xattr(ino, name)?.is_none() {
            return if acl::is_one(name) { Ok(()) } else { Err(Errno::ENODATA) };
        }
        let record = Record::Xattr { ino, name: name.to_vec(), value: None, at: Time::now() };
        self.commit(&mut state, request, &record).map(drop)
    }
}
