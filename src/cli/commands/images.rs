use std::collections::HashSet;
use std::time::SystemTime;

use base::time::{go_text, human_span};
use base::units::human_size;
use clap::Args;
use engine::image::{self, list::ImageSummary};

use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, stdout};

const TABLE: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";
const TABLE_DIGESTS: &str = "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}";

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
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
    /// Only this repository, or this name with its tag
    repository: Option<String>,
}

impl Images {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let now = SystemTime::now();
        let mut images = image::list(&engine)?;
        if let Some(wanted) = &self.repository {
            images.retain(|image| {
                let reference = &image.reference;
                *wanted == reference.familiar_name() || *wanted == reference.familiar() || *wanted == reference.name()
            });
        }
        let mut rows: Vec<Row> = images.iter().map(|image| row(image, now, self.no_trunc)).collect();
        let format = match (&self.format, self.quiet) {
            (None, true) => Some("{{.ID}}"),
            (format, _) => format.as_deref(),
        };
        if self.quiet {
            let mut seen = HashSet::new();
            let mut of_rows = images.iter();
            rows.retain(|_| of_rows.next().is_some_and(|image| seen.insert(image.id)));
        }
        let table = if self.digests { TABLE_DIGESTS } else { TABLE };
        stdout(&format::rows(format, table, &cells(std::array::from_fn(|_| String::new())), &rows)?)?;
        Ok(0)
    }
}

fn cells([repository, tag, digest, id, since, created, size]: [String; 7]) -> Row {
    Row::default()
        .cell("Repository", "REPOSITORY", repository)
        .cell("Tag", "TAG", tag)
        .cell("Digest", "DIGEST", digest)
        .cell("ID", "IMAGE ID", id)
        .cell("CreatedSince", "CREATED", since)
        .cell("CreatedAt", "CREATED AT", created)
        .cell("Size", "SIZE", size)
}

fn row(image: &ImageSummary, now: SystemTime, whole: bool) -> Row {
    let since =
        image.created.map(|created| format!("{} ago", human_span(now.duration_since(created).unwrap_or_default())));
    let none = || "<none>".to_owned();
    cells([
        if image.unnamed { none() } else { image.reference.familiar_name() },
        image.reference.tag().map_or_else(none, str::to_owned),
        if image.unnamed { none() } else { image.digest.to_string() },
        if whole { image.id.to_string() } else { image.id.hex()[..12].to_owned() },
        since.unwrap_or_else(|| "N/A".to_owned()),
        image.created.map_or_else(|| "N/A".to_owned(), go_text),
        human_size(image.size_bytes),
    ])
}
