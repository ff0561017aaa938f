//! `config.json`: reading it, and refusing what cannot be done, before anything is made.
//!
//! The file may come from anybody. Its size and depth are bounded; what the specification forbids, what this host lacks and
//! what a user namespace cannot express is an error that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use cgroup::Resources;
use oci_spec::runtime::{Capabilities, Capability, Linux, LinuxIdMappingBuilder, LinuxNamespaceType, Process, Spec};
use runtime::capabilities::bit;
use runtime::init::attributes::{self, has_apparmor, has_selinux};
use runtime::init::devices;
use runtime::init::mounts::extents;
use runtime::init::payload::Groups;
use runtime::init::user::check_mapped;
use runtime::launch::{HookContext, is_new, joins_user};
use runtime::outer::{Caller, default_maps};
use runtime::{Launch, Rootfs};
use serde_json::Value;
use sys::Call;
use sys::namespace::{Extent, IdMap, allows_setgroups, own_maps};

use crate::args::Bundle;
use crate::log::Log;

/// The largest configuration that is read.
const CONFIG_MAX: u64 = 16 << 20;
/// Keeps the caller's supplementary groups; crun's name, which Podman's `--group-add keep-groups` writes.
pub const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// A bundle that can be made into a container.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub spec: Spec,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The root file system's directory, absolute and free of links.
    pub rootfs: PathBuf,
}

/// Reads and checks a bundle.
pub fn load(arguments: &Bundle, log: &Log) -> Result<Loaded, Report> {
    let bundle =
        std::fs::canonicalize(&arguments.directory).call(|| format!("the bundle {:?}", arguments.directory))?;
    let path = arguments.config.clone().unwrap_or_else(|| bundle.join("config.json"));
    let mut spec: Spec = read(&path, log).step(|| format!("reading {}", path.display()))?;
    complete(&mut spec, arguments.console_socket.is_some()).step(|| format!("the configuration {}", path.display()))?;
    if let Some(process) = spec.process() {
        tell_ambient(process, log);
        tell_groups(&spec, process, log);
    }
    drop_mount_label(&mut spec, log);
    let root = spec.root().as_ref().ok_or_else(|| Report::new(Kind::Usage, "there is no root"))?;
    let rootfs = bundle.join(root.path());
    let kind = std::fs::symlink_metadata(&rootfs).call(|| format!("stat({rootfs:?})"));
    let kind = kind.step(|| "the root file system".to_owned())?;
    if kind.is_symlink() {
        let message = format!(
            "the root file system {} is a symbolic link, which could change while it is used",
            rootfs.display()
        );
        return Err(Report::new(Kind::Denied, message));
    }
    if !kind.is_dir() {
        return Err(Report::new(Kind::Usage, format!("the root file system {} is no directory", rootfs.display())));
    }
    let rootfs = std::fs::canonicalize(&rootfs).call(|| format!("the root file system {rootfs:?}"))?;
    Ok(Loaded { spec, bundle, rootfs })
}

/// Adds what the specification leaves to us and refuses what cannot be done.
fn complete(spec: &mut Spec, console_socket: bool) -> Result<(), Report> {
    add_default_maps(spec)?;
    // A relative one is relative to the container's root (runtime-spec, config.md, "Mounts").
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let destination = Path::new("/").join(mount.destination());
        mount.set_destination(destination);
    }
    check(spec, console_socket)
}

/// Whether these bytes are a configuration that could be carried out on this host; nothing is made.
pub fn verify(bytes: &[u8]) -> Result<(), Report> {
    let mut spec: Spec = parse(bytes, &mut |_| ())?;
    complete(&mut spec, false)?;
    let linux = spec.linux().as_ref();
    if let Some(resources) = linux.and_then(|linux| linux.resources().as_ref()) {
        Resources::of(resources)?;
    }
    if let Some(profile) = linux.and_then(|linux| linux.seccomp().as_ref()) {
        runtime::seccomp::compile(profile)?;
    }
    Ok(())
}

