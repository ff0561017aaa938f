//! Views and drivers on the real kernel: real FUSE mounts in real user namespaces, compared with the kernel's own view
//! of the same files.
//!
//! Has a `main` of its own because the role `fs` is a re-execution of this binary, and because whatever forks must have
//! one thread. Runs as any user: with a subordinate range it maps that, without one it maps one id, as root it maps a
//! block of its own. Without /dev/fuse or user namespaces it says so and counts as skipped.

#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

mod support;

mod chain;
mod host;
mod native;
mod probe;
mod resume;
mod stress;

use std::process::ExitCode;

/// A test and its name.
type Test = (&'static str, fn(&support::Outer));

fn main() -> ExitCode {
    let argv0 = std::env::args().next().unwrap_or_default();
    if argv0 == snapshot::fs_role::ARGV0 {
        return snapshot::fs_role::main();
    }
    if argv0 == snapshot::owner_client::ARGV0 {
        return snapshot::owner_role::main(sys::role::Inherited::take().unwrap());
    }
    let outer = match support::Outer::make() {
        Ok(outer) => outer,
        Err(reason) => {
            println!("test all ... ignored, no user namespace with FUSE here: {reason}");
            println!("test result: ok. 0 passed; 0 failed; 1 ignored");
            return ExitCode::SUCCESS;
        }
    };
    println!("running as uid {} with {} ids", nix::unistd::getuid(), outer.ids.uids);
    let filter = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')).unwrap_or_default();
    let tests: Vec<Test> =
        [host::TESTS, native::TESTS, chain::TESTS, probe::TESTS, resume::TESTS, stress::TESTS].concat();
    let mut passed = 0;
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&filter)) {
        test(&outer);
        println!("test {name} ... ok");
        passed += 1;
    }
    println!("test result: ok. {passed} passed; 0 failed");
    ExitCode::SUCCESS
}
