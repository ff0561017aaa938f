//! Writing files as an archive: a tree whose top has the name of its path, or none where only its contents are meant.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base::{Context, Kind, Report};
use index::{DeviceNumber, Metadata, Time};
use layer::{TarContent, TarEntry, TarWriter};
use nix::dir::Dir;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};
use sys::Call;

/// File systems that are no files of anybody: of these directories in a tree only the names are written.
const LEFT_OUT: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Whether a path means what is in a directory, and not the directory: it ends in `/.`, or is the root.
pub(super) fn means_contents(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.") || path.file_name().is_none()
}

/// Writes the tree at a path. With `follow` a symbolic link there stands for its target; further down links are links.
pub(super) fn pack(path: &Path, follow: bool, out: &mut dyn Write) -> Result<(), Report> {
    let at = || path.display().to_string();
    let name = if means_contents(path) { OsStr::new("") } else { path.file_name().unwrap_or_default() };
    // What is asked for with a slash at its end must be a directory.
    let whole = name.is_empty() || path.as_os_str().as_bytes().ends_with(b"/");
    let flags = if follow || whole { AtFlags::empty() } else { AtFlags::AT_SYMLINK_NOFOLLOW };
    let stat = fstatat(AT_FDCWD, path, flags).call(|| format!("stat({path:?})"))?;
    let left_out = LEFT_OUT.iter().filter_map(|place| fs::metadata(place).ok()).map(|found| (found.dev(), found.ino()));
    let mut packer = Packer { out: TarWriter::new(out, None), links: BTreeMap::new(), left_out: left_out.collect() };
    packer.entry(AT_FDCWD, path.as_os_str(), name.as_bytes(), &stat, follow || whole).step(at)?;
    packer.out.finish()?;
    Ok(())
}

struct Packer<'w> {
    out: TarWriter<&'w mut dyn Write>,
    /// Where a file that has several names was written.
    links: BTreeMap<(u64, u64), Vec<u8>>,
    left_out: Vec<(u64, u64)>,
}

impl Packer<'_> {
    /// Writes what `name` is in `dir`, as `path`.
    fn entry(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        path: &[u8],
        stat: &FileStat,
        follow: bool,
    ) -> Result<(), Report> {
        let open = |flags: OFlag| {
            let flags = if follow { flags } else { flags | OFlag::O_NOFOLLOW };
            openat(dir, name, flags | OFlag::O_CLOEXEC, Mode::empty()).call(|| format!("openat({name:?}, {flags:?})"))
        };
        let device = DeviceNumber { major: major(stat.st_rdev) as u32, minor: minor(stat.st_rdev) as u32 };
        let entry = match kind(stat) {
            SFlag::S_IFDIR => {
                let opened = open(OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
                return self.directory(&opened, path);
            }
            SFlag::S_IFREG => {
                // It may have become a named pipe, or a terminal.
                let file = open(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?;
                return self.file(file, path);
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(dir, name).call(|| format!("readlinkat({name:?})"))?;
                self.out.entry(path, &metadata(stat), &TarEntry::Symlink(target.as_bytes()))?;
                return Ok(());
            }
            SFlag::S_IFCHR => TarEntry::CharDevice(device),
            SFlag::S_IFBLK => TarEntry::BlockDevice(device),
            SFlag::S_IFIFO => TarEntry::Fifo,
            // An archive cannot hold a socket, and nobody would listen at the copy.
            _ => return Ok(()),
        };
        Ok(self.out.entry(path, &metadata(stat), &entry)?)
    }

    fn directory(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), Report> {
        let stat = fstat(dir).call(|| "fstat(directory)".to_owned())?;
        self.out.entry(path, &metadata(&stat), &TarEntry::Directory)?;
        if !path.is_empty() && self.left_out.contains(&(stat.st_dev, stat.st_ino)) {
            return Ok(());
        }
        let mut listed = Dir::from_fd(dir.try_clone().call(|| "dup(directory)".to_owned())?)
            .call(|| "fdopendir(directory)".to_owned())?;
        let mut names = Vec::new();
        for entry in listed.iter() {
            let name = entry.call(|| "getdents(directory)".to_owned())?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        names.sort();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let name = OsStr::from_bytes(&name);
            match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                // Removed meanwhile.
                Err(nix::errno::Errno::ENOENT) => {}
                stat => {
                    let stat = stat.call(|| format!("fstatat({name:?})"))?;
                    self.entry(dir.as_fd(), name, &below, &stat, false)
                        .step(|| String::from_utf8_lossy(&below).into_owned())?;
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, file: OwnedFd, path: &[u8]) -> Result<(), Report> {
        let stat = fstat(&file).call(|| "fstat(file)".to_owned())?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(Report::new(Kind::Conflict, "it was replaced while it was copied"));
        }
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(self.out.entry(path, &metadata(&stat), &TarEntry::HardLink(first))?);
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
        let file = File::from(file);
        let content = TarContent::File { file: &file, offset: 0, size: stat.st_size.unsigned_abs() };
        Ok(self.out.file(path, &metadata(&stat), &content)?)
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

fn metadata(stat: &FileStat) -> Metadata {
    Metadata {
        permissions: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
        xattrs: BTreeMap::new(),
    }
}
