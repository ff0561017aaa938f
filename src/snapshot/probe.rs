//! Which driver this host offers for the root file systems of containers: tried, not guessed from version numbers.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use base::{Ladder, Trial};
use nix::fcntl::{Flock, FlockArg, OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, mkdtemp, unlinkat};
use sys::error::{Call, Errno, Result, SysError};
use sys::mount::{Attr, Change, FsContext, Propagation, attach};
use sys::namespace::{Extent, map_text};
use sys::path::proc_fd;
use sys::process::{self, Flags};
use sys::socket;

use crate::directory::Driver;
use crate::fs_mount;
use crate::tree_walk::remove_contents;

/// The directory of the trial of overlayfs, in the directory of the snapshots.
const NAME: &str = ".sublet-probe";

/// The same in a directory that is not ours: a name that nothing has, locked while the trial is made.
const TEMPLATE: &str = ".sublet-probe-XXXXXX";

/// On whose file system overlayfs is tried.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// The directory of the snapshots, made if need be. What a killed trial left there is removed.
    Snapshots(&'a Path),
    /// A directory that stands for it while it is not there: anybody's.
    Other(&'a Path),
}

/// Tries what the drivers need, each in namespaces made for it: a mount of FUSE, and one of the kernel's overlayfs with every
/// kind of change, over directories made at `place`, since it depends on that file system. `overlay` needs both, `fuse` and
/// `tree` one of them, `copy` neither. Takes some milliseconds. The caller must have one thread.
pub fn probe(place: Place<'_>) -> Ladder {
    let fuse = in_namespaces(mount_fuse).err();
    let overlay = overlay(place).err();
    let first = fuse.as_ref().or(overlay.as_ref());
    let fix = first.map(|error| fix_of(error, fuse.is_some()));
    let mut ladder = Ladder { part: "rootfs", trials: Vec::new(), chosen: None, fix };
    for driver in Driver::ALL {
        let failure = match driver {
            Driver::Overlay => first,
            Driver::Fuse => fuse.as_ref(),
            Driver::Tree => overlay.as_ref(),
            Driver::Copy => None,
        };
        let failure = failure.map(|error| format!("{error}: {}", error.cause));
        let holds = failure.is_none();
        ladder.trials.push(Trial { rung: driver.as_str(), failure });
        if holds {
            ladder.chosen = Some(driver.as_str());
            break;
        }
    }
    ladder
}

/// The answer of [`probe`] where overlayfs is known to work.
pub fn overlay_works() -> Ladder {
    let trials = vec![Trial { rung: "overlay", failure: None }];
    Ladder { part: "rootfs", trials, chosen: Some("overlay"), fix: None }
}

/// What helps against the failure of a trial, of FUSE or else of overlayfs.
fn fix_of(error: &SysError, is_fuse: bool) -> String {
    match error.errno() {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO if error.call.contains("/dev/fuse") => {
            "load the kernel module: modprobe fuse".to_owned()
        }
        _ if error.call.contains("/dev/fuse") => "let everyone use FUSE: chmod 0666 /dev/fuse".to_owned(),
        _ if is_fuse && !error.call.starts_with("clone3") => {
            "use Linux 5.2 or later, and no filter that refuses mounts".to_owned()
        }
        _ if error.call.starts_with("clone3") => {
            "allow user namespaces: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns"
                .to_owned()
        }
        Errno::ENODEV => "load the kernel module: modprobe overlay".to_owned(),
        _ => "use Linux 5.11 or later, and a local file system with user extended attributes for the data directory"
            .to_owned(),
    }
}

/// Makes a mount that nobody serves; it is gone with its last descriptor.
fn mount_fuse() -> Result<()> {
    let (device, mount) = fs_mount::detached(true)?;
    // First, so that nobody is asked to say goodbye.
    drop(device);
    drop(mount);
    Ok(())
}

fn overlay(place: Place<'_>) -> Result<()> {
    let path = match place {
        Place::Snapshots(path) | Place::Other(path) => path,
    };
    if matches!(place, Place::Snapshots(_)) {
        std::fs::create_dir_all(path).call(|| format!("mkdir -p {path:?}"))?;
    }
    let parent = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?})"))?;
    let Place::Snapshots(_) = place else {
        remove_left(parent.as_fd(), path);
        // Nobody's name is taken, and no lock of a directory that others may lock too.
        let (name, _held) = loop {
            let made = mkdtemp(&Path::new(OsStr::from_bytes(proc_fd(parent.as_fd()).to_bytes())).join(TEMPLATE))
                .call(|| format!("mkdtemp({:?})", path.join(TEMPLATE)))?;
            let name = PathBuf::from(made.file_name().unwrap_or_default());
            if let Some(held) = hold(parent.as_fd(), path, &name)? {
                break (name, held);
            }
        };
        return trial(parent.as_fd(), path, &name);
    };
    // One trial at a time, so that what is in its place was left by a killed one.
    let held = Flock::lock(parent, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .call(|| format!("flock({path:?}, LOCK_EX)"))?;
    let name = Path::new(NAME);
    match own_directory(held.as_fd(), path, name) {
        Err(error) if error.errno() == Errno::ENOENT => {}
        left => remove(held.as_fd(), path, name, left?.as_fd())?,
    }
    mkdirat(&*held, name, Mode::S_IRWXU).call(|| format!("mkdir({:?})", path.join(name)))?;
    trial(held.as_fd(), path, name)
}

