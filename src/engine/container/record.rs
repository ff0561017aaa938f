//! `config.json`: everything a container is made of, written by `create`, and replaced whole by `rename` and `update`.
//!
//! The image's configuration is merged in, so that a later start needs no image configuration and a tag that moves
//! changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use base::{ContainerId, Kind, Report};
pub use cgroup::RateKind;
pub use monitor::restart::Policy;
use net::helper::Choice;
use oci::{ChainId, Digest, HealthCheck, Platform};
use serde::{Deserialize, Serialize};

use crate::Engine;
use crate::file::{self, replace_json};
use crate::network::endpoint::Wanted;

/// The version of `config.json` that this build writes; readers accept older ones and ignore unknown keys.
pub const FORMAT: u32 = 1;

/// `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Who this is.
    pub id: ContainerId,
    /// Its name, without a slash.
    pub name: String,
    /// RFC 3339 with nanoseconds, UTC.
    pub created_at: String,
    /// What its root file system is.
    pub image: ImageOrigin,
    /// What it runs.
    pub settings: Settings,
    /// How it is bound to the machine.
    pub host: HostSettings,
}

/// The image a container was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrigin {
    /// As the user wrote it.
    pub reference: String,
    /// Digest of the image's configuration; `None` for `host:`.
    pub id: Option<Digest>,
    /// The stack of layers; `None` for `host:` and for an image without layers.
    pub chain: Option<ChainId>,
    /// What the image runs on.
    pub platform: Option<Platform>,
    /// Diff ids of its layers, lowest first.
    #[serde(default)]
    pub layers: Vec<Digest>,
}

impl ImageOrigin {
    /// Whether the root file system is this machine's own.
    pub fn is_host(&self) -> bool {
        self.id.is_none()
    }
}

/// What a container runs, image and request merged (Docker's `Config`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// First words of the command line.
    pub entrypoint: Vec<String>,
    /// The words after them.
    pub command: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// Where it starts; empty is `/`.
    pub workdir: String,
    /// `USER[:GROUP]`, empty is root.
    pub user: String,
    /// Its host name.
    pub hostname: String,
    /// Its NIS domain name, which names of hosts are completed by.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domainname: String,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Whether it was created to be attached to.
    pub attached: bool,
    /// Labels of image and request.
    pub labels: BTreeMap<String, String>,
    /// `80/tcp`: what the image says it listens on, and what is published.
    pub exposed_ports: Vec<String>,
    /// The signal that asks it to stop, as the image or the request names it; empty is `SIGTERM`.
    pub stop_signal: String,
    /// How many seconds it then has where nothing else is said; less than 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// What runs its health check where that is a line for a shell; empty is `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// How it is asked whether it works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
}

