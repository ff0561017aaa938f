//! What containers of an image have read is read ahead by the next server of its files.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::resume::{keys, roles};
use crate::support::{Home, LIMIT, Need, assert_sound, busybox, each_file, eventually, finish, skip};

const READ_BYTES: u64 = 8 << 20;
const UNREAD_BYTES: u64 = 6 << 20;
const BLOCK_BYTES: u64 = 32 << 10;

/// The object of this length.
fn object(home: &Home, length: u64) -> PathBuf {
    let mut found = Vec::new();
    each_file(&home.store().join("store/objects"), &mut |path, metadata| {
        if metadata.is_file() && metadata.len() == length {
            found.push(path.to_owned());
        }
    });
    let [object] = &found[..] else { panic!("objects of {length} bytes: {found:?}") };
    object.clone()
}

/// How many bytes of a file are in the page cache.
fn cached(path: &Path) -> u64 {
    let done = finish(Command::new("fincore").args(["-b", "-n", "-r", "-o", "RES"]).arg(path), b"", LIMIT);
    done.stdout.trim().parse().unwrap_or_else(|_| panic!("{done:#?}"))
}

fn drop_from_cache(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// The first block and the number of blocks of each run of a list; none while it is not there or is none.
fn runs(list: &Path) -> Vec<(u32, u32)> {
    let bytes = fs::read(list).unwrap_or_default();
    let runs = bytes.strip_prefix(b"SUBLETRD").and_then(|rest| rest.get(40..)).unwrap_or_default();
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    runs.chunks_exact(12).map(|run| (number(&run[4..8]), number(&run[8..]))).collect()
}

fn lists(home: &Home) -> Vec<PathBuf> {
    let entries = fs::read_dir(home.store().join("store/chains")).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "reads")).collect()
}

#[test]
fn what_was_read_is_read_ahead_by_the_next_server() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    if finish(Command::new("sh").args(["-c", "command -v fincore"]), b"", LIMIT).code != 0 {
        return skip("no program fincore");
    }
    let write = format!("head -c {READ_BYTES} /dev/urandom >/read; head -c {UNREAD_BYTES} /dev/urandom >/unread");
    home.ok(&["run", "--name", "maker", "--network", "none", &busybox(), "sh", "-c", &write]);
    home.ok(&["commit", "maker", "own"]);
    home.ok(&["rm", "maker"]);
    let before = keys(&home);
    let run = |command: &[&str]| {
        let options = ["run", "--rm", "--network", "none", "--storage-driver", "overlay", "own"];
        home.ok(&[&options[..], command].concat());
    };
    let whole = |bytes: u64| (0, (bytes / BLOCK_BYTES) as u32);
    run(&["sha256sum", "/read"]);
    let key = keys(&home).difference(&before).next().unwrap().clone();
    let list = home.store().join(format!("store/chains/{key}.reads"));
    eventually("what was read is listed", || runs(&list).contains(&whole(READ_BYTES)));
    assert!(!runs(&list).contains(&whole(UNREAD_BYTES)), "{:?}", runs(&list));
    assert_sound(&home, "with a list");

    // A server with an empty page cache, whose container asks for neither file.
    let (read, unread) = (object(&home, READ_BYTES), object(&home, UNREAD_BYTES));
    let end_servers = || {
        for pid in roles(&key) {
            // It may have ended with the one before.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        eventually("the end of the server", || roles(&key).is_empty());
    };
    end_servers();
    drop_from_cache(&read);
    drop_from_cache(&unread);
    if cached(&read) > 0 {
        return skip("the file system keeps in memory what it is told to drop");
    }
    run(&["true"]);
    eventually("what was read is in the page cache", || cached(&read) == READ_BYTES);
    assert_eq!(cached(&unread), 0);

    // What is damaged counts as none and is made anew.
    end_servers();
    fs::write(&list, "no list").unwrap();
    run(&["sha256sum", "/unread"]);
    eventually("a new list", || runs(&list).contains(&whole(UNREAD_BYTES)));
    assert!(!runs(&list).contains(&whole(READ_BYTES)));
    // More is added; what adds nothing leaves the list as it is.
    run(&["sha256sum", "/read"]);
    let both = || [READ_BYTES, UNREAD_BYTES].iter().all(|bytes| runs(&list).contains(&whole(*bytes)));
    eventually("both files in the list", both);
    let number = fs::metadata(&list).unwrap().ino();
    end_servers();
    run(&["sha256sum", "/read", "/unread"]);
    // Its keeper looks after the last user, so that the next one is let in after that.
    run(&["true"]);
    assert_eq!(fs::metadata(&list).unwrap().ino(), number);

    // A list that cannot be read is as one that is not there.
    end_servers();
    fs::set_permissions(&list, Permissions::from_mode(0o0)).unwrap();
    run(&["true"]);
    home.ok(&["rmi", "own", &busybox()]);
    eventually("no list is left", || lists(&home).is_empty());
}
