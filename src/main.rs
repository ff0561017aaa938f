//! The `sublet` binary: chooses a role from `argv[0]`, runs it, prints the error, sets the exit code.
//!
//! Without the name of a role it is the command line. A role is started only by another part of sublet, which hands it
//! its configuration and its descriptors ([`sys::role`]); `docs/process-model.md` says what each may do.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use monitor::tidy::Callbacks;
use sys::memory::Allocator;
use sys::role::Inherited;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    sys::file::reset_umask();
    sys::file::ignore_size_signal();
    let name = std::env::args_os().next().unwrap_or_else(|| OsString::from("sublet"));
    match Path::new(&name).file_name().and_then(|name| name.to_str()) {
        Some("sublet-monitor") => {
            let (volumes, remove) = (engine::volume::after_exit, engine::container::remove::after_exit);
            let callbacks = Callbacks { volumes, remove, event: engine::events::of_monitor };
            role(|inherited| monitor::role::main(inherited, callbacks))
        }
        Some("sublet-exec") => role(runtime::exec::main),
        Some(runtime::notify::ARGV0) => role(runtime::notify::main),
        Some(net::client::ARGV0) => role(net::role::main),
        Some(cgroup::scope::ROLE) => role(cgroup::scope::main),
        Some(snapshot::owner_client::ARGV0) => role(snapshot::owner_role::main),
        Some(snapshot::fs_role::ARGV0) => snapshot::fs_role::main(),
        Some("sublet-runtime") => oci_runtime(std::env::args_os()),
        _ if std::env::args_os().nth(1).is_some_and(|verb| verb == "runtime") => {
            oci_runtime(std::env::args_os().skip(1))
        }
        _ => ExitCode::from(cli::main(std::env::args_os())),
    }
}

/// The OCI runtime's command line; states lie beside the engine's run-time files.
fn oci_runtime(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    ExitCode::from(ociruntime::main(arguments, || Ok(cli::runtime_directory()?.join("oci"))))
}

/// Takes over what the role was given and runs it.
fn role(main: impl FnOnce(Inherited) -> ExitCode) -> ExitCode {
    match Inherited::take() {
        Ok(inherited) => main(inherited),
        Err(error) => {
            eprintln!("error: {}", base::Report::from(error));
            ExitCode::from(125)
        }
    }
}
