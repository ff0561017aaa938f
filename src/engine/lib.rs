//! The only place that orders the other crates: images, containers, records, locks.
//!
//! Requests and answers are plain structs, so that the command line and (later) the API give the same answer and the
//! same error to the same question. Everything here blocks; nothing here reads the environment, the arguments or the
//! terminal. Errors leave as [`base::Report`].

pub mod container;
pub mod content;
pub mod doctor;
pub mod events;
mod file;
mod held;
pub mod image;
pub mod info;
pub mod lease;
pub mod metrics;
pub mod network;
pub mod paths;
pub mod plain;
pub mod registries;
mod rotated;
pub mod system;
pub mod volume;
mod workers;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use base::{Kind, Report};
use store::Store;

pub use paths::Paths;
pub use registry::Proxies;

/// What holds for every request.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether a step down a ladder is an error.
    pub strict: bool,
    /// The user's home directory, where the environment names one.
    pub home: Option<PathBuf>,
    /// Directories of programs, the first ones first.
    pub programs: Vec<PathBuf>,
    /// The user's D-Bus address, where the environment names one.
    pub bus: Option<String>,
    /// Where a line for the user goes that is no answer.
    pub on_notice: Option<fn(&str)>,
    /// Where to find out about registries.
    pub registries: registries::Sources,
    /// What is between us and registries.
    pub proxies: Proxies,
    /// Registries that may be spoken to without TLS or with any certificate.
    pub insecure: Vec<String>,
    /// Directories with certificates of authorities, and ours, by host (Docker's `certs.d`).
    pub certificates: Vec<PathBuf>,
    /// A directory that has such files itself, for all hosts, in place of those.
    pub certificates_for_all: Option<PathBuf>,
    /// Whether all registries must, or none need, speak TLS and prove who they are; `None`: as said of each.
    pub tls_verify: Option<bool>,
    /// Who we are at the registry that a name leads to, whatever files and helpers say.
    pub credential: Option<registries::Credential>,
    /// The file of certificates to trust in place of the machine's.
    pub roots: Option<PathBuf>,
    /// Where it is said which images may be brought in.
    pub policy: image::policy::PolicyPlaces,
    /// Whether no registry may be spoken to.
    pub offline: bool,
    /// After a pull, what can be fetched or made again goes until the store takes no more bytes than this.
    pub cache_max_bytes: Option<u64>,
    /// Data directories whose stores are only read, looked at in this order after the user's own.
    pub additional_stores: Vec<PathBuf>,
    /// Whose they may be beside root's and the user's own.
    pub additional_store_owner: Option<u32>,
    /// Directories of spec files that describe devices, in place of the usual ones; later ones have precedence.
    pub cdi_spec_dirs: Vec<PathBuf>,
}

/// One user's engine on one machine: nothing but names until something is asked of it.
#[derive(Clone, Debug)]
pub struct Engine {
    paths: Paths,
    options: Options,
    notices: Notices,
    /// The store, once a request has opened it.
    store: Arc<OnceLock<Arc<Store>>>,
    /// The outer user namespace, where whoever makes the request has it.
    outer: Option<Arc<OwnedFd>>,
}

/// Lines for the user that are no answer.
#[derive(Clone, Debug)]
pub(crate) struct Notices {
    say: Option<fn(&str)>,
    /// What [`Notices::once`] has said.
    said: Arc<Mutex<HashSet<String>>>,
}

impl Notices {
    /// Says something that many steps of one command may find.
    pub fn once(&self, line: &str) {
        let is_new = self.said.lock().is_ok_and(|mut said| said.insert(line.to_owned()));
        if let Some(say) = self.say.filter(|_| is_new) {
            say(line);
        }
    }
}

impl Engine {
    /// An engine over these directories. Does no I/O: what a request needs it opens or makes.
    pub fn open(paths: Paths, options: Options) -> Self {
        let notices = Notices { say: options.on_notice, said: Arc::default() };
        Engine { paths, options, notices, store: Arc::default(), outer: None }
    }

    /// The same for a caller that has the outer user namespace, and is perhaps the only one: nobody is asked for it then.
    #[must_use]
    pub fn with_outer(self, outer: OwnedFd) -> Self {
        Engine { outer: Some(Arc::new(outer)), ..self }
    }

    /// Where the engine's bytes lie.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What holds for every request.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Refuses what needs a registry where none may be spoken to; `missing` are the digests that it would fetch.
    pub fn require_network(&self, missing: &[oci::Digest]) -> Result<(), Report> {
        if !self.options.offline {
            return Ok(());
        }
        let missing: Vec<String> = missing.iter().map(|digest| format!("\n  missing: {digest}")).collect();
        let text = format!("no registry is asked with --offline{}", missing.concat());
        Err(Report::new(Kind::Unsupported, text).with_hint("leave --offline out to fetch what is missing"))
    }

    /// Says a line to the user that is no answer.
    pub(crate) fn notice(&self, line: &str) {
        if let Some(say) = self.options.on_notice {
            say(line);
        }
    }

    /// Says what is used instead of the best, or refuses it where the user wants nothing less.
    pub(crate) fn step_down(&self, line: &str) -> Result<(), Report> {
        if self.options.strict {
            return Err(Report::new(Kind::Unsupported, line).with_hint("--strict makes every step down an error"));
        }
        self.notice(line);
        Ok(())
    }
}
