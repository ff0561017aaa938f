//! The directory of one container's state, and what can be said of the container by it.
//!
//! ```text
//! <root>/.<id>/           on its way: its owner holds the lock `creating`, and it is nobody's once that is free
//! <root>/<id>/            a container, whole: it begins and ends with a rename from and to `.<id>`
//!   config.json           the configuration as it was at the creation
//!   state.json            the record: bundle, init's pid and start time, cgroup
//!   creating              locked by the creator as long as it works
//!   lock                  locked by init until its exec
//!   gate                  the socket at which init waits for `start`
//!   notify/               for a payload that is to say that it is ready: the container sees it (module notify)
//! ```
//! So whatever is killed, a container has its record or does not exist; a directory on its way that a killed command has
//! left is taken over by the next creator of this id, and removed by the next `delete --force`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use base::{Context, Explain, Kind, Report};
use cgroup::oci::Cgroup;
use nix::sys::socket::{Backlog, SockFlag, bind, connect, listen};
use oci_spec::runtime::Spec;
use runtime::channel::Channel;
use runtime::hooks::{State, VERSION};
use serde::{Deserialize, Serialize};
use sys::process::{boot_id, has_ended, pidfd_open, start_time};
use sys::socket::{address_in, open_directory, seqpacket};
use sys::{Call, Errno, SysError};

/// The socket at which init waits.
const GATE: &str = "gate";
/// The lock of who works on the directory.
const CREATING: &str = "creating";
/// The directory that the payload sees.
const NOTIFY: &str = "notify";
/// A record or configuration that is larger was not written by us; what is written of a configuration may be longer than what
/// was read.
const FILE_MAX: u64 = 32 << 20;

/// Why a container cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is none.
    #[error("container {id:?} does not exist")]
    Unknown {
        /// As it was asked for.
        id: String,
    },
    /// There is one already.
    #[error("container with id {id:?} exists already")]
    Taken {
        /// The id.
        id: String,
    },
    /// The id could be a path.
    #[error("{id:?} is no container id: letters, digits and _ + - . are, and the first is no dot")]
    BadId {
        /// As it was given.
        id: String,
    },
}

impl Explain for StateError {
    fn kind(&self) -> Kind {
        match self {
            StateError::Unknown { .. } => Kind::NotFound,
            StateError::Taken { .. } => Kind::Conflict,
            StateError::BadId { .. } => Kind::Usage,
        }
    }
}

/// The directory of all states.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// Takes this directory, whether it exists or not.
    pub fn at(path: &Path) -> Result<Self, Report> {
        let path = std::path::absolute(path).call(|| format!("the directory {path:?}"))?;
        Ok(Root { path })
    }

    /// Takes the id for a new container, whose directory is on its way until [`Place::publish`]; the lock `creating` comes
    /// with it.
    pub fn take(&self, id: &str) -> Result<(Place, OwnedFd), Report> {
        check_id(id)?;
        let step = || format!("making the state directory of {id}");
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o700);
        directories.create(&self.path).call(|| format!("mkdir({:?})", self.path)).step(step)?;
        let taken = || StateError::Taken { id: id.to_owned() };
        let place = self.on_its_way(id);
        if self.path.join(id).exists() {
            return Err(taken().into());
        }
        let found = match DirBuilder::new().mode(0o700).create(&place.path).call(|| format!("mkdir({:?})", place.path))
        {
            Err(error) if error.errno() == Errno::EEXIST => true,
            made => made.map(|()| false).step(step)?,
        };
        let creating = place.own().step(step)?.ok_or_else(taken)?;
        if found {
            place.empty();
        }
        Ok((place, creating))
    }

    /// The directory of this id that no container has yet, or none any more.
    fn on_its_way(&self, id: &str) -> Place {
        Place { path: self.path.join(format!(".{id}")), id: id.to_owned() }
    }

    /// Removes the directory on its way, where nobody works on it.
    pub fn sweep(&self, id: &str) -> Result<(), Report> {
        let place = self.on_its_way(id);
        match place.own() {
            Ok(Some(_creating)) => place.clear(),
            Ok(None) => Ok(()),
            Err(error) if error.errno() == Errno::ENOENT => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The place of an existing container, whole or not.
    pub fn find(&self, id: &str) -> Result<Place, Report> {
        check_id(id)?;
        let path = self.path.join(id);
        if path.is_dir() {
            Ok(Place { path, id: id.to_owned() })
        } else {
            Err(StateError::Unknown { id: id.to_owned() }.into())
        }
    }

    /// A container with its record.
    pub fn load(&self, id: &str) -> Result<Container, Report> {
        let place = self.find(id)?;
        let record = place.record().step(|| format!("reading the state of {id}"))?;
        Ok(Container { place, record })
    }

    /// Every container's id, by name.
    pub fn ids(&self) -> Result<Vec<String>, Report> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.call(|| format!("readdir({:?})", self.path))?,
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<String> = names.filter(|name| check_id(name).is_ok()).collect();
        ids.sort();
        Ok(ids)
    }
}

