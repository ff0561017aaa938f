use std::time::SystemTime;

use base::Kind;
use clap::Args;
use engine::Engine;
use engine::image::filter::ImageFilter;
use engine::image::{self, ListRequest};

use crate::environment::Globals;
use crate::output::{Stop, error, for_each, line};

/// Remove images
#[derive(Args)]
pub struct Rmi {
    /// All images but those of stores that are only read
    #[arg(short, long)]
    all: bool,
    /// Remove an image by id although it has several names or stopped containers
    #[arg(short, long)]
    force: bool,
    /// Say nothing of an image that is not there
    #[arg(short, long)]
    ignore: bool,
    /// Keep the images without a name below it (there are none)
    #[arg(long)]
    no_prune: bool,
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "IMAGE")]
    images: Vec<String>,
}

impl Rmi {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let engine = globals.engine()?;
        let images = if self.all { all(&engine)? } else { self.images };
        for_each(&images, |name| {
            let removed = match image::remove(&engine, name, self.force) {
                Err(report) if (self.ignore || self.all) && report.kind() == Kind::NotFound => return Ok(()),
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

/// Every name, and the id of each image that has none.
fn all(engine: &Engine) -> Result<Vec<String>, Stop> {
    let filter = ImageFilter::parse(&["readonly=false".to_owned()], SystemTime::now())?;
    let images = image::list(engine, &ListRequest { filter, with_sizes: false })?;
    let name = |image: &image::list::ImageSummary| {
        if image.unnamed { image.id.to_string() } else { image.reference.to_string() }
    };
    Ok(images.iter().map(name).collect())
}
