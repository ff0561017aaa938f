//! What the engine asks the stage for.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use base::{Kind, Report};
use oci_spec::runtime::{
    LinuxMemoryPolicy, LinuxNamespace, LinuxNamespaceType, LinuxPersonality, LinuxSeccomp, Process, Spec,
};
use serde::{Deserialize, Serialize};
use sys::namespace::IdMap;

use crate::hooks::{State, VERSION};

/// A [`Launch`] in JSON: whoever only hands it on need not read it.
pub type WrittenLaunch = Box<serde_json::value::RawValue>;

/// The configuration of the role stage when it makes a container.
///
/// Descriptors of the role, by name: `channel` (to the monitor), `outer` (user namespace), `view` (mount namespace of
/// the fs role, root = the view; with [`Rootfs::View`], and [`Rootfs::Overlay`] above it), `user`, `net`, `pid`, `ipc` and `mnt`
/// of other containers where this one joins them. The role is born in the container's
/// cgroup, and its standard input, output and error are the container's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    /// The runtime specification. Namespaces listed without a path are new; a user namespace is always made.
    pub spec: Spec,
    /// `USER[:GROUP]` by name or number, looked up in the container's own files; empty means the specification's.
    pub user: String,
    /// Supplementary groups by name or number, looked up in the same way.
    pub groups: Vec<String>,
    /// Where `/` comes from.
    pub rootfs: Rootfs,
    /// Where the host has devices of the specification, by their paths in the container. What is not named here is
    /// looked for at its own path, and where the kernel says.
    pub devices: BTreeMap<PathBuf, HostDevice>,
    /// What bind mounts of the specification need beyond its words, by their destinations.
    pub binds: BTreeMap<PathBuf, Bind>,
    /// Ids of the container's user namespace, mapped to those of the outer one. Empty where none is made.
    pub uid_map: IdMap,
    /// The same for groups.
    pub gid_map: IdMap,
    /// Whether `setgroups` may be called: false where the outer map has one id.
    pub setgroups: bool,
    /// Whether the caller has no id in the outer namespace (real root): then the stage opens what only the caller may
    /// reach, before it joins, and not init.
    pub caller_is_unmapped: bool,
    /// Whether a TAP device is made in the container's network namespace and sent over the channel.
    pub network: Option<net::Addressing>,
    /// Whether that namespace is sent over the channel, for devices that others put in it.
    pub plugged: bool,
    /// Whether pid 1 is our reaper, with the payload as its child.
    pub reaper: bool,
    /// Whether the payload gets a session keyring of its own.
    pub keyring: bool,
    /// Whether the payload keeps the caller's supplementary groups (they show as 65534 where they are not mapped).
    pub keep_groups: bool,
    /// How many descriptors from 3 up the payload inherits.
    pub preserve_fds: i32,
    /// How many of them it is told of as sockets to listen on, sd_listen_fds(3).
    pub listen_fds: i32,
    /// What hooks and a seccomp agent are told: the bundle it is made from, or one that is made for hooks. Where there
    /// is one, init says when the mounts are made, and waits for GO then too.
    pub bundle: Option<HookContext>,
    /// The capabilities by which the default seccomp profile is made; the specification has none then. It is far longer
    /// than all the rest, and would be written and read again by each process on the way to the one that compiles it.
    pub default_profile: Option<u64>,
    /// Whether calls that need other ids than the container's one are answered by the role notify ([`crate::notify`]); then the
    /// filter's listener comes over the channel.
    pub notify: bool,
}

/// What a bind mount needs that the runtime specification has no words for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The place below the source that is shown. It is found by descriptor and never leaves the source: containers may change
    /// what is on the way there.
    pub subpath: Option<PathBuf>,
    /// The directory with `upper` and `work` that takes what is written, so that the source stays as it is.
    pub layers: Option<PathBuf>,
    /// Whether all in it is given to the payload's user.
    pub chown: bool,
    /// Whether the source is a path in the container whose mount namespace the role has (`mnt`): its `/dev/shm`.
    #[serde(default)]
    pub joined: bool,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDevice {
    /// Its path, no symbolic link.
    pub path: PathBuf,
    /// Who owns the container's node in ids of the host, where the caller may make one.
    pub owner: (u32, u32),
}

/// The constant part of what a hook reads on its standard input, and an agent in its message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookContext {
    /// The container's id.
    pub id: String,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
}

