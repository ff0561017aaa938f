//! `net`: the traffic of containers, as the process of their network has it.

mod capture;
mod flows;
mod top;

use base::ContainerId;
use clap::Subcommand;
use engine::container::record;
use engine::network::observe::{Sight, nothing, observe};
use engine::{Engine, container};

use crate::environment::Globals;
use crate::output::Stop;

/// Look at the traffic of containers
#[derive(Subcommand)]
pub enum Net {
    Capture(capture::Capture),
    Flows(flows::Flows),
    Top(top::Top),
}

impl Net {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Net::Capture(command) => command.execute(globals),
            Net::Flows(command) => command.execute(globals),
            Net::Top(command) => command.execute(globals),
        }
    }
}

/// A container in one of its networks.
struct Seen {
    id: ContainerId,
    name: String,
    sight: Sight,
}

/// Those that were named, which must have something to be seen, or all that have.
fn seen(engine: &Engine, named: &[String]) -> Result<Vec<Seen>, Stop> {
    let mut all = Vec::new();
    for text in named {
        let id = container::find(engine, text)?;
        let found = of(engine, &id)?;
        if found.is_empty() {
            return Err(nothing(engine, &id).into());
        }
        all.extend(found);
    }
    if named.is_empty() {
        let (listed, _) = container::list::list(engine, std::time::SystemTime::now())?;
        for one in listed.into_iter().filter(|one| one.life.is_active()) {
            // One that has just ended has nothing to be seen.
            all.extend(of(engine, &one.id).unwrap_or_default());
        }
    }
    Ok(all)
}

fn of(engine: &Engine, id: &ContainerId) -> Result<Vec<Seen>, Stop> {
    let name = record::load(engine, id)?.name;
    let sights = observe(engine, id)?;
    Ok(sights.into_iter().map(|sight| Seen { id: id.clone(), name: name.clone(), sight }).collect())
}
