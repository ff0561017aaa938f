//! Why an upper cannot be opened.

use base::{Explain, Kind};
use sys::SysError;

/// Why an upper cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file or directory of the upper cannot be used.
    #[error("cannot use the upper's {name}")]
    Io {
        /// Name inside the upper's directory.
        name: String,
        /// Why.
        #[source]
        source: SysError,
    },
    /// The log was written by a later version of this program.
    #[error("log.{number} has version {found}, this program reads version {}", crate::record::VERSION)]
    Version {
        /// Number of the log.
        number: u64,
        /// The version in the file.
        found: u32,
    },
    /// The log belongs to another image chain.
    #[error("log.{number} stands on a chain of {found} inodes, the given one has {given}")]
    OtherChain {
        /// Number of the log.
        number: u64,
        /// Inodes of the chain that it was written over.
        found: u32,
        /// Inodes of the chain given.
        given: u32,
    },
    /// A record with a good checksum does not fit the records before it.
    #[error("log.{number}: record {sequence} contradicts the tree")]
    Inconsistent {
        /// Number of the log.
        number: u64,
        /// Sequence number of the record.
        sequence: u64,
    },
}

impl Explain for OpenError {
    fn kind(&self) -> Kind {
        match self {
            OpenError::Io { source, .. } => source.kind(),
            OpenError::Version { .. } => Kind::Unsupported,
            OpenError::OtherChain { .. } => Kind::Conflict,
            OpenError::Inconsistent { .. } => Kind::Internal,
        }
    }
}