/// A plain user's new user namespace without mappings gets the caller's own, as crun's rootless template relies on.
fn add_default_maps(spec: &mut Spec) -> Result<(), Report> {
    let root = nix::unistd::geteuid().is_root();
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| !root) else { return Ok(()) };
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    let new = listed.iter().any(|one| one.typ() == LinuxNamespaceType::User && one.path().is_none());
    let given = linux.uid_mappings().is_some() || linux.gid_mappings().is_some();
    if !new || given {
        return Ok(());
    }
    let (uids, gids) = default_maps(&Caller::current(None));
    let mappings = |map: IdMap| {
        let line = |extent: Extent| {
            let builder = LinuxIdMappingBuilder::default();
            builder.container_id(extent.inside).host_id(extent.outside).size(extent.size).build()
        };
        map.into_iter().map(line).collect::<Result<Vec<_>, _>>().map_err(|error| Report::of(Kind::Internal, error))
    };
    linux.set_uid_mappings(Some(mappings(uids)?)).set_gid_mappings(Some(mappings(gids)?));
    Ok(())
}

/// Reads a document of the specification. Capabilities that this version does not know are left out and told, as a
/// container without them is only tighter.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path, log: &Log) -> Result<T, Report> {
    let file = File::open(path).call(|| format!("open({path:?})"))?;
    let mut bytes = Vec::with_capacity(sys::file::SMALL);
    file.take(CONFIG_MAX + 1).read_to_end(&mut bytes).call(|| format!("read({path:?})"))?;
    if bytes.len() as u64 > CONFIG_MAX {
        return Err(Report::new(Kind::Usage, format!("it is larger than {} MiB", CONFIG_MAX >> 20)));
    }
    parse(&bytes, &mut |words| log.warn(words))
}

/// Parses a document of the specification; see [`read`].
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8], warn: &mut dyn FnMut(&str)) -> Result<T, Report> {
    let first = match serde_json::from_slice(bytes) {
        Ok(document) => return Ok(document),
        Err(error) => error,
    };
    let bad = |error| Report::of(Kind::Usage, error);
    let mut value: Value = serde_json::from_slice(bytes).map_err(bad)?;
    let unknown = drop_unknown_capabilities(&mut value);
    if unknown.is_empty() {
        return Err(bad(first));
    }
    warn(&format!("ignoring unknown capabilities: {}", unknown.into_iter().collect::<Vec<_>>().join(", ")));
    serde_json::from_value(value).map_err(bad)
}

fn drop_unknown_capabilities(value: &mut Value) -> BTreeSet<String> {
    let mut unknown = BTreeSet::new();
    let sets = match value.get_mut("process") {
        Some(process) => process.get_mut("capabilities"),
        None => value.get_mut("capabilities"),
    };
    for set in sets.and_then(Value::as_object_mut).into_iter().flat_map(serde_json::Map::values_mut) {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| match name.as_str() {
                Some(name) if runtime::capabilities::parse(name).is_err() => {
                    unknown.insert(name.to_owned());
                    false
                }
                _ => true,
            });
        }
    }
    unknown
}

/// Ambient capabilities that are not permitted and inheritable cannot be raised, capabilities(7): they are left out. Root
/// has them all the same.
pub fn tell_ambient(process: &Process, log: &Log) {
    let Some(sets) = process.capabilities().as_ref().filter(|_| process.user().uid() != 0) else { return };
    let has = |set: &Option<Capabilities>, one| set.as_ref().is_some_and(|set| set.contains(one));
    let lost = sets.ambient().iter().flatten();
    let mut lost: Vec<String> = lost
        .filter(|one| !has(sets.permitted(), one) || !has(sets.inheritable(), one))
        .map(|one| format!("CAP_{one}"))
        .collect();
    if !lost.is_empty() {
        lost.sort_unstable();
        log.warn(&format!("ignoring ambient capabilities that are not permitted and inheritable: {}", lost.join(", ")));
    }
}

