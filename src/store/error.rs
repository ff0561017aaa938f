//! What can go wrong in the store.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use base::{Explain, Kind};
use oci::Digest;
use sys::{Errno, SysError};

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no store.
    #[error("there is no store at {}", path.display())]
    Absent {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The store was written by a newer engine.
    #[error("the store at {} has format version {version}; this engine knows versions 1 and 2", path.display())]
    Version {
        /// The store.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The directory has content, and it is not a store's.
    #[error("{} is not a store: it contains {stranger:?}", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// A name in it that no store has.
        stranger: String,
    },
    /// The store belongs to someone else.
    #[error("the store at {} belongs to user {owner}, not to user {user}", path.display())]
    NotOurs {
        /// The store.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The caller.
        user: u32,
    },
    /// A store that is only read could have been written by someone who is not trusted.
    #[error("the store's directory {} belongs to user {owner} with mode {mode:04o}", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// A file of the store does not hold what it should.
    #[error("{} is damaged", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// How it is damaged.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// A file of the store was written by a newer engine.
    #[error("{} has format {format}; this engine reads {known}", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The highest that is read.
        known: u32,
    },
    /// Content that is not there.
    #[error("{digest} is not in the store")]
    Missing {
        /// What was wanted.
        digest: Digest,
    },
    /// Content is longer than the caller takes.
    #[error("{} has {size_bytes} bytes, more than the {max_bytes} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        size_bytes: u64,
        /// The caller's limit.
        max_bytes: u64,
    },
    /// What came is not what its digest says; it was thrown away.
    #[error("the content of {wanted} has the digest {found}")]
    Mismatch {
        /// What was asked for.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// What came is longer or shorter than its descriptor says.
    #[error("the content of {digest} has {found_bytes} bytes or more, wanted {wanted_bytes}")]
    Size {
        /// What was asked for.
        digest: Digest,
        /// Its size by the descriptor.
        wanted_bytes: u64,
        /// What came.
        found_bytes: u64,
    },
    /// The caller gave up waiting.
    #[error("waiting for {digest}, which another command is fetching, was cancelled")]
    Cancelled {
        /// What was waited for.
        digest: Digest,
    },
    /// The disk or the user's quota is full.
    #[error("no space is left for the store: {call}")]
    Full {
        /// The failed call.
        call: String,
        /// Which limit it was.
        #[source]
        cause: sys::error::Cause,
    },
    /// Any other failed system call.
    #[error(transparent)]
    Call(SysError),
}

impl From<SysError> for StoreError {
    fn from(error: SysError) -> Self {
        match error.errno() {
            // EFBIG: the caller's own limit on file sizes, which is a full disk for all that it can do.
            Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG => StoreError::Full { call: error.call, cause: error.cause },
            _ => StoreError::Call(error),
        }
    }
}

impl StoreError {
    /// Whether a file was read and does not hold what it should: what cannot be read, or not by this engine, may be whole.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Corrupt { .. } | StoreError::TooLarge { .. })
    }

    /// The errno, where a system call failed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            StoreError::Full { cause, .. } | StoreError::Call(SysError { cause, .. }) => Some(cause.0),
            _ => None,
        }
    }
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> io::Error {
        match error.errno() {
            Some(errno) => io::Error::new(io::Error::from(errno).kind(), error),
            None => io::Error::other(error),
        }
    }
}

impl Explain for StoreError {
    fn kind(&self) -> Kind {
        match self {
            StoreError::Absent { .. } | StoreError::Missing { .. } => Kind::NotFound,
            StoreError::Version { .. } | StoreError::Newer { .. } => Kind::Unsupported,
            StoreError::NotAStore { .. } => Kind::Conflict,
            StoreError::NotOurs { .. } | StoreError::Untrusted { .. } => Kind::Denied,
            StoreError::Mismatch { .. } | StoreError::Size { .. } => Kind::Remote,
            StoreError::Call(error) => error.kind(),
            StoreError::Corrupt { .. }
            | StoreError::TooLarge { .. }
            | StoreError::Cancelled { .. }
            | StoreError::Full { .. } => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            StoreError::Newer { .. } => Some("use the newer engine".to_owned()),
            StoreError::Version { .. } => Some("use the newer engine, or another --root".to_owned()),
            StoreError::NotAStore { .. } => Some("name an empty or a new directory with --root".to_owned()),
            StoreError::NotOurs { .. } => Some("name a directory of your own with --root".to_owned()),
            StoreError::Untrusted { .. } => Some(
                "an additional store must belong to root, to you or to the user of --additional-store-owner, and nobody \
                 else may write there"
                    .to_owned(),
            ),
            StoreError::Full { .. } => {
                Some("free some space (rmi and system prune do) and run the same command again".to_owned())
            }
            StoreError::Corrupt { .. } | StoreError::Missing { .. } => {
                Some("`sublet system fsck` tells what else is wrong, and with --repair mends what it can".to_owned())
            }
            _ => None,
        }
    }
}
