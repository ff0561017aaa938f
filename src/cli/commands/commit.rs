use clap::{ArgAction, Args};
use engine::container::{self, CommitRequest};

use crate::environment::{Globals, source_date_epoch};
use crate::output::{Stop, line};
use crate::parse;
use crate::progress::{Progress, Work};

/// Make an image of what a container has changed
#[derive(Args)]
pub struct Commit {
    /// Who made it
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// An instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME, WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Why
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// The container stands still meanwhile
    #[arg(short, long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true")]
    pause: bool,
    /// Show nothing meanwhile
    #[arg(short, long)]
    quiet: bool,
    container: String,
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

impl Commit {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let request = CommitRequest {
            name: self.name.as_deref().map(parse::image_name).transpose()?,
            author: self.author,
            message: self.message,
            changes: self.changes,
            pause: self.pause,
            epoch_s: source_date_epoch()?,
        };
        let engine = globals.engine()?;
        let id = container::find(&engine, &self.container)?;
        let progress = Progress::new(globals, Work::Commit, self.quiet)?;
        let image = container::commit(&engine, &id, &request, &|event| progress.show(event))?;
        drop(progress);
        line(image)?;
        Ok(0)
    }
}
