//! An outer user namespace, scratch directories, and children inside namespaces.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use snapshot::fs_client::{FsConnection, FsPlaces};
use snapshot::ids::MappedIds;
use sys::mount::{Attr, Change, FsContext, Propagation};
use sys::namespace::{self, Extent, IdMap, map_text};
use sys::process::{self, Exit, Flags};

/// The block of ids that root maps.
const BLOCK: u32 = 1_200_000_000;

/// The outer user namespace of one test run, held by a descriptor.
pub struct Outer {
    /// Joined for every mount.
    pub user_namespace: OwnedFd,
    /// How many ids it maps.
    pub ids: MappedIds,
    /// Removed at the end.
    pub scratch: tempfile::TempDir,
}

impl Outer {
    /// Where the server `key` of the host's view lists what it shows empty.
    pub fn closed_list(&self, key: &str) -> File {
        let path = self.scratch.path().join(format!("{key}-closed"));
        File::options().read(true).append(true).create(true).open(path).unwrap()
    }

    /// Makes it as the engine does: by newuidmap with a subordinate range, with one id, or directly as root.
    pub fn make() -> Result<Outer, String> {
        File::options().read(true).write(true).open("/dev/fuse").map_err(|e| format!("/dev/fuse: {e}"))?;
        let child = process::fork(Flags::NEWUSER, None, || {
            nix::unistd::pause();
            0
        })
        .map_err(|error| format!("{error}: {}", error.cause))?;
        let proc = namespace::proc_dir(child.pid).map_err(|e| e.to_string())?;
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        let ids = match subordinate(uid) {
            _ if uid == 0 => {
                let map = map_text(&[Extent { inside: 0, outside: BLOCK, size: 65_536 }]);
                namespace::write_proc(proc.as_fd(), "uid_map", &map).map_err(|e| e.to_string())?;
                namespace::write_proc(proc.as_fd(), "gid_map", &map).map_err(|e| e.to_string())?;
                65_536
            }
            Some((first, count)) => {
                for (tool, id) in [("newuidmap", uid), ("newgidmap", gid)] {
                    let args = [child.pid.to_string(), format!("0 {id} 1 1 {first} {count}")];
                    let args: Vec<&str> = args.iter().flat_map(|part| part.split(' ')).collect();
                    let status = Command::new(tool).args(args).status().map_err(|e| format!("{tool}: {e}"))?;
                    assert!(status.success(), "{tool}");
                }
                count + 1
            }
            None => {
                let one = |id| map_text(&[Extent { inside: 0, outside: id, size: 1 }]);
                namespace::write_proc(proc.as_fd(), "setgroups", "deny").map_err(|e| e.to_string())?;
                namespace::write_proc(proc.as_fd(), "uid_map", &one(uid)).map_err(|e| e.to_string())?;
                namespace::write_proc(proc.as_fd(), "gid_map", &one(gid)).map_err(|e| e.to_string())?;
                1
            }
        };
        let user_namespace = namespace::open_namespace(proc.as_fd(), "user").map_err(|e| e.to_string())?;
        process::pidfd_send_signal(child.pidfd.as_fd(), nix::libc::SIGKILL).map_err(|e| e.to_string())?;
        process::reap(child.pidfd.as_fd(), true).map_err(|e| e.to_string())?;
        let scratch = tempfile::tempdir().map_err(|e| e.to_string())?;
        // The outer root, who is somebody else when we are root, works in there.
        std::fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o711)).map_err(|e| e.to_string())?;
        Ok(Outer { user_namespace, ids: MappedIds { uids: ids, gids: ids }, scratch })
    }

    /// Who owns a container's new directories, in our ids, when that is not us.
    pub fn container_root() -> Option<(u32, u32)> {
        nix::unistd::getuid().is_root().then_some((BLOCK, BLOCK))
    }

    /// The map of a container that has all ids as they are.
    pub fn identity(&self) -> IdMap {
        vec![Extent { inside: 0, outside: 0, size: self.ids.uids }]
    }

    /// Where the servers of this run are found.
    pub fn places(&self) -> FsPlaces<'_> {
        FsPlaces { run: self.scratch.path(), locks: self.scratch.path() }
    }
}

/// The user's range in /etc/subuid: first id and count.
fn subordinate(uid: u32) -> Option<(u32, u32)> {
    let name = nix::unistd::User::from_uid(uid.into()).ok()??.name;
    let text = std::fs::read_to_string("/etc/subuid").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")))?;
    let (first, count) = line.split_once(':')?;
    Some((first.parse().ok()?, count.trim().parse().ok()?))
}

