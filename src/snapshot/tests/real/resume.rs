//! `kill -9` of the server of a view while it is used: its successor goes on, and the user only waits.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::Signal;
use nix::sys::socket::SockFlag;
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use snapshot::fs_client::FsConnection;
use snapshot::fs_role::View;
use snapshot::view_host::HostViewConfig;
use sys::process::{self, Exit, Flags};
use sys::socket;
use sys::xattr::{self, Existing};

use crate::Test;
use crate::chain::{connect, image, mounted_at};
use crate::support::{self, Outer, clone_view, enter, keeper_of, kill, pid_of_server, server_of, until};

pub const TESTS: &[Test] = &[
    ("a_writer_does_not_notice_that_servers_are_killed", a_writer_does_not_notice),
    ("readers_do_not_notice_that_servers_are_killed", readers_do_not_notice),
    ("a_server_goes_on_without_its_keeper", goes_on_without_its_keeper),
    ("a_silent_client_holds_up_no_successor", a_silent_client_holds_up_no_successor),
    ("what_kills_every_server_ends_the_connection", what_kills_every_server_ends),
];

/// How often a server is killed under each user.
const KILLS: u64 = 50;

/// Whether there are successors here; else the skip is noted.
fn can_resume() -> bool {
    let can = support::can_resume();
    if !can {
        fixture::skip("before Linux 6.9 no request is sent again");
    }
    can
}

/// Runs `user` as root of the outer namespace with the mount somewhere, and kills the server at random moments meanwhile.
/// `user` goes on until it is told to stop.
fn beside_kills(outer: &Outer, key: &str, mount: &OwnedFd, at: &Path, user: impl FnOnce(&Path, &dyn Fn() -> bool)) {
    let (stop, told) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
    let mut told = Some(told);
    let child = process::fork(Flags::empty(), None, || {
        told = None;
        enter(outer, || {
            let mounted = mounted_at(mount, at);
            let goes_on = || nix::unistd::read(&stop, &mut [0]) == Err(Errno::EAGAIN);
            user(&mounted, &goes_on);
        })
    })
    .unwrap();
    let mut random = 0x9e37_79b9_u64;
    for kills in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(random >> 33 & 0x3_ffff));
        let ended = process::reap(child.pidfd.as_fd(), false).unwrap();
        assert_eq!(ended, None, "the user ended after {kills} kills");
        let server = server_of(key).unwrap();
        kill(server, Signal::SIGKILL);
        until("a successor", 10, || server_of(key).is_some_and(|successor| successor != server));
    }
    drop(told);
    assert_eq!(process::reap(child.pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at as u64).wrapping_mul(31).wrapping_add(seed) as u8).collect()
}

/// Each operation is one that must not be done twice, or whose effect is looked at; none may fail.
fn one_round(dir: &Path, round: u64, unlinked: &File) {
    let path = |kind: char, round: u64| dir.join(format!("{kind}{round}"));
    let (first, second) = (path('f', round), path('g', round));
    let data = pattern(round, 1000 + round as usize % 9000);
    fs::write(&first, &data).unwrap();
    fs::rename(&first, &second).unwrap();
    assert_eq!(fs::symlink_metadata(&first).unwrap_err().kind(), ErrorKind::NotFound);
    fs::hard_link(&second, &first).unwrap();
    assert_eq!(fs::metadata(&second).unwrap().nlink(), 2);
    fs::remove_file(&second).unwrap();
    let file = File::options().read(true).write(true).open(&first).unwrap();
    xattr::set(&file, c"user.once", b"value", Existing::Never).unwrap();
    xattr::remove(&file, c"user.once").unwrap();
    file.write_all_at(b"tail", data.len() as u64).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    let made = path('d', round);
    fs::create_dir(&made).unwrap();
    std::os::unix::fs::symlink("target", made.join("link")).unwrap();
    assert_eq!(fs::read_link(made.join("link")).unwrap(), Path::new("target"));
    fs::remove_file(made.join("link")).unwrap();
    fs::remove_dir(&made).unwrap();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR;
    let unnamed = File::from(nix::fcntl::open(dir, flags, Mode::from_bits_truncate(0o600)).unwrap());
    unnamed.write_all_at(&data, 0).unwrap();
    let source = format!("/proc/self/fd/{}", unnamed.as_raw_fd());
    linkat(AT_FDCWD, source.as_str(), AT_FDCWD, &path('t', round), AtFlags::AT_SYMLINK_FOLLOW).unwrap();
    unlinked.write_all_at(&round.to_le_bytes(), round % 512 * 8).unwrap();
    let mut back = vec![0; data.len()];
    drop_pages(&file);
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data, "round {round}");
    if let Some(old) = round.checked_sub(20) {
        assert_eq!(fs::read(path('t', old)).unwrap(), pattern(old, 1000 + old as usize % 9000));
        fs::remove_file(path('t', old)).unwrap();
        if old % 3 == 0 {
            fs::remove_file(path('f', old)).unwrap();
        }
    }
}

