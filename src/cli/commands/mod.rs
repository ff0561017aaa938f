//! One file a command: its options, its engine requests, its output.

mod attach;
mod bundle;
mod commit;
mod completion;
mod config;
mod container;
mod content;
mod cp;
mod create;
mod diff;
mod doctor;
mod events;
mod exec;
mod export;
mod healthcheck;
mod history;
mod image;
mod images;
mod import;
mod info;
mod inspect;
mod kill;
mod lease;
mod limit;
mod load;
mod lock;
mod login;
mod logout;
mod logs;
mod man;
mod manifest;
mod metrics;
mod net;
mod network;
mod pause;
mod port;
mod ps;
mod pull;
mod push;
mod rename;
mod restart;
mod rm;
mod rmi;
mod run;
mod save;
mod search;
mod start;
mod stats;
mod stop;
mod system;
mod tag;
mod top;
mod unpause;
mod unshare;
mod untag;
mod update;
mod version;
mod volume;
mod wait;

use clap::{Args, Command as Grammar, Subcommand};

use crate::environment::Globals;
use crate::output::Stop;

/// A parsed command.
#[derive(Subcommand)]
pub enum Command {
    Attach(attach::Attach),
    Bundle(bundle::Bundle),
    Commit(commit::Commit),
    #[command(name = "__complete", hide = true)]
    Complete(completion::Complete),
    Completion(completion::Completion),
    /// Look at what options, variables and files say
    #[command(subcommand)]
    Config(config::Config),
    /// Manage containers
    #[command(subcommand)]
    Container(container::Container),
    /// Look at the contents of the store
    #[command(subcommand)]
    Content(content::Content),
    Cp(cp::Cp),
    Create(Box<create::Create>),
    Diff(diff::Diff),
    Doctor(doctor::Doctor),
    Events(events::Events),
    Exec(exec::Exec),
    Export(export::Export),
    /// Look after health checks
    #[command(subcommand)]
    Healthcheck(healthcheck::Healthcheck),
    History(history::History),
    Image(image::Image),
    Images(images::Images),
    Import(import::Import),
    Info(info::Info),
    Inspect(inspect::Inspect),
    Kill(kill::Kill),
    /// Look at who is at work in the store
    #[command(subcommand)]
    Lease(lease::Lease),
    Limit(Box<limit::Limit>),
    Load(load::Load),
    Lock(lock::Lock),
    Login(login::Login),
    Logout(logout::Logout),
    Logs(logs::Logs),
    #[command(hide = true)]
    Man(man::Man),
    Manifest(manifest::Manifest),
    Metrics(metrics::Metrics),
    /// Look at the traffic of containers
    #[command(subcommand)]
    Net(net::Net),
    /// Manage networks
    #[command(subcommand)]
    Network(network::Network),
    Pause(pause::Pause),
    Port(port::Port),
    Ps(ps::Ps),
    Pull(pull::Pull),
    Push(push::Push),
    Rename(rename::Rename),
    Restart(restart::Restart),
    Rm(rm::Rm),
    Rmi(rmi::Rmi),
    Run(Box<run::Run>),
    Save(save::Save),
    Search(search::Search),
    Start(start::Start),
    Stats(stats::Stats),
    Stop(stop::StopCommand),
    /// Look after the engine as a whole
    #[command(subcommand)]
    System(system::System),
    Tag(tag::Tag),
    Top(top::Top),
    Unpause(unpause::Unpause),
    Unshare(unshare::Unshare),
    Untag(untag::Untag),
    Update(Box<update::Update>),
    Version(version::Version),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::Volume),
    Wait(wait::Wait),
}

/// Gives a command its options and arguments.
pub type Augment = fn(Grammar) -> Grammar;

