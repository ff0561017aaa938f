//! The native upper of a container: files of many owners become the user's and get their owners back.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, mknod};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use snapshot::native::{HostLower, Truth};
use snapshot::view_host::HostViewConfig;
use snapshot::{Driver, Meta, SnapshotError, native, owner_client};
use sys::xattr::{self, Existing};

use crate::Test;
use crate::support::{Outer, inside, lines};

pub const TESTS: &[Test] = &[
    ("owner_role_takes_back_and_restores", takes_back_and_restores),
    ("owner_role_survives_kill", survives_kill),
    ("owner_role_gives_many_files_back", gives_many_files_back),
    ("owner_role_leaves_a_tidy_tree_alone", leaves_a_tidy_tree_alone),
    ("native_remove_removes_what_belongs_to_others", removes_what_belongs_to_others),
    ("native_changes_against_the_host", changes_against_the_host),
];

/// `struct vfs_cap_data` of revision 2 with `cap_net_raw` permitted and effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// `u::rw-, u:5:r--, g::r--, m::r--, o::---` in the kernel's form, version 2.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 5, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4, 0,
    255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// A tree as a container leaves it: `copies` times one of everything that resists. With one id all of it is root's.
fn fill(outer: &Outer, upper: &Path, work: &Path, copies: usize) {
    let many = outer.ids.uids > 1;
    // Root's scratch directory is closed to the outer root, so by descriptor.
    let ((upper, _upper), (work, _work)) = (by_descriptor(upper), by_descriptor(work));
    let id = |id: u32| Some(if many { id } else { 0 });
    inside(&outer.user_namespace, None, || {
        nix::sys::stat::umask(Mode::empty());
        let mode = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        for copy in 0..copies {
            let top = upper.join(format!("copy{copy}"));
            std::fs::create_dir(&top).unwrap();
            for (name, bits, owner) in [
                ("closed", 0o000, 0),
                ("setid", 0o6755, 33),
                ("foreign", 0o640, 33),
                ("exec", 0o755, 70),
                ("no", 0, 70),
            ] {
                std::fs::write(top.join(name), name).unwrap();
                chown(top.join(name), id(owner), id(owner + 1)).unwrap();
                mode(&top.join(name), bits);
            }
            std::fs::hard_link(top.join("setid"), top.join("linked")).unwrap();
            symlink("/etc/shadow", top.join("link")).unwrap();
            lchown(top.join("link"), id(33), id(33)).unwrap();
            mknod(&top.join("whiteout"), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            mknod(&top.join("pipe"), SFlag::S_IFIFO, Mode::S_IRUSR, 0).unwrap();
            chown(top.join("pipe"), id(5), id(5)).unwrap();
            let capable = std::fs::File::open(top.join("exec")).unwrap();
            xattr::set(&capable, c"security.capability", &CAPABILITY, Existing::Any).unwrap();
            if many {
                let listed = std::fs::File::open(top.join("foreign")).unwrap();
                xattr::set(&listed, c"system.posix_acl_access", &ACL, Existing::Any).unwrap();
            }
            std::fs::create_dir_all(top.join("dir/private/inner")).unwrap();
            std::fs::write(top.join("dir/private/inner/file"), "deep").unwrap();
            chown(top.join("dir/private"), id(999), id(999)).unwrap();
            mode(&top.join("dir/private/inner"), 0);
            mode(&top.join("dir/private"), 0o2700);
            mode(&top.join("dir"), 0o555);
        }
        mode(&upper, 0o1777);
        if !work.join("work").exists() {
            std::fs::create_dir(work.join("work")).unwrap();
        }
        mode(&work.join("work"), 0);
    });
}

fn by_descriptor(dir: &Path) -> (PathBuf, OwnedFd) {
    let fd = OwnedFd::from(std::fs::File::open(dir).unwrap());
    (PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())), fd)
}

/// Everything about every file of the tree, as root of the outer user namespace sees it.
fn picture(outer: &Outer, upper: &Path) -> Vec<u8> {
    let seen = outer.scratch.path().join("seen");
    let mut out_file = std::fs::File::create(&seen).unwrap();
    let (upper, _upper) = by_descriptor(upper);
    inside(&outer.user_namespace, None, || {
        let script = "find . -printf '%p %y %m %U %G %s %n %l\\n' | sort; \
            find . -type f -exec cat {} + | cksum";
        let out = Command::new("sh").args(["-c", script]).current_dir(&upper).output().unwrap();
        out_file.write_all(&out.stdout).unwrap();
        for (name, attribute) in [("exec", c"security.capability"), ("foreign", c"system.posix_acl_access")] {
            let file = std::fs::File::open(upper.join("copy0").join(name)).unwrap();
            writeln!(out_file, "{name} {:?}", xattr::get(&file, attribute).unwrap()).unwrap();
        }
    });
    std::fs::read(seen).unwrap()
}

