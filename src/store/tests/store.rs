//! The store through its public face, on real files.
#![allow(clippy::unwrap_used, reason = "a store that fails fails the test")]

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use base::{Explain, Kind};
use oci::{ChainId, DiffId, Digest, media};
use store::{Durability, Family, ImageRecord, Leftovers, Published, Store, StoreError, Swept, Waiting};

fn new_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), true).unwrap();
    (dir, store)
}

fn never_wait(_: Waiting) -> ControlFlow<()> {
    panic!("nobody else is here");
}

fn fetch(store: &Store, content: &[u8]) -> Digest {
    let digest = Digest::of(content);
    if let Some(mut ingest) = store.ingest(&digest, content.len() as u64, never_wait).unwrap() {
        ingest.append(content).unwrap();
        ingest.commit(Durability::Later).unwrap();
    }
    digest
}

fn sweep(store: &Store) -> Swept {
    store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new())).unwrap()
}

/// An image with one layer, whose index names one object, under the name `text`.
fn image(store: &Store, text: &str) -> (ImageRecord, DiffId, Digest) {
    let layer = fetch(store, format!("layer of {text}").as_bytes());
    let diff = DiffId(Digest::of(format!("tar of {text}").as_bytes()));
    let config =
        format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#);
    let config_digest = fetch(store, config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"x","digest":"{layer}","size":1}}]}}"#,
        media::OCI_CONFIG,
        config.len()
    );
    let manifest = fetch(store, manifest.as_bytes());
    let object = format!("file of {text}");
    let object_digest = Digest::of(object.as_bytes());
    store.objects().put(&object_digest, object.as_bytes(), Durability::Later).unwrap();
    store.layers().put(&diff.0, b"index", Durability::Later).unwrap();
    let chain = ChainId::of(&[diff]).unwrap();
    store.chains().put(&chain.0, b"merged", Durability::Later).unwrap();
    let record = ImageRecord {
        reference: text.parse().unwrap(),
        digest: manifest,
        media_type: media::OCI_MANIFEST.to_owned(),
        manifest,
        config: config_digest,
        chain: Some(chain),
        updated_s: 1,
        made_here: false,
        source: None,
        summary: None,
    };
    store.sync().unwrap();
    store.lock_names().unwrap().put(&record).unwrap();
    (record, diff, object_digest)
}

#[test]
fn a_store_knows_what_it_is() {
    let (dir, store) = new_store();
    let root = dir.path().join("store");
    drop(store);
    Store::open(&root, false).unwrap();
    for entry in ["format", "ingest", "blobs/sha256", "objects", "layers", "chains", "refs", "leases", "trash"] {
        let meta = std::fs::metadata(root.join(entry)).unwrap();
        assert_eq!(meta.permissions().mode() & 0o077, 0, "{entry} is for its owner only");
    }
    std::fs::write(root.join("format"), r#"{"version":3,"words":["more"]}"#).unwrap();
    let error = Store::open(&root, true).unwrap_err();
    assert!(matches!(error, StoreError::Version { version: 3, .. }));
    assert_eq!(error.kind(), Kind::Unsupported);
    std::fs::write(root.join("format"), "garbage").unwrap();
    assert!(matches!(Store::open(&root, true), Err(StoreError::Corrupt { .. })));
    let strange = dir.path().join("home");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("thesis.tex"), "").unwrap();
    assert!(matches!(Store::open(&strange, true), Err(StoreError::NotAStore { .. })));
    assert!(matches!(Store::open(&dir.path().join("none"), false), Err(StoreError::Absent { .. })));
}

#[test]
fn content_is_published_once_and_read_only() {
    let (dir, store) = new_store();
    let digest = Digest::of(b"abc");
    assert!(!store.objects().has(&digest).unwrap());
    let mut new = store.objects().create().unwrap();
    new.write_all(b"abc").unwrap();
    assert_eq!(store.objects().publish(new, &digest, Durability::Later).unwrap(), Published::New);
    assert_eq!(store.objects().put(&digest, b"abc", Durability::Now).unwrap(), Published::Existed);
    let path = dir.path().join("store/objects").join(store.objects().path_of(&digest));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o222, 0);
    assert_eq!(store.objects().read(&digest, 3).unwrap(), b"abc");
    assert!(matches!(store.objects().read(&digest, 2), Err(StoreError::TooLarge { .. })));
    assert!(matches!(store.objects().read(&Digest::of(b""), 2), Err(StoreError::Missing { .. })));
    assert_eq!(store.objects().list().unwrap(), [digest]);
    drop(store.objects().create().unwrap());
    assert_eq!(
        std::fs::read_dir(dir.path().join("store/objects")).unwrap().count(),
        1,
        "nothing is left of a dropped file"
    );
}

