//! The only place that orders the other crates: images, containers, records, locks.
//!
//! Requests and answers are plain structs, so that the command line and (later) the API give the same answer and the
//! same error to the same question. Everything here blocks; nothing here reads the environment, the arguments or the
//! terminal. Errors leave as [`base::Report`].

pub mod container;
pub mod doctor;
mod file;
pub mod image;
pub mod info;
pub mod paths;

pub use paths::Paths;

/// What holds for every request.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether a step down a ladder is an error.
    pub strict: bool,
}

/// One user's engine on one machine: nothing but names until something is asked of it.
#[derive(Clone, Debug)]
pub struct Engine {
    paths: Paths,
    options: Options,
}

impl Engine {
    /// An engine over these directories. Does no I/O: what a request needs it opens or makes.
    pub fn open(paths: Paths, options: Options) -> Self {
        Engine { paths, options }
    }

    /// Where the engine's bytes lie.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// What holds for every request.
    pub fn options(&self) -> &Options {
        &self.options
    }
}