/// All that can be said without touching the host.
fn check(spec: &Spec, console_socket: bool) -> Result<(), Report> {
    let wrong = |message: &str| Err(Report::new(Kind::Usage, message));
    if !spec.version().starts_with("1.") && !spec.version().starts_with("0.") {
        return wrong(&format!("ociVersion {:?} is none that this runtime knows", spec.version()));
    }
    if let Some(process) = spec.process() {
        check_process(process, console_socket)?;
    }
    let Some(linux) = spec.linux() else { return wrong("there is no linux section, and so no mount namespace") };
    check_namespaces(spec, linux)?;
    check_user(spec, linux)?;
    check_hooks(spec)?;
    attributes::check(linux)?;
    devices::check(spec)?;
    if linux.intel_rdt().is_some() && !Path::new("/sys/fs/resctrl/schemata").exists() {
        return Err(Report::new(Kind::Unsupported, "intelRdt: this host has no resource control (/sys/fs/resctrl)"));
    }
    if linux.intel_rdt().is_some() {
        return Err(Report::new(Kind::Unsupported, "intelRdt: resource control needs root of the host"));
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(Report::new(Kind::Unsupported, "netDevices: moving a device of the host is not supported"));
    }
    if let Some(propagation) = linux.rootfs_propagation() {
        const KNOWN: [&str; 8] =
            ["private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"];
        if !propagation.is_empty() && !KNOWN.contains(&propagation.as_str()) {
            return wrong(&format!("rootfsPropagation {propagation:?} is none of {}", KNOWN.join(", ")));
        }
    }
    Ok(())
}

/// What is asked of the process of a container or of an exec.
pub fn check_process(process: &Process, console_socket: bool) -> Result<(), Report> {
    let wrong = |message: String| Err(Report::new(Kind::Usage, message));
    if !process.cwd().is_absolute() {
        return wrong(format!("the working directory {:?} is not absolute", process.cwd()));
    }
    if process.args().as_deref().unwrap_or_default().is_empty() {
        return wrong("process.args is empty".to_owned());
    }
    if console_socket && !process.terminal().unwrap_or(false) {
        return wrong("a console socket is given and the process has no terminal".to_owned());
    }
    let mut limits = BTreeSet::new();
    for limit in process.rlimits().iter().flatten() {
        if !limits.insert(limit.typ().to_string()) {
            return wrong(format!("the limit {} is there twice", limit.typ()));
        }
    }
    attributes::check_process(process)?;
    if let Some(sets) = process.capabilities() {
        // capset(2) would say so when the process is to begin.
        let subset = |one: &Option<Capabilities>, other: &Option<Capabilities>| {
            one.iter().flatten().all(|capability| other.as_ref().is_some_and(|other| other.contains(capability)))
        };
        if process.user().uid() == 0 && !subset(sets.effective(), sets.permitted()) {
            return wrong("an effective capability is not permitted".to_owned());
        }
        if !subset(sets.inheritable(), sets.bounding()) {
            return wrong("an inheritable capability is not in the bounding set".to_owned());
        }
    }
    if process.apparmor_profile().as_ref().is_some_and(|profile| !profile.is_empty()) && !has_apparmor() {
        return Err(Report::new(Kind::Unsupported, "apparmorProfile: AppArmor is not switched on on this host"));
    }
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) && !has_selinux() {
        return Err(Report::new(Kind::Unsupported, "selinuxLabel: SELinux is not switched on on this host"));
    }
    Ok(())
}