/// Refuses an id that could be a path.
pub fn check_id(id: &str) -> Result<(), StateError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    // A dot in front must still give a file's name.
    if id.is_empty() || id.len() > 254 || id.starts_with('.') || !id.bytes().all(fits) {
        return Err(StateError::BadId { id: id.to_owned() });
    }
    Ok(())
}

/// The directory of one container.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    id: String,
}

/// What has to be known of a container from one command to the next.
#[derive(Debug, Serialize, Deserialize)]
pub struct Record {
    /// Of this file; a reader refuses a newer one.
    pub format: u32,
    /// Absolute.
    pub bundle: PathBuf,
    /// Absolute.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// Who made it.
    pub owner: u32,
    /// Once it exists.
    pub init: Option<Init>,
    /// Whether its processes have a session keyring of their own.
    pub keyring: bool,
    /// Its cgroup, written before that is made.
    pub cgroup: cgroup::oci::Record,
}

/// A process for good: a pid alone may mean another one tomorrow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Init {
    /// In the creator's pid namespace.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

impl Init {
    /// The process of this pid, which exists.
    pub fn of(pid: i32) -> Result<Self, Report> {
        Ok(Init { pid, start_time: start_time(pid)?, boot_id: boot_id()? })
    }

    /// The process, if it still lives.
    pub fn open(&self) -> Option<OwnedFd> {
        self.look().ok().flatten()
    }

    /// The process, or `None` when it has ended. An error says that this cannot be told, as for want of descriptors.
    fn look(&self) -> Result<Option<OwnedFd>, SysError> {
        let gone = |error: &SysError| matches!(error.errno(), Errno::ESRCH | Errno::ENOENT);
        let pidfd = match pidfd_open(self.pid) {
            Err(error) if gone(&error) => return Ok(None),
            pidfd => pidfd?,
        };
        // After the descriptor was opened: from now on the number cannot come to mean another process.
        let same = match start_time(self.pid) {
            Err(error) if gone(&error) => false,
            time => time? == self.start_time && boot_id()? == self.boot_id,
        };
        Ok((same && !has_ended(pidfd.as_fd())).then_some(pidfd))
    }
}

