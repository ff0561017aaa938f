//! Printing that survives a reader which is gone, and the end of a command.
//!
//! Errors and remarks quote what registries, images and archives say, which may be sequences that a terminal obeys. They pass
//! [`printable`] here, where all of them come by.

use std::io::{self, BufRead, Read, Write};

use base::{Kind, Report};
use serde_json::json;

/// The exit code of a program that a closed pipe ended, as shells show it.
const BROKEN_PIPE_CODE: u8 = 141;
/// The longest answer to a question that is read, in bytes.
const ANSWER_MAX: u64 = 4096;

/// Why a command ends early.
#[derive(Debug)]
pub enum Stop {
    /// Something failed that is still to be told.
    Failed(Report),
    /// All is told.
    Quiet(u8),
}

impl<E: Into<Report>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// A text without what a terminal obeys: control characters, C1 included, are shown escaped as in Rust's literals. Line feeds stay,
/// as reports have several lines.
pub fn printable(text: &str) -> String {
    escaped(text, |character| character != '\n')
}

/// The same for a text that is a part of a line: line feeds are escaped too.
pub fn printable_part(text: &str) -> String {
    escaped(text, |_| true)
}

fn escaped(text: &str, may: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && may(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Writes to standard output.
pub fn stdout(text: &str) -> Result<(), Stop> {
    written(io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()))
}

/// Writes to standard error.
pub fn stderr(text: &str) -> Result<(), Stop> {
    written(io::stderr().lock().write_all(text.as_bytes()))
}

/// A line on standard output.
pub fn line(text: impl std::fmt::Display) -> Result<(), Stop> {
    stdout(&format!("{text}\n"))
}

/// What became of a write.
pub fn written(result: io::Result<()>) -> Result<(), Stop> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::Quiet(BROKEN_PIPE_CODE),
        _ => Stop::Failed(Report::of(Kind::Internal, error).with_step("writing the output")),
    })
}

/// An error on standard error; with that gone there is no one to tell.
pub fn error(report: &Report) {
    let _ = stderr(&printable(&format!("error: {report}\n")));
}

/// A warning on standard error.
pub fn warning(text: &str) {
    let _ = stderr(&printable(&format!("warning: {text}\n")));
}

/// The same as an object in a line, for who reads those (docs/progress.md).
pub fn json_warning(text: &str) {
    let _ = stderr(&format!("{}\n", json!({ "status": format!("warning: {text}") })));
}

/// An error as an object in a line, with the members of Docker's API.
pub fn json_error(report: &Report) {
    let message = report.lines().join(": ");
    let mut detail = json!({ "message": message });
    if let Some(hint) = report.hint() {
        detail["hint"] = hint.into();
    }
    let _ = stderr(&format!("{}\n", json!({ "errorDetail": detail, "error": message })));
}

/// Shows a warning and asks whether to go on, in Docker's words; all but a `y` is a no.
pub fn confirm(warning: &str) -> Result<bool, Stop> {
    stdout(&format!("WARNING! {warning}\nAre you sure you want to continue? [y/N] "))?;
    let mut answer = String::new();
    let read = io::stdin().lock().take(ANSWER_MAX).read_line(&mut answer);
    read.map_err(|error| Report::of(Kind::Internal, error).with_step("reading the answer"))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

/// Does something for each name, goes on after a failure and tells each; the answer is the exit code.
pub fn for_each(names: &[String], mut act: impl FnMut(&str) -> Result<(), Stop>) -> Result<u8, Stop> {
    let mut code = 0;
    for name in names {
        match act(name) {
            Ok(()) => {}
            Err(Stop::Failed(report)) => {
                error(&report);
                code = 1;
            }
            Err(quiet) => return Err(quiet),
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_of_what_is_shown() {
        let hostile = "a\u{1b}[2J\u{9b}31m\u{7f}\r\t\0\u{7}\n  hint: b é 字";
        assert_eq!(printable(hostile), "a\\u{1b}[2J\\u{9b}31m\\u{7f}\\r\\t\\u{0}\\u{7}\n  hint: b é 字");
        assert_eq!(printable_part("a\n\u{1b}"), "a\\n\\u{1b}");
        let all: String = (0..0xa0).filter_map(char::from_u32).collect();
        assert!(!printable_part(&all).chars().any(char::is_control));
    }
}
