//! The small grammars inside of option values. Pure: no file, no environment.

use std::net::IpAddr;
use std::path::PathBuf;

use base::{Kind, Report};
use engine::container::record::{
    Below, DeviceMapping, DeviceRequest, NetworkMode, Policy, PortMapping, Protocol, UserNamespace, Volume,
    VolumeSource,
};

use oci::{ImageName, Reference};

/// What may not be in a name.
const BLANKS: [char; 2] = [' ', '\t'];

fn wrong(message: String) -> Report {
    Report::new(Kind::Usage, message)
}

/// A name without the word that says that it is one of a registry.
pub fn without_transport(text: &str) -> &str {
    text.strip_prefix("docker://").unwrap_or(text)
}

/// A name to give to an image.
pub fn image_name(text: &str) -> Result<Reference, Report> {
    match text.parse::<ImageName>() {
        Ok(ImageName::Reference(reference)) if reference.digest().is_none() => Ok(reference.or_latest()),
        Ok(_) => Err(wrong(format!("{text} cannot be the name of an image"))),
        Err(error) => Err(Report::from(error).with_step("invalid reference format")),
    }
}

/// `-p [[IP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/PROTOCOL]`, with an IPv6 address in brackets.
pub fn publish(text: &str) -> Result<Vec<PortMapping>, Report> {
    let bad = |why: &str| wrong(format!("invalid containerPort: {text}: {why}"));
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return Err(bad(&format!("protocol {protocol:?} is neither tcp nor udp"))),
    };
    let (host, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (host_ip, host_port) = match host.strip_prefix('[') {
        Some(bracketed) => {
            let (ip, port) = bracketed.split_once(']').ok_or_else(|| bad("a bracket is not closed"))?;
            (ip, port.strip_prefix(':').unwrap_or(port))
        }
        None => host.rsplit_once(':').unwrap_or(if host.contains('.') { (host, "") } else { ("", host) }),
    };
    let host_ip: Option<IpAddr> = match host_ip {
        "" => None,
        ip => Some(ip.parse().map_err(|_| bad(&format!("{ip:?} is not an IP address")))?),
    };
    let (first, last) = range(container).filter(|(first, _)| *first > 0).ok_or_else(|| bad("not a port"))?;
    let count = last - first;
    let (host_first, host_last) = match host_port {
        "" => (0, 0),
        ports => range(ports).ok_or_else(|| bad(&format!("{ports:?} is not a port")))?,
    };
    // As many ports on both sides, or one in the container for any of several on the host.
    if host_first != 0 && host_last - host_first != count && count != 0 {
        return Err(bad("the ranges have different lengths"));
    }
    let one = |offset: u16| {
        let (host_port, host_port_last) = match (host_first, count) {
            (0, _) => (0, 0),
            (_, 0) => (host_first, host_last),
            _ => (host_first + offset, host_first + offset),
        };
        PortMapping { host_ip, host_port, host_port_last, container_port: first + offset, protocol }
    };
    Ok((0..=count).map(one).collect())
}

/// `--restart`, in Docker's words.
pub fn restart(text: &str) -> Result<Policy, Report> {
    let bad = |why: &str| wrong(format!("invalid restart policy{why}"));
    let (name, count) = match text.split_once(':') {
        Some(("", _)) => return Err(bad(" format: no policy provided before colon")),
        Some((name, count)) => (name, count),
        None => (text, ""),
    };
    let count: i64 = match count {
        "" => 0,
        count => count.parse().map_err(|_| bad(" format: maximum retry count must be an integer"))?,
    };
    let policy = match name {
        "" | "no" => Policy::No,
        "always" => Policy::Always,
        "unless-stopped" => Policy::UnlessStopped,
        "on-failure" => {
            let negative = |_| bad(": maximum retry count cannot be negative");
            return u64::try_from(count).map(Policy::OnFailure).map_err(negative);
        }
        _ => {
            let words = "use one of 'no', 'always', 'on-failure', or 'unless-stopped'";
            return Err(bad(&format!(": unknown policy '{name}'; {words}")));
        }
    };
    if count == 0 { Ok(policy) } else { Err(bad(": maximum retry count can only be used with 'on-failure'")) }
}

/// `--expose PORT[-PORT][/PROTOCOL]`, as `80/tcp`.
pub fn expose(text: &str) -> Result<Vec<String>, Report> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let known = ["tcp", "udp"].contains(&protocol.as_str());
    let range = range(ports).filter(|(first, _)| known && *first > 0);
    let (first, last) = range.ok_or_else(|| wrong(format!("invalid port format for --expose: {text}")))?;
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    (first <= last).then_some((first, last))
}

