//! Finding a subtree of our own, and the monitor's place in it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use base::{ContainerId, Ladder, Trial};
use nix::unistd::{AccessFlags, access, geteuid, getpid};

use crate::container::Container;
use crate::dir::Dir;
use crate::error::CgroupError;
use crate::limits::Limits;
use crate::scope;
use crate::tree::{self, Tree};

const PART: &str = "cgroup";
const SCOPE: &str = "scope";
const DIRECTORY: &str = "directory";
/// The option that names a cgroup above the container's.
const PARENT: &str = "--cgroup-parent";
/// Controllers are enabled for children as soon as no process stands in the base itself; in a scope another monitor may be
/// on its way through it. In a directory whoever stands there stays.
const ENABLE_TRIES: u32 = 50;
/// Further tries to enter our leaf.
const SETTLE_TRIES: u32 = 3;

/// Who is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// The user's D-Bus address, where the environment names one (`DBUS_SESSION_BUS_ADDRESS`).
    pub bus: Option<&'a str>,
    /// The processes that serve the container's files. They come along into the scope, since the session in which they were
    /// started may end before the container does.
    pub servers: &'a [i32],
    /// The cgroup above the container's, in place of the directory that holds monitors and containers, below which it must be: a
    /// path from there, or with a slash in front from the root of all. What is missing of it is made.
    pub parent: Option<&'a str>,
    /// Once this can be read, systemd's answer is not waited for any longer.
    pub cancel: Option<BorrowedFd<'a>>,
}

/// Where the calling process, a monitor, was placed.
#[derive(Debug)]
pub struct Placement {
    /// The rungs that were tried; the line to print is [`Ladder::step_down`].
    pub ladder: Ladder,
    base: Option<Dir>,
    id: ContainerId,
    parent: Option<String>,
}