/// What a container does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// As the specification and runc write it.
    pub fn word(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl Place {
    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Takes the lock `creating`, which is made where it is missing; `None` when somebody else has it.
    fn own(&self) -> Result<Option<OwnedFd>, SysError> {
        let (file, path) = self.open_creating()?;
        let locked = sys::lock::try_exclusive(&file, &path)?;
        Ok((locked && is_at(&file, &path)).then(|| file.into()))
    }

    fn open_creating(&self) -> Result<(File, PathBuf), SysError> {
        let path = self.path.join(CREATING);
        let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok((opened.call(|| format!("open({path:?}, O_CREAT)"))?, path))
    }

    /// Takes the lock `creating` to remove the container, whose init has ended. Who has it removes the container too, or
    /// takes its creation back, and is waited for; `None` when the container is gone by then.
    pub fn own_to_remove(&self, limit: Duration) -> Result<Option<OwnedFd>, Report> {
        let (file, path) = match self.open_creating() {
            Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
            opened => opened?,
        };
        let until = Instant::now() + limit;
        while !sys::lock::try_exclusive(&file, &path)? {
            if Instant::now() > until {
                let message = format!("container {:?} is being removed by a command that does not end", self.id);
                return Err(Report::new(Kind::Conflict, message));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(is_at(&file, &path).then(|| file.into()))
    }

    /// From now on there is such a container.
    pub fn publish(&mut self) -> Result<(), Report> {
        let path = self.path.with_file_name(&self.id);
        // A directory that is not empty stays.
        match fs::rename(&self.path, &path).call(|| format!("rename({:?}, {path:?})", self.path)) {
            Err(error) if matches!(error.errno(), Errno::ENOTEMPTY | Errno::EEXIST) => {
                Err(StateError::Taken { id: self.id.clone() }.into())
            }
            renamed => {
                renamed?;
                self.path = path;
                Ok(())
            }
        }
    }

    /// Makes a lock file and locks it.
    pub fn make_lock(&self, name: &str) -> Result<OwnedFd, Report> {
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.call(|| format!("open({path:?}, O_CREAT|O_EXCL)"))?;
        sys::lock::exclusive(&file, &path)?;
        Ok(file.into())
    }

    /// Whether init, or who is to become it, lives and has not executed the payload.
    pub fn is_held(&self) -> bool {
        self.locked("lock")
    }

    /// Whether somebody holds a lock file.
    fn locked(&self, name: &str) -> bool {
        let path = self.path.join(name);
        File::open(&path).is_ok_and(|file| sys::lock::is_free(&file, &path).is_ok_and(|free| !free))
    }

    /// Makes the socket at which init waits.
    pub fn make_gate(&self) -> Result<OwnedFd, Report> {
        let directory = open_directory(&self.path)?;
        let address = address_in(directory.as_fd(), GATE)?;
        let fd = seqpacket(SockFlag::empty())?;
        bind(fd.as_raw_fd(), &address).call(|| format!("bind({:?})", self.path.join("gate")))?;
        let backlog = Backlog::new(8).call(|| "listen backlog".to_owned())?;
        listen(&fd, backlog).call(|| "listen()".to_owned())?;
        Ok(fd)
    }

    /// Makes the directory that the payload sees, which any user of the container's may search.
    pub fn make_notify_directory(&self) -> Result<(), SysError> {
        let path = self.notify_directory();
        let made = fs::create_dir(&path).and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o755)));
        made.call(|| format!("mkdir({path:?})"))
    }

    /// Where that is.
    pub fn notify_directory(&self) -> PathBuf {
        self.path.join(NOTIFY)
    }

    /// Reaches init at its gate.
    pub fn knock(&self) -> Result<Channel, Report> {
        let directory = open_directory(&self.path)?;
        let address = address_in(directory.as_fd(), GATE)?;
        let fd = seqpacket(SockFlag::empty())?;
        connect(fd.as_raw_fd(), &address).call(|| format!("connect({:?})", self.path.join("gate")))?;
        Ok(Channel::from(fd))
    }

    /// Replaces the record.
    pub fn write_record(&self, record: &Record) -> Result<(), Report> {
        self.write("state.json", &serde_json::to_vec(record).map_err(|error| Report::of(Kind::Internal, error))?)
    }

    /// Writes a file of the directory by a rename. It is not synced: no container outlives a loss of power.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Report> {
        let (path, new) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let written = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new);
        written.and_then(|mut file| file.write_all(bytes)).call(|| format!("write({new:?})"))?;
        sys::step();
        fs::rename(&new, &path).call(|| format!("rename({new:?}, {path:?})"))?;
        Ok(())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, Report> {
        let path = self.path.join(name);
        let mut bytes = Vec::with_capacity(sys::file::SMALL);
        let file = File::open(&path).call(|| format!("open({path:?})"))?;
        file.take(FILE_MAX).read_to_end(&mut bytes).call(|| format!("read({path:?})"))?;
        Ok(bytes)
    }

    /// Whether a record was ever written.
    pub fn has_record(&self) -> bool {
        self.path.join("state.json").exists()
    }

    /// What is known of the container now.
    pub fn record(&self) -> Result<Record, Report> {
        let record: Record =
            serde_json::from_slice(&self.read("state.json")?).map_err(|error| Report::of(Kind::Internal, error))?;
        if record.format > FORMAT {
            let message = format!("the record has format {} and this version knows {FORMAT}", record.format);
            return Err(Report::new(Kind::Unsupported, message));
        }
        Ok(record)
    }

    /// The configuration as it was at the creation.
    pub fn spec(&self) -> Result<Spec, Report> {
        serde_json::from_slice(&self.read("config.json")?).map_err(|error| Report::of(Kind::Internal, error))
    }

    /// Ends the container's existence, then removes the directory.
    pub fn remove(&self) -> Result<(), Report> {
        // Held, it keeps creators away; a creator that still has it does so itself. What is wrong is met again below.
        let _creating = self.own();
        sys::step();
        let on_its_way = Place { path: self.path.with_file_name(format!(".{}", self.id)), id: self.id.clone() };
        let renamed = fs::rename(&self.path, &on_its_way.path);
        sys::step();
        // Another one may be there, left by a killed command: then what shows that there is a container goes last.
        if renamed.is_ok() { on_its_way.clear() } else { self.clear() }
    }

    /// Removes what is in the directory but for the lock `creating`, and the record last. What stays is named by the removal
    /// of the directory.
    fn empty(&self) {
        let names = fs::read_dir(&self.path).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let (record, others): (Vec<_>, Vec<_>) =
            names.filter(|name| name != CREATING).partition(|name| name == "state.json");
        for name in others.iter().chain(&record) {
            let path = self.path.join(name);
            let _ = if name == NOTIFY { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            sys::step();
        }
    }

    /// Removes the directory, whose lock `creating` the caller holds.
    fn clear(&self) -> Result<(), Report> {
        self.empty();
        let _ = fs::remove_file(self.path.join(CREATING));
        sys::step();
        match fs::remove_dir(&self.path).call(|| format!("rmdir({:?})", self.path)) {
            // Another command was faster, or the next creator of this id has it already.
            Err(error) if error.errno() == Errno::ENOENT || self.path.join(CREATING).exists() => Ok(()),
            removed => Ok(removed?),
        }
    }
}

