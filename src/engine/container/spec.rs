//! From a container's record to the OCI runtime specification, with Docker's defaults.
//!
//! The user is not resolved here: names are looked up in the container's own files, by init. Ids are not mapped here
//! either: which ids there are is known when the container starts.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base::{Context, Kind, Report};
use net::Addressing;
use oci_spec::runtime::{
    Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceType, LinuxSeccomp, Mount, Process, Root, Spec,
};

use crate::Engine;
use crate::container::devices::{Devices, Given};
use crate::container::joined::Joined;
use crate::container::record::{
    Below, HostSettings, IpcMode, NetworkMode, PidMode, Record, Seccomp, Volume, VolumeSource,
};
use crate::container::{files, isolation};
use crate::file::failed;
use crate::volume::{self, Place};

/// Where programs are looked for when nothing says so.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden: they tell of, or reach, the machine rather than the container.
pub(crate) const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// Readable only: writing them changes the machine.
pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where POSIX message queues and shared memory are, mq_overview(7), shm_overview(7).
const QUEUES: &str = "/dev/mqueue";
const SHARED_MEMORY: &str = "/dev/shm";
/// How much of it a container has where nothing is said, as in Docker.
pub(crate) const SHM_BYTES: u64 = 64 << 20;

/// What a start needs of a container's record.
#[derive(Clone, Debug)]
pub struct Launchable {
    /// The specification; its root path is to be set by whoever mounts the root file system.
    pub spec: Spec,
    /// As [`runtime::Launch::default_profile`].
    pub default_profile: Option<u64>,
    /// `USER[:GROUP]`, to be looked up in the container.
    pub user: String,
}

/// The specification of a container with its devices. Writes the files of `/etc` that are bound into it to its
/// directory, and makes the host's directories that are bound into it and are not there.
pub(crate) fn spec(
    engine: &Engine,
    record: &Record,
    devices: &Devices,
    joined: &Joined,
    addressing: &[&Addressing],
) -> Result<Launchable, Report> {
    files::write(engine, record, addressing)?;
    let capabilities = capabilities(&record.host)?;
    let mut spec = Spec::default();
    let mut root = Root::default();
    root.set_path(PathBuf::from("rootfs")).set_readonly(Some(record.host.read_only));
    spec.set_root(Some(root))
        .set_hostname(Some(record.settings.hostname.clone()).filter(|_| !record.host.host_uts))
        .set_domainname(Some(record.settings.domainname.clone()).filter(|name| !name.is_empty()))
        .set_annotations(Some(record.host.annotations.clone().into_iter().collect()))
        .set_process(Some(process(record, capabilities, &devices.given)?))
        .set_mounts(Some(mounts(engine, record, &devices.mounts)?))
        .set_hooks(devices.hooks.clone())
        .set_linux(Some(linux(record, capabilities, devices, joined)?));
    let default_profile = matches!(record.host.seccomp, Seccomp::Default).then_some(capabilities);
    Ok(Launchable { spec, default_profile, user: record.settings.user.clone() })
}

fn capabilities(host: &HostSettings) -> Result<u64, Report> {
    Ok(runtime::capabilities::resolve(&host.cap_add, &host.cap_drop, host.privileged)?)
}

/// Refuses names that are no capabilities.
pub fn check_capabilities(add: &[String], drop: &[String]) -> Result<(), Report> {
    runtime::capabilities::resolve(add, drop, false)?;
    Ok(())
}

/// What a further process of a container is like, with or without a terminal: its environment, directory, capabilities.
pub(crate) fn process_of(engine: &Engine, record: &Record, terminal: bool) -> Result<Process, Report> {
    let capabilities = capabilities(&record.host)?;
    let mut process = process(record, capabilities, &Given::default())?;
    process.set_terminal(Some(terminal)).set_env(Some(environment(record, terminal)));
    Given::load(engine, &record.id)?.edit(&mut process);
    Ok(process)
}

