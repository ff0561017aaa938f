//! Installed programs in place of our own stack: slirp4netns(1) and pasta(1).
//!
//! [`options`] reads what the user says of one, in Podman's spelling. [`role`] starts it and ends with it or with the monitor,
//! whichever is first. The program makes the TAP device and moves its packets; addresses and routes are put on the device by
//! [`crate::setup`], as they are for our own stack, so what is known of a container does not depend on the program's defaults.
//!
//! Neither is trusted with more than it needs: slirp4netns is executed in the outer user namespace, without which it has no
//! sandbox; pasta makes its own wherever it is.
//!
//! What they lack is not made up for: names of the host's resolvers are asked by the program (pasta knows those of its start), and there are no
//! names of containers but those in `/etc/hosts`.

pub mod options;
pub mod role;
mod slirp;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Addressing, Publish};

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// slirp4netns(1), over the C library libslirp.
    Slirp,
    /// pasta(1), of the project passt.
    Pasta,
}

impl Program {
    /// The file to be executed.
    pub fn name(self) -> &'static str {
        match self {
            Program::Slirp => "slirp4netns",
            Program::Pasta => "pasta",
        }
    }

    /// The distribution's package that has it.
    pub fn package(self) -> &'static str {
        match self {
            Program::Slirp => "slirp4netns",
            Program::Pasta => "passt",
        }
    }
}

/// A program as the user has asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// Which one.
    pub program: Program,
    /// Its options, as they were given.
    pub options: Vec<String>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program.name())?;
        if self.options.is_empty() { Ok(()) } else { write!(f, ":{}", self.options.join(",")) }
    }
}

/// The configuration of a role that runs such a program for one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelperSpec {
    /// Which program.
    pub program: Program,
    /// Where it is.
    pub path: PathBuf,
    /// What its options and the container's settings make of its command line.
    pub arguments: Vec<String>,
    /// The name of the container's device.
    pub device: String,
    /// What the device gets.
    pub addressing: Addressing,
    /// Ports to publish.
    pub publish: Vec<Publish>,
    /// A directory for the program's socket.
    pub directory: PathBuf,
}