/// Locks the directory of a trial; `None` when another trial has taken it for a left one, or is at work in it.
fn hold(parent: BorrowedFd<'_>, path: &Path, name: &Path) -> Result<Option<Flock<OwnedFd>>> {
    let dir = match own_directory(parent, path, name) {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(None),
        dir => dir?,
    };
    match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(fstat(&*held).is_ok_and(|stat| stat.st_nlink > 0).then_some(held)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).call(|| format!("flock({:?}, LOCK_EX|LOCK_NB)", path.join(name))),
    }
}

/// Removes what killed trials have left in a directory that is not ours. What resists is no obstacle.
fn remove_left(parent: BorrowedFd<'_>, path: &Path) {
    let prefix = TEMPLATE.trim_end_matches('X');
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let is_ours = |name: &PathBuf| {
        name.as_os_str().len() == TEMPLATE.len() && name.as_os_str().as_bytes().starts_with(prefix.as_bytes())
    };
    for name in entries.map(|entry| PathBuf::from(entry.file_name())).filter(is_ours) {
        if let Ok(Some(held)) = hold(parent, path, &name) {
            let _ = remove(parent, path, &name, held.as_fd());
        }
    }
}

/// Makes the trial in the new directory `name` of `parent`, which is at `path`, and removes it.
fn trial(parent: BorrowedFd<'_>, path: &Path, name: &Path) -> Result<()> {
    let dir = own_directory(parent, path, name)?;
    let made = ["lower", "lower/dir", "upper", "work", "merged"]
        .iter()
        .try_for_each(|one| mkdirat(&dir, *one, Mode::S_IRWXU))
        .and_then(|()| openat(&dir, "lower/file", OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC, Mode::S_IRWXU))
        .and_then(|file| nix::unistd::write(&file, b"x"))
        .call(|| format!("making files in {:?}", path.join(name)));
    let tried = made.and_then(|_| in_namespaces(|| mount_and_change(&path.join(name), dir.as_fd())));
    tried.and(remove(parent, path, name, dir.as_fd()))
}

/// Opens a directory of a trial: no link, and the caller's own.
fn own_directory(parent: BorrowedFd<'_>, path: &Path, name: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let call = || format!("open({:?})", path.join(name));
    let dir = openat(parent, name, flags, Mode::empty()).call(call)?;
    let owner = fstat(&dir).call(call)?.st_uid;
    if owner != nix::unistd::geteuid().as_raw() {
        return Err(SysError::new(format!("{}, which belongs to uid {owner}", call()), Errno::EPERM));
    }
    Ok(dir)
}

