use base::units::parse_bytes;
use base::{Kind, Report};
use clap::Args;
use engine::image::load::FileSource;
use engine::image::push::{PushRequest, push};

use crate::environment::{Globals, home};
use crate::output::{Stop, line};
use crate::parse::without_transport;
use crate::progress::{Progress, Work};
use crate::registry_options::{ContentTrust, DigestFile, RegistryOptions};

/// Send an image to its registry
#[derive(Args)]
pub struct Push {
    /// Every tag of the repository
    #[arg(short, long)]
    all_tags: bool,
    /// The image for this platform alone: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Send layers in parts of this size, for registries that take no larger ones
    #[arg(long, value_name = "BYTES")]
    chunk_size: Option<String>,
    /// Print the image's name only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    digest: DigestFile,
    #[command(flatten)]
    trust: ContentTrust,
    #[command(flatten)]
    registry: RegistryOptions,
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
    /// Another name to send it to; then NAME may be any image's, or an id
    #[arg(value_name = "DESTINATION", conflicts_with = "all_tags")]
    destination: Option<String>,
}

impl Push {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let target = self.destination.as_ref().unwrap_or(&self.name);
        if let Some(source) = FileSource::parse(target, home().as_deref()) {
            let text = format!("cannot push to {target}: images go to registries");
            let format = match source.transport {
                "oci" => "oci-dir",
                "dir" => "docker-dir",
                archive => archive,
            };
            let hint = format!("`sublet save --format {format} -o {} IMAGE` writes that", source.path.display());
            return Err(Report::new(Kind::Usage, text).with_hint(hint).into());
        }
        self.trust.check()?;
        self.digest.refuse_unless(!self.all_tags, "each tag has its own")?;
        let part_bytes = self.chunk_size.as_deref().map(parse_bytes).transpose()?;
        let request = PushRequest::new(without_transport(target), self.all_tags, self.platform.as_deref(), part_bytes)?;
        let request = match &self.destination {
            Some(_) => request.of_image(self.name),
            None => request,
        };
        let progress = Progress::new(globals, Work::Push, self.quiet)?;
        if request.tag_was_added {
            progress.line("Using default tag: latest");
        }
        progress.line(&format!("The push refers to repository [{}]", request.repository()));
        let digests = push(&self.registry.engine(globals)?, &request, &|event| progress.show(event))?;
        drop(progress);
        digests.iter().try_for_each(|digest| self.digest.write(digest))?;
        if self.quiet {
            line(request.name())?;
        }
        Ok(0)
    }
}
