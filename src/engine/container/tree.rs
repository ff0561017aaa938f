//! Trees: images written out as directories, on which the driver `tree` puts the kernel's overlayfs.
//!
//! ```text
//! hosts/<machine>/trees/<chain>-<hash>/tree/        the image; the hash is of the ids that its containers have
//!                                      boot         in which it was written
//!                                      owners       true owners and modes of what is not the caller's; never changes
//!                                      users/<id>   a container that has it, from its start until the files are given back
//!                                      given        the files have their owners, all of them
//!                                      new/         being written
//!                                      lock         shared by who starts a container with it, exclusive for who writes it,
//!                                                   gives it back or removes it; never for a container's life
//!                        .gone-<hex>/              being removed
//! ```
//! As a volume's, its files are the caller's at rest, and have their owners from the start of the first container until the
//! end of the last one: native files cannot be shown with others without root, so containers with other ids have a tree of
//! their own. Nobody writes to it, so what is to be given is what `owners` names, and no walk finds it out. A tree is a cache. It
//! goes in a sweep, when neither a name nor a container leads to its image any more, and with a prune when no container does. It
//! is never synced, which would make its first container wait for all that others write, so after a boot it is written again.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use oci::{ChainId, Digest};
use snapshot::owner_client::{is_logged, reclaim_tree, restore_tree};
use snapshot::seed::{Seed, seed};
use sys::namespace::IdMap;
use sys::process::boot_id;

use crate::Engine;
use crate::container::record::Record;
use crate::container::remove::remove_file;
use crate::container::rootfs::outer_namespace;
use crate::container::snapshot::{chain, remove_layer, shown_owner};
use crate::container::state::{condition, processes};
use crate::file::failed;
use crate::held::{Held, Hold};
use crate::image::the_store;
use crate::paths::{make_dir, names_in};
use crate::system::{du, limits};

/// What trees that are being removed begin with.
const GONE: &str = ".gone-";

/// A tree that nobody gives back as long as this is kept.
#[derive(Debug)]
pub(crate) struct Entered {
    /// The image's root directory.
    pub path: PathBuf,
    _held: Held,
}

/// Makes the tree of a container's image ready for its start, and writes it if there is none: to be kept until others see
/// that the container runs. `log_all` as [`Seed::log_all`]. The caller has one thread.
pub(crate) fn enter(
    engine: &Engine,
    record: &Record,
    maps: (&IdMap, &IdMap),
    log_all: bool,
    outer: BorrowedFd<'_>,
) -> Result<Entered, Report> {
    let chain = record.image.chain.ok_or_else(|| Report::new(Kind::Internal, "an image without a chain"))?;
    let dir = engine.paths().trees().join(key(&chain, maps)?);
    let path = dir.join("tree");
    loop {
        make_dir(&dir.join("users"))?;
        // It may be removed at any time before it is locked.
        let Some(held) = Held::of(&dir, Hold::Shared)? else { continue };
        if is_there(&dir)? && is_given(&dir) {
            use_it(&dir, &record.id)?;
            return Ok(Entered { path, _held: held });
        }
        // Given up first: two that wait for each other's would wait for ever.
        drop(held);
        let Some(held) = Held::of(&dir, Hold::Exclusive)? else { continue };
        if !is_there(&dir)? {
            if path.exists() {
                // Of an earlier boot, in which it may have been left with owners and modes that keep us out.
                discard(engine, &dir)?;
                continue;
            }
            if let Err(report) = write(engine, record, maps, log_all, &dir) {
                // It may have filled the disk. The next start, or sweep, removes what resists.
                let _ = discard(engine, &dir);
                return Err(limits::explain(engine.paths().data(), report));
            }
        }
        // Before its files may become others'.
        use_it(&dir, &record.id)?;
        sys::step();
        if !is_given(&dir) {
            restore_tree(outer, &dir).step(|| "giving the image's files their owners".to_owned())?;
            sys::step();
            let given = dir.join("given");
            File::create(&given).map_err(|error| failed("making", &given, error))?;
        }
        held.take(Hold::Shared)?;
        return Ok(Entered { path, _held: held });
    }
}

