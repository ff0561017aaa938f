//! Everything known about one container, in the shape of Docker's API: no null where Docker has an empty list.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use base::time::NEVER;
use base::{ContainerId, Report};
use monitor::health::Health;
use net::Addressing;
use oci::HealthCheck;
use serde::Serialize;
use snapshot::Driver;

use crate::Engine;
use crate::container::record::{
    DeviceMapping, HostSettings, IpcMode, LogDriver, PidMode, PortMapping, RateKind, Record, Seccomp, Ulimit,
    UserNamespace, Volume, VolumeSource, load,
};
use crate::container::size::size;
use crate::container::spec::{SHM_BYTES, environment, kept_read_only, masked};
use crate::container::state::{Condition, Life, condition};
use crate::container::{driver, files, network, record, rootfs};

/// The answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the members are Docker's; their meaning is that of its API reference")]
pub struct Inspection {
    pub id: String,
    pub created: String,
    pub path: String,
    pub args: Vec<String>,
    pub state: State,
    pub image: String,
    pub resolv_conf_path: String,
    pub hostname_path: String,
    pub hosts_path: String,
    pub log_path: String,
    pub name: String,
    pub restart_count: u64,
    pub driver: String,
    pub platform: String,
    pub host_config: HostConfig,
    pub graph_driver: GraphDriver,
    /// Not Docker's: directories of `host:` that are empty inside since the caller may not read them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_closed: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<u64>,
    pub mounts: Vec<MountPoint>,
    pub config: Config,
    pub network_settings: NetworkSettings,
}

/// `State`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct State {
    pub status: String,
    pub running: bool,
    pub paused: bool,
    pub restarting: bool,
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    pub dead: bool,
    pub pid: i32,
    pub exit_code: i32,
    pub error: String,
    pub started_at: String,
    pub finished_at: String,
    /// Null where nothing is probed, so that templates can ask for it.
    pub health: Option<Health>,
}

/// `GraphDriver`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct GraphDriver {
    /// Directories of the driver.
    pub data: BTreeMap<String, String>,
    pub name: String,
}

/// `HostConfig`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct HostConfig {
    pub binds: Vec<String>,
    pub network_mode: String,
    pub port_bindings: BTreeMap<String, Vec<PortBinding>>,
    pub publish_all_ports: bool,
    pub auto_remove: bool,
    pub restart_policy: RestartPolicy,
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    pub extra_hosts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net_rate: Option<u64>,
    pub privileged: bool,
    pub readonly_rootfs: bool,
    pub security_opt: Vec<String>,
    pub tmpfs: BTreeMap<String, String>,
    pub userns_mode: String,
    pub memory: u64,
    pub memory_swap: i64,
    pub memory_reservation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_high: Option<u64>,
    pub nano_cpus: u64,
    pub cpu_quota: i64,
    pub cpu_period: u64,
    pub cpu_shares: u64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub pids_limit: i64,
    pub blkio_weight: u16,
    pub blkio_weight_device: Vec<DeviceWeight>,
    pub blkio_device_read_bps: Vec<DeviceRate>,
    pub blkio_device_write_bps: Vec<DeviceRate>,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Vec<DeviceRate>,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Vec<DeviceRate>,
    pub init: bool,
    pub devices: Vec<Device>,
    pub device_requests: Vec<DeviceRequest>,
    pub log_config: LogConfig,
    pub group_add: Vec<String>,
    pub pid_mode: String,
    pub ipc_mode: String,
    #[serde(rename = "UTSMode")]
    pub uts_mode: &'static str,
    pub cgroupns_mode: &'static str,
    pub cgroup_parent: String,
    pub shm_size: u64,
    pub ulimits: Vec<UlimitBounds>,
    pub sysctls: BTreeMap<String, String>,
    pub oom_score_adj: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_class: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
}

/// How its log is kept.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct LogConfig {
    #[serde(rename = "Type")]
    pub kind: &'static str,
    pub config: BTreeMap<String, String>,
}

/// The weight of a disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct DeviceWeight {
    pub path: String,
    pub weight: u16,
}

/// A limit of a disk.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct DeviceRate {
    pub path: String,
    pub rate: u64,
}

/// A limit of its processes.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct UlimitBounds {
    pub name: String,
    pub hard: i64,
    pub soft: i64,
}

