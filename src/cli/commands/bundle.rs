use std::path::Path;

use clap::Args;
use engine::image::bundle::bundle;

use crate::environment::Globals;
use crate::output::{Stop, warning};

/// Unpack an image as a bundle for any OCI runtime
#[derive(Args)]
pub struct Bundle {
    image: String,
    /// A directory that does not exist yet
    directory: String,
}

impl Bundle {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let lost = bundle(&globals.engine()?, &self.image, Path::new(&self.directory))?;
        if let Some(line) = lost.line() {
            warning(&line);
        }
        Ok(0)
    }
}
