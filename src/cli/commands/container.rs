use clap::{Args, Subcommand};
use engine::container::prune::{Pruned, prune};
use engine::system::filter::PruneFilter;

use crate::environment::Globals;
use crate::output::{Stop, confirm, stdout};

/// Manage containers
#[derive(Subcommand)]
pub enum Container {
    Prune(Prune),
}

/// Remove all containers that do not run
#[derive(Args)]
pub struct Prune {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// until=, label=, label!=
    #[arg(long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

impl Container {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Container::Prune(command) => command.execute(globals),
        }
    }
}

impl Prune {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let filter = PruneFilter::parse(&self.filters, std::time::SystemTime::now())?;
        if !self.force && !confirm("This will remove all stopped containers.")? {
            return Ok(0);
        }
        let pruned = prune(&globals.engine()?, &filter)?;
        let freed = base::units::human_size(pruned.freed_bytes);
        stdout(&format!("{}Total reclaimed space: {freed}\n", text(&pruned)))?;
        Ok(0)
    }
}

/// The containers that were removed, as Docker lists them.
pub fn text(pruned: &Pruned) -> String {
    if pruned.deleted.is_empty() {
        return String::new();
    }
    let ids = pruned.deleted.iter().map(|id| format!("{id}\n"));
    format!("Deleted Containers:\n{}\n", ids.collect::<String>())
}
