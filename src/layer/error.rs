//! Why a layer cannot be applied.

use base::{Explain, Kind};
use index::{BuildError, MergeError, OpenError, WriteError};
use oci::DiffId;
use store::StoreError;

/// A layer that is refused, or a store that is in the way.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream of the layer failed, be it the network, the check of its digest, or the compression.
    #[error("cannot read the layer")]
    Read {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The layer is compressed in a way that images do not have.
    #[error("the layer is compressed with {name}, for which images have no media type")]
    Foreign {
        /// With what.
        name: &'static str,
    },
    /// The archive is compressed, and so is what is below that.
    #[error("the archive is compressed twice: what comes out of it is {name}")]
    Twice {
        /// What is below.
        name: &'static str,
    },
    /// The kernel gives no thread more.
    #[error("cannot start a thread to read the layer")]
    Thread {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The archive ends inside an entry.
    #[error("the layer's archive ends inside an entry, at byte {offset}")]
    Truncated {
        /// Offset in the uncompressed stream.
        offset: u64,
    },
    /// The archive breaks the format.
    #[error("the layer's archive is malformed before byte {offset}: {what}")]
    Malformed {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry cannot be part of a layer.
    #[error("the layer has an entry that is refused")]
    Entry(#[from] BuildError),
    /// A name that begins like a whiteout but hides nothing that can exist.
    #[error("the layer has the malformed whiteout {path}")]
    Whiteout {
        /// The whole path.
        path: String,
    },
    /// More than a layer may have.
    #[error("the layer has more than {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        limit: u64,
    },
    /// The content is not that which the image's configuration names.
    #[error("the layer has the diff ID {found}, but the image asks for {expected}")]
    DiffId {
        /// As the configuration has it.
        expected: DiffId,
        /// That of the stream.
        found: DiffId,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the store cannot be written.
    #[error("cannot write {what} of the layer")]
    Write {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An entry has no form in an archive.
    #[error("{path} cannot be put into an archive: {why}")]
    Unwritable {
        /// Which.
        path: String,
        /// What is in the way.
        why: &'static str,
    },
    /// The content of a file that goes into an archive cannot be read.
    #[error("cannot read the content of {path}")]
    Content {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The index of what goes into an archive is damaged.
    #[error("cannot read the tree to write")]
    Tree(#[from] index::Damaged),
    /// The bytes are not those that were asked for.
    #[error("the layer has the digest {found}, wanted {wanted}")]
    Digest {
        /// As its manifest has it.
        wanted: oci::Digest,
        /// That of the stream.
        found: oci::Digest,
    },
    /// The tree cannot be written.
    #[error("cannot write the index of the layer")]
    Index(#[from] WriteError),
    /// The index of a layer is not in the store.
    #[error("the index of layer {layer} is not in the store")]
    MissingLayer {
        /// Which.
        layer: DiffId,
    },
    /// The index of a layer cannot be used.
    #[error("cannot open the index of layer {layer}")]
    Open {
        /// Which.
        layer: DiffId,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// The layers do not fit together.
    #[error("cannot stack the layers")]
    Merge(#[from] MergeError),
}

impl LayerError {
    /// The error of a stream of this crate, which may be one of ours inside.
    pub fn from_io(source: std::io::Error) -> Self {
        crate::pipeline::unwrapped(LayerError::Read { source })
    }
}

impl Explain for LayerError {
    fn kind(&self) -> Kind {
        match self {
            LayerError::Store(error) => error.kind(),
            LayerError::Entry(error) => error.kind(),
            LayerError::Index(error) => error.kind(),
            LayerError::Open { source, .. } => source.kind(),
            LayerError::Merge(error) => error.kind(),
            LayerError::Unwritable { .. } | LayerError::Foreign { .. } | LayerError::Twice { .. } => Kind::Unsupported,
            LayerError::Thread { .. } | LayerError::Write { .. } | LayerError::Content { .. } | LayerError::Tree(_) => {
                Kind::Internal
            }
            LayerError::MissingLayer { .. } => Kind::NotFound,
            LayerError::Read { .. }
            | LayerError::Truncated { .. }
            | LayerError::Malformed { .. }
            | LayerError::Whiteout { .. }
            | LayerError::Limit { .. }
            | LayerError::Digest { .. }
            | LayerError::DiffId { .. } => Kind::Remote,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            LayerError::Store(error) => error.hint(),
            LayerError::Open { source, .. } => source.hint(),
            LayerError::Merge(error) => error.hint(),
            LayerError::MissingLayer { .. } => Some("pull the image again".to_owned()),
            LayerError::Foreign { .. } => {
                Some("whoever made the image must compress its layers with gzip or zstd".to_owned())
            }
            LayerError::Thread { .. } => Some(
                "see the limit on your processes, which counts threads (ulimit -u, and pids.max of the cgroup)"
                    .to_owned(),
            ),
            LayerError::Twice { .. } => Some("unpack it once and take what comes out".to_owned()),
            _ => None,
        }
    }
}

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, LayerError>;