/// How a container is bound to the machine (Docker's `HostConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSettings {
    /// Its network.
    pub network: NetworkMode,
    /// The networks that it shares with others, where that is its mode; it has the first one's route to what is elsewhere.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Wanted>,
    /// Published ports.
    pub ports: Vec<PortMapping>,
    /// Whether every further port that it exposes is published at a free one.
    pub publish_all: bool,
    /// Binds, named volumes.
    pub volumes: Vec<Volume>,
    /// `destination`, `options` of each file system in memory.
    pub tmpfs: Vec<(String, String)>,
    /// Its IPv4 address, where one was asked for.
    pub ip: Option<Ipv4Addr>,
    /// The same for IPv6; the first 64 bits are its network's.
    pub ip6: Option<Ipv6Addr>,
    /// The address of its device, where one was asked for.
    pub mac_address: Option<[u8; 6]>,
    /// What it may reach through its networks, as rules of [`net::egress`]; anything without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
    /// How many bits a second it may carry through them in each direction; as many as there are without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<u64>,
    /// DNS servers in place of the host's.
    pub dns: Vec<IpAddr>,
    /// Domains that names are looked up in, in place of the host's; `.` is none.
    pub dns_search: Vec<String>,
    /// Options of resolv.conf(5) in place of the host's.
    pub dns_options: Vec<String>,
    /// Further lines of `/etc/hosts`: name, address or `host-gateway`.
    pub add_hosts: Vec<(String, String)>,
    /// Whether it has the image's `/etc/hosts`.
    pub no_hosts: bool,
    /// Containers whose volumes it has too, each by id, and whether it may only read them.
    pub volumes_from: Vec<(String, bool)>,
    /// The most that it may write into its own layer, in bytes (`--storage-opt size=`).
    pub size_bytes: Option<u64>,
    /// Limit of memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Limit of memory and swap together in bytes; -1 is none.
    pub memory_swap: Option<i64>,
    /// Memory in bytes that is not taken away while others have more to spare.
    pub memory_reservation: Option<u64>,
    /// Memory in bytes above which the kernel takes some back and slows the container down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<u64>,
    /// Limit of processor time, in billionths of a processor.
    pub nano_cpus: Option<u64>,
    /// The same in microseconds of each period; -1 is none.
    pub cpu_quota: Option<i64>,
    /// The period, in microseconds.
    pub cpu_period: Option<u64>,
    /// Weight of the container among others that want processors; others have 1024.
    pub cpu_shares: Option<u64>,
    /// The processors it may use, as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// The NUMA nodes whose memory it may use.
    pub cpuset_mems: Option<String>,
    /// Limit of processes: `None` is our default, 0 or less is none.
    pub pids_limit: Option<i64>,
    /// Weight of the container among others that want disks, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// The same for one device.
    pub blkio_device_weights: Vec<(PathBuf, u16)>,
    /// The most that it may do with a device.
    pub device_rates: Vec<DeviceRate>,
    /// Whether `/` cannot be written.
    pub read_only: bool,
    /// Which ids it has.
    pub userns: UserNamespace,
    /// Capabilities beyond the default.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default.
    pub cap_drop: Vec<String>,
    /// Whether it has every capability and device that there is to have, no filter of system calls and no masks.
    pub privileged: bool,
    /// Whether nothing of `/proc` and `/sys` is hidden or kept from being written.
    pub unmasked: bool,
    /// Groups beside those of its user, by name or number; [`KEEP_GROUPS`] alone is those of the caller.
    pub groups: Vec<String>,
    /// Which processes it sees.
    pub pid: PidMode,
    /// Whose System V objects, message queues and shared memory it has.
    pub ipc: IpcMode,
    /// Whether its host name is the machine's.
    pub host_uts: bool,
    /// Whether it sees the machine's cgroups.
    pub host_cgroups: bool,
    /// The cgroup in which its own is to be, where it names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,
    /// The most that its `/dev/shm` may hold, in bytes.
    pub shm_bytes: Option<u64>,
    /// Limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Settings of the kernel for its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// How soon the kernel kills its processes for want of memory: -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// How its reads and writes of disks stand beside those of others; as the machine's programs without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_class: Option<IoClass>,
    /// What its new files do not permit, where that is not 022.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// After how many seconds of a run it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// What is passed on to the runtime specification.
    pub annotations: BTreeMap<String, String>,
    /// How its log is kept.
    pub log: LogConfig,
    /// A file for the pid of its first process, written at each start.
    pub pid_file: Option<PathBuf>,
    /// The seccomp profile.
    pub seccomp: Seccomp,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Whether pid 1 is our reaper.
    pub init: bool,
    /// When it is started again after its end.
    pub restart: Policy,
    /// Whether it is removed when it ends.
    pub auto_remove: bool,
    /// With `host:`, whether the user's home is in it.
    pub host_home: bool,
    /// The driver of its root file system, when one was asked for.
    pub storage_driver: Option<String>,
    /// Devices of the host by path.
    #[serde(default)]
    pub devices: Vec<DeviceMapping>,
    /// Devices by what they are.
    #[serde(default)]
    pub device_requests: Vec<DeviceRequest>,
}

/// How a container's log is kept (Docker's `LogConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// By whom.
    pub driver: LogDriver,
    /// As they were given.
    pub options: BTreeMap<String, String>,
}