/// When it is started again.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct RestartPolicy {
    pub name: &'static str,
    pub maximum_retry_count: u64,
}

/// A device by path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct Device {
    pub path_on_host: String,
    pub path_in_container: String,
    pub cgroup_permissions: String,
}

/// Devices by what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct DeviceRequest {
    pub driver: String,
    pub count: i64,
    #[serde(rename = "DeviceIDs")]
    pub device_ids: Vec<String>,
    pub capabilities: Vec<Vec<String>>,
    pub options: BTreeMap<String, String>,
}

/// One end of a published port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct PortBinding {
    pub host_ip: String,
    pub host_port: String,
}

/// `Mounts[]`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct MountPoint {
    #[serde(rename = "Type")]
    pub kind: String,
    pub name: String,
    pub source: String,
    pub destination: String,
    pub driver: String,
    pub mode: String,
    #[serde(rename = "RW")]
    pub rw: bool,
    pub propagation: String,
}

/// `Config`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct Config {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    /// Each with an empty object, which may get members.
    pub exposed_ports: serde_json::Map<String, serde_json::Value>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Vec<String>,
    pub cmd: Vec<String>,
    pub image: String,
    pub working_dir: String,
    pub entrypoint: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Null where there is none.
    pub healthcheck: Option<HealthCheck>,
}

/// `NetworkSettings`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct NetworkSettings {
    /// An exposed port that is not published is null.
    pub ports: BTreeMap<String, Option<Vec<PortBinding>>>,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    pub gateway: String,
    pub mac_address: String,
    pub networks: BTreeMap<String, Endpoint>,
}

/// `NetworkSettings.Networks[]`; empty texts while the container does not run.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "Docker's members")]
pub struct Endpoint {
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    pub aliases: Vec<String>,
    /// `NAME:LINK`; null where there is none.
    pub links: Option<Vec<String>>,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u8,
    pub gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    pub mac_address: String,
}

/// What is known about a container.
pub fn inspect(engine: &Engine, id: &ContainerId) -> Result<Inspection, Report> {
    let record = load(engine, id)?;
    let condition = condition(engine, id)?;
    let directory = engine.paths().container(id);
    // Those of a container that is gone have none.
    let files = files::directory(engine, &record).ok();
    let file = |name| files.as_ref().map(|files| files.join(name).to_string_lossy().into_owned()).unwrap_or_default();
    let mut words = record.command_line().into_iter();
    let graph_driver = graph_driver(engine, &record);
    Ok(Inspection {
        id: id.to_string(),
        created: record.created_at.clone(),
        path: words.next().unwrap_or_default(),
        args: words.collect(),
        image: record.image.id.map(|digest| digest.to_string()).unwrap_or_default(),
        resolv_conf_path: file("resolv.conf"),
        hostname_path: file("hostname"),
        hosts_path: file("hosts"),
        log_path: match record.host.log.driver {
            LogDriver::None => String::new(),
            _ => directory.join(monitor::log::NAME).to_string_lossy().into_owned(),
        },
        name: format!("/{}", record.name),
        restart_count: condition.state.restart_count,
        driver: graph_driver.name.clone(),
        graph_driver,
        host_closed: rootfs::closed_directories(engine, &record),
        size_rw: None,
        size_root_fs: None,
        platform: "linux".to_owned(),
        host_config: host_config(&record.host),
        mounts: mounts(engine, &record),
        network_settings: network_settings(&record, &condition),
        config: config(&record),
        state: state(&condition),
    })
}

/// The same with what the container takes, for which all its files are looked at.
pub fn inspect_with_size(engine: &Engine, id: &ContainerId) -> Result<Inspection, Report> {
    let size = size(engine, id)?;
    Ok(Inspection {
        size_rw: size.map(|size| size.written_bytes),
        size_root_fs: size.map(|size| size.whole_bytes),
        ..inspect(engine, id)?
    })
}

/// Empty before the first start of a container that asked for no driver: it is not chosen yet.
fn graph_driver(engine: &Engine, record: &Record) -> GraphDriver {
    let driver = driver::known(engine, record);
    let snapshot = engine.paths().snapshots().join(record.id.as_str());
    let places: &[(&str, &str)] = match driver {
        Some(Driver::Overlay | Driver::Tree) => &[("UpperDir", "upper"), ("WorkDir", "work")],
        Some(Driver::Fuse | Driver::Copy) => &[("UpperDir", "upper")],
        None => &[],
    };
    let place = |(name, directory): &(&str, &str)| {
        ((*name).to_owned(), snapshot.join(directory).to_string_lossy().into_owned())
    };
    let name = driver.map_or_else(String::new, |driver| driver.as_str().to_owned());
    GraphDriver { name, data: places.iter().map(place).collect() }
}

