//! The cgroup of a container whose engine calls us as its OCI runtime: the engine says where it lies
//! (`linux.cgroupsPath`) and who keeps it (`--systemd-cgroup`).
//!
//! | manager | path | cgroup |
//! |---|---|---|
//! | directories | `/a/b` | below the mount of the version 2 tree |
//! | | `a/b` | beside our own cgroup: ours has processes, and could give no controllers on |
//! | | none | the container's id beside our own cgroup, or below it where that is not ours to change |
//! | systemd | `slice:prefix:name` | `prefix-name.scope` in that slice, see `unit` |
//! | | none | `sublet-ID.scope` |
//!
//! ```text
//! plan ──record()──▶ saved ──▶ make ──▶ clone into dir() ──▶ enter(pid) ──▶ record() saved again
//!                               directories: the cgroup,      systemd: the scope,
//!                               with its limits               with its limits
//! ```
//! A further process is born in `dir_for_exec`, or moved by `admit`.
//!
//! The record is known before anything is made, so that whoever finds it can remove what a killed runtime has left.
//! A rootless engine mostly has no cgroup to give: where none can be made, none was named and nothing needs one, the
//! container runs without, which [`Cgroup::lines`] tells.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{AccessFlags, access};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use crate::container::Container;
use crate::devices::Program;
use crate::dir::Dir;
use crate::error::CgroupError;
use crate::oom::OomWatch;
use crate::placement::words;
use crate::resources::Resources;
use crate::scope::{self, Bus, Task};
use crate::tree::Tree;
use crate::unit;
pub use crate::unit::PROPERTY_ANNOTATIONS;

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The container's id.
    pub id: &'a str,
    /// `linux.cgroupsPath`; an empty one is none.
    pub path: Option<&'a Path>,
    /// `--systemd-cgroup`.
    pub systemd: bool,
    /// Whether the caller's cgroups are a plain user's: then systemd is the user's, and having no cgroup may be no error.
    pub rootless: bool,
    /// The user's D-Bus address, where the environment names one (`DBUS_SESSION_BUS_ADDRESS`).
    pub bus: Option<&'a str>,
    /// The container's annotations; `org.systemd.property.NAME` are properties of its unit.
    pub annotations: Option<&'a HashMap<String, String>>,
    /// `linux.resources`.
    pub resources: Option<&'a LinuxResources>,
    /// Whether its root is the whole host's, who may make and open every device node: then the rules on devices are
    /// enforced.
    pub host_root: bool,
}

/// What is kept of a container's cgroup from one call of the runtime to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its directory; none before systemd has said it, and for a container without cgroup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
    /// Whether it was made for this container. What is only planned may be another's.
    #[serde(default)]
    made: bool,
}

/// A unit of systemd, and the bus on which that is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unit {
    name: String,
    bus: Bus,
}

/// The cgroup of a container, planned, made or found again.
#[derive(Debug)]
pub struct Cgroup {
    record: Record,
    container: Option<Container>,
    resources: Resources,
    /// Decides over device nodes, where the container could have any.
    devices: Option<Program>,
    /// What is done without; an error where it may not be.
    may_lack: bool,
    scope: Option<unit::Name>,
    annotations: Vec<unit::Named>,
    lines: Vec<String>,
}

impl Cgroup {
    /// Says what will be made, and makes nothing. What is asked for wrongly is an error here.
    pub fn plan(request: &Request<'_>) -> Result<Self, CgroupError> {
        let mut resources = request.resources.map(Resources::of).transpose()?.unwrap_or_default();
        let rules = request.resources.and_then(|resources| resources.devices().as_ref());
        let devices = request.host_root.then(|| Program::of(rules.into_iter().flatten())).transpose()?;
        if devices.is_none() {
            let why = "rules on devices need a BPF program, which a user namespace may not attach";
            resources.warn_of_devices(rules, why);
        }
        let path = request.path.filter(|path| !path.as_os_str().is_empty());
        let mut cgroup = Cgroup {
            record: Record::default(),
            container: None,
            lines: resources.warnings.clone(),
            may_lack: request.rootless && !request.host_root && path.is_none() && resources.needs_cgroup().is_none(),
            resources,
            devices,
            scope: None,
            annotations: Vec::new(),
        };
        if request.systemd {
            cgroup.plan_scope(request, path)?;
        } else {
            let planned = directory(path, request.id);
            cgroup.record.path = cgroup.or_without(planned)?;
        }
        Ok(cgroup)
    }