/// Whether a tree is whole, and as it was written.
fn is_there(dir: &Path) -> Result<bool, Report> {
    let written = fs::read_to_string(dir.join("boot")).ok();
    Ok(written == Some(boot_id()?) && dir.join("tree").exists())
}

/// Whether its files have their owners. Those of some images are all the caller's at any time.
fn is_given(dir: &Path) -> bool {
    dir.join("given").exists() || !is_logged(dir)
}

/// The name of a tree.
fn key(chain: &ChainId, maps: (&IdMap, &IdMap)) -> Result<String, Report> {
    let maps = serde_json::to_vec(&maps).map_err(|error| Report::of(Kind::Internal, error))?;
    Ok(format!("{}-{}", chain.0.hex(), &Digest::of(&maps).hex()[..16]))
}

fn use_it(dir: &Path, id: &ContainerId) -> Result<(), Report> {
    let user = dir.join("users").join(id.as_str());
    File::create(&user).map(drop).map_err(|error| failed("making", &user, error))
}

/// Writes the image, which is not there; a killed start leaves what the next one drops.
fn write(engine: &Engine, record: &Record, maps: (&IdMap, &IdMap), log_all: bool, dir: &Path) -> Result<(), Report> {
    let new = dir.join("new");
    remove_layer(engine, dir, "new")?;
    make_dir(&new)?;
    let (index, objects) = (chain(engine, record)?, snapshot::ObjectDirs::of(the_store(engine)?.objects())?);
    let owner = shown_owner(maps);
    seed(&new, "tree", (&index, index.root()), &objects, Seed { owner: &owner, log_all, sync: false })
        .step(|| format!("writing out image {}", record.image.reference))?;
    sys::step();
    let (owners, tree) = (dir.join("owners"), dir.join("tree"));
    // Of a tree that a kill has kept from getting its place.
    remove_file(&owners)?;
    match fs::rename(new.join("owners"), &owners) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("renaming", &owners, error)),
        _ => sys::step(),
    }
    let boot = dir.join("boot");
    fs::write(&boot, boot_id()?).map_err(|error| failed("writing", &boot, error))?;
    sys::step();
    // Of one that a user has removed.
    remove_file(&dir.join("given"))?;
    fs::rename(new.join("tree"), &tree).map_err(|error| failed("renaming", &tree, error))?;
    sys::step();
    fs::remove_dir(&new).map_err(|error| failed("removing", &new, error))
}

/// Gives the files of the trees back that a container has had, unless another one has them. Without `outer`, for a command,
/// the outer user namespace is looked for, and nobody waits: who is at work on a tree does it at the end. The caller has one
/// thread.
pub(crate) fn give_back(engine: &Engine, id: &ContainerId, outer: Option<BorrowedFd<'_>>) -> Result<(), Report> {
    let how = if outer.is_some() { Hold::Exclusive } else { Hold::ExclusiveIfFree };
    let give = |dir: PathBuf| match Held::of(&dir, how)? {
        Some(_held) => settle(engine, &dir, outer).map(drop),
        None => Ok(()),
    };
    let had = trees(engine)?.into_iter().filter(|dir| dir.join("users").join(id.as_str()).exists());
    had.map(give).collect::<Vec<_>>().into_iter().collect()
}

/// Gives the files of a tree back that nobody has any more; whether that is so. The caller has it locked for itself alone.
fn settle(engine: &Engine, dir: &Path, outer: Option<BorrowedFd<'_>>) -> Result<bool, Report> {
    let users = dir.join("users");
    let (mut ended, mut active) = (Vec::new(), false);
    for name in names_in(&users).map_err(|error| failed("reading directory", &users, error))? {
        match name.parse::<ContainerId>() {
            // One that cannot be read may run.
            Ok(id) if has(engine, &id).unwrap_or(true) => active = true,
            _ => ended.push(users.join(name)),
        }
    }
    // A tree that is not there has nothing to give: its next writer was killed.
    if !active && !ended.is_empty() && dir.join("tree").exists() {
        remove_file(&dir.join("given"))?;
        sys::step();
        match outer {
            Some(outer) => reclaim_tree(outer, dir)?,
            None => reclaim_tree(outer_namespace(engine)?.as_fd(), dir)?,
        }
        sys::step();
    }
    ended.iter().try_for_each(|user| remove_file(user))?;
    Ok(!active)
}

