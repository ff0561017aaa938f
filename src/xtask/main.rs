//! Developer commands: `cargo xtask test | check | bench | rig`.
//!
//! `test` is the README's second command: it prepares the machine as far as the caller may, builds, and runs every test.
//! The machine is left as found but for installed packages, two test users and caches under `~/.cache/sublet`.

use std::process::ExitCode;

mod bench;
mod check;
mod debian;
mod host;
mod pjdfstest;
mod refuse;
mod registry;
mod rig;
mod shell;
mod suite;
mod tally;

const USAGE: &str = "usage: cargo xtask COMMAND

  test             install what is missing (root) or name it (plain user), build, run every test
  test [NAME]… [--identity RUNG] [-- LIBTEST ARGUMENT…]
                   the same for these test binaries (cli, store/store, vm/limits), one rung (subuids, one-id, root)
  test [NAME]… --refuse CALL[,CALL]…[=EPERM]  the same (root) on a kernel without openat2, clone3, pidfd_open, close_range,
                     mount-api, cgroup.kill, or under a filter that answers EPERM
  refuse CALL[,CALL]…[=EPERM] CMD…  one command there
  check            licences and number of crates; needs no network
  bench [TOPIC]…   measure beside the installed rivals: start oci files trees owners programs network pull (default: all)
  rig bench [TOPIC]…  the same in a Debian root with the rivals installed, as a plain user
  rig [CMD…]       enter that root (it is made by and for root, once)";

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = if arguments.is_empty() { String::new() } else { arguments.remove(0) };
    let done = match command.as_str() {
        "test" => match suite::Selection::parse(&arguments) {
            Some(selection) => suite::run(&selection),
            None => return usage(),
        },
        "refuse" if arguments.len() > 1 => refuse::run(&arguments[0], &arguments[1..]),
        "check" if arguments.is_empty() => check::run(),
        "bench" => bench::run(&arguments),
        "load" => bench::load::run(&arguments),
        "peak" => bench::peak::run(&arguments),
        "rig" => rig::run(&arguments),
        _ => return usage(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            let mut below = error.source();
            while let Some(cause) = below {
                eprintln!("  cause: {cause}");
                below = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}
