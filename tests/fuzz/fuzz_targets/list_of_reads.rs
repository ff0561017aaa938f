//! The list of what was read of an image: any bytes give a list within its bounds or none, and a list is written as it was read.
#![no_main]

use snapshot::reads::{BLOCKS_MAX, Reads};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // With the checksum that belongs to it, so that it stops nothing.
    let mut list = bytes.to_vec();
    if list.len() >= 48 {
        let sum = oci::Digest::of(&[&list[..16], &list[48..]].concat());
        list[16..48].copy_from_slice(sum.as_bytes());
    }
    for bytes in [bytes, &list] {
        let Some(reads) = Reads::parse(bytes) else { continue };
        let blocks: u64 = reads.runs().iter().map(|run| u64::from(run.count)).sum();
        assert!(blocks <= BLOCKS_MAX as u64);
        assert_eq!(Reads::parse(&reads.encode()), Some(reads));
    }
});