/// The grammar of a command that scripts run often, by its name.
pub fn scripted(name: &str) -> Option<(&'static str, Augment)> {
    Some(match name {
        "create" => ("create", create::Create::augment_args),
        "exec" => ("exec", exec::Exec::augment_args),
        "images" => ("images", images::Images::augment_args),
        "inspect" => ("inspect", inspect::Inspect::augment_args),
        "kill" => ("kill", kill::Kill::augment_args),
        "logs" => ("logs", logs::Logs::augment_args),
        "ps" => ("ps", ps::Ps::augment_args),
        "pull" => ("pull", pull::Pull::augment_args),
        "rm" => ("rm", rm::Rm::augment_args),
        "run" => ("run", run::Run::augment_args),
        "start" => ("start", start::Start::augment_args),
        "stop" => ("stop", stop::StopCommand::augment_args),
        "wait" => ("wait", wait::Wait::augment_args),
        _ => return None,
    })
}

impl Command {
    /// The exit code for a failure of the engine's, as opposed to one of the container's command: Docker's `run` has a
    /// number for it, since it passes on the command's own, and so do `limit` and `unshare`; of Podman's `healthcheck` 1 is a verdict.
    pub fn failure_code(&self) -> u8 {
        match self {
            Command::Run(_)
            | Command::Container(container::Container::Run(_))
            | Command::Healthcheck(_)
            | Command::Limit(_)
            | Command::Unshare(_) => 125,
            _ => 1,
        }
    }

    /// Does it; the answer is the exit code.
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        match self {
            Command::Attach(command) => command.execute(globals),
            Command::Bundle(command) => command.execute(globals),
            Command::Commit(command) => command.execute(globals),
            Command::Complete(command) => command.execute(globals),
            Command::Completion(command) => command.execute(globals),
            Command::Config(command) => command.execute(globals),
            Command::Container(command) => command.execute(globals),
            Command::Content(command) => command.execute(globals),
            Command::Cp(command) => command.execute(globals),
            Command::Create(command) => command.execute(globals),
            Command::Diff(command) => command.execute(globals),
            Command::Doctor(command) => command.execute(globals),
            Command::Events(command) => command.execute(globals),
            Command::Exec(command) => command.execute(globals),
            Command::Export(command) => command.execute(globals),
            Command::Healthcheck(command) => command.execute(globals),
            Command::History(command) => command.execute(globals),
            Command::Image(command) => command.execute(globals),
            Command::Images(command) => command.execute(globals),
            Command::Import(command) => command.execute(globals),
            Command::Info(command) => command.execute(globals),
            Command::Inspect(command) => command.execute(globals),
            Command::Kill(command) => command.execute(globals),
            Command::Lease(command) => command.execute(globals),
            Command::Limit(command) => command.execute(globals),
            Command::Load(command) => command.execute(globals),
            Command::Lock(command) => command.execute(globals),
            Command::Login(command) => command.execute(globals),
            Command::Logout(command) => command.execute(globals),
            Command::Logs(command) => command.execute(globals),
            Command::Man(command) => command.execute(globals),
            Command::Manifest(command) => command.execute(globals),
            Command::Metrics(command) => command.execute(globals),
            Command::Net(command) => command.execute(globals),
            Command::Network(command) => command.execute(globals),
            Command::Pause(command) => command.execute(globals),
            Command::Port(command) => command.execute(globals),
            Command::Ps(command) => command.execute(globals),
            Command::Pull(command) => command.execute(globals),
            Command::Push(command) => command.execute(globals),
            Command::Rename(command) => command.execute(globals),
            Command::Restart(command) => command.execute(globals),
            Command::Rm(command) => command.execute(globals),
            Command::Rmi(command) => command.execute(globals),
            Command::Run(command) => command.execute(globals),
            Command::Save(command) => command.execute(globals),
            Command::Search(command) => command.execute(globals),
            Command::Start(command) => command.execute(globals),
            Command::Stats(command) => command.execute(globals),
            Command::Stop(command) => command.execute(globals),
            Command::System(command) => command.execute(globals),
            Command::Tag(command) => command.execute(globals),
            Command::Top(command) => command.execute(globals),
            Command::Unpause(command) => command.execute(globals),
            Command::Unshare(command) => command.execute(globals),
            Command::Untag(command) => command.execute(globals),
            Command::Update(command) => command.execute(globals),
            Command::Version(command) => command.execute(globals),
            Command::Volume(command) => command.execute(globals),
            Command::Wait(command) => command.execute(globals),
        }
    }
}
