use clap::Args;
use engine::image;

use crate::environment::Globals;
use crate::output::Stop;
use crate::parse;

/// Give an image a further name
#[derive(Args)]
pub struct Tag {
    image: String,
    #[arg(required = true, value_name = "NAME[:TAG]")]
    names: Vec<String>,
}

impl Tag {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let names = self.names.iter().map(|name| parse::image_name(name)).collect::<Result<Vec<_>, _>>()?;
        let engine = globals.engine()?;
        for name in &names {
            image::tag::tag(&engine, &self.image, name)?;
        }
        Ok(0)
    }
}
