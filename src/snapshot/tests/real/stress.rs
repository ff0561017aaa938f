//! Random operations on the kernel's file systems and on ours: the same answers, the same trees.
//!
//! Six trees begin alike. `plain` is a directory on the disk and the oracle of `fuse`, our own overlay, which is to be
//! as good as that (the kernel's overlayfs parts hard links and does not rename directories of the image), and of `copy`, the
//! image as we write it out. `kernel` is overlayfs over such a directory and the oracle of `overlay`, which is overlayfs over
//! our view, and of `tree`, overlayfs over the image as we write it out.
//!
//! A *round* is an image, some phases, and a commit by each driver, whose layer on top of the image must show what the
//! container saw; it becomes the next round's image. A *phase* is a number of operations in fresh mounts of what the one
//! before has left. In some the servers are killed meanwhile, and their successors go on. After it they end, or are killed
//! with their keepers: what was answered must be there. The owners of native files become data and true again in between.
//!
//! `SUBLET_STRESS_OPS` is how many operations there are in all, `SUBLET_STRESS_SEED` where the random numbers begin; the
//! seed of a run is printed, and the last operations when a tree differs. Only the moments of the kills are not of the seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use layer::{Limits, TarWriter, apply, merge_chain};
use nix::errno::Errno;
use nix::fcntl::{
    AtFlags, FallocateFlags, OFlag, RenameFlags, copy_file_range, fallocate, openat, readlinkat, renameat2,
};
use nix::sys::signal::Signal;
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{
    AccessFlags, Gid, Uid, UnlinkatFlags, Whence, faccessat, fchown, fchownat, ftruncate, linkat, lseek64, setegid,
    seteuid, symlinkat, unlinkat,
};
use oci::{DiffId, Digest};
use snapshot::fs_client::{FsConnection, FsSpec, connect_or_spawn};
use snapshot::fs_role::{FsConfig, View};
use snapshot::native::{self, ChainLower, Truth};
use snapshot::seed::{self, Seed};
use snapshot::{Driver, ObjectDirs, Ours, copied, owner_client};
use store::{Durability, Store};
use sys::namespace::parse_map;
use sys::xattr::{self, Existing};

use crate::Test;
use crate::chain::{mounted_at, shell};
use crate::support::{
    Outer, can_resume, clone_view, inside_beside, inside_with, kill, kill_role, overlay, pid_of_server, server_of,
    until,
};

pub const TESTS: &[Test] = &[("operations_answer_as_the_kernels_do", answer_as_the_kernels_do)];

/// Operations when nobody says how many, and where they begin: the same each time, so that a change is what fails.
const OPS: u64 = 2_000;
const SEED: u64 = 1;
/// Operations of a phase, and between looks at the whole trees, of which most of the time goes: a run of many does more in less.
const OPS_OF_PHASE: [u64; 2] = [500, 5_000];
const EVERY: [u64; 2] = [20, 500];
/// From how many on a run is one of many.
const MANY: u64 = 100_000;
const PHASES_OF_ROUND: u64 = 3;
/// Layers of an image after which the next round begins anew.
const LAYERS_MAX: usize = 6;
/// How many descriptors a tree keeps.
const SLOTS: usize = 4;
/// How many operations are told when something differs.
const TOLD: usize = 520;
/// The id of somebody without rights, where there is one.
const SOMEBODY: u32 = 1000;

/// Every kind of file, in sizes that the store keeps in different ways.
const MAKE: &str = r#"
set -e; umask 022; rm -rf T; mkdir -p T/a/b T/b/a/c T/c T/d/a
mkdir T/dev T/etc T/proc T/sys; : > T/etc/hostname; : > T/etc/hosts; : > T/etc/resolv.conf; ln -s /proc/mounts T/etc/mtab # as in every chain
printf inline > T/a/a; head -c 5000 /dev/urandom > T/a/c; head -c 100000 /dev/urandom > T/b/c; : > T/b/b; seq 300 > T/d/b
ln T/a/c T/d/c; ln -s a/b T/c/d; ln -s b T/a/d; ln -s /nowhere T/c/a; mkfifo T/c/b; chmod 1777 T/d; chmod 2775 T/b/a; chmod 4755 T/a/c
chmod 700 T/c; chmod 600 T/d/b; for i in $(seq 40); do echo $i > T/b/a/c/n$i; done
[ "$IDS" = 1 ] || chown -h 1000:1000 T/d/b T/b/a T/c/d T/b/c
find T -exec touch -h -d '2020-02-03 04:05:06.789' {} +
"#;
const ARCHIVE: &str = "cat /proc/self/uid_map >uid_map; cat /proc/self/gid_map >gid_map
tar --format=pax --xattrs --xattrs-include='*' --sort=name -C T -cf base.tar .";

/// Ids of entries that have none.
const NONE: u32 = u32::MAX;

