use std::cmp::Reverse;
use std::time::SystemTime;

use base::Report;
use base::time::{go_text, human_span};
use base::units::human_size;
use clap::Args;
use engine::container::list::{Summary, list};
use engine::container::record::PortMapping;
use engine::{Engine, container};

use crate::container_filters::ContainerFilters;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout, warning};

const TABLE: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}";
const TABLE_WITH_SIZE: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}";
/// How much of a command a table shows.
const COMMAND_MAX: usize = 20;

/// List containers
#[derive(Args)]
pub struct Ps {
    /// Those that do not run too
    #[arg(short, long)]
    pub all: bool,
    /// Those of other machines that share this home too, as they were recorded there
    #[arg(long)]
    all_machines: bool,
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// ancestor=, before=, exited=, expose=, health=, id=, label=, name=, network=, publish=, since=, status=, volume=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// The last N created, whatever their state
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// The last created, whatever its state
    #[arg(short, long)]
    latest: bool,
    /// What each has written, and that with its image
    #[arg(short, long)]
    size: bool,
}

impl Ps {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filters = ContainerFilters::parse(&self.filters)?;
        let engine = globals.engine()?;
        let now = SystemTime::now();
        let (mut containers, mut broken) = list(&engine, now)?;
        if self.all_machines {
            let others = container::elsewhere::list(&engine, now)?;
            containers.extend(others.0);
            broken.extend(others.1);
            containers.sort_by_key(|container| Reverse(container.created));
        }
        let last = if self.latest { Some(1) } else { self.last };
        let every = self.all || last.is_some() || filters.names_states();
        let sieve = filters.look_up(&engine, &containers)?;
        containers.retain(|container| {
            (every || matches!(container.state, "running" | "paused" | "restarting")) && sieve.passes(container)
        });
        containers.truncate(last.unwrap_or(usize::MAX));
        // To measure takes a walk through all files.
        let sizes = self.size || self.format.as_deref().is_some_and(asks_for_size);
        let mut rows = Vec::new();
        for container in &containers {
            let size = if sizes { size(&engine, container)? } else { "0B".to_owned() };
            rows.push(row(container, now, self.no_trunc, size));
        }
        let format = match (&self.format, self.quiet) {
            (None, true) => Some("{{.ID}}"),
            (format, _) => format.as_deref(),
        };
        let table = if self.size { TABLE_WITH_SIZE } else { TABLE };
        stdout(&format::rows(format, table, &headers(), &rows)?)?;
        // One line each: a container that is broken stays so until it is removed, and `ps` is read by programs.
        for report in &broken {
            let hint = report.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
            warning(&format!("{}{hint}", report.lines().join(": ")));
        }
        Ok(0)
    }
}

fn asks_for_size(format: &str) -> bool {
    // As in Docker `json` does not measure.
    !matches!(format, "" | "table" | "json") && format::shows(Some(format), &["Size"])
}

/// `5B (virtual 1.2MB)`; of a container that is gone by now nothing.
fn size(engine: &Engine, container: &Summary) -> Result<String, Report> {
    let Some(size) = container::size::size(engine, &container.id)? else { return Ok(String::new()) };
    Ok(format!("{} (virtual {})", human_size(size.written_bytes), human_size(size.whole_bytes)))
}

fn headers() -> Row {
    cells(std::array::from_fn(|_| String::new()))
}

fn cells(texts: [String; 15]) -> Row {
    let [
        id,
        image,
        command,
        running_for,
        status,
        ports,
        names,
        created,
        state,
        labels,
        mounts,
        networks,
        platform,
        local,
        size,
    ] = texts;
    Row::default()
        .cell("ID", "CONTAINER ID", id)
        .cell("Image", "IMAGE", image)
        .cell("Command", "COMMAND", command)
        .cell("RunningFor", "CREATED", running_for)
        .cell("Status", "STATUS", status)
        .cell("Ports", "PORTS", ports)
        .cell("Names", "NAMES", names)
        .cell("CreatedAt", "CREATED AT", created)
        .cell("State", "STATE", state)
        .cell("Labels", "LABELS", labels)
        .cell("Mounts", "MOUNTS", mounts)
        .cell("Networks", "NETWORKS", networks)
        .cell("Platform", "PLATFORM", platform)
        .cell("LocalVolumes", "LOCAL VOLUMES", local)
        .cell("Size", "SIZE", size)
}

fn row(container: &Summary, now: SystemTime, whole: bool, size: String) -> Row {
    let age = human_span(now.duration_since(container.created).unwrap_or_default());
    let labels: Vec<String> = container.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let named = container.mounts.iter().filter(|source| !source.starts_with('/')).count();
    cells([
        if whole { container.id.to_string() } else { container.id.short().to_owned() },
        container.image.clone(),
        command(&container.command, whole),
        format!("{age} ago"),
        container.status.clone(),
        ports(&container.exposed, &container.ports),
        container.name.clone(),
        go_text(container.created),
        container.state.to_owned(),
        labels.join(","),
        container.mounts.join(","),
        container.network.clone(),
        container.platform.clone(),
        named.to_string(),
        size,
    ])
    .labels(container.labels.clone())
}