fn state(condition: &Condition) -> State {
    let moment = |text: &Option<String>| text.clone().unwrap_or_else(|| NEVER.to_owned());
    let running = matches!(condition.life, Life::Running { .. });
    let restarting = matches!(condition.life, Life::Restarting { .. });
    let paused = condition.is_paused();
    State {
        status: if paused { "paused" } else { condition.life.word() }.to_owned(),
        running: running || restarting,
        paused,
        restarting,
        oom_killed: condition.state.oom_killed,
        dead: false,
        pid: match condition.life {
            Life::Running { pid } => pid,
            _ => 0,
        },
        exit_code: condition.code(),
        error: condition.state.error.clone().unwrap_or_default(),
        started_at: moment(&condition.state.started_at),
        finished_at: moment(&condition.state.finished_at),
        health: condition.state.health.clone(),
    }
}

/// As Docker has them: an address that was not named is empty, a choice of ports is a range.
fn bindings(ports: &[PortMapping]) -> BTreeMap<String, Vec<PortBinding>> {
    let mut map: BTreeMap<String, Vec<PortBinding>> = BTreeMap::new();
    for port in ports {
        let host_port = match port.host_port {
            0 => String::new(),
            first if first < port.host_port_last => format!("{first}-{}", port.host_port_last),
            number => number.to_string(),
        };
        let host_ip = port.host_ip.map(|address| address.to_string()).unwrap_or_default();
        let key = format!("{}/{}", port.container_port, port.protocol.as_str());
        map.entry(key).or_default().push(PortBinding { host_ip, host_port });
    }
    map
}

fn host_config(host: &HostSettings) -> HostConfig {
    let mut security_opt = Vec::new();
    if host.no_new_privileges {
        security_opt.push("no-new-privileges".to_owned());
    }
    if host.unmasked {
        security_opt.push("systempaths=unconfined".to_owned());
    }
    match &host.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => security_opt.push("seccomp=unconfined".to_owned()),
        Seccomp::Profile(text) => security_opt.push(format!("seccomp={text}")),
    }
    let bind = |volume: &Volume| {
        let mode = mode(volume);
        let colon = if mode.is_empty() { "" } else { ":" };
        format!("{}:{}{colon}{mode}", volume.source, volume.destination)
    };
    HostConfig {
        binds: host.volumes.iter().filter(|volume| !volume.anonymous).map(bind).collect(),
        network_mode: network::mode(host),
        port_bindings: bindings(&host.ports),
        publish_all_ports: host.publish_all,
        auto_remove: host.auto_remove,
        restart_policy: RestartPolicy { name: host.restart.name(), maximum_retry_count: host.restart.retries_max() },
        cap_add: host.cap_add.clone(),
        cap_drop: host.cap_drop.clone(),
        dns: host.dns.iter().map(ToString::to_string).collect(),
        dns_options: host.dns_options.clone(),
        dns_search: host.dns_search.clone(),
        egress: host.egress.clone(),
        net_rate: host.net_rate,
        extra_hosts: host.add_hosts.iter().map(|(name, address)| format!("{name}:{address}")).collect(),
        privileged: host.privileged,
        readonly_rootfs: host.read_only,
        security_opt,
        tmpfs: host.tmpfs.iter().cloned().collect(),
        userns_mode: match host.userns {
            UserNamespace::Default => String::new(),
            UserNamespace::Host => "host".to_owned(),
            UserNamespace::KeepId => "keep-id".to_owned(),
            UserNamespace::KeepAs { uid, gid } => format!("keep-id:uid={uid},gid={gid}"),
            UserNamespace::Single => "single".to_owned(),
        },
        memory: host.memory_bytes.unwrap_or(0),
        memory_swap: host.memory_swap.unwrap_or(0),
        memory_reservation: host.memory_reservation.unwrap_or(0),
        memory_high: host.memory_high,
        nano_cpus: host.nano_cpus.unwrap_or(0),
        cpu_quota: host.cpu_quota.unwrap_or(0),
        cpu_period: host.cpu_period.unwrap_or(0),
        cpu_shares: host.cpu_shares.unwrap_or(0),
        cpuset_cpus: host.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: host.cpuset_mems.clone().unwrap_or_default(),
        pids_limit: host.pids_limit.unwrap_or(0),
        blkio_weight: host.blkio_weight.unwrap_or(0),
        blkio_weight_device: host.blkio_device_weights.iter().map(weight).collect(),
        blkio_device_read_bps: rates(host, RateKind::ReadBps),
        blkio_device_write_bps: rates(host, RateKind::WriteBps),
        blkio_device_read_iops: rates(host, RateKind::ReadIops),
        blkio_device_write_iops: rates(host, RateKind::WriteIops),
        init: host.init,
        devices: host.devices.iter().map(device).collect(),
        device_requests: host.device_requests.iter().map(device_request).collect(),
        log_config: LogConfig { kind: host.log.driver.as_str(), config: host.log.options.clone() },
        group_add: host.groups.clone(),
        pid_mode: match &host.pid {
            PidMode::Private => String::new(),
            PidMode::Host => "host".to_owned(),
            PidMode::Container(id) => format!("container:{id}"),
        },
        ipc_mode: match &host.ipc {
            IpcMode::Private => "private".to_owned(),
            IpcMode::Shareable => "shareable".to_owned(),
            IpcMode::Container(id) => format!("container:{id}"),
            IpcMode::None => "none".to_owned(),
            IpcMode::Host => "host".to_owned(),
        },
        uts_mode: if host.host_uts { "host" } else { "" },
        cgroup_parent: host.cgroup_parent.clone().unwrap_or_default(),
        cgroupns_mode: if host.host_cgroups { "host" } else { "private" },
        shm_size: host.shm_bytes.unwrap_or(SHM_BYTES),
        ulimits: host.ulimits.iter().map(bounds).collect(),
        sysctls: host.sysctls.clone(),
        oom_score_adj: host.oom_score_adj.unwrap_or(0),
        io_class: host.io_class.map(|class| class.to_string()),
        annotations: host.annotations.clone(),
        masked_paths: masked(host),
        readonly_paths: kept_read_only(host),
    }
}

