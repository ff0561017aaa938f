//! `network`, in the words of Docker; `exists` is Podman's.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use base::{Kind, Report};
use clap::{Args, Subcommand};
use engine::network::connect::{connect, disconnect};
use engine::network::create::{self, CreateRequest};
use engine::network::endpoint::Wanted;
use engine::network::list::{Listed, list};
use engine::network::remove::{self, remove};
use engine::network::subnet::{self, Wishes};
use engine::network::{BUILT_IN, Network as Made, find};
use engine::system::filter::PruneFilter;
use engine::{Engine, container};
use serde::Serialize;

use crate::commands::inspect::Inspect;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::network_options::parse_link;
use crate::output::{Stop, confirm, for_each, line, stdout};
use crate::parse;

const TABLE: &str = "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}";
/// The driver of networks that are made.
const BRIDGE: &str = "bridge";

/// Manage networks
#[derive(Subcommand)]
pub enum Network {
    Connect(Connect),
    Create(Create),
    Disconnect(Disconnect),
    Exists(Exists),
    Inspect(InspectNetworks),
    #[command(visible_alias = "list")]
    Ls(Ls),
    Prune(Prune),
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// Put a container into a network
#[derive(Args)]
pub struct Connect {
    /// A name by which the other containers of the network find it
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Another container of the network, and a name that only this one finds it by: NAME[:LINK]
    #[arg(long, value_name = "NAME[:LINK]")]
    link: Vec<String>,
    /// Its IPv4 address there
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    /// Its IPv6 address there
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<Ipv6Addr>,
    /// The MAC of its device
    #[arg(long, value_name = "MAC")]
    mac_address: Option<String>,
    network: String,
    container: String,
}

/// Make a network
#[derive(Args)]
pub struct Create {
    /// The driver: bridge
    #[arg(short, long, default_value = BRIDGE)]
    driver: String,
    /// ADDRESS/BITS, one of each family
    #[arg(long, value_name = "SUBNET")]
    subnet: Vec<String>,
    /// The gateway of a subnet
    #[arg(long, value_name = "ADDRESS")]
    gateway: Vec<String>,
    /// The part of a subnet for containers that ask for no address
    #[arg(long, value_name = "SUBNET")]
    ip_range: Vec<String>,
    /// Nothing leads out of it
    #[arg(long)]
    internal: bool,
    /// With IPv6, which is there in any case
    #[arg(long)]
    ipv6: bool,
    /// Containers may be connected to it, which they may in any case
    #[arg(long, hide = true)]
    attachable: bool,
    /// One of that name may be there already
    #[arg(long)]
    ignore: bool,
    /// KEY=VALUE
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// KEY=VALUE of the driver: mtu=BYTES
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    network: String,
}

/// Take a container out of a network
#[derive(Args)]
pub struct Disconnect {
    /// As without
    #[arg(short, long)]
    force: bool,
    network: String,
    container: String,
}

/// Whether there is a network: the exit code is 0 or 1
#[derive(Args)]
pub struct Exists {
    network: String,
}

/// Print all that is known about networks
#[derive(Args)]
pub struct InspectNetworks {
    #[command(flatten)]
    inspect: Inspect,
}

/// List networks
#[derive(Args)]
pub struct Ls {
    /// dangling=, driver=, id=, label=, name=, type=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
}

/// Remove networks that no container has
#[derive(Args)]
pub struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Remove networks
#[derive(Args)]
pub struct Rm {
    /// Say nothing of those that do not exist
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

impl Network {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Network::Connect(command) => command.execute(globals),
            Network::Create(command) => command.execute(globals),
            Network::Disconnect(command) => {
                let engine = globals.engine()?;
                let id = container::find(&engine, &command.container)?;
                disconnect(&engine, &id, &command.network)?;
                Ok(0)
            }
            Network::Exists(command) => command.execute(globals),
            Network::Inspect(command) => command.inspect.of_networks().execute(globals),
            Network::Ls(command) => command.execute(globals),
            Network::Prune(command) => command.execute(globals),
            Network::Rm(command) => command.execute(globals),
        }
    }
}

impl Connect {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let mac = self.mac_address.as_deref().map(parse::mac_address).transpose()?;
        let links = self.link.iter().map(|text| parse_link(text)).collect::<Result<_, _>>()?;
        let Connect { network, alias: aliases, ip, ip6, .. } = self;
        connect(&engine, &id, Wanted { network, aliases, links, ip, ip6, mac })?;
        Ok(0)
    }
}

