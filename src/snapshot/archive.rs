//! What a container changed, as the archive of a layer: the work of `commit`, for every driver.
//!
//! All that is in the upper ([`crate::changes`], [`overlayfs::Reader::changed`]) goes in, in this order: depth first, in each
//! directory first what is hidden, then what is there, by name. Directories in which something changed are among them with all
//! that is known of them, so that an engine that unpacks the layer alone makes them right.
//! Of a file with several changed names the first has the content and the others are links to it; a new name of a file
//! whose first name is in the image becomes a copy, since engines that unpack layers apart could not make such a link.
//!
//! Sockets have no form in an archive. They are left out and counted; what the image has at the path of one is hidden.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use index::{DeviceNumber, Index, Metadata, Time};
use layer::{TarContent, TarEntry, TarWriter};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstat, fstatat, major, minor};
use overlayfs::{Attr, ReadData, Reader};
use sys::SysError;
use sys::error::Call;
use sys::path::open_in;

use crate::changes::{
    Attributes, Change, ChangeKind, ChangesError, Ours, Truth, capability_of_image, contents, root_metadata, with_root,
};
use crate::directory::open_dir;
use crate::lower::{Lower, TrueOwner};
use crate::object_dir::{CachedObjects, ObjectDirs};
use crate::own;
use crate::tree_walk::At;

type Result<T> = std::result::Result<T, ChangesError>;

/// Sorts changes in the order of an archive.
fn ordered(mut changes: Vec<Change>) -> Vec<Change> {
    // Without keys of their own: there may be millions.
    changes.sort_unstable_by(|one, other| places(one).cmp(places(other)));
    changes
}

/// The names of a path, each with whether it shows something: what is hidden comes first. The root has none and is the first.
fn places(change: &Change) -> impl Iterator<Item = (bool, &[u8])> {
    let mut names = relative(change).split(|byte| *byte == b'/').filter(|name| !name.is_empty()).peekable();
    std::iter::from_fn(move || {
        let name = names.next()?;
        Some((names.peek().is_some() || change.kind != ChangeKind::Deleted, name))
    })
}

/// The path as archives write it.
fn relative(change: &Change) -> &[u8] {
    let path = change.path.as_os_str().as_bytes();
    path.strip_prefix(b"/").unwrap_or(path)
}

/// First names of files that may have others, by what identifies these.
#[derive(Default)]
struct FirstNames(HashMap<u64, FirstName>);

/// The first name of a file, and its owner as far as its names have told it.
struct FirstName {
    path: Vec<u8>,
    owner: TrueOwner,
}

impl FirstNames {
    /// The owner of the file by the names that it had so far.
    fn owner(&self, ino: u64) -> TrueOwner {
        self.0.get(&ino).map_or((None, None), |first| first.owner)
    }

    /// Writes another name of a file as a link to the first one; `false` if this is the first one, with which the file
    /// itself is still to be written. `owner` is what its names have told with this one.
    fn link<W: Write>(
        &mut self,
        ino: u64,
        (path, owner): (&[u8], TrueOwner),
        metadata: &Metadata,
        to: &mut TarWriter<W>,
    ) -> Result<bool> {
        let Some(first) = self.0.get_mut(&ino) else {
            self.0.insert(ino, FirstName { path: path.to_vec(), owner });
            return Ok(false);
        };
        first.owner = owner;
        // With the attributes: who unpacks it gives the file this owner once more, by which it loses its capabilities.
        to.entry(path, metadata, &TarEntry::HardLink(&first.path))?;
        Ok(true)
    }
}

/// Writes what the native upper in `upper` changes in `lower`; how many sockets were left out.
///
/// What is in it must be readable: at rest to the caller, while a container runs to its root.
pub fn write_native<L: Lower, W: Write>(
    upper: BorrowedFd<'_>,
    lower: &L,
    truth: &Truth<'_>,
    ours: &Ours,
    to: &mut TarWriter<W>,
) -> Result<u64> {
    let found = contents(upper, lower, truth, ours)?;
    let mut native = Native { upper, lower, truth, first_names: FirstNames::default(), sockets: 0 };
    for change in ordered(found) {
        let path = relative(&change);
        match change.kind {
            ChangeKind::Deleted => to.whiteout(path)?,
            _ if path.is_empty() => {
                let metadata = root_metadata(upper, lower, truth)?;
                let owner = native.owner(path, &metadata, (None, None))?;
                to.entry(path, &owned_by(metadata, owner), &TarEntry::Directory)?;
            }
            _ => native.put(&change, to)?,
        }
    }
    Ok(native.sockets)
}

