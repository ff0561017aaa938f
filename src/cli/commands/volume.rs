//! `volume`, in the words of Docker; `exists` is Podman's.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use base::units::human_size;
use base::{Kind, Report};
use clap::{Args, Subcommand};
use engine::container::cow;
use engine::system::filter::PruneFilter;
use engine::volume::prune::{Pruned, prune};
use engine::volume::{self, create, list, remove};
use serde::Serialize;

use crate::commands::diff::lines;
use crate::commands::inspect::Inspect;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, confirm, for_each, line, stdout};
use crate::parse;

const TABLE: &str = "{{.Driver}}\t{{.Name}}";
/// The only driver.
const LOCAL: &str = "local";

/// Manage volumes
#[derive(Subcommand)]
pub enum Volume {
    Apply(Apply),
    Create(Create),
    Diff(Diff),
    Drop(Drop),
    Exists(Exists),
    Inspect(InspectVolumes),
    #[command(visible_alias = "list")]
    Ls(Ls),
    Prune(Prune),
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

/// Bring what a container wrote to a volume with cow into its source, and begin anew
#[derive(Args)]
pub struct Apply {
    #[arg(value_name = "CONTAINER[:DESTINATION]")]
    volume: String,
}

/// Show what a container wrote to a volume with cow
#[derive(Args)]
pub struct Diff {
    #[arg(value_name = "CONTAINER[:DESTINATION]")]
    volume: String,
}

/// Forget what a container wrote to a volume with cow
#[derive(Args)]
pub struct Drop {
    #[arg(value_name = "CONTAINER[:DESTINATION]")]
    volume: String,
}

/// Make a volume
#[derive(Args)]
pub struct Create {
    /// The driver: local
    #[arg(short, long, default_value = LOCAL)]
    driver: String,
    /// KEY=VALUE
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// KEY=VALUE of the driver: type=none,o=bind,device=DIRECTORY
    #[arg(short, long = "opt", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Its name, in place of VOLUME
    #[arg(long, hide = true)]
    name: Option<String>,
    volume: Option<String>,
}

/// Whether there is a volume: the exit code is 0 or 1
#[derive(Args)]
pub struct Exists {
    volume: String,
}

/// Print all that is known about volumes
#[derive(Args)]
pub struct InspectVolumes {
    #[command(flatten)]
    inspect: Inspect,
}

/// List volumes
#[derive(Args)]
pub struct Ls {
    /// dangling=, driver=, label=, name=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

/// Remove anonymous volumes that no container has
#[derive(Args)]
pub struct Prune {
    /// Named ones too
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// all=, until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

/// Remove volumes
#[derive(Args)]
pub struct Rm {
    /// Say nothing of those that do not exist
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "VOLUME")]
    volumes: Vec<String>,
}

impl Volume {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Volume::Apply(command) => lines(&cow::apply(&globals.engine()?, &command.volume)?),
            Volume::Create(command) => command.execute(globals),
            Volume::Diff(command) => lines(&cow::diff(&globals.engine()?, &command.volume)?),
            Volume::Drop(command) => Ok(cow::drop(&globals.engine()?, &command.volume).map(|()| 0)?),
            Volume::Exists(command) => command.execute(globals),
            Volume::Inspect(command) => command.inspect.of_volumes().execute(globals),
            Volume::Ls(command) => command.execute(globals),
            Volume::Prune(command) => command.execute(globals),
            Volume::Rm(command) => command.execute(globals),
        }
    }
}

impl Create {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        if self.driver != LOCAL {
            let driver = self.driver;
            let text = format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found");
            return Err(Report::new(Kind::NotFound, text).with_hint("the driver is local").into());
        }
        if self.name.is_some() && self.volume.is_some() {
            return Err(Report::new(
                Kind::Usage,
                "conflicting options: cannot specify a volume-name through both --name and as a positional arg",
            )
            .into());
        }
        let labels = self.labels.iter().map(|text| parse::label(text)).collect::<Result<_, _>>()?;
        let options = self.options.iter().map(|text| option(text)).collect::<Result<_, _>>()?;
        let request = create::CreateRequest { name: self.volume.or(self.name), labels, options };
        line(create::create(&globals.engine()?, request)?.name)?;
        Ok(0)
    }
}

fn option(text: &str) -> Result<(String, String), Report> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(Report::new(Kind::Usage, format!("invalid option \"{text}\": it must be KEY=VALUE")));
    }
    Ok((key.to_owned(), value.to_owned()))
}

impl Exists {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match volume::find(&globals.engine()?, &self.volume) {
            Ok(_) => Ok(0),
            Err(report) if report.kind() == Kind::NotFound => Ok(1),
            Err(report) => Err(report.into()),
        }
    }
}

