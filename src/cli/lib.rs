//! The command line: Docker's grammar, tables and exit codes over the engine's requests and answers.
//!
//! `args` is the grammar, `commands` has one file a command. Parsing does no I/O; each command parses, makes its
//! engine requests, prints. Results go to standard output, everything else to standard error. This crate is the only
//! one that reads the environment.

#![allow(rustdoc::broken_intra_doc_links, reason = "words on an option are its help text: [x] may be left out")]

mod args;
mod commands;
mod completion;
mod container_filters;
mod docker_config;
mod environment;
mod file_output;
mod format;
mod health_options;
mod help;
mod isolation_options;
mod joining;
mod limit_options;
mod mounts;
mod network_options;
mod output;
mod parse;
mod progress;
mod prompt;
mod registry_options;
mod variable_options;

use std::ffi::OsString;

use base::{Kind, Report};

use crate::output::Stop;

/// The exit code of a command line with a bad option.
const USAGE_CODE: u8 = 125;

/// Runs one command line (with the program's name in front); prints what went wrong; the answer is the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let (globals, command) = match args::parse(arguments) {
        Ok(parsed) => parsed,
        Err(args::Refused { text, code }) => {
            let printed = if code == 0 { output::stdout(&text) } else { output::stderr(&text) };
            return printed.map_or(USAGE_CODE, |()| code);
        }
    };
    let failure_code = command.failure_code();
    match command.execute(&globals) {
        Ok(code) | Err(Stop::Quiet(code)) => code,
        Err(Stop::Failed(report)) => {
            globals.tell(&report);
            exit_code(&report, failure_code)
        }
    }
}

/// The directory of sockets and process ids, as the environment gives it, for another command line of this binary.
pub fn runtime_directory() -> Result<std::path::PathBuf, Report> {
    environment::Globals::default().run_dir()
}

fn exit_code(report: &Report, failure_code: u8) -> u8 {
    match report.kind() {
        kind @ (Kind::CommandNotFound | Kind::CommandNotExecutable) => kind.exit_code_of_run(),
        _ => failure_code,
    }
}
