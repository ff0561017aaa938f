use clap::Args;
use engine::image;

use crate::environment::Globals;
use crate::output::Stop;
use crate::parse;

/// Take names of an image away, all if none is given; the image stays
#[derive(Args)]
pub struct Untag {
    image: String,
    #[arg(value_name = "NAME[:TAG]")]
    names: Vec<String>,
}

impl Untag {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let names = self.names.iter().map(|name| parse::image_name(name)).collect::<Result<Vec<_>, _>>()?;
        image::tag::untag(&globals.engine()?, &self.image, &names)?;
        Ok(0)
    }
}
