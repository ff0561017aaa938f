use std::path::Path;

use base::{Kind, Report};
use clap::Args;
use engine::image::Event;
use engine::image::save::{SaveFormat, SaveRequest, save_archive, save_directory};

use crate::environment::Globals;
use crate::file_output;
use crate::output::Stop;
use crate::progress::{Progress, Work};

/// Write images to an archive, or to a directory
#[derive(Args)]
pub struct Save {
    /// The file or directory, in place of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<String>,
    /// docker-archive, oci-archive, oci-dir or docker-dir
    #[arg(long, default_value = "docker-archive")]
    format: String,
    /// Of images for several platforms the one for this: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Show nothing meanwhile
    #[arg(short, long)]
    quiet: bool,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Save {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let format = SaveFormat::from_name(&self.format).ok_or_else(|| {
            Report::new(Kind::Usage, format!("unknown format {}", self.format))
                .with_hint("the formats are docker-archive, oci-archive, oci-dir and docker-dir")
        })?;
        let platform = self.platform.as_deref().map(str::parse).transpose()?;
        let request = SaveRequest { names: self.images, platform, format };
        let engine = globals.engine()?;
        let progress = Progress::new(globals, Work::Save, self.quiet)?;
        let told = |event: &Event<'_>| progress.show(event);
        match self.output.as_deref() {
            Some(path) if format.is_directory() => {
                save_directory(&engine, &request, Path::new(path), &told)?;
            }
            None if format.is_directory() => {
                return Err(Report::new(Kind::Usage, format!("the format {} needs -o DIRECTORY", self.format)).into());
            }
            output => {
                file_output::write(output, "save", |out| save_archive(&engine, &request, out, &told))?;
            }
        }
        Ok(0)
    }
}