/// Has the next read ask the server.
fn drop_pages(file: &File) {
    // Pages that are not clean stay.
    file.sync_data().unwrap();
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn sizes(dir: &Path) -> BTreeMap<String, u64> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())
    };
    fs::read_dir(dir).unwrap().map(entry).collect()
}

fn a_writer_does_not_notice(outer: &Outer) {
    if !can_resume() {
        return;
    }
    let (image, key) = (image(outer, "resumed"), "resumed");
    let snaps = outer.scratch.path().join("snaps");
    let upper =
        || File::from(snapshot::own::prepare(&snaps, key, (&outer.identity(), &outer.identity()), true).unwrap());
    let view = View::Overlay { ids: outer.ids, volatile: true, shifted: false, size_bytes: None };
    let connection = connect(outer, &image, key, view.clone(), Some(&upper()));
    let (mount, at) = (clone_view(&connection), image.work.join("L2"));
    let told = image.work.join("rounds");
    beside_kills(outer, key, &mount, &at, |root, goes_on| {
        let dir = root.join("work");
        fs::create_dir(&dir).unwrap();
        // Open without a name over all kills; and a file of the image that was changed and removed.
        let unlinked = File::options().read(true).write(true).create_new(true).open(dir.join("gone")).unwrap();
        fs::remove_file(dir.join("gone")).unwrap();
        let lower = File::options().read(true).write(true).open(root.join("etc/conf.d/a")).unwrap();
        lower.write_all_at(b"CHANGED", 0).unwrap();
        fs::remove_file(root.join("etc/conf.d/a")).unwrap();
        let big = File::options().read(true).write(true).create_new(true).open(dir.join("big")).unwrap();
        let mut round = 0;
        while goes_on() {
            one_round(&dir, round, &unlinked);
            if round % 16 == 0 {
                let data = pattern(round, 3 << 20);
                big.write_all_at(&data, round / 16 % 4 * (3 << 20)).unwrap();
                drop_pages(&big);
                let mut back = vec![0; data.len()];
                big.read_exact_at(&mut back, round / 16 % 4 * (3 << 20)).unwrap();
                assert!(back == data, "the big file in round {round}");
            }
            round += 1;
        }
        assert!(round > 100, "{round} rounds in all");
        for slot in 0..512.min(round) {
            let last = (round - 1 - slot) / 512 * 512 + slot;
            let mut found = [0; 8];
            unlinked.read_exact_at(&mut found, slot * 8).unwrap();
            assert_eq!(u64::from_le_bytes(found), last, "slot {slot} of the unlinked file after {round} rounds");
        }
        let mut start = [0; 7];
        lower.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(&start, b"CHANGED");
        assert_eq!(lower.metadata().unwrap().nlink(), 0);
        assert_eq!(sizes(&dir), expected(round, big.metadata().unwrap().len()));
        fs::write(&told, round.to_string()).unwrap();
    });
    let round: u64 = fs::read_to_string(&told).unwrap().parse().unwrap();
    println!("  {round} rounds while {KILLS} servers were killed");
    drop((mount, connection));
    until("the server's end", 10, || pid_of_server(key).is_none());
    // The same from the log alone, and nothing of what had no name.
    let connection = connect(outer, &image, key, view, Some(&upper()));
    let mount = clone_view(&connection);
    let child = process::fork(Flags::empty(), None, || {
        enter(outer, || {
            let dir = mounted_at(&mount, &at).join("work");
            let found = sizes(&dir);
            assert_eq!(found, expected(round, found["big"]));
        })
    });
    assert_eq!(process::reap(child.unwrap().pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
    drop((mount, connection));
    until("the server's end", 10, || pid_of_server(key).is_none());
    let kept = |bucket: std::io::Result<fs::DirEntry>| fs::read_dir(bucket.unwrap().path()).unwrap().count();
    let files: usize = fs::read_dir(snaps.join(key).join("upper/up")).unwrap().map(kept).sum();
    assert_eq!(files, expected(round, 0).len(), "data files of what is there");
    snapshot::remove(&snaps, key, None).unwrap();
}

/// What is there after so many rounds.
fn expected(rounds: u64, big: u64) -> BTreeMap<String, u64> {
    let size = |round: u64| 1000 + round % 9000;
    let first = (0..rounds).filter(|round| round % 3 != 0 || round + 20 >= rounds);
    let first = first.map(|round| (format!("f{round}"), size(round) + 4));
    let unnamed = (rounds.saturating_sub(20)..rounds).map(|round| (format!("t{round}"), size(round)));
    first.chain(unnamed).chain([("big".to_owned(), big)]).collect()
}

fn readers_do_not_notice(outer: &Outer) {
    if !can_resume() {
        return;
    }
    let image = image(outer, "resumed-read");
    let at = image.work.join("L2");
    let read = |connection: FsConnection, key: &str, below: &str| {
        let mount = clone_view(&connection);
        beside_kills(outer, key, &mount, &at, |root, goes_on| {
            let below = root.join(below);
            let all: Vec<PathBuf> = fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().path()).collect();
            let files: Vec<(File, Vec<u8>)> = (all.iter().filter(|path| path.is_file()))
                .take(50)
                .map(|path| (File::open(path).unwrap(), fs::read(path).unwrap()))
                .collect();
            assert!(files.len() > 2, "{} files in {}", files.len(), below.display());
            let mut round = 0;
            while goes_on() {
                let (file, contents) = &files[round % files.len()];
                drop_pages(file);
                let mut back = vec![0; contents.len()];
                file.read_exact_at(&mut back, 0).unwrap();
                assert!(back == *contents, "round {round}");
                // Never asked before.
                let absent = fs::symlink_metadata(below.join(format!("absent-{round}"))).unwrap_err();
                assert_eq!(absent.kind(), ErrorKind::NotFound);
                assert!(nix::sys::statvfs::statvfs(&below).is_ok());
                assert!(file.metadata().unwrap().len() == contents.len() as u64);
                assert_eq!(fs::read_dir(&below).unwrap().count(), all.len());
                assert!(all[round % all.len()].symlink_metadata().is_ok());
                round += 1;
            }
        });
    };
    read(connect(outer, &image, "resumed-image", View::Chain { ids: outer.ids }, None), "resumed-image", "big");
    let host = View::Host(HostViewConfig::new(outer.ids, false, &[outer.scratch.path()]));
    read(connect(outer, &image, "resumed-host", host, None), "resumed-host", "usr/bin");
    for key in ["resumed-image", "resumed-host"] {
        until("the server's end", 10, || pid_of_server(key).is_none());
    }
}

fn goes_on_without_its_keeper(outer: &Outer) {
    let (image, key) = (image(outer, "kept"), "kept");
    let view = View::Chain { ids: outer.ids };
    let first = connect(outer, &image, key, view.clone(), None);
    let (mount, server) = (clone_view(&first), server_of(key).unwrap());
    kill(keeper_of(key).unwrap(), Signal::SIGKILL);
    let second = connect(outer, &image, key, view, None);
    assert_ne!(server_of(key), Some(server), "a later user has another server");
    let looks = |mount: &OwnedFd| {
        let child = process::fork(Flags::empty(), None, || {
            enter(outer, || {
                let root = mounted_at(mount, &image.work.join("L2"));
                assert_eq!(fs::read(root.join("etc/conf.d/a")).unwrap(), b"conf\n");
            })
        });
        assert_eq!(process::reap(child.unwrap().pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
    };
    looks(&mount);
    looks(&clone_view(&second));
    drop((mount, first, second));
    until("the servers' end", 10, || pid_of_server(key).is_none());
}

fn a_silent_client_holds_up_no_successor(outer: &Outer) {
    let (image, key) = (image(outer, "silent"), "silent");
    let view = View::Chain { ids: outer.ids };
    let user = connect(outer, &image, key, view.clone(), None);
    let server = server_of(key).unwrap();
    let directory = socket::open_directory(&outer.places().run.join(key)).unwrap();
    let silent = socket::seqpacket(SockFlag::empty()).unwrap();
    let address = socket::address_in(directory.as_fd(), "sock").unwrap();
    nix::sys::socket::connect(silent.as_raw_fd(), &address).unwrap();
    let began = Instant::now();
    drop(connect(outer, &image, key, view, None));
    kill(server, Signal::SIGKILL);
    until("a successor", 5, || server_of(key).is_some_and(|now| now != server));
    assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
    assert_eq!(socket::receive(silent.as_fd(), &mut [0; 16]).unwrap().0, 0, "nobody waits for it for ever");
    drop(user);
    until("the server's end", 10, || pid_of_server(key).is_none());
}

/// A request that kills who reads it would kill each successor too; and what a filter has killed is not trusted again.
fn what_kills_every_server_ends(outer: &Outer) {
    let image = image(outer, "poisoned");
    for (key, signal, at_least) in [("poisoned-kill", Signal::SIGKILL, 10), ("poisoned-sys", Signal::SIGSYS, 0)] {
        let connection = connect(outer, &image, key, View::Chain { ids: outer.ids }, None);
        let mount = clone_view(&connection);
        let (began, mut kills) = (Instant::now(), 0);
        // Faster than a look at all processes: a server that lives for long begins the count anew.
        let keeper = keeper_of(key).unwrap();
        while let Ok(servers) = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")) {
            // One that does not serve yet was not killed by a request.
            std::thread::sleep(Duration::from_millis(10));
            if let Ok(server) = servers.trim().parse() {
                kill(server, signal);
                kills += 1;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{key}: {kills} servers were killed");
        }
        assert!(kills > at_least, "{key}: {kills} servers were killed");
        let child = process::fork(Flags::empty(), None, || {
            enter(outer, || {
                let root = mounted_at(&mount, &image.work.join("L2"));
                let errno = fs::read_dir(root.join("etc")).unwrap_err().raw_os_error();
                assert!(matches!(errno, Some(nix::libc::ENOTCONN | nix::libc::ECONNABORTED)), "{errno:?}");
            })
        });
        assert_eq!(process::reap(child.unwrap().pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)));
    }
}