struct Native<'a, L> {
    upper: BorrowedFd<'a>,
    lower: &'a L,
    truth: &'a Truth<'a>,
    first_names: FirstNames,
    sockets: u64,
}

/// With an owner in place of the one that is shown, as far as it is known.
fn owned_by(shown: Metadata, owner: TrueOwner) -> Metadata {
    Metadata { uid: owner.0.unwrap_or(shown.uid), gid: owner.1.unwrap_or(shown.gid), ..shown }
}

impl<L: Lower> Native<'_, L> {
    /// The attributes of a directory of the image.
    fn of_image(&self, path: &[u8]) -> Result<Attributes> {
        let mut dir = self.lower.root()?;
        for name in path.split(|byte| *byte == b'/') {
            match self.lower.entry(&dir, name)?.and_then(|entry| entry.directory) {
                Some(below) => dir = below,
                None => return Ok(Attributes::new()),
            }
        }
        Ok(self.lower.metadata(&dir)?.xattrs)
    }

    /// The owner of a file whose other names have told `so_far`: else the one that the image has there, if that is shown as the
    /// file's is. With one id all are shown alike, so that a name which another file of the image had says less than the first.
    fn owner(&self, path: &[u8], shown: &Metadata, so_far: TrueOwner) -> Result<TrueOwner> {
        let (uid, gid) = self.lower.true_owner(path, (shown.uid, shown.gid))?;
        Ok((so_far.0.or(uid), so_far.1.or(gid)))
    }

    fn put<W: Write>(&mut self, change: &Change, to: &mut TarWriter<W>) -> Result<()> {
        let path = relative(change);
        let words = |call: &str| format!("{call}({:?})", String::from_utf8_lossy(path));
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let (parent, name) = slash.map_or((&b"."[..], path), |slash| (&path[..slash], &path[slash + 1..]));
        let name = CString::new(name).map_err(|_| SysError::new(words("open"), Errno::EINVAL))?;
        let parent = open_in(self.upper, Path::new(std::ffi::OsStr::from_bytes(parent)), OFlag::O_PATH, Mode::empty())?;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = fstatat(&parent, name.as_c_str(), flags).call(|| words("fstatat"))?;
        let at = At { parent: parent.as_fd(), name: &name, path, stat: &stat };
        if at.file_type() == nix::libc::S_IFSOCK {
            self.sockets += 1;
            return without_socket(change, to);
        }
        let mut metadata = self.truth.metadata(&at)?;
        if at.is_directory() && self.truth.lacks_attributes() {
            self.truth.complete(&mut metadata.xattrs, self.of_image(path)?);
        }
        let (given, first) = (self.truth.given_owner(&at)?, self.first_names.owner(stat.st_ino));
        let owner = self.owner(path, &metadata, (given.uid.or(first.0), given.gid.or(first.1)))?;
        let metadata = owned_by(metadata, owner);
        let linked = !at.is_directory() && stat.st_nlink > 1;
        if linked && self.first_names.link(stat.st_ino, (path, owner), &metadata, to)? {
            return Ok(());
        }
        let number = DeviceNumber { major: major(stat.st_rdev) as u32, minor: minor(stat.st_rdev) as u32 };
        let entry = match at.file_type() {
            nix::libc::S_IFREG => {
                let file = open_file(&at)?;
                let content = TarContent::File { file: &file, offset: 0, size: stat.st_size.unsigned_abs() };
                return Ok(to.file(path, &metadata, &content)?);
            }
            nix::libc::S_IFLNK => {
                let target = readlinkat(&parent, name.as_c_str()).call(|| words("readlinkat"))?;
                return Ok(to.entry(path, &metadata, &TarEntry::Symlink(target.as_bytes()))?);
            }
            nix::libc::S_IFDIR => TarEntry::Directory,
            nix::libc::S_IFCHR => TarEntry::CharDevice(number),
            nix::libc::S_IFBLK => TarEntry::BlockDevice(number),
            _ => TarEntry::Fifo,
        };
        Ok(to.entry(path, &metadata, &entry)?)
    }
}

