//! Reading an archive into a directory, by the rules of `docker cp` for the destination.
//!
//! Names are walked component by component from the directory that the destination means. What stands where a file is to be
//! goes first; a directory and what is none do not replace each other. Modes and times of directories come last, since what
//! is put into them changes these, or may not be allowed by them.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use base::{Context, Kind, Report};
use index::{DeviceNumber, Metadata};
use layer::{Archive, Header, LayerError, Piece, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstatat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};
use sys::Call;

/// Whose files are that are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// As the archive says.
    Keep,
    /// Who unpacks them; and then no program gains rights by them.
    Caller,
}

/// What becomes of a symbolic link on the way to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// It is followed: no path leads out of where we are.
    Followed,
    /// It is refused.
    Refused,
}

/// What an archive has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// One tree, its name at its top.
    Tree,
    /// What is in one directory.
    Contents,
    /// What somebody has put into it.
    Archive,
}

/// Where an archive goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The destination as it was written.
    pub path: &'a Path,
    pub source: Source,
    pub owners: Owners,
    pub links: Links,
}

/// Where the destination leads: a directory, and the name that the archive's top gets there in place of its own.
struct Place {
    dir: OwnedFd,
    top: Option<PathBuf>,
}

/// Unpacks an archive. What cannot be made here is told.
pub(super) fn unpack(input: impl BufRead, target: &Target<'_>, notice: &dyn Fn(&str)) -> Result<(), Report> {
    let mut archive = Archive::new(input);
    let Some(first) = archive.next_file()? else { return Ok(()) };
    let Place { dir, top } = place(target, first.kind == Type::Directory)?;
    let mut unpacker = Unpacker { dir, target, directories: Vec::new(), notice };
    let own = if target.source == Source::Tree { relative(&first.path)? } else { PathBuf::new() };
    let mut next = Some(first);
    while let Some(header) = next {
        let path = |written: &[u8]| -> Result<PathBuf, Report> {
            let path = relative(written)?;
            match &top {
                None => Ok(path),
                Some(top) => path.strip_prefix(&own).map(|below| top.join(below)).map_err(|_| outside(written)),
            }
        };
        let to = path(&header.path)?;
        let linked = match &header.kind {
            Type::HardLink(first) => Some(path(first)?),
            _ => None,
        };
        unpacker.entry(&mut archive, &header, &to, linked.as_deref()).step(|| to.display().to_string())?;
        next = archive.next_file()?;
    }
    unpacker.finish()
}

/// The path of an entry below the destination.
fn relative(written: &[u8]) -> Result<PathBuf, Report> {
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(written)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(outside(written)),
        }
    }
    Ok(path)
}

fn outside(written: &[u8]) -> Report {
    let text = format!("the archive's entry {:?} leads out of it", String::from_utf8_lossy(written));
    Report::new(Kind::Denied, text)
}

/// Finds out where the destination leads, for a source that is a directory or not.
fn place(target: &Target<'_>, is_directory: bool) -> Result<Place, Report> {
    let path = target.path;
    let words = |text: &str| Report::new(Kind::Conflict, text).with_step(path.display().to_string());
    let bytes = path.as_os_str().as_bytes();
    let named_directory = bytes.ends_with(b"/") || bytes.ends_with(b"/.");
    let open = |path: &Path| {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).call(|| format!("open({path:?}, O_DIRECTORY)"))
    };
    let renamed = |path: &Path| -> Result<Place, Report> {
        let missing = || Report::new(Kind::NotFound, "no such directory").with_step(path.display().to_string());
        let top = path.file_name().ok_or_else(missing)?;
        let dir = open(path.parent().unwrap_or(Path::new("/")));
        match dir {
            Err(error) if error.errno() == Errno::ENOENT => Err(missing()),
            dir => Ok(Place { dir: dir?, top: Some(PathBuf::from(top)) }),
        }
    };
    let found = fstatat(AT_FDCWD, path, AtFlags::empty());
    match found {
        Ok(stat) if SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR => {
            Ok(Place { dir: open(path)?, top: None })
        }
        _ if target.source == Source::Archive => Err(words("the destination must be a directory")),
        Ok(_) | Err(Errno::ENOTDIR) if named_directory => Err(words("not a directory")),
        Ok(_) if target.source == Source::Contents || is_directory => Err(words("cannot copy directory")),
        Ok(_) => renamed(&std::fs::canonicalize(path).map_err(|error| Report::of(Kind::Conflict, error))?),
        Err(Errno::ENOENT) if named_directory && !is_directory => Err(words("no such directory")),
        Err(Errno::ENOENT) => renamed(path),
        Err(errno) => Err(sys::SysError::new(format!("stat({path:?})"), errno).into()),
    }
}