/// An ACL as `setxattr` takes it, of tags, permissions and ids (`linux/posix_acl_xattr.h`); `turn` is taken from each
/// permission.
fn acl(turn: u16, entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&(permissions & !turn).to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// splitmix64: small, and good enough to meet everything.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    fn path(&mut self) -> String {
        let depth = self.of(&[1, 2, 2, 2, 3, 3, 4]);
        let names: Vec<&str> = (0..depth).map(|_| self.of(&["a", "b", "c", "d"])).collect();
        names.join("/")
    }

    fn slot(&mut self) -> usize {
        self.below(SLOTS as u64) as usize
    }

    fn mode(&mut self) -> u32 {
        self.of(&[0o644, 0o644, 0o755, 0o600, 0o666, 0o777, 0o4755, 0o2755, 0o6711, 0o2745, 0o1777, 0o500, 0])
    }

    fn offset(&mut self) -> u64 {
        let end = self.of(&[20, 20, 5000, 5000, 70_000, 300_000]);
        self.below(end)
    }

    fn id(&mut self) -> Option<u32> {
        self.of(&[None, Some(0), Some(SOMEBODY), Some(7)])
    }
}

#[derive(Clone, Debug)]
enum Op {
    Open { slot: usize, path: String, flags: OFlag, mode: u32 },
    Close(usize),
    Mkdir(String, u32),
    Symlink(&'static str, String),
    Link(String, String, bool),
    Node(String, SFlag, u32),
    Remove(String, bool),
    Rename(String, String, RenameFlags),
    Write(usize, u64, usize, u8),
    Read(usize, u64, usize),
    Cut(usize, u64),
    Truncate(String, u64),
    Allocate(usize, FallocateFlags, u64, u64),
    Seek(usize, u64, bool),
    Copy(usize, u64, usize, u64, u64),
    Stat(String),
    StatOpen(usize),
    Chmod(String, u32),
    ChmodOpen(usize, u32),
    Chown(String, Option<u32>, Option<u32>),
    ChownOpen(usize, Option<u32>, Option<u32>),
    Times(String, i64, i64),
    SetXattr(String, &'static str, Vec<u8>, Existing),
    RemoveXattr(String, &'static str),
    Xattrs(String),
    List(String),
    Target(String),
    Access(String, AccessFlags),
    Lock(usize),
    Unlock(usize),
    Sync(usize),
}

/// Attributes that a container may set; the file capability in the form of version 2.
const XATTRS: [&str; 5] =
    ["user.a", "user.b", "security.capability", "system.posix_acl_access", "system.posix_acl_default"];
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn random_op(random: &mut Random) -> Op {
    let r = random;
    match r.below(62) {
        0..=6 => {
            let access = r.of(&[OFlag::O_RDONLY, OFlag::O_RDWR, OFlag::O_RDWR, OFlag::O_RDWR, OFlag::O_WRONLY]);
            let more = r.of(&[
                OFlag::empty(),
                OFlag::O_CREAT,
                OFlag::O_CREAT,
                OFlag::O_CREAT.union(OFlag::O_EXCL),
                OFlag::O_TRUNC,
                OFlag::O_CREAT.union(OFlag::O_TRUNC),
                OFlag::O_APPEND,
                OFlag::O_NOFOLLOW,
                OFlag::O_DIRECTORY,
            ]);
            Op::Open { slot: r.slot(), path: r.path(), flags: access | more, mode: r.mode() }
        }
        7 => Op::Close(r.slot()),
        8..=10 => Op::Mkdir(r.path(), r.mode()),
        11 => Op::Symlink(r.of(&["a", "b", "b/a", "c/d", "nowhere", "./a/b"]), r.path()),
        12..=14 => Op::Link(r.path(), r.path(), r.below(4) == 0),
        15 => {
            let kind = r.of(&[SFlag::S_IFIFO, SFlag::S_IFSOCK, SFlag::S_IFREG, SFlag::S_IFCHR, SFlag::S_IFBLK]);
            Op::Node(r.path(), kind, r.mode())
        }
        16..=20 => Op::Remove(r.path(), false),
        21..=22 => Op::Remove(r.path(), true),
        23..=29 => {
            let none = RenameFlags::empty();
            let flags = r.of(&[none, none, none, RenameFlags::RENAME_EXCHANGE, RenameFlags::RENAME_NOREPLACE]);
            Op::Rename(r.path(), r.path(), flags)
        }
        30..=33 => Op::Write(r.slot(), r.offset(), r.of(&[1, 10, 4096, 9000]), r.below(256) as u8),
        34..=35 => Op::Read(r.slot(), r.offset(), 20_000),
        36 => Op::Cut(r.slot(), r.offset()),
        37 => Op::Truncate(r.path(), r.offset()),
        38 => {
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE.union(keep);
            let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
            let flags = r.of(&[FallocateFlags::empty(), keep, punch, zero, zero.union(keep)]);
            Op::Allocate(r.slot(), flags, r.offset(), r.below(9000))
        }
        39 => Op::Seek(r.slot(), r.offset(), r.below(2) == 0),
        40 => Op::Copy(r.slot(), r.offset(), r.slot(), r.offset(), r.below(20_000)),
        41..=42 => Op::Stat(r.path()),
        43 => Op::StatOpen(r.slot()),
        44..=45 => Op::Chmod(r.path(), r.mode()),
        46 => Op::ChmodOpen(r.slot(), r.mode()),
        47..=48 => Op::Chown(r.path(), r.id(), r.id()),
        49 => Op::ChownOpen(r.slot(), r.id(), r.id()),
        50 => Op::Times(r.path(), r.below(2_000_000_000) as i64 - 1_000_000_000, r.below(1_000_000_000) as i64),
        51..=52 => {
            let name = r.of(&XATTRS);
            let size = r.of(&[0, 3, 100, 300]);
            let turn = r.of(&[0, 1, 2, 4, 7]);
            let (plain, named) = ([(1, 7, NONE), (4, 5, NONE), (32, 5, NONE)], r.of(&[0, SOMEBODY, 7]));
            let more = [(1, 7, NONE), (2, 6, named), (4, 5, NONE), (8, 3, named), (16, 6, NONE), (32, 4, NONE)];
            let value = match name {
                "security.capability" => CAPABILITY.to_vec(),
                _ if name.starts_with("system.") && r.below(4) == 0 => acl(turn, &plain),
                _ if name.starts_with("system.") => acl(turn, &more),
                _ => vec![b'v'; size],
            };
            Op::SetXattr(
                r.path(),
                name,
                value,
                r.of(&[Existing::Any, Existing::Any, Existing::Never, Existing::Always]),
            )
        }
        53 => Op::RemoveXattr(r.path(), r.of(&XATTRS)),
        54 => Op::Xattrs(r.path()),
        55 => Op::List(r.path()),
        56 => Op::Target(r.path()),
        57 => Op::Access(r.path(), r.of(&[AccessFlags::R_OK, AccessFlags::W_OK, AccessFlags::X_OK])),
        58..=59 => Op::Lock(r.slot()),
        60 => Op::Unlock(r.slot()),
        _ => Op::Sync(r.slot()),
    }
}

/// A mounted tree and what is open in it.
struct Tree {
    name: &'static str,
    root: File,
    open: [Option<File>; SLOTS],
    /// When the operations began: a later time is only "now".
    since: i64,
}

/// What an operation answered.
type Answer = Result<String, Errno>;

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn sys<T>(result: Result<T, sys::SysError>) -> Result<T, Errno> {
    result.map_err(|error| error.errno())
}

fn done(result: Result<(), Errno>) -> Answer {
    result.map(|()| String::new())
}

/// A chown to nobody of somebody else's file with set-id bits is refused by the kernel. To a FUSE server it looks like what comes
/// ahead of a write, which must succeed: nothing changes then.
fn or_nothing(to: (&Option<u32>, &Option<u32>), changed: Result<(), Errno>) -> Result<(), Errno> {
    if to == (&None, &None) && changed == Err(Errno::EPERM) { Ok(()) } else { changed }
}

impl Tree {
    fn at(&self, slot: usize) -> Result<&File, Errno> {
        self.open[slot].as_ref().ok_or(Errno::EBADF)
    }

    /// Opened for its attributes; the last name is not followed.
    fn handle(&self, path: &str) -> Result<OwnedFd, Errno> {
        openat(&self.root, path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
    }

    fn look(&self, stat: &FileStat) -> String {
        let kind = stat.st_mode & SFlag::S_IFMT.bits();
        let size = if kind == SFlag::S_IFDIR.bits() { -1 } else { stat.st_size };
        let time = if stat.st_mtime >= self.since {
            "now".to_owned()
        } else {
            format!("{}.{}", stat.st_mtime, stat.st_mtime_nsec)
        };
        let rdev = if matches!(kind, 0o020_000 | 0o060_000) { stat.st_rdev } else { 0 };
        // Whether a write by somebody else takes this bit, which has no meaning, depends on what is in the kernel's caches (`S_NOSEC`).
        let is_idle = kind == SFlag::S_IFREG.bits() && stat.st_mode & 0o10 == 0;
        let mode = if is_idle { stat.st_mode & !0o2000 } else { stat.st_mode };
        format!("{mode:o} {}:{} {size} {} {time} {rdev}", stat.st_uid, stat.st_gid, stat.st_nlink)
    }

    fn run(&mut self, op: &Op) -> Answer {
        let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
        let (uid, gid) = (|id: Option<u32>| id.map(Uid::from_raw), |id: Option<u32>| id.map(Gid::from_raw));
        match op {
            Op::Open { slot, path, flags, mode } => {
                self.open[*slot] = None;
                let flags = *flags | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                let file = openat(&self.root, path.as_str(), flags, Mode::from_bits_truncate(*mode))?;
                self.open[*slot] = Some(file.into());
                done(Ok(()))
            }
            Op::Close(slot) => {
                self.open[*slot] = None;
                done(Ok(()))
            }
            Op::Mkdir(path, mode) => done(mkdirat(&self.root, path.as_str(), Mode::from_bits_truncate(*mode))),
            Op::Symlink(target, path) => done(symlinkat(*target, &self.root, path.as_str())),
            Op::Link(from, to, follow) => {
                let flags = if *follow { AtFlags::AT_SYMLINK_FOLLOW } else { AtFlags::empty() };
                done(linkat(&self.root, from.as_str(), &self.root, to.as_str(), flags))
            }
            Op::Node(path, kind, mode) => {
                done(mknodat(&self.root, path.as_str(), *kind, Mode::from_bits_truncate(*mode), 0x103))
            }
            Op::Remove(path, directory) => {
                let flags = if *directory { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
                done(unlinkat(&self.root, path.as_str(), flags))
            }
            Op::Rename(from, to, flags) => done(renameat2(&self.root, from.as_str(), &self.root, to.as_str(), *flags)),
            Op::Write(slot, at, length, byte) => {
                let written = self.at(*slot)?.write_at(&vec![*byte; *length], *at).map_err(|error| errno(&error))?;
                Ok(written.to_string())
            }
            Op::Read(slot, at, length) => {
                let mut buffer = vec![0; *length];
                let read = self.at(*slot)?.read_at(&mut buffer, *at).map_err(|error| errno(&error))?;
                Ok(format!("{read} {}", digest(&buffer[..read])))
            }
            Op::Cut(slot, length) => done(ftruncate(self.at(*slot)?, *length as i64)),
            Op::Truncate(path, length) => {
                let file = openat(&self.root, path.as_str(), OFlag::O_WRONLY | OFlag::O_NONBLOCK, Mode::empty())?;
                done(ftruncate(&file, *length as i64))
            }
            Op::Allocate(slot, flags, at, length) => {
                done(fallocate(self.at(*slot)?, *flags, *at as i64, *length as i64))
            }
            Op::Seek(slot, at, hole) => self.seek(*slot, *at, *hole),
            Op::Copy(from, from_at, to, to_at, length) => {
                let (mut from_at, mut to_at) = (*from_at as i64, *to_at as i64);
                let (from, to) = (self.at(*from)?, self.at(*to)?);
                let mut left = *length as usize;
                loop {
                    match copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), left)? {
                        0 => return Ok((*length as usize - left).to_string()),
                        count => left -= count,
                    }
                    if left == 0 {
                        return Ok(length.to_string());
                    }
                }
            }
            Op::Stat(path) => Ok(self.look(&fstatat(&self.root, path.as_str(), nofollow)?)),
            Op::StatOpen(slot) => Ok(self.look(&fstat(self.at(*slot)?)?)),
            Op::Chmod(path, mode) => {
                let mode = Mode::from_bits_truncate(*mode);
                done(fchmodat(&self.root, path.as_str(), mode, FchmodatFlags::FollowSymlink))
            }
            Op::ChmodOpen(slot, mode) => done(fchmod(self.at(*slot)?, Mode::from_bits_truncate(*mode))),
            Op::Chown(path, owner, group) => {
                let changed = fchownat(&self.root, path.as_str(), uid(*owner), gid(*group), nofollow);
                done(or_nothing((owner, group), changed))
            }
            Op::ChownOpen(slot, owner, group) => {
                let changed = fchown(self.at(*slot)?, uid(*owner), gid(*group));
                done(or_nothing((owner, group), changed))
            }
            Op::Times(path, seconds, nanos) => {
                let time = TimeSpec::new(*seconds, *nanos);
                done(utimensat(&self.root, path.as_str(), &time, &time, UtimensatFlags::NoFollowSymlink))
            }
            Op::SetXattr(path, name, value, existing) => {
                let file = self.handle(path)?;
                // The kernel takes a capability of a link too, where it means nothing and no archive has it.
                if fstat(&file)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits() {
                    return Err(Errno::EINVAL);
                }
                let name = std::ffi::CString::new(*name).unwrap();
                done(sys(xattr::set(&file, &name, value, *existing)))
            }
            Op::RemoveXattr(path, name) => {
                let name = std::ffi::CString::new(*name).unwrap();
                done(sys(xattr::remove(&self.handle(path)?, &name)))
            }
            Op::Xattrs(path) => xattrs(&self.handle(path)?),
            Op::List(path) => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let mut dir = nix::dir::Dir::openat(&self.root, path.as_str(), flags, Mode::empty())?;
                let mut names = Vec::new();
                for entry in dir.iter() {
                    let entry = entry?;
                    names.push(format!("{:?} {:?}", entry.file_name(), entry.file_type()));
                }
                names.sort();
                Ok(names.join(","))
            }
            Op::Target(path) => Ok(readlinkat(&self.root, path.as_str())?.to_string_lossy().into_owned()),
            Op::Access(path, mode) => done(faccessat(&self.root, path.as_str(), *mode, AtFlags::AT_EACCESS)),
            Op::Lock(slot) => {
                sys(sys::lock::try_exclusive(self.at(*slot)?, Path::new("slot"))).map(|it| it.to_string())
            }
            Op::Unlock(slot) => done(sys(sys::lock::release(self.at(*slot)?, Path::new("slot")))),
            Op::Sync(slot) => done(nix::unistd::fsync(self.at(*slot)?)),
        }
    }

    /// Where data and holes are is a file system's own affair, but no hole may have data in it, and none may begin where
    /// data is.
    fn seek(&self, slot: usize, at: u64, hole: bool) -> Answer {
        let file = self.at(slot)?;
        let whence = if hole { Whence::SeekHole } else { Whence::SeekData };
        let stat = fstat(file)?;
        if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
            return Err(Errno::EINVAL);
        }
        let size = stat.st_size as u64;
        let found = lseek64(file, at as i64, whence);
        if at >= size {
            return found.map(|found| found.to_string());
        }
        let passed = match found {
            Ok(found) if hole => (found as u64).min(size)..size.min(found as u64 + 1),
            Ok(found) => at..found as u64,
            Err(Errno::ENXIO) => at..size,
            Err(errno) => return Err(errno),
        };
        let mut bytes = vec![0; passed.end.saturating_sub(passed.start) as usize];
        match file.read_exact_at(&mut bytes, passed.start) {
            Ok(()) => assert!(bytes.iter().all(|byte| *byte == 0), "{}: data in a hole of {slot} at {at}", self.name),
            // Not open for reading.
            Err(error) => assert_eq!(errno(&error), Errno::EBADF),
        }
        Ok("told".to_owned())
    }

    /// The whole tree, but for the look of its root: path, attributes, names of one file, contents.
    fn picture(&self, links: bool) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        let mut pending = vec![PathBuf::new()];
        let mut inodes = Vec::new();
        while let Some(path) = pending.pop() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let at = if path.as_os_str().is_empty() { Path::new(".") } else { path.as_path() };
            let mut dir = nix::dir::Dir::openat(&self.root, at, flags, Mode::empty()).unwrap();
            let entries: Vec<_> = dir.iter().map(|entry| entry.unwrap()).collect();
            let names = entries.iter().map(|entry| (entry.file_name().to_bytes(), entry.ino()));
            for (name, ino) in names.filter(|(name, _)| !matches!(*name, b"." | b"..")) {
                let path = path.join(std::ffi::OsStr::from_bytes(name));
                let stat = fstatat(&self.root, &path, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
                let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
                assert_eq!(stat.st_ino, ino, "{}: {} has two numbers", self.name, path.display());
                if kind == SFlag::S_IFSOCK && !links {
                    continue;
                }
                let mut look = self.look(&stat);
                if !links {
                    // Where in an archive a name of the image and one of the layer are one file cannot be told.
                    let nlink = format!(" {} ", stat.st_nlink);
                    look = look.replacen(&nlink, " ", 1);
                }
                // An archive of a native upper has none of pipes and devices.
                if links || matches!(kind, SFlag::S_IFREG | SFlag::S_IFDIR) {
                    look += &xattrs(&self.handle(&path.to_string_lossy()).unwrap()).unwrap();
                }
                if kind == SFlag::S_IFREG {
                    let file = File::from(openat(&self.root, &path, OFlag::O_RDONLY, Mode::empty()).unwrap());
                    let mut bytes = vec![0; stat.st_size as usize];
                    file.read_exact_at(&mut bytes, 0).unwrap();
                    assert_eq!(file.read_at(&mut [0], stat.st_size as u64).unwrap(), 0);
                    look.push_str(&[" ", &digest(&bytes)].concat());
                } else if kind == SFlag::S_IFLNK {
                    look += &readlinkat(&self.root, &path).unwrap().to_string_lossy();
                } else if kind == SFlag::S_IFDIR {
                    pending.push(path.clone());
                }
                inodes.push((stat.st_ino, path.clone()));
                found.insert(path, look);
            }
        }
        if links {
            inodes.sort();
            for same in inodes.chunk_by(|one, other| one.0 == other.0).filter(|same| same.len() > 1) {
                for (_, path) in same {
                    found.get_mut(path).unwrap().push_str(&[" as ", &same[0].1.to_string_lossy()].concat());
                }
            }
        }
        found
    }
}