/// Every file belongs to us, every one of them can be read, and plain `rm -rf` removes a copy of everything.
pub fn assert_ours(dir: &Path) {
    let me = nix::unistd::getuid().to_string();
    let me_group = nix::unistd::getgid().to_string();
    let of_others = lines(Command::new("find").arg(dir).args(["!", "-uid", &me, "-o", "!", "-gid", &me_group]));
    assert_eq!(of_others, Vec::<String>::new());
    let shut = ["(", "-type", "f", "!", "-readable", ")", "-o", "(", "-type", "d", "!", "-executable", ")"];
    assert_eq!(lines(Command::new("find").arg(dir).args(shut)), Vec::<String>::new());
}

fn rm_rf(dir: &Path) {
    assert!(Command::new("rm").arg("-rf").arg(dir).status().unwrap().success());
    assert!(!dir.exists());
}

/// As the engine does: the container's root owns it.
fn prepare(outer: &Outer, key: &str) -> native::Native {
    let maps = (&outer.identity(), &outer.identity());
    native::prepare(
        Driver::Overlay,
        (&outer.scratch.path().join("snaps"), key),
        maps,
        Outer::container_root(),
        None,
        false,
    )
    .unwrap()
}

fn takes_back_and_restores(outer: &Outer) {
    let places = prepare(outer, "taken");
    let dir = places.upper.parent().unwrap();
    fill(outer, &places.upper, &places.work, 2);
    let before = picture(outer, &places.upper);
    owner_client::reclaim(outer.user_namespace.as_fd(), dir).unwrap();
    assert_ours(dir);
    assert_eq!(std::fs::read(places.upper.join("copy0/dir/private/inner/file")).unwrap(), b"deep");
    assert!(places.upper.join("copy1/whiteout").symlink_metadata().unwrap().file_type().is_char_device());
    assert!(String::from_utf8_lossy(&before).contains("exec Some([1, 0, 0, 2"));
    let log = std::fs::read(dir.join("owners")).unwrap();
    // Again: the same log, nothing to do.
    owner_client::reclaim(outer.user_namespace.as_fd(), dir).unwrap();
    assert_eq!(std::fs::read(dir.join("owners")).unwrap().len(), log.len());
    owner_client::restore(outer.user_namespace.as_fd(), dir).unwrap();
    assert_eq!(String::from_utf8_lossy(&picture(outer, &places.upper)), String::from_utf8_lossy(&before));
    assert!(!dir.join("owners").exists());
    owner_client::reclaim(outer.user_namespace.as_fd(), dir).unwrap();
    assert_ours(dir);
    rm_rf(dir);
}

/// Files that are given back at once; `cargo xtask bench owners` tells how long that takes.
const MANY: usize = 10_000;

fn gives_many_files_back(outer: &Outer) {
    let places = prepare(outer, "quick");
    let dir = places.upper.parent().unwrap();
    let (upper, _upper) = by_descriptor(&places.upper);
    let id = Some(if outer.ids.uids > 1 { 33 } else { 0 });
    inside(&outer.user_namespace, None, || {
        for number in 0..MANY {
            let file = upper.join(format!("{number}"));
            std::fs::write(&file, "").unwrap();
            chown(file, id, id).unwrap();
        }
    });
    let began = std::time::Instant::now();
    owner_client::reclaim(outer.user_namespace.as_fd(), dir).unwrap();
    let took = began.elapsed();
    println!("  {MANY} files were given back in {took:?}");
    assert_ours(dir);
    rm_rf(dir);
}

/// The pid of the role working on a snapshot.
fn pid_of_owner(key: &str) -> Option<i32> {
    lines(Command::new("pgrep").args(["-x", "-f", &format!("sublet-owner {key}")])).first()?.parse().ok()
}

