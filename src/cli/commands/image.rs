use clap::{Args, Subcommand};
use engine::image::{PruneRequest, Pruned, prune};
use engine::system::filter::PruneFilter;

use crate::environment::Globals;
use crate::output::{Stop, confirm, stdout};

/// Manage images
#[derive(Subcommand)]
pub enum Image {
    Prune(Prune),
}

/// Remove images that nothing needs
#[derive(Args)]
pub struct Prune {
    /// All on which no container stands, not only those without a name
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

impl Image {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Image::Prune(command) => command.execute(globals),
        }
    }
}

impl Prune {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filter = PruneFilter::parse(&self.filters, std::time::SystemTime::now())?;
        let warning = if self.all {
            "This will remove all images without at least one container associated to them."
        } else {
            "This will remove all dangling images."
        };
        if !self.force && !confirm(warning)? {
            return Ok(0);
        }
        let pruned = prune(&globals.engine()?, &PruneRequest { all: self.all, filter })?;
        let freed = base::units::human_size(pruned.freed_bytes);
        stdout(&format!("{}Total reclaimed space: {freed}\n", text(&pruned)))?;
        Ok(0)
    }
}

/// What was removed, as Docker lists it.
pub fn text(pruned: &Pruned) -> String {
    if pruned.untagged.is_empty() && pruned.deleted.is_empty() {
        return String::new();
    }
    let untagged = pruned.untagged.iter().map(|reference| format!("untagged: {}\n", reference.familiar()));
    let deleted = pruned.deleted.iter().map(|digest| format!("deleted: {digest}\n"));
    format!("Deleted Images:\n{}\n", untagged.chain(deleted).collect::<String>())
}
