//! What an image has in a directory, written out: as the first contents of a volume, as the tree of the driver `tree`, and as
//! a container's own copy for the driver `copy`.
//!
//! Written from the index and the store's objects without any mount. Files are the caller's, with modes that let it read
//! and delete them; owners, modes, ACLs and capabilities stand in the log `owners` beside them, which the start of a
//! container applies ([`crate::owner_client`]). So no id of the container is needed to write it. Contents are copied by
//! copy_file_range(2), which shares the blocks of what has an object of its own where the file system can (btrfs, xfs). No
//! file is a link to an object: its owner, mode and, in a copy, contents may change.
//!
//! Devices are left out: nobody can make them without root, and nodes that root makes would be the machine's. They are not
//! deleted by that ([`crate::native::changes`]). An archive of a layer has no sockets. Where a file can have no further name it is
//! written once more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base::{Explain, Kind};
use index::{Content, Damaged, Index, Inode, Node};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, close, linkat, lseek, symlinkat};
use oci::Digest;
use sys::SysError;
use sys::error::Call;
use sys::xattr::{self, Existing};

use crate::directory::{make_dir, open_dir};
use crate::object_dir::ObjectDirs;
use crate::owner_log::{ATTRIBUTES, CAPABILITY, Record, Stamp, Writer};
use crate::view_chain::ContentFiles;

/// How many links a path may lead through: path_resolution(7).
const LINKS_MAX: usize = 40;

