//! Requests of the kernel, taken apart, and their answers.

use nix::errno::Errno;

use crate::abi::{self, DIRENT, ENTRY, Fields, IN_HEADER, UNIQUE_RESEND, Writer, fattr, init, opcode};
use crate::filesystem::{DirSink, EntrySink, Filesystem, Result};
use crate::op::{
    Attr, Caller, CopyRange, Entry, Fallocate, MakeDir, MakeNode, Name, NodeId, Rename, SetAttr, SetTime, SetXattr,
    Time, Whence, Write,
};

/// The longest read or write that is served in one piece; the kernel asks for at most `max_pages` (256) pages.
pub(crate) const IO_MAX: usize = 1 << 20;
/// Longest value of an extended attribute (`XATTR_SIZE_MAX`) and longest list of names (`XATTR_LIST_MAX`).
const XATTR_MAX: usize = 1 << 16;
/// The most that a reply to `COPY_FILE_RANGE` can count, in whole blocks.
const COPY_MAX: u64 = 1 << 31;
/// `PATH_MAX`, which bounds a link target.
const LINK_MAX: usize = 4096;

/// What a thread needs to answer: one reply of any length, and a list of names, whose length is not known before.
#[derive(Debug)]
pub struct Buffers {
    reply: Vec<u8>,
    names: Vec<u8>,
}

impl Default for Buffers {
    fn default() -> Self {
        // Of the system, which gives memory where it is written to.
        Buffers { reply: vec![0; IO_MAX], names: Vec::with_capacity(XATTR_MAX) }
    }
}

/// The flags that both sides have agreed on at `INIT`. They hold as long as the connection, whoever serves it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed(pub u64);

impl Agreed {
    /// Whether a successor can have the requests that were read and not answered.
    pub fn can_resume(self) -> bool {
        self.has(init::HAS_RESEND)
    }

    fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
}

/// `fuse_in_header` and what follows it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    opcode: u32,
    /// As the kernel sent it: the answer must name it so.
    pub(crate) unique: u64,
    node: NodeId,
    caller: Caller,
    body: Result<Fields<'a>>,
}

