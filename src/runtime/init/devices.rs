//! `/dev`: the six nodes that every program expects, as clones of the host's, and the customary links.
//!
//! A user namespace cannot make device nodes. The host's are opened without following links and must be the right
//! character device; where the specification binds a directory over `/dev`, nothing is made.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use oci_spec::runtime::Spec;
use sys::mount::{Attr, Change, attach, clone_mount};
use sys::path::{SELF, make_dirs_in, make_file_in};
use sys::{Call, Errno, SysError};

/// Name, major and minor number: Documentation/admin-guide/devices.txt of the kernel.
const NODES: [(&str, u64, u64); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 6] = [
    ("core", "/proc/kcore"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Fills the tmpfs that the specification has mounted on `/dev`.
pub fn make(spec: &Spec, root: BorrowedFd<'_>) -> Result<(), SysError> {
    let own_dev = spec
        .mounts()
        .iter()
        .flatten()
        .any(|mount| mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs"));
    if !own_dev {
        return Ok(());
    }
    for (name, major, minor) in NODES {
        let host = open_host(&format!("/dev/{name}"), major, minor)?;
        let clone = clone_mount(host.as_fd(), SELF, false)?;
        Change::set(Attr::NOSUID | Attr::NOEXEC).apply(clone.as_fd(), false)?;
        let target = make_file_in(root, &Path::new("/dev").join(name))?;
        attach(clone.as_fd(), target.as_fd())?;
    }
    let dev = make_dirs_in(root, Path::new("/dev"))?;
    for (name, to) in LINKS {
        // A kernel may be built without it.
        if name == "core" && !Path::new(to).exists() {
            continue;
        }
        match nix::unistd::symlinkat(to, dev.as_fd(), name) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(SysError::new(format!("symlinkat({to:?}, /dev/{name})"), errno)),
        }
    }
    Ok(())
}

/// Opens a device node of the host and proves that it is that device.
pub fn open_host(path: &str, major: u64, minor: u64) -> Result<std::os::fd::OwnedFd, SysError> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(path, flags, Mode::empty()).call(|| format!("open({path:?}, O_PATH|O_NOFOLLOW)"))?;
    let stat = fstat(&fd).call(|| format!("fstat({path:?})"))?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFCHR.bits() || stat.st_rdev != makedev(major, minor) {
        return Err(SysError::new(format!("{path} is not character device {major}:{minor}"), Errno::ENODEV));
    }
    Ok(fd)
}
