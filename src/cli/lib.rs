//! The command line: Docker's grammar, tables and exit codes over the engine's requests and answers.
//!
//! `args` is the grammar, `commands` has one file a command. Parsing does no I/O; each command parses, makes its
//! engine requests, prints. Results go to standard output, everything else to standard error. This crate is the only
//! one that reads the environment.

// The words on an option are also its help text, where brackets mean "may be left out".
#![allow(rustdoc::broken_intra_doc_links)]

mod args;
mod commands;
mod environment;
mod format;
mod output;
mod parse;
mod progress;

use std::ffi::OsString;

use base::{Kind, Report};

use crate::output::Stop;

/// The exit code of a malformed command line.
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
    let runs_a_process = command.runs_a_process();
    match command.execute(&globals) {
        Ok(code) | Err(Stop::Quiet(code)) => code,
        Err(Stop::Failed(report)) => {
            output::error(&report);
            exit_code(&report, runs_a_process)
        }
    }
}

fn exit_code(report: &Report, runs_a_process: bool) -> u8 {
    match report.kind() {
        kind if runs_a_process => kind.exit_code_of_run(),
        Kind::Usage => USAGE_CODE,
        _ => 1,
    }
}
