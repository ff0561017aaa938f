use std::io::{self, IsTerminal};
use std::path::Path;

use base::{Kind, Report};
use clap::Args;
use engine::image::Event;
use engine::image::load::{load_file, load_stream};

use crate::environment::Globals;
use crate::output::{Stop, line};
use crate::progress::{Progress, Work};

/// Load images from an archive or a directory
#[derive(Args)]
pub struct Load {
    /// The archive or directory, in place of the standard input
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// Show nothing but the result
    #[arg(short, long)]
    quiet: bool,
    /// Of several images of one name the one for this platform: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
}

impl Load {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let platform = self.platform.as_deref().map(str::parse).transpose()?;
        let engine = globals.engine()?;
        let progress = Progress::new(globals, Work::Load, self.quiet)?;
        let told = |event: &Event<'_>| progress.show(event);
        let loaded = match &self.input {
            Some(path) => load_file(&engine, Path::new(path), platform.as_ref(), &told)?,
            None if io::stdin().is_terminal() => {
                return Err(Report::new(Kind::Usage, "requested load from stdin, but stdin is empty")
                    .with_hint("`sublet load -i FILE` reads a file")
                    .into());
            }
            None => load_stream(&engine, io::stdin(), platform.as_ref(), &told)?,
        };
        drop(progress);
        for image in loaded {
            for name in &image.names {
                line(format_args!("Loaded image: {}", name.familiar()))?;
            }
            if image.names.is_empty() {
                line(format_args!("Loaded image ID: {}", image.id))?;
            }
        }
        Ok(0)
    }
}
