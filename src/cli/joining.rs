//! The options of commands that join our streams to a container's.

use base::Report;
use clap::{ArgAction, Args};
use engine::container::attach::Streams;

use crate::parse;

/// How our streams are joined to a container's.
#[derive(Args)]
pub struct Joining {
    /// Keys that leave the container while it goes on
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS)]
    detach_keys: String,
    /// Hand signals on to the container's command
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value_t = true,
        default_missing_value = "true")]
    sig_proxy: bool,
}

/// The keys where nothing else is said.
pub const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

impl Joining {
    /// All streams, with the standard input and a terminal if so asked.
    pub fn streams(&self, stdin: bool, tty: bool) -> Result<Streams, Report> {
        Ok(Streams { sig_proxy: self.sig_proxy, ..streams(&self.detach_keys, stdin, tty)? })
    }
}

/// The same for a command that hands all signals on.
pub fn streams(detach_keys: &str, stdin: bool, tty: bool) -> Result<Streams, Report> {
    // As in Docker, an empty list of keys asks for nothing.
    let keys = if detach_keys.is_empty() { DETACH_KEYS } else { detach_keys };
    let detach_keys = parse::detach_keys(keys)?;
    Ok(Streams { stdin, stdout: true, stderr: true, tty, sig_proxy: true, detach_keys })
}
