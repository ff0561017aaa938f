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
//! chains/<hex>.reads    what of its objects was read; it goes with the index
//! refs/<escaped name>   name -> digests
//! refs.lock             held by who changes names
//! named/<store>/        the same for the names of a further store that shares the content
//! lists/<escaped name>  a list of images in the making; absent until the first
//! named-lists/<store>/  the same of a further store
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
//! **Locks**, in the order in which they are taken: lease, ingest (never two), `lists/lock`, `refs.lock`, `gc.lock`. All are OFD
//! locks, which die with their process and work over NFS. Nobody waits for `gc.lock` but another sweep.
//!
//! All is relative to directory descriptors and belongs to the caller. This crate knows no indexes (their contents are
//! told by a callback), no registry and no containers.

mod additional;
pub mod dir;
mod error;
mod floor;
mod gc;
mod halves;
mod ingest;
mod lease;
mod lists;
mod new_file;
mod refs;
mod shelf;
mod state;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};
use sys::Call;

pub use additional::Additional;
pub use dir::Dir;
pub use error::StoreError;
pub use gc::{Evicted, ObjectsOf, Roots, Swept};
pub use halves::in_halves;
pub use ingest::{Ingest, Partial, Waiting};
pub use lease::{Lease, LeaseInfo};
pub use lists::{ListRecord, ListedImage};
pub use new_file::{Durability, HARD_LINKS, NewFile};
pub use refs::{ImageRecord, LockedNames, Named, Summary};
pub use shelf::{Family, Published, Shelf, Stored, list_of_reads};
pub use state::Leftovers;

use crate::additional::PassOver;
use crate::floor::Floor;

/// The version of the layout that this engine writes; older ones there are none.
const FORMAT_VERSION: u32 = 1;
/// The version of a store that has names in `named/`: an engine that knows version 1 alone would sweep what they lead to.
const FORMAT_WITH_NAMED: u32 = 2;
/// The file that says the version.
const FORMAT: &str = "format";
/// The lock of who changes names.
const NAMES_LOCK: &str = "refs.lock";
/// The directory of the names of further stores.
const NAMED: &str = "named";
/// The directory of lists of images.
const LISTS: &str = "lists";
/// The directory of those of further stores.
const NAMED_LISTS: &str = "named-lists";

/// What every function of this crate returns.
pub type Result<T> = std::result::Result<T, StoreError>;

/// An open store.
#[derive(Debug)]
pub struct Store {
    root: Dir,
    /// Of a further store.
    name: Option<String>,
    floor: Arc<Floor>,
    ingest: Dir,
    refs: Dir,
    /// Names of stores that are only read.
    refs_below: Vec<Dir>,
    pass_over: PassOver,
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
        let (trash, floor) = (sub("trash")?, Arc::new(Floor::default()));
        let shelf = |family: Family| {
            let dir = sub(family.as_str())?;
            let dir = if family == Family::Blobs { dir.subdir("sha256", create)? } else { dir };
            Ok::<_, StoreError>(Shelf::new(dir, trash.try_clone()?, family, Arc::clone(&floor)))
        };
        Ok(Store {
            ingest: sub("ingest")?,
            refs: sub("refs")?,
            refs_below: Vec::new(),
            pass_over: PassOver::default(),
            leases: sub("leases")?,
            blobs: shelf(Family::Blobs)?,
            objects: shelf(Family::Objects)?,
            layers: shelf(Family::Layers)?,
            chains: shelf(Family::Chains)?,
            floor,
            root,
            name: None,
        })
    }

    /// The same content with the names of a further store. With `create` it is made if it is not there, else that is
    /// [`StoreError::Absent`]. `name` is one component of a path and does not begin with a dot.
    pub fn named(mut self, name: &str, create: bool) -> Result<Self> {
        if create && read_format(&self.root)?.is_none_or(|format| format.version < FORMAT_WITH_NAMED) {
            write_format(&self.root, &Format { version: FORMAT_WITH_NAMED })?;
        }
        self.refs = match self.root.subdir(NAMED, create).and_then(|named| named.subdir(name, create)) {
            Err(error) if error.errno() == Some(sys::Errno::ENOENT) => {
                return Err(StoreError::Absent { path: self.root.path().join(NAMED).join(name) });
            }
            names => names?,
        };
        self.name = Some(name.to_owned());
        Ok(self)
    }

    /// The same with the names and contents of stores that are only read, looked at in this order after its own. A name, of
    /// whichever store, that cannot be read is none in lists, which `pass_over` is told.
    #[must_use]
    pub fn above(
        mut self,
        additional: Vec<Additional>,
        pass_over: impl Fn(StoreError) + Send + Sync + 'static,
    ) -> Self {
        self.pass_over = PassOver(Some(Box::new(pass_over)));
        for store in additional {
            self.refs_below.push(store.refs);
            for (family, below) in store.shelves {
                self.shelf_mut(family).put_below(below);
            }
        }
        self
    }

    fn shelf_mut(&mut self, family: Family) -> &mut Shelf {
        match family {
            Family::Chains => &mut self.chains,
            Family::Layers => &mut self.layers,
            Family::Objects => &mut self.objects,
            Family::Blobs => &mut self.blobs,
        }
    }

    /// The content of one kind.
    pub fn shelf(&self, family: Family) -> &Shelf {
        match family {
            Family::Chains => &self.chains,
            Family::Layers => &self.layers,
            Family::Objects => &self.objects,
            Family::Blobs => &self.blobs,
        }
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
        sys::step();
        Ok(nix::unistd::syncfs(&self.root).call(|| format!("syncfs({})", self.root.path().display()))?)
    }
}

fn check_format(root: &Dir, create: bool) -> Result<()> {
    if let Some(format) = read_format(root)? {
        return match format.version {
            FORMAT_VERSION | FORMAT_WITH_NAMED => Ok(()),
            version => Err(StoreError::Version { path: root.path().to_owned(), version }),
        };
    }
    // Two commands may be here at once: both write the same, and directories of the other are no surprise.
    let known = ["ingest", "blobs", "objects", "layers", "chains", "refs", "leases", "trash", FORMAT, gc::LOCK];
    let known = known.into_iter().chain([LISTS, NAMED, NAMED_LISTS, NAMES_LOCK]).collect::<Vec<_>>();
    if let Some(stranger) =
        root.names()?.into_iter().find(|name| !known.contains(&name.as_str()) && !dir::is_temporary(name))
    {
        return Err(StoreError::NotAStore { path: root.path().to_owned(), stranger });
    }
    if !create {
        return Err(StoreError::Absent { path: root.path().to_owned() });
    }
    // Now, since what frees space needs it when there is none.
    root.open_writable(gc::LOCK)?;
    write_format(root, &Format { version: FORMAT_VERSION })
}

fn read_format(root: &Dir) -> Result<Option<Format>> {
    let Some(text) = root.read(FORMAT, 4096)? else { return Ok(None) };
    let format = serde_json::from_slice(&text);
    format.map(Some).map_err(|cause| StoreError::Corrupt { path: root.path().join(FORMAT), cause: cause.into() })
}

fn write_format(root: &Dir, format: &Format) -> Result<()> {
    let text = serde_json::to_vec(format)
        .map_err(|cause| StoreError::Corrupt { path: root.path().join(FORMAT), cause: cause.into() })?;
    root.replace(FORMAT, &text, Durability::Now)
}
