//! The small grammars inside of option values. Pure: no file, no environment.

use std::net::IpAddr;
use std::path::PathBuf;

use base::{Kind, Report};
use engine::container::record::{
    DeviceMapping, DeviceRequest, IoClass, LogConfig, LogDriver, Policy, PortMapping, Protocol, UserNamespace,
};

use oci::{ImageName, Reference};

/// What may not be in a name.
const BLANKS: [char; 2] = [' ', '\t'];

/// An error of an option's value.
pub fn wrong(message: String) -> Report {
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

/// `--net-rate`, in the units of tc(8): bits a second.
pub fn net_rate(text: &str) -> Result<u64, Report> {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = match unit.to_ascii_lowercase().as_str() {
        "bit" => Some(1.0),
        "kbit" => Some(1e3),
        "mbit" => Some(1e6),
        "gbit" => Some(1e9),
        _ => None,
    };
    let bits = unit.zip(number.parse::<f64>().ok()).map(|(unit, number)| number * unit);
    // A slower one would hold back a single segment for seconds.
    bits.filter(|bits| (64e3..=1e12).contains(bits)).map(|bits| bits as u64).ok_or_else(|| {
        wrong(format!("invalid rate {text:?}: it must be of 64kbit to 1000gbit a second"))
            .with_hint("a rate is a number with bit, kbit, mbit or gbit, as in --net-rate 20mbit")
    })
}

/// `--io-class`.
pub fn io_class(text: &str) -> Result<IoClass, Report> {
    IoClass::parse(text).ok_or_else(|| {
        wrong(format!("invalid --io-class {text:?}"))
            .with_hint("the classes are idle, best-effort[:LEVEL] and realtime[:LEVEL]; level 0 comes first, 7 last")
    })
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

/// `--log-driver` and each `--log-opt`.
pub fn log(driver: &str, options: &[String]) -> Result<LogConfig, Report> {
    let known = LogDriver::ALL.into_iter().find(|known| known.as_str() == driver);
    let driver = known.ok_or_else(|| {
        wrong(format!("logger: no log driver named '{driver}' is registered"))
            .with_hint("the drivers are json-file, local, k8s-file, journald and none")
    })?;
    Ok(LogConfig { driver, options: options.iter().map(|text| pair("--log-opt", text)).collect::<Result<_, _>>()? })
}

/// `NAME=VALUE` of an option.
pub fn pair(option: &str, text: &str) -> Result<(String, String), Report> {
    let split = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = split.ok_or_else(|| wrong(format!("{option} {text:?}: it must be NAME=VALUE")))?;
    Ok((name.to_owned(), value.to_owned()))
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
pub fn csv(text: &str) -> Result<Vec<String>, &'static str> {
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

/// `--umask`.
pub fn umask(text: &str) -> Result<u32, Report> {
    let is_octal = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mask = u32::from_str_radix(text, 8).ok().filter(|mask| is_octal && *mask <= 0o777);
    mask.ok_or_else(|| wrong(format!("--umask {text}: it must be up to four octal digits, at most 0777")))
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
    fn rates_are_bits_a_second() {
        for (text, bits) in [("64kbit", 64_000), ("64000bit", 64_000), ("1.5mbit", 1_500_000), ("20Mbit", 20_000_000)] {
            assert_eq!(net_rate(text).unwrap(), bits, "{text}");
        }
        for bad in ["", "0", "8", "8m", "63kbit", "1e9kbit", "-1gbit", "NaNbit", "infbit", "1001gbit", " 1gbit"] {
            assert!(net_rate(bad).is_err(), "{bad}");
        }
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
    fn masks_are_octal() {
        assert_eq!((umask("0022").unwrap(), umask("7").unwrap(), umask("777").unwrap()), (0o22, 7, 0o777));
        assert!(["", "8", "1777", "00022", "-1", "+22", "u=rwx"].iter().all(|bad| umask(bad).is_err()));
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
    fn labels_are_words() {
        assert_eq!(label("a.b=c d=e").unwrap(), ("a.b".into(), "c d=e".into()));
        assert_eq!(label("alone").unwrap(), ("alone".into(), String::new()));
        assert!(label("=x").is_err() && label("a b=c").is_err());
    }
}
