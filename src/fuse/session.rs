//! A connection: reads requests from a `/dev/fuse` descriptor and has a [`Filesystem`] answer them.
//!
//! The kernel's first request is `INIT`, answered by [`Session::open`]; all later ones are read by [`Session::serve`] in
//! some threads, each with one buffer for requests and one for replies. All read from the one descriptor, and not from
//! clones of it (`FUSE_DEV_IOC_CLONE`): the end of a clone ends the requests that were read from it, while those of the
//! descriptor itself live as long as any duplicate of it.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Explain, Kind};
use nix::errno::Errno;
use nix::sys::uio::writev;
use nix::unistd::{SysconfVar, read, sysconf, write};

use crate::abi::{MAJOR, MINOR, MINOR_MIN, NOTIFY_RESEND, OUT_HEADER, Writer, init};
use crate::filesystem::{Filesystem, Result as Answer};
use crate::request::{Agreed, Buffers, IO_MAX, Request};

/// What a request may have beside the data of a write; the kernel refuses a buffer that has no room for it.
const MORE_THAN_DATA: usize = 4096;
/// The longest write to what is not written to, the shortest that the kernel takes.
const NO_WRITE_MAX: usize = 4096;
/// No page is smaller.
const PAGE_MIN: usize = 4096;
/// Requests that the kernel itself may have under way (readahead, writeback), and from how many on it holds back.
const BACKGROUND_MAX: u16 = 64;
const CONGESTED: u16 = BACKGROUND_MAX / 4 * 3;

/// What to ask of the kernel at `INIT`; what it does not know is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Threads that read requests. Never below two: a lone reader made warm opens almost three times slower.
    pub threads: usize,
    /// Cache link targets. Only for trees whose links never change behind the kernel's back.
    pub cache_symlinks: bool,
    /// Drop cached pages when size or modification time change behind the kernel's back.
    pub auto_inval_data: bool,
    /// Let the kernel gather writes and own size and modification time.
    pub writeback_cache: bool,
    /// Have POSIX ACLs enforced; costs a `GETXATTR` for each inode at its first permission check.
    pub posix_acl: bool,
    /// Hand over the umask instead of applying it (needed to inherit default ACLs).
    pub dont_mask: bool,
    /// Allow id-mapped mounts (Linux 6.12).
    pub idmap: bool,
    /// Nothing is ever written, so buffers for requests are small.
    pub read_only: bool,
}

impl Features {
    /// For a tree that never changes.
    pub fn immutable(threads: usize) -> Self {
        Features {
            threads,
            cache_symlinks: true,
            auto_inval_data: false,
            writeback_cache: false,
            posix_acl: false,
            dont_mask: false,
            idmap: true,
            read_only: true,
        }
    }

    /// The longest write that is taken in one piece.
    fn write_max(&self) -> usize {
        if self.read_only { NO_WRITE_MAX } else { IO_MAX }
    }

    /// As flags of `INIT`. Every one that a kernel lacks has a slower equivalent.
    fn flags(&self) -> u64 {
        let always = [
            init::ASYNC_READ,
            init::BIG_WRITES,
            init::MAX_PAGES,
            init::INIT_EXT,
            init::PARALLEL_DIROPS,
            init::DO_READDIRPLUS,
            init::NO_OPENDIR_SUPPORT,
            init::HANDLE_KILLPRIV_V2,
            init::SETXATTR_EXT,
            init::HAS_RESEND,
        ];
        let asked = [
            (self.cache_symlinks, init::CACHE_SYMLINKS),
            (self.auto_inval_data, init::AUTO_INVAL_DATA),
            (self.writeback_cache, init::WRITEBACK_CACHE),
            (self.posix_acl, init::POSIX_ACL),
            (self.dont_mask, init::DONT_MASK),
            (self.idmap, init::ALLOW_IDMAP),
        ];
        let asked = asked.into_iter().filter(|(asked, _)| *asked).map(|(_, flag)| flag);
        always.into_iter().chain(asked).fold(0, |all, flag| all | flag)
    }
}

/// What a finished connection counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests whose handler panicked and that were answered `EIO`.
    pub panics: u64,
}