/// `-v [SOURCE:]DESTINATION[:OPTIONS]`. A source with a slash or a dot in front is a path, else the name of a volume.
pub fn volume(text: &str) -> Result<Volume, Report> {
    let bad = |why: &str| wrong(format!("invalid volume specification: '{text}': {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(bad("it must be SOURCE:DESTINATION or SOURCE:DESTINATION:OPTIONS")),
    };
    if parts.iter().any(|part| part.is_empty()) {
        return Err(bad("empty section between colons"));
    }
    let mut volume =
        Volume { destination: engine::volume::destination(destination).map_err(|why| bad(&why))?, ..Volume::default() };
    match source {
        None => volume.anonymous = true,
        Some(source) if source.starts_with(['/', '.']) => volume.source = VolumeSource::Path(PathBuf::from(source)),
        Some(source) => {
            engine::volume::check_name(source).map_err(|report| bad(&report.to_string()))?;
            volume.source = VolumeSource::Named(source.to_owned());
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (kind, known) = volume_option(&mut volume, option);
        // Of words that say different things about one only one may stand.
        if !known || seen.contains(&kind) {
            return Err(bad(&format!("invalid mode: {options}")));
        }
        seen.push(kind);
    }
    if volume.cow && volume.read_only {
        return Err(bad("invalid mode: what cannot be written needs no layer of its own (cow, ro)"));
    }
    Ok(volume)
}

/// Takes one option of `-v`; the answer is what it is about, and whether it is one.
fn volume_option<'t>(volume: &mut Volume, option: &'t str) -> (&'t str, bool) {
    let is_path = volume.source.name().is_none();
    let mut say = || volume.options.push(option.to_owned());
    match option {
        "ro" => volume.read_only = true,
        // `consistent` and its like are of Docker's for macOS.
        "rw" | "rbind" | "consistent" | "cached" | "delegated" => {}
        "z" | "Z" => volume.relabel = true,
        "U" => volume.chown = true,
        "O" | "cow" => volume.cow = true,
        "nocopy" if !is_path => volume.no_copy = true,
        "copy" if !is_path => {}
        "idmap" => volume.idmap = true,
        "bind" => volume.below = Below::Hidden,
        "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" if is_path => say(),
        "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" => say(),
        _ => return (option, false),
    }
    let kind = match option {
        "ro" | "rw" => "mode",
        "z" | "Z" => "label",
        "O" | "cow" => "cow",
        "copy" | "nocopy" => "copy",
        "bind" | "rbind" => "bind",
        "exec" | "noexec" => "exec",
        "suid" | "nosuid" => "suid",
        "dev" | "nodev" => "dev",
        "consistent" | "cached" | "delegated" => "consistency",
        word if word.ends_with("private") || word.ends_with("slave") || word.ends_with("shared") => "propagation",
        other => other,
    };
    (kind, true)
}

/// What `--mount` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A directory of the host, or a volume.
    Volume(Box<Volume>),
    /// A file system in memory: where, and with which options.
    Memory(String, String),
}

/// `--mount KEY=VALUE,…` by the grammars of Docker and of Podman; a value with a comma stands in quotes.
pub fn mount(text: &str) -> Result<Mounted, Report> {
    let bad = |why: String| wrong(format!("invalid argument \"{text}\" for \"--mount\" flag: {why}"));
    let fields = csv(text).map_err(|why| bad(why.to_owned()))?;
    let mut reading = Mounting::default();
    for field in &fields {
        reading.field(field).map_err(bad)?;
    }
    reading.finish().map_err(bad)
}