fn survives_kill(outer: &Outer) {
    let places = prepare(outer, "killed");
    let dir = places.upper.parent().unwrap();
    fill(outer, &places.upper, &places.work, 300);
    let before = picture(outer, &places.upper);
    let outer_fd = outer.user_namespace.as_fd();
    let mut kills = 0;
    for (round, restore) in [(0_u64, false), (1, false), (2, false), (3, true), (4, false), (5, true), (6, false)] {
        // The client is a process of its own, since this one must go on to kill the role.
        let child = sys::process::fork(sys::process::Flags::empty(), None, || {
            let run = if restore { owner_client::restore } else { owner_client::reclaim };
            i32::from(run(outer_fd, dir).is_err())
        })
        .unwrap();
        while pid_of_owner("killed").is_none() && child_runs(child.pid) {}
        std::thread::sleep(std::time::Duration::from_millis(round * 7));
        if let Some(pid) = pid_of_owner("killed") {
            let killed = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            kills += u32::from(killed.is_ok());
        }
        sys::process::reap(child.pidfd.as_fd(), true).unwrap();
    }
    assert!(kills > 0);
    println!("  killed in the middle {kills} times");
    owner_client::reclaim(outer_fd, dir).unwrap();
    assert_ours(dir);
    owner_client::restore(outer_fd, dir).unwrap();
    assert_eq!(String::from_utf8_lossy(&picture(outer, &places.upper)), String::from_utf8_lossy(&before));
    owner_client::reclaim(outer_fd, dir).unwrap();
    rm_rf(dir);
}

fn child_runs(pid: i32) -> bool {
    let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT | WaitPidFlag::WEXITED;
    matches!(waitid(Id::Pid(nix::unistd::Pid::from_raw(pid)), flags), Ok(WaitStatus::StillAlive))
}

fn leaves_a_tidy_tree_alone(outer: &Outer) {
    let maps = (&outer.identity(), &outer.identity());
    let places =
        native::prepare(Driver::Overlay, (&outer.scratch.path().join("snaps"), "tidy"), maps, None, None, false)
            .unwrap();
    std::fs::create_dir(places.upper.join("dir")).unwrap();
    std::fs::write(places.upper.join("dir/file"), "x").unwrap();
    std::fs::set_permissions(places.upper.join("dir/file"), PermissionsExt::from_mode(0o4644)).unwrap();
    let dir = places.upper.parent().unwrap();
    owner_client::reclaim(outer.user_namespace.as_fd(), dir).unwrap();
    assert!(!dir.join("owners").exists());
    let mode = std::fs::metadata(places.upper.join("dir/file")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4644);
    rm_rf(dir);
}

fn removes_what_belongs_to_others(outer: &Outer) {
    let snaps = outer.scratch.path().join("snaps");
    let places = prepare(outer, "gone");
    fill(outer, &places.upper, &places.work, 2);
    let alone = snapshot::remove(&snaps, "gone", None);
    if outer.ids.uids > 1 && !nix::unistd::getuid().is_root() {
        assert!(matches!(alone, Err(SnapshotError::NeedsOuter { .. })), "{alone:?}");
        snapshot::remove(&snaps, "gone", Some(outer.user_namespace.as_fd())).unwrap();
    } else {
        alone.unwrap();
    }
    assert!(!snaps.join("gone").exists());
}

fn changes_against_the_host(outer: &Outer) {
    let upper = outer.scratch.path().join("host-upper");
    std::fs::create_dir_all(upper.join("etc/new")).unwrap();
    std::fs::create_dir_all(upper.join("tmp")).unwrap();
    std::fs::create_dir_all(upper.join("usr")).unwrap();
    for file in ["etc/group", "etc/new/file", "tmp/mine"] {
        std::fs::write(upper.join(file), "x").unwrap();
    }
    // Linux lets everybody make whiteouts.
    for gone in ["etc/passwd", "etc/never-there"] {
        mknod(&upper.join(gone), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
    }
    xattr::set(std::fs::File::open(upper.join("usr")).unwrap(), c"user.overlay.opaque", b"y", Existing::Any).unwrap();
    std::fs::create_dir(upper.join("usr/share")).unwrap();
    let config = HostViewConfig::new(outer.ids, false, &[]);
    let meta = Meta::new(Driver::Overlay, &outer.identity(), &outer.identity());
    let truth = Truth::read(outer.scratch.path(), &meta, None).unwrap();
    let changes = native::changes(&upper, &HostLower::open(&config).unwrap(), &truth, &|_| false).unwrap();
    let shown: Vec<String> = changes.iter().map(|it| format!("{:?} {}", it.kind, it.path.display())).collect();
    let (hidden, rest): (Vec<String>, Vec<String>) = shown.into_iter().partition(|it| it.starts_with("Deleted /usr/"));
    assert!(hidden.contains(&"Deleted /usr/bin".to_owned()) && !hidden.contains(&"Deleted /usr/share".to_owned()));
    let expected = [
        "Changed /etc",
        "Changed /etc/group",
        "Added /etc/new",
        "Added /etc/new/file",
        "Deleted /etc/passwd",
        "Changed /tmp",
        "Added /tmp/mine",
        "Changed /usr",
        "Changed /usr/share",
    ];
    assert_eq!(rest, expected);
}