/// Why a directory could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The index of the image is not whole.
    #[error("the index of the image is damaged")]
    Damaged(#[from] Damaged),
    /// The directory could not be made.
    #[error(transparent)]
    Directory(#[from] crate::SnapshotError),
    /// The file system refuses an attribute that it has room for in general: ext4 by `ENOSPC`, others by `E2BIG` or `ERANGE`.
    #[error(transparent)]
    Attribute(SysError),
}

impl Explain for SeedError {
    fn kind(&self) -> Kind {
        match self {
            SeedError::Sys(error) | SeedError::Attribute(error) => error.kind(),
            SeedError::Damaged(_) => Kind::Internal,
            SeedError::Directory(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            SeedError::Attribute(_) => Some(
                "if the disk is not full, its file system takes no attribute of that size; the storage drivers overlay and \
                 fuse show it without writing it"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, SeedError>;

/// The directory at a path of an image, whose links are followed inside of it; `None` where there is no directory.
pub fn directory_at(index: &Index, path: &Path) -> std::result::Result<Option<Node>, Damaged> {
    Ok(find(index, path)?.filter(|(_, kind)| *kind == index::Kind::Directory).map(|(node, _)| node))
}

/// The text of a regular file of an image, up to a length; empty where there is none.
pub fn text_at(index: &Index, objects: &ObjectDirs, path: &Path, most: u64) -> Result<String> {
    let Some((node, index::Kind::Regular)) = find(index, path)? else { return Ok(String::new()) };
    let mut bytes = Vec::new();
    match index.content(node)? {
        Content::Empty => {}
        Content::Inline(content) => bytes.extend_from_slice(content),
        Content::Object { digest, offset, .. } => {
            let length = index.inode(node)?.size.min(most);
            let mut file = File::from(objects.object(&digest).call(|| format!("open(object {digest})"))?);
            let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(length).read_to_end(&mut bytes));
            read.call(|| format!("read(object {digest})"))?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is at a path of an image, whose links are followed inside of it.
fn find(index: &Index, path: &Path) -> std::result::Result<Option<(Node, index::Kind)>, Damaged> {
    let mut way = vec![index.root()];
    let mut left: Vec<Vec<u8>> = names(path.as_os_str().as_bytes());
    let mut links = 0;
    while let Some(name) = left.pop() {
        if name == b".." {
            way.truncate((way.len() - 1).max(1));
            continue;
        }
        let here = *way.last().unwrap_or(&index.root());
        let Some(found) = index.lookup(here, &name)? else { return Ok(None) };
        match found.kind {
            index::Kind::Directory => way.push(found.node),
            index::Kind::Symlink if links < LINKS_MAX => {
                links += 1;
                let target = index.symlink_target(found.node)?.unwrap_or_default();
                if target.first() == Some(&b'/') {
                    way.truncate(1);
                }
                left.extend(names(target));
            }
            kind if left.is_empty() => return Ok(Some((found.node, kind))),
            _ => return Ok(None),
        }
    }
    Ok(way.pop().map(|node| (node, index::Kind::Directory)))
}

/// The names of a path, the last one first.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/').rev().filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec).collect()
}

/// How many nodes of devices an image has that a copy of it lacks. Those in `/dev` do not count: what a container sees
/// there is its own.
pub fn devices(index: &Index) -> std::result::Result<u64, Damaged> {
    let dev = index.lookup(index.root(), b"dev")?.map(|dirent| dirent.node);
    let (mut directories, mut count) = (vec![index.root()], 0);
    while let Some(directory) = directories.pop() {
        for dirent in index.dirents(directory)?.iter() {
            let dirent = dirent?;
            match dirent.kind {
                index::Kind::Directory if Some(dirent.node) != dev => directories.push(dirent.node),
                index::Kind::CharDevice | index::Kind::BlockDevice => count += 1,
                _ => {}
            }
        }
    }
    Ok(count)
}

/// How a directory is filled.
#[derive(Clone, Copy)]
pub struct Seed<'a> {
    /// Gives the outer user namespace's ids for those of the image.
    pub owner: &'a dyn Fn(u32, u32) -> (u32, u32),
    /// Whether the caller's files are nobody's in the outer user namespace (real root), so that the log must name them all.
    pub log_all: bool,
    /// Whether all of it is on the disk afterwards.
    pub sync: bool,
}

/// Writes what is in the directory `from` of an image to the new directory `<dir>/<name>`, and true owners to `<dir>/owners`.
pub fn seed(dir: &Path, name: &str, (index, from): (&Index, Node), objects: &ObjectDirs, how: Seed<'_>) -> Result<()> {
    let data = dir.join(name);
    make_dir(&data, 0o700, None)?;
    let (root, place) = (open_dir(&data)?, open_dir(dir)?);
    let log = Writer::new(place.as_fd());
    let mut seeding = Seeding { index, objects, how, root, log, open: None, names: HashMap::new() };
    seeding.all(from)?;
    seeding.log.finish(how.sync)?;
    if how.sync {
        nix::unistd::syncfs(&seeding.root).call(|| format!("syncfs({dir:?})"))?;
    }
    Ok(())
}

struct Seeding<'a> {
    index: &'a Index,
    objects: &'a ObjectDirs,
    how: Seed<'a>,
    root: OwnedFd,
    log: Writer<'a>,
    /// The object that was read last: small files of a layer share one.
    open: Option<(Digest, File)>,
    /// The first name of each inode that has several.
    names: HashMap<Node, PathBuf>,
}

impl Seeding<'_> {
    fn all(&mut self, from: Node) -> Result<()> {
        // Without a dot in front: a path may be as long as the kernel takes one.
        let mut directories = vec![(from, PathBuf::new())];
        let mut at = 0;
        while let Some((node, path)) = directories.get(at).cloned() {
            at += 1;
            for dirent in self.index.dirents(node)?.iter() {
                let dirent = dirent?;
                let path = path.join(OsStr::from_bytes(dirent.name));
                if dirent.kind == index::Kind::Directory {
                    mkdirat(&self.root, &path, Mode::S_IRWXU).call(|| format!("mkdirat({path:?})"))?;
                    directories.push((dirent.node, path));
                } else {
                    self.named(dirent.node, &path)?;
                }
            }
        }
        // The last first: what is made in a directory changes its time.
        for (node, path) in directories.iter().rev() {
            let inode = self.index.inode(*node)?;
            let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
            let dir = openat(&self.root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            let dir = dir.call(|| format!("openat({path:?})"))?;
            self.attributes(*node, dir.as_fd(), path)?;
            self.mode(&inode, *node, path, Some(dir.as_fd()))?;
            self.time(&inode, path)?;
        }
        Ok(())
    }

    /// Anything but a directory.
    fn named(&mut self, node: Node, path: &Path) -> Result<()> {
        let inode = self.index.inode(node)?;
        if let Some(first) = self.names.get(&node) {
            match linkat(&self.root, first, &self.root, path, AtFlags::empty()) {
                // As many as the file system allows, or it has none at all.
                Err(Errno::EMLINK | Errno::EPERM | Errno::EOPNOTSUPP) => {}
                linked => {
                    linked.call(|| format!("linkat({path:?})"))?;
                    return self.mode(&inode, node, path, None);
                }
            }
        }
        let mut file = None;
        match inode.kind {
            index::Kind::Regular => file = Some(self.file(node, &inode, path)?),
            index::Kind::Symlink => {
                let target = OsStr::from_bytes(self.index.symlink_target(node)?.unwrap_or_default());
                symlinkat(target, &self.root, path).call(|| format!("symlinkat({path:?})"))?;
            }
            index::Kind::Fifo => {
                let mode = Mode::S_IRUSR | Mode::S_IWUSR;
                mknodat(&self.root, path, SFlag::S_IFIFO, mode, 0).call(|| format!("mknodat({path:?})"))?;
            }
            _ => return Ok(()),
        }
        if let Some(file) = &file {
            self.attributes(node, file.as_fd(), path)?;
        }
        self.mode(&inode, node, path, file.as_ref().map(AsFd::as_fd))?;
        if let Some(file) = file {
            // There a network file system tells that it could not write.
            close(file).call(|| format!("close({path:?})"))?;
        }
        self.time(&inode, path)?;
        if inode.nlink > 1 {
            self.names.insert(node, path.to_owned());
        }
        Ok(())
    }

    fn file(&mut self, node: Node, inode: &Inode, path: &Path) -> Result<File> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(&self.root, path, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(opened.call(|| format!("openat({path:?}, O_CREAT)"))?);
        let written = match self.index.content(node)? {
            Content::Empty => Ok(()),
            Content::Inline(bytes) => file.write_all(bytes),
            Content::Object { digest, offset, .. } => {
                let object = self.object(&digest)?;
                copy_data(object, offset, inode.size, &mut file)
            }
        };
        written.call(|| format!("write({path:?})"))?;
        Ok(file)
    }

    fn object(&mut self, digest: &Digest) -> Result<&File> {
        let file = match self.open.take() {
            Some((known, file)) if known == *digest => file,
            _ => File::from(self.objects.object(digest).call(|| format!("open(object {digest})"))?),
        };
        Ok(&self.open.insert((*digest, file)).1)
    }

    /// Attributes that a user may set. The others are in the log.
    fn attributes(&self, node: Node, file: std::os::fd::BorrowedFd<'_>, path: &Path) -> Result<()> {
        for attribute in self.index.xattrs(node)? {
            let (name, value) = attribute?;
            let text = std::ffi::CString::new(name).unwrap_or_default();
            if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") {
                match xattr::set(file, &text, value, Existing::Any) {
                    Err(error) if error.errno() == Errno::EOPNOTSUPP => {}
                    Err(error) => {
                        let call = format!("setxattr({path:?}, {text:?}, {} bytes)", value.len());
                        return Err(SeedError::Attribute(SysError::new(call, error.errno())));
                    }
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }

    /// Gives a file a mode that does not keep us out, and logs its own with its owner where that is another.
    fn mode(
        &mut self,
        inode: &Inode,
        node: Node,
        path: &Path,
        file: Option<std::os::fd::BorrowedFd<'_>>,
    ) -> Result<()> {
        let (uid, gid) = (self.how.owner)(inode.uid, inode.gid);
        let is_home = (uid, gid) == (0, 0) && !self.how.log_all;
        let permissions = u32::from(inode.permissions);
        let open = permissions
            | match inode.kind {
                index::Kind::Directory => 0o700,
                index::Kind::Regular => 0o600,
                _ => 0,
            };
        // Nobody else's program may run as us.
        let open = if is_home { open } else { open & !0o6000 };
        if let Some(file) = file {
            fchmod(file, Mode::from_bits_truncate(open)).call(|| format!("fchmod({path:?}, {open:o})"))?;
        }
        let mut attributes = Vec::new();
        let xattrs = self.index.xattrs(node)?;
        for attribute in xattrs {
            let (name, value) = attribute?;
            if let Some(number) = ATTRIBUTES.iter().position(|known| known.to_bytes() == name) {
                let mut value = value.to_vec();
                if name.starts_with(b"system.posix_acl_") {
                    overlayfs::acl::show(&mut value, self.how.owner);
                }
                attributes.push((number as u8, value));
            }
        }
        let has_mode = file.is_some() && open == permissions;
        if !is_home || !(has_mode || inode.kind == index::Kind::Symlink) || !attributes.is_empty() {
            let rights = permissions & 0o6000 != 0 || attributes.iter().any(|(number, _)| *number == CAPABILITY);
            let stamp = (rights && inode.kind == index::Kind::Regular).then_some(Stamp {
                size: inode.size,
                seconds: inode.mtime.seconds,
                nanoseconds: inode.mtime.nanoseconds,
            });
            self.log.add(path.as_os_str().as_bytes(), &Record { mode: inode.mode(), uid, gid, attributes, stamp })?;
        }
        Ok(())
    }

    fn time(&self, inode: &Inode, path: &Path) -> Result<()> {
        let time = TimeSpec::new(inode.mtime.seconds, inode.mtime.nanoseconds.into());
        let flags = UtimensatFlags::NoFollowSymlink;
        utimensat(&self.root, path, &time, &time, flags).call(|| format!("utimensat({path:?})"))?;
        Ok(())
    }
}

/// Copies so many bytes of an object from there on into an empty file. Its holes stay holes: a small image may have large ones.
fn copy_data(object: &File, offset: u64, size: u64, file: &mut File) -> std::io::Result<()> {
    let end = offset.checked_add(size).filter(|end| i64::try_from(*end).is_ok());
    let end = end.ok_or(std::io::ErrorKind::InvalidInput)?;
    if object.metadata()?.len() < end {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    // A file system that does not tell of holes (EINVAL) has data everywhere; beyond the last data there is nothing (ENXIO).
    let find = |from: u64, whence, untold: u64| match lseek(object, from.cast_signed(), whence) {
        Err(Errno::ENXIO) => Ok(end),
        Err(Errno::EINVAL) => Ok(untold),
        found => found.map(|found| found.cast_unsigned().min(end)),
    };
    let mut position = offset;
    while position < end {
        let data = find(position, Whence::SeekData, position)?;
        let hole = find(data, Whence::SeekHole, end)?;
        let mut from = object;
        from.seek(SeekFrom::Start(data))?;
        file.seek(SeekFrom::Start(data - offset))?;
        if std::io::copy(&mut from.take(hole - data), file)? != hole - data {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        position = hole;
    }
    file.set_len(size)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use index::{Entry, Metadata, TreeBuilder, merge};

    use super::*;

    #[test]
    fn links_of_an_image_are_followed_inside_of_it() {
        let mut layer = TreeBuilder::new();
        let link = |target: &str| Entry::Symlink(target.as_bytes().to_vec());
        for (path, entry) in [
            ("srv/data/deep", Entry::Directory),
            ("srv/file", Entry::InlineFile(b"text".to_vec())),
            ("absolute", link("/srv/data")),
            ("relative", link("srv/../srv/data")),
            ("up", link("../../../srv/data")),
            ("chain", link("absolute/deep")),
            ("loop", link("pool")),
            ("pool", link("/loop")),
            ("dangling", link("nowhere")),
            ("to-file", link("srv/file")),
        ] {
            layer.insert(path.as_bytes(), &Metadata::default(), entry).unwrap();
        }
        let id = oci::DiffId(Digest::from_bytes([1; 32]));
        let layer = Index::from_bytes(layer.write(id, None).unwrap()).unwrap();
        let chain = Index::from_bytes(merge(&[&layer]).unwrap()).unwrap();
        let at = |path: &str| directory_at(&chain, Path::new(path)).unwrap();
        let data = at("/srv/data");
        assert!(data.is_some() && at("/") == Some(chain.root()));
        for path in ["/absolute", "/relative", "/up", "/srv/./data/", "/srv/data/deep/..", "/../srv/data"] {
            assert_eq!(at(path), data, "{path}");
        }
        assert_eq!(at("/chain"), at("/srv/data/deep"));
        for path in ["/loop", "/loop/x", "/dangling", "/srv/file", "/to-file", "/srv/file/x", "/none"] {
            assert_eq!(at(path), None, "{path}");
        }
        let found = find(&chain, Path::new("/to-file")).unwrap().unwrap();
        assert_eq!(found.1, index::Kind::Regular);
    }

    #[test]
    fn what_a_file_system_has_a_limit_for_is_written_nevertheless_or_named() {
        use std::os::unix::fs::MetadataExt;
        let mut layer = TreeBuilder::new();
        let metadata = Metadata { permissions: 0o644, ..Metadata::default() };
        layer.insert(b"first", &metadata, Entry::InlineFile(b"text".to_vec())).unwrap();
        // One more than ext4 allows, and as long as a path can be.
        for number in 1..=65_001 {
            layer.hard_link(format!("links/{number}").as_bytes(), b"first").unwrap();
        }
        let deep = [vec!["d".repeat(200); 20].join("/"), "f".repeat(74)].join("/");
        assert_eq!(deep.len(), 4094);
        layer.insert(deep.as_bytes(), &metadata, Entry::InlineFile(b"deep".to_vec())).unwrap();
        let written = |layer: TreeBuilder| {
            let scratch = tempfile::tempdir().unwrap();
            let layer = Index::from_bytes(layer.write(oci::DiffId(Digest::of(b"layer")), None).unwrap()).unwrap();
            let chain = Index::from_bytes(merge(&[&layer]).unwrap()).unwrap();
            let open = || open_dir(scratch.path()).unwrap();
            let objects = ObjectDirs { own: open(), trash: open(), below: Vec::new() };
            let how = Seed { owner: &|uid, gid| (uid, gid), log_all: false, sync: false };
            let done = seed(scratch.path(), "tree", (&chain, chain.root()), &objects, how);
            (scratch, done)
        };
        let (scratch, done) = written(layer);
        done.unwrap();
        let tree = scratch.path().join("tree");
        assert_eq!(std::fs::read_dir(tree.join("links")).unwrap().count(), 65_001);
        assert_eq!(std::fs::read_to_string(tree.join("links/65001")).unwrap(), "text");
        assert!(std::fs::metadata(tree.join("links/1")).unwrap().nlink() > 60_000);
        let root = open_dir(&tree).unwrap();
        let file = openat(&root, deep.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(std::io::read_to_string(File::from(file)).unwrap(), "deep");
        crate::remove_contents(root.as_fd()).unwrap();

        let mut layer = TreeBuilder::new();
        let xattrs = [(b"user.large".to_vec(), vec![b'x'; 65_000])].into();
        layer.insert(b"file", &Metadata { xattrs, ..metadata }, Entry::InlineFile(b"text".to_vec())).unwrap();
        match written(layer).1 {
            Err(error @ SeedError::Attribute(_)) => {
                assert!(error.to_string().contains("\"file\", \"user.large\", 65000 bytes") && error.hint().is_some());
            }
            // Of a file system that takes it.
            done => done.unwrap(),
        }
    }

    #[test]
    fn holes_stay_holes_and_a_part_of_an_object_is_that_part() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        const MIB: u64 = 1 << 20;
        let object = tempfile::tempfile().unwrap();
        object.write_all_at(b"begin", 0).unwrap();
        object.write_all_at(b"middle", 64 * MIB).unwrap();
        object.set_len(128 * MIB).unwrap();
        for (offset, size) in [(0, 128 * MIB), (2, 64 * MIB + 1), (64 * MIB, 6), (1, 3), (65 * MIB, MIB), (0, 0)] {
            let mut file = tempfile::tempfile().unwrap();
            copy_data(&object, offset, size, &mut file).unwrap();
            let read = |file: &File, from: u64| {
                let mut bytes = vec![0; usize::try_from(size).unwrap()];
                file.read_exact_at(&mut bytes, from).unwrap();
                bytes
            };
            assert!(read(&file, 0) == read(&object, offset), "{offset} {size}");
            let metadata = file.metadata().unwrap();
            assert!(metadata.len() == size && metadata.blocks() * 512 <= MIB, "{offset} {size}: {metadata:?}");
        }
        assert!(copy_data(&object, MIB, 128 * MIB, &mut tempfile::tempfile().unwrap()).is_err());
    }
}
