//! Makes the FUSE mount of a view in a mount namespace of its own, inside the outer user namespace.
//!
//! A superblock belongs to the user namespace of the process that opened `/dev/fuse`, and so do its owners and the right
//! to reach it (`allow_other` admits the members of that namespace and below). So a child process joins the outer user
//! namespace, has all capabilities there for these few calls, and hands back two descriptors: the connection, and the
//! mount namespace whose root the view is. The child ends; the server that keeps the descriptors never had a capability.
//! As long as the mount namespace's descriptor is open, the mount lives.
//!
//! The child also clones the mount of our own binary, read-only: the right to do that is what everybody else would have to
//! make a process and a namespace for. Containers' processes are executed from it (`runtime::own_binary`).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use sys::error::{Call, Result, SysError};
use sys::mount::{Attr, Change, FsContext, Propagation};
use sys::{namespace, process, socket};

/// What the child made.
#[derive(Debug)]
pub struct FuseMount {
    /// The connection: `/dev/fuse` with the view's requests.
    pub device: OwnedFd,
    /// A mount namespace whose root directory is the view.
    pub mount_namespace: OwnedFd,
    /// The running binary, read-only; `None` where its mount cannot be cloned.
    pub binary: Option<OwnedFd>,
}

/// Mounts FUSE in `user_namespace`, `read_only` for views. The caller must have one thread.
pub fn mount(user_namespace: BorrowedFd<'_>, read_only: bool) -> Result<FuseMount> {
    let (ours, childs) = socket::pair()?;
    let child = process::fork(process::Flags::empty(), None, || {
        let made = mount_in_child(user_namespace, read_only);
        let sent = match &made {
            Ok(made) => {
                let both = [made.device.as_fd(), made.mount_namespace.as_fd()];
                let fds: Vec<_> = both.into_iter().chain(made.binary.as_ref().map(AsFd::as_fd)).collect();
                socket::send(childs.as_fd(), b"ok", &fds)
            }
            Err(error) => socket::send(childs.as_fd(), &error.to_message(), &[]),
        };
        i32::from(made.is_err() || sent.is_err())
    })?;
    drop(childs);
    let mut message = [0; 4096];
    let answer = socket::receive(ours.as_fd(), &mut message);
    process::reap(child.pidfd.as_fd(), true)?;
    let (length, mut fds) = answer?;
    let binary = fds.drain(fds.len().min(2)..).next();
    match <[OwnedFd; 2]>::try_from(fds) {
        Ok([device, mount_namespace]) => Ok(FuseMount { device, mount_namespace, binary }),
        Err(_none) => {
            Err(SysError::from_message(&message[..length], "mount of a FUSE view: the process that mounts died"))
        }
    }
}

fn mount_in_child(user_namespace: BorrowedFd<'_>, read_only: bool) -> Result<FuseMount> {
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).call(|| "setns(outer user namespace)".to_owned())?;
    unshare(CloneFlags::CLONE_NEWNS).call(|| "unshare(CLONE_NEWNS)".to_owned())?;
    let mount_namespace = namespace::open_own("mnt")?;
    // While its path leads there: the view will cover it.
    let binary = sys::own_binary::read_only_clone().ok();
    let (device, mount) = detached(read_only)?;
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(\"/\")".to_owned())?;
    // The copies of the host's mounts stay below the view, where nobody sees them; leaving them by pivot_root(2) would
    // need a change into the view, which blocks until somebody answers its requests. So they must not
    // send this event anywhere, and must still follow the host's unmounts.
    Change::set(Attr::empty()).propagation(Propagation::Slave).apply(root.as_fd(), true)?;
    sys::mount::attach(mount.as_fd(), root.as_fd())?;
    Ok(FuseMount { device, mount_namespace, binary })
}

/// The connection and a mount that is attached nowhere, of the calling process's user namespace.
pub(crate) fn detached(read_only: bool) -> Result<(OwnedFd, OwnedFd)> {
    let device = nix::fcntl::open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(\"/dev/fuse\")".to_owned())?;
    let context = FsContext::open(c"fuse")?;
    let number = CString::new(device.as_raw_fd().to_string()).unwrap_or_default();
    for (key, value) in [
        (c"source", c"sublet"),
        (c"subtype", c"sublet"),
        (c"fd", number.as_c_str()),
        (c"rootmode", c"40000"),
        (c"user_id", c"0"),
        (c"group_id", c"0"),
    ] {
        context.set(key, value)?;
    }
    context.set_flag(c"allow_other")?;
    context.set_flag(c"default_permissions")?;
    if read_only {
        // Of the superblock, not only of the mount: else each read makes the kernel forget the access time, and the
        // next stat of the file asks us.
        context.set_flag(c"ro")?;
    }
    let attr = Attr::NODEV | if read_only { Attr::RDONLY } else { Attr::empty() };
    Ok((device, context.mount(attr)?))
}