impl Launch {
    /// To be handed to the stage.
    pub fn write(&self) -> Result<WrittenLaunch, Report> {
        serde_json::value::to_raw_value(self).map_err(|error| Report::of(Kind::Internal, error))
    }

    /// What [`Launch::write`] wrote.
    pub fn read(written: &serde_json::value::RawValue) -> Result<Self, Report> {
        serde_json::from_str(written.get()).map_err(|error| Report::of(Kind::Internal, error))
    }
}

impl HookContext {
    /// What a hook in the container's namespaces reads: the pid is that of the calling process, as the container sees it.
    pub fn state<'a>(&'a self, spec: &'a Spec, status: &'a str) -> State<'a> {
        self.state_of(spec, status, std::process::id() as i32)
    }

    /// What a hook in the runtime's namespaces reads.
    pub fn state_of<'a>(&'a self, spec: &'a Spec, status: &'a str, pid: i32) -> State<'a> {
        let annotations = spec.annotations().iter().flatten();
        State {
            oci_version: VERSION,
            id: &self.id,
            status,
            pid,
            bundle: &self.bundle,
            annotations: annotations.map(|(name, value)| (name.as_str(), value.as_str())).collect(),
        }
    }
}

/// The namespaces that a specification lists.
pub fn listed(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default()
}

/// Whether a specification asks for a new namespace of this type.
pub fn is_new(spec: &Spec, typ: LinuxNamespaceType) -> bool {
    listed(spec).iter().any(|namespace| namespace.typ() == typ && namespace.path().is_none())
}

/// Whether a specification names a user namespace by path, whose maps and rules others have made.
pub fn joins_user(spec: &Spec) -> bool {
    listed(spec).iter().any(|namespace| namespace.typ() == LinuxNamespaceType::User && namespace.path().is_some())
}

/// The seccomp profile of a specification.
pub fn profile(spec: &Spec) -> Option<&LinuxSeccomp> {
    spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref())
}

/// Where a container's root file system comes from.
#[derive(Debug, Serialize, Deserialize)]
pub enum Rootfs {
    /// Kernel overlayfs: the view or a directory tree below, native directories above.
    Overlay {
        /// The tree; `None` for the view.
        lower: Option<PathBuf>,
        /// Holds `upper`, which receives the changes, and `work`, overlayfs' own, on one mount.
        directory: PathBuf,
        /// Whether a host crash may lose the changes (`volatile`).
        volatile: bool,
    },
    /// The view itself, which takes writes.
    View,
    /// A native directory that has all of it, `upper` in this one.
    Copy {
        /// Of the container's snapshot.
        directory: PathBuf,
    },
    /// A directory of the host, with what is mounted below it.
    Directory {
        /// Absolute, its last component no symbolic link.
        path: PathBuf,
        /// By pivot_root(2), or else by moving it over `/` and chroot(2), for hosts whose root is an initial ramdisk.
        pivot: bool,
    },
}

/// What is to be executed in a running container; the configuration of the role exec.
///
/// Descriptors of the role, by name: `channel`, `outer`, `init` (pidfd of the container's init).
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecLaunch {
    /// What to run, in the words of the runtime specification.
    pub process: Process,
    /// As [`Launch::user`].
    pub user: String,
    /// As [`Launch::groups`].
    pub groups: Vec<String>,
    /// Host pid of the container's init, checked against the pidfd.
    pub init_pid: i32,
    /// The container's seccomp profile.
    pub seccomp: Option<LinuxSeccomp>,
    /// Where the container's memory comes from.
    pub memory_policy: Option<LinuxMemoryPolicy>,
    /// Which system the container's programs see.
    pub personality: Option<LinuxPersonality>,
    /// As [`Launch::default_profile`].
    pub default_profile: Option<u64>,
    /// As [`Launch::notify`].
    pub notify: bool,
    /// As [`Launch::setgroups`].
    pub setgroups: bool,
    /// As [`Launch::keep_groups`].
    pub keep_groups: bool,
    /// As [`Launch::preserve_fds`].
    pub preserve_fds: i32,
    /// As [`Launch::listen_fds`].
    pub listen_fds: i32,
    /// As [`Launch::bundle`].
    pub bundle: Option<HookContext>,
    /// Those of the container's specification, for an agent.
    pub annotations: Option<HashMap<String, String>>,
    /// As [`Launch::keyring`].
    pub keyring: bool,
}
