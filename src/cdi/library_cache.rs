//! The cache of the dynamic linker, `/etc/ld.so.cache`: which file stands for the name of a library.
//!
//! The format is that of glibc's `sysdeps/generic/dl-cache.h`, "new format" (glibc 2.2): a header of 48 bytes, records
//! of 24, and a table of strings. Files of before glibc 2.32 may have an older table in front of it. Numbers are in the
//! machine's byte order; offsets of strings count from the header.

use std::path::PathBuf;

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const RECORD: usize = 24;
/// A library of the C library's present version, with the bits for the machine: `FLAG_ELF_LIBC6`, `FLAG_X8664_LIB64`,
/// `FLAG_AARCH64_LIB64`. Without one of them it is for another machine, as 32-bit libraries are.
const FLAGS: u32 = if cfg!(target_arch = "x86_64") {
    0x0303
} else if cfg!(target_arch = "aarch64") {
    0x0a03
} else {
    0x0003
};

/// The libraries of this machine that a cache names: name and file, in its order. Nothing where it is no such cache.
pub fn libraries(cache: &[u8]) -> Vec<(String, PathBuf)> {
    let Some(start) = cache.windows(MAGIC.len()).position(|window| window == MAGIC) else { return Vec::new() };
    let cache = &cache[start..];
    let count = number(cache, MAGIC.len()).unwrap_or(0) as usize;
    let records = cache.get(HEADER..).unwrap_or_default().chunks_exact(RECORD).take(count);
    let library = |record: &[u8]| {
        let flags = number(record, 0)?;
        let name = text(cache, number(record, 4)?)?;
        let file = text(cache, number(record, 8)?)?;
        (flags == FLAGS).then(|| (name.to_owned(), PathBuf::from(file)))
    };
    records.filter_map(library).collect()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// The string at an offset, which ends with a NUL.
fn text(cache: &[u8], at: u32) -> Option<&str> {
    let rest = cache.get(at as usize..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut records = Vec::new();
        let table = HEADER + entries.len() * RECORD;
        for (flags, name, file) in entries {
            let mut put = |text: &str| {
                let at = (table + strings.len()) as u32;
                strings.extend(text.bytes().chain([0]));
                at
            };
            for number in [*flags, put(name), put(file), 0, 0, 0] {
                records.extend(number.to_ne_bytes());
            }
        }
        let mut bytes = MAGIC.to_vec();
        bytes.extend((entries.len() as u32).to_ne_bytes());
        bytes.resize(HEADER, 0);
        [bytes, records, strings].concat()
    }

    #[test]
    fn libraries_of_this_machine_are_found() {
        let wanted = vec![("libcuda.so.1".to_owned(), PathBuf::from("/usr/lib64/libcuda.so.1"))];
        let entries =
            [(FLAGS, "libcuda.so.1", "/usr/lib64/libcuda.so.1"), (1, "libcuda.so.1", "/usr/lib/libcuda.so.1")];
        assert_eq!(libraries(&cache(&entries)), wanted);
        let old = [b"ld.so-1.7.0\0\0\0\0\0".to_vec(), cache(&entries)].concat();
        assert_eq!(libraries(&old), wanted);
    }

    #[test]
    fn any_bytes_are_a_cache_or_none() {
        let whole = cache(&[(FLAGS, "liba.so", "/liba.so"), (FLAGS, "libb.so", "/libb.so")]);
        for length in 0..whole.len() {
            let found = libraries(&whole[..length]);
            assert!(found.len() < 2, "{length}: {found:?}");
        }
        let mut huge = whole.clone();
        huge[MAGIC.len()..MAGIC.len() + 4].fill(0xff);
        assert!(libraries(&huge).len() >= 2);
        assert_eq!(libraries(b""), []);
    }
}
