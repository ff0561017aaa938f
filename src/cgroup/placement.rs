//! Finding a subtree of our own and moving the monitor into it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::{ContainerId, Ladder, Trial};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access, geteuid, getpid};

use crate::container::Container;
use crate::dir::Dir;
use crate::error::CgroupError;
use crate::limits::Limits;
use crate::scope;

const PART: &str = "cgroup";
const SCOPE: &str = "scope";
const DIRECTORY: &str = "directory";
/// Controllers are enabled for children as soon as no process stands in the base itself; in a scope another monitor may be
/// on its way through it. In a directory whoever stands there stays.
const ENABLE_TRIES: u32 = 50;
const ENABLE_PAUSE: Duration = Duration::from_millis(10);
/// Further tries to enter our leaf.
const SETTLE_TRIES: u32 = 3;

/// Who is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The container.
    pub id: &'a ContainerId,
    /// The user's D-Bus address, where the environment names one (`DBUS_SESSION_BUS_ADDRESS`).
    pub bus: Option<&'a str>,
    /// The process that serves the container's files. It comes along into the scope, since the session in which it was
    /// started may end before the container does.
    pub server: Option<i32>,
}

/// Where the calling process, a monitor, was placed.
#[derive(Debug)]
pub struct Placement {
    /// The rungs that were tried; the line to print is [`Ladder::step_down`].
    pub ladder: Ladder,
    base: Option<Dir>,
    id: ContainerId,
}

impl Placement {
    /// Moves the calling process below the best subtree it can have, into `m-<id>`. Having none is no error: limits that
    /// are asked for are refused by [`Placement::container`].
    ///
    /// The caller must have one thread, since the rung `scope` forks a role, and be able to wait for that child.
    pub fn climb(request: Request<'_>) -> Result<Self, CgroupError> {
        let mut trials = Vec::new();
        let mut base = None;
        for (rung, attempt) in [(SCOPE, by_scope as fn(Request<'_>) -> Result<Dir, String>), (DIRECTORY, by_directory)]
        {
            let settled = attempt(request).and_then(|dir| settle(dir, request.id).map_err(|error| words(&error)));
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
            enable_controllers(dir, if chosen == Some(SCOPE) { ENABLE_TRIES } else { 1 })?;
        }
        let ladder = ladder(trials, chosen);
        Ok(Placement { ladder, base, id: request.id.clone() })
    }

    /// Makes the container's cgroup with its limits; `None` when no rung holds and no limit was asked for.
    pub fn container(&self, limits: &Limits) -> Result<Option<Container>, CgroupError> {
        if let Some(base) = &self.base {
            let name = container_name(&self.id);
            return Container::create(Dir::open(&base.path)?, name, limits).map(Some);
        }
        match limits.settings().into_iter().find_map(|setting| setting.option) {
            Some(option) => Err(CgroupError::NoCgroup { option, reason: failures(&self.ladder) }),
            None => Ok(None),
        }
    }

    /// The directory that holds monitors and containers.
    pub fn base(&self) -> Option<&Path> {
        self.base.as_ref().map(|base| base.path.as_path())
    }
}

/// The name of a container's own directory.
pub fn container_name(id: &ContainerId) -> String {
    format!("c-{id}")
}

/// Which rungs would hold, without moving anything: for `doctor`.
pub fn probe(bus: Option<&str>) -> Ladder {
    let scope = match own_dir() {
        Ok(dir) if scope_of(&dir).is_some() => Ok(()),
        _ => reachable_bus(bus).map(drop),
    };
    let directory = || delegated().map(drop);
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
fn lingers() -> bool {
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

/// The scope's directory, after the user's systemd has moved us below it.
fn by_scope(request: Request<'_>) -> Result<Dir, String> {
    let own = own_dir()?;
    let scope = scope_of(&own).map_or_else(
        || {
            let server = request.server.filter(|pid| !is_in_scope(*pid));
            scope::join(&reachable_bus(request.bus)?, request.id, getpid().as_raw(), server)?;
            let own = own_dir()?;
            scope_of(&own).ok_or_else(|| format!("systemd reported success, but we are in {}", own.display()))
        },
        Ok,
    )?;
    Dir::open(&scope).map_err(|error| words(&error))
}

fn by_directory(_: Request<'_>) -> Result<Dir, String> {
    Dir::open(&delegated()?).map_err(|error| words(&error))
}

/// The topmost ancestor of our cgroup up to which every directory is ours to change.
fn delegated() -> Result<PathBuf, String> {
    let own = own_dir()?;
    let ours = |dir: &&Path| {
        let may = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        may(dir) && may(&dir.join("cgroup.procs")) && may(&dir.join("cgroup.subtree_control"))
    };
    let top = own.ancestors().take_while(ours).last();
    top.map(Path::to_path_buf).ok_or_else(|| format!("{} is not writable for uid {}", own.display(), geteuid()))
}

/// Moves us into the leaf `m-<id>`, so that no process stands in the base, and removes the leaves of monitors that are
/// gone: none can remove its own.
fn settle(base: Dir, id: &ContainerId) -> Result<Dir, CgroupError> {
    let own = format!("m-{id}");
    let mut moved = base.make_child(&own).and_then(|leaf| leaf.write("cgroup.procs", "0"));
    for _ in 0..SETTLE_TRIES {
        // Another monitor took our empty leaf for a left one.
        if moved.is_err() {
            moved = base.make_child(&own).and_then(|leaf| leaf.write("cgroup.procs", "0"));
        }
    }
    moved?;
    for name in base.children()?.iter().filter(|name| name.starts_with("m-") || name.starts_with("f-")) {
        base.remove_if_empty(name);
    }
    Ok(base)
}

/// Gives every controller that the base has to its children. What cannot be given is missing in the child, where a limit
/// that needs it is refused by name.
fn enable_controllers(base: &Dir, tries: u32) -> Result<(), CgroupError> {
    let available = base.read("cgroup.controllers")?;
    for controller in available.split_whitespace() {
        for _ in 0..tries {
            match base.put("cgroup.subtree_control", &format!("+{controller}")) {
                Err(Errno::EBUSY) => std::thread::sleep(ENABLE_PAUSE),
                _ => break,
            }
        }
    }
    Ok(())
}

/// Whether a process stands below a scope of ours. One that has ended needs no other place.
fn is_in_scope(pid: i32) -> bool {
    let cgroup = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
    cgroup.map_or(true, |text| {
        text.lines().any(|line| line.starts_with("0::") && scope_of(Path::new(&line[3..])).is_some())
    })
}

/// The directory of our own cgroup in the v2 tree.
fn own_dir() -> Result<PathBuf, String> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let cgroup = std::fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
    locate(&mountinfo, &cgroup).ok_or_else(|| "no cgroup v2 tree is mounted that shows our cgroup".to_owned())
}

/// Our cgroup's directory by proc_pid_mountinfo(5) and cgroups(7). The last mount of a tree hides the earlier ones.
fn locate(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = mountinfo.lines().rev().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        (after.split(' ').next()? == "cgroup2").then_some((root, point))
    });
    mounts.into_iter().find_map(|(root, point)| {
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below).components().collect())
    })
}

