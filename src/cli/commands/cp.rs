use std::io::{self, IsTerminal};
use std::path::Path;

use base::{Kind, Report};
use clap::Args;
use engine::container::{self, copy};

use crate::environment::Globals;
use crate::output::{Stop, stderr};

/// Copy files between a container and the host
#[derive(Args)]
pub struct Cp {
    /// Keep owners, which are else the container's root, or you
    #[arg(short, long)]
    archive: bool,
    /// Of a symbolic link as the source, copy its target
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Say nothing at the end, as off a terminal
    #[arg(short, long)]
    quiet: bool,
    /// - is an archive from the standard input
    #[arg(value_name = "[CONTAINER:]SOURCE|-")]
    source: String,
    /// - is an archive to the standard output
    #[arg(value_name = "[CONTAINER:]DESTINATION|-")]
    destination: String,
}

/// The container and the path in it; `None` is a path of the host.
fn inside(text: &str) -> Option<(&str, &Path)> {
    let (container, path) = text.split_once(':')?;
    let is_local = text.starts_with(['/', '.']) || container.is_empty();
    (!is_local).then_some((container, Path::new(path)))
}

impl Cp {
    pub fn execute(self, globals: &Globals) -> Result<u8, Stop> {
        let wrong = |words: &str| Err(Report::new(Kind::Usage, words).into());
        let options = copy::CopyOptions { follow: self.follow_link, keep_owners: self.archive };
        let (source, destination) = (Path::new(&self.source), Path::new(&self.destination));
        let engine = globals.engine()?;
        match (inside(&self.source), inside(&self.destination)) {
            (Some((name, from)), None) => {
                let id = container::find(&engine, name)?;
                if self.destination == "-" {
                    copy::to_archive(&engine, &id, from, options, &mut io::stdout().lock())?;
                    return Ok(0);
                }
                copy::to_host(&engine, &id, from, destination, options)?;
            }
            (None, Some((name, to))) => {
                let id = container::find(&engine, name)?;
                if self.source == "-" {
                    copy::from_archive(&engine, &id, &mut io::stdin().lock(), to)?;
                    return Ok(0);
                }
                copy::from_host(&engine, &id, source, to, options)?;
            }
            (Some(_), Some(_)) => return wrong("copying between containers is not supported"),
            (None, None) => return wrong("must specify at least one container source"),
        }
        if !self.quiet && io::stdout().is_terminal() {
            stderr(&format!("Successfully copied to {}\n", self.destination))?;
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_tells_containers_from_paths() {
        for (text, container) in [
            ("web:/etc", Some("web")),
            ("web:etc:x", Some("web")),
            ("./web:/etc", None),
            ("/a:b", None),
            (".:x", None),
            ("plain", None),
            (":/x", None),
            ("-", None),
        ] {
            assert_eq!(inside(text).map(|(container, _)| container), container, "{text}");
        }
    }
}
