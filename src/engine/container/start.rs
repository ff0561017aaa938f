//! Starting a container: everything that is decided before its monitor exists.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use ::snapshot::Driver;
use base::units::parse_signal;
use base::{ContainerId, Context, Kind, Report};
use monitor::client::{Begun, ClientError};
use monitor::log::Rules;
use monitor::networks::Joining;
use monitor::protocol::Frame;
use monitor::record::State;
use monitor::restart::Policy;
use monitor::role::RuntimeHooks;
use monitor::tidy::After;
use runtime::Launch;
use runtime::launch::{Bind, HookContext, HostDevice};
use runtime::outer::{Caller, OuterMap, ladder_of};
use sys::namespace::IdMap;
use sys::role::Spawn;

use crate::Engine;
use crate::container::attach::{Attachment, Streams, Until};
use crate::container::devices::Devices;
use crate::container::joined::{self, Joined};
use crate::container::lock::{ContainerLock, lock};
use crate::container::record::{
    HostSettings, IpcMode, NetworkMode, PidMode, Record, Seccomp, Settings, UserNamespace, load,
};
use crate::container::state::{self, Condition, Life, condition};
use crate::container::wait::Watch;
use crate::container::{damage, driver, fit, health, limits, log_driver, network, remove, rootfs, snapshot, spec};
use crate::events;
use crate::file::replace_json;
use crate::network::join::{Place, join_all};
use crate::network::program;
use crate::paths::make_dir;
use crate::volume;

/// How a start ended.
#[derive(Debug)]
pub enum Started {
    /// The container runs.
    Detached,
    /// It runs, joined to streams of ours.
    Attached(Attachment),
    /// A signal that ends programs came first, and the start was given up: the container is as it was before, or is
    /// removed where it was to be at its end.
    Interrupted {
        /// Its number.
        signal: i32,
    },
}

/// Starts a created or ended container and returns when its payload has been executed; one that runs already is
/// [`Started::Detached`].
///
/// With `streams` the attachment is connected before that, so that no byte is lost. The caller must have one thread.
/// Until the monitor exists a signal ends the caller as it would end any program, then it is [`Started::Interrupted`].
pub fn start(engine: &Engine, id: &ContainerId, streams: Option<&Streams>) -> Result<Started, Report> {
    let record = load(engine, id)?;
    start_locked(engine, &record, lock(engine, id)?, streams)
}

/// The same for a caller that holds the container's lock.
pub(crate) fn start_locked(
    engine: &Engine,
    record: &Record,
    locked: ContainerLock,
    streams: Option<&Streams>,
) -> Result<Started, Report> {
    if locked.condition.is_paused() {
        return Err(Report::new(Kind::Conflict, "cannot start a paused container, try unpause instead"));
    }
    if locked.condition.life.is_active() {
        return Ok(Started::Detached);
    }
    wait_taken_down(engine, record, &locked.condition)?;
    if streams.is_some() {
        events::of_container(engine, &record.id, "attach", &[]);
    }
    let launched = launch(engine, record, &locked.condition.state, Purpose::Run(streams));
    // Before the wait: a monitor whose start has failed may be removing the container.
    drop(locked);
    let Launched { socket, monitor, begun } = launched.map_err(|report| damage::explain(engine, record, report))?;
    match begun {
        Err(report) => {
            sys::process::reap(monitor.as_fd(), true)?;
            // A monitor that was killed has not done it.
            volume::in_use::leave(engine, record);
            let report = damage::explain(engine, record, report);
            Err(network::name_the_owner(engine, record, report))
        }
        Ok(Begun::Interrupted(signal)) => {
            drop(socket);
            monitor::client::wait_given_up(monitor.as_fd())?;
            Ok(Started::Interrupted { signal })
        }
        Ok(Begun::Started) => {
            let Some(streams) = streams else {
                monitor::client::unblock_signals()?;
                return Ok(Started::Detached);
            };
            let until = match record.host.restart {
                _ if record.host.auto_remove => Until::Gone,
                Policy::No => Until::Tidied(monitor),
                // The monitor may have further runs before it.
                _ => Until::Exit,
            };
            Ok(Started::Attached(Attachment::new(socket, streams.clone(), until)))
        }
    }
}

/// A container that is set up and does not run.
pub(crate) struct Held {
    socket: OwnedFd,
    monitor: OwnedFd,
}