fn weight((path, weight): &(PathBuf, u16)) -> DeviceWeight {
    DeviceWeight { path: path.to_string_lossy().into_owned(), weight: *weight }
}

fn rates(host: &HostSettings, kind: RateKind) -> Vec<DeviceRate> {
    let of_kind = host.device_rates.iter().filter(|limit| limit.kind == kind);
    of_kind.map(|limit| DeviceRate { path: limit.path.to_string_lossy().into_owned(), rate: limit.rate }).collect()
}

fn bounds(limit: &Ulimit) -> UlimitBounds {
    UlimitBounds { name: limit.name.clone(), hard: limit.hard, soft: limit.soft }
}

fn device(mapping: &DeviceMapping) -> Device {
    Device {
        path_on_host: mapping.path_on_host.to_string_lossy().into_owned(),
        path_in_container: mapping.path_in_container.clone(),
        cgroup_permissions: mapping.permissions.clone(),
    }
}

fn device_request(request: &record::DeviceRequest) -> DeviceRequest {
    DeviceRequest {
        driver: request.driver.clone(),
        count: request.count,
        device_ids: request.device_ids.clone(),
        capabilities: request.capabilities.clone(),
        options: BTreeMap::new(),
    }
}

fn mounts(engine: &Engine, record: &Record) -> Vec<MountPoint> {
    let one = |volume: &Volume| {
        let (kind, name, driver, source) = match &volume.source {
            VolumeSource::Path(path) => ("bind", String::new(), "", path.clone()),
            VolumeSource::Named(name) => {
                ("volume", name.clone(), "local", engine.paths().volumes().join(name).join("_data"))
            }
        };
        MountPoint {
            kind: kind.to_owned(),
            name,
            source: source.to_string_lossy().into_owned(),
            destination: volume.destination.clone(),
            driver: driver.to_owned(),
            mode: mode(volume),
            rw: !volume.read_only,
            // A volume is ours alone, and Docker tells nothing of it.
            propagation: if kind == "bind" {
                propagation(volume).unwrap_or("rprivate").to_owned()
            } else {
                String::new()
            },
        }
    };
    record.host.volumes.iter().map(one).collect()
}

