use clap::Args;
use engine::image::{self, PullRequest};

use crate::environment::Globals;
use crate::output::{Stop, line};
use crate::progress::Progress;

/// Fetch an image from its registry
#[derive(Args)]
pub struct Pull {
    /// The image for this platform: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    image: String,
}

impl Pull {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let request = PullRequest::new(&self.image, self.platform.as_deref())?;
        let progress = Progress::new(self.quiet, true);
        let pulled = image::pull(&globals.engine()?, &request, &|event| progress.show(event))?;
        if !self.quiet {
            line(format_args!("Digest: {}", pulled.digest))?;
            let status = if pulled.new { "Downloaded newer image for" } else { "Image is up to date for" };
            line(format_args!("Status: {status} {}", pulled.reference.familiar()))?;
        }
        line(&pulled.reference)?;
        Ok(0)
    }
}