/// The sets of a process that has these capabilities.
pub(crate) fn capability_sets(capabilities: u64) -> LinuxCapabilities {
    let set = runtime::capabilities::to_spec(capabilities);
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_effective(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}

fn process(record: &Record, capabilities: u64, given: &Given) -> Result<Process, Report> {
    let settings = &record.settings;
    let mut process = Process::default();
    let workdir = if settings.workdir.is_empty() { "/" } else { &settings.workdir };
    process
        .set_terminal(Some(settings.tty))
        .set_args(Some(record.command_line()))
        .set_env(Some(environment(record, settings.tty)))
        .set_cwd(Path::new("/").join(workdir))
        .set_capabilities(Some(capability_sets(capabilities)))
        .set_rlimits(Some(record.host.ulimits.iter().map(isolation::rlimit).collect::<Result<_, _>>()?))
        .set_oom_score_adj(record.host.oom_score_adj)
        .set_io_priority(record.host.io_class.map(isolation::io_priority).transpose()?)
        .set_no_new_privileges(Some(record.host.no_new_privileges));
    let mut user = process.user().clone();
    user.set_umask(record.host.umask);
    process.set_user(user);
    given.edit(&mut process);
    Ok(process)
}

/// The record's variables over those that every container has, for a process with or without a terminal. `HOME` is set by
/// init, which knows the user's.
pub(crate) fn environment(record: &Record, terminal: bool) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", record.settings.hostname)];
    if terminal {
        env.push("TERM=xterm".to_owned());
    }
    env.retain(|default| {
        let name = default.split_once('=').map_or("", |(name, _)| name);
        !record.settings.env.iter().any(|entry| entry.split_once('=').is_some_and(|(given, _)| given == name))
    });
    env.extend(record.settings.env.iter().cloned());
    env
}

fn mounts(engine: &Engine, record: &Record, of_devices: &[Mount]) -> Result<Vec<Mount>, Report> {
    // A privileged container may change what is its own.
    let writable = if record.host.privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", writable]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", writable]),
    ];
    list.extend(ipc(engine, &record.host)?);
    let mut own = own_mounts(engine, record)?;
    // As the specification of CDI has it, in place of what was asked for otherwise.
    own.retain(|given| of_devices.iter().all(|mount| mount.destination() != given.destination()));
    for mount in of_devices {
        if let Some(source) = mount.source().as_ref().filter(|_| mount.typ().as_deref() == Some("bind")) {
            refuse_ours(engine, source).step(|| format!("mounting {}", mount.destination().display()))?;
            own.push(mount.clone());
            own.extend(hide_ours(engine, source, mount.destination())?);
        } else {
            own.push(mount.clone());
        }
    }
    // What lies above comes first, whatever the order on the command line; the sort keeps the order of equals.
    own.sort_by_key(|mount| mount.destination().components().count());
    let covered = |default: &Mount| own.iter().any(|given| given.destination() == default.destination());
    list.retain(|default| !covered(default));
    let directory = files::directory(engine, record)?;
    let files = files::BOUND.iter().filter(|(name, _)| !record.host.no_hosts || *name != files::HOSTS);
    let files = files.map(|(name, destination)| bind(&directory.join(name), destination));
    // A volume that the image has around them must not hide them.
    let anonymous = || record.host.volumes.iter().filter(|volume| volume.anonymous);
    let (late, early): (Vec<Mount>, Vec<Mount>) = files
        .filter(|file| !covered(file))
        .partition(|file| anonymous().any(|volume| file.destination().starts_with(&volume.destination)));
    list.extend(early);
    list.extend(own);
    list.extend(late);
    Ok(list)
}

/// The file systems of message queues and of shared memory.
fn ipc(engine: &Engine, host: &HostSettings) -> Result<Vec<Mount>, Report> {
    let options = ["nosuid", "noexec", "nodev"];
    let queues = mount(QUEUES, "mqueue", "mqueue", &options);
    let size = format!("size={}", host.shm_bytes.unwrap_or(SHM_BYTES));
    Ok(match &host.ipc {
        IpcMode::Private | IpcMode::Shareable => {
            let memory = [&options[..], &["mode=1777", &size]].concat();
            vec![queues, mount(SHARED_MEMORY, "tmpfs", "shm", &memory)]
        }
        // The stage brings it.
        IpcMode::Container(_) => {
            let mut theirs = bind(Path::new(SHARED_MEMORY), SHARED_MEMORY);
            theirs.set_options(Some(["bind"].iter().chain(&options).map(|word| (*word).to_owned()).collect()));
            vec![queues, theirs]
        }
        IpcMode::None => vec![queues],
        IpcMode::Host => {
            let mut theirs = Vec::new();
            for path in [QUEUES, SHARED_MEMORY].map(Path::new).into_iter().filter(|path| path.is_dir()) {
                refuse_ours(engine, path)?;
                theirs.push(bind(path, &path.to_string_lossy()));
                theirs.extend(hide_ours(engine, path, path)?);
            }
            theirs
        }
    })
}