/// A `--mount` that is being read.
#[derive(Default)]
struct Mounting {
    kind: Option<String>,
    source: Option<String>,
    volume: Volume,
    memory: Vec<String>,
    /// Whether what is mounted below is to be read-only too, or else nothing mounted.
    only_read: bool,
    /// Groups of options that only one type has, by the first of each.
    of_type: Vec<(&'static str, String)>,
}

impl Mounting {
    fn field(&mut self, field: &str) -> Result<(), String> {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let must = || {
            value.filter(|value| !value.is_empty()).ok_or(format!("invalid field '{field}' must be a key=value pair"))
        };
        let flag = || boolean(key, value);
        let key = key.to_ascii_lowercase();
        for group in ["bind", "volume", "tmpfs", "image"] {
            if key.starts_with(group) && key.as_bytes().get(group.len()) == Some(&b'-') {
                self.of_type.push((group, key.clone()));
            }
        }
        let volume = &mut self.volume;
        match key.as_str() {
            "type" => self.kind = Some(must()?.to_ascii_lowercase()),
            "source" | "src" => self.source = Some(must()?.to_owned()),
            "target" | "dst" | "destination" => must()?.clone_into(&mut volume.destination),
            "readonly" | "ro" => volume.read_only = flag()?,
            "rw" => volume.read_only = !flag()?,
            "consistency" => drop(must()?),
            "bind-propagation" => volume.options.push(propagation(must()?)?),
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" if value.is_none() => {
                self.of_type.push(("bind", key.clone()));
                volume.options.push(key);
            }
            "bind-nonrecursive" => volume.below = if flag()? { Below::Hidden } else { Below::Shown },
            "bind-recursive" => {
                volume.below = recursion(must()?)?;
                self.only_read = value == Some("readonly");
            }
            "bind-create-src" => volume.must_exist = !flag()?,
            "volume-nocopy" => volume.no_copy = flag()?,
            "volume-subpath" | "subpath" => volume.subpath = Some(subpath(must()?)?),
            "volume-driver" => {
                let driver = must()?;
                if driver != "local" {
                    return Err(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"));
                }
            }
            "volume-opt" => pair(must()?, &mut volume.driver_options),
            "volume-label" => pair(must()?, &mut volume.labels),
            "tmpfs-size" => self.memory.push(format!("size={}", bytes(must()?)?)),
            "tmpfs-mode" => self.memory.push(format!("mode={}", octal(must()?)?)),
            "tmpcopyup" | "notmpcopyup" => {
                self.of_type.push(("tmpfs", key.clone()));
                if key == "tmpcopyup" && flag()? {
                    self.memory.push(key);
                }
            }
            "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" if value.is_none() => volume.options.push(key),
            "u" | "chown" => volume.chown = flag()?,
            "cow" => volume.cow = flag()?,
            "idmap" if value.is_none_or(|value| value == "true") => volume.idmap = true,
            "relabel" if matches!(value, Some("shared" | "private")) => volume.relabel = true,
            "z" if value.is_none() => volume.relabel = true,
            _ if value.is_none() => return Err(format!("invalid field '{field}' must be a key=value pair")),
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
        Ok(())
    }

    fn finish(self) -> Result<Mounted, String> {
        let Mounting { kind, source, mut volume, mut memory, only_read, of_type } = self;
        let kind = kind.unwrap_or_else(|| "volume".to_owned());
        if volume.destination.is_empty() {
            return Err("target is required".to_owned());
        }
        volume.destination = engine::volume::destination(&volume.destination)?;
        if let Some((group, _)) = of_type.iter().find(|(group, _)| *group != kind) {
            return Err(format!("cannot mix '{group}-*' options with mount type '{kind}'"));
        }
        if only_read && !volume.read_only {
            return Err(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction".to_owned()
            );
        }
        let config = |why: &str| Err(format!("invalid mount config for type \"{kind}\": {why}"));
        match kind.as_str() {
            "bind" => {
                let Some(source) = source else { return config("field Source must not be empty") };
                volume.source = VolumeSource::Path(PathBuf::from(source));
                volume.must_exist = !of_type.iter().any(|(_, key)| key == "bind-create-src") || volume.must_exist;
            }
            "volume" => match source {
                None => volume.anonymous = true,
                Some(name) => {
                    engine::volume::check_name(&name).map_err(|report| report.to_string())?;
                    volume.source = VolumeSource::Named(name);
                }
            },
            "tmpfs" => {
                if source.is_some_and(|source| source != "tmpfs") {
                    return config("field Source must not be specified");
                }
                if volume.chown || volume.cow || volume.idmap {
                    return config("chown, cow and idmap are for binds and volumes");
                }
                memory.extend(volume.options);
                memory.extend(volume.read_only.then(|| "ro".to_owned()));
                return Ok(Mounted::Memory(volume.destination, memory.join(",")));
            }
            "image" | "glob" | "devpts" | "ramfs" | "npipe" | "cluster" => return config("this type is not built"),
            _ => return config("mount type unknown"),
        }
        if volume.cow && volume.read_only {
            return config("what cannot be written needs no layer of its own (cow, readonly)");
        }
        Ok(Mounted::Volume(Box::new(volume)))
    }
}

/// Go's words for yes and no; a key alone is yes.
fn boolean(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(format!("invalid value for {key}: {value}")),
    }
}

fn propagation(text: &str) -> Result<String, String> {
    if ["private", "slave", "shared"].contains(&text.strip_prefix('r').unwrap_or(text)) {
        return Ok(text.to_owned());
    }
    Err(format!("invalid propagation mode: {text}"))
}

fn recursion(text: &str) -> Result<Below, String> {
    match text {
        "enabled" | "readonly" => Ok(Below::Shown),
        "writable" => Ok(Below::Writable),
        "disabled" => Ok(Below::Hidden),
        _ => Ok(if boolean("bind-recursive", Some(text))? { Below::Shown } else { Below::Hidden }),
    }
}

/// A path below a volume, which does not lead out by its words; by links it cannot.
fn subpath(text: &str) -> Result<String, String> {
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err("subpath must be a relative path within the volume".to_owned());
    }
    Ok(text.to_owned())
}

/// Adds `KEY[=VALUE]` to a map.
fn pair(text: &str, map: &mut std::collections::BTreeMap<String, String>) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    map.insert(key.to_owned(), value.to_owned());
}

fn bytes(text: &str) -> Result<u64, String> {
    base::units::parse_bytes(text).map_err(|_| format!("invalid value for tmpfs-size: {text}"))
}

fn octal(text: &str) -> Result<&str, String> {
    let valid = text.len() <= 5 && u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
    if valid { Ok(text) } else { Err(format!("invalid value for tmpfs-mode: {text}")) }
}

/// `--volumes-from CONTAINER[:ro|rw]`: the container, and whether its volumes may only be read.
pub fn volumes_from(text: &str) -> Result<(String, bool), Report> {
    let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
    let mut read_only = false;
    for word in mode.split(',') {
        match word {
            "ro" => read_only = true,
            // The labels are those of the other one.
            "rw" | "z" | "Z" => {}
            _ => return Err(wrong(format!("invalid mode for volumes-from: {mode}"))),
        }
    }
    if name.is_empty() {
        return Err(wrong("invalid volumes-from: a container must be named".to_owned()));
    }
    Ok((name.to_owned(), read_only))
}