#[test]
fn content_cut_short_by_a_power_loss_is_replaced() {
    let (dir, store) = new_store();
    let digest = Digest::of(b"whole");
    store.objects().put(&digest, b"whole", Durability::Later).unwrap();
    let path = dir.path().join("store/objects").join(store.objects().path_of(&digest));
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::write(&path, b"wh").unwrap();
    assert!(!store.objects().claim(&digest, 5).unwrap());
    assert_eq!(store.objects().put(&digest, b"whole", Durability::Later).unwrap(), Published::New);
    assert_eq!(store.objects().read(&digest, 9).unwrap(), b"whole");
}

#[test]
fn an_interrupted_ingest_goes_on() {
    let (_dir, store) = new_store();
    let digest = Digest::of(b"0123456789");
    let mut first = store.ingest(&digest, 10, never_wait).unwrap().unwrap();
    first.append(b"0123").unwrap();
    drop(first);
    let mut second = store.ingest(&digest, 10, never_wait).unwrap().unwrap();
    assert_eq!(second.offset(), 4);
    let mut so_far = String::new();
    second.reader().unwrap().read_to_string(&mut so_far).unwrap();
    assert_eq!(so_far, "0123");
    second.append(b"456789").unwrap();
    second.commit(Durability::Now).unwrap();
    assert_eq!(store.blobs().read(&digest, 10).unwrap(), b"0123456789");
    assert!(store.ingest(&digest, 10, never_wait).unwrap().is_none(), "it is there now");
}

#[test]
fn wrong_bytes_are_thrown_away_and_missing_ones_are_not() {
    let (dir, store) = new_store();
    let digest = Digest::of(b"right");
    let mut ingest = store.ingest(&digest, 5, never_wait).unwrap().unwrap();
    assert!(matches!(ingest.append(b"too long"), Err(StoreError::Size { .. })));
    ingest.append(b"wrong").unwrap();
    let error = ingest.commit(Durability::Later).unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }));
    assert_eq!(error.kind(), Kind::Remote);
    let mut ingest = store.ingest(&digest, 5, never_wait).unwrap().unwrap();
    assert_eq!(ingest.offset(), 0);
    ingest.append(b"ri").unwrap();
    assert!(matches!(ingest.commit(Durability::Later), Err(StoreError::Size { found_bytes: 2, .. })));
    assert_eq!(store.ingest(&digest, 5, never_wait).unwrap().unwrap().offset(), 2);
    assert!(store.blobs().list().unwrap().is_empty());
    assert!(dir.path().join("store/ingest").join(digest.hex()).exists());
}

#[test]
fn the_second_fetcher_waits_and_finds_it_done() {
    let (dir, store) = new_store();
    let (waits, waiting) = std::sync::mpsc::channel();
    let content = vec![7; 100_000];
    let digest = Digest::of(&content);
    let mut first = store.ingest(&digest, 100_000, never_wait).unwrap().unwrap();
    first.append(&content[..50_000]).unwrap();
    let root = dir.path().join("store");
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            let store = Store::open(&root, false).unwrap();
            let mut seen = Vec::new();
            let done = store.ingest(&digest, 100_000, |waiting| {
                seen.push(waiting.done_bytes);
                let _first_was_enough = waits.send(());
                ControlFlow::Continue(())
            });
            (done.unwrap().is_none(), seen)
        });
        waiting.recv().unwrap();
        let impatient = store.ingest(&digest, 100_000, |_| ControlFlow::Break(()));
        assert!(matches!(impatient, Err(StoreError::Cancelled { .. })));
        first.append(&content[50_000..]).unwrap();
        first.commit(Durability::Later).unwrap();
        let (done, seen) = second.join().unwrap();
        assert!(done);
        assert_eq!(seen.first(), Some(&50_000));
    });
    assert_eq!(std::fs::read_dir(root.join("ingest")).unwrap().count(), 0);
}