/// The scope's directory if `own` is it or lies below it.
fn scope_of(own: &Path) -> Option<PathBuf> {
    own.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == scope::UNIT)).map(Path::to_path_buf)
}

/// The address of a bus that answers: the named one, the user's, for root the system's.
fn reachable_bus(named: Option<&str>) -> Result<String, String> {
    let uid = geteuid();
    let path = match named {
        Some(named) => match named.strip_prefix("unix:path=").and_then(|rest| rest.split([',', ';']).next()) {
            Some(path) => path.to_owned(),
            // Another kind of address, which only the library understands.
            None => return Ok(named.to_owned()),
        },
        None if uid.is_root() => "/run/dbus/system_bus_socket".to_owned(),
        None => format!("/run/user/{uid}/bus"),
    };
    UnixStream::connect(&path).map_err(|error| format!("no D-Bus at {path}: {error}"))?;
    Ok(named.map_or_else(|| format!("unix:path={path}"), str::to_owned))
}

fn words(error: &CgroupError) -> String {
    let cause = std::error::Error::source(error);
    cause.and_then(std::error::Error::source).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_directory_follows_from_two_files_of_proc() {
        let unified =
            "25 1 0:23 / /proc rw - proc proc rw\n30 1 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        let own = "0::/user.slice/user-1000.slice/session-3.scope\n";
        let found = locate(unified, own).map(|path| path.display().to_string());
        assert_eq!(found.as_deref(), Some("/sys/fs/cgroup/user.slice/user-1000.slice/session-3.scope"));
        let hybrid = "31 1 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n32 1 0:29 / /sys/fs/cgroup/unified rw - cgroup2 x rw\n";
        assert_eq!(locate(hybrid, "4:pids:/a\n0::/\n"), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let inside = "30 1 0:27 /a/b /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(locate(inside, "0::/a/b/c\n"), Some(PathBuf::from("/sys/fs/cgroup/c")));
        assert_eq!(locate(inside, "0::/elsewhere\n"), None);
        assert_eq!(locate("", own), None);
        assert_eq!(locate(unified, "4:pids:/a\n"), None);
    }

    #[test]
    fn the_scope_is_found_above_us() {
        let scope = Path::new("/sys/fs/cgroup/user.slice/sublet.scope");
        assert_eq!(scope_of(&scope.join("m-1")).as_deref(), Some(scope));
        assert_eq!(scope_of(scope).as_deref(), Some(scope));
        assert_eq!(scope_of(Path::new("/sys/fs/cgroup/sublet.scopes")), None);
    }
}