/// `--storage-opt size=BYTES`.
pub fn storage_option(text: &str) -> Result<u64, Report> {
    match text.split_once('=') {
        Some(("size", size)) => {
            let bytes =
                base::units::parse_bytes(size).map_err(|error| Report::from(error).with_step(text.to_owned()))?;
            if bytes == 0 { Err(wrong(format!("invalid storage option {text}: the size is 0"))) } else { Ok(bytes) }
        }
        _ => Err(wrong(format!("unknown storage option: {text}")).with_hint("the option is size=BYTES")),
    }
}

/// `--tmpfs DESTINATION[:OPTIONS]`; the options are Docker's: words of mount(8), and values of tmpfs itself.
pub fn tmpfs(text: &str) -> Result<(String, String), Report> {
    const WORDS: [&str; 18] = [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "strictatime",
        "tmpcopyup",
        "notmpcopyup",
        "nosymfollow",
    ];
    const VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let destination = engine::volume::destination(destination).map_err(wrong)?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let known = match option.split_once('=') {
            Some((key, _)) => VALUES.contains(&key),
            None => WORDS.contains(&option),
        };
        if !known {
            return Err(wrong(format!("invalid tmpfs option \"{option}\"")));
        }
    }
    Ok((destination, options.to_owned()))
}

/// `--add-host NAME:ADDRESS`, or with `=`; the address may be `host-gateway`.
pub fn add_host(text: &str) -> Result<(String, String), Report> {
    let bad = || wrong(format!("bad format for add-host: \"{text}\""));
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.filter(|(name, _)| !name.is_empty()).ok_or_else(bad)?;
    if name.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(bad());
    }
    let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
    if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(wrong(format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok((name.to_owned(), bare.to_owned()))
}

/// `--dns-search`: a domain, or `.`.
pub fn dns_search(text: &str) -> Result<String, Report> {
    let letter = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(letter) {
        return Err(wrong(format!("{text} is not a valid domain")));
    }
    Ok(text.to_owned())
}

/// `--dns-option`: one word.
pub fn dns_option(text: &str) -> Result<String, Report> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong(format!("invalid dns-option: {text:?}")));
    }
    Ok(text.to_owned())
}

/// `--mac-address`: six bytes in hexadecimal with `:` or `-` between, of one device and not of a group.
pub fn mac_address(text: &str) -> Result<[u8; 6], Report> {
    let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = |part: &str| digits(part).then(|| u8::from_str_radix(part, 16).ok()).flatten();
    let separator = if text.contains('-') { '-' } else { ':' };
    let bytes: Option<Vec<u8>> = text.split(separator).map(byte).collect();
    let address = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    address
        .filter(|address| address[0] & 1 == 0 && *address != [0; 6])
        .ok_or_else(|| wrong(format!("{text} is not a valid mac address")))
}

/// Whether `--device` names a device of CDI and no path: `VENDOR/CLASS=NAME`.
pub fn is_cdi_device(text: &str) -> bool {
    !text.starts_with('/') && text.split_once('=').is_some_and(|(kind, _)| kind.contains('/'))
}

/// `--device HOST[:CONTAINER][:PERMISSIONS]`.
pub fn device(text: &str) -> Result<DeviceMapping, Report> {
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, permissions) = match parts[..] {
        [host] => (host, host, "rwm"),
        [host, permissions] if is_permissions(permissions) => (host, host, permissions),
        [host, container] => (host, container, "rwm"),
        [host, container, permissions] if is_permissions(permissions) => (host, container, permissions),
        [_, _, permissions] => return Err(wrong(format!("bad mode specified: {permissions}"))),
        _ => return Err(wrong(format!("bad format for path: {text}"))),
    };
    let container = if container.is_empty() { host } else { container };
    for path in [host, container] {
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(wrong(format!("{path} is not an absolute path")).with_hint(
                "--device takes /PATH/ON/HOST[:/PATH/IN/CONTAINER[:rwm]], or VENDOR/CLASS=NAME of a CDI spec file",
            ));
        }
    }
    let container = container.trim_end_matches('/');
    if container.is_empty() {
        return Err(wrong(format!("bad format for path: {text}: a device cannot be /")));
    }
    let (path_on_host, permissions) = (PathBuf::from(host), permissions.to_owned());
    Ok(DeviceMapping { path_on_host, path_in_container: container.to_owned(), permissions })
}

/// Of `r`, `w` and `m` each at most once.
fn is_permissions(text: &str) -> bool {
    let once = |letter: char| text.matches(letter).count() <= 1;
    !text.is_empty() && text.chars().all(|letter| "rwm".contains(letter) && once(letter))
}

