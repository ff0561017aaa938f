//! The content store: blobs by digest, names of images, leases and the sweep. Plain files, no database, no daemon.
//!
//! ```text
//! format                what this store is: a version
//! gc.lock               held by the one sweep that runs
//! ingest/<hex>/         a blob on its way: data, state, lock
//! blobs/sha256/ab/<hex> manifests, configurations, layer blobs
//! objects/ab/<hex>      one file for each distinct content of a layer's files
//! layers/<hex>.idx      the index of a layer, by diff id
//! chains/<hex>.idx      the merged index of a stack of layers, by chain id (a cache)
//! refs/<escaped name>   name -> digests
//! lists/<escaped name>  a list of images in the making; absent until the first
//! leases/               who is at work
//! trash/                what the sweep took out of place and has not deleted yet
//! ```
//!
//! **Truth appears by rename or link**, whole, under its final name; a file under a final name is never written again.
//! So readers take no lock, and a kill at any instant leaves either nothing, a resumable ingest, or content that
//! nothing names, which the next sweep removes.
//!
//! **Who may publish**: anyone who holds a [`Lease`] for as long as what it publishes has no name. The sweep leaves
//! alone all that was published or [claimed](Shelf::claim) since the oldest living lease began, and all that leases
//! pin by digest; [`gc`] has the argument.
//!
//! **Locks**, in the order in which they are taken: lease, ingest (never two), `lists/lock`, `gc.lock`. All are OFD locks, which die
//! with their process and work over NFS. Nobody waits for `gc.lock` but another sweep.
//!
//! All is relative to directory descriptors and belongs to the caller. This crate knows no indexes (their contents are
//! told by a callback), no registry and no containers.

pub mod dir;
mod error;
mod gc;
mod ingest;
mod lease;
mod lists;
mod new_file;
mod refs;
mod shelf;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use sys::Call;

pub use dir::Dir;
pub use error::StoreError;
pub use gc::Swept;
pub use ingest::{Ingest, Waiting};
pub use lease::Lease;
pub use lists::{ListRecord, ListedImage};
pub use new_file::{Durability, NewFile};
pub use refs::ImageRecord;
pub use shelf::{Published, Shelf};

/// The version of the layout that this engine writes; older ones there are none.
const FORMAT_VERSION: u32 = 1;

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: Dir,
    ingest: Dir,
    refs: Dir,
    leases: Dir,
    blobs: Shelf,
    objects: Shelf,
    layers: Shelf,
    chains: Shelf,
}

#[derive(Serialize, Deserialize)]
struct Format {
    version: u32,
}

impl Store {
    /// Opens the store at `root`. With `create` it is made if it is not there, else that is [`StoreError::Absent`].
    /// A store of a newer version, of another user, or a directory with something else in it is refused.
    pub fn open(root: &Path, create: bool) -> Result<Self> {
        if create {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root)
                .call(|| format!("mkdir({}, 0700)", root.display()))?;
        }
        let root = Dir::open(root)?;
        let owner = fstat(&root).call(|| format!("fstat({})", root.path().display()))?.st_uid;
        let user = nix::unistd::geteuid().as_raw();
        if owner != user {
            return Err(StoreError::NotOurs { path: root.path().to_owned(), owner, user });
        }
        check_format(&root, create)?;
        let sub = |name: &str| root.subdir(name, create);
        let trash = sub("trash")?;
        let shelf = |dir: Dir, family, fan_out, suffix| {
            Ok::<_, StoreError>(Shelf::new(dir, trash.try_clone()?, family, fan_out, suffix))
        };
        Ok(Store {
            ingest: sub("ingest")?,
            refs: sub("refs")?,
            leases: sub("leases")?,
            blobs: shelf(sub("blobs")?.subdir("sha256", create)?, "blobs", true, "")?,
            objects: shelf(sub("objects")?, "objects", true, "")?,
            layers: shelf(sub("layers")?, "layers", false, ".idx")?,
            chains: shelf(sub("chains")?, "chains", false, ".idx")?,
            root,
        })
    }

    /// Manifests, configurations and layers as registries hand them out.
    pub fn blobs(&self) -> &Shelf {
        &self.blobs
    }

    /// Contents of the files of layers.
    pub fn objects(&self) -> &Shelf {
        &self.objects
    }

    /// Indexes of layers, by diff id.
    pub fn layers(&self) -> &Shelf {
        &self.layers
    }

    /// Merged indexes, by chain id.
    pub fn chains(&self) -> &Shelf {
        &self.chains
    }

    /// The store's directory.
    pub fn root(&self) -> &Dir {
        &self.root
    }

    /// Brings all that was written to the disk: once, before the name that makes it reachable.
    pub fn sync(&self) -> Result<()> {
        Ok(nix::unistd::syncfs(&self.root).call(|| format!("syncfs({})", self.root.path().display()))?)
    }
}

fn check_format(root: &Dir, create: bool) -> Result<()> {
    const NAME: &str = "format";
    if let Some(text) = root.read(NAME, 4096)? {
        let format: Format = serde_json::from_slice(&text)
            .map_err(|cause| StoreError::Corrupt { path: root.path().join(NAME), cause: cause.into() })?;
        return match format.version {
            FORMAT_VERSION => Ok(()),
            version => Err(StoreError::Version { path: root.path().to_owned(), version }),
        };
    }
    // Two commands may be here at once: both write the same, and directories of the other are no surprise.
    let known = ["ingest", "blobs", "objects", "layers", "chains", "refs", "lists", "leases", "trash"];
    if let Some(stranger) = root
        .names()?
        .into_iter()
        .find(|name| !known.contains(&name.as_str()) && !dir::is_temporary(name) && name != NAME)
    {
        return Err(StoreError::NotAStore { path: root.path().to_owned(), stranger });
    }
    if !create {
        return Err(StoreError::Absent { path: root.path().to_owned() });
    }
    let text = serde_json::to_vec(&Format { version: FORMAT_VERSION })
        .map_err(|cause| StoreError::Corrupt { path: root.path().join(NAME), cause: cause.into() })?;
    root.replace(NAME, &text, Durability::Now)
}
