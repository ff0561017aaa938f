//! Running other programs: every failure says which command line failed and how.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a developer command returns: any error is printed with its causes and ends it.
pub type Fallible<T> = Result<T, Box<dyn Error>>;

/// A program that could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The program could not be started.
    #[error("cannot run {line}")]
    Start {
        /// The command line.
        line: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The program ran and failed.
    #[error("{line} failed ({status}){said}")]
    Failed {
        /// The command line.
        line: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its standard error, when that was captured.
        said: String,
    },
}

/// A command from a program and its arguments.
pub fn command<A: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command with our standard streams; it must succeed.
pub fn run(command: &mut Command) -> Result<(), ShellError> {
    let status = command.status().map_err(|source| ShellError::Start { line: line(command), source })?;
    if status.success() { Ok(()) } else { Err(ShellError::Failed { line: line(command), status, said: String::new() }) }
}

/// Runs a command, which must succeed, and returns its standard output without the last newline.
pub fn output(command: &mut Command) -> Result<String, ShellError> {
    let done = command.stdin(Stdio::null()).output();
    let done = done.map_err(|source| ShellError::Start { line: line(command), source })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let lines: Vec<&str> = said.trim_end().lines().collect();
    let last = &lines[lines.len().saturating_sub(10)..];
    let said = if last.is_empty() { String::new() } else { format!("\n    {}", last.join("\n    ")) };
    Err(ShellError::Failed { line: line(command), status: done.status, said })
}

/// The command line as a person would type it (not quoted).
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Where a program of this name is, on `PATH` and in the directories of administrators' programs.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let known = path.split(':').chain(["/usr/local/sbin", "/usr/sbin", "/sbin"]);
    known.map(|directory| Path::new(directory).join(program)).find(|candidate| candidate.is_file())
}

/// `cargo`, the same that runs us, in the workspace's root.
pub fn cargo<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), arguments);
    cargo.current_dir(workspace());
    cargo
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("src/xtask"), PathBuf::from);
    here.ancestors().nth(2).map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// `$XDG_CACHE_HOME/sublet` or `~/.cache/sublet`.
pub fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("sublet")
}
