//! What the environment says: where the engine's bytes lie.

use std::env;
use std::path::PathBuf;

use base::{Kind, Ladder, Report};
use engine::{Engine, Options, Paths, paths};

/// The options before every command.
#[derive(Clone, Debug, Default)]
pub struct Globals {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--strict`.
    pub strict: bool,
}

impl Globals {
    /// The engine that these options and the environment mean.
    pub fn engine(&self) -> Result<Engine, Report> {
        let (run, ladder) = runtime_dir();
        let run = run.ok_or_else(|| no_runtime_dir(&ladder))?;
        if self.strict && let Some(step) = ladder.step_down().filter(|_| ladder.fix.is_some()) {
            return Err(Report::new(Kind::Unsupported, step));
        }
        let paths = Paths::new(self.data_dir()?, run, paths::machine_name());
        Ok(Engine::open(paths, Options { strict: self.strict }))
    }

    /// `--root`, `$SUBLET_ROOT`, `$XDG_DATA_HOME/sublet`, `$HOME/.local/share/sublet`.
    fn data_dir(&self) -> Result<PathBuf, Report> {
        let below = |variable: &str, rest: &str| path(variable).map(|directory| directory.join(rest));
        let chosen = self
            .root
            .clone()
            .or_else(|| path("SUBLET_ROOT"))
            .or_else(|| below("XDG_DATA_HOME", "sublet"))
            .or_else(|| below("HOME", ".local/share/sublet"));
        let chosen = chosen.ok_or_else(|| {
            Report::new(Kind::Usage, "no data directory: HOME is not set").with_hint("pass --root=DIRECTORY")
        })?;
        std::path::absolute(&chosen).map_err(|error| Report::of(Kind::Usage, error).with_step("--root"))
    }
}

/// The runtime directory and how it was found.
pub fn runtime_dir() -> (Option<PathBuf>, Ladder) {
    paths::runtime_dir(path("XDG_RUNTIME_DIR").as_deref(), nix::unistd::getuid().as_raw())
}

fn no_runtime_dir(ladder: &Ladder) -> Report {
    let tried = ladder.trials.iter().filter_map(|trial| Some(format!("{}: {}", trial.rung, trial.failure.as_ref()?)));
    let report = Report::new(Kind::Denied, tried.collect::<Vec<_>>().join("; ")).with_step("no runtime directory");
    match &ladder.fix {
        Some(fix) => report.with_hint(fix),
        None => report,
    }
}

/// An absolute path in a variable; the XDG specification says to ignore others.
fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