impl<'a> Request<'a> {
    /// Takes the header off. `None` when there is none, and so nobody to answer.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        let mut header = || -> Result<_> {
            let (length, opcode, unique, node) = (fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?);
            let (uid, gid, pid) = (fields.u32()?, fields.u32()?, fields.u32()?);
            // Extensions stand at the end, counted in words of eight bytes. None is asked for.
            let extensions = usize::from(fields.u16()?) * 8;
            fields.skip(2)?;
            let resent = unique & UNIQUE_RESEND != 0;
            let caller = Caller { unique: unique & !UNIQUE_RESEND, resent, uid, gid, pid };
            Ok((
                length as usize,
                extensions,
                Request { opcode, unique, node: NodeId(node), caller, body: Err(Errno::EIO) },
            ))
        };
        let (length, extensions, request) = header().ok()?;
        let body = bytes.get(IN_HEADER..bytes.len().saturating_sub(extensions)).filter(|_| length == bytes.len());
        Some(Request { body: body.map(Fields).ok_or(Errno::EIO), ..request })
    }

    /// Whether this is the first request of a connection.
    pub(crate) fn init(&self) -> Option<Fields<'a>> {
        self.body.ok().filter(|_| self.opcode == opcode::INIT)
    }

    /// Has `fs` answer. `None`: the kernel expects nothing.
    pub fn answer<'b, F: Filesystem>(
        &self,
        fs: &'b F,
        agreed: Agreed,
        buffers: &'b mut Buffers,
    ) -> Option<Result<&'b [u8]>> {
        match self.opcode {
            opcode::FORGET | opcode::BATCH_FORGET => {
                // What cannot be read forgets nothing.
                let _malformed = self.body.and_then(|body| self.forget(fs, body));
                None
            }
            _ => Some(self.body.and_then(|body| self.reply(fs, agreed, body, buffers))),
        }
    }

    fn forget(&self, fs: &impl Filesystem, mut body: Fields<'_>) -> Result<()> {
        if self.opcode == opcode::FORGET {
            fs.forget(self.node, body.u64()?);
            return Ok(());
        }
        let count = body.u32()?;
        body.skip(4)?;
        for _ in 0..count {
            let (node, lookups) = (NodeId(body.u64()?), body.u64()?);
            fs.forget(node, lookups);
        }
        Ok(())
    }

    fn reply<'b, F: Filesystem>(
        &self,
        fs: &'b F,
        agreed: Agreed,
        mut body: Fields<'_>,
        buffers: &'b mut Buffers,
    ) -> Result<&'b [u8]> {
        let (node, caller) = (self.node, &self.caller);
        let Buffers { reply, names } = buffers;
        let reply = &mut reply[..];
        match self.opcode {
            opcode::LOOKUP => fs.lookup(caller, node, body.name()?).map(|it| entry(reply, &it)),
            opcode::GETATTR => fs.getattr(caller, node).map(|(attr, ttl)| attr_out(reply, &attr, ttl)),
            opcode::SETATTR => {
                let change = set_attr(&mut body)?;
                fs.setattr(caller, node, &change).map(|(attr, ttl)| attr_out(reply, &attr, ttl))
            }
            opcode::READLINK => fs.readlink(caller, node, &mut reply[..LINK_MAX]),
            opcode::SYMLINK => {
                let (name, target) = (body.name()?, body.string()?);
                fs.symlink(caller, node, name, target).map(|it| entry(reply, &it))
            }
            opcode::MKNOD => {
                let (mode, rdev, umask) = (body.u32()?, body.u32()?, body.u32()?);
                body.skip(4)?;
                fs.mknod(caller, node, body.name()?, &MakeNode { mode, umask, rdev }).map(|it| entry(reply, &it))
            }
            opcode::TMPFILE => {
                body.skip(4)?;
                let (mode, umask) = (body.u32()?, body.u32()?);
                let made = fs.tmpfile(caller, node, &MakeNode { mode, umask, rdev: 0 });
                // Nothing was opened: a number and flags of nought.
                made.map(|it| written(reply, |out| out.entry(&it).zeroes(16)))
            }
            opcode::MKDIR => {
                let (mode, umask) = (body.u32()?, body.u32()?);
                fs.mkdir(caller, node, body.name()?, &MakeDir { mode, umask }).map(|it| entry(reply, &it))
            }
            opcode::UNLINK => fs.unlink(caller, node, body.name()?).map(empty),
            opcode::RMDIR => fs.rmdir(caller, node, body.name()?).map(empty),
            opcode::RENAME | opcode::RENAME2 => fs.rename(caller, &self.rename(&mut body)?).map(empty),
            opcode::LINK => {
                let old = NodeId(body.u64()?);
                fs.link(caller, old, node, body.name()?).map(|it| entry(reply, &it))
            }
            opcode::READ => {
                let (offset, size) = read_in(&mut body)?;
                fs.read(caller, node, offset, &mut reply[..size])
            }
            opcode::WRITE => {
                let write = write_in(&mut body, node)?;
                fs.write(caller, &write).map(|count| count_out(reply, count))
            }
            opcode::STATFS => fs.statfs(caller, node).map(|stat| written(reply, |out| out.statfs(&stat))),
            opcode::FSYNC | opcode::FSYNCDIR => {
                body.skip(8)?;
                let data_only = body.u32()? & abi::FSYNC_FDATASYNC != 0;
                let synced = if self.opcode == opcode::FSYNC {
                    fs.fsync(caller, node, data_only)
                } else {
                    fs.fsyncdir(caller, node, data_only)
                };
                synced.map(empty)
            }
            opcode::SETXATTR => {
                let xattr = set_xattr(&mut body, agreed)?;
                fs.setxattr(caller, node, &xattr).map(empty)
            }
            opcode::GETXATTR => {
                let size = body.u32()? as usize;
                body.skip(4)?;
                let value = fs.getxattr(caller, node, body.string()?, &mut reply[..XATTR_MAX])?;
                // The length goes where the names would stand, since the value stands in the reply.
                sized(value, size, names)
            }
            opcode::LISTXATTR => {
                let size = body.u32()? as usize;
                names.clear();
                fs.listxattr(caller, node, names)?;
                if size == 0 { Ok(count_out(reply, names.len() as u32)) } else { fitting(names, size) }
            }
            opcode::REMOVEXATTR => fs.removexattr(caller, node, body.string()?).map(empty),
            opcode::READDIR => {
                let (cookie, size) = read_in(&mut body)?;
                let mut list = List(Writer::new(&mut reply[..size]));
                fs.readdir(caller, node, cookie, &mut list).map(|()| list.0.done())
            }
            opcode::READDIRPLUS => {
                let (cookie, size) = read_in(&mut body)?;
                let mut list = List(Writer::new(&mut reply[..size]));
                fs.readdirplus(caller, node, cookie, &mut list).map(|()| list.0.done())
            }
            opcode::FALLOCATE => {
                body.skip(8)?;
                let (offset, length, mode) = (body.u64()?, body.u64()?, body.u32()?.cast_signed());
                fs.fallocate(caller, &Fallocate { node, offset, length, mode }).map(empty)
            }
            opcode::LSEEK => {
                body.skip(8)?;
                let (offset, whence) = (body.u64()?, whence(body.u32()?)?);
                let found = fs.lseek(caller, node, offset, whence)?;
                Ok(written(reply, |out| out.u64(found)))
            }
            opcode::COPY_FILE_RANGE => {
                let mut copy = copy_range(&mut body, node)?;
                copy.length = copy.length.min(COPY_MAX);
                fs.copy_file_range(caller, &copy).map(|count| count_out(reply, count as u32))
            }
            opcode::COPY_FILE_RANGE_64 => {
                let copy = copy_range(&mut body, node)?;
                fs.copy_file_range(caller, &copy).map(|count| written(reply, |out| out.u64(count)))
            }
            // Before Linux 5.1 there is no doing without, and a number and flags of nought are the answer.
            opcode::OPENDIR if !agreed.has(init::NO_OPENDIR_SUPPORT) => Ok(written(reply, |out| out.zeroes(16))),
            // Never ENOSYS: overlayfs asks for file flags at copy-up and gives up on anything but ENOTTY.
            opcode::IOCTL => Err(Errno::ENOTTY),
            // Nothing was opened. The second is the last word of a mount that is gone.
            opcode::RELEASE | opcode::RELEASEDIR | opcode::DESTROY => Ok(&[]),
            // For good, of most: the kernel does without from then on. What is opened by it is not told to us; `ACCESS` is
            // checked by the kernel itself; locks are its own; interrupts are for servers that wait long.
            _ => Err(Errno::ENOSYS),
        }
    }

    fn rename<'b>(&self, body: &mut Fields<'b>) -> Result<Rename<'b>> {
        let new_parent = NodeId(body.u64()?);
        let mut flags = 0;
        if self.opcode == opcode::RENAME2 {
            flags = body.u32()?;
            body.skip(4)?;
        }
        if flags & !7 != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(Rename {
            parent: self.node,
            name: body.name()?,
            new_parent,
            new_name: body.name()?,
            no_replace: flags & 1 != 0,
            exchange: flags & 2 != 0,
            whiteout: flags & 4 != 0,
        })
    }
}