/// Runs a closure as root of a user namespace, with the root directory of a mount namespace; a panic fails the test.
pub fn inside(user_namespace: &OwnedFd, mount_namespace: Option<&OwnedFd>, body: impl FnOnce()) {
    let child = process::fork(Flags::empty(), None, || {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            setns(user_namespace, CloneFlags::CLONE_NEWUSER).unwrap();
            // The real root's ids are not mapped; FUSE answers EOVERFLOW to whoever has none.
            nix::unistd::setgid(0.into()).unwrap();
            nix::unistd::setuid(0.into()).unwrap();
            if let Some(mount_namespace) = mount_namespace {
                setns(mount_namespace, CloneFlags::CLONE_NEWNS).unwrap();
            }
            body();
        }));
        i32::from(result.is_err())
    })
    .unwrap();
    assert_eq!(process::reap(child.pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
}

/// As [`inside`], in a new mount namespace whose mounts reach nobody, with directories that were opened there with our own
/// identity: overlayfs takes only those of its own mount namespace, and the way to them may be closed to others.
pub fn inside_with<const N: usize>(user_namespace: &OwnedFd, paths: [&Path; N], body: impl FnOnce([File; N])) {
    inside_beside(user_namespace, paths, body, || {});
}

/// The same, and we do something `beside` it meanwhile.
pub fn inside_beside<const N: usize>(
    user_namespace: &OwnedFd,
    paths: [&Path; N],
    body: impl FnOnce([File; N]),
    beside: impl FnOnce(),
) {
    let child = process::fork(Flags::empty(), None, || in_own_mounts(user_namespace, paths, body)).unwrap();
    beside();
    assert_eq!(process::reap(child.pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
}

/// The child of [`inside_with`], for who does something else beside it: the code that it ends with.
pub fn enter(outer: &Outer, body: impl FnOnce()) -> i32 {
    in_own_mounts(&outer.user_namespace, [], |[]| body())
}

fn in_own_mounts<const N: usize>(user_namespace: &OwnedFd, paths: [&Path; N], body: impl FnOnce([File; N])) -> i32 {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        setns(user_namespace, CloneFlags::CLONE_NEWUSER).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let root = File::open("/").unwrap();
        Change::set(Attr::empty()).propagation(Propagation::Private).apply(root.as_fd(), true).unwrap();
        let opened = paths.map(|path| File::open(path).unwrap());
        nix::unistd::setgid(0.into()).unwrap();
        nix::unistd::setuid(0.into()).unwrap();
        body(opened);
    }));
    i32::from(result.is_err())
}

/// The lines of a command's standard output, run in a root directory of its own.
pub fn lines(command: &mut Command) -> Vec<String> {
    // A view has no /dev/null to open for it.
    let out = command.stdin(std::process::Stdio::inherit()).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.lines().map(str::to_owned).collect()
}

/// Waits until `done` holds, at most `seconds`.
pub fn until(what: &str, seconds: u64, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed().as_secs() < seconds, "waited {seconds} s for {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whether a path exists, links not followed.
pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}

/// A detached clone of a view, made as the stage does: by a process that joins the view's mount namespace.
pub fn clone_view(connection: &FsConnection) -> OwnedFd {
    let (ours, theirs) = sys::socket::pair().unwrap();
    inside(&connection.user_namespace, Some(&connection.mount_namespace), || {
        let root = File::open("/").unwrap();
        let clone = sys::mount::clone_mount(root.as_fd(), c"", false).unwrap();
        sys::socket::send(theirs.as_fd(), b"clone", &[clone.as_fd()]).unwrap();
    });
    let (_, mut fds) = sys::socket::receive(ours.as_fd(), &mut [0; 16]).unwrap();
    fds.pop().unwrap()
}

/// The kernel's overlayfs as containers have it, detached.
pub fn overlay(lower: &Path, upper: &File, work: &File) -> OwnedFd {
    let context = FsContext::open(c"overlay").unwrap();
    let by_fd = |file: &File| sys::path::proc_fd(file.as_fd());
    context.set(c"lowerdir", &sys::path::c_path(lower).unwrap()).unwrap();
    context.set(c"upperdir", &by_fd(upper)).unwrap();
    context.set(c"workdir", &by_fd(work)).unwrap();
    context.set(c"xino", c"on").unwrap();
    context.set_flag(c"userxattr").unwrap();
    context.mount(Attr::NODEV).unwrap()
}

/// The server of a view, if it runs; or its keeper, if that does.
pub fn pid_of_server(key: &str) -> Option<i32> {
    server_of(key).or_else(|| processes_of(key).first().copied())
}

/// Keeper and server of a view, whichever run.
fn processes_of(key: &str) -> Vec<i32> {
    let found = lines(Command::new("pgrep").args(["-x", "-f", &format!("sublet-fs {key}")]));
    found.iter().filter_map(|pid| pid.parse().ok()).collect()
}

fn parent_of(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The server of a view, as its keeper's child.
pub fn server_of(key: &str) -> Option<i32> {
    let all = processes_of(key);
    all.iter().copied().find(|pid| parent_of(*pid).is_some_and(|parent| all.contains(&parent)))
}

/// The keeper of a view with a server.
pub fn keeper_of(key: &str) -> Option<i32> {
    parent_of(server_of(key)?)
}

/// Sends a signal to a process that may have ended.
pub fn kill(pid: i32, signal: Signal) {
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(errno) => panic!("kill({pid}, {signal}): {errno}"),
    }
}

/// Whether the kernel can send requests again (Linux 6.9). Without that there are no successors of servers.
pub fn can_resume() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut parts = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 9)
}

/// `kill -9` of the keeper of a view, and then of its server, which so gets no successor.
pub fn kill_role(key: &str) {
    let (keeper, server) = (keeper_of(key).unwrap(), server_of(key).unwrap());
    for pid in [keeper, server] {
        kill(pid, Signal::SIGKILL);
        until("the kill", 5, || !processes_of(key).contains(&pid));
    }
}
