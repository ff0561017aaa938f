//! An image as a bundle for any OCI runtime: `config.json` out of its configuration, and its files unpacked.
//!
//! What the caller's ids and the file system do not allow is not there: owners of files, devices, some attributes. How many of
//! each is said in one line. The directory is new and nobody else's, so that no path in it can lead elsewhere; entries are
//! still made relative to the descriptor of their directory, and no link is ever followed. A bundle that could not be made
//! whole is removed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{DirBuilder, File};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use base::{Context, Kind, Report};
use index::{Index, Inode, Kind as NodeKind, Node, Time};
use layer::{Objects, TarContent};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, fchmod, futimens, makedev, mkdirat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, Whence, fchownat, linkat, lseek, symlinkat};
use oci::ImageConfig;
use oci_spec::image::Config;
use oci_spec::runtime::{ProcessBuilder, RootBuilder, Spec, UserBuilder};
use runtime::init::user::{self, Identity};
use store::Store;
use sys::Call;
use sys::xattr::{self, Existing};

use crate::Engine;
use crate::file::failed;
use crate::image::{find_to_use, the_store};

/// What is in an image and not in the bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Files of other owners than the caller.
    pub owners: u64,
    /// Devices.
    pub devices: u64,
    /// Extended attributes.
    pub attributes: u64,
}

impl Lost {
    /// One line, unless nothing was lost.
    pub fn line(&self) -> Option<String> {
        let some = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
        let parts = [
            some(self.owners, "files belong to you instead of their owners"),
            some(self.devices, "devices are left out"),
            some(self.attributes, "extended attributes are left out"),
        ];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("{}: your ids or the file system do not allow more", parts.join(", ")))
    }
}

/// Writes an image as a bundle into a directory, which must not exist, and does not afterwards when that fails.
pub fn bundle(engine: &Engine, text: &str, path: &Path) -> Result<Lost, Report> {
    bundled(engine, text, path).step(|| format!("cannot make a bundle of {text}"))
}

fn bundled(engine: &Engine, text: &str, path: &Path) -> Result<Lost, Report> {
    let (image, _lease) = find_to_use(engine, text)?;
    let store = the_store(engine)?;
    // The files in it may have set-id bits and be writable by everybody: what is nobody's way in a container is one here.
    DirBuilder::new().mode(0o700).create(path).map_err(|error| failed("making directory", path, error))?;
    fill(&store, &image, path).map_err(|report| match remove(path) {
        Ok(()) => report,
        Err(left) => report.with_step(format!("{} is left half made: {}", path.display(), left.lines().join(": "))),
    })
}

/// Writes the files and the configuration of a bundle.
fn fill(store: &Store, image: &ImageConfig, path: &Path) -> Result<Lost, Report> {
    let rootfs = path.join("rootfs");
    std::fs::create_dir(&rootfs).map_err(|error| failed("making directory", &rootfs, error))?;
    let root = sys::socket::open_directory(&rootfs)?;
    let mut lost = Lost::default();
    if !image.diff_ids.is_empty() {
        let layers = image.diff_ids.iter().map(|layer| layer::open_layer(store, *layer));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let index = Index::from_bytes(index::merge(&layers.iter().collect::<Vec<_>>())?)?;
        let again = root.try_clone().call(|| "dup(rootfs)".to_owned())?;
        lost = unpack(store, &index, again)?;
    }
    let spec = spec_of(&image.spec.config().clone().unwrap_or_default(), root.as_fd())?;
    let target = path.join("config.json");
    let json = serde_json::to_vec_pretty(&spec).map_err(|error| Report::of(Kind::Internal, error))?;
    std::fs::write(&target, json).map_err(|error| failed("writing", &target, error))?;
    Ok(lost)
}

/// Removes a bundle, in which directories may be shut to their owner.
fn remove(path: &Path) -> Result<(), Report> {
    snapshot::remove_contents(sys::socket::open_directory(path)?.as_fd())?;
    std::fs::remove_dir(path).map_err(|error| failed("removing directory", path, error))
}