/// `fuse_setattr_in`.
fn set_attr(body: &mut Fields<'_>) -> Result<SetAttr> {
    let valid = body.u32()?;
    body.skip(4 + 8)?;
    let size = body.u64()?;
    body.skip(8)?;
    let seconds = [body.u64()?, body.u64()?, body.u64()?];
    let nanos = [body.u32()?, body.u32()?, body.u32()?];
    let [atime, mtime, ctime] =
        [0, 1, 2].map(|at: usize| Time { seconds: seconds[at].cast_signed(), nanos: nanos[at] });
    let mode = body.u32()?;
    body.skip(4)?;
    let (uid, gid) = (body.u32()?, body.u32()?);
    let meant = |bit: u32| valid & bit != 0;
    let set = |given, now, time| meant(given).then(|| if meant(now) { SetTime::Now } else { SetTime::At(time) });
    Ok(SetAttr {
        mode: meant(fattr::MODE).then_some(mode),
        uid: meant(fattr::UID).then_some(uid),
        gid: meant(fattr::GID).then_some(gid),
        size: meant(fattr::SIZE).then_some(size),
        kill_suid_gid: meant(fattr::KILL_SUIDGID),
        atime: set(fattr::ATIME, fattr::ATIME_NOW, atime),
        mtime: set(fattr::MTIME, fattr::MTIME_NOW, mtime),
        ctime: meant(fattr::CTIME).then_some(ctime),
    })
}

