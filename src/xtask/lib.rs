//! What the developer commands and the tests share: making OCI images from nothing and pushing them, asking for a mirror,
//! and the word of a test that cannot run.

pub mod image;
pub mod memory_registry;
pub mod mirror;
pub mod push;

/// Notes that the calling test did not run: its name and the reason go to the file that `SUBLET_TEST_SKIPS` names, which
/// `cargo xtask test` sums up. The test must return then; libtest counts it as passed.
///
/// To be called on the test's own thread, whose name is the test's.
pub fn skip(reason: &str) {
    use std::io::Write;
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    eprintln!("skipped: {name}: {reason}");
    if let Some(file) = std::env::var_os("SUBLET_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).open(file).expect("xtask has made the file of skips");
        writeln!(file, "{name}: {reason}").expect("the file of skips can be written");
    }
}
