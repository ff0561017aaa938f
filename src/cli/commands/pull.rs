use std::path::PathBuf;

use base::{Kind, Report};
use clap::Args;
use engine::Engine;
use engine::image::load::{FileSource, load_one};
use engine::image::pull::all_tags;
use engine::image::{self, PullRequest, Pulled};

use crate::commands::lock::{LOCK_FILE, locked, refuse_lock};
use crate::environment::{Globals, home};
use crate::output::{Stop, line};
use crate::parse::without_transport;
use crate::progress::{Progress, Work};
use crate::registry_options::{ContentTrust, DigestFile, RegistryOptions};

/// Fetch images from their registries, or from files
#[derive(Args)]
pub struct Pull {
    /// The image for this platform: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    /// The image to which the name is locked by images.lock, or this file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = LOCK_FILE)]
    locked: Option<PathBuf>,
    /// All tags that the repository has
    #[arg(short, long, conflicts_with = "locked")]
    all_tags: bool,
    #[command(flatten)]
    digest: DigestFile,
    #[command(flatten)]
    trust: ContentTrust,
    #[command(flatten)]
    registry: RegistryOptions,
    /// A name, docker://NAME, or docker-archive:PATH[:NAME], oci:PATH[:NAME], oci-archive:PATH[:NAME], dir:PATH
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Pull {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let sources: Vec<_> =
            self.images.iter().map(|image| (image, FileSource::parse(image, home().as_deref()))).collect();
        for (image, _) in sources.iter().filter(|(_, source)| source.is_some()) {
            refuse_lock(self.locked.as_deref(), image)?;
            self.registry.refuse(image)?;
            if self.all_tags {
                let why = format!("--all-tags is for repositories of registries, and {image} is a file");
                return Err(Report::new(Kind::Usage, why).into());
            }
        }
        self.trust.check()?;
        let is_one = matches!(&sources[..], [(_, None)]) && !self.all_tags;
        self.digest.refuse_unless(is_one, "it is for one image of a registry")?;
        let engine = self.registry.engine(globals)?;
        let mut code = 0;
        for (image, source) in &sources {
            let done = match source {
                Some(source) => self.load(globals, &engine, source),
                None => self.by_name(globals, &engine, without_transport(image)),
            };
            match done {
                Ok(()) => {}
                Err(Stop::Failed(report)) => {
                    globals.tell(&report);
                    code = 1;
                }
                Err(quiet) => return Err(quiet),
            }
        }
        Ok(code)
    }

    fn by_name(&self, globals: &Globals, engine: &Engine, name: &str) -> Result<(), Stop> {
        let request = PullRequest::new(name, self.platform.as_deref())?;
        if self.all_tags {
            let (repository, requests) = all_tags(engine, &request)?;
            for request in &requests {
                self.fetch(globals, engine, request)?;
            }
            return line(repository.name());
        }
        let pulled = self.fetch(globals, engine, &locked(request, self.locked.as_deref())?)?;
        self.digest.write(&pulled.digest)?;
        line(&pulled.reference)
    }

    fn fetch(&self, globals: &Globals, engine: &Engine, request: &PullRequest) -> Result<Pulled, Stop> {
        let progress = Progress::new(globals, Work::Pull, self.quiet)?;
        let pulled = image::pull(engine, request, &|event| progress.show(event))?;
        progress.line(&format!("Digest: {}", pulled.digest));
        let status = if pulled.new { "Downloaded newer image for" } else { "Image is up to date for" };
        progress.line(&format!("Status: {status} {}", pulled.reference.familiar()));
        Ok(pulled)
    }

    fn load(&self, globals: &Globals, engine: &Engine, source: &FileSource) -> Result<(), Stop> {
        let platform = self.platform.as_deref().map(str::parse).transpose()?;
        let progress = Progress::new(globals, Work::Load, self.quiet)?;
        let loaded = load_one(engine, source, platform.as_ref(), &|event| progress.show(event))?;
        drop(progress);
        line(loaded.names.first().map_or_else(|| loaded.id.to_string(), ToString::to_string))
    }
}
