//! One file a command: its options, its engine requests, its output.

mod diff;
mod doctor;
mod exec;
mod images;
mod info;
mod inspect;
mod kill;
mod logs;
mod ps;
mod pull;
mod rm;
mod rmi;
mod run;
mod stop;
mod version;
mod wait;

use clap::Subcommand;

use crate::environment::Globals;
use crate::output::Stop;

/// A parsed command.
#[derive(Subcommand)]
pub enum Command {
    Diff(diff::Diff),
    Doctor(doctor::Doctor),
    Exec(exec::Exec),
    Images(images::Images),
    Info(info::Info),
    Inspect(inspect::Inspect),
    Kill(kill::Kill),
    Logs(logs::Logs),
    Ps(ps::Ps),
    Pull(pull::Pull),
    Rm(rm::Rm),
    Rmi(rmi::Rmi),
    Run(Box<run::Run>),
    Stop(stop::StopCommand),
    Version(version::Version),
    Wait(wait::Wait),
}

impl Command {
    /// Whether the exit code tells of a process in a container (125, 126, 127).
    pub fn runs_a_process(&self) -> bool {
        matches!(self, Command::Run(_) | Command::Exec(_))
    }

    /// Does it; the answer is the exit code.
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Command::Diff(command) => command.execute(globals),
            Command::Doctor(command) => command.execute(globals),
            Command::Exec(command) => command.execute(globals),
            Command::Images(command) => command.execute(globals),
            Command::Info(command) => command.execute(globals),
            Command::Inspect(command) => command.execute(globals),
            Command::Kill(command) => command.execute(globals),
            Command::Logs(command) => command.execute(globals),
            Command::Ps(command) => command.execute(globals),
            Command::Pull(command) => command.execute(globals),
            Command::Rm(command) => command.execute(globals),
            Command::Rmi(command) => command.execute(globals),
            Command::Run(command) => command.execute(globals),
            Command::Stop(command) => command.execute(globals),
            Command::Version(command) => command.execute(globals),
            Command::Wait(command) => command.execute(globals),
        }
    }
}
