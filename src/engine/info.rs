//! What this engine is and what it holds.

use std::time::SystemTime;

use base::Report;
use serde::Serialize;

use crate::Engine;
use crate::container::driver;
use crate::container::list::list;
use crate::container::state::Life;
use crate::image;
use crate::image::policy::policy_file;

/// The answer to `version`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Version {
    /// Of this program.
    pub version: String,
    /// `linux`.
    pub os: String,
    /// In Go's words.
    pub arch: String,
    /// The kernel's release.
    pub kernel_version: String,
}

/// What this program is.
pub fn version() -> Version {
    let kernel = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
    Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: "linux".to_owned(),
        arch: match std::env::consts::ARCH {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            other => other.to_owned(),
        },
        kernel_version: kernel.unwrap_or_default(),
    }
}

/// The answer to `info`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs, reason = "the members are Docker's; their meaning is that of its API reference")]
pub struct Info {
    pub containers: usize,
    pub containers_running: usize,
    pub containers_stopped: usize,
    pub images: usize,
    pub driver: String,
    pub server_version: String,
    pub kernel_version: String,
    pub operating_system: String,
    #[serde(rename = "OSType")]
    pub os_type: String,
    pub architecture: String,
    #[serde(rename = "NCPU")]
    pub ncpu: usize,
    pub mem_total: u64,
    pub name: String,
    pub docker_root_dir: String,
    pub runtime_dir: String,
    pub signature_policy: String,
}

/// What the engine holds and where. The caller must have one thread.
pub fn info(engine: &Engine) -> Result<Info, Report> {
    let (containers, _) = list(engine, SystemTime::now())?;
    let running =
        containers.iter().filter(|one| matches!(one.life, Life::Running { .. } | Life::Restarting { .. })).count();
    let mut images: Vec<_> =
        image::list(engine, &image::ListRequest::default())?.into_iter().map(|image| image.id).collect();
    images.sort_unstable();
    images.dedup();
    let version = version();
    Ok(Info {
        containers: containers.len(),
        containers_running: running,
        containers_stopped: containers.len() - running,
        images: images.len(),
        driver: driver::ladder(engine).chosen.unwrap_or_default().to_owned(),
        server_version: version.version,
        kernel_version: version.kernel_version,
        operating_system: operating_system(),
        os_type: version.os,
        architecture: std::env::consts::ARCH.to_owned(),
        ncpu: std::thread::available_parallelism().map_or(1, usize::from),
        mem_total: memory(),
        name: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
        docker_root_dir: engine.paths().data().to_string_lossy().into_owned(),
        runtime_dir: engine.paths().run().to_string_lossy().into_owned(),
        signature_policy: policy_file(engine).map(|file| file.to_string_lossy().into_owned()).unwrap_or_default(),
    })
}

fn operating_system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// Bytes of memory, by `/proc/meminfo`.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