fn check_namespaces(spec: &Spec, linux: &Linux) -> Result<(), Report> {
    let wrong = |message: String| Err(Report::new(Kind::Usage, message));
    let listed = linux.namespaces().as_deref().unwrap_or_default();
    let mut types = BTreeSet::new();
    for namespace in listed {
        if !types.insert(namespace.typ().to_string()) {
            return wrong(format!("the namespace {} is there twice", namespace.typ()));
        }
        if namespace.path().as_ref().is_some_and(|path| !path.is_absolute()) {
            return wrong(format!("the path of the {} namespace is not absolute", namespace.typ()));
        }
    }
    let find = |typ| listed.iter().find(|namespace| namespace.typ() == typ);
    let new = |typ| find(typ).is_some_and(|namespace| namespace.path().is_none());
    if find(LinuxNamespaceType::Mount).is_none() {
        return Err(Report::new(Kind::Unsupported, "a root file system needs a mount namespace, and none is listed"));
    }
    let mapped = |mappings: &Option<Vec<_>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
    let (uids, gids) = (mapped(linux.uid_mappings()), mapped(linux.gid_mappings()));
    match find(LinuxNamespaceType::User) {
        None if uids || gids => return wrong("uidMappings and gidMappings need a user namespace".to_owned()),
        Some(user) if user.path().is_none() && !(uids && gids) => {
            return wrong("a new user namespace needs uidMappings and gidMappings".to_owned());
        }
        Some(user) if user.path().is_some() && (uids || gids) => {
            return wrong("a user namespace that is joined has its mappings already".to_owned());
        }
        None if sys::security::capabilities()?.effective & bit(Capability::SysAdmin) == 0 => {
            return Err(Report::new(Kind::Denied, "without a user namespace a container needs CAP_SYS_ADMIN")
                .with_hint("add a user namespace with mappings, as `spec --rootless` writes them"));
        }
        _ => {}
    }
    let asks = [
        (spec.hostname().is_some(), LinuxNamespaceType::Uts, "hostname"),
        (spec.domainname().is_some(), LinuxNamespaceType::Uts, "domainname"),
        (
            linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()),
            LinuxNamespaceType::Time,
            "timeOffsets",
        ),
    ];
    for (asked, typ, what) in asks {
        if asked && find(typ).is_none() {
            return wrong(format!("{what} needs a namespace of type {typ}"));
        }
    }
    if linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) && !new(LinuxNamespaceType::Time) {
        return wrong("timeOffsets of a time namespace that is joined cannot be changed".to_owned());
    }
    for name in linux.sysctl().iter().flatten().map(|(name, _)| name) {
        let owner = runtime::init::limits::sysctl_owner(name)?;
        let Some(namespace) = find(owner) else {
            return wrong(format!("sysctl {name} needs a namespace of type {owner}"));
        };
        if let Some(path) = namespace.path().as_ref().filter(|path| is_ours(owner, path)) {
            return wrong(format!("sysctl {name} would be set for the host, whose namespace {} is", path.display()));
        }
    }
    Ok(())
}

/// Whether a path leads to the namespace that we are in. One that leads nowhere is met again when it is to be joined.
fn is_ours(typ: LinuxNamespaceType, path: &Path) -> bool {
    let name = match typ {
        LinuxNamespaceType::Network => "net",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Uts => "uts",
        _ => "ipc",
    };
    let identity = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let theirs = identity(path);
    theirs.is_some() && theirs == identity(&Path::new("/proc/self/ns").join(name))
}

/// Whether the process's user has an id in the container; in a user namespace that is joined, init says so.
fn check_user(spec: &Spec, linux: &Linux) -> Result<(), Report> {
    let Some(process) = spec.process() else { return Ok(()) };
    if joins_user(spec) {
        return Ok(());
    }
    let map = |mappings: &Option<Vec<_>>| mappings.as_deref().map(extents).unwrap_or_default();
    let (uids, gids) = if is_new(spec, LinuxNamespaceType::User) {
        (map(linux.uid_mappings()), map(linux.gid_mappings()))
    } else {
        own_maps()?
    };
    check_mapped(process, groups(spec, process), &uids, &gids)
}

/// What becomes of the groups of a process that asks for additional ones; else there is nothing to be found out.
fn groups(spec: &Spec, process: &Process) -> Groups {
    let asks = process.user().additional_gids().as_ref().is_some_and(|gids| !gids.is_empty());
    Groups::of(asks && may_set_groups(spec), keeps_groups(spec))
}

/// Additional groups that cannot be set: the process keeps those of the caller.
pub fn tell_groups(spec: &Spec, process: &Process, log: &Log) {
    let gids = process.user().additional_gids().as_deref().unwrap_or_default();
    if !gids.is_empty() && !keeps_groups(spec) && groups(spec, process) == Groups::Keep {
        let gids: Vec<String> = gids.iter().map(u32::to_string).collect();
        log.warn(&format!(
            "additionalGids: a user namespace without subordinate ids allows no setgroups(2); ignoring {}",
            gids.join(", ")
        ));
    }
}

