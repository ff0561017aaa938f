use std::fs::{File, Metadata};
use std::io;

use base::{Context, Kind, Report};
use clap::Args;
use engine::image::Event;
use engine::image::import::{ImportRequest, import, import_url};

use crate::environment::{Globals, source_date_epoch};
use crate::output::{Stop, line};
use crate::parse;
use crate::progress::{Progress, Work};

/// Make an image of the tar archive of a root file system, plain or compressed with gzip, zstd, bzip2 or xz
#[derive(Args)]
pub struct Import {
    /// An instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Why
    #[arg(short, long)]
    message: Option<String>,
    /// What the files are for: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Show nothing meanwhile
    #[arg(short, long)]
    quiet: bool,
    /// The archive: a file, an http or https URL, - for the standard input
    file: String,
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Import {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let request = ImportRequest {
            name: self.name.as_deref().map(parse::image_name).transpose()?,
            // Docker's words.
            message: self.message.unwrap_or_else(|| format!("Imported from {}", without_secrets(&self.file))),
            changes: self.changes,
            platform: self.platform.as_deref().map(str::parse).transpose()?,
            epoch_s: source_date_epoch()?,
        };
        let engine = globals.engine()?;
        let progress = Progress::new(globals, Work::Import, self.quiet)?;
        let told = |event: &Event<'_>| progress.show(event);
        let image = match self.file.as_str() {
            "-" => import(&engine, io::stdin(), None, &request, &told)?,
            url if is_url(url) => import_url(&engine, url, &request, &told)?,
            path => {
                let opened = File::open(path).map_err(|error| Report::of(Kind::NotFound, error));
                let file = opened.step(|| format!("opening {path}"))?;
                let size_bytes = file.metadata().ok().filter(Metadata::is_file).map(|metadata| metadata.len());
                import(&engine, file, size_bytes, &request, &told)?
            }
        };
        drop(progress);
        line(image)?;
        Ok(0)
    }
}

fn is_url(file: &str) -> bool {
    file.starts_with("http://") || file.starts_with("https://")
}

/// What the history may say, which goes wherever the image goes: the query of an address may be all that opens it.
fn without_secrets(file: &str) -> &str {
    if is_url(file) { file.split(['?', '#']).next().unwrap_or_default() } else { file }
}
