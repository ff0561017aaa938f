//! The full check of an index: every byte by the checksum, every record by its meaning, the directories as a tree.

use oci::Digest;

use crate::error::Damaged;
use crate::format::{self, at};
use crate::path::{NAME_MAX, PATH_MAX};
use crate::read::{Dirent, Index, Inode, Kind, Node};

impl Index {
    /// Checks everything, in time proportional to the file (about 1 ms for each MB).
    ///
    /// After it no access to this index fails, every inode is reached from the root, every directory by exactly one
    /// name, entries are sorted, names are usable, link counts are true and a chain has nothing that only layers have.
    pub fn verify(&self) -> Result<(), Damaged> {
        let stored = self.as_bytes().get(at::CHECKSUM..at::AFTER_CHECKSUM);
        if stored != Some(format::checksum(self.as_bytes()).as_bytes()) {
            return Err(Damaged::new("checksum at byte", at::CHECKSUM as u64));
        }
        self.check_objects()?;
        let names = self.check_directories()?;
        for (number, names) in names.into_iter().enumerate() {
            let node = Node(number as u32);
            let nlink = self.check_inode(node)?.nlink;
            if names == 0 || (nlink != names && self.inode(node)?.kind != Kind::Directory) {
                return Err(Damaged::new("link count of inode", number as u64));
            }
        }
        Ok(())
    }

    fn check_objects(&self) -> Result<(), Damaged> {
        let mut last: Option<Digest> = None;
        for (number, (digest, _)) in self.objects().enumerate() {
            if last.is_some_and(|last| last >= digest) {
                return Err(Damaged::new("object", number as u64));
            }
            last = Some(digest);
        }
        Ok(())
    }

    /// Walks the tree; gives the number of names of each inode.
    fn check_directories(&self) -> Result<Vec<u32>, Damaged> {
        let mut names = vec![0u32; self.inode_count() as usize];
        names[0] = 1;
        if self.inode(Node::ROOT)?.kind != Kind::Directory || self.parent(Node::ROOT)? != Some(Node::ROOT) {
            return Err(Damaged::new("root inode", 0));
        }
        let mut open = vec![Node::ROOT];
        while let Some(directory) = open.pop() {
            let mut subdirectories = 0;
            let mut last: &[u8] = b"";
            let dirents = self.dirents(directory)?;
            for position in 0..dirents.len() {
                let damaged = Damaged::new("entry of directory", u64::from(directory.0));
                let dirent = dirents.get(position)?.ok_or(damaged)?;
                if dirent.name <= last || !dirents.prefix_holds(position) || !self.entry_holds(&dirent)? {
                    return Err(damaged);
                }
                last = dirent.name;
                if dirent.kind == Kind::Whiteout {
                    continue;
                }
                let count = names.get_mut(dirent.node.0 as usize).ok_or(damaged)?;
                *count += 1;
                if dirent.kind == Kind::Directory {
                    if *count > 1 || self.parent(dirent.node)? != Some(directory) {
                        return Err(damaged);
                    }
                    subdirectories += 1;
                    open.push(dirent.node);
                }
            }
            if self.inode(directory)?.nlink != 2 + subdirectories {
                return Err(Damaged::new("link count of inode", u64::from(directory.0)));
            }
        }
        Ok(names)
    }

    fn entry_holds(&self, dirent: &Dirent<'_>) -> Result<bool, Damaged> {
        let name = dirent.name;
        let usable =
            name.len() <= NAME_MAX && name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/'));
        let whiteout_only = dirent.kind == Kind::Whiteout;
        let kind_holds = if whiteout_only { dirent.whiteout } else { self.inode(dirent.node)?.kind == dirent.kind };
        let allowed = !self.is_chain() || !(dirent.whiteout || dirent.kind == Kind::LinkByPath);
        Ok(usable && kind_holds && allowed)
    }

    fn check_inode(&self, node: Node) -> Result<Inode, Damaged> {
        let inode = self.inode(node)?;
        let damaged = Damaged::new("inode", u64::from(node.0));
        self.content(node)?;
        for target in [self.symlink_target(node)?, self.link_target(node)?].into_iter().flatten() {
            if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
                return Err(damaged);
            }
        }
        let mut last: &[u8] = b"";
        for attribute in self.xattrs(node)? {
            let (name, _) = attribute?;
            if name <= last {
                return Err(damaged);
            }
            last = name;
        }
        if self.is_chain() && (inode.implied || inode.opaque) {
            return Err(damaged);
        }
        Ok(inode)
    }
}