    fn plan_scope(&mut self, request: &Request<'_>, path: Option<&Path>) -> Result<(), CgroupError> {
        let text = path.map(|path| path.to_string_lossy());
        let name = unit::Name::parse(text.as_deref(), request.id, request.rootless);
        let name = name.map_err(|reason| CgroupError::Invalid { option: "linux.cgroupsPath".to_owned(), reason })?;
        self.annotations = request.annotations.map(unit::of_annotations).transpose()?.unwrap_or_default();
        let bus = scope::reachable_bus(request.bus.filter(|_| request.rootless), !request.rootless);
        let bus = bus.map_err(|reason| CgroupError::Unit { unit: name.unit.clone(), reason })?;
        self.record.unit = Some(Unit { name: name.unit.clone(), bus });
        self.scope = Some(name);
        Ok(())
    }

    /// Makes the directory with its limits. It is removed again when that fails. With systemd nothing is made yet.
    pub fn make(&mut self) -> Result<(), CgroupError> {
        if self.record.unit.is_some() {
            return Ok(());
        }
        // Until it is made it is nobody's, and a refused one another's.
        let Some(path) = self.record.path.take() else { return Ok(()) };
        let made = make(&path);
        let Some(made) = self.or_without(made)? else { return Ok(()) };
        if let Err(error) = self.limit(&made.container) {
            made.undo();
            return Err(error);
        }
        self.container = Some(made.container);
        self.record.path = Some(path);
        self.record.made = true;
        Ok(())
    }

    fn limit(&self, container: &Container) -> Result<(), CgroupError> {
        self.resources.check_use(container.directory())?;
        container.write(&self.resources.settings)?;
        match &self.devices {
            Some(program) => program.attach(container.dir(), &container.path().display().to_string()),
            None => Ok(()),
        }
    }

    /// Goes on without a cgroup where that may be, and says so.
    fn or_without<T>(&mut self, result: Result<T, CgroupError>) -> Result<Option<T>, CgroupError> {
        match result {
            Err(error) if is_impossible(&error) => match self.resources.needs_cgroup() {
                Some(option) => Err(CgroupError::NoCgroup { option: option.to_owned(), reason: words(&error) }),
                None if self.may_lack => {
                    self.lines.push(format!("the container runs without a cgroup: {}", words(&error)));
                    Ok(None)
                }
                None => Err(error),
            },
            result => result.map(Some),
        }
    }