/// In quotes, and cut with an ellipsis.
pub fn command(words: &[String], whole: bool) -> String {
    let text = words.join(" ");
    let cut: String = if whole || text.chars().count() <= COMMAND_MAX {
        text
    } else {
        text.chars().take(COMMAND_MAX - 1).chain(['…']).collect()
    };
    let mut quoted = String::from("\"");
    for character in cut.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            control if control.is_control() => quoted.extend(control.escape_unicode()),
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

/// `443/tcp, 0.0.0.0:80->80/tcp, [::]:80->80/tcp`: first what is not published, neighbours as ranges.
fn ports(exposed: &[(u16, String)], published: &[PortMapping]) -> String {
    let texts: Vec<String> = exposed_texts(exposed).into_iter().chain(published_texts(published)).collect();
    texts.join(", ")
}

fn exposed_texts(exposed: &[(u16, String)]) -> Vec<String> {
    let mut sorted: Vec<_> = exposed.iter().map(|(number, protocol)| (protocol.as_str(), *number)).collect();
    sorted.sort_unstable();
    let groups = sorted.chunk_by(|a, b| a.0 == b.0 && a.1.checked_add(1) == Some(b.1));
    groups.map(|group| format!("{}/{}", span(group[0].1, group.len() as u16), group[0].0)).collect()
}

/// One port, or a range.
fn span(first: u16, count: u16) -> String {
    match count {
        1 => first.to_string(),
        _ => format!("{first}-{}", first + count - 1),
    }
}

fn published_texts(ports: &[PortMapping]) -> Vec<String> {
    let mut spread: Vec<(String, u16, u16, &str)> = Vec::new();
    for port in ports {
        let addresses = match port.host_ip {
            Some(ip) if ip.is_ipv6() => vec![format!("[{ip}]")],
            Some(ip) => vec![ip.to_string()],
            None => vec!["0.0.0.0".to_owned(), "[::]".to_owned()],
        };
        for address in addresses {
            spread.push((address, port.host_port, port.container_port, port.protocol.as_str()));
        }
    }
    spread.sort_by(|a, b| (a.3, &a.0, a.2, a.1).cmp(&(b.3, &b.0, b.2, b.1)));
    let mut groups: Vec<(String, u16, u16, &str, u16)> = Vec::new();
    for (address, host, container, protocol) in spread {
        match groups.last_mut() {
            Some((a, h, c, p, count))
                if *a == address && *p == protocol && host == *h + *count && container == *c + *count =>
            {
                *count += 1;
            }
            _ => groups.push((address, host, container, protocol, 1)),
        }
    }
    let show = |(address, host, container, protocol, count): (String, u16, u16, &str, u16)| {
        format!("{address}:{}->{}/{protocol}", span(host, count), span(container, count))
    };
    groups.into_iter().map(show).collect()
}

#[cfg(test)]
mod tests {
    use engine::container::record::Protocol;

    use super::*;

    #[test]
    fn commands_are_quoted_and_cut() {
        let words = |text: &str| vec![text.to_owned()];
        assert_eq!(command(&words("sleep 600"), false), "\"sleep 600\"");
        assert_eq!(command(&words("abcdefghijklmnopqrst"), false), "\"abcdefghijklmnopqrst\"");
        assert_eq!(command(&words("abcdefghijklmnopqrstu"), false), "\"abcdefghijklmnopqrs…\"");
        assert_eq!(command(&words("say \"a\"\n"), true), r#""say \"a\"\n""#);
    }

    #[test]
    fn neighbouring_ports_are_a_range() {
        let port = |host_ip: Option<&str>, number: u16| PortMapping {
            host_ip: host_ip.and_then(|ip| ip.parse().ok()),
            host_port: number,
            host_port_last: number,
            container_port: number - 8000,
            protocol: Protocol::Tcp,
        };
        assert_eq!(ports(&[], &[port(None, 8080)]), "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp");
        let exposed = [(443, "tcp"), (53, "udp"), (444, "tcp")].map(|(number, protocol)| (number, protocol.to_owned()));
        let shown = "443-444/tcp, 53/udp, 127.0.0.1:8080->80/tcp";
        assert_eq!(ports(&exposed, &[port(Some("127.0.0.1"), 8080)]), shown);
        let two = [port(Some("127.0.0.1"), 8081), port(Some("127.0.0.1"), 8080)];
        assert_eq!(ports(&[], &two), "127.0.0.1:8080-8081->80-81/tcp");
    }
}