impl Create {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        if self.driver != BRIDGE {
            let text = format!("could not find plugin {} in v1 plugin registry: plugin not found", self.driver);
            return Err(Report::new(Kind::NotFound, text).with_hint("the driver is bridge").into());
        }
        let option = |text: &String| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            (key.to_owned(), value.to_owned())
        };
        let Create { subnet: subnets, gateway: gateways, ip_range: ranges, ipv6, .. } = self;
        let request = CreateRequest {
            name: self.network,
            subnets: Wishes { subnets, gateways, ranges, ipv6 },
            internal: self.internal,
            labels: self.labels.iter().map(|text| parse::label(text)).collect::<Result<_, _>>()?,
            options: self.options.iter().map(option).collect(),
            ignore: self.ignore,
        };
        line(create::create(&globals.engine()?, request)?.id)?;
        Ok(0)
    }
}

impl Exists {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        if BUILT_IN.iter().any(|(name, _)| *name == self.network) {
            return Ok(0);
        }
        match find(&globals.engine()?, &self.network) {
            Ok(_) => Ok(0),
            Err(report) if report.kind() == Kind::NotFound => Ok(1),
            Err(report) => Err(report.into()),
        }
    }
}

/// A network of either kind, as `ls` shows it.
struct Shown {
    id: String,
    name: String,
    driver: &'static str,
    internal: bool,
    ipv6: bool,
    created: String,
    labels: BTreeMap<String, String>,
    dangling: bool,
    made: bool,
}

impl Shown {
    fn of(listed: Listed) -> Self {
        let Listed { network, dangling, .. } = listed;
        let Made { id, name, created_at, internal, labels, v6, .. } = network;
        Shown { id, name, driver: BRIDGE, internal, ipv6: v6.asked, created: created_at, labels, dangling, made: true }
    }

    fn built_in((name, driver): (&'static str, &'static str)) -> Self {
        Shown {
            id: built_in_id(name),
            name: name.to_owned(),
            driver,
            internal: false,
            ipv6: false,
            created: "0001-01-01T00:00:00Z".to_owned(),
            labels: BTreeMap::new(),
            dangling: false,
            made: false,
        }
    }

    fn passes(&self, filter: &Filter) -> bool {
        match filter {
            Filter::Dangling(wanted) => self.made && self.dangling == *wanted,
            Filter::Driver(driver) => self.driver == driver,
            Filter::Id(id) => self.id.starts_with(id.as_str()),
            Filter::Name(part) => self.name.contains(part.as_str()),
            Filter::Custom(wanted) => self.made == *wanted,
            Filter::Label(key, value) => {
                self.labels.get(key).is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            }
        }
    }

    fn row(&self, whole: bool) -> Row {
        let id = if whole { self.id.as_str() } else { &self.id[..12] };
        let word = |is: bool| if is { "true" } else { "false" };
        Row::default()
            .cell("CreatedAt", "CREATED AT", &self.created)
            .cell("Driver", "DRIVER", self.driver)
            .cell("ID", "NETWORK ID", id)
            .cell("IPv4", "IPV4", "true")
            .cell("IPv6", "IPV6", word(self.ipv6))
            .cell("Internal", "INTERNAL", word(self.internal))
            .cell("Name", "NAME", &self.name)
            .cell("Scope", "SCOPE", "local")
            .labels(self.labels.clone())
    }
}

/// Networks that are there without being made have ids made of their names.
fn built_in_id(name: &str) -> String {
    oci::Digest::of(name.as_bytes()).hex()
}

enum Filter {
    Dangling(bool),
    Driver(String),
    Id(String),
    Name(String),
    Custom(bool),
    Label(String, Option<String>),
}

fn filter(text: &str) -> Result<Filter, Report> {
    let wrong = |text: String| Report::new(Kind::Usage, text);
    let (key, value) =
        text.split_once('=').ok_or_else(|| wrong(format!("invalid filter '{text}': it must be KEY=VALUE")))?;
    let invalid = || wrong(format!("invalid filter '{key}={value}'"));
    Ok(match key {
        "dangling" => Filter::Dangling(match value {
            "true" | "1" => true,
            "false" | "0" => false,
            _ => return Err(invalid()),
        }),
        "driver" => Filter::Driver(value.to_owned()),
        "id" => Filter::Id(value.to_owned()),
        "name" => Filter::Name(value.to_owned()),
        "scope" if value == "local" => Filter::Name(String::new()),
        "type" => Filter::Custom(match value {
            "custom" => true,
            "builtin" => false,
            _ => return Err(invalid()),
        }),
        "label" => match value.split_once('=') {
            Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
            None => Filter::Label(value.to_owned(), None),
        },
        _ => return Err(invalid().with_hint("the keys are dangling, driver, id, label, name, scope and type")),
    })
}