/// Who keeps a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// A file in the format of Docker's driver of that name.
    #[default]
    JsonFile,
    /// The same, in files of a limited size.
    Local,
    /// A file in the format of Podman's driver of that name.
    K8sFile,
    /// The journal of systemd, beside files as those of `local`.
    Journald,
    /// Nobody.
    None,
}

impl LogDriver {
    /// All of them.
    pub const ALL: [LogDriver; 5] =
        [LogDriver::JsonFile, LogDriver::Local, LogDriver::K8sFile, LogDriver::Journald, LogDriver::None];

    /// As options spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            LogDriver::JsonFile => "json-file",
            LogDriver::Local => "local",
            LogDriver::K8sFile => "k8s-file",
            LogDriver::Journald => "journald",
            LogDriver::None => "none",
        }
    }
}

/// The one word of [`HostSettings::groups`] that is no group.
pub const KEEP_GROUPS: &str = "keep-groups";

impl HostSettings {
    /// Whether the container is to have the caller's supplementary groups.
    pub fn keeps_groups(&self) -> bool {
        self.groups.first().is_some_and(|group| group == KEEP_GROUPS)
    }
}

/// A class of ioprio_set(2), and in it the level: 0 comes first, 7 last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// When nobody else wants the disk.
    Idle,
    /// In turn.
    BestEffort(u8),
    /// Before all others.
    Realtime(u8),
}

impl IoClass {
    /// The last level.
    const LEVEL_MAX: u8 = 7;
    /// The level where none is named, that of a process that asks for nothing.
    const LEVEL: u8 = 4;

    /// Reads `idle`, `best-effort[:LEVEL]` and `realtime[:LEVEL]`.
    pub fn parse(text: &str) -> Option<Self> {
        let (class, level) = match text.split_once(':') {
            Some((class, level)) => (class, Some(level.parse().ok().filter(|level| *level <= Self::LEVEL_MAX)?)),
            None => (text, None),
        };
        match (class, level) {
            ("idle", None) => Some(IoClass::Idle),
            ("best-effort", level) => Some(IoClass::BestEffort(level.unwrap_or(Self::LEVEL))),
            ("realtime", level) => Some(IoClass::Realtime(level.unwrap_or(Self::LEVEL))),
            _ => None,
        }
    }
}

impl fmt::Display for IoClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoClass::Idle => f.write_str("idle"),
            IoClass::BestEffort(level) => write!(f, "best-effort:{level}"),
            IoClass::Realtime(level) => write!(f, "realtime:{level}"),
        }
    }
}

/// Which processes a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PidMode {
    /// Its own.
    #[default]
    Private,
    /// All of the machine.
    Host,
    /// Those of another container as well, by its id; until the container is created, as the user wrote it.
    Container(String),
}

/// Whose System V objects, message queues and `/dev/shm` a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcMode {
    /// Its own.
    #[default]
    Private,
    /// Its own, which others may join.
    Shareable,
    /// Those of another container, by its id; until the container is created, as the user wrote it.
    Container(String),
    /// Its own, without a `/dev/shm`.
    None,
    /// The machine's.
    Host,
}

/// A limit of processes, setrlimit(2) (Docker's `Ulimit`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// In lower case: `nofile`.
    pub name: String,
    /// Up to which a process may raise the other one; less than 0 is no limit.
    pub hard: i64,
    /// What holds; the same.
    pub soft: i64,
}

/// The most that a container may do with a block device in a second (Docker's `ThrottleDevice`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRate {
    /// The device on the host.
    pub path: PathBuf,
    /// Of what.
    pub kind: RateKind,
    /// How much; 0 is no limit.
    pub rate: u64,
}

/// A device of the host, or all below a directory (Docker's `DeviceMapping`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMapping {
    /// On the host.
    pub path_on_host: PathBuf,
    /// In the container.
    pub path_in_container: String,
    /// Of `r`, `w` and `m`.
    pub permissions: String,
}

/// Devices that a driver knows (Docker's `DeviceRequest`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// `cdi`, or a maker of GPUs; empty where the capabilities decide.
    pub driver: String,
    /// How many; less than 0 is all, and 0 those of `device_ids`.
    pub count: i64,
    /// Names of CDI devices; numbers or UUIDs of GPUs.
    pub device_ids: Vec<String>,
    /// Lists of what a driver must be able to do, one of which it must be able to do as a whole.
    pub capabilities: Vec<Vec<String>>,
}

