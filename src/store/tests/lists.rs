//! Lists of images: kept, changed by several at once, and what a sweep leaves of them.
#![allow(clippy::unwrap_used, reason = "a store that fails fails the test")]

use oci::{Digest, Entry, Reference, media};
use store::{Durability, ListRecord, ListedImage, Store, StoreError};

fn new_store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), true).unwrap();
    (dir, store)
}

fn name() -> Reference {
    "team/list".parse().unwrap()
}

/// An image whose manifest is in the store.
fn image(store: &Store, text: &str) -> ListedImage {
    let digest = Digest::of(text.as_bytes());
    store.blobs().put(&digest, text.as_bytes(), Durability::Later).unwrap();
    let entry = Entry {
        media_type: media::OCI_MANIFEST.to_owned(),
        artifact_type: None,
        digest,
        size: text.len() as u64,
        platform: None,
        annotations: None,
    };
    ListedImage { source: format!("team/{text}").parse().unwrap(), entry }
}

fn add(store: &Store, image: ListedImage) {
    store
        .change_list(&name(), |old| {
            let mut record = old.unwrap_or_else(|| ListRecord::new(name()));
            record.images.push(image);
            Ok::<_, StoreError>(Some(record))
        })
        .unwrap();
}

fn sweep(store: &Store) {
    store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new())).unwrap();
}

#[test]
fn a_list_is_kept_with_the_manifests_that_it_names() {
    let (dir, store) = new_store();
    assert!(store.all_lists().unwrap().is_empty() && store.list(&name()).unwrap().is_none());
    assert!(!dir.path().join("store/lists").exists(), "looking makes nothing");
    let (listed, other) = (image(&store, "a"), image(&store, "b"));
    add(&store, listed.clone());
    let found = store.list(&name()).unwrap().unwrap();
    assert_eq!((found.images.as_slice(), found.reference.tag()), (&[listed.clone()][..], Some("latest")));
    let all: Vec<_> = store.all_lists().unwrap().into_iter().map(|list| list.record.unwrap()).collect();
    assert_eq!(all, [found]);
    sweep(&store);
    assert!(store.blobs().has(&listed.entry.digest).unwrap() && !store.blobs().has(&other.entry.digest).unwrap());
    store.change_list(&name(), |_| Ok::<_, StoreError>(None)).unwrap();
    assert!(store.list(&name()).unwrap().is_none());
    sweep(&store);
    assert!(!store.blobs().has(&listed.entry.digest).unwrap());
}

#[test]
fn a_further_store_has_lists_of_its_own_and_a_sweep_heeds_them() {
    let (dir, store) = new_store();
    let further = Store::open(&dir.path().join("store"), false).unwrap().named("other", true).unwrap();
    let listed = image(&store, "a");
    add(&further, listed.clone());
    assert!(store.list(&name()).unwrap().is_none() && further.list(&name()).unwrap().is_some());
    assert_eq!(store.all_lists().unwrap()[0].store.as_deref(), Some("other"));
    sweep(&store);
    assert!(store.blobs().has(&listed.entry.digest).unwrap());
}

#[test]
fn changes_at_once_are_all_kept() {
    let (_dir, store) = new_store();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let store = &store;
            scope.spawn(move || add(store, image(store, &format!("image{number}"))));
        }
    });
    assert_eq!(store.list(&name()).unwrap().unwrap().images.len(), 8);
}

#[test]
fn what_cannot_be_read_is_an_error_and_a_failed_change_none() {
    let (dir, store) = new_store();
    add(&store, image(&store, "a"));
    let failed = store.change_list(&name(), |_| Err(StoreError::Missing { digest: Digest::of(b"") }));
    assert!(failed.is_err());
    assert_eq!(store.list(&name()).unwrap().unwrap().images.len(), 1);
    let file = dir.path().join("store/lists/docker.io%2Fteam%2Flist:latest");
    let newer = std::fs::read_to_string(&file).unwrap().replace("\"format\":1", "\"format\":2");
    for content in [newer.as_str(), "{", ""] {
        std::fs::write(&file, content).unwrap();
        let error = store.list(&name()).unwrap_err();
        assert_eq!(matches!(error, StoreError::Newer { format: 2, known: 1, .. }), content == newer, "{error}");
        assert_eq!(error.is_damage(), content != newer, "{error}");
        let swept = store.gc(&mut || Ok(Vec::new()), &mut |_| Ok(Vec::new()));
        assert!(swept.is_err(), "an unreadable list deletes nothing");
    }
    let all = store.all_lists().unwrap();
    assert!(all[0].record.is_err());
    let remove = || store.remove_damaged_list(None, &all[0].file).unwrap();
    std::fs::write(&file, newer).unwrap();
    assert!(!remove(), "it is not damaged any more");
    std::fs::write(&file, "{").unwrap();
    assert!(remove() && !remove());
    sweep(&store);
}