/// `fuse_read_in`: where to read, or behind which cookie, and how many bytes there is room for.
fn read_in(body: &mut Fields<'_>) -> Result<(u64, usize)> {
    body.skip(8)?;
    Ok((body.u64()?, (body.u32()? as usize).min(IO_MAX)))
}

/// `fuse_write_in` and the data.
fn write_in<'a>(body: &mut Fields<'a>, node: NodeId) -> Result<Write<'a>> {
    body.skip(8)?;
    let (offset, size, flags) = (body.u64()?, body.u32()? as usize, body.u32()?);
    body.skip(16)?;
    Ok(Write {
        node,
        offset,
        data: body.bytes(size)?,
        kill_suid_gid: flags & abi::WRITE_KILL_SUIDGID != 0,
        from_cache: flags & abi::WRITE_CACHE != 0,
    })
}

/// `fuse_setxattr_in`, in the form that was agreed on, name and value.
fn set_xattr<'a>(body: &mut Fields<'a>, agreed: Agreed) -> Result<SetXattr<'a>> {
    let (size, flags) = (body.u32()? as usize, body.u32()?);
    let mut more = 0;
    if agreed.has(init::SETXATTR_EXT) {
        more = body.u32()?;
        body.skip(4)?;
    }
    let (name, value) = (body.string()?, body.bytes(size)?);
    let (create, replace) = (flags & 1 != 0, flags & 2 != 0);
    Ok(SetXattr { name, value, create, replace, kill_sgid: more & abi::SETXATTR_ACL_KILL_SGID != 0 })
}

/// `fuse_copy_file_range_in`.
fn copy_range(body: &mut Fields<'_>, source: NodeId) -> Result<CopyRange> {
    body.skip(8)?;
    let (source_offset, target) = (body.u64()?, NodeId(body.u64()?));
    body.skip(8)?;
    Ok(CopyRange { source, source_offset, target, target_offset: body.u64()?, length: body.u64()? })
}

fn whence(number: u32) -> Result<Whence> {
    match number {
        3 => Ok(Whence::Data),
        4 => Ok(Whence::Hole),
        _ => Err(Errno::EINVAL),
    }
}

fn empty((): ()) -> &'static [u8] {
    &[]
}

fn written<'b>(reply: &'b mut [u8], fill: impl for<'w> FnOnce(&'w mut Writer<'b>) -> &'w mut Writer<'b>) -> &'b [u8] {
    let mut out = Writer::new(reply);
    fill(&mut out);
    out.done()
}

fn entry<'b>(reply: &'b mut [u8], entry: &Entry) -> &'b [u8] {
    written(reply, |out| out.entry(entry))
}

fn attr_out<'b>(reply: &'b mut [u8], attr: &Attr, ttl: std::time::Duration) -> &'b [u8] {
    written(reply, |out| out.attr_out(attr, ttl))
}

/// `fuse_write_out`, `fuse_getxattr_out`.
fn count_out(reply: &mut [u8], count: u32) -> &[u8] {
    written(reply, |out| out.u32(count).u32(0))
}

/// The size protocol of `getxattr(2)`: 0 asks for the length.
fn sized<'b>(value: &'b [u8], size: usize, length: &'b mut Vec<u8>) -> Result<&'b [u8]> {
    if size != 0 {
        return fitting(value, size);
    }
    length.clear();
    length.extend_from_slice(&(value.len() as u32).to_ne_bytes());
    length.extend_from_slice(&[0; 4]);
    Ok(length)
}

