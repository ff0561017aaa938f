//! The archive of a layer: any bytes give a tree or an error.
#![no_main]

/// Bytes of a block, and where its checksum and its magic are.
const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;

/// Makes the checksums of headers right, behind which few inputs would get otherwise.
fn with_checksums(mut archive: Vec<u8>) -> Vec<u8> {
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| block[MAGIC] == *b"ustar") {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    archive
}

libfuzzer_sys::fuzz_target!(|archive: &[u8]| {
    let limits = layer::Limits::default();
    let _ = (layer::check(archive, &limits), layer::check(&with_checksums(archive.to_vec())[..], &limits));
});