impl Held {
    /// Takes it down again. Nobody may hold the container's lock, which its monitor takes.
    pub(crate) fn let_go(self) -> Result<(), Report> {
        drop(self.socket);
        sys::process::reap(self.monitor.as_fd(), true)?;
        Ok(())
    }
}

/// Sets up a container that does not run, so that its files are there as it has them: with its volumes, and without devices,
/// file systems in memory or a network. Its record of processes names its init. The caller holds the container's lock and
/// has one thread.
pub(crate) fn hold(engine: &Engine, record: &Record, locked: &ContainerLock) -> Result<Held, Report> {
    let files = Record {
        settings: Settings { user: record.settings.user.clone(), ..Settings::default() },
        host: HostSettings {
            tmpfs: Vec::new(),
            devices: Vec::new(),
            device_requests: Vec::new(),
            seccomp: Seccomp::Default,
            init: false,
            auto_remove: false,
            privileged: false,
            ulimits: Vec::new(),
            sysctls: BTreeMap::new(),
            oom_score_adj: None,
            io_class: None,
            // Another's need not run; the ids stay those that it has with it.
            network: NetworkMode::None,
            networks: Vec::new(),
            pid: PidMode::Private,
            ipc: IpcMode::Private,
            userns: joined::owner_of_ids(engine, record)?.host.userns,
            ..record.host.clone()
        },
        ..record.clone()
    };
    wait_taken_down(engine, record, &locked.condition)?;
    let Launched { socket, monitor, begun } = launch(engine, &files, &locked.condition.state, Purpose::Hold)?;
    match begun {
        Ok(Begun::Started) => {
            // The copy may take long.
            monitor::client::unblock_signals()?;
            Ok(Held { socket, monitor })
        }
        Ok(Begun::Interrupted(_)) => Err(Report::new(Kind::Conflict, "a signal came before its files were there")),
        Err(report) => Err(report),
    }
}

/// Waits until the monitor of a container that has ended has taken its cgroup and its runtime directory down, which would
/// else be the next one's.
fn wait_taken_down(engine: &Engine, record: &Record, condition: &Condition) -> Result<(), Report> {
    let Some(pids) = &condition.pids else { return Ok(()) };
    let run_dir = engine.paths().run_container(&record.id);
    let mut watch = Watch::new(engine, &record.id)?;
    while run_dir.exists() && pids.monitor()?.is_some() {
        watch.life()?;
        watch.wait()?;
    }
    Ok(())
}