struct Unpacker<'a> {
    dir: OwnedFd,
    target: &'a Target<'a>,
    directories: Vec<(PathBuf, Metadata)>,
    notice: &'a dyn Fn(&str),
}

impl Unpacker<'_> {
    fn entry<R: BufRead>(
        &mut self,
        archive: &mut Archive<R>,
        header: &Header,
        path: &Path,
        linked: Option<&Path>,
    ) -> Result<(), Report> {
        let Some(name) = path.file_name() else {
            // The destination itself, which is there.
            return Ok(());
        };
        let parent = self.parent(path)?;
        let parent = parent.as_fd();
        let metadata = &header.metadata;
        if header.kind == Type::Directory {
            return self.directory(parent, name, path, metadata);
        }
        make_room(parent, name)?;
        match &header.kind {
            Type::Regular => return self.file(archive, parent, name, metadata),
            Type::HardLink(_) => {
                let first = linked.unwrap_or(path);
                let from = self.parent(first)?;
                let first = first.file_name().unwrap_or_default();
                linkat(&from, first, parent, name, AtFlags::empty()).call(|| format!("linkat({first:?}, {name:?})"))?;
                return Ok(());
            }
            Type::Symlink(to) => {
                let to = OsStr::from_bytes(to);
                symlinkat(to, parent, name).call(|| format!("symlinkat({to:?}, {name:?})"))?;
            }
            Type::Fifo => node(parent, name, SFlag::S_IFIFO, DeviceNumber::default())?,
            Type::CharDevice(number) | Type::BlockDevice(number) => {
                let block = matches!(header.kind, Type::BlockDevice(_));
                match node(parent, name, if block { SFlag::S_IFBLK } else { SFlag::S_IFCHR }, *number) {
                    Err(error) if error.errno() == Errno::EPERM => {
                        (self.notice)(&format!(
                            "{} is left out: only root of the host may make devices",
                            path.display()
                        ));
                        return Ok(());
                    }
                    made => made?,
                }
            }
            Type::Directory => {}
        }
        if self.target.owners == Owners::Keep {
            let (uid, gid) = owner(metadata);
            fchownat(parent, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                .call(|| format!("fchownat({name:?}, {uid:?}, {gid:?})"))?;
        }
        if !matches!(header.kind, Type::Symlink(_)) {
            let mode = self.mode(metadata);
            fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink).call(|| format!("fchmodat({name:?})"))?;
        }
        let time = time(metadata);
        utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
            .call(|| format!("utimensat({name:?})"))?;
        Ok(())
    }

    /// The directory that a path lies in.
    fn parent(&self, path: &Path) -> Result<OwnedFd, Report> {
        self.walk(path.parent().unwrap_or(Path::new("")))
    }

    /// The directory at a path, made where it is missing.
    fn walk(&self, path: &Path) -> Result<OwnedFd, Report> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let flags = if self.target.links == Links::Refused { flags | OFlag::O_NOFOLLOW } else { flags };
        let mut dir = self.dir.try_clone().call(|| "dup(destination)".to_owned())?;
        for name in path {
            let open = || openat(&dir, name, flags, Mode::empty());
            let next = match open() {
                Err(Errno::ENOENT) => {
                    mkdirat(&dir, name, Mode::from_bits_truncate(0o755)).call(|| format!("mkdirat({name:?})"))?;
                    open()
                }
                next => next,
            };
            dir = next.call(|| format!("openat({name:?}, {flags:?})"))?;
        }
        Ok(dir)
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), Report> {
        match mkdirat(parent, name, Mode::S_IRWXU) {
            Err(Errno::EEXIST) => {
                let links = match self.target.links {
                    Links::Followed => AtFlags::empty(),
                    Links::Refused => AtFlags::AT_SYMLINK_NOFOLLOW,
                };
                let stat = fstatat(parent, name, links).call(|| format!("fstatat({name:?})"))?;
                if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
                    let text = "cannot overwrite non-directory with directory";
                    return Err(Report::new(Kind::Conflict, text));
                }
            }
            made => made.call(|| format!("mkdirat({name:?})"))?,
        }
        self.directories.push((path.to_owned(), metadata.clone()));
        Ok(())
    }

    fn file<R: BufRead>(
        &self,
        archive: &mut Archive<R>,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), Report> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .call(|| format!("openat({name:?}, O_CREAT|O_EXCL)"))?;
        let mut file = File::from(file);
        let mut length = 0;
        let wrong = |source| LayerError::Write { what: "a file", source };
        while archive.piece(|piece| match piece {
            Piece::Bytes(bytes) => {
                length += bytes.len() as u64;
                file.write_all(bytes).map_err(wrong)
            }
            Piece::Hole(hole) => {
                length += hole;
                file.set_len(length)
                    .and_then(|()| std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)))
                    .map_err(wrong)?;
                Ok(())
            }
        })? {}
        self.dress(file.as_fd(), &name, metadata)
    }

    /// Gives directories their owners, modes and times, the lowest first.
    fn finish(self) -> Result<(), Report> {
        for (path, metadata) in self.directories.iter().rev() {
            self.dress(self.walk(path)?.as_fd(), path, metadata)?;
        }
        Ok(())
    }

    /// Gives a file or directory its owner, mode and time; `name` is for people.
    fn dress(&self, file: BorrowedFd<'_>, name: &dyn Debug, metadata: &Metadata) -> Result<(), Report> {
        if self.target.owners == Owners::Keep {
            let (uid, gid) = owner(metadata);
            fchown(file, uid, gid).call(|| format!("fchown({name:?}, {uid:?}, {gid:?})"))?;
        }
        fchmod(file, self.mode(metadata)).call(|| format!("fchmod({name:?})"))?;
        let time = time(metadata);
        Ok(futimens(file, &time, &time).call(|| format!("futimens({name:?})"))?)
    }

    fn mode(&self, metadata: &Metadata) -> Mode {
        let set_id = if self.target.owners == Owners::Keep { 0o7777 } else { 0o1777 };
        Mode::from_bits_truncate(u32::from(metadata.permissions) & set_id)
    }
}

