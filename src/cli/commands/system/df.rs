use std::time::SystemTime;

use base::time::{go_text, human_span};
use base::units::human_size;
use clap::Args;
use engine::system::df::{ContainerUsage, DiskUsage, ImageUsage, Total, VolumeUsage, df};
use serde_json::{Value, json};

use crate::commands::ps;
use crate::environment::Globals;
use crate::format::{self, Row};
use crate::output::{Stop, line, stdout};

const TABLE: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const IMAGES: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t\
                      {{.UniqueSize}}\t{{.Containers}}";
const CONTAINERS: &str = "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t\
                          {{.Status}}\t{{.Names}}";
const VOLUMES: &str = "{{.Name}}\t{{.Links}}\t{{.Size}}";

/// Show what images, containers and volumes take on the disk
#[derive(Args)]
pub struct Df {
    /// Each image, container and volume
    #[arg(short, long)]
    verbose: bool,
    /// A Go template, json, or table with a template
    #[arg(long)]
    format: Option<String>,
}

impl Df {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let usage = df(&globals.engine()?)?;
        if !self.verbose {
            let rows = totals(&usage);
            let empty = total_row("", Total::default(), false);
            stdout(&format::rows(self.format.as_deref(), TABLE, &empty, &rows)?)?;
            return if self.format.is_none() { limits(&usage) } else { Ok(0) };
        }
        let now = SystemTime::now();
        if let Some(format) = self.format.as_deref().filter(|format| !format.is_empty() && *format != "table") {
            line(format::object(format, &everything(&usage, now))?)?;
            return Ok(0);
        }
        let images: Vec<Row> = usage.each_image.iter().flat_map(|image| image_rows(image, now)).collect();
        let containers: Vec<Row> = usage.each_container.iter().map(|container| container_row(container, now)).collect();
        let volumes: Vec<Row> = usage.each_volume.iter().map(volume_row).collect();
        let table = |table: &str, empty: Row, rows: &[Row]| format::rows(None, table, &empty, rows);
        stdout(&format!(
            "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}",
            table(IMAGES, image_cells(std::array::from_fn(|_| String::new())), &images)?,
            table(CONTAINERS, container_cells(std::array::from_fn(|_| String::new())), &containers)?,
            table(VOLUMES, volume_cells(std::array::from_fn(|_| String::new())), &volumes)?,
        ))?;
        limits(&usage)
    }
}

/// What may still be taken, below the tables.
fn limits(usage: &DiskUsage) -> Result<u8, Stop> {
    if let Some(limits) = &usage.limits {
        line(format_args!("\nStore: {} inodes used, {limits}", usage.store_inodes))?;
    }
    Ok(0)
}

fn totals(usage: &DiskUsage) -> Vec<Row> {
    vec![
        total_row("Images", usage.images, true),
        total_row("Containers", usage.containers, true),
        total_row("Local Volumes", usage.volumes, true),
        // Nothing is built yet.
        total_row("Build Cache", Total::default(), false),
    ]
}

fn total_row(kind: &str, total: Total, percent: bool) -> Row {
    let reclaimable = human_size(total.reclaimable_bytes);
    let part = total.reclaimable_bytes.saturating_mul(100).checked_div(total.size_bytes).filter(|_| percent);
    Row::default()
        .cell("Type", "TYPE", kind)
        .cell("TotalCount", "TOTAL", total.count.to_string())
        .cell("Active", "ACTIVE", total.active.to_string())
        .cell("Size", "SIZE", human_size(total.size_bytes))
        .cell("Reclaimable", "RECLAIMABLE", part.map_or(reclaimable.clone(), |part| format!("{reclaimable} ({part}%)")))
        .cell("SizeBytes", "BYTES", total.size_bytes.to_string())
        .cell("ReclaimableBytes", "RECLAIMABLE BYTES", total.reclaimable_bytes.to_string())
}

