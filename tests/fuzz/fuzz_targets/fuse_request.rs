//! A request on a FUSE connection, over a file system that answers everything: any bytes give an answer or none.
#![no_main]

use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use fuse::op::{
    CopyRange, FOREVER, Fallocate, MakeDir, MakeNode, Name, Rename, SetAttr, SetXattr, StatFs, Whence, Write,
};
use fuse::{Agreed, Attr, Buffers, Caller, DirSink, Entry, EntrySink, Filesystem, NodeId, Request};
use sys::Errno;

type Result<T> = std::result::Result<T, Errno>;

struct Yes;

fn entry(node: u64) -> Entry {
    let mut entry = Entry::absent(FOREVER);
    entry.attr.node = NodeId(node);
    entry
}

impl Filesystem for Yes {
    fn lookup(&self, _: &Caller, _: NodeId, name: &[u8]) -> Result<Entry> {
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
        Ok(entry(name.len() as u64))
    }
    fn getattr(&self, _: &Caller, node: NodeId) -> Result<(Attr, Duration)> {
        Ok((entry(node.0).attr, FOREVER))
    }
    fn setattr(&self, _: &Caller, node: NodeId, _: &SetAttr) -> Result<(Attr, Duration)> {
        Ok((entry(node.0).attr, FOREVER))
    }
    fn readlink<'a>(&'a self, _: &Caller, _: NodeId, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        Ok(buffer)
    }
    fn mknod(&self, _: &Caller, _: NodeId, _: &[u8], node: &MakeNode) -> Result<Entry> {
        Ok(entry(node.mode.into()))
    }
    fn tmpfile(&self, _: &Caller, _: NodeId, node: &MakeNode) -> Result<Entry> {
        Ok(entry(node.umask.into()))
    }
    fn mkdir(&self, _: &Caller, _: NodeId, _: &[u8], _: &MakeDir) -> Result<Entry> {
        Ok(entry(2))
    }
    fn unlink(&self, _: &Caller, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn symlink(&self, _: &Caller, _: NodeId, _: &[u8], _: &[u8]) -> Result<Entry> {
        Ok(entry(3))
    }
    fn rename(&self, _: &Caller, rename: &Rename<'_>) -> Result<()> {
        assert!(!rename.name.is_empty() && !rename.new_name.is_empty());
        Ok(())
    }
    fn link(&self, _: &Caller, node: NodeId, _: NodeId, _: &[u8]) -> Result<Entry> {
        Ok(entry(node.0))
    }
    fn read<'a>(&'a self, _: &Caller, _: NodeId, _: u64, buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        Ok(buffer)
    }
    fn write(&self, _: &Caller, write: &Write<'_>) -> Result<u32> {
        Ok(write.data.len() as u32)
    }
    fn statfs(&self, _: &Caller, _: NodeId) -> Result<StatFs> {
        Ok(StatFs {
            blocks: 1,
            blocks_free: 1,
            blocks_available: 1,
            files: 1,
            files_free: 1,
            block_size: 1,
            name_max: 255,
            fragment_size: 1,
        })
    }
    fn getxattr<'a>(&'a self, _: &Caller, _: NodeId, _: &[u8], buffer: &'a mut [u8]) -> Result<&'a [u8]> {
        Ok(buffer)
    }
    fn listxattr(&self, _: &Caller, _: NodeId, names: &mut Vec<u8>) -> Result<()> {
        names.extend_from_slice(b"user.a\0");
        Ok(())
    }
    fn setxattr(&self, _: &Caller, _: NodeId, _: &SetXattr<'_>) -> Result<()> {
        Ok(())
    }
    fn readdir(&self, _: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn DirSink) -> Result<()> {
        let name = [b'n'; 255];
        while sink.add(Name { name: &name[..1 + cookie as usize % 255], next_cookie: cookie }, dir, 0) {}
        Ok(())
    }
    fn readdirplus(&self, _: &Caller, dir: NodeId, cookie: u64, sink: &mut dyn EntrySink) -> Result<()> {
        let (name, entry) = ([b'n'; 255], entry(dir.0));
        while sink.add(Name { name: &name[..1 + cookie as usize % 255], next_cookie: cookie }, &entry) {}
        Ok(())
    }
    fn fallocate(&self, _: &Caller, _: &Fallocate) -> Result<()> {
        Ok(())
    }
    fn lseek(&self, _: &Caller, _: NodeId, offset: u64, _: Whence) -> Result<u64> {
        Ok(offset)
    }
    fn copy_file_range(&self, _: &Caller, copy: &CopyRange) -> Result<u64> {
        Ok(copy.length)
    }
}

static BUFFERS: LazyLock<Mutex<Buffers>> = LazyLock::new(Mutex::default);

fn ask(bytes: &[u8], agreed: Agreed) {
    let mut buffers = BUFFERS.lock().expect("nothing panics with it");
    if let Some(request) = Request::parse(bytes) {
        let _ = request.answer(&Yes, agreed, &mut buffers).map(|answer| answer.map(<[u8]>::len));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    ask(bytes, Agreed(0));
    // As the kernel would have sent it: the length is right, and the operation is one of few.
    if bytes.len() >= 40 {
        let mut bytes = bytes.to_vec();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[5..8].fill(0);
        bytes[36..38].fill(0);
        ask(&bytes, Agreed(0));
        ask(&bytes, Agreed(u64::MAX));
    }
});
