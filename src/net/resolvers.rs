//! The host's resolvers as they are now: a VPN, a new network or systemd-resolved change them while containers run.
//!
//! resolv.conf(5) is replaced by rename, and may be a link to a file that somebody else replaces. So what is watched is not
//! the file but the directories of the name and of each link on the way.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;

use sys::{Call, SysError};

use crate::files::name_servers;

/// What the host's programs read.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Links that are followed; the kernel follows 40, path_resolution(7).
const LINKS_MAX: usize = 40;

/// The resolvers that resolv.conf(5) names now; none where it cannot be read.
pub fn now() -> Vec<SocketAddr> {
    name_servers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// A watch over the host's resolvers: `SIGIO` says that they may have changed, see [`sys::file::notify_changes`].
#[derive(Debug)]
pub struct Watch {
    /// Open as long as their changes matter.
    directories: Vec<File>,
    known: Vec<SocketAddr>,
}

impl Watch {
    /// Begins to watch, in a process that has `SIGIO` blocked; `known` are the resolvers that the user of the watch knows of.
    pub fn new(known: &[SocketAddr]) -> Result<Self, SysError> {
        Ok(Watch { directories: watched()?, known: known.to_vec() })
    }

    /// The resolvers, when they are others than were known.
    pub fn changed(&mut self) -> Option<&[SocketAddr]> {
        // A link may lead elsewhere now. Without a watch there the next change goes unseen; this one is known.
        if let Ok(directories) = watched() {
            self.directories = directories;
        }
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        // It is being written anew, and its last write is told too.
        if text.is_empty() {
            return None;
        }
        let current = name_servers(&text);
        if current == self.known {
            return None;
        }
        self.known = current;
        Some(&self.known)
    }
}

/// The directories of the name and of each link on the way, watched.
fn watched() -> Result<Vec<File>, SysError> {
    let mut directories = Vec::new();
    let mut path = PathBuf::from(RESOLV_CONF);
    for _ in 0..LINKS_MAX {
        let Some(parent) = path.parent() else { break };
        let directory = File::open(parent).call(|| format!("open({parent:?})"))?;
        sys::file::notify_changes(&directory)?;
        directories.push(directory);
        let Ok(target) = fs::read_link(&path) else { break };
        path = parent.join(target);
    }
    Ok(directories)
}