impl Placement {
    /// Moves the calling process below the best subtree it can have, into `m-<id>`. Having none is no error: limits that
    /// are asked for are refused by [`Placement::container`].
    ///
    /// The caller must have one thread, since the rung `scope` forks a role, and be able to wait for that child.
    pub fn climb(request: Request<'_>) -> Result<Self, CgroupError> {
        let mut trials = Vec::new();
        let mut base = None;
        for (rung, attempt) in [(SCOPE, by_scope as fn(Request<'_>) -> Result<Base, String>), (DIRECTORY, by_directory)]
        {
            let settled = attempt(request).and_then(|base| settle(base, request.id).map_err(|error| words(&error)));
            match settled {
                Ok(dir) => {
                    trials.push(Trial { rung, failure: None });
                    base = Some((rung, dir));
                    break;
                }
                Err(failure) => trials.push(Trial { rung, failure: Some(failure) }),
            }
        }
        let (chosen, base) = base.unzip();
        if let Some(dir) = &base {
            dir.enable_controllers(if chosen == Some(SCOPE) { ENABLE_TRIES } else { 1 })?;
        }
        let ladder = ladder(trials, chosen);
        Ok(Placement { ladder, base, id: request.id.clone(), parent: request.parent.map(str::to_owned) })
    }

    /// Makes the container's cgroup with its limits; `None` when no rung holds and no limit was asked for.
    pub fn container(&self, limits: &Limits) -> Result<Option<Container>, CgroupError> {
        if let Some(base) = &self.base {
            let name = container_name(&self.id);
            let parent = match &self.parent {
                Some(parent) => below(base, parent)?,
                None => Dir::open(&base.path)?,
            };
            return Container::create(parent, name, limits).map(Some);
        }
        let parent = self.parent.as_ref().map(|_| PARENT.into());
        match parent.or_else(|| limits.settings().into_iter().find_map(|setting| setting.option)) {
            Some(option) => Err(CgroupError::NoCgroup { option: option.into_owned(), reason: failures(&self.ladder) }),
            None => Ok(None),
        }
    }

    /// The directory that holds monitors and containers.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_ref().map(|base| base.path.as_path())
    }
}

/// The cgroup of `--cgroup-parent`, made where it is missing. Elsewhere than below the base the kernel lets nobody without root
/// of the machine move a process.
fn below(base: &Dir, parent: &str) -> Result<Dir, CgroupError> {
    let wrong = |reason: String| CgroupError::Invalid { option: format!("{PARENT} {parent}"), reason };
    let path = if parent.starts_with('/') {
        let place = Tree::find().map_err(&wrong)?.at(parent);
        let below = place.and_then(|place| place.strip_prefix(&base.path).map(Path::to_path_buf).ok());
        below.ok_or_else(|| wrong(format!("only what is below {} is yours", base.path.display())))?
    } else {
        PathBuf::from(parent)
    };
    let mut dir = Dir::open(&base.path)?;
    for part in path.components() {
        let Component::Normal(name) = part else { return Err(wrong("it is no path down".to_owned())) };
        let name = name.to_str().ok_or_else(|| wrong("it is no text".to_owned()))?;
        dir = dir.make_child(name)?;
        dir.enable_controllers(1)?;
    }
    Ok(dir)
}

/// The leaf for a monitor to be born in, where the caller stands below a subtree of ours and no better one can be had.
///
/// A process that is moved waits ten to thirty milliseconds, as the kernel's lock for moves
/// (`cgroup_threadgroup_rwsem`) costs its writer an RCU grace period; one that is born in its place does not.
pub fn birthplace(id: &ContainerId, bus: Option<&str>) -> Option<OwnedFd> {
    let own = own_dir().ok()?;
    let base = match scope_of(&own) {
        Some(scope) => scope,
        // Only systemd can put the monitor into the scope, and that is better.
        None if scope::reachable_bus(bus, geteuid().is_root()).is_ok() => return None,
        None => delegated(&own).ok()?,
    };
    Dir::open(&base).and_then(|base| base.make_child(&leaf_name(id))).map(Dir::into_fd).ok()
}

/// The name of a container's own directory.
pub fn container_name(id: &ContainerId) -> String {
    format!("c-{id}")
}

/// The name of its monitor's.
fn leaf_name(id: &ContainerId) -> String {
    format!("m-{id}")
}

/// Which rungs would hold, without moving anything: for `doctor`.
pub fn probe(bus: Option<&str>) -> Ladder {
    let own = own_dir();
    let scope = match &own {
        Ok(dir) if scope_of(dir).is_some() => Ok(()),
        _ => scope::reachable_bus(bus, geteuid().is_root()).map(drop),
    };
    let directory = || own.and_then(|own| delegated(&own)).map(drop);
    let mut trials = vec![Trial { rung: SCOPE, failure: scope.err() }];
    let mut chosen = trials[0].failure.is_none().then_some(SCOPE);
    if chosen.is_none() {
        let failure = directory().err();
        chosen = failure.is_none().then_some(DIRECTORY);
        trials.push(Trial { rung: DIRECTORY, failure });
    }
    let mut ladder = ladder(trials, chosen);
    if chosen == Some(SCOPE) && !lingers() {
        ladder.fix = Some("loginctl enable-linger: now containers end with your last session".to_owned());
    }
    ladder
}

/// Whether the user's systemd goes on after the last logout; root's scope is the system's.
pub fn lingers() -> bool {
    let uid = geteuid();
    let user = nix::unistd::User::from_uid(uid).ok().flatten();
    // A user that no file here knows cannot be told the truth, so it is told nothing.
    uid.is_root() || user.is_none_or(|user| Path::new("/var/lib/systemd/linger").join(user.name).exists())
}

fn ladder(trials: Vec<Trial>, chosen: Option<&'static str>) -> Ladder {
    let fix = match chosen {
        Some(SCOPE) => None,
        Some(_) => Some("log in through systemd-logind, or loginctl enable-linger".to_owned()),
        None => {
            Some("log in through systemd-logind, or loginctl enable-linger; until then limits are refused".to_owned())
        }
    };
    Ladder { part: PART, trials, chosen, fix }
}

fn failures(ladder: &Ladder) -> String {
    let lines = ladder.trials.iter().filter_map(|trial| Some(format!("{}: {}", trial.rung, trial.failure.as_ref()?)));
    lines.collect::<Vec<_>>().join("; ")
}

/// A directory for monitors and containers, and the calling process's own.
struct Base {
    dir: Dir,
    own: PathBuf,
}

/// The scope's directory, after the user's systemd has moved us below it.
fn by_scope(request: Request<'_>) -> Result<Base, String> {
    let mut own = own_dir()?;
    let scope = if let Some(scope) = scope_of(&own) {
        scope
    } else {
        let servers: Vec<i32> = request.servers.iter().copied().filter(|pid| !is_in_scope(*pid)).collect();
        let bus = scope::reachable_bus(request.bus, geteuid().is_root())?;
        scope::join(bus, request.id, getpid().as_raw(), &servers, request.cancel)?;
        own = own_dir()?;
        scope_of(&own).ok_or_else(|| format!("systemd reported success, but we are in {}", own.display()))?
    };
    Ok(Base { dir: Dir::open(&scope).map_err(|error| words(&error))?, own })
}

fn by_directory(_: Request<'_>) -> Result<Base, String> {
    let own = own_dir()?;
    Ok(Base { dir: Dir::open(&delegated(&own)?).map_err(|error| words(&error))?, own })
}

/// The topmost ancestor of our cgroup up to which every directory is ours to change.
fn delegated(own: &Path) -> Result<PathBuf, String> {
    let ours = |dir: &&Path| {
        let may = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        may(dir) && may(&dir.join("cgroup.procs")) && may(&dir.join("cgroup.subtree_control"))
    };
    let top = own.ancestors().take_while(ours).last();
    top.map(Path::to_path_buf).ok_or_else(|| format!("{} is not writable for uid {}", own.display(), geteuid()))
}

/// Moves us into the leaf `m-<id>`, unless we stand there, so that no process stands in the base, and removes the leaves
/// of monitors that are gone: none can remove its own. So too what one that was killed had made for its container and not
/// yet written down.
fn settle(Base { dir: base, own }: Base, id: &ContainerId) -> Result<Dir, CgroupError> {
    let leaf = leaf_name(id);
    if own != base.path.join(&leaf) {
        let enter = || base.make_child(&leaf).and_then(|leaf| leaf.write("cgroup.procs", "0"));
        let mut moved = enter();
        for _ in 0..SETTLE_TRIES {
            // Another monitor took our empty leaf for a left one.
            if moved.is_err() {
                moved = enter();
            }
        }
        moved?;
    }
    for name in base.children()?.iter().filter_map(|name| name.to_str()) {
        if name.starts_with("m-") || name.starts_with("f-") {
            base.remove_if_empty(name);
        }
    }
    for name in base.children()?.iter().filter_map(|name| name.to_str()) {
        // A monitor stands in its leaf before it makes its container's cgroup: looked for after that was seen, it is there.
        let has_monitor = |id: &str| base.child(format!("m-{id}")).is_ok();
        if name.strip_prefix("c-").is_some_and(|id| !has_monitor(id)) {
            base.remove_if_empty(name);
        }
    }
    Ok(base)
}

/// Whether a process stands below a scope of ours. One that has ended needs no other place.
fn is_in_scope(pid: i32) -> bool {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    cgroup.map_or(true, |text| tree::of_proc(&text).is_some_and(|path| scope_of(Path::new(path)).is_some()))
}

/// The directory of our own cgroup in the v2 tree.
fn own_dir() -> Result<PathBuf, String> {
    Tree::find().map(|tree| tree.own)
}

/// The scope's directory if `own` is it or lies below it.
fn scope_of(own: &Path) -> Option<PathBuf> {
    own.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == scope::UNIT)).map(Path::to_path_buf)
}

pub(crate) fn words(error: &CgroupError) -> String {
    let cause = std::error::Error::source(error);
    cause.and_then(std::error::Error::source).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scope_is_found_above_us() {
        let scope = Path::new("/sys/fs/cgroup/user.slice/sublet.scope");
        assert_eq!(scope_of(&scope.join("m-1")).as_deref(), Some(scope));
        assert_eq!(scope_of(scope).as_deref(), Some(scope));
        assert_eq!(scope_of(Path::new("/sys/fs/cgroup/sublet.scopes")), None);
    }
}
