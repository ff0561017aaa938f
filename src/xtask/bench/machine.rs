//! The machine and the versions, as the record of a benchmark keeps them.

use std::fs;
use std::process::Command;

use super::Ground;
use crate::shell::{output, which, workspace};

const RIVALS: &[&str] =
    &["podman", "crun", "runc", "bwrap", "fuse-overlayfs", "pasta", "slirp4netns", "skopeo", "umoci", "iperf3"];

/// Tells the rig's inside, which has no git and may not read the clone, what is measured there.
pub const COMMIT: &str = "SUBLET_BENCH_COMMIT";

/// The commit of the work tree.
pub fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(workspace());
    output(&mut git).unwrap_or_else(|_| "an unknown commit".to_owned())
}

/// A section of Markdown.
pub fn describe(ground: &Ground) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, name)| name).to_owned();
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory =
        read("/proc/meminfo").lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim().to_owned();
    let kernel = read("/proc/sys/kernel/osrelease");
    let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    let frequency = governor.map_or_else(
        |_| {
            "the CPU's frequency could not be pinned or read here (a virtual machine): trust ratios, not absolute times"
                .to_owned()
        },
        |governor| format!("frequency governor {}, not pinned by us", governor.trim()),
    );
    let mut stat = Command::new("stat");
    let file_system = output(stat.args(["-f", "-c", "%T"]).arg(&ground.directory)).unwrap_or_default();
    let size = fs::metadata(&ground.sublet).map_or(0, |metadata| metadata.len());
    let commit = std::env::var(COMMIT).unwrap_or_else(|_| commit());
    format!(
        "## Machine\n\n- {model}, {cores} cores, {memory}, kernel {}\n- {frequency}\n- stores on {file_system}\n- sublet at {commit}, {size} bytes\n{}",
        kernel.trim(),
        versions()
    )
}

fn versions() -> String {
    let version = |name: &&str| {
        let program = which(name)?;
        let said = output(Command::new(program).arg("--version")).ok()?;
        Some(format!("- {name}: {}\n", said.lines().next()?))
    };
    RIVALS.iter().filter_map(version).collect()
}
