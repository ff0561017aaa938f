use base::Kind;
use clap::{Args, Subcommand};
use engine::container;
use engine::container::prune::{Pruned, prune};
use engine::system::filter::PruneFilter;

use crate::commands::{
    attach, commit, cp, create, diff, exec, export, inspect, kill, logs, pause, port, ps, rename, restart, rm, run,
    start, stats, stop, top, unpause, update, wait,
};
use crate::environment::Globals;
use crate::output::{Stop, confirm, stdout};

/// Manage containers
#[derive(Subcommand)]
pub enum Container {
    Attach(attach::Attach),
    Commit(commit::Commit),
    Cp(cp::Cp),
    Create(Box<create::Create>),
    Diff(diff::Diff),
    Exec(exec::Exec),
    Exists(Exists),
    Export(export::Export),
    Inspect(inspect::Inspect),
    Kill(kill::Kill),
    Logs(logs::Logs),
    #[command(aliases = ["list", "ps"])]
    Ls(ps::Ps),
    Pause(pause::Pause),
    Port(port::Port),
    Prune(Prune),
    Rename(rename::Rename),
    Restart(restart::Restart),
    #[command(alias = "remove")]
    Rm(rm::Rm),
    Run(Box<run::Run>),
    Start(start::Start),
    Stats(stats::Stats),
    Stop(stop::StopCommand),
    Top(top::Top),
    Unpause(unpause::Unpause),
    Update(Box<update::Update>),
    Wait(wait::Wait),
}

/// Say by the exit code whether a container is here: 0 or 1
#[derive(Args)]
pub struct Exists {
    container: String,
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
            Container::Attach(command) => command.execute(globals),
            Container::Commit(command) => command.execute(globals),
            Container::Cp(command) => command.execute(globals),
            Container::Create(command) => command.execute(globals),
            Container::Diff(command) => command.execute(globals),
            Container::Exec(command) => command.execute(globals),
            Container::Exists(command) => command.execute(globals),
            Container::Export(command) => command.execute(globals),
            Container::Inspect(command) => command.of_containers().execute(globals),
            Container::Kill(command) => command.execute(globals),
            Container::Logs(command) => command.execute(globals),
            Container::Ls(command) => command.execute(globals),
            Container::Pause(command) => command.execute(globals),
            Container::Port(command) => command.execute(globals),
            Container::Prune(command) => command.execute(globals),
            Container::Rename(command) => command.execute(globals),
            Container::Restart(command) => command.execute(globals),
            Container::Rm(command) => command.execute(globals),
            Container::Run(command) => command.execute(globals),
            Container::Start(command) => command.execute(globals),
            Container::Stats(command) => command.execute(globals),
            Container::Stop(command) => command.execute(globals),
            Container::Top(command) => command.execute(globals),
            Container::Unpause(command) => command.execute(globals),
            Container::Update(command) => command.execute(globals),
            Container::Wait(command) => command.execute(globals),
        }
    }
}

impl Exists {
    fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match container::find(&globals.engine()?, &self.container) {
            Err(report) if report.kind() == Kind::NotFound => Ok(1),
            found => Ok(found.map(|_| 0)?),
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