/// Gives up the start of a container, if it is being started; it may run nevertheless when this returns.
pub(crate) fn give_up(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    if condition(engine, id)?.life != Life::Starting {
        return Ok(());
    }
    let mut watch = Watch::new(engine, id)?;
    let socket = match monitor::client::dial(&engine.paths().run_container(id)) {
        Ok(socket) => socket,
        // It has ended, or was killed.
        Err(ClientError::NoMonitor { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    monitor::client::send_or_gone(socket.as_fd(), &Frame::Abort(0))?;
    while watch.life()? == Life::Starting {
        watch.wait()?;
    }
    Ok(())
}

/// What a container is set up for.
#[derive(Clone, Copy)]
enum Purpose<'a> {
    /// To run, joined to streams of ours if there are any.
    Run(Option<&'a Streams>),
    /// To have its files.
    Hold,
}

/// A monitor that has given its word.
pub(crate) struct Launched {
    socket: OwnedFd,
    monitor: OwnedFd,
    pub(crate) begun: Result<Begun, Report>,
}

fn launch(engine: &Engine, record: &Record, before: &State, purpose: Purpose<'_>) -> Result<Launched, Report> {
    let (streams, hold) = match purpose {
        Purpose::Run(streams) => (streams, false),
        Purpose::Hold => (None, true),
    };
    engine.paths().make_run()?;
    let driver = driver::choose(engine, record)?;
    let base = rootfs::connect(engine, record, driver)?;
    // Told once, by the start that makes the namespace; but --strict has a say in each.
    let found = || engine.options().strict.then(|| ladder_of(&Caller::current(None), &base.map));
    if let Some(line) = base.ladder.clone().or_else(found).and_then(|ladder| ladder.step_down()) {
        engine.step_down(&line)?;
    }
    // Told once as well, by the server that starts.
    let strict = engine.options().strict && driver.is_served();
    let unconfined = strict.then(|| ::snapshot::confinement(driver)).and_then(|found| found.step_down());
    if let Some(line) = unconfined {
        engine.step_down(&line)?;
    }
    if let Some(line) = fit::step_down(record) {
        engine.step_down(&line)?;
    }
    let run_dir = rootfs::run_dir(engine, record)?;
    let devices = devices(engine, record)?;
    let joined = Joined::open(engine, record)?;
    let places = join_all(engine, record, base.user_namespace.as_fd())?;
    let own = network::addressing(record);
    let joinings: Vec<Joining> = places.iter().map(|place| place.admission.joining.clone()).collect();
    let addressing = network::in_order(own.as_ref(), &joinings);
    let launchable = spec::spec(engine, record, &devices, &joined, &addressing)?;
    let (uid_map, gid_map) = rootfs::container_maps(engine, record, &base.map)?;
    let owner = snapshot::foreign_root(&base.map, &uid_map, &gid_map);
    let setgroups = base.map.setgroups && record.host.userns != UserNamespace::Single;
    let keep_groups = keep_groups(engine, &record.host, &devices, setgroups)?;
    let one_id = [&uid_map, &gid_map].iter().all(|map| map.iter().map(|extent| extent.size).sum::<u32>() == 1);
    let filtered = !matches!(record.host.seccomp, Seccomp::Unconfined);
    let notify = one_id && filtered && sys::notification::is_possible();
    let context = if hold {
        // An init with a bundle lets others enter its namespaces before its exec.
        Some(HookContext { id: record.id.to_string(), bundle: engine.paths().container(&record.id) })
    } else {
        devices.hooks.as_ref().map(|_| hook_context(engine, record, &launchable)).transpose()?
    };
    let reclaim = if record.host.auto_remove { Vec::new() } else { snapshot::native_layers(engine, record, driver) };
    let remove = record.host.auto_remove.then(|| remove::order(engine, &record.id)).transpose()?;
    let volumes = volume::in_use::order(engine, record, driver == Driver::Tree)?;
    let after = After { reclaim, volumes, remove, unmount_first: driver == Driver::Fuse };
    // From here on files may become others', and nothing fails without giving them back.
    if driver.is_native() || !record.volume_names().is_empty() {
        state::begin(engine, &record.id)?;
    }
    let leave = |_: &Report| state::give_up(engine, record);
    let prepared = snapshot::prepare(engine, record, driver, (&uid_map, &gid_map), owner, &base).inspect_err(leave)?;
    // Held until the monitor has given its word.
    let snapshot::Prepared { rootfs, tree } = prepared;
    let outer = base.user_namespace.as_fd();
    let volumes = volume::in_use::enter(engine, record, outer, (&uid_map, &gid_map));
    let (volumes, tree) = match volumes {
        Ok(volumes) => (volumes, tree),
        Err(report) => {
            drop(tree);
            leave(&report);
            return Err(report);
        }
    };
    sys::step();
    let begin = || {
        // Now that volumes have their owners, which layers above them take over.
        let mut binds = snapshot::prepare_binds(engine, record, (&uid_map, &gid_map), owner, &base)?;
        binds.extend(spec::joined_memory(record).map(|place| (place, Bind { joined: true, ..Bind::default() })));
        let launch = Launch {
            spec: launchable.spec,
            user: if hold { String::new() } else { user(record, &launchable.user) },
            groups: if hold { Vec::new() } else { named_groups(&record.host).to_vec() },
            rootfs,
            binds,
            devices: host_devices(&devices, &base.map, (&uid_map, &gid_map)),
            uid_map,
            gid_map,
            setgroups,
            caller_is_unmapped: owner.is_some(),
            network: own.clone().filter(|_| record.host.network == NetworkMode::Builtin),
            plugged: record.host.network.publishes(),
            reaper: record.host.init,
            keyring: true,
            keep_groups,
            preserve_fds: 0,
            listen_fds: 0,
            bundle: context.clone(),
            default_profile: launchable.default_profile,
            notify,
        };
        let config = monitor::role::Config {
            id: record.id.clone(),
            container_dir: engine.paths().container(&record.id),
            run_dir: run_dir.clone(),
            pid_file: record.host.pid_file.clone().filter(|_| !hold),
            log: Rules { journal: log_driver::journal(record), ..log_driver::rules(&record.host.log)? },
            launch: launch.write()?,
            terminal: record.settings.tty,
            stdin: record.settings.stdin,
            client_feeds: streams.is_some_and(|streams| streams.stdin),
            stdin_once: record.settings.attached,
            streams_owner: owner,
            network: own.filter(|_| record.host.network == NetworkMode::Builtin).map(|own| network::spec(record, own)),
            program: program::spec(engine, record, &run_dir)?,
            networks: places.iter().map(|place| place.admission.clone()).collect(),
            publish: if record.host.network == NetworkMode::Shared { network::published(record) } else { Vec::new() },
            hooks: devices.hooks.zip(context).map(|(hooks, context)| RuntimeHooks { hooks, context }),
            restart: if hold { Policy::No } else { record.host.restart },
            stop_signal: parse_signal(&record.settings.stop_signal).ok(),
            health: health::probes(engine, record)?,
            limits: if hold { cgroup::Limits::default() } else { limits::limits(&record.host)? },
            cgroup_parent: record.host.cgroup_parent.clone(),
            timeout_s: record.host.timeout_s,
            bus: engine.options().bus.clone(),
            servers: base
                .view
                .iter()
                .flat_map(|view| view.pids.clone())
                .chain(places.iter().map(|place| place.pid))
                .collect(),
            strict: engine.options().strict,
            hold,
            before: before.clone(),
            events: if hold { None } else { Some(events::order(engine, record)?) },
            after,
        };
        let rootfs::Base { user_namespace, view, .. } = base;
        let given = Given { outer: user_namespace.as_fd(), view, joined: &joined, places: &places, init: None };
        spawn(engine, &config, given, streams.is_some())
    };
    let spawned = begin();
    drop(volumes);
    drop(tree);
    // There is no monitor to do it.
    spawned.inspect_err(leave)
}

/// The container's devices as they are now; what its later processes get of them is written down.
fn devices(engine: &Engine, record: &Record) -> Result<Devices, Report> {
    let devices = Devices::resolve(engine, &record.host)?;
    devices.notices.iter().for_each(|line| engine.notice(line));
    devices.steps_down.iter().try_for_each(|line| engine.step_down(line))?;
    devices.given.save(engine, &record.id, !record.host.auto_remove)?;
    Ok(devices)
}

/// The groups of a container that are looked up in its files.
fn named_groups(host: &HostSettings) -> &[String] {
    if host.keeps_groups() { &[] } else { &host.groups }
}

/// Whether the container's processes keep the caller's supplementary groups, as they are to or since one of them opens a
/// device. Groups of the host have no number in the container, so there is no other way to have them. Then, and where
/// setgroups(2) is not allowed, those of the image, of the request and of the devices are not set.
fn keep_groups(engine: &Engine, host: &HostSettings, devices: &Devices, setgroups: bool) -> Result<bool, Report> {
    if setgroups && host.keeps_groups() {
        return Ok(true);
    }
    let keep = setgroups && devices.by_group.is_some();
    if let Some(path) = devices.by_group.as_ref().filter(|_| keep) {
        engine.step_down(&format!(
            "groups: {path} is open to you by a supplementary group, so the container keeps all of yours, and those of \
             its own /etc/group are not set (as root: setfacl -m u:{}:rw {path}, then they are)",
            nix::unistd::geteuid(),
            path = path.display(),
        ))?;
    }
    if setgroups && !keep {
        return Ok(false);
    }
    let own = nix::unistd::getgroups().unwrap_or_default();
    let lost = devices.given.gids.iter().filter(|gid| own.iter().all(|own| own.as_raw() != **gid));
    let lost: Vec<String> = lost.map(u32::to_string).collect();
    for (whose, lost) in [("the devices' groups", lost.as_slice()), ("the groups", named_groups(host))] {
        if !lost.is_empty() {
            let why = if keep { "yours are kept" } else { "one id does not allow it" };
            engine.step_down(&format!("groups: {whose} {} are not set, since {why}", lost.join(", ")))?;
        }
    }
    Ok(keep)
}

/// What hooks are told of a container, with the directory that they take for its bundle. Its root path leads nowhere: the
/// container's root directory lies where the monitor cannot see it.
fn hook_context(engine: &Engine, record: &Record, launchable: &spec::Launchable) -> Result<HookContext, Report> {
    let bundle = engine.paths().container(&record.id).join("bundle");
    make_dir(&bundle)?;
    let mut spec = launchable.spec.clone();
    if let (Some(linux), Some(capabilities)) = (spec.linux_mut(), launchable.default_profile) {
        linux.set_seccomp(Some(runtime::seccomp::default_profile(capabilities)));
    }
    replace_json(&bundle.join("config.json"), &spec, false)?;
    Ok(HookContext { id: record.id.to_string(), bundle })
}

/// Where the nodes are on the host, and who owns those that are made for the container.
fn host_devices(devices: &Devices, outer: &OuterMap, maps: (&IdMap, &IdMap)) -> BTreeMap<PathBuf, HostDevice> {
    let there = devices.nodes.iter().filter_map(|(device, path)| Some((device, path.clone()?)));
    let host = there.map(|(device, path)| {
        let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        let owner = snapshot::host_ids(outer, (maps.0, maps.1), owner);
        (device.path().clone(), HostDevice { path, owner })
    });
    host.collect()
}

/// What a monitor gets beside its configuration.
pub(crate) struct Given<'a> {
    /// The outer user namespace.
    pub outer: BorrowedFd<'a>,
    /// The view, for drivers that have one.
    pub view: Option<rootfs::ServedView>,
    /// Namespaces of others.
    pub joined: &'a Joined,
    /// Places in the networks that it shares, as the configuration has them.
    pub places: &'a [Place],
    /// The container's init, where the container runs already.
    pub init: Option<BorrowedFd<'a>>,
}

/// Starts a monitor and waits for its word. Signals are blocked then: see [`monitor::client::block_signals`].
pub(crate) fn spawn(
    engine: &Engine,
    config: &monitor::role::Config,
    given: Given<'_>,
    attached: bool,
) -> Result<Launched, Report> {
    let bytes = serde_json::to_vec(config).map_err(|error| Report::of(Kind::Internal, error))?;
    let (ours, theirs) = sys::socket::pair()?;
    monitor::client::block_signals()?;
    let Given { outer, mut view, joined, places, init } = given;
    let binary = view.as_mut().and_then(|view| view.binary.take());
    let binary = runtime::own_binary::for_containers(binary)?;
    let names: Vec<_> =
        (0..places.len()).map(|number| [format!("member-{number}"), format!("network-{number}")]).collect();
    let mut fds = vec![("client", theirs.as_fd()), ("outer", outer)];
    fds.extend(init.map(|init| ("init", init)));
    if let Some(rootfs::ServedView { socket, mount_namespace, .. }) = &view {
        fds.extend([("view", mount_namespace.as_fd()), ("fs", socket.as_fd())]);
    }
    fds.extend(joined.fds().map(|(name, fd)| -> (&str, _) { (name, fd) }));
    for ([member, network], place) in names.iter().zip(places) {
        fds.extend([(member.as_str(), place.socket.as_fd()), (network.as_str(), place.namespace.as_fd())]);
    }
    let leaf = cgroup::birthplace(&config.id, config.bus.as_deref());
    let mut spawn = Spawn {
        argv0: "sublet-monitor",
        label: config.id.short(),
        config: &bytes,
        fds: &fds,
        stdio: [None, None, None],
        session: true,
        cgroup: leaf.as_ref().map(AsFd::as_fd),
    };
    let mut child = spawn.start_from(binary.as_fd());
    if child.is_err() && spawn.cgroup.take().is_some() {
        // Another monitor may have taken the empty leaf for a left one; then ours moves itself.
        child = spawn.start_from(binary.as_fd());
    }
    let child = child.step(|| "starting the monitor".to_owned())?;
    drop(theirs);
    let begun = monitor::client::wait_started(ours.as_fd(), attached, |line| engine.notice(line));
    Ok(Launched { socket: ours, monitor: child.pidfd, begun })
}

/// With keep-id the payload is the user itself unless the image or the request names another.
pub(crate) fn user(record: &Record, user: &str) -> String {
    if record.host.userns == UserNamespace::KeepId && user.is_empty() {
        return format!("{}:{}", nix::unistd::geteuid(), nix::unistd::getegid());
    }
    match record.host.userns {
        UserNamespace::KeepAs { uid, gid } if user.is_empty() => format!("{uid}:{gid}"),
        _ => user.to_owned(),
    }
}
