//! Where the engine's bytes lie; drawn in `docs/on-disk-format.md`.
//!
//! The data directory holds everything that must survive a logout and may be shared by hosts; what belongs to one
//! machine is below `hosts/<machine>`. The runtime directory holds sockets and process ids, never truth.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base::{ContainerId, Explain, Kind, Ladder, Report, Trial};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use serde::{Deserialize, Serialize};

use crate::file::failed;

/// The longest name of a further store.
const STORE_NAME_MAX: usize = 64;

/// The directories of one user on one machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Paths {
    data: PathBuf,
    run: PathBuf,
    machine: String,
    /// The further store with names and containers of its own; `None` is the one without a name.
    #[serde(default)]
    store: Option<String>,
}

impl Paths {
    /// These directories; nothing is made yet. `machine` names this machine in a data directory that several share.
    pub fn new(data: PathBuf, run: PathBuf, machine: String) -> Self {
        Paths { data, run, machine, store: None }
    }

    /// The same directories for a further store: its own images, names and containers over the same content.
    pub fn with_store(self, name: &str) -> Result<Self, Report> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if !first || name.len() > STORE_NAME_MAX || !name.bytes().all(word) {
            let text = format!("invalid store name {name:?}: only [a-zA-Z0-9][a-zA-Z0-9_.-]* are allowed");
            return Err(Report::new(Kind::Usage, text));
        }
        Ok(Paths { store: Some(name.to_owned()), ..self })
    }

    /// The further store that these directories are for.
    pub fn store_name(&self) -> Option<&str> {
        self.store.as_deref()
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The runtime directory.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Blobs, objects, indexes, references, of all stores together.
    pub fn store(&self) -> PathBuf {
        self.data.join("store")
    }

    /// What belongs to this machine, whatever the store.
    pub fn machine(&self) -> PathBuf {
        self.data.join("hosts").join(&self.machine)
    }

    /// What this machine is called: its host name, for people who look from another one.
    pub fn machine_name(&self) -> PathBuf {
        self.machine().join("hostname")
    }

    /// What belongs to this machine and store.
    pub fn host(&self) -> PathBuf {
        self.hosts().join(&self.machine)
    }

    fn hosts(&self) -> PathBuf {
        match &self.store {
            None => self.data.join("hosts"),
            Some(store) => self.data.join("stores").join(store).join("hosts"),
        }
    }

    /// The machine's name, if these are directories of another one.
    pub fn elsewhere(&self, here: &Paths) -> Option<&str> {
        (self.machine != here.machine).then_some(&self.machine)
    }

    /// The same data directory as each machine that has used it sees it, for each of its stores; this one too once it has
    /// made its directory.
    pub fn everywhere(&self) -> io::Result<Vec<Paths>> {
        let mut all = Vec::new();
        let stores = names_in(&self.data.join("stores"))?;
        for store in [None].into_iter().chain(stores.into_iter().map(Some)) {
            let paths = Paths { store, ..self.clone() };
            all.extend(names_in(&paths.hosts())?.into_iter().map(|machine| Paths { machine, ..paths.clone() }));
        }
        Ok(all)
    }

    /// Which ids root has taken for its containers.
    pub fn root_ids(&self) -> PathBuf {
        self.machine().join("root-ids.json")
    }

    /// One directory a container.
    pub fn containers(&self) -> PathBuf {
        self.host().join("containers")
    }

    /// The directory of one container.
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.containers().join(id.as_str())
    }

    /// One directory a writable snapshot.
    pub fn snapshots(&self) -> PathBuf {
        self.host().join("snaps")
    }

    /// One file a container's name, holding its id.
    pub fn names(&self) -> PathBuf {
        self.host().join("names")
    }

    /// One file for each container that goes with the command that makes it unless it is started.
    pub fn unstarted(&self) -> PathBuf {
        self.host().join("unstarted")
    }

    /// One directory a named volume.
    pub fn volumes(&self) -> PathBuf {
        self.host().join("volumes")
    }

    /// One directory an image that is written out.
    pub fn trees(&self) -> PathBuf {
        self.host().join("trees")
    }

    /// Sockets of all containers.
    pub fn run_containers(&self) -> PathBuf {
        self.run.join("c")
    }

    /// Sockets of one container.
    pub fn run_container(&self, id: &ContainerId) -> PathBuf {
        self.run_containers().join(id.as_str())
    }

    /// Where the role of the network with this id listens.
    pub fn run_network(&self, id: &str) -> PathBuf {
        self.run.join("n").join(id)
    }

    /// What has happened in this store.
    pub fn events(&self) -> PathBuf {
        self.run.join(self.store.as_ref().map_or_else(|| "events".to_owned(), |store| format!("events-{store}")))
    }

    /// Makes the runtime directory, ours and closed to others, if it is not there.
    pub fn make_run(&self) -> Result<(), Report> {
        Ok(claim(&self.run)?)
    }
}

/// The names in a directory; none if it is not there.
pub(crate) fn names_in(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}

