//! Starting containers by their policies after a boot, and the unit that has the user's systemd do so.
//!
//! There is no daemon that could, so `enable` leaves a unit of the user's systemd, which runs `boot` when that begins: at boot for
//! users who linger, else at the first login. It is enabled by the link that `systemctl --user enable` would make, so it needs no
//! systemd that runs.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base::{ContainerId, Context, Kind, Report};
use monitor::record::read_state;
use monitor::restart::Policy;

pub use cgroup::lingers;

use crate::Engine;
use crate::container::record::{Record, try_load};
use crate::container::start::{Started, start};
use crate::container::state::condition;
use crate::file::{failed, replace};
use crate::system::here;

/// The unit's name.
pub const UNIT: &str = "sublet-restart.service";
/// Where units lie that begin with the user's systemd, below the directory of units.
const WANTS: &str = "default.target.wants";

/// What became of a container.
pub type Outcome = (ContainerId, Result<(), Report>);

/// Starts the containers of this machine that have the policy `always`, and those of `unless-stopped` that no command has ended, in
/// the order in which they were created: one that has a namespace of another comes after it. The caller has one thread.
pub fn boot(engine: &Engine, told: &mut dyn FnMut(Outcome)) -> Result<(), Report> {
    let mut due = Vec::new();
    for (store, id) in here::containers(engine)? {
        match wanted(&store, &id) {
            Ok(Some(record)) => due.push((store, record)),
            Ok(None) => {}
            Err(report) => told((id, Err(report))),
        }
    }
    due.sort_by(|(_, a), (_, b)| a.created_at.cmp(&b.created_at));
    for (store, record) in due {
        let started = start(&store, &record.id, None).step(|| format!("cannot start container {}", record.name));
        match started {
            Ok(Started::Interrupted { .. }) => return Err(Report::new(Kind::Conflict, "interrupted")),
            Ok(_) => told((record.id, Ok(()))),
            Err(report) => told((record.id, Err(report))),
        }
    }
    Ok(())
}

/// The record of a container that is to be started.
fn wanted(engine: &Engine, id: &ContainerId) -> Result<Option<Record>, Report> {
    let Some(record) = try_load(engine, id)? else { return Ok(None) };
    let was_stopped = || Ok::<_, Report>(read_state(&engine.paths().container(id))?.is_some_and(|state| state.stopped));
    let is_wanted = match record.host.restart {
        Policy::Always => true,
        Policy::UnlessStopped => !was_stopped()?,
        Policy::No | Policy::OnFailure(_) => false,
    };
    Ok((is_wanted && !condition(engine, id)?.life.is_active()).then_some(record))
}

/// Writes the unit into the directory of the user's units and enables it; `program` is our binary. The answer is its path.
pub fn enable(engine: &Engine, directory: &Path, program: &Path) -> Result<PathBuf, Report> {
    let wants = directory.join(WANTS);
    fs::create_dir_all(&wants).map_err(|error| failed("making directory", &wants, error))?;
    let path = directory.join(UNIT);
    replace(&path, unit(program, engine.paths().data())?.as_bytes(), true)?;
    let link = wants.join(UNIT);
    match symlink(Path::new("..").join(UNIT), &link) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(path),
        made => made.map(|()| path).map_err(|error| failed("linking", &link, error)),
    }
}

/// Whether [`enable`] was called for this directory of units.
pub fn is_enabled(directory: &Path) -> bool {
    directory.join(WANTS).join(UNIT).symlink_metadata().is_ok()
}

/// Removes what [`enable`] has made; whether there was anything.
pub fn disable(directory: &Path) -> Result<bool, Report> {
    let mut found = false;
    for path in [directory.join(WANTS).join(UNIT), directory.join(UNIT)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => {
                removed.map_err(|error| failed("removing", &path, error))?;
                found = true;
            }
        }
    }
    Ok(found)
}

/// The monitors go into a scope of their own; where they cannot, they stay with the unit, which therefore stays.
fn unit(program: &Path, data: &Path) -> Result<String, Report> {
    Ok(format!(
        "[Unit]\n\
         Description=Start containers by their restart policies\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         TimeoutStartSec=infinity\n\
         ExecStart={} --root {} system boot\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n",
        word(program, false)?,
        word(data, true)?
    ))
}

/// A path as one word of a command line of systemd (systemd.service(5), systemd.syntax(7)), which looks for variables in all of
/// them but the program.
fn word(path: &Path, expands: bool) -> Result<String, Report> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| {
        Report::new(Kind::Unsupported, format!("{} cannot be written into a unit", path.display()))
            .with_hint("put program and data where the path has plain characters alone")
    })?;
    let mut word = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => word.extend(['\\', character]),
            '%' => word.push_str("%%"),
            '$' if expands => word.push_str("$$"),
            _ => word.push(character),
        }
    }
    word.push('"');
    Ok(word)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_for_systemd() {
        for (path, expected) in [
            ("/usr/bin/sublet", Some("\"/usr/bin/sublet\"")),
            ("/home/a b/50%/$x", Some("\"/home/a b/50%%/$$x\"")),
            ("/a\"b\\c", Some("\"/a\\\"b\\\\c\"")),
            ("/a\nb", None),
        ] {
            assert_eq!(word(Path::new(path), true).ok().as_deref(), expected, "{path}");
        }
        assert_eq!(word(Path::new("/$a%"), false).unwrap(), "\"/$a%%\"");
    }
}
