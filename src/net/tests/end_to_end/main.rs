//! Containers' traffic across a real TAP device, the real network process and the kernel's sockets, as a plain user.
//!
//! The host is played by a network namespace of its own with documentation addresses, so that neither the machine's
//! addresses nor its services matter. Arguments are words of which one must be part of a scenario's name.
#![allow(clippy::unwrap_used, reason = "tests")]

mod bed;
mod datagrams;
mod published;
mod tcp;

use std::process::ExitCode;
use std::time::Instant;

/// A scenario's name and code; it panics when something is wrong.
type Scenario = (&'static str, fn());

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(net::client::ARGV0) {
        return sys::role::Inherited::take().map_or(ExitCode::FAILURE, net::role::main);
    }
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let scenarios: Vec<Scenario> = [tcp::SCENARIOS, published::SCENARIOS, datagrams::SCENARIOS].concat();
    let chosen: Vec<Scenario> = scenarios
        .into_iter()
        .filter(|(name, _)| words.is_empty() || words.iter().any(|word| name.contains(word)))
        .collect();
    let count = chosen.len();
    let outcome = bed::in_namespaces("the host", || {
        bed::become_host();
        for (name, run) in chosen {
            let began = Instant::now();
            run();
            println!("test {name} ... ok ({} ms)", began.elapsed().as_millis());
        }
    });
    match outcome {
        Ok(process) => {
            process.finish();
            println!("test result: ok. {count} passed; 0 failed");
        }
        Err(error) if matches!(error.errno(), sys::Errno::EPERM | sys::Errno::ENOSPC | sys::Errno::EUSERS) => {
            println!("test all ... ignored, this user may not make namespaces: {error}");
            println!("test result: ok. 0 passed; 0 failed; 1 ignored");
        }
        Err(error) => panic!("{error}: {}", error.cause),
    }
    ExitCode::SUCCESS
}
