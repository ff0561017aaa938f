use base::units::human_size;
use clap::Args;
use engine::system;

use crate::environment::Globals;
use crate::output::{Stop, line};

/// Check the store: every content, and that images have all that they need
#[derive(Args)]
pub struct Fsck {
    /// Mend what can be mended, remove the rest of what is broken, and say which images need to be had again
    #[arg(long)]
    repair: bool,
}

impl Fsck {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let checkup = system::fsck(&globals.engine()?, self.repair)?;
        for fault in &checkup.faults {
            match &fault.done {
                Some(done) => line(format_args!("{} [{done}]", fault.what))?,
                None => line(&fault.what)?,
            }
        }
        for note in &checkup.notes {
            line(format_args!("note: {note}"))?;
        }
        for image in &checkup.to_pull {
            line(format_args!("pull again: {image}"))?;
        }
        for image in &checkup.to_make {
            line(format_args!("made here, load or build again: {image}"))?;
        }
        let checked = checkup.checked;
        line(format_args!(
            "checked {} blobs, {} objects, {} layers, {} stacks and {} names ({}): {}",
            checked.blobs,
            checked.objects,
            checked.layers,
            checked.chains,
            checked.names,
            human_size(checked.bytes),
            match checkup.faults.len() {
                0 => "clean".to_owned(),
                1 => "1 fault".to_owned(),
                count => format!("{count} faults"),
            }
        ))?;
        Ok(u8::from(!checkup.faults.is_empty()))
    }
}
