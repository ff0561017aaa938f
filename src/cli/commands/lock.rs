use std::path::{Path, PathBuf};

use base::{Kind, Report};
use clap::Args;
use engine::image::PullRequest;
use engine::image::lock::{self, LockFile};

use crate::environment::Globals;
use crate::output::{Stop, line};
use crate::parse::without_transport;

/// The file of locked images, in the working directory.
pub const LOCK_FILE: &str = "images.lock";

/// Write down which images names stand for, for run --locked and pull --locked
#[derive(Args)]
pub struct Lock {
    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = LOCK_FILE)]
    file: PathBuf,
    /// Write nothing; print what is another one on its registry now, and fail if any is
    #[arg(long)]
    check: bool,
    /// The image for this platform: os[/architecture[/variant]]
    #[arg(long)]
    platform: Option<String>,
    /// Names; without any, all that the file has
    images: Vec<String>,
}

impl Lock {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let request = |image: &String| PullRequest::new(without_transport(image), self.platform.as_deref());
        let requests = self.images.iter().map(request).collect::<Result<Vec<_>, _>>()?;
        if requests.is_empty() && self.platform.is_some() {
            return Err(Report::new(Kind::Usage, "--platform is for names that are given").into());
        }
        let engine = globals.engine()?;
        if !self.check {
            for outcome in lock::lock(&engine, &self.file, &requests)? {
                line(format_args!("{} ({}) {}", outcome.found.name, outcome.found.platform, outcome.found.manifest))?;
            }
            return Ok(0);
        }
        let mut code = 0;
        for outcome in lock::check(&engine, &self.file, &requests)?.iter().filter(|outcome| outcome.is_change()) {
            line(outcome)?;
            code = 1;
        }
        Ok(code)
    }
}

/// The same request by a file of locked images, if one is given.
pub fn locked(request: PullRequest, file: Option<&Path>) -> Result<PullRequest, Report> {
    Ok(match file {
        Some(file) => request.locked_by(LockFile::read(file)?),
        None => request,
    })
}

/// Refuses `--locked` for an image in a file, which no lock names.
pub fn refuse_lock(file: Option<&Path>, image: &str) -> Result<(), Report> {
    match file {
        Some(_) => Err(Report::new(Kind::Usage, format!("--locked is for names on registries, and {image} is a file"))),
        None => Ok(()),
    }
}
