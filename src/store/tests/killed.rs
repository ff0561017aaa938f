//! What processes leave that are killed or run out of space. The test program runs itself again as the victim.
#![allow(clippy::unwrap_used, reason = "a store that fails fails the test")]

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use oci::Digest;
use store::{Durability, Store, StoreError};

const SIZE: u64 = 1 << 20;
const VICTIM: &str = "STORE_TEST_VICTIM";

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i % 251) as u8).collect()
}

/// Runs only in a child of one of the tests below, which names the store and the part to play.
#[test]
fn victim() {
    let Ok(part) = std::env::var(VICTIM) else { return };
    let (part, root) = part.split_once(' ').unwrap();
    let store = Store::open(Path::new(root), false).unwrap();
    let _lease = store.lease().unwrap();
    let digest = Digest::of(&content());
    let mut ingest = store.ingest(&digest, SIZE, |_| ControlFlow::Break(())).unwrap().unwrap();
    match part {
        "half" => {
            ingest.append(&content()[..SIZE as usize / 2]).unwrap();
            println!("\nready");
            std::io::stdout().flush().unwrap();
            std::thread::sleep(std::time::Duration::from_mins(1));
        }
        "limited" => {
            // The limit's signal would kill us instead of giving the errno.
            nix::sys::signal::SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
            setrlimit(Resource::RLIMIT_FSIZE, 300_000, 300_000).unwrap();
            let error = ingest.append(&content()).unwrap_err();
            assert!(matches!(error, StoreError::Full { .. }), "{error}");
            assert_eq!(ingest.offset(), 0, "what filled the disk is thrown away");
        }
        other => panic!("no part {other}"),
    }
}

fn play(part: &str, root: &Path) -> Child {
    let me = std::env::current_exe().unwrap();
    Command::new(me)
        .args(["victim", "--exact", "--nocapture"])
        .env(VICTIM, format!("{part} {}", root.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_download_is_resumed_and_its_lease_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = Store::open(&root, true).unwrap();
    let orphan = Digest::of(b"orphan");
    let mut child = play("half", &root);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "ready"));
    store.objects().put(&orphan, b"orphan", Durability::Later).unwrap();
    let sweep = || store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new())).unwrap();
    assert_eq!(sweep().objects, 0, "the victim's lease covers what is new, whoever made it");
    let digest = Digest::of(&content());
    let busy = store.ingest(&digest, SIZE, |waiting| {
        assert_eq!(waiting.done_bytes, SIZE / 2);
        ControlFlow::Break(())
    });
    assert!(matches!(busy, Err(StoreError::Cancelled { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut ingest = store.ingest(&digest, SIZE, |_| ControlFlow::Break(())).unwrap().unwrap();
    assert_eq!(ingest.offset(), SIZE / 2);
    ingest.append(&content()[SIZE as usize / 2..]).unwrap();
    ingest.commit(Durability::Later).unwrap();
    assert_eq!(sweep().objects, 1);
    assert_eq!(std::fs::read_dir(root.join("leases")).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_one_error_and_the_next_ingest_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let store = Store::open(&root, true).unwrap();
    assert!(play("limited", &root).wait().unwrap().success());
    let digest = Digest::of(&content());
    let mut ingest = store.ingest(&digest, SIZE, |_| ControlFlow::Break(())).unwrap().unwrap();
    assert_eq!(ingest.offset(), 0);
    ingest.append(&content()).unwrap();
    ingest.commit(Durability::Now).unwrap();
    assert!(store.blobs().has(&digest).unwrap());
}
