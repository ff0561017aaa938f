//! `cargo xtask rig`: a Debian root with the rivals installed, entered as a plain user in namespaces of its own.
//!
//! Inside: the repository as `/src`, `/share` for exchange, a private `/tmp` and runtime directory, `/dev` and the network
//! of the host, and a cgroup that the user owns. Who writes a line to `/tmp/drop` has root drop the kernel's caches. `rig bench [TOPIC]…` builds the binary that ships, measures inside, with
//! all stores on the disk of the root, as the same user, and brings the records into `docs/benchmarks`.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use crate::bench;
use crate::debian::host_mirror;
use crate::host::{is_root, users_and_devices};
use crate::shell::{Fallible, cache, run as must, which, workspace};

/// The rivals and what they need.
const PACKAGES: &str = "podman,crun,runc,passt,fuse-overlayfs,slirp4netns,uidmap,skopeo,umoci,buildah,bubblewrap,iperf3,\
fuse3,dbus,ca-certificates,iproute2,iputils-ping,procps,acl,attr,fio,busybox-static,netavark,aardvark-dns,\
golang-github-containers-common,docker-registry,mmdebstrap";
/// Debian's release that has them.
const SUITE: &str = "trixie";
/// Uid and gid of the user inside.
const DEV: u32 = 1000;

/// What the shell does inside a new mount namespace, as root: `$1` the root, `$2` the repository, `$3` the shared
/// directory, `$4` a number of this run, the rest the command.
const ENTER: &str = r#"
set -e
root=$1; source=$2; share=$3
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"; chmod 1777 "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
install -d -o 1000 -g 1000 -m 700 "$root/run/user/1000"
mkdir -p "$root/share"; mount --bind "$share" "$root/share"
mkdir -p "$root/src"; mount --rbind "$source" "$root/src"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
name=sublet-rig-$4; group=$root/sys/fs/cgroup/$name
mkdir "$group" "$group/in"; chown -R 1000:1000 "$group"; echo $$ >"$group/in/cgroup.procs"
mkdir -p "$root/.old"; cd "$root"; pivot_root . .old; umount -l /.old; cd /src
mkfifo -m 666 /tmp/drop /tmp/drop.done; export SUBLET_BENCH_DROP=/tmp/drop
drop() { sync; if echo 3 >/proc/sys/vm/drop_caches; then echo dropped; else echo refused; fi >/tmp/drop.done; }
while read -r _ </tmp/drop; do drop; done &
export TMPDIR=/home/dev XDG_CACHE_HOME=/share/cache SUBLET_BENCH_BIN=/share/sublet SUBLET_BENCH_OUT=/share/out
export HOME=/home/dev USER=dev LOGNAME=dev XDG_RUNTIME_DIR=/run/user/1000 PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
shift 4; status=0
setpriv --reuid=1000 --regid=1000 --init-groups "$@" || status=$?
echo $$ >/sys/fs/cgroup/cgroup.procs
echo 1 >"/sys/fs/cgroup/$name/cgroup.kill"
for try in 1 2 3 4 5; do find "/sys/fs/cgroup/$name" -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 0.2; done
exit $status
"#;

/// Makes the root when it is not there yet and runs the command (default: a shell) in it.
pub fn run(command: &[String]) -> Fallible<bool> {
    if !is_root() {
        return Err("cargo xtask rig makes namespaces and users: run it as root".into());
    }
    let root = cache().join("rig").join(SUITE);
    if !root.join("home/dev").exists() {
        make(&root)?;
    }
    users_and_devices()?;
    let share = cache().join("rig/share");
    fs::create_dir_all(&share)?;
    chown(&share, Some(DEV), Some(DEV))?;
    if command.first().is_some_and(|word| word == "bench") {
        return bench(&root, &share, &command[1..]);
    }
    let shell = vec!["bash".to_owned()];
    let command = if command.is_empty() { &shell } else { command };
    enter(&root, &share, command)
}

fn enter(root: &Path, share: &Path, command: &[String]) -> Fallible<bool> {
    let mut enter = Command::new("unshare");
    // A pid namespace, so that nothing (podman leaves a pause process) outlives the command.
    enter.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash", "-c", ENTER, "rig"]);
    enter.env(bench::machine::COMMIT, bench::machine::commit());
    enter.arg(root).arg(workspace()).arg(share).arg(std::process::id().to_string()).args(command);
    Ok(enter.status()?.success())
}

/// Runs our own benchmark inside and copies what it wrote.
fn bench(root: &Path, share: &Path, topics: &[String]) -> Fallible<bool> {
    let out = share.join("out");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::copy(bench::release_binary()?, share.join("sublet"))?;
    fs::copy(std::env::current_exe()?, share.join("xtask"))?;
    if topics.is_empty() || topics.iter().any(|topic| topic == "programs") {
        bench::programs::make_images()?;
    }
    let fixtures = share.join("cache/sublet/fixtures");
    fs::create_dir_all(&fixtures)?;
    // The user inside cannot make a Debian; it takes the one that root has cached.
    for entry in fs::read_dir(cache().join("fixtures")).into_iter().flatten().flatten() {
        fs::copy(entry.path(), fixtures.join(entry.file_name()))?;
    }
    let mut command = vec!["/share/xtask".to_owned(), "bench".to_owned()];
    command.extend_from_slice(topics);
    let done = enter(root, share, &command)?;
    for topic in fs::read_dir(out).into_iter().flatten().flatten() {
        let to = workspace().join("docs/benchmarks").join(topic.file_name());
        fs::create_dir_all(&to)?;
        for file in fs::read_dir(topic.path())?.flatten() {
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    Ok(done)
}

fn make(root: &Path) -> Fallible<()> {
    let program = which("mmdebstrap").ok_or("mmdebstrap is not installed: apt-get install mmdebstrap")?;
    let mirror = host_mirror().ok_or("apt on this host has no mirror")?;
    fs::create_dir_all(root.parent().unwrap_or(root))?;
    let new = root.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    println!("== rig: {SUITE} with the rivals (some minutes)");
    let include = format!("--include={PACKAGES}");
    let mut strap = Command::new(program);
    strap.args(["--quiet", "--variant=minbase", &include, SUITE]).arg(&new);
    must(strap.arg(format!("deb {mirror} {SUITE} main")))?;
    must(Command::new("chroot").arg(&new).args(["useradd", "-m", "-u", "1000", "-s", "/bin/bash", "dev"]))?;
    fs::write(new.join("etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    fs::rename(&new, root)?;
    Ok(())
}