impl Ls {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filters: Vec<Filter> = self.filters.iter().map(|text| filter(text)).collect::<Result<_, _>>()?;
        let mut shown: Vec<Shown> = BUILT_IN.into_iter().map(Shown::built_in).collect();
        shown.extend(list(&globals.engine()?)?.into_iter().map(Shown::of));
        // As in Docker: all labels must be there; of other keys that are given twice one must fit.
        let is_label = |filter: &Filter| matches!(filter, Filter::Label(..));
        let same = |one: &Filter, other: &Filter| std::mem::discriminant(one) == std::mem::discriminant(other);
        shown.retain(|network| {
            let fits = |filter: &Filter| network.passes(filter);
            let or_another = |filter: &Filter| filters.iter().any(|other| same(filter, other) && fits(other));
            filters.iter().all(|filter| if is_label(filter) { fits(filter) } else { or_another(filter) })
        });
        shown.sort_by(|one, other| one.name.cmp(&other.name));
        if self.quiet {
            let ids = shown
                .iter()
                .map(|network| format!("{}\n", if self.no_trunc { &network.id } else { &network.id[..12] }));
            stdout(&ids.collect::<String>())?;
            return Ok(0);
        }
        let rows: Vec<Row> = shown.iter().map(|network| network.row(self.no_trunc)).collect();
        let empty = Shown::built_in(BUILT_IN[0]).row(false);
        stdout(&format::rows(self.format.as_deref(), TABLE, &empty, &rows)?)?;
        Ok(0)
    }
}

impl Prune {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filter = PruneFilter::parse(&self.filters, SystemTime::now())?;
        if !self.force && !confirm("This will remove all custom networks not used by at least one container.")? {
            return Ok(0);
        }
        stdout(&text(&remove::prune(&globals.engine()?, &filter)?))?;
        Ok(0)
    }
}

/// The networks that were removed, as Docker lists them.
pub fn text(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    format!("Deleted Networks:\n{}\n\n", names.join("\n"))
}

impl Rm {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.networks, |name| match remove(&engine, name) {
            Ok(()) => line(name),
            Err(report) if self.force && report.kind() == Kind::NotFound => Ok(()),
            Err(report) => Err(report.into()),
        })
    }
}

/// A network in the shape of Docker's API.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    containers: BTreeMap<String, Endpoint>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    options: BTreeMap<String, String>,
    config: Vec<Pool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Pool {
    subnet: String,
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    gateway: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    name: String,
    #[serde(rename = "EndpointID")]
    id: String,
    mac_address: String,
    #[serde(rename = "IPv4Address")]
    ipv4: String,
    #[serde(rename = "IPv6Address")]
    ipv6: String,
}

/// A network of either kind, described.
pub fn described(engine: &Engine, text: &str) -> Result<impl Serialize, Report> {
    let built_in = BUILT_IN.into_iter().find(|(name, _)| *name == text);
    let network = if built_in.is_some() { None } else { Some(find(engine, text)?) };
    let common = Described { scope: "local", ipv4: true, ..Described::default() };
    let ipam = |config| Ipam { driver: "default", options: BTreeMap::new(), config };
    let Some(network) = network else {
        let Shown { id, name, driver, created, .. } = Shown::built_in(built_in.unwrap_or(BUILT_IN[0]));
        let (subnet, gateway) = (subnet::OF_OWN_NETWORKS.to_string(), subnet::OWN_GATEWAY.to_string());
        let pool = Pool { subnet, range: None, gateway };
        let config = if driver == BRIDGE { vec![pool] } else { Vec::new() };
        return Ok(Described { name, id, driver, created, ipam: ipam(config), ..common });
    };
    let listed = list(engine)?.into_iter().find(|listed| listed.network.id == network.id);
    let members = listed.map(|listed| listed.members).unwrap_or_default();
    let containers = members.into_iter().map(|member| {
        let addressing = member.joining.addressing;
        let (v4, v6, mac) = (addressing.v4, addressing.v6, addressing.mac);
        let endpoint = Endpoint {
            name: member.name,
            id: oci::Digest::of(format!("{}{}", network.id, member.id).as_bytes()).hex(),
            mac_address: mac.map(|byte| format!("{byte:02x}")).join(":"),
            ipv4: format!("{}/{}", v4.container, v4.prefix),
            ipv6: format!("{}/{}", v6.container, v6.prefix),
        };
        (member.id.to_string(), endpoint)
    });
    let containers = containers.collect();
    let Made { id, name, created_at, internal, v4, v6, labels, options, .. } = network;
    let range = v4.range.map(|(range, bits)| format!("{range}/{bits}"));
    let config = vec![
        Pool { subnet: v4.to_string(), range, gateway: v4.gateway.to_string() },
        Pool { subnet: v6.to_string(), range: None, gateway: v6.gateway.to_string() },
    ];
    Ok(Described {
        name,
        id,
        created: created_at,
        driver: BRIDGE,
        ipv6: true,
        ipam: ipam(config),
        internal,
        containers,
        options,
        labels,
        ..common
    })
}