/// Which network a container has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Its own, through our userspace stack.
    #[default]
    Builtin,
    /// The machine's.
    Host,
    /// A loopback device only.
    None,
    /// That of another container, by its id; until the container is created, as the user wrote it.
    Container(String),
    /// The namespace that is at this path when the container starts.
    #[serde(rename = "ns")]
    Namespace(PathBuf),
    /// Its own, through an installed program.
    Program(Choice),
    /// Those in [`HostSettings::networks`], which it shares with others.
    Shared,
}

impl NetworkMode {
    /// Whether ports of the host can lead into such a network of the container itself.
    pub fn publishes(&self) -> bool {
        matches!(self, NetworkMode::Builtin | NetworkMode::Program(_) | NetworkMode::Shared)
    }
}

impl fmt::Display for NetworkMode {
    /// As options spell it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkMode::Builtin => f.write_str("builtin"),
            NetworkMode::Program(choice) => choice.fmt(f),
            NetworkMode::Host => f.write_str("host"),
            NetworkMode::None => f.write_str("none"),
            NetworkMode::Container(id) => write!(f, "container:{id}"),
            NetworkMode::Namespace(path) => write!(f, "ns:{}", path.display()),
            // Who knows their names says these.
            NetworkMode::Shared => f.write_str("shared"),
        }
    }
}

/// A transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// In lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// One published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The host's address; `None` is all.
    pub host_ip: Option<IpAddr>,
    /// The first port of the host that may be taken; 0 is any free one.
    pub host_port: u16,
    /// The last port of the host that may be taken; `host_port` when there is no choice.
    pub host_port_last: u16,
    /// The container's port.
    pub container_port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// Something of the machine that is seen in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What is seen.
    pub source: VolumeSource,
    /// Where.
    pub destination: String,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// Further words of the mount, in the runtime specification's terms: `noexec`, `rslave`, `ridmap`.
    #[serde(default)]
    pub options: Vec<String>,
    /// Whether it was asked for without a name, and goes with the container.
    #[serde(default)]
    pub anonymous: bool,
    /// Whether an empty volume stays empty whatever the image has there.
    #[serde(default)]
    pub no_copy: bool,
    /// The part of a named volume that is seen.
    #[serde(default)]
    pub subpath: Option<String>,
    /// Whether all in it is given to the user that the container runs as, at each start.
    #[serde(default)]
    pub chown: bool,
    /// Whether writes stay in the container and do not reach the source.
    #[serde(default)]
    pub cow: bool,
    /// What becomes of what is mounted below the source.
    #[serde(default)]
    pub below: Below,
    /// Whether its files are to be labelled for containers (`z`, `Z`).
    #[serde(default)]
    pub relabel: bool,
    /// Whether its owners are to be shifted to the container's ids by the mount.
    #[serde(default)]
    pub idmap: bool,
    /// Labels of a volume that is made for it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Options of such a volume.
    #[serde(default)]
    pub driver_options: BTreeMap<String, String>,
    /// Whether a source that is not there is an error (`--mount`), and not to be made (`-v`).
    #[serde(default)]
    pub must_exist: bool,
}

/// What is mounted below a bind source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Below {
    /// It is seen, and is read-only where the mount is.
    #[default]
    Shown,
    /// It is seen and can be written in any case.
    Writable,
    /// It is not seen.
    Hidden,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSource {
    /// A path of the host.
    Path(PathBuf),
    /// A volume of ours, by name. Without one until the container is created.
    Named(String),
}

impl Default for VolumeSource {
    fn default() -> Self {
        VolumeSource::Named(String::new())
    }
}

impl VolumeSource {
    /// The name of a volume.
    pub fn name(&self) -> Option<&str> {
        match self {
            VolumeSource::Named(name) => Some(name),
            VolumeSource::Path(_) => None,
        }
    }
}

