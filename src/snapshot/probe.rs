//! Which driver this host offers for the root file systems of containers: tried, not guessed from version numbers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use base::{Ladder, Trial};
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::stat::Mode;
use sys::error::{Call, Errno, Result, SysError};
use sys::mount::{Attr, Change, FsContext, Propagation, attach};
use sys::namespace::{Extent, map_text};
use sys::path::proc_fd;
use sys::process::{self, Flags};
use sys::socket;

use crate::tree_walk::remove_contents;

/// Where the trial of overlayfs is made, below the directory that is asked about.
const PLACE: &str = ".sublet-probe";

/// Tries the rungs `overlay` (a mount of the kernel's overlayfs, with every kind of change, in a user namespace made for
/// it, over directories made below `snaps`, since it depends on that file system) and `fuse`. Both serve the image by
/// FUSE. Takes some milliseconds. The caller must have one thread.
pub fn probe(snaps: &Path) -> Ladder {
    let overlay = fuse().and_then(|()| overlay(snaps)).err();
    let fuse = overlay.as_ref().and_then(|_| fuse().err());
    let fix = overlay.as_ref().map(fix_of);
    let words = |error: &SysError| format!("{error}: {}", error.cause);
    let mut trials = vec![Trial { rung: "overlay", failure: overlay.as_ref().map(words) }];
    let chosen = match (&overlay, &fuse) {
        (None, _) => Some("overlay"),
        (Some(_), None) => Some("fuse"),
        (Some(_), Some(_)) => None,
    };
    if overlay.is_some() {
        trials.push(Trial { rung: "fuse", failure: fuse.as_ref().map(words) });
    }
    Ladder { part: "rootfs", trials, chosen, fix }
}

/// The answer of [`probe`] where overlayfs is known to work.
pub fn overlay_works() -> Ladder {
    let trials = vec![Trial { rung: "overlay", failure: None }];
    Ladder { part: "rootfs", trials, chosen: Some("overlay"), fix: None }
}

fn fix_of(error: &SysError) -> String {
    match error.errno() {
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO if error.call.contains("/dev/fuse") => {
            "load the kernel module: modprobe fuse".to_owned()
        }
        _ if error.call.contains("/dev/fuse") => "let everyone use FUSE: chmod 0666 /dev/fuse".to_owned(),
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

fn fuse() -> Result<()> {
    open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map(drop)
        .call(|| "open(\"/dev/fuse\")".to_owned())
}

fn overlay(snaps: &Path) -> Result<()> {
    std::fs::create_dir_all(snaps).call(|| format!("mkdir -p {snaps:?}"))?;
    // One trial at a time, so that what is in its place was left by a killed one.
    let opened = directory(snaps)?;
    let _held = Flock::lock(opened, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .call(|| format!("flock({snaps:?}, LOCK_EX)"))?;
    let dir = snaps.join(PLACE);
    remove(&dir)?;
    std::fs::create_dir_all(dir.join("lower/dir")).call(|| format!("mkdir -p {dir:?}"))?;
    let made = ["upper", "work", "merged"]
        .iter()
        .try_for_each(|name| std::fs::create_dir(dir.join(name)))
        .and_then(|()| std::fs::write(dir.join("lower/file"), "x"))
        .call(|| format!("making directories in {dir:?}"));
    let tried = made.and_then(|()| in_namespaces(&dir));
    tried.and(remove(&dir))
}

fn directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?})"))
}

/// Removes a trial's directory, if it is there.
fn remove(dir: &Path) -> Result<()> {
    let opened = match directory(dir) {
        Err(error) if error.errno() == Errno::ENOENT => return Ok(()),
        opened => opened?,
    };
    remove_contents(opened.as_fd())?;
    std::fs::remove_dir(dir).call(|| format!("rmdir({dir:?})"))
}

/// Runs the trial in a child with a user namespace of one id and a mount namespace.
fn in_namespaces(dir: &Path) -> Result<()> {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let (ours, theirs) = socket::pair()?;
    let child = process::fork(Flags::NEWUSER | Flags::NEWNS, None, || {
        let tried = map_one(uid, gid).and_then(|()| mount_and_change(dir));
        let text = match tried {
            Ok(()) => "ok".to_owned(),
            Err(error) => format!("{}\n{}", error.errno() as i32, error.call),
        };
        i32::from(socket::send(theirs.as_fd(), text.as_bytes(), &[]).is_err())
    })?;
    drop(theirs);
    let mut message = [0; 4096];
    let answer = socket::receive(ours.as_fd(), &mut message);
    process::reap(child.pidfd.as_fd(), true)?;
    match &message[..answer?.0] {
        b"ok" => Ok(()),
        text => {
            let text = String::from_utf8_lossy(text);
            let (errno, call) = text.split_once('\n').unwrap_or(("0", "trial of overlayfs: the process died"));
            Err(SysError::new(call, errno.parse().map_or(Errno::EIO, Errno::from_raw)))
        }
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
fn mount_and_change(dir: &Path) -> Result<()> {
    let directory = |name: &str| {
        let path = dir.join(name);
        open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .call(|| format!("open({path:?})"))
    };
    let root = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .call(|| "open(\"/\")".to_owned())?;
    Change::set(Attr::empty()).propagation(Propagation::Slave).apply(root.as_fd(), true)?;
    let (lower, upper, work, merged) =
        (directory("lower")?, directory("upper")?, directory("work")?, directory("merged")?);
    let mount = overlay_mount(lower.as_fd(), upper.as_fd(), work.as_fd())?;
    attach(mount.as_fd(), merged.as_fd())?;
    let merged = dir.join("merged");
    std::fs::write(merged.join("file"), "changed").call(|| "copy-up in overlayfs".to_owned())?;
    std::fs::remove_file(merged.join("file")).call(|| "whiteout in overlayfs".to_owned())?;
    std::fs::remove_dir(merged.join("dir")).call(|| "whiteout in overlayfs".to_owned())?;
    std::fs::create_dir(merged.join("dir")).call(|| "opaque directory in overlayfs".to_owned())
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
