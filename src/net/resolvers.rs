//! The host's resolvers as they are now: a VPN, a new network or systemd-resolved change them while containers run.
//!
//! resolv.conf(5) is replaced by rename, and may be a link to a file that somebody else replaces. So what is watched is not
//! the file but the directories of the name and of each link on the way.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
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

/// A watch over the host's resolvers.
#[derive(Debug)]
pub struct Watch {
    inotify: Inotify,
    /// Names whose change matters, of the file and of links to it.
    names: BTreeSet<OsString>,
    known: Vec<SocketAddr>,
}

impl Watch {
    /// Begins to watch; `known` are the resolvers that the user of the watch knows of. `EMFILE` and `ENOSPC` where the user
    /// has as many watches as the kernel gives.
    pub fn new(known: &[SocketAddr]) -> Result<Self, SysError> {
        let flags = InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK;
        let inotify = Inotify::init(flags).call(|| "inotify_init1()".to_owned())?;
        let mut watch = Watch { inotify, names: BTreeSet::new(), known: known.to_vec() };
        watch.add_directories()?;
        Ok(watch)
    }

    /// The resolvers, when they are others than were known. Does not block.
    pub fn changed(&mut self) -> Option<&[SocketAddr]> {
        let mut events = Vec::new();
        while let Ok(more) = self.inotify.read_events() {
            events.extend(more);
        }
        // A queue that has run over says so without a name.
        if !events.is_empty()
            && !events.iter().any(|event| event.name.as_ref().is_none_or(|name| self.names.contains(name)))
        {
            return None;
        }
        // A link may lead elsewhere now. Without a watch there the next change goes unseen; this one is known.
        let _ = self.add_directories();
        let current = now();
        if current == self.known {
            return None;
        }
        self.known = current;
        Some(&self.known)
    }

    fn add_directories(&mut self) -> Result<(), SysError> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        let mut path = PathBuf::from(RESOLV_CONF);
        for _ in 0..LINKS_MAX {
            let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { break };
            self.inotify
                .add_watch(directory, changes | AddWatchFlags::IN_ONLYDIR)
                .call(|| format!("inotify_add_watch({directory:?})"))?;
            self.names.insert(name.to_owned());
            let Ok(target) = fs::read_link(&path) else { break };
            path = directory.join(target);
        }
        Ok(())
    }
}

impl AsFd for Watch {
    /// Becomes readable when [`changed`](Self::changed) has something to look at.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