/// Makes a directory and its parents, closed to others, if they are not there.
pub(crate) fn make_dir(path: &Path) -> Result<(), Report> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| failed("making directory", path, error))
}

/// The name of this machine: the id that systemd gave it, else one made of its host name. `/etc/machine-id` may hold
/// `uninitialized` (first boot) or nothing (images).
pub fn machine_name() -> String {
    let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let id = id.trim();
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return id.to_owned();
    }
    let host = nix::unistd::gethostname().unwrap_or_default();
    oci::Digest::of(host.as_encoded_bytes()).hex()[..32].to_owned()
}

/// The runtime directory of this user, by the ladder that is returned with it. `xdg` is `$XDG_RUNTIME_DIR`.
///
/// A rung holds when its parent exists and is ours (or, for `/tmp`, when the directory itself can be made so).
pub fn runtime_dir(xdg: Option<&Path>, uid: u32) -> (Option<PathBuf>, Ladder) {
    let user_dir = PathBuf::from(format!("/run/user/{uid}"));
    let rungs: [(&'static str, Option<PathBuf>); 3] = [
        ("XDG_RUNTIME_DIR", xdg.map(Path::to_owned)),
        ("/run/user", Some(user_dir)),
        ("/tmp", Some(PathBuf::from(format!("/tmp/sublet-{uid}")))),
    ];
    let mut ladder = Ladder { part: "runtime directory", trials: Vec::new(), chosen: None, fix: None };
    for (rung, place) in rungs {
        let tried = match (rung, place) {
            (_, None) => Err("not set".to_owned()),
            ("/tmp", Some(dir)) => claim(&dir).map(|()| dir).map_err(|error| error.to_string()),
            (_, Some(dir)) => check_owner(&dir, uid).map(|()| dir.join("sublet")).map_err(|error| error.to_string()),
        };
        let failure = tried.as_ref().err().cloned();
        ladder.trials.push(Trial { rung, failure });
        if let Ok(dir) = tried {
            ladder.chosen = Some(rung);
            // What the second rung finds is what the variable would have named: nothing is lost.
            if rung == "/tmp" {
                ladder.fix = Some(
                    "log in through a session manager, or run loginctl enable-linger, to get a runtime directory"
                        .to_owned(),
                );
            }
            return (Some(dir), ladder);
        }
    }
    ladder.fix = Some("make a directory that only you can enter and set XDG_RUNTIME_DIR to it".to_owned());
    (None, ladder)
}

/// Makes the directory with mode 0700 unless it exists, and proves that it is ours and closed to others.
fn claim(dir: &Path) -> Result<(), DirError> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(cause) => return Err(DirError::Make { path: dir.to_owned(), cause }),
    }
    let uid = nix::unistd::getuid().as_raw();
    check_owner(dir, uid)?;
    let mode = fs::symlink_metadata(dir).map_or(0o777, |meta| meta.mode());
    if mode & 0o077 != 0 {
        let closed = fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
        closed.map_err(|cause| DirError::Make { path: dir.to_owned(), cause })?;
    }
    Ok(())
}

/// By descriptor and without following a link, since in `/tmp` anyone may have made the name first.
fn check_owner(dir: &Path, uid: u32) -> Result<(), DirError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let opened = open(dir, flags, Mode::empty()).and_then(|fd| fstat(&fd));
    let stat = opened.map_err(|errno| DirError::Open { path: dir.to_owned(), errno })?;
    if stat.st_uid == uid { Ok(()) } else { Err(DirError::Owner { path: dir.to_owned(), owner: stat.st_uid, uid }) }
}

/// A directory that cannot be the runtime directory.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    /// It does not exist, or is no directory.
    #[error("open({path:?}, O_DIRECTORY|O_NOFOLLOW): {errno}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// It belongs to someone else.
    #[error("{path:?} belongs to uid {owner}, not to {uid}")]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it must be.
        uid: u32,
    },
    /// It cannot be made.
    #[error("mkdir({path:?}, 0700)")]
    Make {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
}

impl Explain for DirError {
    fn kind(&self) -> Kind {
        Kind::Denied
    }

    fn hint(&self) -> Option<String> {
        Some("set XDG_RUNTIME_DIR to a directory that is yours alone".to_owned())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_someone_else_or_behind_a_link_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let (real, link) = (temp.path().join("real"), temp.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(check_owner(&real, uid).is_ok());
        assert!(matches!(check_owner(&real, uid + 1), Err(DirError::Owner { .. })));
        assert!(matches!(check_owner(&link, uid), Err(DirError::Open { errno: Errno::ENOTDIR, .. })));
        claim(&real).unwrap();
        assert_eq!(fs::metadata(&real).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_variable_comes_first() {
        let temp = tempfile::tempdir().unwrap();
        let uid = nix::unistd::getuid().as_raw();
        let (dir, ladder) = runtime_dir(Some(temp.path()), uid);
        assert_eq!(dir.unwrap(), temp.path().join("sublet"));
        assert_eq!((ladder.chosen, ladder.trials.len(), ladder.step_down()), (Some("XDG_RUNTIME_DIR"), 1, None));
    }
}
