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
        /// The option of the command line.
        option: &'static str,
        /// The controller's name.
        controller: &'static str,
        /// The container's cgroup.
        path: String,
    },
    /// A limit was asked for, and the cgroup that has the controller cannot pass it on: processes stand in it.
    #[error(
        "{option} needs the {controller} controller, which cgroup {path} cannot give on while processes stand in it"
    )]
    Occupied {
        /// The option of the command line.
        option: &'static str,
        /// The controller's name.
        controller: &'static str,
        /// The cgroup above the container's.
        path: String,
    },
    /// A limit was asked for, and there is no cgroup at all.
    #[error("{option} is not possible without a cgroup: {reason}")]
    NoCgroup {
        /// The option of the command line.
        option: &'static str,
        /// Why no rung holds.
        reason: String,
    },
    /// The kernel refused a limit's value.
    #[error("{option}: writing {value:?} to {file}")]
    Value {
        /// The option of the command line.
        option: &'static str,
        /// The control file.
        file: &'static str,
        /// What was written.
        value: String,
        /// The call and its errno.
        source: SysError,
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
            CgroupError::File { source, .. } => source.kind(),
            CgroupError::NotDelegated { .. } | CgroupError::Occupied { .. } | CgroupError::NoCgroup { .. } => {
                Kind::Unsupported
            }
            CgroupError::Value { .. } => Kind::Usage,
            CgroupError::Survivors { .. } => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CgroupError::NotDelegated { .. } => Some(DROP_IN.to_owned()),
            CgroupError::Occupied { path, .. } => {
                Some(format!("move them one level down: `mkdir {path}/in; echo $$ >{path}/in/cgroup.procs`"))
            }
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