/// Whether a container still has its files: it runs, or a process other than ours has them: a monitor that holds it for a command
/// that copies, which no state tells, or a start that has no monitor yet. A monitor that asks has ended its container.
fn has(engine: &Engine, id: &ContainerId) -> Result<bool, Report> {
    let condition = condition(engine, id)?;
    let pids = condition.pids.as_ref().filter(|pids| pids.monitor_pid != std::process::id().cast_signed());
    Ok(condition.life.is_active() || processes(pids)?.monitor.is_some())
}

/// Removes the trees of images to which nothing leads any more. What resists is tried again by the next sweep: a tree is a cache,
/// and what else is swept must not wait for it. `needed` is asked again for each, while nobody can begin to use it. The answer is
/// how many bytes of the disk are free by it.
pub(crate) fn sweep(engine: &Engine, needed: &dyn Fn() -> Result<HashSet<ChainId>, Report>) -> u64 {
    let trees = engine.paths().trees();
    let mut freed_bytes = 0;
    for name in names_in(&trees).unwrap_or_default() {
        // What resists is tried again by the next sweep.
        freed_bytes += sweep_one(engine, &trees.join(name), needed).unwrap_or(0);
    }
    freed_bytes
}

/// How many bytes were a tree that could be removed, since nobody needs it.
fn sweep_one(
    engine: &Engine,
    dir: &Path,
    needed: &dyn Fn() -> Result<HashSet<ChainId>, Report>,
) -> Result<u64, Report> {
    if is_gone(dir) {
        let bytes = du::of(dir)?.bytes;
        remove_layer(engine, &engine.paths().trees(), &name_of(dir))?;
        return Ok(bytes);
    }
    let is_needed = || Ok::<_, Report>(is_of(dir, &needed()?));
    if is_needed()? {
        return Ok(0);
    }
    // From here on a container that is to start waits, and finds the tree gone. One whose start is ahead of us is a user, and one
    // that was created since is among those that need it.
    let Some(_held) = Held::of(dir, Hold::ExclusiveIfFree)? else { return Ok(0) };
    if !settle(engine, dir, None)? || is_needed()? {
        return Ok(0);
    }
    let bytes = du::of(dir)?.bytes;
    discard(engine, dir).map(|()| bytes)
}

/// Removes a tree that nobody has, and that the caller has locked for itself alone.
fn discard(engine: &Engine, dir: &Path) -> Result<(), Report> {
    let (trees, gone) = (engine.paths().trees(), format!("{GONE}{:016x}", u64::from_ne_bytes(sys::random()?)));
    fs::rename(dir, trees.join(&gone)).map_err(|error| failed("renaming", dir, error))?;
    sys::step();
    remove_layer(engine, &trees, &gone)
}

/// What trees take on the disk that no container needs which stands on one of these images.
pub(crate) fn others_bytes(engine: &Engine, chains: &HashSet<ChainId>) -> Result<u64, Report> {
    let trees = engine.paths().trees();
    let names = names_in(&trees).map_err(|error| failed("reading directory", &trees, error))?;
    let others = names.iter().map(|name| trees.join(name)).filter(|dir| !is_of(dir, chains));
    others.map(|dir| Ok(du::of(&dir)?.bytes)).sum()
}

fn name_of(dir: &Path) -> String {
    dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether a tree is being removed.
fn is_gone(dir: &Path) -> bool {
    name_of(dir).starts_with(GONE)
}

/// Whether a tree is of one of these images.
fn is_of(dir: &Path, chains: &HashSet<ChainId>) -> bool {
    let name = name_of(dir);
    chains.iter().any(|chain| name.starts_with(&chain.0.hex()))
}

fn trees(engine: &Engine) -> Result<Vec<PathBuf>, Report> {
    let trees = engine.paths().trees();
    let names = names_in(&trees).map_err(|error| failed("reading directory", &trees, error))?;
    Ok(names.iter().map(|name| trees.join(name)).filter(|dir| !is_gone(dir)).collect())
}
