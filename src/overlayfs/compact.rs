//! Checkpoints: when a log has grown far beyond what it says, a new one is written that holds only the present state.
//!
//! `log.<n+1>` grows as `log.new`, is synced (unless volatile) and appears by rename; `log.<n>` stays until the next one
//! appears. Everything waits for it, some tenths of a second for 100,000 changed inodes. A mapped index instead of
//! records would spare replay as well; this is the first form.

use std::fs::File;
use std::io::{BufWriter, Write};

use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, fsync, unlinkat};

use crate::attr::Result;
use crate::files::Files;
use crate::log::{Log, frame};
use crate::node::{Body, Data, Node};
use crate::overlay::{Policy, State, errno_of};
use crate::record::{Inode, Record, VERSION};

/// A log below this size is never compacted; above, when it is twice what a compacted one is.
pub(crate) const COMPACT_ABOVE: u64 = 8 << 20;

impl State {
    /// Writes the present state into the next log and goes on there. When that fails (disk full) the old log goes on,
    /// and the next try waits until it has doubled.
    pub(crate) fn compact(&mut self, files: &Files, policy: Policy) {
        match self.write_compacted(files, policy) {
            Ok(log) => {
                self.number += 1;
                if let Some(outdated) = self.number.checked_sub(2) {
                    let _never_there_or_wasted =
                        unlinkat(files.dir(), format!("log.{outdated}").as_str(), UnlinkatFlags::NoRemoveDir);
                }
                self.compact_at = COMPACT_ABOVE.max(2 * log.size());
                self.log = log;
            }
            Err(_full) => self.compact_at = 2 * self.log.size(),
        }
    }

    fn write_compacted(&self, files: &Files, policy: Policy) -> Result<Log> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let file = File::from(openat(files.dir(), "log.new", flags, Mode::from_bits_truncate(0o600))?);
        let (size, sequence) = self.dump(&file).map_err(|error| errno_of(&error))?;
        if policy == Policy::Durable {
            file.sync_data().map_err(|error| errno_of(&error))?;
        }
        renameat(files.dir(), "log.new", files.dir(), format!("log.{}", self.number + 1).as_str())?;
        if policy == Policy::Durable {
            fsync(files.dir())?;
        }
        Ok(Log::new(file, size, sequence))
    }

    /// Inodes first (a slot needs its directory), then the slots. Returns size and last sequence number.
    fn dump(&self, file: &File) -> std::io::Result<(u64, u64)> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        let (mut size, mut sequence, mut buffer) = (0, self.log.sequence(), Vec::new());
        let mut put = |unique: u64, record: &Record| -> std::io::Result<()> {
            sequence += 1;
            frame(&mut buffer, sequence, unique, record);
            size += buffer.len() as u64;
            out.write_all(&buffer)
        };
        let lower_inodes = self.tree.lower.index().inode_count();
        put(0, &Record::Begin { version: VERSION, lower_inodes, next_ino: self.tree.next_ino })?;
        for (ino, node) in &self.tree.nodes {
            put(0, &Record::Inode(Box::new(inode(*ino, node))))?;
        }
        for (dir, over) in self.tree.nodes.iter().filter_map(|(ino, node)| Some((*ino, node.dir()?))) {
            for (name, slot) in over.slots() {
                let ino = slot.child.unwrap_or(0);
                put(0, &Record::Slot { dir, name: name.to_vec(), ino, serial: slot.serial })?;
            }
        }
        for (unique, ino) in self.done.iter() {
            put(unique, &Record::Done { ino })?;
        }
        out.flush()?;
        Ok((size, sequence))
    }
}

fn inode(ino: u64, node: &Node) -> Inode {
    let xattrs = node.xattrs.as_ref();
    Inode {
        ino,
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        nlink: node.nlink,
        rdev: node.rdev,
        atime: node.atime,
        mtime: node.mtime,
        ctime: node.ctime,
        xattrs: xattrs.map(|own| own.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()),
        data: match node.body {
            Body::File(Data::Lower) => 1,
            Body::File(Data::Upper) => 2,
            _ => 0,
        },
        parent: node.dir().map_or(0, |dir| dir.parent),
        next_serial: node.dir().map_or(0, |dir| dir.next_serial),
        target: if let Body::Link(target) = &node.body { target.to_vec() } else { Vec::new() },
    }
}