    /// Has systemd start the scope with this process in it, the one that makes the container's first process or will be
    /// it, and waits; then writes the limits. Without systemd nothing is to be done: the process is born in
    /// [`Cgroup::dir`].
    ///
    /// The caller must have one thread, and be able to wait for a child.
    pub fn enter(&mut self, pid: i32) -> Result<(), CgroupError> {
        let (Some(name), Some(unit)) = (&self.scope, self.record.unit.take()) else { return Ok(()) };
        let mut properties = unit::base(name, pid, &self.annotations);
        properties.extend(unit::of_settings(&self.resources.settings)?);
        let started = unit.ask(Task::Start { unit: unit.name.clone(), properties })?;
        self.record.unit = Some(unit.clone());
        self.record.made = true;
        let container = unit.locate(&started).and_then(|path| {
            self.record.path = Some(path.clone());
            enable_controllers_above(&path)?;
            let container = Container::open(&path)?;
            self.limit(&container).map(|()| container)
        });
        match container {
            Ok(container) => self.container = Some(container),
            Err(error) => {
                // The limit that failed is what the user must hear about; the caller kills its process.
                let _ = self.remove();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Finds a container's cgroup again; one that is gone, or was only planned, is not there.
    pub fn open(record: &Record) -> Result<Self, CgroupError> {
        let made = record.path.as_deref().filter(|_| record.made);
        let container = match made.map(Container::open) {
            None => None,
            Some(Ok(container)) => Some(container),
            Some(Err(CgroupError::File { source, .. })) if source.errno() == Errno::ENOENT => None,
            Some(Err(error)) => return Err(error),
        };
        Ok(Cgroup {
            record: record.clone(),
            container,
            resources: Resources::default(),
            devices: None,
            may_lack: false,
            scope: None,
            annotations: Vec::new(),
            lines: Vec::new(),
        })
    }

    /// What to keep for the next call.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What was asked for and has no effect, a line each.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Whether it has been made, so that it is this container's.
    pub fn is_made(&self) -> bool {
        self.record.made
    }

    /// The directory to be born in (`CLONE_INTO_CGROUP`); none with systemd before [`Cgroup::enter`], and for a
    /// container without cgroup.
    pub fn dir(&self) -> Option<BorrowedFd<'_>> {
        self.container.as_ref().map(Container::dir)
    }

    /// The directory in which a further process of the container is to be born, whose first process is `init`; none where
    /// [`Cgroup::admit`] moves it, and for a container without cgroup. `below`: the path of one below the container's that is
    /// wanted instead.
    pub fn dir_for_exec(&self, init: i32, below: Option<&Path>) -> Result<Option<OwnedFd>, CgroupError> {
        if let (None, Some(_)) = (&self.container, below) {
            let reason = "the container runs without".to_owned();
            return Err(CgroupError::NoCgroup { option: "a cgroup below the container's".to_owned(), reason });
        }
        let place = self.container.as_ref().map(|container| container.place_for_exec(init, below)).transpose()?;
        Ok(place.filter(|place| !self.needs_systemd(&place.path)).map(Dir::into_fd))
    }

    /// Has systemd move a further process of the container into its scope where it could not be born in it: from a login
    /// session a plain user gets nowhere. While that is done the process must still be the caller's user. It is nothing to
    /// be done where [`Cgroup::dir_for_exec`] has named a directory, and for a container without cgroup.
    ///
    /// The caller must have one thread, and be able to wait for a child.
    pub fn admit(&self, init: i32, below: Option<&Path>, pid: i32) -> Result<(), CgroupError> {
        let (Some(container), Some(unit)) = (&self.container, &self.record.unit) else { return Ok(()) };
        let place = container.place_for_exec(init, below)?.path;
        if !self.needs_systemd(&place) {
            return Ok(());
        }
        let below = place.strip_prefix(container.path()).map(|below| format!("/{}", below.display()));
        let below = below.unwrap_or_else(|_| "/".to_owned());
        unit.ask(Task::Attach { unit: unit.name.clone(), below, pid: pid.cast_unsigned() }).map(drop)
    }

    fn needs_systemd(&self, place: &Path) -> bool {
        self.record.unit.is_some() && Tree::find().is_ok_and(|tree| barrier(&tree, place).is_some())
    }

    /// To freeze, kill and count; none while there is no cgroup.
    pub fn container(&self) -> Option<&Container> {
        self.container.as_ref()
    }

    /// Watches for want of memory; none while there is no cgroup.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>, CgroupError> {
        self.container.as_ref().map(OomWatch::open).transpose()
    }

    /// Changes limits; what is not mentioned stays. Returns what has no effect, a line each.
    pub fn update(&self, resources: &LinuxResources) -> Result<Vec<String>, CgroupError> {
        let (rules, why) = (resources.devices().as_ref(), "rules on devices stay what they were at the creation");
        let Some(container) = &self.container else {
            let mut resources = Resources::of(resources)?;
            resources.warn_of_devices(rules, why);
            return match resources.needs_cgroup() {
                Some(option) => {
                    let reason = "the container runs without".to_owned();
                    Err(CgroupError::NoCgroup { option: option.to_owned(), reason })
                }
                None => Ok(resources.warnings),
            };
        };
        let mut resources = Resources::of_update(resources, container.directory())?;
        resources.warn_of_devices(rules, why);
        // First, since systemd would write the limit at once, and the kernel kill for it.
        resources.check_use(container.directory())?;
        if let Some(unit) = &self.record.unit {
            let properties = unit::of_settings(&resources.settings)?;
            if !properties.is_empty() {
                unit.ask(Task::Set { unit: unit.name.clone(), properties })?;
            }
        }
        container.write(&resources.settings)?;
        Ok(resources.warnings)
    }

    /// Kills what is left, and removes the cgroup, with systemd the unit. What is gone already is no error.
    ///
    /// Of what was only planned, a killed runtime may have left an empty directory; its processes end by themselves, as a
    /// scope does with the last of them.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if !self.record.made {
            let planned = self.record.path.as_deref().map(Container::open);
            if let Some(Ok(container)) = planned {
                // One that stays populated is another's.
                let _ = container.remove();
            }
            return Ok(());
        }
        let found = match (&self.container, &self.record.path) {
            (None, Some(_)) => Cgroup::open(&self.record)?.container,
            _ => None,
        };
        let container = self.container.as_ref().or(found.as_ref());
        let killed = match container {
            Some(container) if container.is_populated().unwrap_or(false) => container.kill(),
            _ => Ok(()),
        };
        // Each of the steps is worth its try whatever came of the one before.
        let stopped = match &self.record.unit {
            Some(unit) => unit.ask(Task::Stop { unit: unit.name.clone() }).map(drop),
            None => Ok(()),
        };
        let removed = container.map_or(Ok(()), Container::remove);
        killed.and(stopped).and(removed)
    }
}

