//! One file a command: its options, its engine requests, its output.

mod diff;
mod doctor;
mod exec;
mod images;
mod info;
mod inspect;
mod kill;
mod login;
mod logout;
mod logs;
mod manifest;
mod ps;
mod pull;
mod push;
mod rm;
mod rmi;
mod run;
mod search;
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
    Login(login::Login),
    Logout(logout::Logout),
    Logs(logs::Logs),
    Manifest(manifest::Manifest),
    Ps(ps::Ps),
    Pull(pull::Pull),
    Push(push::Push),
    Rm(rm::Rm),
    Rmi(rmi::Rmi),
    Run(Box<run::Run>),
    Search(search::Search),
    Stop(stop::StopCommand),
    Version(version::Version),
    Wait(wait::Wait),
}

impl Command {
    /// The exit code for a failure of the engine's, as opposed to one of the container's command: Docker's `run` has a
    /// number for it, since it passes on the command's own.
    pub fn failure_code(&self) -> u8 {
        if matches!(self, Command::Run(_)) { 125 } else { 1 }
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
            Command::Login(command) => command.execute(globals),
            Command::Logout(command) => command.execute(globals),
            Command::Logs(command) => command.execute(globals),
            Command::Manifest(command) => command.execute(globals),
            Command::Ps(command) => command.execute(globals),
            Command::Pull(command) => command.execute(globals),
            Command::Push(command) => command.execute(globals),
            Command::Rm(command) => command.execute(globals),
            Command::Rmi(command) => command.execute(globals),
            Command::Run(command) => command.execute(globals),
            Command::Search(command) => command.execute(globals),
            Command::Stop(command) => command.execute(globals),
            Command::Version(command) => command.execute(globals),
            Command::Wait(command) => command.execute(globals),
        }
    }
}