/// Which ids a container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UserNamespace {
    /// All that the user has; its root is the user, unless what is bound in fits its own user better (`fit`).
    #[default]
    Default,
    /// All that the user has; its root is the user.
    Host,
    /// The same ids, arranged so that the user is this one.
    KeepAs {
        /// The user inside.
        uid: u32,
        /// The group inside.
        gid: u32,
    },
    /// The same ids, arranged so that the user keeps its own number.
    KeepId,
    /// The user's own id alone.
    Single,
}

/// Which system calls a container may make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// Docker's list.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// By this profile (the runtime specification's JSON, or Docker's, which has more).
    Profile(String),
}

impl Record {
    /// The names of its volumes, each once, sorted: the order in which they are locked.
    pub(crate) fn volume_names(&self) -> Vec<String> {
        let names: BTreeSet<&str> = self.host.volumes.iter().filter_map(|volume| volume.source.name()).collect();
        names.into_iter().map(str::to_owned).collect()
    }

    /// The command line: entry point and command.
    pub fn command_line(&self) -> Vec<String> {
        self.settings.entrypoint.iter().chain(&self.settings.command).cloned().collect()
    }

    /// With `sync` it is on the disk when this returns.
    pub(crate) fn save(&self, engine: &Engine, sync: bool) -> Result<(), Report> {
        replace_json(&path(engine, &self.id), self, sync)
    }
}

/// The record of a container; an error when it is not there.
pub fn load(engine: &Engine, id: &ContainerId) -> Result<Record, Report> {
    try_load(engine, id)?.ok_or_else(|| missing(id))
}

/// An error when there is no record of this container; one that cannot be read will do.
pub(crate) fn require(engine: &Engine, id: &ContainerId) -> Result<(), Report> {
    if exists(engine, id)? { Ok(()) } else { Err(missing(id)) }
}

/// Docker's words for a container that does not exist.
pub(crate) fn missing(id: &ContainerId) -> Report {
    Report::new(Kind::NotFound, format!("No such container: {id}"))
}

/// What lies where a container's record belongs.
pub(crate) enum Found {
    /// It is gone, or not yet there.
    Nothing,
    /// No record: a power loss leaves an empty file, since that of a container with `--rm` is not synced.
    Broken(Report),
    /// The record.
    Record(Box<Record>),
}

/// Looks for the record of a container.
pub(crate) fn look(engine: &Engine, id: &ContainerId) -> Result<Found, Report> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let path = path(engine, id);
    let Some(bytes) = file::read(&path)? else { return Ok(Found::Nothing) };
    // The rest of a newer one may look otherwise, which does not make it broken.
    let format = match file::parse::<Format>(&path, &bytes) {
        Ok(Format { format }) => format,
        Err(report) => return Ok(Found::Broken(report)),
    };
    if format > FORMAT {
        let text = format!("{} has format {format}, this build knows {FORMAT}", path.display());
        return Err(Report::new(Kind::Unsupported, text));
    }
    Ok(match file::parse(&path, &bytes) {
        Ok(record) => Found::Record(Box::new(record)),
        Err(report) => Found::Broken(report),
    })
}

/// The record of a container; `None` when it is gone, or not yet there.
pub(crate) fn try_load(engine: &Engine, id: &ContainerId) -> Result<Option<Record>, Report> {
    match look(engine, id)? {
        Found::Nothing => Ok(None),
        Found::Broken(report) => Err(report.with_hint(format!("`sublet rm -f {}` removes the container", id.short()))),
        Found::Record(record) => Ok(Some(*record)),
    }
}

/// Whether there is a record of this container, readable or not.
pub(crate) fn exists(engine: &Engine, id: &ContainerId) -> Result<bool, Report> {
    let path = path(engine, id);
    path.try_exists().map_err(|error| file::failed("looking for", &path, error))
}

fn path(engine: &Engine, id: &ContainerId) -> PathBuf {
    engine.paths().container(id).join("config.json")
}

impl fmt::Display for VolumeSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VolumeSource::Path(path) => path.display().fmt(f),
            VolumeSource::Named(name) => f.write_str(name),
        }
    }
}