/// `--gpus all|COUNT|KEY=VALUE,…`: fields of comma-separated values, so that a value with a comma stands in quotes.
pub fn gpus(text: &str) -> Result<DeviceRequest, Report> {
    let fields = csv(text).map_err(|why| wrong(format!("invalid GPU request {text:?}: {why}")))?;
    let mut request = DeviceRequest { capabilities: vec![vec!["gpu".to_owned()]], ..DeviceRequest::default() };
    let mut seen: Vec<&str> = Vec::new();
    for field in &fields {
        let (key, value) = field.split_once('=').unwrap_or(("count", field));
        if seen.contains(&key) {
            return Err(wrong(format!("gpu request key '{key}' can be specified only once")));
        }
        seen.push(key);
        let list = || value.split(',').map(str::to_owned).collect::<Vec<_>>();
        match key {
            "count" => request.count = count(value)?,
            "driver" => value.clone_into(&mut request.driver),
            "device" => request.device_ids = list(),
            "capabilities" => request.capabilities = vec![[list(), vec!["gpu".to_owned()]].concat()],
            "options" => {
                return Err(wrong("options of GPU requests are not supported: no driver here has any".to_owned()));
            }
            _ => return Err(wrong(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    if !seen.contains(&"count") && !seen.contains(&"device") {
        request.count = 1;
    }
    Ok(request)
}

fn count(text: &str) -> Result<i64, Report> {
    let number = || text.parse().ok();
    let count = if text == "all" { Some(-1) } else { number() };
    count.ok_or_else(|| wrong(format!("invalid count ({text}): value must be either \"all\" or an integer")))
}

/// One record of comma-separated values (RFC 4180): a field in quotes may hold commas, and a quote as two.
fn csv(text: &str) -> Result<Vec<String>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = rest.strip_prefix('"').map_or_else(|| plain_field(rest), quoted_field)?;
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("something stands after a closing quote"),
        }
    }
}

/// The field up to a comma, and what stands after it.
fn plain_field(text: &str) -> Result<(String, &str), &'static str> {
    let (field, rest) = text.split_at(text.find(',').unwrap_or(text.len()));
    if field.contains('"') {
        return Err("a quote stands in a field that does not begin with one");
    }
    Ok((field.to_owned(), rest))
}

/// The field after an opening quote, and what stands after its closing one.
fn quoted_field(mut rest: &str) -> Result<(String, &str), &'static str> {
    let mut field = String::new();
    loop {
        let (part, after) = rest.split_once('"').ok_or("a quote is not closed")?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Ok((field, after)),
        }
    }
}

/// `--network`.
pub fn network(text: &str) -> Result<NetworkMode, Report> {
    match text {
        "" | "builtin" | "default" | "bridge" => Ok(NetworkMode::Builtin),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        _ => joined_network(text),
    }
}

/// `--network container:NAME|ID` and Podman's `ns:PATH`.
fn joined_network(text: &str) -> Result<NetworkMode, Report> {
    match text.split_once(':') {
        Some(("container", "")) => {
            Err(wrong("Invalid network mode: invalid container format container:<name|id>".to_owned()))
        }
        Some(("container", name)) => Ok(NetworkMode::Container(name.to_owned())),
        Some(("ns", path)) if path.starts_with('/') => Ok(NetworkMode::Namespace(path.into())),
        Some(("ns", path)) => Err(wrong(format!("invalid network mode: {path:?} is not an absolute path"))),
        _ => Err(Report::new(Kind::NotFound, format!("network {text} not found"))
            .with_hint("the networks are builtin, host, none, container:NAME and ns:PATH")),
    }
}

/// `--userns`.
pub fn userns(text: &str) -> Result<UserNamespace, Report> {
    match text {
        "" | "auto" => Ok(UserNamespace::Default),
        // Docker's word for *no remapping beyond the engine's own*.
        "host" => Ok(UserNamespace::Host),
        "keep-id" => Ok(UserNamespace::KeepId),
        "single" => Ok(UserNamespace::Single),
        _ => keep_as(text).ok_or_else(|| {
            wrong(format!("invalid USER mode: {text}"))
                .with_hint("the modes are auto, host, keep-id, keep-id:uid=UID,gid=GID and single")
        }),
    }
}

/// Podman's `keep-id:uid=UID,gid=GID`; of a group that is not named the number is the user's.
fn keep_as(text: &str) -> Option<UserNamespace> {
    let (mut uid, mut gid) = (None, None);
    for word in text.strip_prefix("keep-id:")?.split(',') {
        let (key, value) = word.split_once('=')?;
        let number = value.parse().ok().filter(|number: &u32| *number < u32::MAX)?;
        match key {
            "uid" => uid = Some(number),
            "gid" => gid = Some(number),
            _ => return None,
        }
    }
    let uid = uid?;
    Some(UserNamespace::KeepAs { uid, gid: gid.unwrap_or(uid) })
}

/// `--detach-keys`, as bytes of a terminal: single characters, `DEL` and `ctrl-` with a letter or one of `@[\]^_`, with commas
/// between.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, Report> {
    let key = |word: &str| match (word.as_bytes(), word.strip_prefix("ctrl-").map(str::as_bytes)) {
        ([byte], _) => Some(*byte),
        (_, Some([byte @ (b'a'..=b'z' | b'@' | b'['..=b'_')])) => Some(byte & 0x1f),
        (b"DEL", _) => Some(0x7f),
        _ => None,
    };
    let wrong = |word: &str| wrong(format!("invalid detach keys ({text}): Unknown character: '{word}'"));
    text.split(',').map(|word| key(word).ok_or_else(|| wrong(word))).collect()
}

