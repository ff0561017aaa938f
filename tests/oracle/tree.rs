//! The whole tree after `apt-get install`, under podman and under sublet.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use crate::support::oracle::{end_podman, podman_cannot_run, podman_of};
use crate::support::{Home, Need, debian, finish, mirror, skip};

/// What may differ wholly, and why.
const OTHER_FILES: [(&str, &str); 4] = [
    ("/etc/hostname", "written by the engine; podman ends it without a newline"),
    ("/etc/hosts", "written by the engine, with the container's own name"),
    ("/etc/resolv.conf", "written by the engine: its own DNS server"),
    ("/run/.containerenv", "podman's mark"),
];

/// What may differ in content, and why. Owner, mode and size must be the same.
const OTHER_CONTENT: [(&str, &str); 7] = [
    ("/var/cache/apt/pkgcache.bin", "holds times of files, and comes in the order of a random hash"),
    ("/var/cache/apt/srcpkgcache.bin", "the same"),
    ("/var/cache/ldconfig/aux-cache", "holds inode numbers and times of libraries"),
    ("/var/log/alternatives.log", "times"),
    ("/var/log/apt/history.log", "times"),
    ("/var/log/apt/term.log", "times"),
    ("/var/log/dpkg.log", "times"),
];

/// After the packages: a capability on a file, a second name for it, and owners and modes of all kinds.
const SCRIPT: &str = r#"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >/dev/null && apt-get -qq install -y curl >/dev/null 2>&1 && curl --version | head -n 1 || exit 1
set -e
ln /usr/bin/curl /usr/local/bin/again; install -o 33 -g 42 -m 6751 /bin/true /usr/local/bin/owned
install -d -m 1777 -o www-data /srv/sticky; ln -s nowhere /srv/dangling; mkfifo -m 640 /srv/pipe
perl -e '
    my ($path, $name) = ("/usr/bin/curl", "security.capability");
    my $set = `uname -m` =~ /x86_64/ ? 188 : 5;
    my $value = pack("V5", 0x02000001, 1 << 10, 0, 0, 0);
    syscall($set, $path, $name, $value, length $value, 0) == 0 or die "setxattr: $!\n";
'
"#;

fn differs_by_right(line: &str) -> bool {
    if line.starts_with('/') {
        return OTHER_FILES.iter().any(|(path, _)| line.split('\t').next() == Some(path));
    }
    let name = line.split_once("  ").map_or("", |(_, path)| path);
    OTHER_FILES.iter().chain(&OTHER_CONTENT).any(|(path, _)| *path == name)
}

#[test]
fn installed_packages_leave_the_tree_that_podman_leaves() {
    // Rootless podman is the measure.
    let needs = [Need::Registry, Need::Debian, Need::Tun, Need::Subids, Need::PlainUser];
    let Some(home) = Home::new(&needs) else { return };
    if let Err(reason) = mirror() {
        return skip(reason);
    }
    if Command::new("podman").arg("--version").output().is_err() {
        return skip("podman is not installed");
    }
    let (limit, image) = (Duration::from_mins(4), debian());
    let script =
        format!("{SCRIPT}\ncat >/dev/shm/tree.pl <<'END'\n{}END\nperl /dev/shm/tree.pl", include_str!("tree.pl"));
    let mut theirs = podman_of(&home);
    let theirs = finish(theirs.args(["run", "--rm", "--tls-verify=false", &image, "sh", "-c", &script]), b"", limit);
    end_podman(&home);
    if podman_cannot_run(&theirs) {
        return skip("podman cannot run containers here");
    }
    assert_eq!(theirs.code, 0, "podman: {}", theirs.stderr);
    let pulled = finish(&mut home.command(&["pull", &image]), b"", limit);
    assert_eq!(pulled.code, 0, "{pulled:#?}");
    let mut ours = home.command(&["run", "--rm"]);
    let ours = finish(ours.args(home.limits(&image)).args([&image, "sh", "-c", &script]), b"", limit);
    assert_eq!(ours.code, 0, "{}", ours.stderr);
    let [ours, theirs] = [&ours.stdout, &theirs.stdout].map(|text| text.lines().collect::<BTreeSet<_>>());
    for seen in ["/usr/bin/curl\t0755 0:0 ", "/usr/local/bin/again\t", "/usr/local/bin/owned\t6751 33:42 "] {
        assert!(ours.iter().any(|line| line.starts_with(seen)), "no line {seen:?} in {} lines", ours.len());
    }
    let capability = "security.capability=0100000200040000000000000000000000000000";
    assert!(ours.iter().any(|line| line.starts_with("/usr/bin/curl\t") && line.contains(capability)), "{ours:?}");
    let only = |some: &BTreeSet<&str>, others: &BTreeSet<&str>| -> Vec<String> {
        some.difference(others).filter(|line| !differs_by_right(line)).map(|line| (*line).to_owned()).collect()
    };
    assert_eq!((only(&ours, &theirs), only(&theirs, &ours)), (vec![], vec![]), "only ours, only podman's");
    assert!(ours.len() > 10_000, "the whole tree was listed: {} lines", ours.len());
}
