use std::path::PathBuf;

use clap::Args;
use engine::image::load::{FileSource, load_one};
use engine::image::{self, PullRequest};

use crate::commands::lock::{LOCK_FILE, locked, refuse_lock};
use crate::environment::{Globals, home};
use crate::output::{Stop, line};
use crate::parse::without_transport;
use crate::progress::{Progress, Work};
use crate::registry_options::RegistryOptions;

/// Fetch an image from its registry, or from a file
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
    #[command(flatten)]
    registry: RegistryOptions,
    /// A name, docker://NAME, or docker-archive:PATH[:NAME], oci:PATH[:NAME], oci-archive:PATH[:NAME], dir:PATH
    image: String,
}

impl Pull {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        if let Some(source) = FileSource::parse(&self.image, home().as_deref()) {
            refuse_lock(self.locked.as_deref(), &self.image)?;
            self.registry.refuse(&self.image)?;
            let platform = self.platform.as_deref().map(str::parse).transpose()?;
            let progress = Progress::new(globals, Work::Load, self.quiet)?;
            let loaded = load_one(&globals.engine()?, &source, platform.as_ref(), &|event| progress.show(event))?;
            drop(progress);
            return line(loaded.names.first().map_or_else(|| loaded.id.to_string(), ToString::to_string)).map(|()| 0);
        }
        let request = PullRequest::new(without_transport(&self.image), self.platform.as_deref())?;
        let request = locked(request, self.locked.as_deref())?;
        let progress = Progress::new(globals, Work::Pull, self.quiet)?;
        let pulled = image::pull(&self.registry.engine(globals)?, &request, &|event| progress.show(event))?;
        progress.line(&format!("Digest: {}", pulled.digest));
        let status = if pulled.new { "Downloaded newer image for" } else { "Image is up to date for" };
        progress.line(&format!("Status: {status} {}", pulled.reference.familiar()));
        drop(progress);
        line(&pulled.reference)?;
        Ok(0)
    }
}