/// The runtime's configuration: that of a rootless container for a plain user, with the image's words in it. Its user is
/// looked up in the root file system.
fn spec_of(config: &Config, root: BorrowedFd<'_>) -> Result<Spec, Report> {
    let caller = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let mut spec = if caller.0 == 0 { Spec::default() } else { Spec::rootless(caller.0, caller.1) };
    let failed = |error| Report::of(Kind::Internal, error);
    let mut args = config.entrypoint().clone().unwrap_or_default();
    args.extend(config.cmd().clone().unwrap_or_default());
    if args.is_empty() {
        args.push("sh".to_owned());
    }
    let mut env = config.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    let cwd = config.working_dir().clone().filter(|directory| !directory.is_empty()).unwrap_or_else(|| "/".to_owned());
    let identity = match config.user().as_deref() {
        None | Some("") => Identity::default(),
        Some(text) => user::in_root(root, text)?,
    };
    let mut user = UserBuilder::default().uid(identity.uid).gid(identity.gid);
    // Runtimes refuse them in a container whose groups are not mapped.
    if caller.0 == 0 && !identity.groups.is_empty() {
        user = user.additional_gids(identity.groups);
    }
    let user = user.build().map_err(failed)?;
    let process = ProcessBuilder::default().terminal(false).user(user).args(args).env(env).cwd(cwd);
    let process = process.build().map_err(failed)?;
    spec.set_process(Some(process));
    spec.set_root(Some(RootBuilder::default().path("rootfs").readonly(false).build().map_err(failed)?));
    Ok(spec)
}

/// Unpacks a chain into an empty directory.
fn unpack(store: &Store, index: &Index, root: OwnedFd) -> Result<Lost, Report> {
    let root_again = root.try_clone().call(|| "dup(rootfs)".to_owned())?;
    let mut unpacking = Unpacking {
        index,
        objects: Objects::of(store),
        first_names: HashMap::new(),
        root: root_again,
        lost: Lost::default(),
        chown: nix::unistd::geteuid().is_root(),
    };
    // Directories get their modes and times when all is in them.
    let zero = |_| Report::new(Kind::Internal, "a name has a zero byte");
    let mut open = vec![(Node::ROOT, root, Vec::new(), 0)];
    while let Some((node, directory, path, position)) = open.last_mut() {
        let Some(dirent) = index.dirents(*node)?.get(*position)? else {
            let inode = index.inode(*node)?;
            unpacking.finish(*node, &inode, directory.as_fd(), c".")?;
            open.pop();
            continue;
        };
        *position += 1;
        let name = CString::new(dirent.name).map_err(zero)?;
        let path = if path.is_empty() { dirent.name.to_vec() } else { [path, &b"/"[..], dirent.name].concat() };
        let shown = String::from_utf8_lossy(&path).into_owned();
        if dirent.kind == NodeKind::Directory {
            let words = || format!("mkdir(rootfs/{shown})");
            mkdirat(directory.as_fd(), name.as_c_str(), Mode::S_IRWXU).call(words)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let below = openat(directory.as_fd(), name.as_c_str(), flags, Mode::empty()).call(words)?;
            let node = dirent.node;
            open.push((node, below, path, 0));
        } else {
            let path = CString::new(path).map_err(zero)?;
            unpacking.entry(dirent.node, directory, &name, path).step(|| format!("unpacking /{shown}"))?;
        }
    }
    Ok(unpacking.lost)
}

struct Unpacking<'a> {
    index: &'a Index,
    objects: Objects<'a>,
    /// Of inodes with several names: the path of the first one.
    first_names: HashMap<Node, CString>,
    root: OwnedFd,
    lost: Lost,
    /// Whether the caller may give files away.
    chown: bool,
}