/// Removes what stands at a name, unless it is a directory.
fn make_room(parent: BorrowedFd<'_>, name: &OsStr) -> Result<(), Report> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => Err(Report::new(Kind::Conflict, "cannot overwrite directory with non-directory")),
        Err(errno) => Err(sys::SysError::new(format!("unlinkat({name:?})"), errno).into()),
    }
}

fn node(parent: BorrowedFd<'_>, name: &OsStr, kind: SFlag, number: DeviceNumber) -> Result<(), sys::SysError> {
    let device = makedev(number.major.into(), number.minor.into());
    mknodat(parent, name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device).call(|| format!("mknodat({name:?}, {kind:?})"))
}

fn owner(metadata: &Metadata) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid)))
}

fn time(metadata: &Metadata) -> TimeSpec {
    TimeSpec::new(metadata.mtime.seconds, metadata.mtime.nanoseconds.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed call is a failed test")]
mod tests {
    use std::fs;

    use layer::{TarContent, TarEntry, TarWriter};

    use super::*;

    /// What a hostile container may send: each is refused, and nothing is written beside the destination.
    #[test]
    fn nothing_leads_out_of_the_destination() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, beside) = (scratch.path().join("to"), scratch.path().join("beside"));
        fs::create_dir(&beside).unwrap();
        let none = Metadata { permissions: 0o755, ..Metadata::default() };
        let link = TarEntry::Symlink(b"../beside");
        let file = TarContent::Bytes(b"x");
        let write = |entries: &dyn Fn(&mut TarWriter<Vec<u8>>)| {
            let mut out = TarWriter::new(Vec::new(), None);
            entries(&mut out);
            out.finish().unwrap()
        };
        for archive in [
            write(&|out| {
                out.entry(b"d", &none, &link).unwrap();
                out.file(b"d/x", &none, &file).unwrap();
            }),
            write(&|out| {
                out.entry(b"d", &none, &link).unwrap();
                out.entry(b"d", &none, &TarEntry::Directory).unwrap();
            }),
            write(&|out| out.file(b"d/../../beside/x", &none, &file).unwrap()),
            write(&|out| {
                out.entry(b"d", &none, &TarEntry::Directory).unwrap();
                out.entry(b"d/x", &none, &TarEntry::HardLink(b"d/../../beside/x")).unwrap();
            }),
        ] {
            fs::create_dir_all(&inside).unwrap();
            let target =
                Target { path: &inside, source: Source::Archive, owners: Owners::Caller, links: Links::Refused };
            assert!(unpack(&archive[..], &target, &|_| {}).is_err());
            assert_eq!(fs::read_dir(&beside).unwrap().count(), 0);
            fs::remove_dir_all(&inside).unwrap();
        }
    }

    #[test]
    fn programs_gain_no_rights_by_a_copy_and_modes_of_directories_come_last() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = tempfile::tempdir().unwrap();
        let with = |permissions| Metadata { permissions, ..Metadata::default() };
        let mut out = TarWriter::new(Vec::new(), None);
        out.entry(b"d", &with(0o555), &TarEntry::Directory).unwrap();
        out.file(b"d/su", &with(0o6755), &TarContent::Bytes(b"x")).unwrap();
        let archive = out.finish().unwrap();
        let target =
            Target { path: scratch.path(), source: Source::Archive, owners: Owners::Caller, links: Links::Refused };
        unpack(&archive[..], &target, &|_| {}).unwrap();
        let mode = |name: &str| fs::metadata(scratch.path().join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("d"), mode("d/su")), (0o555, 0o755));
        fs::set_permissions(scratch.path().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}
