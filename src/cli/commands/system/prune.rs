use std::fmt::Write as _;
use std::time::SystemTime;

use base::units::human_size;
use clap::Args;
use engine::image::PruneRequest;
use engine::system;
use engine::system::filter::PruneFilter;

use crate::commands::{container, image, network, volume};
use crate::environment::Globals;
use crate::output::{Stop, confirm, stdout};

/// Remove everything that nothing needs
#[derive(Args)]
pub struct Prune {
    /// All images on which no container stands, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Anonymous volumes that no container has too
    #[arg(long)]
    volumes: bool,
}

impl Prune {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filter = PruneFilter::parse(&self.filters, SystemTime::now())?;
        if !self.force && !confirm(&self.warning())? {
            return Ok(0);
        }
        let pruned = system::prune(&globals.engine()?, &PruneRequest { all: self.all, filter }, self.volumes)?;
        stdout(&format!(
            "{}{}{}{}Total reclaimed space: {}\n",
            container::text(&pruned.containers),
            network::text(&pruned.networks),
            volume::text(&pruned.volumes),
            image::text(&pruned.images),
            human_size(pruned.freed_bytes())
        ))?;
        Ok(0)
    }

    fn warning(&self) -> String {
        let mut text =
            "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n"
                .to_owned();
        if self.volumes {
            text.push_str("  - all anonymous volumes not used by at least one container\n");
        }
        text.push_str(if self.all {
            "  - all images without at least one container associated to them\n"
        } else {
            "  - all dangling images\n"
        });
        if self.filters.is_empty() {
            text.push_str("  - all interrupted downloads\n");
        } else {
            text.push_str("\n  Items to be pruned will be filtered with:\n");
            for filter in &self.filters {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "  - {filter}");
            }
        }
        text
    }
}
