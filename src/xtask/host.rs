//! Preparing the machine: Debian packages, the musl target, test users, device modes. Root does it, a plain user is told.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Uid, User};

use crate::shell::{self, Fallible, output, run, which};

/// A Debian package, the program that proves it is there, and what needs it.
struct Need {
    package: &'static str,
    program: &'static str,
    why: &'static str,
}

/// What compiles the C parts of the static binary.
pub const MUSL_COMPILER: &str = "musl-gcc";

const NEEDS: &[Need] = &[
    Need { package: "musl-tools", program: MUSL_COMPILER, why: "the static binary" },
    Need { package: "uidmap", program: "newuidmap", why: "containers with many ids" },
    Need { package: "docker-registry", program: "docker-registry", why: "the loopback registry" },
    Need { package: "busybox-static", program: "busybox", why: "the small image" },
    Need { package: "mmdebstrap", program: "mmdebstrap", why: "the Debian image" },
    Need { package: "debootstrap", program: "debootstrap", why: "the guest's root" },
    Need { package: "iproute2", program: "ip", why: "tests of networks" },
    Need { package: "procps", program: "pgrep", why: "tests that kill roles" },
    Need { package: "bsdutils", program: "script", why: "tests of terminals" },
    Need { package: "podman", program: "podman", why: "the oracle of an engine's behaviour" },
    Need { package: "slirp4netns", program: "slirp4netns", why: "podman's network for a plain user" },
    Need { package: "fuse-overlayfs", program: "fuse-overlayfs", why: "podman's root file systems for a plain user" },
    Need { package: "util-linux", program: "setpriv", why: "tests as other users" },
    Need { package: "e2fsprogs", program: "mkfs.ext4", why: "the guest's disks" },
    Need { package: "qemu-system-x86", program: "qemu-system-x86_64", why: "tests in the guest with systemd" },
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

/// A program on the path; for busybox it must be the static one, since it runs in an image of its own.
fn present(need: &Need) -> bool {
    let Some(path) = which(need.program) else { return false };
    need.program != "busybox" || is_static(&path)
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
