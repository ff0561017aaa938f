//! Why an index cannot be opened, read, built or merged.

use base::{Explain, Kind};
use sys::SysError;

/// A place in an index that contradicts the format. Only a broken disk or a hostile store can cause it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the index is damaged: {what} {at} is not valid")]
pub struct Damaged {
    /// Which kind of record: `inode`, `dirent`, `string`, …
    pub what: &'static str,
    /// Its number, or its offset for sections without records.
    pub at: u64,
}

impl Damaged {
    pub(crate) const fn new(what: &'static str, at: u64) -> Self {
        Damaged { what, at }
    }
}

const REBUILD: &str = "`sublet system fsck --repair` makes it again, or names the image that has to be pulled again";

impl Explain for Damaged {
    fn kind(&self) -> Kind {
        Kind::Internal
    }

    fn hint(&self) -> Option<String> {
        Some(REBUILD.to_owned())
    }
}

/// Why a file cannot be opened as an index.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be mapped.
    #[error("cannot map the index")]
    Map {
        /// Why.
        #[source]
        source: SysError,
    },
    /// The first bytes are not those of an index.
    #[error("not an index: the first bytes are wrong")]
    NotAnIndex,
    /// Written by a later version of this program.
    #[error("the index has format version {found}, this program reads version {}", crate::format::VERSION)]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// The header contradicts itself or the file's length.
    #[error(transparent)]
    Damaged(#[from] Damaged),
}

impl Explain for OpenError {
    fn kind(&self) -> Kind {
        match self {
            OpenError::Map { source } => source.kind(),
            OpenError::Version { .. } => Kind::Unsupported,
            OpenError::NotAnIndex | OpenError::Damaged(_) => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            OpenError::Map { source } => source.hint(),
            _ => Some(REBUILD.to_owned()),
        }
    }
}
