//! The archive of an index: of a layer with its whiteouts, or of a whole chain.
//!
//! The walk is depth first; in a directory come its opaque mark, its whiteouts, then its names, each sorted by its bytes.
//! The first name of an inode carries its content and the others are hard links to it, with the same owner, mode, time and
//! attributes: Docker and containerd give the file the owner of each link, by which the kernel takes its capabilities away, and
//! then the attributes of that link. Directories that the layer only implies are not written. So the archive of a layer,
//! applied, gives an index that is equal but for its id, and equal indexes give equal archives.
//!
//! Sockets have no form in an archive; only a container can have them, and they are left out there already.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;

use index::{Content, Index, Inode, Kind, Metadata, Node};
use oci::Digest;
use store::{Store, StoreError};

use crate::error::Result;
use crate::tar_writer::{TarContent, TarEntry, TarWriter};

/// Open objects are kept for this many; most files are in few packs.
const OPEN_MAX: usize = 64;

/// The contents that an index names, in a store.
pub struct Objects<'s> {
    store: &'s Store,
    open: HashMap<Digest, File>,
}

impl<'s> Objects<'s> {
    /// Those of this store.
    pub fn of(store: &'s Store) -> Self {
        Objects { store, open: HashMap::new() }
    }

    /// The content of a regular file.
    pub fn content<'a>(&'a mut self, index: &'a Index, node: Node) -> Result<TarContent<'a>> {
        Ok(match index.content(node)? {
            Content::Empty => TarContent::Bytes(b""),
            Content::Inline(bytes) => TarContent::Bytes(bytes),
            Content::Object { digest, offset, .. } => {
                let size = index.inode(node)?.size;
                if self.open.len() >= OPEN_MAX {
                    self.open.clear();
                }
                let file = match self.open.entry(digest) {
                    std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                    std::collections::hash_map::Entry::Vacant(place) => {
                        let file = self.store.objects().open(&digest)?;
                        place.insert(file.ok_or(StoreError::Missing { digest })?)
                    }
                };
                TarContent::File { file, offset, size }
            }
        })
    }
}

/// Writes everything in an index to an archive.
pub fn write_tree<W: Write>(index: &Index, objects: &mut Objects<'_>, to: &mut TarWriter<W>) -> Result<()> {
    let mut walk = Walk { index, objects, to, first_names: HashMap::new() };
    walk.described(Node::ROOT, b"")?;
    // Directories whose names are being gone through: the path and the position of the next name.
    let mut open = vec![(Node::ROOT, Vec::new(), 0)];
    walk.marks(Node::ROOT, b"")?;
    while let Some((directory, path, position)) = open.last_mut() {
        let Some(dirent) = index.dirents(*directory)?.get(*position)? else {
            open.pop();
            continue;
        };
        *position += 1;
        if dirent.kind == Kind::Whiteout {
            continue;
        }
        let path = joined(path, dirent.name);
        if dirent.kind == Kind::Directory {
            walk.described(dirent.node, &path)?;
            walk.marks(dirent.node, &path)?;
            open.push((dirent.node, path, 0));
        } else {
            walk.named(dirent.node, path)?;
        }
    }
    Ok(())
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

struct Walk<'a, 's, W> {
    index: &'a Index,
    objects: &'a mut Objects<'s>,
    to: &'a mut TarWriter<W>,
    /// Of inodes with several names.
    first_names: HashMap<Node, Vec<u8>>,
}

impl<W: Write> Walk<'_, '_, W> {
    /// A directory, unless it is only implied.
    fn described(&mut self, node: Node, path: &[u8]) -> Result<()> {
        let inode = self.index.inode(node)?;
        if inode.implied {
            return Ok(());
        }
        let metadata = metadata(self.index, node, &inode)?;
        self.to.entry(path, &metadata, &TarEntry::Directory)
    }

    /// What a directory hides.
    fn marks(&mut self, node: Node, path: &[u8]) -> Result<()> {
        if self.index.inode(node)?.opaque {
            self.to.opaque(path)?;
        }
        for dirent in self.index.dirents(node)?.iter() {
            let dirent = dirent?;
            if dirent.whiteout || dirent.kind == Kind::Whiteout {
                self.to.whiteout(&joined(path, dirent.name))?;
            }
        }
        Ok(())
    }

    /// Anything but a directory.
    fn named(&mut self, node: Node, path: Vec<u8>) -> Result<()> {
        let inode = self.index.inode(node)?;
        let metadata = metadata(self.index, node, &inode)?;
        if let Some(first) = self.first_names.get(&node) {
            return self.to.entry(&path, &metadata, &TarEntry::HardLink(first));
        }
        let entry = match inode.kind {
            Kind::Regular => {
                let content = self.objects.content(self.index, node)?;
                self.to.file(&path, &metadata, &content)?;
                self.remember(node, &inode, path);
                return Ok(());
            }
            Kind::Symlink => TarEntry::Symlink(self.index.symlink_target(node)?.unwrap_or_default()),
            Kind::LinkByPath => TarEntry::HardLink(self.index.link_target(node)?.unwrap_or_default()),
            Kind::CharDevice => TarEntry::CharDevice(inode.rdev),
            Kind::BlockDevice => TarEntry::BlockDevice(inode.rdev),
            Kind::Fifo => TarEntry::Fifo,
            Kind::Socket | Kind::Directory | Kind::Whiteout => return Ok(()),
        };
        self.to.entry(&path, &metadata, &entry)?;
        self.remember(node, &inode, path);
        Ok(())
    }

    fn remember(&mut self, node: Node, inode: &Inode, path: Vec<u8>) {
        if inode.nlink > 1 {
            self.first_names.insert(node, path);
        }
    }
}

fn metadata(index: &Index, node: Node, inode: &Inode) -> Result<Metadata> {
    let mut metadata = Metadata {
        permissions: inode.permissions,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime,
        ..Metadata::default()
    };
    for attribute in index.xattrs(node)? {
        let (name, value) = attribute?;
        metadata.xattrs.insert(name.to_vec(), value.to_vec());
    }
    Ok(metadata)
}