/// Whether a lock file that is open is still there: its last owner may have removed it before we had the lock.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |one: fs::Metadata, other: fs::Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
    file.metadata().ok().zip(fs::metadata(path).ok()).is_some_and(|(one, other)| same(one, other))
}

/// [`Record::format`] of this version.
pub const FORMAT: u32 = 1;

/// A container with its record.
#[derive(Debug)]
pub struct Container {
    /// Its directory.
    pub place: Place,
    /// What is known of it.
    pub record: Record,
}

impl Container {
    /// What it does now.
    pub fn status(&self) -> Status {
        let Some(init) = &self.record.init else {
            return if self.place.locked(CREATING) { Status::Creating } else { Status::Stopped };
        };
        match init.look() {
            Ok(None) => Status::Stopped,
            // One of which nothing can be told may live, and nothing of it must be removed unasked.
            _ if self.place.locked(CREATING) => Status::Creating,
            _ if self.frozen() => Status::Paused,
            _ if self.place.is_held() => Status::Created,
            _ => Status::Running,
        }
    }

    /// Its init, if it lives.
    pub fn init(&self) -> Option<(i32, OwnedFd)> {
        let init = self.record.init.as_ref()?;
        Some((init.pid, init.open()?))
    }

    fn frozen(&self) -> bool {
        let Ok(cgroup) = self.cgroup() else { return false };
        cgroup.container().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false))
    }

    /// Its cgroup; it may have none.
    pub fn cgroup(&self) -> Result<Cgroup, Report> {
        Ok(Cgroup::open(&self.record.cgroup)?)
    }

    /// What hooks and the caller are told.
    pub fn state<'a>(&'a self, spec: &'a Spec, status: Status) -> State<'a> {
        let lives = status != Status::Stopped;
        let annotations = spec.annotations().iter().flatten();
        State {
            oci_version: VERSION,
            id: self.place.id(),
            status: status.word(),
            pid: self.record.init.as_ref().filter(|_| lives).map_or(0, |init| init.pid),
            bundle: &self.record.bundle,
            annotations: annotations.map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        }
    }
}

/// The moment of a creation, as records have it.
pub fn now() -> String {
    base::time::rfc3339(SystemTime::now())
}