/// A row for each name of an image, or one.
fn image_rows(image: &ImageUsage, now: SystemTime) -> Vec<Row> {
    let since = image.created.map_or_else(|| "N/A".to_owned(), |created| ago(created, now));
    let created = image.created.map_or_else(|| "N/A".to_owned(), go_text);
    let row = |repository: String, tag: &str| {
        image_cells([
            repository,
            tag.to_owned(),
            image.id.hex()[..12].to_owned(),
            since.clone(),
            created.clone(),
            human_size(image.shared_bytes + image.unique_bytes),
            human_size(image.shared_bytes),
            human_size(image.unique_bytes),
            image.containers.to_string(),
            image.shared_bytes.to_string(),
            image.unique_bytes.to_string(),
        ])
    };
    if image.names.is_empty() {
        return vec![row("<none>".to_owned(), "<none>")];
    }
    image.names.iter().map(|name| row(name.familiar_name(), name.tag().unwrap_or("<none>"))).collect()
}

fn image_cells(texts: [String; 11]) -> Row {
    let [repository, tag, id, since, created, size, shared, unique, containers, shared_bytes, unique_bytes] = texts;
    Row::default()
        .cell("Repository", "REPOSITORY", repository)
        .cell("Tag", "TAG", tag)
        .cell("ID", "IMAGE ID", id)
        .cell("CreatedSince", "CREATED", since)
        .cell("CreatedAt", "CREATED AT", created)
        .cell("Size", "SIZE", size)
        .cell("SharedSize", "SHARED SIZE", shared)
        .cell("UniqueSize", "UNIQUE SIZE", unique)
        .cell("Containers", "CONTAINERS", containers)
        .cell("SharedBytes", "SHARED BYTES", shared_bytes)
        .cell("UniqueBytes", "UNIQUE BYTES", unique_bytes)
}

fn container_row(container: &ContainerUsage, now: SystemTime) -> Row {
    let summary = &container.summary;
    container_cells([
        summary.id.short().to_owned(),
        summary.image.clone(),
        ps::command(&summary.command, false),
        container.volumes.to_string(),
        human_size(container.size_bytes),
        ago(summary.created, now),
        summary.status.clone(),
        summary.name.clone(),
        container.size_bytes.to_string(),
    ])
}

fn container_cells([id, image, command, volumes, size, since, status, name, bytes]: [String; 9]) -> Row {
    Row::default()
        .cell("ID", "CONTAINER ID", id)
        .cell("Image", "IMAGE", image)
        .cell("Command", "COMMAND", command)
        .cell("LocalVolumes", "LOCAL VOLUMES", volumes)
        .cell("Size", "SIZE", size)
        .cell("RunningFor", "CREATED", since)
        .cell("Status", "STATUS", status)
        .cell("Names", "NAMES", name)
        .cell("SizeBytes", "BYTES", bytes)
}

fn volume_row(volume: &VolumeUsage) -> Row {
    let (links, size) = (volume.links.to_string(), human_size(volume.size_bytes));
    volume_cells([volume.name.clone(), links, size, volume.size_bytes.to_string()])
}

fn volume_cells([name, links, size, bytes]: [String; 4]) -> Row {
    Row::default().cell("Name", "VOLUME NAME", name).cell("Links", "LINKS", links).cell("Size", "SIZE", size).cell(
        "SizeBytes",
        "BYTES",
        bytes,
    )
}

/// Everything as one value, for `--format` with `-v`.
fn everything(usage: &DiskUsage, now: SystemTime) -> Value {
    let all = |rows: Vec<Row>| rows.iter().map(Row::value_as_json).collect::<Vec<_>>();
    json!({
        "Images": all(usage.each_image.iter().flat_map(|image| image_rows(image, now)).collect()),
        "Containers": all(usage.each_container.iter().map(|container| container_row(container, now)).collect()),
        "Volumes": all(usage.each_volume.iter().map(volume_row).collect()),
        "BuildCache": [],
    })
}

fn ago(moment: SystemTime, now: SystemTime) -> String {
    format!("{} ago", human_span(now.duration_since(moment).unwrap_or_default()))
}
