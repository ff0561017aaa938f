use std::path::PathBuf;

use base::units::human_size;
use clap::{Args, Subcommand};
use engine::image;
use engine::image::lock::{self, LockFile};
use engine::image::save::{SaveFormat, SaveRequest, save_archive};
use engine::image::{PruneRequest, Pruned};
use engine::system::filter::PruneFilter;

use crate::commands::lock::LOCK_FILE;
use crate::commands::{history, images, import, inspect, load, pull, push, rmi, save, tag, untag};
use crate::environment::Globals;
use crate::file_output;
use crate::output::{Stop, confirm, line, stdout};
use crate::progress::{Progress, Work};

/// Work with images
#[derive(Args)]
pub struct Image {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Subcommand)]
enum ImageCommand {
    Bundle(Bundle),
    Diff(Diff),
    Exists(Exists),
    History(history::History),
    Import(import::Import),
    Inspect(inspect::Inspect),
    Load(load::Load),
    #[command(alias = "list")]
    Ls(images::Images),
    Prune(Prune),
    Pull(pull::Pull),
    Push(push::Push),
    #[command(alias = "remove")]
    Rm(rmi::Rmi),
    Save(save::Save),
    Tag(tag::Tag),
    Tree(Tree),
    Untag(untag::Untag),
}

impl Image {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self.command {
            ImageCommand::Bundle(command) => command.execute(globals),
            ImageCommand::Diff(command) => command.execute(globals),
            ImageCommand::Exists(command) => command.execute(globals),
            ImageCommand::History(command) => command.execute(globals),
            ImageCommand::Import(command) => command.execute(globals),
            ImageCommand::Inspect(command) => command.of_images().execute(globals),
            ImageCommand::Load(command) => command.execute(globals),
            ImageCommand::Ls(command) => command.execute(globals),
            ImageCommand::Prune(command) => command.execute(globals),
            ImageCommand::Pull(command) => command.execute(globals),
            ImageCommand::Push(command) => command.execute(globals),
            ImageCommand::Rm(command) => command.execute(globals),
            ImageCommand::Save(command) => command.execute(globals),
            ImageCommand::Tag(command) => command.execute(globals),
            ImageCommand::Tree(command) => command.execute(globals),
            ImageCommand::Untag(command) => command.execute(globals),
        }
    }
}

/// Write several images with all that they need to one file, an OCI archive, for `image load`
#[derive(Args)]
struct Bundle {
    /// The file, in place of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// Of images for several platforms the one for this: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// What images.lock, or this file, says: these images, or without any all that it locks for the platform
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = LOCK_FILE)]
    locked: Option<PathBuf>,
    #[arg(required_unless_present = "locked", value_name = "IMAGE")]
    images: Vec<String>,
}

impl Bundle {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let platform = self.platform.as_deref().map(str::parse).transpose()?;
        let engine = globals.engine()?;
        let request = match &self.locked {
            Some(file) => {
                let file = LockFile::read(file)?;
                let names = lock::pin_all(&engine, &file, &self.images, self.platform.as_deref())?;
                // Each is one image of one platform.
                SaveRequest { names, platform: None, format: SaveFormat::OciArchive }
            }
            None => SaveRequest { names: self.images, platform, format: SaveFormat::OciArchive },
        };
        let progress = Progress::new(globals, Work::Save, false)?;
        file_output::write(self.output.as_deref(), "bundle", |out| {
            let told = |event: &image::Event<'_>| progress.show(event);
            save_archive(&engine, &request, out, &told)
        })?;
        Ok(0)
    }
}

/// List what the last layer of an image changes in those below it
#[derive(Args)]
struct Diff {
    image: String,
}

impl Diff {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        for change in image::changes::changes(&globals.engine()?, &self.image)? {
            line(format_args!("{} {}", change.kind.letter(), change.path))?;
        }
        Ok(0)
    }
}

/// Say by the exit code whether an image is here: 0 or 1
#[derive(Args)]
struct Exists {
    image: String,
}

impl Exists {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        Ok(u8::from(image::platform_of(&globals.engine()?, &self.image)?.is_none()))
    }
}

/// Remove images that nothing needs
#[derive(Args)]
struct Prune {
    /// All on which no container stands, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

impl Prune {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filter = PruneFilter::parse(&self.filters, std::time::SystemTime::now())?;
        let warning = if self.all {
            "This will remove all images without at least one container associated to them."
        } else {
            "This will remove all dangling images."
        };
        if !self.force && !confirm(warning)? {
            return Ok(0);
        }
        let pruned = image::prune(&globals.engine()?, &PruneRequest { all: self.all, filter })?;
        let freed = human_size(pruned.freed_bytes);
        stdout(&format!("{}Total reclaimed space: {freed}\n", text(&pruned)))?;
        Ok(0)
    }
}

/// What was removed, as Docker lists it.
pub fn text(pruned: &Pruned) -> String {
    if pruned.untagged.is_empty() && pruned.deleted.is_empty() {
        return String::new();
    }
    let untagged = pruned.untagged.iter().map(|reference| format!("untagged: {}\n", reference.familiar()));
    let deleted = pruned.deleted.iter().map(|digest| format!("deleted: {digest}\n"));
    format!("Deleted Images:\n{}\n", untagged.chain(deleted).collect::<String>())
}

/// Show the layers of an image
#[derive(Args)]
struct Tree {
    image: String,
}

impl Tree {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let known = image::inspect(&engine, &self.image)?;
        let steps = image::history::history(&engine, &self.image)?;
        let id = known.id.trim_start_matches("sha256:");
        line(format_args!("Image ID: {}", id.get(..12).unwrap_or(id)))?;
        line(format_args!("Tags:     [{}]", known.repo_tags.join(" ")))?;
        line(format_args!("Size:     {}", human_size(known.size)))?;
        line("Image Layers")?;
        // The lowest layer first.
        let layers: Vec<_> = steps.iter().rev().filter_map(|step| Some((step.layer?, step.size_bytes))).collect();
        for (place, (layer, size)) in layers.iter().enumerate() {
            let last = place + 1 == layers.len();
            let (branch, top) = if last {
                ("└──", format!(" Top Layer of: [{}]", known.repo_tags.join(" ")))
            } else {
                ("├──", String::new())
            };
            line(format_args!("{branch} ID: {} Size: {:>7}{top}", &layer.0.hex()[..12], human_size(*size)))?;
        }
        Ok(0)
    }
}