/// `--label KEY[=VALUE]`.
pub fn label(text: &str) -> Result<(String, String), Report> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let key = key.trim_start_matches(BLANKS);
    if key.is_empty() {
        return Err(wrong(format!("invalid label '{text}': empty name")));
    }
    if key.contains(BLANKS) {
        return Err(wrong(format!("label '{key}' contains whitespaces")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The lines of an `--env-file`: comments and empty lines left out. `value_of` knows the variables of the environment,
/// whose values a name without one takes; a name that is not there is no line.
pub fn env_file(text: &str, value_of: impl Fn(&str) -> Result<Option<String>, Report>) -> Result<Vec<String>, Report> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| {
        let (name, value) = line.split_once('=').map_or((line, None), |(name, value)| (name, Some(value)));
        if name.contains(BLANKS) {
            return Err(wrong(format!("poorly formatted environment: variable '{name}' contains whitespaces")));
        }
        if name.is_empty() {
            return Err(wrong(format!("poorly formatted environment: no variable name on line '{line}'")));
        }
        let value = value.map_or_else(|| value_of(name), |value| Ok(Some(value.to_owned())))?;
        Ok(value.map(|value| format!("{name}={value}")))
    };
    lines.filter_map(|line| entry(line).transpose()).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    fn ports(text: &str) -> Vec<String> {
        let show = |port: PortMapping| {
            let ip = port.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            let PortMapping { host_port, host_port_last, container_port, protocol, .. } = port;
            format!("{ip}|{host_port}-{host_port_last}>{container_port}/{}", protocol.as_str())
        };
        publish(text).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn every_form_of_publish() {
        for (text, parsed) in [
            ("80", vec!["|0-0>80/tcp"]),
            ("8080:80", vec!["|8080-8080>80/tcp"]),
            ("8080:80/udp", vec!["|8080-8080>80/udp"]),
            ("8080:80/UDP", vec!["|8080-8080>80/udp"]),
            ("127.0.0.1:8080:80", vec!["127.0.0.1|8080-8080>80/tcp"]),
            ("127.0.0.1::80", vec!["127.0.0.1|0-0>80/tcp"]),
            ("127.0.0.1:80", vec!["127.0.0.1|0-0>80/tcp"]),
            ("[::1]:8080:80", vec!["::1|8080-8080>80/tcp"]),
            ("[::1]::80", vec!["::1|0-0>80/tcp"]),
            ("8000-8001:80-81", vec!["|8000-8000>80/tcp", "|8001-8001>81/tcp"]),
            ("8000-8010:80", vec!["|8000-8010>80/tcp"]),
            ("80-81", vec!["|0-0>80/tcp", "|0-0>81/tcp"]),
        ] {
            assert_eq!(ports(text), parsed, "{text}");
        }
        for bad in ["", "0", "x", "80/icmp", "1:2:3:80", "8000-8002:80-81", "81-80", "65536", "[::1:80", "+80", ":"] {
            assert!(publish(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_for_names_and_addresses() {
        let address = [0x02, 0x42, 0xac, 0x11, 0, 0xff];
        assert_eq!(mac_address("02:42:ac:11:00:FF").unwrap(), address);
        assert_eq!(mac_address("02-42-ac-11-00-ff").unwrap(), address);
        for bad in ["", "02:42:ac:11:00", "02:42:ac:11:00:fg", "03:00:00:00:00:01", "00:00:00:00:00:00", "+2:0:0:0:0:1"]
        {
            assert!(mac_address(bad).is_err(), "{bad}");
        }
        assert_eq!((dns_search("a.test").unwrap(), dns_search(".").unwrap()), ("a.test".into(), ".".into()));
        assert!(dns_search("a b").is_err() && dns_search("a\nb").is_err() && dns_search("").is_err());
        assert_eq!(dns_option("ndots:3").unwrap(), "ndots:3");
        assert!(dns_option("a\nnameserver 192.0.2.1").is_err());
    }

    #[test]
    fn exposed_ports_are_listed() {
        assert_eq!(expose("80").unwrap(), ["80/tcp"]);
        assert_eq!(expose("80-82/UDP").unwrap(), ["80/udp", "81/udp", "82/udp"]);
        for bad in ["", "0", "80:80", "81-80", "80/icmp", "65536"] {
            assert!(expose(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_are_paths_or_names() {
        let path = |text: &str| VolumeSource::Path(text.into());
        for (text, source, destination, read_only) in [
            ("/a:/b", path("/a"), "/b", false),
            ("/a:/b/:ro,z", path("/a"), "/b", true),
            ("./a:/b", path("./a"), "/b", false),
            ("..:/b", path(".."), "/b", false),
            ("data:/b:rw", VolumeSource::Named("data".into()), "/b", false),
            ("/b", VolumeSource::default(), "/b", false),
        ] {
            let parsed = volume(text).unwrap();
            let relabel = text.ends_with('z');
            let anonymous = !text.contains(':');
            let destination = destination.into();
            let wanted = Volume { source, destination, read_only, relabel, anonymous, ..Volume::default() };
            assert_eq!(parsed, wanted, "{text}");
        }
        for bad in [
            "",
            "a",
            "a/b:/c",
            "relative:..:bad:bad",
            "/a:b",
            "/a:/",
            "/a:/b:odd",
            "/a:/b/../c",
            ":/b",
            "/a::ro",
            "/a:/b:",
            "/a:/b:ro,rw",
            "/a:/b:nocopy",
            "data:/b:rslave",
            "/a:/b:rslave,private",
            "/a:/b:O,ro",
            "a:/b",
            "/a:/b:exec,noexec",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let all = volume("/a:/b:U,cow,rslave,noexec,nosuid,nodev,bind").unwrap();
        assert!(all.chown && all.cow && all.below == Below::Hidden && !all.read_only);
        assert_eq!(all.options, ["rslave", "noexec", "nosuid", "nodev"]);
        assert!(volume("data:/b:nocopy").unwrap().no_copy);
    }

    fn mounted(text: &str) -> Volume {
        match mount(text).unwrap() {
            Mounted::Volume(volume) => *volume,
            Mounted::Memory(..) => panic!("{text}"),
        }
    }

    #[test]
    fn mounts_are_read_in_every_spelling() {
        for text in [
            "type=bind,source=/a,target=/b,readonly",
            "type=bind,src=/a,dst=/b,ro=true",
            "TYPE=bind,SRC=/a,destination=/b/,readonly=1",
            "type=bind,\"src=/a\",dst=/b,rw=false",
        ] {
            let source = VolumeSource::Path("/a".into());
            let wanted =
                Volume { source, destination: "/b".to_owned(), read_only: true, must_exist: true, ..Volume::default() };
            assert_eq!(mounted(text), wanted, "{text}");
        }
        let volume = mounted(
            "source=data,target=/b,volume-nocopy,volume-subpath=x/y,volume-label=a=b,\"volume-opt=o=bind,ro\",U=true",
        );
        assert_eq!((volume.source, volume.subpath.as_deref()), (VolumeSource::Named("data".into()), Some("x/y")));
        assert!(volume.no_copy && volume.chown && !volume.anonymous && !volume.must_exist);
        assert_eq!((&volume.labels["a"][..], &volume.driver_options["o"][..]), ("b", "bind,ro"));
        assert!(mounted("type=volume,target=/b").anonymous);
        for (word, below) in [
            ("bind-nonrecursive", Below::Hidden),
            ("bind-recursive=disabled", Below::Hidden),
            ("bind-recursive=writable", Below::Writable),
            ("bind-recursive=readonly,readonly", Below::Shown),
        ] {
            assert_eq!(mounted(&format!("type=bind,src=/a,dst=/b,{word}")).below, below, "{word}");
        }
        assert_eq!(mounted("type=bind,src=/a,dst=/b,bind-propagation=rslave").options, ["rslave"]);
        let memory = Mounted::Memory("/b".to_owned(), "size=1048576,mode=1700,ro".to_owned());
        assert_eq!(mount("type=tmpfs,dst=/b,tmpfs-size=1m,tmpfs-mode=1700,readonly").unwrap(), memory);
    }

    #[test]
    fn what_is_no_mount_is_told_in_dockers_words() {
        for (text, words) in [
            ("type=bind,src=/a", "target is required"),
            ("type=bind,dst=/b", "field Source must not be empty"),
            ("type=tmpfs,src=/a,dst=/b", "field Source must not be specified"),
            ("type=bind,src=/a,dst=/b,colour=red", "unexpected key 'colour' in 'colour=red'"),
            ("type=bind,src=/a,dst=/b,colour", "invalid field 'colour' must be a key=value pair"),
            ("type=bind,src=/a,dst=/b,readonly=perhaps", "invalid value for readonly: perhaps"),
            ("type=bind,src=/a,dst=/b,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
            (
                "type=volume,src=ab,dst=/b,bind-propagation=slave",
                "cannot mix 'bind-*' options with mount type 'volume'",
            ),
            ("type=bind,src=/a,dst=/b,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
            ("type=bind,src=/a,dst=/b,bind-propagation=odd", "invalid propagation mode: odd"),
            ("type=bind,src=/a,dst=/b,bind-recursive=readonly", "requires 'readonly' to be specified"),
            ("type=odd,src=/a,dst=/b", "mount type unknown"),
            ("type=image,src=x,dst=/b", "not built"),
            ("type=volume,src=../x,dst=/b", "includes invalid characters"),
            ("type=volume,src=ab,dst=/b,volume-subpath=../x", "subpath must be a relative path"),
            ("type=volume,src=ab,dst=/b,volume-subpath=/x", "subpath must be a relative path"),
            ("type=tmpfs,dst=/b,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
            ("type=bind,src=/a,dst=b", "mount path must be absolute"),
            ("type=bind,src=/a,dst=/b/../c", "mount path must be absolute"),
            ("type=bind,\"src=/a", "a quote is not closed"),
        ] {
            let said = mount(text).unwrap_err().to_string();
            assert!(said.contains(words) && said.contains("for \"--mount\" flag"), "{text}: {said}");
        }
        for (text, answer) in
            [("a", Some(false)), ("a:ro", Some(true)), ("a:rw,z", Some(false)), ("a:x", None), (":ro", None)]
        {
            assert_eq!(volumes_from(text).ok().map(|(_, read_only)| read_only), answer, "{text}");
        }
        assert_eq!(storage_option("size=1g").unwrap(), 1 << 30);
        for bad in ["size", "size=0", "size=x", "inodes=1"] {
            assert!(storage_option(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn user_namespaces_are_named() {
        let both = UserNamespace::KeepAs { uid: 1000, gid: 5 };
        for (text, wanted) in [
            ("auto", UserNamespace::Default),
            ("host", UserNamespace::Host),
            ("keep-id", UserNamespace::KeepId),
            ("keep-id:uid=1000,gid=5", both),
            ("keep-id:gid=5,uid=1000", both),
            ("keep-id:uid=1000", UserNamespace::KeepAs { uid: 1000, gid: 1000 }),
        ] {
            assert_eq!(userns(text).unwrap(), wanted, "{text}");
        }
        for bad in ["keep-id:", "keep-id:uid=x", "keep-id:gid=1", "keep-id:uid=4294967295", "keep-id:size=1", "nomap"] {
            assert!(userns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_written_as_in_docker() {
        for (text, keys) in [
            ("ctrl-p,ctrl-q", &b"\x10\x11"[..]),
            ("a,b", b"ab"),
            ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\0\x1b\x1c\x1d\x1e\x1f"),
            ("DEL", b"\x7f"),
        ] {
            assert_eq!(detach_keys(text).unwrap(), keys, "{text}");
        }
        for bad in ["", "ctrl-", "ctrl-P", "ctrl-1", "ab", "a,,b", "ctrl-pq", "é"] {
            assert!(detach_keys(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices_are_paths_or_names() {
        for (text, host, container, permissions) in [
            ("/dev/a", "/dev/a", "/dev/a", "rwm"),
            ("/dev/a:/dev/b", "/dev/a", "/dev/b", "rwm"),
            ("/dev/a:r", "/dev/a", "/dev/a", "r"),
            ("/dev/a:/dev/b:mw", "/dev/a", "/dev/b", "mw"),
            ("/dev/a::rw", "/dev/a", "/dev/a", "rw"),
            ("/dev/dri/", "/dev/dri/", "/dev/dri", "rwm"),
        ] {
            let parsed = device(text).unwrap();
            let wanted = DeviceMapping {
                path_on_host: host.into(),
                path_in_container: container.into(),
                permissions: permissions.into(),
            };
            assert_eq!(parsed, wanted, "{text}");
        }
        for bad in
            ["", ":", "dev/a", "/dev/a:b", "/dev/a:rr", "/dev/a:/b:x", "/a:/b:rw:x", "/a:/b:", "/a:/../b", "/a:/"]
        {
            assert!(device(bad).is_err(), "{bad}");
        }
        for (text, cdi) in
            [("v.com/c=a", true), ("v.com/c=", true), ("/dev/a=b/c", false), ("a=b", false), ("a/b", false)]
        {
            assert_eq!(is_cdi_device(text), cdi, "{text}");
        }
    }

    #[test]
    fn every_form_of_gpus() {
        let show = |text: &str| {
            gpus(text).map(|request| {
                let DeviceRequest { driver, count, device_ids, capabilities } = request;
                format!("{driver}|{count}|{}|{}", device_ids.join(" "), capabilities.concat().join(" "))
            })
        };
        for (text, parsed) in [
            ("all", "|-1||gpu"),
            ("2", "|2||gpu"),
            ("count=all,driver=nvidia", "nvidia|-1||gpu"),
            ("driver=nvidia", "nvidia|1||gpu"),
            ("device=0", "|0|0|gpu"),
            ("\"device=0,GPU-a\"", "|0|0 GPU-a|gpu"),
            ("\"capabilities=compute,utility\",count=1", "|1||compute utility gpu"),
            ("all,\"driver=a\"\"b\"", "a\"b|-1||gpu"),
        ] {
            assert_eq!(show(text).unwrap(), parsed, "{text}");
        }
        for bad in
            ["", "x", "1.5", "all,2", "count=1,count=2", "other=1", "options=a=b", "\"all", "a\"b", "\"a\"b", "all,"]
        {
            assert!(show(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_and_files_of_variables() {
        assert_eq!(add_host("db:192.0.2.7").unwrap(), ("db".into(), "192.0.2.7".into()));
        assert_eq!(add_host("db=[::1]").unwrap(), ("db".into(), "::1".into()));
        assert_eq!(add_host("h:host-gateway").unwrap().1, "host-gateway");
        assert!(add_host("db").is_err() && add_host("db:x").is_err() && add_host(":1.2.3.4").is_err());
        let value_of = |name: &str| Ok((name == "C").then(|| "here".to_owned()));
        let file = "\u{feff}# c\r\nA= 1 \r\n\n  B=x=y\nC\nGONE\nD=\n";
        assert_eq!(env_file(file, value_of).unwrap(), ["A= 1 ", "B=x=y", "C=here", "D="]);
        assert!(env_file("A B=1", value_of).is_err() && env_file("=x", value_of).is_err());
    }

    #[test]
    fn labels_and_file_systems_in_memory() {
        assert_eq!(label("a.b=c d=e").unwrap(), ("a.b".into(), "c d=e".into()));
        assert_eq!(label("alone").unwrap(), ("alone".into(), String::new()));
        assert!(label("=x").is_err() && label("a b=c").is_err());
        assert_eq!(tmpfs("/t/:size=1m,exec").unwrap(), ("/t".into(), "size=1m,exec".into()));
        for bad in ["t", "/", "/t:size", "/t:odd=1", "/t:shared", "/t:ro=1"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }
}
