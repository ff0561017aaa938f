//! The file `owners` of a native snapshot: any bytes give owners or an error.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use snapshot::native::Truth;
use snapshot::{Driver, Meta};

/// In memory, where the machine has that.
static DIR: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = PathBuf::from("/dev/shm");
    let base = if base.is_dir() { base } else { std::env::temp_dir() };
    let dir = base.join(format!("sublet-fuzz-owners-{}", std::process::id()));
    std::fs::create_dir(&dir).expect("a directory of our own");
    dir
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // The magic is given: what comes after it is what there is to find.
    std::fs::write(DIR.join("owners"), [b"sublown2", bytes].concat()).expect("our own file");
    let maps = (Vec::new(), Vec::new());
    let _ = Truth::read(&DIR, &Meta::new(Driver::Overlay, &maps.0, &maps.1), None);
});