/// A socket itself is not in a layer, but what the image has at its path is gone all the same.
fn without_socket<W: Write>(change: &Change, to: &mut TarWriter<W>) -> Result<()> {
    if change.kind == ChangeKind::Changed {
        to.whiteout(relative(change))?;
    }
    Ok(())
}

/// A regular file, which is still the one that was looked at.
fn open_file(at: &At<'_>) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(at.parent, at.name, flags, Mode::empty()).call(|| at.words("open"))?;
    let opened = fstat(&file).call(|| at.words("fstat"))?;
    if (opened.st_dev, opened.st_ino) != (at.stat.st_dev, at.stat.st_ino) {
        return Err(SysError::new(at.words("open"), Errno::EAGAIN).into());
    }
    Ok(File::from(file))
}

/// Writes what the snapshot `key` of our own overlay changes in its chain, whose contents are below `objects`; how many
/// sockets were left out. Its server may run: then what it has not been given yet is not in it.
pub fn write_own<W: Write>(
    snaps: &Path,
    key: &str,
    chain: Index,
    objects: ObjectDirs,
    ours: &Ours,
    to: &mut TarWriter<W>,
) -> Result<u64> {
    let upper = open_dir(&snaps.join(key).join("upper"))?;
    let reader = Reader::open(upper, Arc::new(chain), Arc::new(CachedObjects::new(objects)))?;
    let failed = |errno: Errno| SysError::new("comparing the writable snapshot", errno);
    let differences = reader.changed(&|path| ours.has(path), &|path| ours.is_parent(path)).map_err(failed)?;
    let mut inodes: HashMap<Vec<u8>, u64> = differences.iter().map(|one| (one.path.clone(), one.ino)).collect();
    inodes.insert(b"/".to_vec(), overlayfs::ROOT);
    let found = ours.without_parents(differences.into_iter().map(own::change).collect());
    let found = with_root(found, reader.root_differs().map_err(failed)?);
    let mut writing = Own { reader: &reader, first_names: FirstNames::default(), sockets: 0 };
    for change in ordered(found) {
        match inodes.get(change.path.as_os_str().as_bytes()) {
            Some(ino) if change.kind != ChangeKind::Deleted => writing.put(&change, *ino, to)?,
            _ => to.whiteout(relative(&change))?,
        }
    }
    Ok(writing.sockets)
}

struct Own<'a> {
    reader: &'a Reader,
    first_names: FirstNames,
    sockets: u64,
}

impl Own<'_> {
    fn put<W: Write>(&mut self, change: &Change, ino: u64, to: &mut TarWriter<W>) -> Result<()> {
        let path = relative(change);
        let failed =
            |errno: Errno| SysError::new(format!("reading /{} of the snapshot", String::from_utf8_lossy(path)), errno);
        let attr = self.reader.attr(ino).map_err(failed)?;
        let kind = attr.mode & overlayfs::S_IFMT;
        if kind == nix::libc::S_IFSOCK {
            self.sockets += 1;
            return without_socket(change, to);
        }
        let mut xattrs = self.reader.xattrs(ino).map_err(failed)?;
        for (_, value) in xattrs.iter_mut().filter(|(name, _)| *name == b"security.capability") {
            *value = capability_of_image(value);
        }
        let metadata = Metadata {
            permissions: (attr.mode & 0o7777) as u16,
            uid: attr.uid,
            gid: attr.gid,
            mtime: Time { seconds: attr.mtime.seconds, nanoseconds: attr.mtime.nanos },
            xattrs,
        };
        let linked = kind != overlayfs::S_IFDIR && attr.nlink > 1;
        let owner = (Some(attr.uid), Some(attr.gid));
        if linked && self.first_names.link(ino, (path, owner), &metadata, to)? {
            return Ok(());
        }
        let entry = match kind {
            overlayfs::S_IFREG => {
                let size = attr.size;
                match self.reader.data(ino).map_err(failed)? {
                    ReadData::Memory(bytes) => to.file(path, &metadata, &TarContent::Bytes(bytes))?,
                    ReadData::File(file, offset) => {
                        to.file(path, &metadata, &TarContent::File { file: &file, offset, size })?;
                    }
                }
                return Ok(());
            }
            overlayfs::S_IFLNK => TarEntry::Symlink(self.reader.target(ino).map_err(failed)?),
            overlayfs::S_IFDIR => TarEntry::Directory,
            overlayfs::S_IFCHR => TarEntry::CharDevice(device(&attr)),
            nix::libc::S_IFBLK => TarEntry::BlockDevice(device(&attr)),
            _ => TarEntry::Fifo,
        };
        Ok(to.entry(path, &metadata, &entry)?)
    }
}