impl Unpacking<'_> {
    fn entry(&mut self, node: Node, directory: &OwnedFd, name: &CString, path: CString) -> Result<(), Report> {
        let inode = self.index.inode(node)?;
        if let Some(first) = self.first_names.get(&node) {
            // All directories on the way are ours, so no link is on it.
            linkat(self.root.as_fd(), first.as_c_str(), directory.as_fd(), name.as_c_str(), AtFlags::empty())
                .call(|| format!("linkat(rootfs/{})", first.to_string_lossy()))?;
            return Ok(());
        }
        let device = makedev(inode.rdev.major.into(), inode.rdev.minor.into());
        let made = match inode.kind {
            NodeKind::Regular => self.file(node, directory, name).map(|()| true)?,
            NodeKind::Symlink => {
                let target = self.index.symlink_target(node)?.unwrap_or_default();
                let target = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(target);
                symlinkat(target, directory.as_fd(), name.as_c_str()).call(|| "symlinkat()".to_owned())?;
                true
            }
            NodeKind::Fifo => mknod(directory, name, SFlag::S_IFIFO, 0)?,
            NodeKind::CharDevice => mknod(directory, name, SFlag::S_IFCHR, device)?,
            NodeKind::BlockDevice => mknod(directory, name, SFlag::S_IFBLK, device)?,
            _ => false,
        };
        if !made {
            self.lost.devices += u64::from(inode.kind != NodeKind::Socket);
            return Ok(());
        }
        self.finish(node, &inode, directory.as_fd(), name)?;
        if inode.nlink > 1 {
            self.first_names.insert(node, path);
        }
        Ok(())
    }

    fn file(&mut self, node: Node, directory: &OwnedFd, name: &CString) -> Result<(), Report> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(directory, name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let file = File::from(file.call(|| "open(O_CREAT | O_EXCL)".to_owned())?);
        let written = match self.objects.content(self.index, node)? {
            TarContent::Bytes(bytes) => file.write_all_at(bytes, 0),
            TarContent::File { file: from, offset, size } => copy(from, offset, size, &file),
        };
        written.map_err(|error| Report::of(Kind::Internal, error))
    }

    /// Owner, attributes, time, mode, in the order in which none takes another away: a mode may shut out its owner.
    fn finish(
        &mut self,
        node: Node,
        inode: &Inode,
        directory: BorrowedFd<'_>,
        name: &std::ffi::CStr,
    ) -> Result<(), Report> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        let caller = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        if self.chown {
            fchownat(directory, name, Some(Uid::from_raw(inode.uid)), Some(Gid::from_raw(inode.gid)), flags)
                .call(|| format!("fchownat({}:{})", inode.uid, inode.gid))?;
        } else if (inode.uid, inode.gid) != caller && (inode.uid, inode.gid) != (0, 0) {
            self.lost.owners += 1;
        }
        let Time { seconds, nanoseconds } = inode.mtime;
        let time = TimeSpec::new(seconds, nanoseconds.into());
        if matches!(inode.kind, NodeKind::Regular | NodeKind::Directory) {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let opened = openat(directory, name, flags, Mode::empty()).call(|| "open()".to_owned())?;
            self.attributes(node, &opened)?;
            futimens(&opened, &time, &time).call(|| "futimens()".to_owned())?;
            fchmod(&opened, Mode::from_bits_truncate(inode.permissions.into())).call(|| "fchmod()".to_owned())?;
        } else {
            let flags = UtimensatFlags::NoFollowSymlink;
            utimensat(directory, name, &time, &time, flags).call(|| "utimensat()".to_owned())?;
        }
        Ok(())
    }

    fn attributes(&mut self, node: Node, opened: &OwnedFd) -> Result<(), Report> {
        for attribute in self.index.xattrs(node)? {
            let (name, value) = attribute?;
            let Ok(name) = CString::new(name) else { continue };
            match xattr::set(opened, &name, value, Existing::Any) {
                Ok(()) => {}
                Err(error) if is_refusal(error.errno()) => self.lost.attributes += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Whether a file system says so of an attribute that it does not take: by who sets it, its kind, or its size. `ENOSPC` is
/// the word of ext4 for more than a block; where the disk is full the next file tells.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSPC | Errno::E2BIG | Errno::ERANGE)
}

/// Makes a special file; `false` where the caller may not.
fn mknod(directory: &OwnedFd, name: &CString, kind: SFlag, device: u64) -> Result<bool, Report> {
    match mknodat(directory, name.as_c_str(), kind, Mode::S_IRUSR | Mode::S_IWUSR, device) {
        Ok(()) => Ok(true),
        Err(Errno::EPERM) => Ok(false),
        Err(errno) => Err(errno).call(|| "mknodat()".to_owned())?,
    }
}

/// Copies a part of a file to the beginning of an empty one. Holes stay holes.
fn copy(from: &File, offset: u64, size: u64, to: &File) -> io::Result<()> {
    let end = offset + size;
    let mut buffer = vec![0; 1 << 20];
    let mut position = offset;
    while let Some(data) = data_behind(from, position, end)? {
        position = data.start;
        while position < data.end {
            let want = usize::try_from(data.end - position).unwrap_or(usize::MAX).min(buffer.len());
            let read = from.read_at(&mut buffer[..want], position)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&buffer[..read], position - offset)?;
            position += read as u64;
        }
    }
    if from.metadata()?.len() < end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    to.set_len(size)
}

/// The next bytes of a file that are no hole, before this end (`lseek(2)`: a file system without holes has data alone).
fn data_behind(file: &File, position: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    let seek = |position: u64, whence| lseek(file, position.cast_signed(), whence).map(i64::cast_unsigned);
    match seek(position, Whence::SeekData) {
        // Behind the last data.
        Err(Errno::ENXIO) => Ok(None),
        start => {
            let start = start?;
            let data = start..seek(start, Whence::SeekHole)?.min(end);
            Ok(Some(data).filter(|data| !data.is_empty()))
        }
    }
}