impl Unit {
    fn ask(&self, task: Task) -> Result<String, CgroupError> {
        let answer = scope::ask(self.bus.clone(), task, &self.name, None);
        answer.map_err(|reason| CgroupError::Unit { unit: self.name.clone(), reason })
    }

    /// The directory of a unit's `ControlGroup`.
    fn locate(&self, control_group: &str) -> Result<PathBuf, CgroupError> {
        let path = Tree::find().and_then(|tree| {
            tree.at(control_group).ok_or_else(|| format!("its cgroup {control_group} is not below our mount of them"))
        });
        path.map_err(|reason| CgroupError::Unit { unit: self.name.clone(), reason })
    }
}

/// Whether this host, or this user, cannot have the cgroup, rather than that it was asked for wrongly.
fn is_impossible(error: &CgroupError) -> bool {
    match error {
        CgroupError::NoPlace { .. } => true,
        CgroupError::File { source, .. } => {
            matches!(source.errno(), Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ENOENT)
        }
        _ => false,
    }
}

/// Where the container's cgroup will be.
fn directory(path: Option<&Path>, id: &str) -> Result<PathBuf, CgroupError> {
    let below = below(path.unwrap_or(Path::new(id)))?;
    let tree = Tree::find().map_err(|reason| CgroupError::NoPlace { path: below.display().to_string(), reason })?;
    let beside = tree.own.parent().filter(|parent| parent.starts_with(&tree.point)).unwrap_or(&tree.own);
    let top = match path {
        Some(path) if path.is_absolute() => &tree.point,
        Some(_) => beside,
        None if access(beside, AccessFlags::W_OK).is_ok() => beside,
        None => &tree.own,
    };
    Ok(top.join(below))
}

/// The path without its first slash; it must name something and lead nowhere else.
fn below(path: &Path) -> Result<PathBuf, CgroupError> {
    let parts: PathBuf =
        path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir)).collect();
    let reason = if parts.as_os_str().is_empty() {
        "it names the root of all cgroups"
    } else if parts.components().any(|part| part == Component::ParentDir) {
        "it has a component `..`"
    } else if parts.to_str().is_none_or(|text| text.contains('\n')) {
        "it has a character that no cgroup's name has"
    } else {
        return Ok(parts);
    };
    Err(CgroupError::Invalid { option: format!("linux.cgroupsPath {path:?}"), reason: reason.to_owned() })
}