/// A device number out of the kernel's 32-bit encoding.
fn device(attr: &Attr) -> DeviceNumber {
    let rdev = attr.rdev;
    DeviceNumber { major: rdev >> 8 & 0xfff, minor: rdev & 0xff | rdev >> 12 & 0xf_ff00 }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    #[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
    fn what_was_copied_up_is_in_the_archive_whatever_it_looks_like() {
        let scratch = tempfile::tempdir().unwrap();
        let upper = scratch.path().join("upper");
        let mut layer = index::TreeBuilder::new();
        let same = |path: &Path| {
            let mtime = std::fs::metadata(path).unwrap();
            let mtime = Time { seconds: mtime.mtime(), nanoseconds: mtime.mtime_nsec() as u32 };
            let mode = std::fs::metadata(path).unwrap().mode();
            Metadata { permissions: (mode & 0o7777) as u16, mtime, ..Metadata::default() }
        };
        for directory in ["", "dev", "etc", "etc/deep"] {
            std::fs::create_dir(upper.join(directory)).unwrap();
            layer.insert(directory.as_bytes(), &same(&upper.join(directory)), index::Entry::Directory).unwrap();
        }
        let file = upper.join("etc/file");
        std::fs::write(&file, "new").unwrap();
        layer.insert(b"etc/file", &same(&file), index::Entry::InlineFile(b"old".to_vec())).unwrap();
        sys::xattr::set(File::open(upper.join("etc/deep")).unwrap(), c"user.k", b"v", sys::xattr::Existing::Any)
            .unwrap();
        let id = oci::DiffId(oci::Digest::of(b"layer"));
        let layer = Index::from_bytes(layer.write(id, None).unwrap()).unwrap();
        let chain = Index::from_bytes(index::merge(&[&layer]).unwrap()).unwrap();

        let none = Vec::default();
        let meta = crate::Meta::new(crate::Driver::Overlay, &none, &none);
        let snapshot = open_dir(scratch.path()).unwrap();
        let truth = Truth::of(snapshot.as_fd(), &meta, None).unwrap();
        let lower =
            crate::native::ChainLower { index: &chain, ids: crate::ids::MappedIds { uids: 1, gids: 1 }, objects: None };
        let ours = Ours { paths: vec![], parents: vec!["/dev".to_owned(), "/etc".to_owned()] };
        let listed = || -> Vec<String> {
            let found = contents(open_dir(&upper).unwrap().as_fd(), &lower, &truth, &ours).unwrap();
            found.iter().map(|change| change.path.display().to_string()).collect()
        };
        assert_eq!(listed(), ["/", "/etc", "/etc/deep", "/etc/file"]);
        let mut to = TarWriter::new(Vec::new(), None);
        write_native(open_dir(&upper).unwrap().as_fd(), &lower, &truth, &ours, &mut to).unwrap();
        let archive = String::from_utf8_lossy(&to.finish().unwrap()).into_owned();
        assert!(archive.contains("SCHILY.xattr.user.k=v\n") && archive.contains("new") && !archive.contains("old"));
        // Every start may write in these directories, so only their looks tell a change of them alone.
        std::fs::remove_dir_all(upper.join("etc")).unwrap();
        assert_eq!(listed(), Vec::<String>::new());
        std::fs::set_permissions(upper.join("dev"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(listed(), ["/", "/dev"]);
        std::fs::remove_dir(upper.join("dev")).unwrap();
        std::fs::set_permissions(&upper, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        assert_eq!(listed(), ["/"]);
    }

    #[test]
    #[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
    fn a_socket_hides_what_the_image_has_at_its_path() {
        let scratch = tempfile::tempdir().unwrap();
        let snaps = scratch.path();
        let mut layer = index::TreeBuilder::new();
        let metadata = Metadata { permissions: 0o755, ..Metadata::default() };
        layer.insert(b"file", &metadata, index::Entry::InlineFile(b"old".to_vec())).unwrap();
        layer.insert(b"dir", &metadata, index::Entry::Directory).unwrap();
        layer.insert(b"dir/file", &metadata, index::Entry::InlineFile(b"old".to_vec())).unwrap();
        let layer = Index::from_bytes(layer.write(oci::DiffId(oci::Digest::of(b"layer")), None).unwrap()).unwrap();
        let chain = || Index::from_bytes(index::merge(&[&layer]).unwrap()).unwrap();
        let sockets = ["dir", "file", "new"];
        let shown = |archive: &[u8]| -> Vec<String> {
            let blocks = archive.chunks(512).filter(|block| block[257..].starts_with(b"ustar") && block[156] != b'x');
            let names = blocks.map(|block| block.split(|byte| *byte == 0).next().unwrap());
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        let expected = ["./", ".wh.dir", ".wh.file"];

        let none = Vec::default();
        let upper = own::prepare(snaps, "own", (&none, &none), true).unwrap();
        let objects = || {
            let open = || open_dir(snaps).unwrap();
            ObjectDirs { own: open(), trash: open(), below: Vec::new() }
        };
        let contents = Arc::new(CachedObjects::new(objects()));
        let overlay =
            overlayfs::Overlay::open(upper, Arc::new(chain()), contents, overlayfs::Policy::Volatile).unwrap();
        let (asking, root) = (overlayfs::Request::default(), overlayfs::ROOT);
        let dir = overlay.lookup(root, b"dir").unwrap().unwrap();
        overlay.unlink(&asking, dir.ino, b"file").unwrap();
        overlay.rmdir(&asking, root, b"dir").unwrap();
        overlay.unlink(&asking, root, b"file").unwrap();
        let socket = overlayfs::Make { mode: nix::libc::S_IFSOCK | 0o755, umask: 0, rdev: 0, target: &[] };
        for name in sockets {
            overlay.create(&asking, root, name.as_bytes(), &socket, false).unwrap();
        }
        overlay.close().unwrap();
        let mut to = TarWriter::new(Vec::new(), None);
        assert_eq!(write_own(snaps, "own", chain(), objects(), &Ours::default(), &mut to).unwrap(), 3);
        assert_eq!(shown(&to.finish().unwrap()), expected);

        let upper = snaps.join("native/upper");
        std::fs::create_dir_all(&upper).unwrap();
        for name in sockets {
            std::os::unix::net::UnixListener::bind(upper.join(name)).unwrap();
        }
        let meta = crate::Meta::new(crate::Driver::Overlay, &none, &none);
        let snapshot = open_dir(upper.parent().unwrap()).unwrap();
        let truth = Truth::of(snapshot.as_fd(), &meta, None).unwrap();
        let chain = chain();
        let lower =
            crate::native::ChainLower { index: &chain, ids: crate::ids::MappedIds { uids: 1, gids: 1 }, objects: None };
        let mut to = TarWriter::new(Vec::new(), None);
        let upper = open_dir(&upper).unwrap();
        assert_eq!(write_native(upper.as_fd(), &lower, &truth, &Ours::default(), &mut to).unwrap(), 3);
        assert_eq!(shown(&to.finish().unwrap()), expected);
    }

    #[test]
    fn an_archive_has_whiteouts_first_and_what_is_below_a_directory_behind_it() {
        let change = |kind, path: &str| Change::new(path.as_bytes().to_vec(), kind);
        let (added, changed, deleted) = (ChangeKind::Added, ChangeKind::Changed, ChangeKind::Deleted);
        let list = vec![
            change(added, "/a.b"),
            change(added, "/a/b"),
            change(deleted, "/a/z"),
            change(changed, "/a"),
            change(deleted, "/x"),
            change(changed, "/"),
        ];
        let paths: Vec<_> = ordered(list).iter().map(|change| change.path.display().to_string()).collect();
        assert_eq!(paths, ["/", "/x", "/a", "/a/z", "/a/b", "/a.b"]);
    }
}