#[test]
fn many_fetchers_of_one_blob_write_it_once() {
    let (dir, _store) = new_store();
    let root = dir.path().join("store");
    let content = vec![9; 1 << 20];
    let digest = Digest::of(&content);
    let writers = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open(&root, false).unwrap();
                let keep_waiting = |_| ControlFlow::Continue(());
                if let Some(mut ingest) = store.ingest(&digest, content.len() as u64, keep_waiting).unwrap() {
                    writers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    content.chunks(10_000).for_each(|chunk| ingest.append(chunk).unwrap());
                    ingest.commit(Durability::Later).unwrap();
                }
                assert_eq!(store.blobs().size(&digest).unwrap(), Some(1 << 20));
            });
        }
    });
    assert_eq!(writers.into_inner(), 1);
}

#[test]
fn names_are_set_replaced_listed_and_removed() {
    let (dir, store) = new_store();
    let (record, ..) = image(&store, "debian");
    image(&store, "localhost:5000/a/b:1");
    assert_eq!(record.reference.tag(), None);
    let found = store.image(&"docker.io/library/debian:latest".parse().unwrap()).unwrap().unwrap();
    assert_eq!((found.config, found.reference.tag()), (record.config, Some("latest")));
    store.lock_names().unwrap().put(&ImageRecord { updated_s: 2, ..record.clone() }).unwrap();
    let names: Vec<String> = store.images().unwrap().iter().map(|image| image.reference.familiar()).collect();
    assert_eq!(names, ["debian:latest", "localhost:5000/a/b:1"]);
    assert_eq!(store.image(&record.reference).unwrap().unwrap().updated_s, 2);
    assert!(store.lock_names().unwrap().remove(&record.reference).unwrap());
    assert!(!store.lock_names().unwrap().remove(&record.reference).unwrap());
    let file = std::fs::read_dir(dir.path().join("store/refs")).unwrap().next().unwrap().unwrap();
    std::fs::write(file.path(), "{").unwrap();
    assert_eq!(store.images().unwrap(), Vec::new(), "it is passed over");
    assert!(matches!(store.named_content(), Err(StoreError::Corrupt { .. })));
    assert!(store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new())).is_err(), "an unreadable name deletes nothing");
    assert!(!store.blobs().list().unwrap().is_empty());
}

#[test]
fn a_sweep_takes_what_nothing_leads_to_and_only_that() {
    let (_dir, store) = new_store();
    let (kept, kept_diff, kept_object) = image(&store, "kept");
    let (gone, gone_diff, gone_object) = image(&store, "gone");
    store.lock_names().unwrap().remove(&gone.reference).unwrap();
    let mut objects = |diff| Ok(vec![if diff == kept_diff { kept_object } else { gone_object }]);
    let swept = store.gc(&mut || Ok(vec![gone.manifest]), &mut objects).unwrap();
    assert_eq!(swept, Swept::default(), "a container's image is no garbage");
    let swept = store.gc(&mut || Ok(Vec::new()), &mut objects).unwrap();
    assert_eq!((swept.blobs.len(), swept.layers, swept.objects), (3, vec![gone_diff], 1));
    assert!(swept.freed_bytes > 0);
    assert_eq!(store.chains().list().unwrap(), [kept.chain.unwrap().0]);
    for digest in [kept.manifest, kept.config] {
        assert!(store.blobs().has(&digest).unwrap());
    }
    assert!(store.objects().has(&kept_object).unwrap() && !store.objects().has(&gone_object).unwrap());
    let failing = store.gc(&mut || Ok(Vec::new()), &mut |_| Err(std::io::Error::other("unreadable index")));
    assert!(failing.is_err());
    assert!(store.objects().has(&kept_object).unwrap(), "an unreadable index deletes nothing");
}

fn make_old(path: &Path) {
    std::fs::File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
}

#[test]
fn a_lease_covers_what_is_published_claimed_and_pinned() {
    let (dir, store) = new_store();
    let root = dir.path().join("store");
    let contents: [&[u8]; 4] = [b"claimed", b"pinned", b"neither", b"new"];
    let digests = contents.map(Digest::of);
    for (content, digest) in contents.iter().zip(digests).take(3) {
        fetch(&store, content);
        make_old(&root.join("blobs/sha256").join(store.blobs().path_of(&digest)));
    }
    let mut lease = store.lease().unwrap();
    assert!(store.blobs().claim(&digests[0], 7).unwrap());
    lease.pin(&[digests[1]]).unwrap();
    fetch(&store, b"new");
    let other = Store::open(&root, false).unwrap();
    assert_eq!(sweep(&other).blobs, [digests[2]]);
    drop(lease);
    assert_eq!(sweep(&other).blobs.len(), 3, "with the lease its cover ends");
    assert_eq!(std::fs::read_dir(root.join("leases")).unwrap().count(), 0);
}