/// Where a container has the shared memory of another one, unless it has something else there.
pub(crate) fn joined_memory(record: &Record) -> Option<PathBuf> {
    let host = &record.host;
    let mut own =
        host.volumes.iter().map(|volume| &volume.destination).chain(host.tmpfs.iter().map(|(place, _)| place));
    let is_joined = matches!(host.ipc, IpcMode::Container(_)) && own.all(|place| place != SHARED_MEMORY);
    is_joined.then(|| PathBuf::from(SHARED_MEMORY))
}

/// Volumes and file systems in memory.
fn own_mounts(engine: &Engine, record: &Record) -> Result<Vec<Mount>, Report> {
    let mut list = Vec::new();
    for volume in &record.host.volumes {
        let path = source(engine, volume)?;
        let destination = &volume.destination;
        let mut mount = mount(destination, "bind", "", &[]);
        mount.set_source(Some(path.clone())).set_options(Some(words(volume)));
        list.push(mount);
        let hidden = hide_ours(engine, &path, Path::new(destination))?;
        if volume.subpath.is_some() && !hidden.is_empty() {
            // Where they would lie in the part the container could decide by links.
            let text = format!("sublet's own directories lie in {}, of which a part is wanted", path.display());
            return Err(Report::new(Kind::Unsupported, text).with_hint("bind that part by its own path"));
        }
        list.extend(hidden);
    }
    for (destination, options) in &record.host.tmpfs {
        let mut words = vec!["nosuid", "nodev", "noexec", "mode=1777"];
        for word in options.split(',').filter(|word| !word.is_empty()) {
            let key = word.split('=').next().unwrap_or_default();
            words.retain(|default| *default != format!("no{key}") && !default.starts_with(&format!("{key}=")));
            words.push(word);
        }
        list.push(mount(destination, "tmpfs", "tmpfs", &words));
    }
    if record.image.is_host() && record.host.host_home {
        let home = home(engine).step(|| "looking for the home directory (--host-home)".to_owned())?;
        list.push(bind(&home, &home.to_string_lossy()));
        list.extend(hide_ours(engine, &home, &home)?);
    }
    Ok(list)
}

/// The words of a volume's mount.
fn words(volume: &Volume) -> Vec<String> {
    // overlayfs shows nothing of what is mounted below it.
    let recursive = volume.below != Below::Hidden && !volume.cow;
    let moves =
        |word: &String| ["private", "slave", "shared"].iter().any(|known| word.trim_start_matches('r') == *known);
    let mut words = vec![if recursive { "rbind" } else { "bind" }.to_owned()];
    if !volume.options.iter().any(moves) {
        words.push("rprivate".to_owned());
    }
    if volume.read_only {
        // As Docker does since 25.0: what is mounted below the source as well.
        words.push(if volume.below == Below::Shown { "rro" } else { "ro" }.to_owned());
    }
    words.extend(volume.options.iter().cloned());
    words
}

/// Where what a volume shows lies on the host, made where that was asked for.
pub(crate) fn source(engine: &Engine, volume: &Volume) -> Result<PathBuf, Report> {
    let path = match &volume.source {
        VolumeSource::Named(name) => match volume::place(engine, name)? {
            Place::Ours(place) => return Ok(place),
            Place::Device(device) => device,
        },
        VolumeSource::Path(path) => {
            if volume.must_exist && fs::symlink_metadata(path).is_err() {
                return Err(missing_source(path));
            }
            make_source(path)?;
            path.clone()
        }
    };
    refuse_ours(engine, &path)?;
    Ok(path)
}

/// Docker's words for a bind whose source is not there and is not to be made.
pub(crate) fn missing_source(path: &Path) -> Report {
    let text = format!("invalid mount config for type \"bind\": bind source path does not exist: {}", path.display());
    Report::new(Kind::Usage, text).with_hint("-v makes a directory that is not there")
}

/// A directory of the host that is to be bound and is not there is made, as Docker does; it is the caller's.
fn make_source(path: &Path) -> Result<(), Report> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|error| failed("creating mount source path", path, error))
}

/// A container that could write our own directories could change what other containers are made of, and speak to their
/// monitors' sockets.
fn refuse_ours(engine: &Engine, path: &Path) -> Result<(), Report> {
    let source = real(path)?;
    for (what, ours) in [("data", engine.paths().data()), ("runtime", engine.paths().run())] {
        if source.starts_with(real(ours)?) {
            let text = format!("{} is in sublet's own {what} directory {}", path.display(), ours.display());
            return Err(Report::new(Kind::Denied, text).with_hint("bind another directory, or use a named volume"));
        }
    }
    Ok(())
}

