use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use base::time::{go_text, human_span};
use base::units::human_size;
use clap::Args;
use engine::image::filter::ImageFilter;
use engine::image::list::ImageSummary;
use engine::image::{self, ListRequest};
use engine::system::df::{self, ImageUsage};

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
/// Keys that cost a document an image where its record is of an earlier version.
const SIZES: [&str; 2] = ["Size", "VirtualSize"];
/// Keys that cost a look at the whole store. As with Docker they are N/A in whole rows; who names one of them gets the number.
const USAGE: [&str; 3] = ["Containers", "SharedSize", "UniqueSize"];

/// List images
#[derive(Args)]
pub struct Images {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// All images (there are no hidden ones)
    #[arg(short, long)]
    all: bool,
    /// Digests too
    #[arg(long)]
    digests: bool,
    /// Whole ids
    #[arg(long)]
    no_trunc: bool,
    /// dangling=, label=, label!=, before=, since=, until=, reference=, containers=, readonly=
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Only images of this name, which may be a pattern
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
}

impl Images {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let now = SystemTime::now();
        let mut filter = ImageFilter::parse(&self.filters, now)?;
        if let Some(pattern) = &self.repository {
            filter.or_named(pattern)?;
        }
        let engine = globals.engine()?;
        let format = match (&self.format, self.quiet) {
            (None, true) => Some("{{.ID}}"),
            (format, _) => format.as_deref(),
        };
        let request = ListRequest { filter, with_sizes: format::shows(format, &SIZES) };
        let mut images = image::list(&engine, &request)?;
        if self.quiet {
            let mut seen = HashSet::new();
            images.retain(|image| seen.insert(image.id));
        }
        let names_usage = format.is_some_and(|format| USAGE.iter().any(|key| format.contains(&format!(".{key}"))));
        let usage = if names_usage { df::of_images(&engine)? } else { HashMap::new() };
        let rows: Vec<Row> = images.iter().map(|image| row(image, usage.get(&image.id), now, self.no_trunc)).collect();
        let table = if self.digests { TABLE_DIGESTS } else { TABLE };
        stdout(&format::rows(format, table, &cells(std::array::from_fn(|_| String::new())), &rows)?)?;
        Ok(0)
    }
}

fn cells([repository, tag, digest, id, since, created, size, containers, shared, unique]: [String; 10]) -> Row {
    Row::default()
        .cell("Repository", "REPOSITORY", repository)
        .cell("Tag", "TAG", tag)
        .cell("Digest", "DIGEST", digest)
        .cell("ID", "IMAGE ID", id)
        .cell("CreatedSince", "CREATED", since)
        .cell("CreatedAt", "CREATED AT", created)
        .cell("Size", "SIZE", size.clone())
        .cell("VirtualSize", "SIZE", size)
        .cell("Containers", "CONTAINERS", containers)
        .cell("SharedSize", "SHARED SIZE", shared)
        .cell("UniqueSize", "UNIQUE SIZE", unique)
}

fn row(image: &ImageSummary, usage: Option<&ImageUsage>, now: SystemTime, whole: bool) -> Row {
    let since =
        image.created.map(|created| format!("{} ago", human_span(now.duration_since(created).unwrap_or_default())));
    let none = || "<none>".to_owned();
    let unknown = || "N/A".to_owned();
    cells([
        if image.unnamed { none() } else { image.reference.familiar_name() },
        image.reference.tag().map_or_else(none, str::to_owned),
        if image.unnamed { none() } else { image.digest.to_string() },
        if whole { image.id.to_string() } else { image.id.hex()[..12].to_owned() },
        since.unwrap_or_else(unknown),
        image.created.map_or_else(unknown, go_text),
        image.size_bytes.map_or_else(unknown, human_size),
        usage.map_or_else(unknown, |usage| usage.containers.to_string()),
        usage.map_or_else(unknown, |usage| human_size(usage.shared_bytes)),
        usage.map_or_else(unknown, |usage| human_size(usage.unique_bytes)),
    ])
}
