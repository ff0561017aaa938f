//! Namespaces that a container has of others: the network, the processes or the shared memory of another container, or a network by
//! its path.
//!
//! The rights over a namespace are those of the user namespace that owns it. So a container with a namespace of another one
//! has its user namespace too, as in Docker, and with it its ids. One that joins a network by path has ids of its own, and
//! no rights over that network.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use base::{ContainerId, Context, Kind, Report};
use oci_spec::runtime::LinuxNamespaceType;
use sys::namespace::identity;

use crate::Engine;
use crate::container::exec;
use crate::container::record::{HostSettings, IpcMode, NetworkMode, PidMode, Record, load};

/// Namespaces that a container joins, held open from before its start.
#[derive(Debug, Default)]
pub(crate) struct Joined(Vec<Namespace>);

#[derive(Debug)]
struct Namespace {
    /// Also the name under which the stage gets the descriptor.
    kind: &'static str,
    path: PathBuf,
    fd: OwnedFd,
}

impl Joined {
    /// Opens what the record asks for. A container of which something is wanted must run.
    pub(crate) fn open(engine: &Engine, record: &Record) -> Result<Self, Report> {
        let mut joined = Joined::default();
        match &record.host.network {
            NetworkMode::Builtin
            | NetworkMode::Program(_)
            | NetworkMode::Shared
            | NetworkMode::Host
            | NetworkMode::None => {}
            NetworkMode::Container(id) => {
                joined.add(engine, id, "network", &["net"]).step(|| format!("joining the network container:{id}"))?;
            }
            NetworkMode::Namespace(path) => {
                let step = || format!("joining the network {}", record.host.network);
                let fd = runtime::bundle::open_namespace_at(path).step(step)?;
                joined.0.push(Namespace { kind: "net", path: path.clone(), fd });
            }
        }
        if let PidMode::Container(id) = &record.host.pid {
            joined.add(engine, id, "PID", &["pid"]).step(|| format!("joining the processes of container:{id}"))?;
        }
        if let IpcMode::Container(id) = &record.host.ipc {
            // `/dev/shm` is cloned from the mounts.
            let kinds = ["ipc", "mnt"];
            joined.add(engine, id, "IPC", &kinds).step(|| format!("joining the shared memory of container:{id}"))?;
        }
        Ok(joined)
    }

    /// Adds namespaces of a running container, with Docker's word for their kind, and its user namespace, of which there can be
    /// one.
    fn add(&mut self, engine: &Engine, id: &str, word: &str, kinds: &[&'static str]) -> Result<(), Report> {
        let id: ContainerId = id.parse()?;
        let gone = || Report::new(Kind::Conflict, format!("cannot join {word} of a non running container: {id}"));
        let pids = exec::pids(engine, &id).map_err(|_| gone())?;
        let init = pids.init()?.ok_or_else(gone)?;
        let kinds = [&["user"], kinds].concat();
        for (kind, fd) in kinds.iter().copied().zip(runtime::exec::open_namespaces(pids.pid, init.as_fd(), &kinds)?) {
            let there = self.0.iter().find(|namespace| namespace.kind == kind);
            match there.map(|there| Ok::<_, Report>(identity(&there.fd)? == identity(&fd)?)).transpose()? {
                None => self.0.push(Namespace { kind, path: format!("/proc/{}/ns/{kind}", pids.pid).into(), fd }),
                Some(true) => {}
                Some(false) => {
                    let text =
                        format!("container {id} has other ids than another container of which a namespace is joined");
                    return Err(Report::new(Kind::Conflict, text)
                        .with_hint("join the namespaces of one container, or of those that share theirs"));
                }
            }
        }
        Ok(())
    }

    /// Where a namespace of this type is that is not to be made.
    pub(crate) fn path(&self, typ: LinuxNamespaceType) -> Option<PathBuf> {
        let kind = match typ {
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::Ipc => "ipc",
            _ => return None,
        };
        self.0.iter().find(|namespace| namespace.kind == kind).map(|namespace| namespace.path.clone())
    }

    /// What the stage gets.
    pub(crate) fn fds(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        self.0.iter().map(|namespace| (namespace.kind, namespace.fd.as_fd()))
    }
}

/// The container of which this one has a namespace, and with it the ids.
pub(crate) fn donor(host: &HostSettings) -> Option<&str> {
    match (&host.network, &host.pid, &host.ipc) {
        (NetworkMode::Container(id), ..) | (_, PidMode::Container(id), _) | (.., IpcMode::Container(id)) => Some(id),
        _ => None,
    }
}

/// The container whose ids this one has: itself, unless it has a namespace of another.
pub(crate) fn owner_of_ids(engine: &Engine, record: &Record) -> Result<Record, Report> {
    let mut owner = record.clone();
    while let Some(id) = donor(&owner.host) {
        owner = load(engine, &id.parse()?)?;
    }
    Ok(owner)
}
