//! The OCI runtime's command line, in runc's grammar: `sublet runtime …`, or `argv[0]` `sublet-runtime`.
//!
//! It lets another engine (Podman, containerd, CRI-O, Slurm) name us as its runtime. The crate keeps the state of
//! containers between commands and speaks to the caller; how a container is made is crate `runtime`. It knows no images,
//! no store and no network, has no daemon and no monitor: `create` leaves init behind as a child of the caller's
//! subreaper, with the caller's standard streams.
//!
//! ```text
//! create ── load, validate ── state directory ── cgroup ── runtime::bundle::create ──▶ init
//!              │                                     ◀── Mounted ── prestart, createRuntime hooks ── Go ──▶
//!              └── nothing has been made until here  ◀── Console ── sent to --console-socket
//!                                                    ◀── Ready ── pid file; create ends
//! start ── connects to the gate ── Go ──▶ init: startContainer hooks, exec ── end of the socket ──▶ poststart hooks
//! ```
//! Truth about a container is never a word in a file that a killed command could have left wrong ([`state`]):
//! * *creating*: the creator still holds the lock `creating`, or, where it was killed, init its copy;
//! * *created*: init lives and still holds the lock `lock`, which its exec releases;
//! * *running*: init lives and the lock is free;
//! * *paused*: init lives, started or not, and its cgroup is frozen;
//! * *stopped*: no process has the recorded pid and start time in this boot.

#![allow(rustdoc::broken_intra_doc_links, reason = "words on an option are its help text: [x] may be left out")]

mod args;
mod config;
mod console;
mod control;
mod create;
mod delete;
mod exec;
mod features;
mod list;
mod log;
mod notify;
mod start;
mod state;
mod template;

use std::ffi::OsString;
use std::path::PathBuf;

use base::Report;

use crate::args::Verb;
pub use crate::config::verify;
use crate::log::Log;

/// Runs one command line, the program's name in front; the answer is the exit code. `default_root` makes and names the
/// directory of states where `--root` does not.
///
/// The caller must have one thread: containers are made by forking this process.
pub fn main(
    arguments: impl IntoIterator<Item = OsString>,
    default_root: impl FnOnce() -> Result<PathBuf, Report>,
) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    // First, as it begins all anew.
    let protected = if may_make_processes(&arguments) { runtime::own_binary::protect() } else { Ok(()) };
    let line = match args::parse(arguments) {
        Ok(line) => line,
        Err(refused) => {
            // Whoever asked for help and closed the pipe has seen enough.
            let _ = refused.print();
            return u8::from(refused.use_stderr());
        }
    };
    // Before anything of ours is opened: what is handed on must be the caller's.
    if let Err(report) = take_descriptors(&line.verb) {
        eprintln!("error: {report}");
        return 1;
    }
    let log = match Log::open(&line.global) {
        Ok(log) => log,
        Err(report) => {
            eprintln!("error: {report}");
            return 1;
        }
    };
    match protected.and_then(|()| run(line, &log, default_root)) {
        Ok(code) => code,
        Err(report) => {
            log.error(&report);
            match report.kind() {
                base::Kind::CommandNotFound => 127,
                base::Kind::CommandNotExecutable => 126,
                _ => 1,
            }
        }
    }
}

/// Whether this may be a command by which our binary becomes a container's process. The words are not taken apart for it, as
/// they would be twice then: one of another command costs an execution of ours and nothing else.
fn may_make_processes(arguments: &[OsString]) -> bool {
    let verbs = ["create", "run", "exec"];
    arguments.iter().any(|word| verbs.iter().any(|verb| word == verb)) && !sys::without("own-binary")
}

/// How many descriptors a command hands on.
fn preserved(verb: &Verb) -> i32 {
    match verb {
        Verb::Create(arguments) => config::preserved(arguments.bundle.preserve_fds),
        Verb::Run(arguments) => config::preserved(arguments.bundle.preserve_fds),
        Verb::Exec(arguments) => config::preserved(arguments.preserve_fds),
        _ => 0,
    }
}

/// Proves that the descriptors that a container is to inherit are there, and keeps every other one from hooks and payloads.
fn take_descriptors(verb: &Verb) -> Result<(), Report> {
    let preserved = preserved(verb);
    if let Some(number) = (3..3 + preserved).find(|number| !sys::process::is_open(*number)) {
        let message = format!("descriptor {number} is to be handed on and is not open");
        return Err(Report::new(base::Kind::Usage, message).with_hint("see --preserve-fds and LISTEN_FDS"));
    }
    sys::process::cloexec_from(3 + preserved)?;
    Ok(())
}

fn run(line: args::Line, log: &Log, default_root: impl FnOnce() -> Result<PathBuf, Report>) -> Result<u8, Report> {
    if preserved(&line.verb) > 0 {
        // From now on for the payload alone, which gets them back at its exec.
        sys::process::cloexec_from(3)?;
    }
    let global = line.global;
    let root = match &global.root {
        Some(root) => state::Root::at(root)?,
        None => state::Root::at(&default_root()?)?,
    };
    match line.verb {
        Verb::Create(arguments) => create::create(&root, &global, &arguments, log),
        Verb::Run(arguments) => create::run(&root, &global, &arguments, log),
        Verb::Start(arguments) => start::start(&root, &arguments.id, log),
        Verb::State(arguments) => list::state(&root, &arguments.id),
        Verb::Kill(arguments) => delete::kill(&root, &arguments, log),
        Verb::Delete(arguments) => delete::delete(&root, &arguments, log),
        Verb::Exec(arguments) => exec::exec(&root, &arguments, log),
        Verb::List(arguments) => list::list(&root, &arguments),
        Verb::Ps(arguments) => list::ps(&root, &arguments),
        Verb::Events(arguments) => control::events(&root, &arguments),
        Verb::Update(arguments) => control::update(&root, &arguments, log),
        Verb::Pause(arguments) => control::pause(&root, &arguments.id),
        Verb::Resume(arguments) => control::resume(&root, &arguments.id),
        Verb::Features => features::features(),
        Verb::Spec(arguments) => template::spec(&arguments),
        Verb::Checkpoint(_) | Verb::Restore(_) => {
            let message = "checkpoint and restore are not supported: CRIU needs more rights than a plain user has";
            Err(Report::new(base::Kind::Unsupported, message))
        }
    }
}
