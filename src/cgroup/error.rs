//! What can go wrong with a cgroup.

use base::{Explain, Kind};
use sys::SysError;

/// Why a container cannot have its cgroup or its limits.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file operation below a cgroup failed.
    #[error("cgroup {path}: {call}", call = source.call)]
    File {
        /// The cgroup's directory.
        path: String,
        /// The call and its errno.
        source: SysError,
    },
    /// A limit was asked for, and its controller is not ours to use.
    #[error("{option} needs the {controller} controller, which is not delegated to cgroup {path}")]
    NotDelegated {
        /// The option of the command line, or the key of the runtime specification.
        option: String,
        /// The controller's name.
        controller: String,
        /// The container's cgroup.
        path: String,
    },
    /// A limit was asked for, and the cgroup that has the controller cannot pass it on: processes stand in it.
    #[error(
        "{option} needs the {controller} controller, which cgroup {path} cannot give on while processes stand in it"
    )]
    Occupied {
        /// The option of the command line, or the key of the runtime specification.
        option: String,
        /// The controller's name.
        controller: String,
        /// The cgroup above the container's.
        path: String,
    },
    /// A limit was asked for, and there is no cgroup at all.
    #[error("{option} is not possible without a cgroup: {reason}")]
    NoCgroup {
        /// The option of the command line, or the key of the runtime specification.
        option: String,
        /// Why no rung holds.
        reason: String,
    },
    /// The kernel refused a limit's value.
    #[error("{option}: writing {value:?} to {file}")]
    Value {
        /// The option of the command line, or the key of the runtime specification.
        option: String,
        /// The control file.
        file: String,
        /// What was written.
        value: String,
        /// The call and its errno.
        source: SysError,
    },
    /// A limit was asked for that this kernel does not know.
    #[error("{option}: cgroup {path} has the controller but no file {file}")]
    NoFile {
        /// The option of the command line, or the key of the runtime specification.
        option: String,
        /// The control file.
        file: String,
        /// The container's cgroup.
        path: String,
    },
    /// What was asked for contradicts itself or names something else than it should.
    #[error("{option}: {reason}")]
    Invalid {
        /// The key of the runtime specification.
        option: String,
        /// Why it cannot be.
        reason: String,
    },
    /// A limit of memory was to be set only if it is above what is used, and it is not.
    #[error("{option}: {limit_bytes} bytes are no more than the {used_bytes} that the container uses")]
    BelowUse {
        /// The key of the runtime specification.
        option: String,
        /// The limit asked for.
        limit_bytes: u64,
        /// The present use.
        used_bytes: u64,
    },
    /// A container was to have a cgroup that others stand in.
    #[error("the container's cgroup {path} is not empty: {count} processes stand in it")]
    NotEmpty {
        /// The directory.
        path: String,
        /// How many, those in cgroups below included.
        count: usize,
    },
    /// A container was to have a cgroup that is frozen, in which it would not run.
    #[error("the container's cgroup {path} is frozen")]
    Frozen {
        /// The directory.
        path: String,
    },
    /// A cgroup was to be made where none can be.
    #[error("cgroup {path}: {reason}")]
    NoPlace {
        /// The directory.
        path: String,
        /// Why not.
        reason: String,
    },
    /// systemd did not do what was asked of it.
    #[error("systemd unit {unit}: {reason}")]
    Unit {
        /// The unit.
        unit: String,
        /// What failed, down to systemd's words.
        reason: String,
    },
    /// The rules on devices cannot be enforced, and nothing else would keep the container from the host's.
    #[error("linux.resources.devices: the rules on devices cannot be enforced in cgroup {path}: {call}", call = source.call)]
    Devices {
        /// The container's cgroup.
        path: String,
        /// The call and its errno.
        source: SysError,
    },
    /// A signal was to reach processes that have no number here.
    #[error("{count} processes of cgroup {path} are outside of our pid namespace and got no signal")]
    Elsewhere {
        /// The container's cgroup.
        path: String,
        /// How many.
        count: usize,
    },
    /// Processes stayed in a cgroup that was killed.
    #[error("cgroup {path} still has processes {waited_ms} ms after they were killed")]
    Survivors {
        /// The container's cgroup.
        path: String,
        /// How long was waited.
        waited_ms: u64,
    },
}

impl Explain for CgroupError {
    fn kind(&self) -> Kind {
        match self {
            CgroupError::File { source, .. } | CgroupError::Devices { source, .. } => source.kind(),
            CgroupError::NotDelegated { .. }
            | CgroupError::Occupied { .. }
            | CgroupError::NoCgroup { .. }
            | CgroupError::NoFile { .. }
            | CgroupError::Elsewhere { .. }
            | CgroupError::NoPlace { .. } => Kind::Unsupported,
            CgroupError::Value { .. } | CgroupError::Invalid { .. } => Kind::Usage,
            CgroupError::BelowUse { .. } | CgroupError::NotEmpty { .. } | CgroupError::Frozen { .. } => Kind::Conflict,
            CgroupError::Unit { .. } | CgroupError::Survivors { .. } => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CgroupError::NotDelegated { .. } => Some(DROP_IN.to_owned()),
            CgroupError::Occupied { path, .. } => {
                Some(format!("move them one level down: `mkdir {path}/in; echo $$ >{path}/in/cgroup.procs`"))
            }
            CgroupError::Frozen { path } => Some(format!("`echo 0 >{path}/cgroup.freeze`, or choose another cgroup")),
            CgroupError::Devices { .. } => Some(
                "the kernel needs CONFIG_CGROUP_BPF and the caller CAP_SYS_ADMIN; a container with a user namespace needs \
                 neither"
                    .to_owned(),
            ),
            CgroupError::NoCgroup { .. } => {
                Some("log in so that systemd runs a manager for you, or leave the option out".to_owned())
            }
            _ => None,
        }
    }
}

/// How an administrator delegates every controller.
const DROP_IN: &str = "as root, put the lines [Service] and Delegate=cpu cpuset io memory pids into \
                       /etc/systemd/system/user@.service.d/delegate.conf, then systemctl daemon-reload and log in anew";