/// Empty directories over our own ones where a bound directory, such as the home, holds them.
fn hide_ours(engine: &Engine, source: &Path, destination: &Path) -> Result<Vec<Mount>, Report> {
    let source = real(source)?;
    let mut list = Vec::new();
    for ours in [engine.paths().data(), engine.paths().run()] {
        if let Ok(below) = real(ours)?.strip_prefix(&source)
            && !below.as_os_str().is_empty()
        {
            let place = destination.join(below);
            list.push(mount(&place.to_string_lossy(), "tmpfs", "tmpfs", &["ro", "nosuid", "nodev", "noexec"]));
        }
    }
    Ok(list)
}

fn real(path: &Path) -> Result<PathBuf, Report> {
    fs::canonicalize(path).map_err(|error| failed("resolving", path, error))
}

/// The caller's home directory, as the environment names it, else `/etc/passwd`. The whole root is no home, though services
/// are given it as one: with it every change would reach the host.
fn home(engine: &Engine) -> Result<PathBuf, Report> {
    let home = engine.options().home.clone().map_or_else(passwd_home, Ok)?;
    let real = fs::canonicalize(&home).map_err(|error| failed("finding", &home, error))?;
    if real == Path::new("/") {
        return Err(Report::new(Kind::Usage, format!("{} is the root directory, not a home", home.display()))
            .with_hint("set HOME to your home directory, or bind what you need with -v"));
    }
    Ok(home)
}

/// The caller's home directory, as far as `/etc/passwd` tells.
pub(crate) fn passwd_home() -> Result<PathBuf, Report> {
    let uid = nix::unistd::getuid();
    let passwd = fs::read_to_string("/etc/passwd").map_err(|error| Report::of(Kind::Internal, error))?;
    let line = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let mut mine = line.filter(|fields| fields.get(2).is_some_and(|field| field.parse() == Ok(uid.as_raw())));
    let home = mine.find_map(|fields| fields.get(5).map(PathBuf::from));
    home.ok_or_else(|| Report::new(Kind::NotFound, format!("/etc/passwd has no user {uid}")))
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(PathBuf::from(destination))
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    mount
}

fn bind(source: &Path, destination: &str) -> Mount {
    let mut mount = mount(destination, "bind", "", &["rbind", "rprivate"]);
    mount.set_source(Some(source.to_owned()));
    mount
}

/// What is hidden in a container.
pub(crate) fn masked(host: &HostSettings) -> Vec<String> {
    if host.privileged || host.unmasked { Vec::new() } else { MASKED.map(str::to_owned).to_vec() }
}

/// What cannot be written in a container.
pub(crate) fn kept_read_only(host: &HostSettings) -> Vec<String> {
    if host.privileged || host.unmasked { Vec::new() } else { READ_ONLY.map(str::to_owned).to_vec() }
}

fn linux(record: &Record, capabilities: u64, devices: &Devices, joined: &Joined) -> Result<Linux, Report> {
    let host = &record.host;
    let namespaces = [
        (LinuxNamespaceType::User, true),
        (LinuxNamespaceType::Mount, true),
        (LinuxNamespaceType::Pid, host.pid != PidMode::Host),
        (LinuxNamespaceType::Ipc, host.ipc != IpcMode::Host),
        (LinuxNamespaceType::Cgroup, !host.host_cgroups),
        (LinuxNamespaceType::Uts, !host.host_uts),
        (LinuxNamespaceType::Network, host.network != NetworkMode::Host),
    ];
    let own = namespaces.into_iter().filter_map(|(kind, own)| own.then_some(kind));
    let namespaces = own.map(|kind| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(kind).set_path(joined.path(kind));
        namespace
    });
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.collect()))
        .set_masked_paths(Some(masked(host)))
        .set_readonly_paths(Some(kept_read_only(host)))
        .set_sysctl(Some(host.sysctls.clone().into_iter().collect()))
        .set_seccomp(seccomp(&record.host.seccomp, capabilities)?)
        .set_resources(None)
        .set_devices(Some(devices.nodes.iter().map(|(device, _)| device.clone()).collect()));
    Ok(linux)
}

fn seccomp(choice: &Seccomp, capabilities: u64) -> Result<Option<LinuxSeccomp>, Report> {
    match choice {
        // The default one is made where it is compiled.
        Seccomp::Unconfined | Seccomp::Default => Ok(None),
        Seccomp::Profile(text) => {
            let host = runtime::seccomp::document::Host::here(capabilities);
            runtime::seccomp::document::read(text, host).step(|| "reading the seccomp profile".to_owned())
        }
    }
}