impl Ls {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filters: Vec<Filter> = self.filters.iter().map(|text| filter(text)).collect::<Result<_, _>>()?;
        let engine = globals.engine()?;
        let mut volumes = list::list(&engine)?;
        let links = list::links(&engine)?;
        // As in Docker: all labels must be there; of other keys that are given twice one must fit.
        let is_label = |filter: &Filter| matches!(filter, Filter::Label(..));
        let same = |one: &Filter, other: &Filter| std::mem::discriminant(one) == std::mem::discriminant(other);
        volumes.retain(|volume| {
            let fits = |filter: &Filter| filter.passes(volume, &links);
            let or_another = |filter: &Filter| filters.iter().any(|other| same(filter, other) && fits(other));
            filters.iter().all(|filter| if is_label(filter) { fits(filter) } else { or_another(filter) })
        });
        if self.quiet && self.format.is_none() {
            let names = volumes.iter().map(|volume| format!("{}\n", volume.name));
            return stdout(&names.collect::<String>()).map(|()| 0);
        }
        let rows: Vec<Row> = volumes.iter().map(row).collect();
        let empty = cells(std::array::from_fn(|_| String::new()));
        stdout(&format::rows(self.format.as_deref(), TABLE, &empty, &rows)?)?;
        Ok(0)
    }
}

/// `--filter` of `volume ls`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Dangling(bool),
    Driver(String),
    Label(String, Option<String>),
    Name(String),
}

impl Filter {
    fn passes(&self, volume: &volume::Volume, links: &HashMap<String, usize>) -> bool {
        match self {
            Filter::Dangling(wanted) => links.contains_key(&volume.name) != *wanted,
            Filter::Driver(driver) => driver == LOCAL,
            Filter::Label(key, wanted) => {
                let found = volume.labels.get(key);
                found.is_some_and(|found| wanted.as_ref().is_none_or(|wanted| wanted == found))
            }
            Filter::Name(part) => volume.name.contains(part),
        }
    }
}

fn filter(text: &str) -> Result<Filter, Report> {
    let invalid = || Report::new(Kind::Usage, format!("invalid filter '{text}'"));
    let (key, value) = text.split_once('=').ok_or_else(invalid)?;
    Ok(match key {
        "dangling" => Filter::Dangling(match value {
            "1" | "true" => true,
            "0" | "false" => false,
            _ => return Err(invalid()),
        }),
        "driver" => Filter::Driver(value.to_owned()),
        "label" => match value.split_once('=') {
            Some((name, wanted)) => Filter::Label(name.to_owned(), Some(wanted.to_owned())),
            None => Filter::Label(value.to_owned(), None),
        },
        "name" => Filter::Name(value.to_owned()),
        _ => return Err(invalid().with_hint("the keys are dangling, driver, label and name")),
    })
}

fn cells([driver, name, scope, mountpoint, labels]: [String; 5]) -> Row {
    Row::default()
        .cell("Driver", "DRIVER", driver)
        .cell("Name", "VOLUME NAME", name)
        .cell("Scope", "SCOPE", scope)
        .cell("Mountpoint", "MOUNTPOINT", mountpoint)
        .cell("Labels", "LABELS", labels)
        .cell("Links", "LINKS", "N/A")
        .cell("Size", "SIZE", "N/A")
        .cell("Group", "GROUP", "N/A")
        .cell("Availability", "AVAILABILITY", "N/A")
        .cell("Status", "STATUS", "N/A")
}

fn row(volume: &volume::Volume) -> Row {
    let labels: Vec<String> = volume.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    cells([
        LOCAL.to_owned(),
        volume.name.clone(),
        LOCAL.to_owned(),
        volume.mountpoint.to_string_lossy().into_owned(),
        labels.join(","),
    ])
    .labels(volume.labels.clone())
}

impl Prune {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let (of_all, others): (Vec<String>, Vec<String>) =
            self.filters.into_iter().partition(|text| text.starts_with("all="));
        let mut all = self.all;
        for text in &of_all {
            all = match text.as_str() {
                "all=1" | "all=true" => true,
                "all=0" | "all=false" => self.all,
                _ => return Err(Report::new(Kind::Usage, format!("invalid filter '{text}'")).into()),
            };
        }
        let filter = PruneFilter::parse(&others, SystemTime::now())?;
        let which = if all { "all" } else { "anonymous" };
        let warning = format!("This will remove {which} local volumes not used by at least one container.");
        if !self.force && !confirm(&warning)? {
            return Ok(0);
        }
        let pruned = prune(&globals.engine()?, all, &filter)?;
        stdout(&format!("{}Total reclaimed space: {}\n", text(&pruned), human_size(pruned.freed_bytes)))?;
        Ok(0)
    }
}

/// The volumes that were removed, as Docker lists them.
pub fn text(pruned: &Pruned) -> String {
    if pruned.deleted.is_empty() {
        return String::new();
    }
    let names = pruned.deleted.iter().map(|name| format!("{name}\n"));
    format!("Deleted Volumes:\n{}\n", names.collect::<String>())
}

impl Rm {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.volumes, |name| {
            remove::remove(&engine, name, self.force)?;
            line(name)
        })
    }
}

/// A volume in the shape of Docker's API.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Described<'a> {
    created_at: &'a str,
    driver: &'static str,
    labels: Option<&'a BTreeMap<String, String>>,
    mountpoint: String,
    name: &'a str,
    options: Option<&'a BTreeMap<String, String>>,
    scope: &'static str,
}

impl<'a> Described<'a> {
    pub fn of(volume: &'a volume::Volume) -> Self {
        let some = |map: &'a BTreeMap<String, String>| (!map.is_empty()).then_some(map);
        Described {
            created_at: &volume.created_at,
            driver: LOCAL,
            labels: some(&volume.labels),
            mountpoint: volume.mountpoint.to_string_lossy().into_owned(),
            name: &volume.name,
            options: some(&volume.options),
            scope: LOCAL,
        }
    }
}
