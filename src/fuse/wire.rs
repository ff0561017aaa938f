//! The wire: reads requests from a `/dev/fuse` descriptor and has a [`Filesystem`] answer them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{Explain, Kind};

use crate::adapter::Adapter;
use crate::filesystem::Filesystem;

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
        }
    }
}

/// What a finished connection counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Requests whose handler panicked and that were answered `EIO`.
    pub panics: u64,
}

/// Carries requests from one `/dev/fuse` descriptor to a file system.
///
/// Order of calls: the caller mounts with the descriptor, then `open` (which blocks for the kernel's `INIT` and answers
/// it), then `serve`. Between the two a role may give up what it needs no more.
pub trait Wire: Sized {
    /// Shakes hands with the kernel on `device`.
    fn open<F: Filesystem>(device: OwnedFd, filesystem: Arc<F>, features: &Features) -> Result<Self, WireError>;

    /// Serves on the configured threads until the mount's last reference is gone (`ENODEV`).
    fn serve(self) -> Result<Served, WireError>;
}

/// A connection that ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The first exchange failed.
    #[error("FUSE handshake on /dev/fuse")]
    Handshake(#[source] io::Error),
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

impl Explain for WireError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}

/// The wire on the crate `fuser`, protocol 7.40.
pub struct FuserWire {
    run: Box<dyn FnOnce() -> io::Result<()> + Send>,
    panics: Arc<AtomicU64>,
    threads: usize,
}

impl Wire for FuserWire {
    fn open<F: Filesystem>(device: OwnedFd, filesystem: Arc<F>, features: &Features) -> Result<Self, WireError> {
        let threads = features.threads.max(2);
        let panics = Arc::new(AtomicU64::new(0));
        let mut config = fuser::Config::default();
        config.n_threads = Some(threads);
        let adapter = Adapter::new(filesystem, *features, Arc::clone(&panics));
        let session =
            fuser::Session::from_fd(adapter, device, fuser::SessionACL::All, config).map_err(WireError::Handshake)?;
        Ok(FuserWire { run: Box::new(move || session.run()), panics, threads })
    }

    fn serve(self) -> Result<Served, WireError> {
        (self.run)().map_err(|cause| WireError::Serve { threads: self.threads, cause })?;
        Ok(Served { panics: self.panics.load(Ordering::Relaxed) })
    }
}