#[test]
fn a_reader_brings_back_what_a_sweep_has_put_aside() {
    let (dir, store) = new_store();
    let digest = fetch(&store, b"wanted");
    let root = dir.path().join("store");
    let place = root.join("blobs/sha256").join(store.blobs().path_of(&digest));
    std::fs::rename(&place, root.join(format!("trash/blobs-{}", digest.hex()))).unwrap();
    assert_eq!(store.blobs().read(&digest, 9).unwrap(), b"wanted");
    assert!(place.exists());
    std::fs::rename(&place, root.join(format!("trash/blobs-{}", digest.hex()))).unwrap();
    assert_eq!(sweep(&store).blobs, [digest], "what a killed sweep left is taken by the next");
}

#[test]
fn publishing_beside_sweeps_loses_nothing() {
    let (dir, _store) = new_store();
    let root = dir.path().join("store");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open(&root, false).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                sweep(&store);
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let root = &root;
                scope.spawn(move || {
                    let store = Store::open(root, false).unwrap();
                    for round in 0..60 {
                        // Both writers share contents, so that each meets what the other's dead rounds left.
                        let lease = store.lease().unwrap();
                        let contents: Vec<Vec<u8>> =
                            (0..8).map(|i| format!("{}", (round + i) % 13).into_bytes()).collect();
                        for content in &contents {
                            store.objects().put(&Digest::of(content), content, Durability::Later).unwrap();
                        }
                        for content in &contents {
                            let found = store.objects().read(&Digest::of(content), 9);
                            assert_eq!(found.unwrap(), *content, "writer {writer}, round {round}");
                        }
                        drop(lease);
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for result in results {
            result.unwrap();
        }
    });
}

#[test]
fn every_file_is_the_callers() {
    let (dir, store) = new_store();
    image(&store, "debian");
    let user = nix::unistd::geteuid().as_raw();
    let mut pending = vec![dir.path().to_owned()];
    while let Some(path) = pending.pop() {
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(meta.uid(), user, "{}", path.display());
        if meta.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// Who claims an index from the trash after the last mark has read the leases keeps what the index names, whether its lease
/// is younger than that mark or had no pins yet.
#[test]
fn who_claims_an_index_from_the_trash_gets_its_objects_too() {
    for has_lease_before in [false, true] {
        let (dir, store) = new_store();
        let (record, diff, object) = image(&store, "gone");
        store.lock_names().unwrap().remove(&record.reference).unwrap();
        for family in Family::ALL {
            let shelf = store.shelf(family);
            for digest in shelf.list().unwrap() {
                make_old(&shelf.dir().path().join(shelf.path_of(&digest)));
            }
        }
        let other = Store::open(&dir.path().join("store"), false).unwrap();
        let mut asked = 0;
        let mut lease = has_lease_before.then(|| other.lease().unwrap());
        let mut roots = || {
            asked += 1;
            // The second mark has read the leases by now, and everything is in the trash.
            if asked == 2 {
                let lease = lease.get_or_insert_with(|| other.lease().unwrap());
                lease.pin(&[diff.0]).unwrap();
                assert!(!dir.path().join("store/layers").join(other.layers().path_of(&diff.0)).exists());
                assert!(other.layers().claim(&diff.0, 5).unwrap());
            }
            Ok(Vec::new())
        };
        let swept = store.gc(&mut roots, &mut |_| Ok(vec![object])).unwrap();
        assert!(store.layers().has(&diff.0).unwrap() && store.objects().has(&object).unwrap(), "{swept:?}");
        assert_eq!((asked, swept.objects, swept.blobs.len()), (3, 0, 3));
        drop(lease);
        assert_eq!(sweep(&store).layers, [diff]);
    }
}

/// An index that came into its place while its objects were in the trash, and is nobody's any more, goes with them.
#[test]
fn no_index_stays_whose_objects_are_swept() {
    let (dir, store) = new_store();
    let (record, diff, object) = image(&store, "gone");
    store.lock_names().unwrap().remove(&record.reference).unwrap();
    let other = Store::open(&dir.path().join("store"), false).unwrap();
    let mut asked = 0;
    let mut roots = || {
        asked += 1;
        if asked == 2 {
            let lease = other.lease().unwrap();
            assert!(other.layers().claim(&diff.0, 5).unwrap());
            drop(lease);
        }
        Ok(Vec::new())
    };
    let swept = store.gc(&mut roots, &mut |_| Ok(vec![object])).unwrap();
    assert_eq!((swept.objects, &*swept.layers), (1, &[diff][..]));
    assert!(!store.layers().has(&diff.0).unwrap() && !store.objects().has(&object).unwrap());
}

#[test]
fn an_eviction_spares_what_a_command_works_with() {
    let (dir, store) = new_store();
    let contents: [&[u8]; 3] = [b"claimed", b"pinned", b"neither"];
    let digests = contents.map(Digest::of);
    for (content, digest) in contents.iter().zip(digests) {
        fetch(&store, content);
        make_old(&dir.path().join("store/blobs/sha256").join(store.blobs().path_of(&digest)));
    }
    let victims = |found: &[Digest]| -> Vec<_> {
        found.iter().map(|digest| (Family::Blobs, store.blobs().stored(digest).unwrap().unwrap())).collect()
    };
    let before = victims(&digests);
    let mut lease = store.lease().unwrap();
    lease.pin(&[digests[1]]).unwrap();
    assert!(store.blobs().claim(&digests[0], 7).unwrap());
    let evicted = store.evict(&victims(&digests)).unwrap();
    assert!(evicted.count == 1 && evicted.freed_bytes > 0, "{evicted:?}");
    assert!(!store.blobs().has(&digests[2]).unwrap());
    drop(lease);
    // The first was claimed since it was looked at: that its user has ended does not make it a victim.
    assert_eq!(store.evict(&before[..1]).unwrap().count, 0);
    assert_eq!(store.evict(&victims(&digests[..2])).unwrap().count, 2);
    assert!(store.blobs().list().unwrap().is_empty());
}

#[test]
fn stores_by_name_have_their_own_names_over_the_same_content() {
    let (dir, store) = new_store();
    let root = dir.path().join("store");
    let (record, _, object) = image(&store, "debian");
    let sweep = |store: &Store| store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(vec![object])).unwrap();
    assert!(matches!(Store::open(&root, false).unwrap().named("ci", false), Err(StoreError::Absent { .. })));
    assert!(std::fs::read_to_string(root.join("format")).unwrap().contains('1'));
    let ci = Store::open(&root, false).unwrap().named("ci", true).unwrap();
    assert!(std::fs::read_to_string(root.join("format")).unwrap().contains('2'), "an older engine must not sweep here");
    assert_eq!((ci.images().unwrap().len(), ci.blobs().has(&record.config).unwrap()), (0, true));
    ci.lock_names().unwrap().put(&record).unwrap();
    assert!(store.lock_names().unwrap().remove(&record.reference).unwrap());
    assert_eq!(sweep(&store), Swept::default(), "the other store's name keeps it");
    assert_eq!(ci.images().unwrap().len(), 1);
    let names: Vec<_> = store.all_names().unwrap().into_iter().map(|name| name.store).collect();
    assert_eq!(names, [Some("ci".to_owned())]);
    ci.lock_names().unwrap().remove(&record.reference).unwrap();
    assert_eq!(sweep(&ci).blobs.len(), 3);
}

#[test]
fn who_looks_sees_downloads_leases_and_leftovers() {
    let (dir, store) = new_store();
    let root = dir.path().join("store");
    let digest = Digest::of(b"0123456789");
    let mut ingest = store.ingest(&digest, 10, never_wait).unwrap().unwrap();
    ingest.append(b"0123").unwrap();
    let partial = store.partials().unwrap()[0];
    assert_eq!((partial.digest, partial.done_bytes, partial.size_bytes, partial.active), (digest, 4, Some(10), true));
    assert_eq!(store.drop_partial(&digest).unwrap(), None, "it is being worked on");
    drop(ingest);
    assert!(!store.partials().unwrap()[0].active);
    assert!(store.drop_partial(&digest).unwrap().is_some());
    assert!(store.partials().unwrap().is_empty() && store.drop_partial(&digest).unwrap().is_none());
    let mut lease = store.lease().unwrap();
    lease.pin(&[digest]).unwrap();
    let seen = store.leases().unwrap().remove(0);
    assert_eq!((seen.pid, &*seen.pins, seen.living), (Some(std::process::id()), &[digest][..], true));
    assert_eq!(store.leftovers().unwrap(), Leftovers::default());
    std::fs::write(root.join("leases/lease-1-2-3"), b"").unwrap();
    std::fs::write(root.join("objects/.new-1-2-3"), b"").unwrap();
    std::fs::write(root.join(format!("trash/blobs-{}", Digest::of(b"").hex())), b"").unwrap();
    assert_eq!(store.leftovers().unwrap(), Leftovers { temporary: 1, leases: 1, trash: 1 });
    make_old(&root.join("objects/.new-1-2-3"));
    make_old(&root.join(format!("trash/blobs-{}", Digest::of(b"").hex())));
    sweep(&store);
    assert_eq!(store.leftovers().unwrap(), Leftovers::default());
    assert!(store.remove_lease(&seen).unwrap() && !store.remove_lease(&seen).unwrap());
}

#[test]
fn damaged_content_goes_unless_it_was_replaced_meanwhile() {
    let (dir, store) = new_store();
    let digest = fetch(&store, b"content");
    assert!(!store.blobs().remove_damaged(&digest, |_| true).unwrap());
    assert!(store.blobs().has(&digest).unwrap(), "a whole one is put back");
    assert!(store.blobs().remove_damaged(&digest, |_| false).unwrap());
    assert!(!store.blobs().remove_damaged(&digest, |_| false).unwrap());
    let left = std::fs::read_dir(dir.path().join("store/blobs/sha256")).unwrap().flatten();
    assert!(left.into_iter().all(|entry| entry.file_name().len() == 2), "no file is left aside");
}

#[test]
fn what_is_damaged_is_judged_in_its_place_and_goes_only_if_it_is_still_there() {
    let (dir, store) = new_store();
    let digest = Digest::of(b"whole");
    let path = dir.path().join("store/objects").join(store.objects().path_of(&digest));
    let damage = || {
        store.objects().put(&digest, b"whole", Durability::Later).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"waste").unwrap();
    };
    damage();
    let removed = store.objects().remove_damaged(&digest, |file| {
        assert!(path.exists(), "a kill here takes nothing away");
        assert_eq!(std::io::read_to_string(file).unwrap(), "waste");
        let mut whole = store.objects().create().unwrap();
        whole.write_all(b"whole").unwrap();
        store.objects().replace(whole, &digest, Durability::Later).unwrap();
        false
    });
    assert!(!removed.unwrap(), "another command has replaced it meanwhile");
    assert_eq!(store.objects().read(&digest, 9).unwrap(), b"whole");
    assert!(!store.objects().remove_damaged(&digest, |_| true).unwrap());
    damage();
    assert!(store.objects().remove_damaged(&digest, |_| false).unwrap());
    assert!(!store.objects().has(&digest).unwrap());
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    assert_eq!(store.leftovers().unwrap(), Leftovers::default());
}

#[test]
fn what_an_nfs_client_keeps_of_removed_files_is_not_there() {
    let (dir, store) = new_store();
    let root = dir.path().join("store");
    let (record, ..) = image(&store, "debian");
    let kept = root.join("refs/.nfs0000000000c0ffee00000001");
    std::fs::rename(std::fs::read_dir(root.join("refs")).unwrap().next().unwrap().unwrap().path(), kept).unwrap();
    for place in ["", "leases/", "trash/", "ingest/", "objects/", "layers/"] {
        std::fs::write(root.join(format!("{place}.nfs0000000000c0ffee00000002")), "{").unwrap();
    }
    drop(store);
    std::fs::remove_file(root.join("format")).unwrap();
    let store = Store::open(&root, true).unwrap();
    assert_eq!(store.image(&record.reference).unwrap(), None);
    assert_eq!((store.images().unwrap(), store.leases().unwrap()), (Vec::new(), Vec::new()));
    assert_eq!(sweep(&store).blobs.len(), 3);
    assert_eq!(store.leftovers().unwrap(), Leftovers::default());
}