/// Removes a trial's directory, which is open as `dir`.
fn remove(parent: BorrowedFd<'_>, path: &Path, name: &Path, dir: BorrowedFd<'_>) -> Result<()> {
    remove_contents(dir)?;
    unlinkat(parent, name, UnlinkatFlags::RemoveDir).call(|| format!("rmdir({:?})", path.join(name)))
}

/// Runs a trial in a child with a user namespace of one id and a mount namespace.
fn in_namespaces(trial: impl FnOnce() -> Result<()>) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (ours, theirs) = socket::pair()?;
    let child = process::fork(Flags::NEWUSER | Flags::NEWNS, None, || {
        let tried = map_one(uid, gid).and_then(|()| trial());
        let text = tried.map_or_else(|error| error.to_message(), |()| b"ok".to_vec());
        i32::from(socket::send(theirs.as_fd(), &text, &[]).is_err())
    })?;
    drop(theirs);
    let mut message = [0; 4096];
    let answer = socket::receive(ours.as_fd(), &mut message);
    process::reap(child.pidfd.as_fd(), true)?;
    match &message[..answer?.0] {
        b"ok" => Ok(()),
        failure => Err(SysError::from_message(failure, "trial of a mount: the process died")),
    }
}

fn map_one(uid: u32, gid: u32) -> Result<()> {
    let one = |outside| map_text(&[Extent { inside: 0, outside, size: 1 }]);
    for (name, text) in [("setgroups", "deny".to_owned()), ("uid_map", one(uid)), ("gid_map", one(gid))] {
        let path = format!("/proc/self/{name}");
        std::fs::write(&path, &text).call(|| format!("write({path}, {text:?})"))?;
    }
    Ok(())
}

/// Copy-up, whiteout and opaque directory: what needs a working upper, not only a mount.
fn mount_and_change(path: &Path, outside: BorrowedFd<'_>) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty()).call(|| "open(\"/\")".to_owned())?;
    Change::set(Attr::empty()).propagation(Propagation::Slave).apply(root.as_fd(), true)?;
    // Again, since a mount takes only directories of its own mount namespace.
    let dir = open(path, flags, Mode::empty()).call(|| format!("open({path:?})"))?;
    let identity = |dir| fstat(dir).map(|stat| (stat.st_dev, stat.st_ino)).call(|| format!("fstat({path:?})"));
    if identity(dir.as_fd())? != identity(outside)? {
        return Err(SysError::new(format!("{path:?} was moved"), Errno::EAGAIN));
    }
    let directory =
        |name: &str| openat(&dir, name, flags, Mode::empty()).call(|| format!("open({:?})", path.join(name)));
    let (lower, upper, work, merged) =
        (directory("lower")?, directory("upper")?, directory("work")?, directory("merged")?);
    let mount = overlay_mount(lower.as_fd(), upper.as_fd(), work.as_fd())?;
    attach(mount.as_fd(), merged.as_fd())?;
    let merged = directory("merged")?;
    openat(&merged, "file", OFlag::O_WRONLY | OFlag::O_TRUNC | OFlag::O_CLOEXEC, Mode::empty())
        .and_then(|file| nix::unistd::write(&file, b"changed"))
        .call(|| "copy-up in overlayfs".to_owned())?;
    unlinkat(&merged, "file", UnlinkatFlags::NoRemoveDir).call(|| "whiteout in overlayfs".to_owned())?;
    unlinkat(&merged, "dir", UnlinkatFlags::RemoveDir).call(|| "whiteout in overlayfs".to_owned())?;
    mkdirat(&merged, "dir", Mode::S_IRWXU).call(|| "opaque directory in overlayfs".to_owned())
}

fn overlay_mount(lower: BorrowedFd<'_>, upper: BorrowedFd<'_>, work: BorrowedFd<'_>) -> Result<OwnedFd> {
    let context = FsContext::open(c"overlay")?;
    context.set(c"lowerdir", &proc_fd(lower))?;
    context.set(c"upperdir", &proc_fd(upper))?;
    context.set(c"workdir", &proc_fd(work))?;
    context.set(c"xino", c"on")?;
    context.set_flag(c"userxattr")?;
    context.mount(Attr::NODEV)
}
