//! The reader of indexes and the merge: any bytes give values or an error.
#![no_main]

use std::sync::LazyLock;

use index::{Entry, Index, Metadata, Node, TreeBuilder, format};
use oci::{DiffId, Digest};

/// A layer that the other one is put on, and that is put on it.
static OTHER: LazyLock<Index> = LazyLock::new(|| {
    let mut builder = TreeBuilder::new();
    for path in [&b"a"[..], b"b/c", b"b/d/e"] {
        builder.insert(path, &Metadata::default(), Entry::InlineFile(path.to_vec())).unwrap();
    }
    Index::from_bytes(builder.write(DiffId(Digest::of(b"other")), None).unwrap()).unwrap()
});

fn read(bytes: Vec<u8>) {
    let Ok(index) = Index::from_bytes(bytes) else { return };
    let whole = index.verify().is_ok();
    for node in (0..index.inode_count().min(1000)).map(Node) {
        let _ = (index.content(node), index.symlink_target(node), index.link_target(node), index.parent(node));
        let _ = index.xattrs(node).map(|xattrs| xattrs.take(1000).count());
        let _ = index.dirents(node).map(|dirents| dirents.iter().take(1000).count());
        let _ = index.lookup(node, b"name");
    }
    for layers in [&[&index][..], &[&*OTHER, &index], &[&index, &*OTHER]] {
        let Ok(merged) = index::merge(layers) else { continue };
        // Of what is whole comes what is whole.
        assert!(!whole || Index::from_bytes(merged).is_ok_and(|merged| merged.verify().is_ok()));
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    read(bytes.to_vec());
    // And with a right checksum, behind which few inputs would get otherwise.
    if bytes.len() >= format::HEADER {
        let mut bytes = bytes.to_vec();
        let sum = format::checksum(&bytes);
        bytes[format::at::CHECKSUM..format::at::AFTER_CHECKSUM].copy_from_slice(sum.as_bytes());
        read(bytes);
    }
});