/// A label of mounts where nothing reads labels: they are made without, as with crun. What confines the process by one is an
/// error there instead.
fn drop_mount_label(spec: &mut Spec, log: &Log) {
    let Some(linux) = spec.linux_mut().as_mut().filter(|_| !has_selinux()) else { return };
    let given = linux.mount_label().as_ref().is_some_and(|label| !label.is_empty());
    linux.set_mount_label(None);
    if given {
        log.warn("ignoring mountLabel: SELinux is not switched on on this host");
    }
}

fn check_hooks(spec: &Spec) -> Result<(), Report> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated, reason = "configurations of version 1.0 have it")]
    let kinds = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    for hook in kinds.into_iter().flatten().flatten() {
        if !hook.path().is_absolute() {
            return Err(Report::new(Kind::Usage, format!("the hook {:?} is not an absolute path", hook.path())));
        }
        if hook.timeout().is_some_and(|seconds| seconds <= 0) {
            return Err(Report::new(Kind::Usage, format!("the timeout of the hook {:?} is not positive", hook.path())));
        }
    }
    Ok(())
}

impl Loaded {
    /// What hooks and a seccomp agent are told.
    pub fn context(&self, id: &str) -> HookContext {
        HookContext { id: id.to_owned(), bundle: self.bundle.clone() }
    }

    /// What init is to do.
    pub fn launch(&self, id: &str, arguments: &Bundle) -> Launch {
        let linux = self.spec.linux().as_ref();
        let mappings = |list: Option<&Option<Vec<_>>>| list.and_then(Option::as_deref).map(extents).unwrap_or_default();
        let uid_map = mappings(linux.map(Linux::uid_mappings));
        let gid_map = mappings(linux.map(Linux::gid_mappings));
        let mut spec = self.spec.clone();
        if spec.process().is_none() {
            // A container may be created without; then `start` says that there is nothing to run.
            let mut nothing = Process::default();
            nothing.set_args(None).set_cwd(PathBuf::from("/"));
            spec.set_process(Some(nothing));
        }
        Launch {
            spec,
            user: String::new(),
            groups: Vec::new(),
            rootfs: Rootfs::Directory { path: self.rootfs.clone(), pivot: !arguments.no_pivot },
            setgroups: may_set_groups(&self.spec),
            devices: BTreeMap::new(),
            binds: BTreeMap::new(),
            uid_map,
            gid_map,
            caller_is_unmapped: false,
            network: None,
            plugged: false,
            reaper: false,
            keyring: !arguments.no_new_keyring,
            keep_groups: keeps_groups(&self.spec),
            preserve_fds: preserved(arguments.preserve_fds),
            listen_fds: listen_fds(),
            bundle: Some(self.context(id)),
            default_profile: None,
            notify: false,
        }
    }
}

/// How many descriptors are handed on: those of the option, and those of systemd's socket activation.
pub fn preserved(option: u16) -> i32 {
    i32::from(option) + listen_fds()
}

/// `LISTEN_FDS` of sd_listen_fds(3), if it is meant for us.
pub fn listen_fds() -> i32 {
    let ours = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    if !ours {
        return 0;
    }
    std::env::var("LISTEN_FDS").ok().and_then(|text| text.parse::<u16>().ok()).map_or(0, i32::from)
}

/// Whether the payload keeps the caller's supplementary groups.
pub fn keeps_groups(spec: &Spec) -> bool {
    spec.annotations().as_ref().and_then(|all| all.get(KEEP_GROUPS)).is_some_and(|value| value == "1")
}

/// Whether setgroups(2) will be allowed: a user namespace that a plain user has mapped by itself, one id, forbids it.
pub fn may_set_groups(spec: &Spec) -> bool {
    let linux = spec.linux().as_ref();
    let gids = linux.and_then(|linux| linux.gid_mappings().as_deref()).unwrap_or_default();
    let ours = allows_setgroups("self").unwrap_or(false);
    let root = nix::unistd::geteuid().is_root();
    match gids {
        [] => ours && root,
        [one] if one.size() == 1 => ours && root,
        _ => ours,
    }
}
