//! Between `fuser` and [`Filesystem`]: values to values, one thread's buffer for all replies, panics to `EIO`.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileHandle, FileType, Generation, INodeNo, InitFlags, OpenFlags, Request};
use nix::errno::Errno;

use crate::filesystem::{DirSink, EntrySink, Filesystem};
use crate::op::{
    Attr, Caller, CopyRange, Entry, Fallocate, MakeDir, MakeNode, Name, NodeId, Rename, SetAttr, SetTime, SetXattr,
    Time, Whence, Write,
};
use crate::wire::Features;

/// The longest read that is served in one piece; the kernel asks for at most `max_pages` (256) pages.
const READ_MAX: usize = 1 << 20;
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`) and longest list of names (`XATTR_LIST_MAX`).
const XATTR_MAX: usize = 1 << 16;
/// `PATH_MAX`, which bounds a link target.
const LINK_MAX: usize = 4096;

thread_local! {
    /// One buffer a reading thread: every reply that is not served from mapped memory is built in it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The same for lists of attribute names, whose length is not known before.
    static NAMES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(crate) struct Adapter<F> {
    fs: Arc<F>,
    features: Features,
    panics: Arc<AtomicU64>,
}

impl<F: Filesystem> Adapter<F> {
    pub(crate) fn new(fs: Arc<F>, features: Features, panics: Arc<AtomicU64>) -> Self {
        Adapter { fs, features, panics }
    }

    /// Runs one handler; a panic is counted and becomes `EIO` (the default panic hook has printed it).
    fn guard<T>(&self, handler: impl FnOnce(&F) -> Result<T, Errno>) -> Result<T, fuser::Errno> {
        match catch_unwind(AssertUnwindSafe(|| handler(&self.fs))) {
            Ok(answer) => answer.map_err(wire_errno),
            Err(_panic) => {
                self.panics.fetch_add(1, Ordering::Relaxed);
                Err(fuser::Errno::EIO)
            }
        }
    }

    /// As [`Self::guard`], with this thread's buffer cut to `size`; `send` runs while the buffer is borrowed.
    fn guard_bytes(
        &self,
        size: usize,
        handler: impl for<'a> FnOnce(&'a F, &'a mut [u8]) -> Result<&'a [u8], Errno>,
        send: impl FnOnce(Result<&[u8], fuser::Errno>),
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let part = &mut buffer[..size];
            let answer = catch_unwind(AssertUnwindSafe(|| handler(&self.fs, part)));
            match answer {
                Ok(answer) => send(answer.map_err(wire_errno)),
                Err(_panic) => {
                    self.panics.fetch_add(1, Ordering::Relaxed);
                    send(Err(fuser::Errno::EIO));
                }
            }
        });
    }
}

fn wire_errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno as i32)
}

fn caller(request: &Request) -> Caller {
    Caller { unique: request.unique().0, uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn node(ino: INodeNo) -> NodeId {
    NodeId(ino.0)
}

fn time_to_system(time: Time) -> SystemTime {
    let nanos = Duration::new(0, time.nanos.min(999_999_999));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds >= 0 { UNIX_EPOCH.checked_add(seconds) } else { UNIX_EPOCH.checked_sub(seconds) };
    whole.and_then(|at| at.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// The inverse of what `fuser` 0.18 makes of the kernel's pair: before the epoch it subtracts the nanoseconds that the
/// kernel meant to be added, so the two parts are simply taken apart again.
fn time_from_system(at: SystemTime) -> Time {
    match at.duration_since(UNIX_EPOCH) {
        Ok(after) => Time { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            Time { seconds, nanos: before.subsec_nanos() }
        }
    }
}

fn set_time(time: fuser::TimeOrNow) -> SetTime {
    match time {
        fuser::TimeOrNow::Now => SetTime::Now,
        fuser::TimeOrNow::SpecificTime(at) => SetTime::At(time_from_system(at)),
    }
}

fn kind_of(mode: u32) -> FileType {
    match mode & 0o170_000 {
        0o010_000 => FileType::NamedPipe,
        0o020_000 => FileType::CharDevice,
        0o040_000 => FileType::Directory,
        0o060_000 => FileType::BlockDevice,
        0o120_000 => FileType::Symlink,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.node.0),
        size: attr.size,
        blocks: attr.blocks,
        atime: time_to_system(attr.atime),
        mtime: time_to_system(attr.mtime),
        ctime: time_to_system(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind_of(attr.mode),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: attr.block_size,
        flags: 0,
    }
}

fn reply_entry(answer: Result<Entry, fuser::Errno>, reply: fuser::ReplyEntry) {
    match answer {
        Ok(entry) => {
            let attr = file_attr(&entry.attr);
            reply.entry_with_ttls(&entry.attr_ttl, &entry.entry_ttl, &attr, Generation(entry.generation));
        }
        Err(errno) => reply.error(errno),
    }
}

fn reply_attr(answer: Result<(Attr, Duration), fuser::Errno>, reply: fuser::ReplyAttr) {
    match answer {
        Ok((attr, ttl)) => reply.attr(&ttl, &file_attr(&attr)),
        Err(errno) => reply.error(errno),
    }
}

fn reply_empty(answer: Result<(), fuser::Errno>, reply: fuser::ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn reply_data(answer: Result<&[u8], fuser::Errno>, reply: fuser::ReplyData) {
    match answer {
        Ok(data) => reply.data(data),
        Err(errno) => reply.error(errno),
    }
}

fn reply_count(answer: Result<u32, fuser::Errno>, reply: fuser::ReplyWrite) {
    match answer {
        Ok(count) => reply.written(count),
        Err(errno) => reply.error(errno),
    }
}

/// The size protocol of `getxattr(2)` and `listxattr(2)`: 0 asks for the length, too small a buffer is `ERANGE`.
fn reply_xattr(answer: Result<&[u8], fuser::Errno>, size: u32, reply: fuser::ReplyXattr) {
    match answer {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(fuser::Errno::ERANGE),
        Ok(value) => reply.data(value),
        Err(errno) => reply.error(errno),
    }
}

impl DirSink for fuser::ReplyDirectory {
    fn add(&mut self, name: Name<'_>, node: NodeId, mode: u32) -> bool {
        !fuser::ReplyDirectory::add(
            self,
            INodeNo(node.0),
            name.next_cookie,
            kind_of(mode),
            OsStr::from_bytes(name.name),
        )
    }
}

impl EntrySink for fuser::ReplyDirectoryPlus {
    fn add(&mut self, name: Name<'_>, entry: &Entry) -> bool {
        !fuser::ReplyDirectoryPlus::add(
            self,
            INodeNo(entry.attr.node.0),
            name.next_cookie,
            OsStr::from_bytes(name.name),
            &entry.entry_ttl,
            &file_attr(&entry.attr),
            Generation(entry.generation),
        )
    }
}

impl<F: Filesystem> fuser::Filesystem for Adapter<F> {
    fn init(&mut self, _req: &Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
        let f = &self.features;
        let wanted = [
            (true, InitFlags::FUSE_PARALLEL_DIROPS),
            (true, InitFlags::FUSE_DO_READDIRPLUS),
            (true, InitFlags::FUSE_NO_OPENDIR_SUPPORT),
            (true, InitFlags::FUSE_HANDLE_KILLPRIV_V2),
            (f.cache_symlinks, InitFlags::FUSE_CACHE_SYMLINKS),
            (f.auto_inval_data, InitFlags::FUSE_AUTO_INVAL_DATA),
            (f.writeback_cache, InitFlags::FUSE_WRITEBACK_CACHE),
            (f.posix_acl, InitFlags::FUSE_POSIX_ACL),
            (f.dont_mask, InitFlags::FUSE_DONT_MASK),
            (f.idmap, InitFlags::FUSE_ALLOW_IDMAP),
        ];
        for (_, flag) in wanted.iter().filter(|(asked, _)| *asked) {
            // A flag that this kernel lacks is not an error: every one has a slower equivalent.
            let _unsupported = config.add_capabilities(*flag);
        }
        // The greatest the kernel takes (256 pages); fuser's default of 16 MiB would be cut down to it anyway.
        let _previous = config.set_max_write(READ_MAX as u32);
        let _previous = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEntry) {
        reply_entry(self.guard(|fs| fs.lookup(&caller(req), node(parent), name.as_bytes())), reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let _counted = self.guard(|fs| {
            fs.forget(node(ino), nlookup);
            Ok(())
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: fuser::ReplyAttr) {
        reply_attr(self.guard(|fs| fs.getattr(&caller(req), node(ino))), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<fuser::TimeOrNow>,
        mtime: Option<fuser::TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: fuser::ReplyAttr,
    ) {
        let change = SetAttr {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(time_from_system),
        };
        reply_attr(self.guard(|fs| fs.setattr(&caller(req), node(ino), &change)), reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: fuser::ReplyData) {
        let caller = caller(req);
        self.guard_bytes(
            LINK_MAX,
            |fs, buffer| fs.readlink(&caller, node(ino), buffer),
            |answer| reply_data(answer, reply),
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: fuser::ReplyEntry,
    ) {
        let make = MakeNode { mode, umask, rdev };
        reply_entry(self.guard(|fs| fs.mknod(&caller(req), node(parent), name.as_bytes(), &make)), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: fuser::ReplyEntry) {
        let make = MakeDir { mode, umask };
        reply_entry(self.guard(|fs| fs.mkdir(&caller(req), node(parent), name.as_bytes(), &make)), reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        reply_empty(self.guard(|fs| fs.unlink(&caller(req), node(parent), name.as_bytes())), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        reply_empty(self.guard(|fs| fs.rmdir(&caller(req), node(parent), name.as_bytes())), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: fuser::ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        reply_entry(self.guard(|fs| fs.symlink(&caller(req), node(parent), name.as_bytes(), target)), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: fuser::ReplyEmpty,
    ) {
        let rename = Rename {
            parent: node(parent),
            name: name.as_bytes(),
            new_parent: node(newparent),
            new_name: newname.as_bytes(),
            no_replace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
            exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
            whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
        };
        reply_empty(self.guard(|fs| fs.rename(&caller(req), &rename)), reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: fuser::ReplyEntry) {
        let answer = self.guard(|fs| fs.link(&caller(req), node(ino), node(newparent), newname.as_bytes()));
        reply_entry(answer, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: fuser::ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: fuser::ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        reply: fuser::ReplyData,
    ) {
        let caller = caller(req);
        self.guard_bytes(
            (size as usize).min(READ_MAX),
            |fs, buffer| fs.read(&caller, node(ino), offset, buffer),
            |answer| reply_data(answer, reply),
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<fuser::LockOwner>,
        reply: fuser::ReplyWrite,
    ) {
        let write = Write {
            node: node(ino),
            offset,
            data,
            kill_suid_gid: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            from_cache: write_flags.contains(fuser::WriteFlags::FUSE_WRITE_CACHE),
        };
        reply_count(self.guard(|fs| fs.write(&caller(req), &write)), reply);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: fuser::LockOwner,
        reply: fuser::ReplyEmpty,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: fuser::ReplyEmpty) {
        reply_empty(self.guard(|fs| fs.fsync(&caller(req), node(ino), datasync)), reply);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: fuser::ReplyEmpty) {
        reply_empty(self.guard(|fs| fs.fsyncdir(&caller(req), node(ino), datasync)), reply);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: fuser::ReplyDirectory) {
        match self.guard(|fs| fs.readdir(&caller(req), node(ino), offset, &mut reply)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: fuser::ReplyDirectoryPlus,
    ) {
        match self.guard(|fs| fs.readdirplus(&caller(req), node(ino), offset, &mut reply)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: fuser::ReplyStatfs) {
        match self.guard(|fs| fs.statfs(&caller(req), node(ino))) {
            Ok(s) => reply.statfs(
                s.blocks,
                s.blocks_free,
                s.blocks_available,
                s.files,
                s.files_free,
                s.block_size,
                s.name_max,
                s.fragment_size,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: fuser::ReplyEmpty,
    ) {
        let xattr = SetXattr { name: name.as_bytes(), value, create: flags & 1 != 0, replace: flags & 2 != 0 };
        reply_empty(self.guard(|fs| fs.setxattr(&caller(req), node(ino), &xattr)), reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: fuser::ReplyXattr) {
        let caller = caller(req);
        self.guard_bytes(
            XATTR_MAX,
            |fs, buffer| fs.getxattr(&caller, node(ino), name.as_bytes(), buffer),
            |answer| reply_xattr(answer, size, reply),
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: fuser::ReplyXattr) {
        NAMES.with_borrow_mut(|names| {
            names.clear();
            let answer = self.guard(|fs| fs.listxattr(&caller(req), node(ino), names));
            reply_xattr(answer.map(|()| names.as_slice()), size, reply);
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: fuser::ReplyEmpty) {
        reply_empty(self.guard(|fs| fs.removexattr(&caller(req), node(ino), name.as_bytes())), reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: fuser::AccessFlags, reply: fuser::ReplyEmpty) {
        // The kernel checks itself (`default_permissions`); without that option it takes ENOSYS for "allowed".
        reply.error(fuser::Errno::ENOSYS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: fuser::ReplyCreate,
    ) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: fuser::IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: fuser::ReplyIoctl,
    ) {
        // Never ENOSYS: overlayfs asks for file flags at copy-up and gives up on anything but ENOTTY.
        reply.error(fuser::Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: fuser::ReplyEmpty,
    ) {
        let range = Fallocate { node: node(ino), offset, length, mode };
        reply_empty(self.guard(|fs| fs.fallocate(&caller(req), &range)), reply);
    }

    fn lseek(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: fuser::ReplyLseek) {
        let answer = self.guard(|fs| {
            let offset = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
            let whence = match whence {
                3 => Whence::Data,
                4 => Whence::Hole,
                _ => return Err(Errno::EINVAL),
            };
            let found = fs.lseek(&caller(req), node(ino), offset, whence)?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        match answer {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: fuser::CopyFileRangeFlags,
        reply: fuser::ReplyWrite,
    ) {
        let copy = CopyRange {
            source: node(ino_in),
            source_offset: offset_in,
            target: node(ino_out),
            target_offset: offset_out,
            length: len,
        };
        reply_count(self.guard(|fs| fs.copy_file_range(&caller(req), &copy)), reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        let early = Time { seconds: -2, nanos: 800_000_000 };
        let at = time_to_system(early);
        assert_eq!(UNIX_EPOCH.duration_since(at).map_err(|e| e.duration()), Ok(Duration::new(1, 200_000_000)));
        // What the wire hands in for the kernel's pair (-2 s, +0.8 s).
        let from_wire = UNIX_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time_from_system(from_wire), early);
        assert!(time_to_system(Time { seconds: i64::MIN, nanos: u32::MAX }).duration_since(UNIX_EPOCH).is_err());
    }
}