/// A directory that was made or found, and which parts of its path were made.
struct Made {
    container: Container,
    made: Vec<(Dir, String)>,
}

/// Makes every directory of the path below the mount, with all controllers given on as far as we may.
fn make(path: &Path) -> Result<Made, CgroupError> {
    let no_place = |reason| CgroupError::NoPlace { path: path.display().to_string(), reason };
    let tree = Tree::find().map_err(no_place)?;
    let below = path.strip_prefix(&tree.point).map_err(|_| no_place("it is not below the mount".to_owned()))?;
    let mut made = Vec::new();
    let checked = walk(&tree, below, &mut made).and_then(|existed| {
        let container = Container::open(path)?;
        check(&tree, &container, existed).map(|()| container)
    });
    match checked {
        Ok(container) => Ok(Made { container, made }),
        Err(error) => {
            undo(&made);
            Err(error)
        }
    }
}

/// Notes in `made` what was not there; `true` when all was.
fn walk(tree: &Tree, below: &Path, made: &mut Vec<(Dir, String)>) -> Result<bool, CgroupError> {
    let mut above = Dir::open(&tree.point)?;
    let mut existed = true;
    for name in below.iter().filter_map(|name| name.to_str()) {
        above.enable_controllers(1)?;
        existed = match mkdirat(above.fd(), name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => false,
            Err(Errno::EEXIST) => true,
            Err(errno) => return Err(above.error(format!("mkdirat({name:?})"), errno)),
        };
        let dir = above.child(name)?;
        let parent = std::mem::replace(&mut above, dir);
        if !existed {
            made.push((parent, name.to_owned()));
        }
    }
    Ok(existed)
}

fn undo(made: &[(Dir, String)]) {
    for (parent, name) in made.iter().rev() {
        parent.remove_if_empty(name);
    }
}

impl Made {
    fn undo(&self) {
        undo(&self.made);
    }
}

/// Whether a container can live there.
fn check(tree: &Tree, container: &Container, existed: bool) -> Result<(), CgroupError> {
    let dir = container.directory();
    let path = || dir.path.display().to_string();
    if existed {
        let count = dir.processes()?.len();
        if count > 0 {
            return Err(CgroupError::NotEmpty { path: path(), count });
        }
    }
    if container.is_frozen()? {
        return Err(CgroupError::Frozen { path: path() });
    }
    let kind = dir.read("cgroup.type")?;
    if matches!(kind.trim(), "threaded" | "domain invalid") {
        let reason = format!("it is {:?}, since a cgroup above holds processes or threads", kind.trim());
        return Err(CgroupError::NoPlace { path: path(), reason });
    }
    barrier(tree, &dir.path).map_or(Ok(()), |reason| Err(CgroupError::NoPlace { path: path(), reason }))
}

/// Why no process of ours can be born there. Its parent must be allowed to move processes at the lowest cgroup that is
/// above both: cgroups(7), "Delegation containment".
fn barrier(tree: &Tree, path: &Path) -> Option<String> {
    let common = tree.own.ancestors().find(|above| path.starts_with(above))?;
    let procs = common.join("cgroup.procs");
    let errno = access(&procs, AccessFlags::W_OK).err()?;
    Some(format!("no process of ours can get there, since {} is not ours: {errno}", procs.display()))
}

/// Gives controllers on along the path, as far as we may; those that systemd has not given.
fn enable_controllers_above(path: &Path) -> Result<(), CgroupError> {
    let tree = Tree::find().map_err(|reason| CgroupError::NoPlace { path: path.display().to_string(), reason })?;
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|above| above.starts_with(&tree.point)).collect();
    above.into_iter().rev().try_for_each(|above| Dir::open(above)?.enable_controllers(1))
}