/// A connection that ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The first exchange failed.
    #[error("FUSE handshake on /dev/fuse")]
    Handshake(#[source] io::Error),
    /// The kernel is too old.
    #[error("the kernel speaks FUSE {major}.{minor}; {MAJOR}.{MINOR_MIN} (Linux 4.18) is needed")]
    Version {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// The kernel does not send again what a predecessor has read.
    #[error("FUSE_NOTIFY_RESEND on /dev/fuse")]
    Resume(#[source] io::Error),
    /// Reading requests failed in the middle.
    #[error("FUSE request loop with {threads} threads")]
    Serve {
        /// Number of reading threads.
        threads: usize,
        /// The first failure of any of them.
        #[source]
        cause: io::Error,
    },
}

impl Explain for SessionError {
    fn kind(&self) -> Kind {
        match self {
            SessionError::Version { .. } => Kind::Unsupported,
            _ => Kind::Internal,
        }
    }
}

/// A connection on which hands were shaken.
///
/// Order of calls: the caller mounts with the descriptor, then `open` (which blocks for the kernel's `INIT` and answers
/// it), then `serve`. Between the two a role may give up what it needs no more. When the process is killed, the connection
/// lives on in any duplicate of the descriptor, and whoever uses the mount waits: another process then calls `resume` and
/// `serve`.
#[derive(Debug)]
pub struct Session<F> {
    device: OwnedFd,
    filesystem: Arc<F>,
    threads: usize,
    request_max: usize,
    agreed: Agreed,
}

impl<F: Filesystem> Session<F> {
    /// Shakes hands with the kernel on `device`.
    pub fn open(device: OwnedFd, filesystem: Arc<F>, features: &Features) -> Result<Self, SessionError> {
        let agreed = handshake(&device, features)?;
        Ok(Session::new(device, filesystem, features, agreed))
    }

    /// Takes a connection over from a server that was killed: `device` is a duplicate of its descriptor, and `agreed` what it
    /// agreed on. What it has read and not answered the kernel sends again ([`crate::Caller::resent`]). No thread of the other
    /// may live any more.
    pub fn resume(
        device: OwnedFd,
        filesystem: Arc<F>,
        features: &Features,
        agreed: Agreed,
    ) -> Result<Self, SessionError> {
        let mut notice = [0; OUT_HEADER];
        let mut out = Writer::new(&mut notice);
        out.u32(OUT_HEADER as u32).u32(NOTIFY_RESEND.cast_unsigned()).u64(0);
        match write(&device, out.done()) {
            // The mount is gone: the first to read will notice.
            Ok(_) | Err(Errno::ENODEV | Errno::ENOTCONN) => {}
            Err(errno) => return Err(SessionError::Resume(errno.into())),
        }
        Ok(Session::new(device, filesystem, features, agreed))
    }

    fn new(device: OwnedFd, filesystem: Arc<F>, features: &Features, agreed: Agreed) -> Self {
        let request_max = features.write_max() + MORE_THAN_DATA;
        Session { device, filesystem, threads: features.threads.max(2), request_max, agreed }
    }

    /// What was agreed on, for [`Session::resume`].
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Serves on the configured threads until the mount's last reference is gone (`ENODEV`).
    pub fn serve(self) -> Result<Served, SessionError> {
        let Session { device, filesystem, threads, request_max, agreed } = self;
        let panics = AtomicU64::new(0);
        let served = std::thread::scope(|scope| {
            let one = || serve_requests(&device, &*filesystem, agreed, request_max, &panics);
            let spawn = |number| std::thread::Builder::new().name(format!("fuse-{number}")).spawn_scoped(scope, one);
            let started: Vec<_> = (0..threads).map(spawn).collect();
            let ended =
                started.into_iter().map(|thread| thread?.join().map_err(|_panic| io::Error::from(Errno::EIO))?);
            ended.fold(Ok(()), Result::and)
        });
        served.map_err(|cause| SessionError::Serve { threads, cause })?;
        Ok(Served { panics: panics.into_inner() })
    }
}

/// Reads one request; `None` when the mount is gone.
fn receive<'a>(device: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    loop {
        match read(device, buffer) {
            Ok(length) => return Ok(Some(&buffer[..length])),
            Err(Errno::ENODEV) => return Ok(None),
            // A signal; a request that was taken back at this moment.
            Err(Errno::EINTR | Errno::ENOENT | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Has every page of `bytes` be there: the kernel cannot fetch one while the process is being killed, and who asked would see
/// an error. What was just written is there; of a mapped file it may not be.
fn present(bytes: &[u8]) -> &[u8] {
    for byte in bytes.iter().step_by(PAGE_MIN).chain(bytes.last()) {
        std::hint::black_box(*byte);
    }
    bytes
}

/// Sends the answer to request `unique`.
fn send(device: &OwnedFd, unique: u64, answer: Answer<&[u8]>) -> nix::Result<()> {
    let (error, payload) = match answer {
        Ok(payload) => (0, present(payload)),
        Err(errno) => (-(errno as i32), &[][..]),
    };
    let mut header = [0; OUT_HEADER];
    let mut out = Writer::new(&mut header);
    out.u32((OUT_HEADER + payload.len()) as u32).u32(error.cast_unsigned()).u64(unique);
    writev(device, &[IoSlice::new(out.done()), IoSlice::new(payload)]).map(drop)
}

/// Answers requests until the mount is gone.
fn serve_requests(
    device: &OwnedFd,
    filesystem: &impl Filesystem,
    agreed: Agreed,
    request_max: usize,
    panics: &AtomicU64,
) -> io::Result<()> {
    // The kernel fails a request if the page that it is copied to is not there and the process has just been killed. So all
    // of them are made to be there.
    let (mut bytes, mut buffers) = (vec![1; request_max], Buffers::default());
    while let Some(bytes) = receive(device, &mut bytes)? {
        let Some(request) = Request::parse(bytes) else { continue };
        let buffers = &mut buffers;
        let answer = guarded(|| request.answer(filesystem, agreed, buffers)).unwrap_or_else(|| {
            panics.fetch_add(1, Ordering::Relaxed);
            Some(Err(Errno::EIO))
        });
        let Some(answer) = answer else { continue };
        match send(device, request.unique, answer) {
            // Who asked does not wait for it any more, or the mount is gone.
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV | Errno::EINTR) => {}
            // An answer that the kernel cannot take is none.
            Err(_) => drop(send(device, request.unique, Err(Errno::EIO))),
        }
    }
    Ok(())
}

/// `None` when `call` panicked, which the default hook has printed.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

/// Waits for `INIT` and answers it.
fn handshake(device: &OwnedFd, features: &Features) -> Result<Agreed, SessionError> {
    let failed = |errno: Errno| SessionError::Handshake(errno.into());
    let mut bytes = vec![0; features.write_max() + MORE_THAN_DATA];
    loop {
        let bytes =
            receive(device, &mut bytes).map_err(SessionError::Handshake)?.ok_or_else(|| failed(Errno::ENODEV))?;
        let request = Request::parse(bytes).ok_or_else(|| failed(Errno::EPROTO))?;
        let mut fields = request.init().ok_or_else(|| failed(Errno::EPROTO))?;
        let offer = (|| Ok((fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?)))().map_err(failed)?;
        let (major, minor, readahead, flags) = offer;
        if major > MAJOR {
            // The kernel goes back to the version that it is answered, and asks again.
            let mut out = [0; 8];
            let answer = {
                let mut out = Writer::new(&mut out);
                out.u32(MAJOR).u32(MINOR);
                out.done()
            };
            send(device, request.unique, Ok(answer)).map_err(failed)?;
            continue;
        }
        if major < MAJOR || minor < MINOR_MIN {
            // It learns that nobody will serve it.
            let _gone = send(device, request.unique, Err(Errno::EPROTO));
            return Err(SessionError::Version { major, minor });
        }
        let more = if u64::from(flags) & init::INIT_EXT != 0 { fields.u32().map_err(failed)? } else { 0 };
        let granted = features.flags() & (u64::from(flags) | u64::from(more) << 32);
        let mut out = [0; 64];
        send(device, request.unique, Ok(init_out(&mut out, minor, readahead, features.write_max(), granted)))
            .map_err(failed)?;
        return Ok(Agreed(granted));
    }
}

/// `fuse_init_out`.
fn init_out(out: &mut [u8; 64], minor: u32, readahead: u32, write_max: usize, flags: u64) -> &[u8] {
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    let mut out = Writer::new(out);
    out.u32(MAJOR).u32(minor.min(MINOR)).u32(readahead).u32(flags as u32).u16(BACKGROUND_MAX).u16(CONGESTED);
    // Times are exact to the nanosecond.
    out.u32(write_max as u32).u32(1).u16((IO_MAX as i64 / page) as u16).u16(0).u32((flags >> 32) as u32).zeroes(28);
    out.done()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places as in `linux/fuse.h`: 7.23 gave it 64 bytes, 7.36 the second word of flags.
    #[test]
    fn the_answer_to_init() {
        let mut out = [0xff; 64];
        let out = init_out(&mut out, MINOR + 1, 0x1234, IO_MAX, init::HAS_RESEND | init::MAX_PAGES);
        let word = |at: usize| u32::from_ne_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        assert_eq!(out.len(), 64);
        assert_eq!([0, 4, 8, 12, 20, 24].map(word), [7, MINOR, 0x1234, 1 << 22, 1 << 20, 1]);
        assert_eq!(word(32), 1 << 7);
        assert!(out[36..].iter().all(|byte| *byte == 0));
    }
}
