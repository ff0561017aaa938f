use base::Kind;
use clap::Args;
use engine::image;

use crate::environment::Globals;
use crate::output::{Stop, error, for_each, line};

/// Remove images
#[derive(Args)]
pub struct Rmi {
    /// Remove an image by id although it has several names or stopped containers
    #[arg(short, long)]
    force: bool,
    /// Say nothing of an image that is not there
    #[arg(short, long)]
    ignore: bool,
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        for_each(&self.images, |name| {
            let removed = match image::remove(&engine, name, self.force) {
                Err(report) if self.ignore && report.kind() == Kind::NotFound => return Ok(()),
                // With -f one that is not there is told and no failure.
                Err(report) if self.force && report.kind() == Kind::NotFound => {
                    error(&report);
                    return Ok(());
                }
                removed => removed?,
            };
            for reference in &removed.untagged {
                line(format_args!("Untagged: {}", reference.familiar()))?;
            }
            match removed.deleted {
                Some(id) => line(format_args!("Deleted: {id}")),
                None => Ok(()),
            }
        })
    }
}