/// The options of a volume in the words of `-v`.
fn mode(volume: &Volume) -> String {
    let words = [
        (volume.read_only, "ro"),
        (volume.no_copy, "nocopy"),
        (volume.cow, "cow"),
        (volume.chown, "U"),
        (volume.relabel, "z"),
        (volume.idmap, "idmap"),
    ];
    let words = words.into_iter().filter_map(|(is, word)| is.then_some(word));
    words.chain(volume.options.iter().map(String::as_str)).collect::<Vec<_>>().join(",")
}

/// How mount events travel, if that was asked for.
fn propagation(volume: &Volume) -> Option<&str> {
    let known = ["private", "slave", "shared"];
    volume.options.iter().map(String::as_str).find(|word| known.contains(&word.trim_start_matches('r')))
}

fn config(record: &Record) -> Config {
    let settings = &record.settings;
    Config {
        hostname: settings.hostname.clone(),
        domainname: settings.domainname.clone(),
        user: settings.user.clone(),
        attach_stdin: settings.attached && settings.stdin,
        attach_stdout: settings.attached,
        attach_stderr: settings.attached,
        exposed_ports: settings.exposed_ports.iter().map(|port| (port.clone(), serde_json::json!({}))).collect(),
        tty: settings.tty,
        open_stdin: settings.stdin,
        stdin_once: settings.attached && settings.stdin,
        env: environment(record, record.settings.tty)
            .into_iter()
            .filter(|entry| !entry.starts_with("HOSTNAME="))
            .collect(),
        cmd: settings.command.clone(),
        image: record.image.reference.clone(),
        working_dir: settings.workdir.clone(),
        entrypoint: settings.entrypoint.clone(),
        labels: settings.labels.clone(),
        stop_signal: settings.stop_signal.clone(),
        stop_timeout: settings.stop_timeout,
        shell: settings.shell.clone(),
        healthcheck: settings.health_check.clone(),
    }
}

fn network_settings(record: &Record, condition: &Condition) -> NetworkSettings {
    let mut ports: BTreeMap<String, Option<Vec<PortBinding>>> = BTreeMap::new();
    if matches!(condition.life, Life::Running { .. }) {
        ports.extend(record.settings.exposed_ports.iter().map(|port| (port.clone(), None)));
        ports.extend(bindings(&condition.published()).into_iter().map(|(port, list)| (port, Some(list))));
    }
    let running = matches!(condition.life, Life::Running { .. });
    // As in Docker these are of the network that all containers can have, and no other.
    let own = network::addressing(record).filter(|_| running).map(|own| endpoint("", &own)).unwrap_or_default();
    let mut networks: BTreeMap<String, Endpoint> =
        network::names(&record.host).into_iter().map(|name| (name, own.clone())).collect();
    for wanted in &record.host.networks {
        let joinings = condition.pids.iter().filter(|_| running).flat_map(|pids| &pids.networks);
        let joining = joinings.into_iter().find(|joining| joining.name == wanted.network);
        let there = joining.map(|joining| endpoint(&joining.network, &joining.addressing)).unwrap_or_default();
        let links: Vec<String> = wanted.links.iter().map(|(link, name)| format!("{name}:{link}")).collect();
        let links = (!links.is_empty()).then_some(links);
        networks.insert(wanted.network.clone(), Endpoint { aliases: wanted.aliases.clone(), links, ..there });
    }
    NetworkSettings { ports, ip_address: own.ip_address, gateway: own.gateway, mac_address: own.mac_address, networks }
}

fn endpoint(network: &str, addressing: &Addressing) -> Endpoint {
    let Addressing { v4, v6, mac, .. } = addressing;
    let text = |address: IpAddr| if address.is_unspecified() { String::new() } else { address.to_string() };
    Endpoint {
        network_id: network.to_owned(),
        aliases: Vec::new(),
        links: None,
        ip_address: text(v4.container.into()),
        ip_prefix_len: v4.prefix,
        gateway: text(v4.gateway.into()),
        global_ipv6_address: text(v6.container.into()),
        global_ipv6_prefix_len: v6.prefix,
        ipv6_gateway: text(v6.gateway.into()),
        mac_address: mac.map(|byte| format!("{byte:02x}")).join(":"),
    }
}
