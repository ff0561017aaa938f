//! Preparing the machine: Debian packages, the musl target, test users, device modes. Root does it, a plain user is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User};

use crate::shell::{self, Fallible, output, run, which};

/// A Debian package, what proves that it is there, and what needs it.
struct Need {
    package: &'static str,
    proof: Proof,
    why: &'static str,
}

enum Proof {
    /// A program on the path.
    Program(&'static str),
    /// A module of the distribution's Python.
    Module(&'static str),
}

use Proof::{Module, Program};

/// What compiles the C parts of the static binary.
pub const MUSL_COMPILER: &str = "musl-gcc";

/// The distribution's, which has the distribution's modules, whatever the path says.
const PYTHON: &str = "/usr/bin/python3";

const NEEDS: &[Need] = &[
    Need { package: "musl-tools", proof: Program(MUSL_COMPILER), why: "the static binary" },
    Need { package: "uidmap", proof: Program("newuidmap"), why: "containers with many ids" },
    Need { package: "docker-registry", proof: Program("docker-registry"), why: "the loopback registry" },
    Need { package: "busybox-static", proof: Program("busybox"), why: "the small image" },
    Need { package: "mmdebstrap", proof: Program("mmdebstrap"), why: "the Debian image" },
    Need { package: "debootstrap", proof: Program("debootstrap"), why: "the guest's root" },
    Need { package: "iproute2", proof: Program("ip"), why: "tests of networks" },
    Need { package: "tcpdump", proof: Program("tcpdump"), why: "the oracle of captures" },
    Need { package: "procps", proof: Program("pgrep"), why: "tests that kill roles" },
    Need { package: "bsdutils", proof: Program("script"), why: "tests of terminals" },
    Need { package: "podman", proof: Program("podman"), why: "the oracle of an engine's behaviour" },
    Need {
        package: "slirp4netns",
        proof: Program("slirp4netns"),
        why: "podman's network for a plain user, and ours where it is asked for",
    },
    Need { package: "passt", proof: Program("pasta"), why: "tests of networks by programs" },
    Need {
        package: "fuse-overlayfs",
        proof: Program("fuse-overlayfs"),
        why: "podman's root file systems for a plain user",
    },
    Need { package: "skopeo", proof: Program("skopeo"), why: "the oracle of registries and archives" },
    Need { package: "umoci", proof: Program("umoci"), why: "the oracle of layouts" },
    Need { package: "util-linux", proof: Program("setpriv"), why: "tests as other users" },
    Need { package: "util-linux-extra", proof: Program("fincore"), why: "what of a file is in the page cache" },
    Need { package: "e2fsprogs", proof: Program("mkfs.ext4"), why: "the guest's disks, stores on ext4" },
    Need { package: "xfsprogs", proof: Program("mkfs.xfs"), why: "stores on xfs" },
    Need { package: "btrfs-progs", proof: Program("mkfs.btrfs"), why: "stores on btrfs" },
    Need { package: "python3-seccomp", proof: Module("seccomp"), why: "the oracle of seccomp filters" },
    Need { package: "qemu-system-x86", proof: Program("qemu-system-x86_64"), why: "tests in the guest with systemd" },
];

/// Users that system tests run as: one with subordinate ids, one without.
pub const USER_WITH_SUBIDS: &str = "sublet-a";
/// See [`USER_WITH_SUBIDS`].
pub const USER_WITH_ONE_ID: &str = "sublet-b";
/// How many subordinate ids the first has.
const SUBIDS: u64 = 65536;

/// Whether root calls.
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Installs the missing packages (root) or names them (plain user; the tests that need them are then skipped).
pub fn packages() -> Fallible<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !present(need)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if is_root() && which("apt-get").is_some() {
        let names = missing.iter().map(|need| need.package);
        run(Command::new("apt-get").args(["-qq", "update"]))?;
        let mut install = Command::new("apt-get");
        install.args(["-qq", "install", "-y", "--no-install-recommends"]).args(names);
        run(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(std::process::Stdio::null()))?;
        return Ok(());
    }
    for need in &missing {
        println!("missing: Debian package {} ({}); as root: apt-get install {}", need.package, need.why, need.package);
    }
    Ok(())
}

/// For busybox it must be the static one, since it runs in an image of its own.
fn present(need: &Need) -> bool {
    match need.proof {
        Program(program) => which(program).is_some_and(|path| program != "busybox" || is_static(&path)),
        // Isolated: a directory of this name where we stand would be a module too.
        Module(module) => output(Command::new(PYTHON).args(["-I", "-c", &format!("import {module}")])).is_ok(),
    }
}

/// Whether this program needs no loader.
pub fn is_static(program: &Path) -> bool {
    output(Command::new("ldd").arg(program)).is_err()
}

/// The target triple of the static binary on this machine.
pub fn musl_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// Adds the musl target by rustup unless it is there or of no use. Without rustup the tool chain must bring it.
pub fn rust_target() -> Fallible<()> {
    let (Some(rustup), Some(_)) = (which("rustup"), which(MUSL_COMPILER)) else { return Ok(()) };
    let target = musl_target();
    let mut list = Command::new(&rustup);
    list.args(["target", "list", "--installed"]).current_dir(shell::workspace());
    if output(&mut list).is_ok_and(|installed| installed.lines().any(|line| line == target)) {
        return Ok(());
    }
    run(Command::new(&rustup).args(["target", "add", &target]).current_dir(shell::workspace()))?;
    Ok(())
}

/// Makes the two test users, opens `/dev/fuse` and `/dev/net/tun` to everybody, as desktop systems have them.
pub fn users_and_devices() -> Fallible<()> {
    for user in [USER_WITH_SUBIDS, USER_WITH_ONE_ID] {
        if User::from_name(user)?.is_none() {
            run(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", user]))?;
        }
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        let wanted = subids(&text);
        if wanted != text {
            let new = format!("{file}.sublet-new");
            fs::write(&new, wanted)?;
            fs::rename(new, file)?;
        }
    }
    for device in ["/dev/fuse", "/dev/net/tun"] {
        if Path::new(device).exists() {
            fs::set_permissions(device, fs::Permissions::from_mode(0o666))?;
        }
    }
    Ok(())
}

/// The text of `/etc/subuid` with a range for the first user and none for the second.
fn subids(text: &str) -> String {
    let owner = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut lines: Vec<String> =
        text.lines().filter(|line| owner(line) != USER_WITH_ONE_ID).map(str::to_owned).collect();
    if !lines.iter().any(|line| owner(line) == USER_WITH_SUBIDS) {
        let end = |line: &String| {
            let mut numbers = line.split(':').skip(1).map_while(|number| number.parse::<u64>().ok());
            Some(numbers.next()? + numbers.next()?)
        };
        let free = lines.iter().filter_map(end).max().unwrap_or(0).max(100_000);
        lines.push(format!("{USER_WITH_SUBIDS}:{free}:{SUBIDS}"));
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_added_behind_the_others_once() {
        let once = subids("dev:100000:65536\nsublet-b:165536:65536\n");
        assert_eq!(once, "dev:100000:65536\nsublet-a:165536:65536\n");
        assert_eq!(subids(&once), once);
        assert_eq!(subids(""), "sublet-a:100000:65536\n");
    }
}