/// Optimised in this profile too, unlike anything of our own: a look at all trees takes a hundredth of the time.
fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).hex()
}

fn xattrs(file: &OwnedFd) -> Answer {
    let mut list = Vec::new();
    for name in sys(xattr::list(file))? {
        // Labels of the host's security module are no affair of ours.
        if name.to_bytes() != b"security.selinux" {
            list.push(format!(" {name:?}={:?}", sys(xattr::get(file, &name))?.map(|value| digest(&value))));
        }
    }
    list.sort();
    Ok(list.concat())
}

/// The difference of two trees in words; `None` when there is none.
fn difference(ours: &Tree, oracle: &Tree, links: bool) -> Option<String> {
    let (left, right) = (ours.picture(links), oracle.picture(links));
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differ = paths.into_iter().filter(|path| left.get(*path) != right.get(*path));
    let lines: Vec<String> = differ
        .map(|path| {
            format!(
                "{}\n  {}: {:?}\n  {}: {:?}",
                path.display(),
                ours.name,
                left.get(path),
                oracle.name,
                right.get(path)
            )
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// What ours are compared with: places in the array of trees.
const PAIRS: [(usize, usize); 4] = [(1, 0), (2, 0), (4, 3), (5, 3)];
/// The image written out for `tree`, below the work directory.
const WRITTEN: &str = "written";
/// The drivers whose containers write files of the disk.
const NATIVE: [Driver; 3] = [Driver::Overlay, Driver::Tree, Driver::Copy];

/// An image in the store, and what stands on it.
struct Round<'a> {
    outer: &'a Outer,
    store: &'a Store,
    work: &'a Path,
    snaps: PathBuf,
    key: String,
    chain: PathBuf,
    own: File,
}

impl Round<'_> {
    /// Starts a server of a view of ours.
    fn connect(&self, key: &str, view: View, chain: &Path, upper: Option<&File>) -> FsConnection {
        let config = FsConfig { view, linger_ms: 100, note: String::new() };
        let root = self.store_root();
        let files = [chain.to_owned(), root.join("objects"), root.join("trash")];
        let [index, objects, trash] = files.map(|path| File::open(path).unwrap());
        let mut fds = vec![("index", index.as_fd()), ("objects", objects.as_fd()), ("trash", trash.as_fd())];
        fds.extend(upper.map(|upper| ("upper", upper.as_fd())));
        let spec = FsSpec { key, config: &config, user_namespace: self.outer.user_namespace.as_fd(), fds: &fds };
        connect_or_spawn(&self.outer.places(), &spec).unwrap()
    }

    fn store_root(&self) -> PathBuf {
        self.outer.scratch.path().join("stress-store")
    }

    fn chain_view(&self, key: &str, chain: &Path) -> FsConnection {
        self.connect(key, View::Chain { ids: self.outer.ids }, chain, None)
    }

    fn own_view(&self, volatile: bool) -> FsConnection {
        let view = View::Overlay { ids: self.outer.ids, volatile, shifted: false, size_bytes: None };
        self.connect(&self.own_key(), view, &self.chain, Some(&self.own))
    }

    fn own_key(&self) -> String {
        format!("{}-own", self.key)
    }

    /// The snapshot of a native driver.
    fn native(&self, driver: Driver) -> PathBuf {
        self.snaps.join(format!("{}-{}", self.key, driver.as_str()))
    }

    /// Makes the snapshots, and writes the image out for those that need it.
    fn prepare(&self) {
        let (maps, root) = ((&self.outer.identity(), &self.outer.identity()), Outer::container_root());
        for driver in [Driver::Overlay, Driver::Tree] {
            let key = format!("{}-{}", self.key, driver.as_str());
            native::prepare(driver, (&self.snaps, &key), maps, root, None, false).unwrap();
        }
        let (index, objects) = (self.index(), self.objects());
        let first = root.map_or(0, |(first, _)| first);
        let shown = |id: u32| if id < self.outer.ids.uids { id } else { 0 };
        let owner = move |uid, gid| (shown(uid), shown(gid));
        let how = Seed { owner: &owner, log_all: first > 0, sync: false };
        let key = format!("{}-copy", self.key);
        copied::prepare(&self.snaps, &key, maps, (&index, &objects), how).unwrap();
        let written = self.work.join(WRITTEN);
        std::fs::create_dir(&written).unwrap();
        std::fs::set_permissions(&written, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        seed::seed(&written, "tree", (&index, index.root()), &objects, how).unwrap();
        self.restore();
    }

    /// Has native files belong to whom the containers see.
    fn restore(&self) {
        let outer = self.outer.user_namespace.as_fd();
        owner_client::restore_tree(outer, &self.work.join(WRITTEN)).unwrap();
        for driver in NATIVE {
            owner_client::restore(outer, &self.native(driver)).unwrap();
        }
    }

    /// Has them belong to us, as they do at rest.
    fn reclaim(&self) {
        let outer = self.outer.user_namespace.as_fd();
        owner_client::reclaim_tree(outer, &self.work.join(WRITTEN)).unwrap();
        for driver in NATIVE {
            owner_client::reclaim(outer, &self.native(driver)).unwrap();
        }
    }

    fn index(&self) -> index::Index {
        index::Index::open(File::open(&self.chain).unwrap()).unwrap()
    }

    fn objects(&self) -> ObjectDirs {
        let [own, trash] =
            ["objects", "trash"].map(|name| OwnedFd::from(File::open(self.store_root().join(name)).unwrap()));
        ObjectDirs { own, trash, below: Vec::new() }
    }

    /// Mounts all trees in a process of its own and has `body` work in them, while we do what is to be done `beside`.
    fn with_trees(&self, views: [&OwnedFd; 2], body: impl FnOnce([Tree; 6]), beside: impl FnOnce()) {
        let [view, tree, copy] = NATIVE.map(|driver| self.native(driver));
        let paths = [
            copy.join("upper"),
            self.work.join("kernel-upper"),
            self.work.join("kernel-work"),
            view.join("upper"),
            view.join("work"),
            tree.join("upper"),
            tree.join("work"),
        ];
        let paths = paths.each_ref().map(PathBuf::as_path);
        let body = |[copy, upper, work, view_upper, view_work, tree_upper, tree_work]: [File; 7]| {
            let target = self.work.join("at");
            let since =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - 3600;
            let tree = |name, root: File| Tree { name, root, open: Default::default(), since };
            let at = |path: &Path| File::open(path).unwrap();
            let lower = mounted_at(views[0], &target);
            let kernel = overlay(&self.work.join("lower"), &upper, &work);
            let over_view = overlay(&lower, &view_upper, &view_work);
            let over_tree = overlay(&self.work.join(WRITTEN).join("tree"), &tree_upper, &tree_work);
            nix::sys::stat::umask(Mode::empty());
            body([
                tree("plain", at(&self.work.join("plain"))),
                tree("fuse", at(&mounted_at(views[1], &target))),
                tree("copy", copy),
                tree("kernel", at(&mounted_at(&kernel, &target))),
                tree("overlay", at(&mounted_at(&over_view, &target))),
                tree("tree", at(&mounted_at(&over_tree, &target))),
            ]);
        };
        inside_beside(&self.outer.user_namespace, paths, body, beside);
    }

    /// Runs operations, all of them in each tree.
    fn phase(&self, seed: u64, count: u64, how: How) {
        let (chain, own) = (self.chain_view(&self.key, &self.chain), self.own_view(how.volatile));
        let views = [&clone_view(&chain), &clone_view(&own)];
        let keys = [self.key.clone(), self.own_key()];
        let body = |mut trees: [Tree; 6]| {
            assert_same(&trees, "before the first operation", &[]);
            let mut random = Random(seed);
            let mut told = Vec::new();
            for number in 0..count {
                let op = random_op(&mut random);
                let somebody = self.outer.ids.uids > SOMEBODY && random.below(5) == 0;
                if somebody {
                    setegid(SOMEBODY.into()).unwrap();
                    seteuid(SOMEBODY.into()).unwrap();
                }
                let answers = trees.each_mut().map(|tree| tree.run(&op));
                if somebody {
                    seteuid(0.into()).unwrap();
                    setegid(0.into()).unwrap();
                }
                told.push(format!("{number}{} {op:?}: {:?}", if somebody { " (somebody)" } else { "" }, answers[0]));
                for (ours, oracle) in PAIRS {
                    assert!(
                        answers[ours] == answers[oracle],
                        "{}: {:?}\n{}: {:?}\n{}",
                        trees[ours].name,
                        answers[ours],
                        trees[oracle].name,
                        answers[oracle],
                        last(&told)
                    );
                }
                if number % how.every == how.every - 1 {
                    assert_same(&trees, "after an operation", &told);
                }
            }
            assert_same(&trees, "at the end", &told);
        };
        let beside = || {
            let mut random = Random(seed ^ 1);
            for _ in 0..if how.disturb { 3 } else { 0 } {
                std::thread::sleep(Duration::from_millis(random.below(200)));
                for key in &keys {
                    replace_server(key);
                }
            }
        };
        self.with_trees(views, body, beside);
        if how.kill {
            for key in &keys {
                kill_role(key);
            }
        }
        drop((chain, own));
    }

    /// What serves the layer of each driver, and the tree that it must look like.
    fn committed(&self) -> impl Iterator<Item = (String, usize)> {
        let names = ["fuse", "overlay", "tree", "copy"].into_iter().zip([1, 4, 5, 2]);
        names.map(|(name, at)| (format!("{}-committed-{name}", self.key), at))
    }

    fn end_servers(&self) {
        let keys = [vec![self.key.clone(), self.own_key()], self.committed().map(|(key, _)| key).collect()].concat();
        for key in keys {
            until("the servers' end", 10, || pid_of_server(&key).is_none());
        }
    }

    /// The layer of each driver, in the order of [`Round::committed`].
    fn layers(&self) -> Vec<Vec<u8>> {
        let (objects, ours) = (self.objects(), Ours::default());
        let mut own = TarWriter::new(Vec::new(), None);
        snapshot::write_own(&self.snaps, &self.own_key(), self.index(), self.objects(), &ours, &mut own).unwrap();
        let map = |name: &str| parse_map(&std::fs::read_to_string(self.work.join(name)).unwrap()).unwrap();
        let (uids, gids, index) = (map("uid_map"), map("gid_map"), self.index());
        let native = NATIVE.map(|driver| {
            let (dir, mut archive) = (self.native(driver), TarWriter::new(Vec::new(), None));
            let meta = snapshot::meta(&self.snaps, dir.file_name().unwrap().to_str().unwrap()).unwrap().unwrap();
            let truth = Truth::read(&dir, &meta, Some((&uids, &gids))).unwrap();
            let objects = (driver == Driver::Copy).then_some(&objects);
            let lower = ChainLower { index: &index, ids: self.outer.ids, objects };
            let upper = File::open(dir.join("upper")).unwrap();
            snapshot::write_native(upper.as_fd(), &lower, &truth, &ours, &mut archive).unwrap();
            archive
        });
        [own].into_iter().chain(native).map(|archive| archive.finish().unwrap()).collect()
    }

    /// Commits by each driver; what the layers show on top of the image must be what the containers saw.
    fn commit(&self, layers: &[DiffId]) -> Vec<Vec<DiffId>> {
        self.end_servers();
        self.reclaim();
        let chains: Vec<Vec<DiffId>> = self
            .layers()
            .iter()
            .map(|archive| {
                let applied = apply(&archive[..], None, self.store, Durability::Later, &Limits::default()).unwrap();
                [layers, &[applied.diff_id]].concat()
            })
            .collect();
        self.restore();
        let connections: Vec<_> = self
            .committed()
            .zip(&chains)
            .map(|((key, _), chain)| self.chain_view(&key, &chain_of(self.store, chain)))
            .collect();
        let views: Vec<_> = connections.iter().map(clone_view).collect();
        let (chain, own) = (self.chain_view(&self.key, &self.chain), self.own_view(true));
        let body = |trees: [Tree; 6]| {
            for ((key, live), view) in self.committed().zip(&views) {
                let (live, root) = (&trees[live], File::open(mounted_at(view, &self.work.join("at"))).unwrap());
                let tree = Tree { name: live.name, root, open: Default::default(), since: live.since };
                if let Some(text) = difference(&tree, live, false) {
                    panic!("{key}: the layer, then the container\n{text}");
                }
            }
        };
        self.with_trees([&clone_view(&chain), &clone_view(&own)], body, || {});
        drop((chain, own, connections, views));
        self.end_servers();
        chains
    }
}

/// How a phase goes.
#[derive(Clone, Copy, Debug)]
struct How {
    volatile: bool,
    /// Operations between looks at the whole trees.
    every: u64,
    /// Servers are killed while they are used.
    disturb: bool,
    /// And at the end, with their keepers.
    kill: bool,
}

/// `kill -9` of the server of a view, and the wait for its successor.
fn replace_server(key: &str) {
    let server = server_of(key).unwrap();
    kill(server, Signal::SIGKILL);
    until("a successor", 10, || server_of(key).is_some_and(|successor| successor != server));
}

fn last(told: &[String]) -> String {
    told[told.len().saturating_sub(TOLD)..].join("\n")
}

fn assert_same(trees: &[Tree; 6], when: &str, told: &[String]) {
    for (ours, oracle) in PAIRS {
        if let Some(text) = difference(&trees[ours], &trees[oracle], true) {
            panic!("{when}\n{text}\n{}", last(told));
        }
    }
}

fn chain_of(store: &Store, layers: &[DiffId]) -> PathBuf {
    let chain = merge_chain(store, layers).unwrap();
    store.chains().dir().path().join(store.chains().path_of(&chain.0))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn answer_as_the_kernels_do(outer: &Outer) {
    let seed = number("SUBLET_STRESS_SEED").unwrap_or(SEED);
    let ops = number("SUBLET_STRESS_OPS").unwrap_or(OPS);
    let many = usize::from(ops >= MANY);
    println!("  SUBLET_STRESS_SEED={seed} SUBLET_STRESS_OPS={ops}");
    let work = outer.scratch.path().join("stress");
    std::fs::create_dir(&work).unwrap();
    if let Some((uid, gid)) = Outer::container_root() {
        std::os::unix::fs::chown(&work, Some(uid), Some(gid)).unwrap();
    }
    let store = Store::open(&outer.scratch.path().join("stress-store"), true).unwrap();
    inside_with(&outer.user_namespace, [], |[]| {
        shell(outer, MAKE, &work);
        let set = |path: &str, name, value: &[u8]| {
            xattr::set(File::open(work.join("T").join(path)).unwrap(), name, value, Existing::Any).unwrap();
        };
        set("a/c", c"user.a", b"of the image");
        set("a/c", c"security.capability", &CAPABILITY);
        set(
            "b/a",
            c"system.posix_acl_default",
            &acl(0, &[(1, 7, NONE), (2, 6, 0), (4, 5, NONE), (16, 6, NONE), (32, 4, NONE)]),
        );
        set(
            "d/b",
            c"system.posix_acl_access",
            &acl(0, &[(1, 6, NONE), (4, 4, NONE), (8, 6, 0), (16, 6, NONE), (32, 0, NONE)]),
        );
        shell(outer, ARCHIVE, &work);
    });
    let base = std::io::BufReader::new(File::open(work.join("base.tar")).unwrap());
    let base = apply(base, None, &store, Durability::Later, &Limits::default()).unwrap().diff_id;
    let (mut layers, mut random, mut left) = (vec![base], Random(seed), ops);
    for round in 0.. {
        let snaps = outer.scratch.path().join("stress-snaps");
        let (key, maps) = (format!("stress{}-{round}", std::process::id()), (&outer.identity(), &outer.identity()));
        let own = snapshot::own::prepare(&snaps, &format!("{key}-own"), maps, false).unwrap().into();
        let chain = chain_of(&store, &layers);
        let round = Round { outer, store: &store, work: &work, snaps, key, chain, own };
        let connection = round.chain_view(&round.key, &round.chain);
        let view = clone_view(&connection);
        inside_with(&outer.user_namespace, [], |[]| {
            let script = "rm -rf plain lower kernel-*; mkdir -p at plain lower kernel-upper kernel-work; chmod 755 .";
            shell(outer, script, &work);
            let from = mounted_at(&view, &work.join("at"));
            for to in ["plain", "lower"] {
                let to = work.join(to);
                shell(outer, &format!("cp -a --sparse=never . {0}; chmod 755 {0}", to.display()), &from);
            }
        });
        drop((view, connection));
        round.prepare();
        for _ in 0..PHASES_OF_ROUND {
            let count = left.min(OPS_OF_PHASE[many]);
            left -= count;
            let mut coin = || random.below(2) == 0;
            let how = How { volatile: coin(), every: EVERY[many], disturb: coin() && can_resume(), kill: coin() };
            round.phase(random.next(), count, how);
        }
        let chains = round.commit(&layers);
        layers = if layers.len() < LAYERS_MAX {
            chains[random.below(chains.len() as u64) as usize].clone()
        } else {
            vec![base]
        };
        round.reclaim();
        std::fs::remove_dir_all(work.join(WRITTEN)).unwrap();
        snapshot::remove(&round.snaps, &round.own_key(), None).unwrap();
        for driver in NATIVE {
            let key = format!("{}-{}", round.key, driver.as_str());
            snapshot::remove(&round.snaps, &key, Some(outer.user_namespace.as_fd())).unwrap();
        }
        if left == 0 {
            break;
        }
    }
}
