//! Operations on files that the standard library and `nix` lack.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use crate::error::{Result, check};

/// Sets the mask of new files' modes to 022: with the caller's, what we make might be closed to ourselves.
pub fn reset_umask() {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
}

/// Has a write beyond the limit on file sizes fail with `EFBIG` (setrlimit(2)), where its signal would end us.
pub fn ignore_size_signal() {
    // SAFETY: SIG_IGN is no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// What fits most files of `/proc` and most of our records, in bytes.
pub const SMALL: usize = 4096;

/// What a file of `/proc` or `/sys` says. Such a file tells no size, so that the standard library feels its way up from 32
/// bytes; here most of them come with the first read.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::with_capacity(SMALL);
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// `fsync(2)` of a directory: the names in it outlast a loss of power.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// `ioctl(FICLONE)`: makes the whole of `target` share the blocks of `source`, copying nothing. Both are regular files
/// of one file system that can do it (btrfs, XFS); others answer `EOPNOTSUPP`, `ENOTTY`, `EXDEV` or `EINVAL`.
pub fn clone_contents(target: impl AsFd, source: impl AsFd) -> Result<()> {
    let (target, source) = (target.as_fd(), source.as_fd());
    // SAFETY: FICLONE takes a descriptor number by value and touches no memory of ours; both descriptors stay open for
    // the call because they are borrowed.
    let done = unsafe { libc::ioctl(target.as_raw_fd(), libc::FICLONE as _, source.as_raw_fd()) };
    check(done.into(), || format!("ioctl({}, FICLONE, {})", target.as_raw_fd(), source.as_raw_fd())).map(drop)
}

/// `sync_file_range(2)` with `SYNC_FILE_RANGE_WRITE`: starts writing the file's dirty pages out and does not wait. A
/// head start, not a promise: nothing is durable by it.
pub fn start_writeback(file: impl AsFd) -> Result<()> {
    let file = file.as_fd();
    // SAFETY: the call takes only integers; the descriptor stays open for it because it is borrowed.
    let done = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    check(done.into(), || format!("sync_file_range({}, 0, 0, SYNC_FILE_RANGE_WRITE)", file.as_raw_fd())).map(drop)
}

/// `fcntl(F_NOTIFY)`: from now on, as long as `directory` is open, this process gets `SIGIO` each time that a file is written,
/// made or renamed in it (Linux 2.4, `CONFIG_DNOTIFY`; `EINVAL` where the sysctl `fs.dir-notify-enable` is off).
///
/// Unlike inotify(7) it has no limit for a user, and to close the descriptor waits for nothing: the end of an inotify
/// instance waits for a grace period of the kernel, 10 ms and more.
pub fn notify_changes(directory: impl AsFd) -> Result<()> {
    let directory = directory.as_fd();
    let what = DN_MODIFY | DN_CREATE | DN_RENAME | DN_MULTISHOT;
    // SAFETY: the call takes only integers; the descriptor stays open for it because it is borrowed.
    let done = unsafe { libc::fcntl(directory.as_raw_fd(), libc::F_NOTIFY, what) };
    check(done.into(), || format!("fcntl({}, F_NOTIFY)", directory.as_raw_fd())).map(drop)
}

// Of linux/fcntl.h; the crate `libc` lacks them.
const DN_MODIFY: u32 = 0x2;
const DN_CREATE: u32 = 0x4;
const DN_RENAME: u32 = 0x10;
const DN_MULTISHOT: u32 = 0x8000_0000;
