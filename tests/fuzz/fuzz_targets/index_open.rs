//! The reader of indexes and the merge: any bytes give values or an error.
#![no_main]

use index::{Index, Node};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = Index::from_bytes(bytes.to_vec()) else { return };
    let _ = index.verify();
    for node in (0..index.inode_count().min(1000)).map(Node) {
        let _ = (index.content(node), index.symlink_target(node), index.link_target(node), index.parent(node));
        let _ = index.xattrs(node).map(|xattrs| xattrs.take(1000).count());
        let _ = index.dirents(node).map(|dirents| dirents.iter().take(1000).count());
        let _ = index.lookup(node, b"name");
    }
    let _ = index::merge(&[&index]);
});