/// Too small a buffer is `ERANGE`.
fn fitting(value: &[u8], size: usize) -> Result<&[u8]> {
    if value.len() > size { Err(Errno::ERANGE) } else { Ok(value) }
}

/// The names of a directory in a reply.
struct List<'b>(Writer<'b>);

impl List<'_> {
    fn fits(&self, before: usize, name: &[u8]) -> bool {
        self.0.room() >= before + name.len().next_multiple_of(8)
    }
}

impl DirSink for List<'_> {
    fn add(&mut self, name: Name<'_>, node: NodeId, mode: u32) -> bool {
        let fits = self.fits(DIRENT, name.name);
        if fits {
            self.0.dirent(node.0, name.next_cookie, mode, name.name);
        }
        fits
    }
}

impl EntrySink for List<'_> {
    fn add(&mut self, name: Name<'_>, entry: &Entry) -> bool {
        let fits = self.fits(ENTRY + DIRENT, name.name);
        if fits {
            self.0.entry(entry).dirent(entry.attr.node.0, name.next_cookie, entry.attr.mode, name.name);
        }
        fits
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed test is what an unwrap is for")]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use super::*;
    use crate::op::{FOREVER, StatFs};

    /// Says yes to everything and remembers the last change of attributes.
    #[derive(Default)]
    struct Fake(Mutex<Option<SetAttr>>);

    fn shown(node: NodeId) -> Attr {
        let early = Time { seconds: -2, nanos: 800_000_000 };
        Attr { node, atime: early, mtime: early, ctime: early, size: 7, mode: 0o100_644, ..Entry::absent(FOREVER).attr }
    }

    impl Filesystem for Fake {
        fn lookup(&self, _caller: &Caller, _parent: NodeId, name: &[u8]) -> Result<Entry> {
            Ok(Entry::new(shown(NodeId(name.len() as u64)), FOREVER))
        }

        fn getattr(&self, _caller: &Caller, node: NodeId) -> Result<(Attr, Duration)> {
            Ok((shown(node), FOREVER))
        }

        fn setattr(&self, _caller: &Caller, node: NodeId, change: &SetAttr) -> Result<(Attr, Duration)> {
            *self.0.lock().unwrap() = Some(*change);
            Ok((shown(node), FOREVER))
        }

        fn readlink<'a>(&'a self, _caller: &Caller, _node: NodeId, _buffer: &'a mut [u8]) -> Result<&'a [u8]> {
            Ok(b"target")
        }

        fn read<'a>(&'a self, _caller: &Caller, _node: NodeId, _offset: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
            buffer.fill(7);
            Ok(buffer)
        }

        fn statfs(&self, _caller: &Caller, _node: NodeId) -> Result<StatFs> {
            Ok(StatFs {
                blocks: 1,
                blocks_free: 2,
                blocks_available: 3,
                files: 4,
                files_free: 5,
                block_size: 6,
                name_max: 7,
                fragment_size: 8,
            })
        }

        fn tmpfile(&self, _caller: &Caller, _parent: NodeId, node: &MakeNode) -> Result<Entry> {
            let attr = Attr { mode: node.mode, uid: node.umask, ..shown(NodeId(5)) };
            Ok(Entry::new(attr, FOREVER))
        }

        fn write(&self, _caller: &Caller, write: &Write<'_>) -> Result<u32> {
            let right = write.offset == 8 && write.data == b"data" && write.kill_suid_gid && !write.from_cache;
            if right { Ok(4) } else { Err(Errno::EINVAL) }
        }

        fn setxattr(&self, _caller: &Caller, _node: NodeId, xattr: &SetXattr<'_>) -> Result<()> {
            if (xattr.name, xattr.value) == (b"user.x", b"value") { Ok(()) } else { Err(Errno::EINVAL) }
        }

        fn copy_file_range(&self, _caller: &Caller, copy: &CopyRange) -> Result<u64> {
            let right =
                (copy.source, copy.source_offset, copy.target, copy.target_offset) == (NodeId(3), 8, NodeId(16), 32);
            if right { Ok(copy.length) } else { Err(Errno::EINVAL) }
        }

        fn getxattr<'a>(&'a self, _: &Caller, _: NodeId, _: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
            Ok(&buffer[..5])
        }

        fn readdir(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
            let name = Name { name: b"name", next_cookie: cookie };
            while sink.add(name, dir, 0o040_000) {}
            Ok(())
        }

        fn readdirplus(&self, _caller: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()> {
            let (name, entry) = (Name { name: b"name", next_cookie: cookie }, Entry::new(shown(dir), FOREVER));
            while sink.add(name, &entry) {}
            Ok(())
        }
    }

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IN_HEADER + body.len()];
        let length = bytes.len() as u32;
        Writer::new(&mut bytes).u32(length).u32(opcode).u64(9 | UNIQUE_RESEND).u64(3).zeroes(16).bytes(body);
        bytes
    }

    fn answer(opcode: u32, body: &[u8]) -> Option<Result<Vec<u8>>> {
        answer_agreed(Agreed::default(), opcode, body)
    }

    fn answer_agreed(agreed: Agreed, opcode: u32, body: &[u8]) -> Option<Result<Vec<u8>>> {
        let (fs, mut buffers) = (Fake::default(), Buffers::default());
        let bytes = request(opcode, body);
        Request::parse(&bytes).unwrap().answer(&fs, agreed, &mut buffers).map(|answer| answer.map(<[u8]>::to_vec))
    }

    #[test]
    fn directories_are_opened_where_the_kernel_insists() {
        let without = Agreed(init::NO_OPENDIR_SUPPORT);
        assert_eq!(answer(opcode::OPENDIR, &[0; 8]), Some(Ok(vec![0; 16])));
        assert_eq!(answer_agreed(without, opcode::OPENDIR, &[0; 8]), Some(Err(Errno::ENOSYS)));
    }

    #[test]
    fn times_before_the_epoch_stay_what_they_are() {
        let mut body = [0; 88];
        let mut out = Writer::new(&mut body);
        out.u32(fattr::MTIME).zeroes(36).u64(-2_i64 as u64).zeroes(12).u32(800_000_000);
        let bytes = request(opcode::SETATTR, &body);
        let (fs, mut buffers) = (Fake::default(), Buffers::default());
        let shown = Request::parse(&bytes).unwrap().answer(&fs, Agreed::default(), &mut buffers).unwrap().unwrap();
        let early = Time { seconds: -2, nanos: 800_000_000 };
        let change = SetAttr { mtime: Some(SetTime::At(early)), ..SetAttr::default() };
        assert_eq!(*fs.0.lock().unwrap(), Some(change));
        // `attr.mtime` and `attr.mtimensec` of `fuse_attr_out`.
        assert_eq!(shown[48..56], (-2_i64).to_ne_bytes());
        assert_eq!(shown[68..72], 800_000_000_u32.to_ne_bytes());
        assert_eq!(shown.len(), 104);
    }

    #[test]
    fn the_number_of_a_request_that_comes_again_is_the_same() {
        let bytes = request(opcode::GETATTR, &[]);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!((request.unique, request.caller.unique, request.caller.resent), (9 | UNIQUE_RESEND, 9, true));
    }

    /// A structure of `length` bytes, with small numbers at some places; little endian, as all that we are built for.
    fn layout(length: usize, numbers: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (at, number) in numbers {
            bytes[*at] = *number as u8;
        }
        bytes
    }

    /// Opcode, what was agreed on, the structure, what follows it, and the answer.
    type Row<'a> = (u32, Agreed, &'a [u8], &'a [u8], Vec<u8>);

    /// Lengths and places as in `linux/fuse.h`, which nothing here is derived from.
    #[test]
    fn structures_are_the_kernels() {
        let write = layout(40, &[(8, 8), (16, 4), (20, u64::from(abi::WRITE_KILL_SUIDGID))]);
        let copy = layout(56, &[(8, 8), (16, 16), (32, 32), (40, 7)]);
        let short_xattr = layout(8, &[(0, 5)]);
        let long_xattr = layout(16, &[(0, 5)]);
        let long = Agreed(init::SETXATTR_EXT);
        let none = Agreed::default();
        let statfs = [(0, 1), (8, 2), (16, 3), (24, 4), (32, 5), (40, 6), (44, 7), (48, 8)];
        let table: [Row<'_>; 7] = [
            (opcode::WRITE, none, &write, b"data", layout(8, &[(0, 4)])),
            (opcode::COPY_FILE_RANGE, none, &copy, b"", layout(8, &[(0, 7)])),
            (opcode::COPY_FILE_RANGE_64, none, &copy, b"", layout(8, &[(0, 7)])),
            (opcode::SETXATTR, none, &short_xattr, b"user.x\0value", Vec::new()),
            (opcode::SETXATTR, long, &long_xattr, b"user.x\0value", Vec::new()),
            (opcode::STATFS, none, b"", b"", layout(80, &statfs)),
            (opcode::OPENDIR, none, &[0; 8], b"", layout(16, &[])),
        ];
        for (opcode, agreed, fixed, rest, expected) in table {
            assert_eq!(answer_agreed(agreed, opcode, &[fixed, rest].concat()), Some(Ok(expected)), "{opcode}");
        }
        // `mode` and `umask` behind the flags of `fuse_create_in`; in the answer, `nodeid`, `attr.mode` and `attr.uid`.
        let shown = answer(opcode::TMPFILE, &layout(16, &[(4, 6), (8, 2)])).unwrap().unwrap();
        assert_eq!(shown.len(), 144);
        assert_eq!((shown[0], shown[40], shown[40 + 60], shown[40 + 68]), (5, 5, 6, 2));
    }

    #[test]
    fn a_directory_fills_what_there_is_room_for() {
        let body = |size: u32| [&[0; 16][..], &size.to_ne_bytes(), &[0; 20]].concat();
        assert_eq!(answer(opcode::READDIR, &body(100)).unwrap().unwrap().len(), 3 * 32);
        assert_eq!(answer(opcode::READDIRPLUS, &body(1000)).unwrap().unwrap().len(), 6 * 160);
        assert_eq!(answer(opcode::READDIRPLUS, &body(100)).unwrap().unwrap().len(), 0);
        assert_eq!(answer(opcode::READ, &body(u32::MAX)).unwrap().unwrap().len(), IO_MAX);
    }

    #[test]
    fn the_size_protocol_of_attributes() {
        let body = |size: u32| [&size.to_ne_bytes()[..], &[0; 4], b"user.x\0"].concat();
        assert_eq!(answer(opcode::GETXATTR, &body(0)).unwrap().unwrap(), [5_u32.to_ne_bytes(), [0; 4]].concat());
        assert_eq!(answer(opcode::GETXATTR, &body(4)).unwrap(), Err(Errno::ERANGE));
        assert_eq!(answer(opcode::GETXATTR, &body(5)).unwrap().unwrap().len(), 5);
    }

    #[test]
    fn what_is_cut_short_is_an_error_and_never_a_panic() {
        for opcode in 0..64 {
            for length in 0..120 {
                for fill in [0, b'a', 0xff] {
                    let _any = answer(opcode, &vec![fill; length]);
                }
            }
        }
        let body = |size: u32, data: &[u8]| [&[0; 16][..], &size.to_ne_bytes(), &[0; 20], data].concat();
        assert_eq!(answer(opcode::WRITE, &body(4, b"abc")), Some(Err(Errno::EIO)));
        assert_eq!(answer(opcode::LOOKUP, b"a/b\0"), Some(Err(Errno::EIO)));
        assert_eq!(answer(opcode::LOOKUP, b"no end"), Some(Err(Errno::EIO)));
        assert_eq!(answer(opcode::BATCH_FORGET, &u32::MAX.to_ne_bytes()), None);
        let mut bytes = request(opcode::GETATTR, &[0; 16]);
        bytes.pop();
        let (fs, mut buffers) = (Fake::default(), Buffers::default());
        assert_eq!(Request::parse(&bytes).unwrap().answer(&fs, Agreed::default(), &mut buffers), Some(Err(Errno::EIO)));
        assert!(Request::parse(&bytes[..IN_HEADER - 1]).is_none());
    }
}
