//! `cargo xtask test`: prepare, build, unit tests as the caller, system tests under each identity, the guest, the sum.
//!
//! Root has three identities: the test user with subordinate ids, the one without, and root. A plain user has one, its
//! own. System tests drive the real binary and get everything through the environment (`docs/testing.md`). As root all
//! of this happens in a mount namespace of our own, where `/sys/fs/cgroup` is cgroup v2 even on a host that mixes
//! versions, and each identity runs in a cgroup that its user owns: what is still in it at the end has leaked.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{User, getuid};
use serde_json::Value;

use crate::debian;
use crate::host::{self, USER_WITH_ONE_ID, USER_WITH_SUBIDS, musl_target};
use crate::pjdfstest;
use crate::refuse;
use crate::registry::Registry;
use crate::shell::{Fallible, ShellError, cargo, command, line, output, run as must, which, workspace};
use crate::tally::Tally;

/// One test binary may take this long.
const UNIT_LIMIT: Duration = Duration::from_mins(5);
/// One binary of system tests under one identity may take this long.
const SYSTEM_LIMIT: Duration = Duration::from_mins(10);
/// One boot of the guest, under software emulation.
const BOOT_LIMIT: Duration = Duration::from_mins(14);
/// The guest's script: two boots where the first does not come to its end, the disks, and the console of a boot that hangs.
const GUEST_LIMIT: Duration = Duration::from_mins(30);
/// Roles linger for 30 s after their last container; what is there after this time has leaked.
const LINGER_LIMIT: Duration = Duration::from_secs(45);
/// What tests take from our own environment: how long they go on, and with which random numbers.
const OF_CALLER: [&str; 4] = ["SUBLET_TEST_KILLS", "SUBLET_TEST_STORM_S", "SUBLET_TEST_SEED", "SUBLET_TEST_SEEDS"];
/// How many guests run at a time.
const GUESTS_AT_ONCE: usize = 2;
/// Guest payloads that need the registry with the Debian image and the host's mirror, and so a network.
const WITH_NETWORK: [&str; 1] = ["apt"];
/// The program of that name in the bed, and the tests that run it.
const PJDFSTEST: &str = "pjdfstest";
const WITH_PJDFSTEST: &str = "oracle";
/// The file systems in the bed on which tests put stores, their directory there, and the tests that do.
const FILE_SYSTEMS: [&str; 4] = ["ext4", "xfs", "btrfs", "tmpfs"];
const OF_FILE_SYSTEMS: &str = "fs";
const WITH_FILE_SYSTEMS: &str = "storage";
/// As large as mkfs.xfs asks for at least; a file of holes.
const DISK_BYTES: u64 = 512 << 20;
/// The host's loopback as QEMU's user-mode network shows it to the guest.
const HOST_OF_GUEST: &str = "10.0.2.2";
/// Where cgroup v2 is in our mount namespace.
const CGROUP: &str = "/sys/fs/cgroup";

/// What to run: everything, or a part while one works on it.
#[derive(Debug, Default)]
pub struct Selection {
    /// Names of test binaries (`cli`, `store/store`), or of guest payloads behind `vm/`; none means all.
    names: Vec<String>,
    /// One rung of the ladder of ids; none means all that the caller has.
    rung: Option<String>,
    /// System calls that the system tests have to do without; see [`crate::refuse`].
    refused: Option<String>,
    /// Passed on to each libtest binary.
    libtest: Vec<String>,
}

impl Selection {
    /// Reads `[NAME]… [--identity RUNG] [--refuse CALLS] [-- LIBTEST ARGUMENT…]`; `None` when it is something else.
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let mut selection = Selection::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--" => selection.libtest = arguments.by_ref().cloned().collect(),
                "--identity" => selection.rung = Some(arguments.next()?.clone()),
                "--refuse" => selection.refused = Some(arguments.next()?.clone()),
                option if option.starts_with('-') => return None,
                name => selection.names.push(name.to_owned()),
            }
        }
        Some(selection)
    }

    fn has(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// The first name that names nothing.
    fn unknown(&self, tests: &[TestBinary], payloads: &[PathBuf]) -> Option<&str> {
        let known = |name: &str| {
            let payload = name.strip_prefix("vm/");
            tests.iter().any(|test| test.name == name) || payloads.iter().any(|path| Some(&*name_of(path)) == payload)
        };
        self.names.iter().map(String::as_str).find(|name| !known(name))
    }

    /// Whether nothing outside the guest is wanted.
    fn is_guest_alone(&self) -> bool {
        !self.names.is_empty() && self.names.iter().all(|name| name.starts_with("vm/"))
    }

    /// Whether anything is wanted that pulls images.
    fn needs_images(&self) -> bool {
        !self.is_guest_alone() || WITH_NETWORK.iter().any(|name| self.has(&format!("vm/{name}")))
    }

    fn has_rung(&self, rung: &str) -> bool {
        self.rung.as_ref().is_none_or(|wanted| wanted == rung)
    }
}

/// Runs the whole command; true when nothing failed.
pub fn run(selection: &Selection) -> Fallible<bool> {
    host::packages()?;
    host::rust_target()?;
    if host::is_root() {
        host::users_and_devices()?;
    }
    let mut tally = Tally::default();
    let binary = build_binary(&mut tally)?;
    let mut tests = if selection.is_guest_alone() { Vec::new() } else { build_tests(["--workspace"])? };
    if let Some(name) = selection.unknown(&tests, &payloads(&workspace().join("tests/vm"))?) {
        return Err(format!("nothing to test is called {name}").into());
    }
    tests.retain(|test| selection.has(&test.name));
    let skips = target_directory()?.join("skips");
    for test in tests.iter().filter(|test| !test.system) {
        let mut command = Command::new(&test.executable);
        command.current_dir(&test.package).env("CARGO_MANIFEST_DIR", &test.package).args(&selection.libtest);
        fs::write(&skips, "")?;
        tally.run(&test.name, command.env("SUBLET_TEST_SKIPS", &skips), UNIT_LIMIT)?;
        tally.take_skips(&skips, &test.name)?;
    }
    let mut programs = vec![("sublet", binary)];
    if selection.has(WITH_PJDFSTEST) {
        match pjdfstest::program() {
            Some(program) => programs.push((PJDFSTEST, program)),
            None => tally.skip("pjdfstest: needs musl-tools and its crate, once"),
        }
    }
    let bed = Bed::make(&programs, &tests)?;
    if selection.needs_images() {
        bed.images(&mut tally)?;
    }
    if selection.has(WITH_FILE_SYSTEMS) {
        bed.file_systems(&mut tally)?;
    }
    if !selection.is_guest_alone() {
        let mut places = Vec::new();
        let all: Vec<&TestBinary> = tests.iter().collect();
        for identity in identities()?.iter().filter(|identity| selection.has_rung(identity.rung)) {
            places.push(bed.run(identity, selection.refused.as_deref(), &all, &selection.libtest, &mut tally)?);
        }
        if selection.names.is_empty() && selection.refused.is_none() {
            places.extend(bed.run_refused(&tests, &selection.libtest, &mut tally)?);
        }
        // Nobody has to wait for the roles of one identity while the next one's tests run.
        for place in places {
            place.leave(&mut tally)?;
        }
    }
    guest(&bed, selection, &mut tally)?;
    Ok(tally.finish())
}

/// The static binary in the profile that tests use; where musl-tools is missing, one that is linked to the host's
/// libraries.
fn build_binary(tally: &mut Tally) -> Fallible<PathBuf> {
    println!("== build");
    let mut build = cargo(["build", "--quiet", "--profile", "quick", "--bin", "sublet"]);
    if which(host::MUSL_COMPILER).is_none() {
        tally.skip("static binary: musl-tools is not installed, so the system tests run one that is not static");
        must(&mut build)?;
        return Ok(target_directory()?.join("quick/sublet"));
    }
    let target = musl_target();
    must(build.args(["--target", &target]))?;
    Ok(target_directory()?.join(&target).join("quick/sublet"))
}

fn target_directory() -> Fallible<PathBuf> {
    let metadata = output(&mut cargo(["metadata", "--format-version=1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    Ok(metadata["target_directory"].as_str().ok_or("cargo metadata without target_directory")?.into())
}

/// A libtest binary.
struct TestBinary {
    name: String,
    executable: PathBuf,
    package: PathBuf,
    /// Whether it belongs to the root package's `tests/`.
    system: bool,
}

fn build_tests<'a>(which: impl IntoIterator<Item = &'a str>) -> Fallible<Vec<TestBinary>> {
    let mut build = cargo(["test", "--quiet", "--no-run", "--message-format=json-render-diagnostics"]);
    build.args(which);
    let done = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !done.status.success() {
        return Err(ShellError::Failed { line: line(&build), status: done.status, said: String::new() }.into());
    }
    let messages = done.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut tests = Vec::new();
    for message in messages {
        tests.extend(test_binary(&serde_json::from_slice(message)?));
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// The test binary that a message of cargo announces, if it does.
fn test_binary(message: &Value) -> Option<TestBinary> {
    let executable = PathBuf::from(message["executable"].as_str()?);
    if message["profile"]["test"] != true {
        return None;
    }
    let package = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let target = message["target"]["name"].as_str()?;
    let integration = message["target"]["kind"][0] == "test";
    let system = integration && package == workspace().canonicalize().ok()?;
    let area = package.file_name()?.to_string_lossy().into_owned();
    let name = if system { target.to_owned() } else { format!("{area}/{target}") };
    Some(TestBinary { name, executable, package, system })
}

/// Under whom system tests run, and on which rung of the ladder of ids.
struct Identity {
    /// `subuids`, `one-id` or `root`.
    rung: &'static str,
    user: User,
}

fn identities() -> Fallible<Vec<Identity>> {
    let named = |name: &str| -> Fallible<User> { Ok(User::from_name(name)?.ok_or_else(|| format!("no user {name}"))?) };
    if host::is_root() {
        return Ok(vec![
            Identity { rung: "subuids", user: named(USER_WITH_SUBIDS)? },
            Identity { rung: "one-id", user: named(USER_WITH_ONE_ID)? },
            Identity { rung: "root", user: named("root")? },
        ]);
    }
    let user = User::from_uid(getuid())?.ok_or("the calling user has no entry in the user database")?;
    let text = fs::read_to_string("/etc/subuid").unwrap_or_default();
    let mine =
        |line: &str| line.split(':').next().is_some_and(|owner| owner == user.name || owner == user.uid.to_string());
    let rung = if text.lines().any(mine) && which("newuidmap").is_some() { "subuids" } else { "one-id" };
    Ok(vec![Identity { rung, user }])
}

/// What system tests need: a directory that every identity can reach, the binaries, the registry with the images.
struct Bed {
    directory: PathBuf,
    registry: Option<Registry>,
    has_debian: std::cell::Cell<bool>,
    has_pjdfstest: bool,
    has_cgroup: bool,
}

impl Bed {
    /// With these programs and the tests' own.
    fn make(programs: &[(&str, PathBuf)], tests: &[TestBinary]) -> Fallible<Self> {
        // A short path: a socket's address holds 107 bytes.
        let directory = nix::unistd::mkdtemp("/tmp/sublet-XXXXXX")?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let bin = directory.join("bin");
        fs::create_dir(&bin)?;
        let systems = tests.iter().filter(|test| test.system).map(|test| (test.name.as_str(), &test.executable));
        for (name, from) in systems.chain(programs.iter().map(|(name, from)| (*name, from))) {
            fs::copy(from, bin.join(name))?;
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755))?;
        }
        let has_pjdfstest = programs.iter().any(|(name, _)| *name == PJDFSTEST);
        let has_cgroup = match private_cgroup() {
            Ok(there) => there,
            Err(error) => {
                println!("no cgroups of our own: {error}");
                false
            }
        };
        let registry = Registry::start(&directory)?;
        Ok(Bed { directory, registry, has_debian: false.into(), has_pjdfstest, has_cgroup })
    }

    /// Makes the images and pushes them; what is not possible is one skip by name.
    fn images(&self, tally: &mut Tally) -> Fallible<()> {
        let Some(registry) = &self.registry else {
            tally.skip("registry and images: docker-registry is not installed");
            return Ok(());
        };
        match debian::busybox()? {
            Some(image) => fixture::push::push(&registry.address, "busybox", "latest", &image)?,
            None => tally.skip("image busybox: busybox-static is not installed"),
        }
        match debian::debian()? {
            Some(image) => {
                fixture::push::push(&registry.address, "debian", "latest", &image)?;
                self.has_debian.set(true);
                println!("debian image: {}", image.digest());
            }
            None => tally.skip("image debian: needs mmdebstrap, a mirror and root, once"),
        }
        Ok(())
    }

    /// Makes and mounts file systems on which everybody may make directories; what cannot be had is one skip by name.
    fn file_systems(&self, tally: &mut Tally) -> Fallible<()> {
        if !self.has_cgroup {
            tally.skip("stores on other file systems: only root can make them");
            return Ok(());
        }
        for name in FILE_SYSTEMS {
            let place = self.directory.join(OF_FILE_SYSTEMS).join(name);
            fs::create_dir_all(&place)?;
            if let Err(error) = self.mount_new(name, &place) {
                tally.skip(format!("stores on {name}: {error}"));
                fs::remove_dir(&place)?;
            }
        }
        Ok(())
    }

    fn mount_new(&self, name: &str, place: &Path) -> Fallible<()> {
        let mut mount = command("mount", ["-t", name]);
        if name == "tmpfs" {
            mount.args(["-o", "size=512m", name]);
        } else {
            let disk = self.directory.join(format!("{name}.disk"));
            fs::File::create(&disk)?.set_len(DISK_BYTES)?;
            output(command(format!("mkfs.{name}"), ["-q"]).arg(&disk))?;
            mount.args(["-o", "loop"]).arg(&disk);
        }
        output(mount.arg(place))?;
        Ok(fs::set_permissions(place, fs::Permissions::from_mode(0o1777))?)
    }

    /// The registry's address in a guest that can also install packages; an error says what is missing for that.
    fn registry_for_guest(&self) -> Result<String, &'static str> {
        let registry = self.registry.as_ref().ok_or("no loopback registry")?;
        if !self.has_debian.get() {
            return Err("no Debian image");
        }
        fixture::mirror::reach(debian::host_mirror().as_deref())?;
        let (_, port) = registry.address.rsplit_once(':').ok_or("the registry has no port")?;
        Ok(format!("{HOST_OF_GUEST}:{port}"))
    }

    /// Runs what concerns the OCI runtime, and the choice of a driver, on kernels that lack calls, under the identity that
    /// needs the most of them.
    fn run_refused(&self, tests: &[TestBinary], libtest: &[String], tally: &mut Tally) -> Fallible<Vec<Place>> {
        if !host::is_root() {
            tally.skip("oci without newer system calls: only root can refuse them and keep the set-id helpers");
            return Ok(Vec::new());
        }
        let identity = identities()?.into_iter().find(|identity| identity.rung == "subuids");
        let identity = identity.ok_or("no identity has subordinate ids")?;
        let mut places = Vec::new();
        for round in refuse::ROUNDS {
            let mut areas = Vec::new();
            for area in round.areas {
                areas.push(tests.iter().find(|test| test.name == *area).ok_or_else(|| format!("no tests are {area}"))?);
            }
            if let Some(unit) = areas.iter().find(|test| !test.system) {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["refuse", round.calls]).arg(&unit.executable).current_dir(&unit.package);
                tally.run(&format!("{} (without {})", unit.name, round.calls), &mut command, UNIT_LIMIT)?;
                continue;
            }
            // What takes long says nothing more here: it is about many containers, kills, and podman.
            let long = ["--skip", "storm::", "--skip", "killed::", "--skip", "podman::", "--skip", "races::"];
            let chosen = long.iter().chain(round.tests).map(|word| (*word).to_owned());
            let libtest: Vec<String> = libtest.iter().cloned().chain(chosen).collect();
            places.push(self.run(&identity, Some(round.calls), &areas, &libtest, tally)?);
        }
        Ok(places)
    }

    /// Runs every system test under one identity, without some system calls if so said.
    fn run(
        &self,
        identity: &Identity,
        refused: Option<&str>,
        tests: &[&TestBinary],
        libtest: &[String],
        tally: &mut Tally,
    ) -> Fallible<Place> {
        let place = Place::make(&self.directory, identity, refused, self.has_cgroup)?;
        for test in tests.iter().filter(|test| test.system) {
            let skips = place.directory.join(format!("{}.skips", test.name));
            fs::write(&skips, "")?;
            chown(&skips, Some(identity.user.uid.as_raw()), None)?;
            let mut command = place.command(identity, &self.directory.join("bin").join(&test.name))?;
            command.env("SUBLET_TEST_BIN", self.directory.join("bin/sublet"));
            command.env("SUBLET_TEST_SKIPS", &skips);
            command.envs(OF_CALLER.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
            if let Some(registry) = &self.registry {
                command.env("SUBLET_TEST_REGISTRY", &registry.address);
            }
            if self.has_debian.get() {
                command.env("SUBLET_TEST_DEBIAN", "1");
            }
            if self.directory.join(OF_FILE_SYSTEMS).exists() {
                command.env("SUBLET_TEST_FILE_SYSTEMS", self.directory.join(OF_FILE_SYSTEMS));
            }
            if let Some(refused) = refused {
                command.env("SUBLET_TEST_REFUSED", refused);
            }
            if self.has_pjdfstest {
                command.env("SUBLET_TEST_PJDFSTEST", self.directory.join("bin").join(PJDFSTEST));
            }
            if let Some(mirror) = debian::host_mirror() {
                command.env("SUBLET_TEST_MIRROR", mirror);
            }
            // Tests that kill roles look at every process of the user.
            command.arg(if test.name == "crash" { "--test-threads=1" } else { "--test-threads=2" });
            command.args(libtest);
            let without = refused.map(|refused| format!(", without {refused}")).unwrap_or_default();
            let name = format!("{} ({}{without})", test.name, identity.rung);
            tally.run(&name, &mut command, SYSTEM_LIMIT)?;
            tally.take_skips(&skips, &name)?;
        }
        Ok(place)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for place in FILE_SYSTEMS.map(|name| self.directory.join(OF_FILE_SYSTEMS).join(name)) {
            // None is there where none was made. What still has something open there was told of as a leak.
            let _ = umount2(&place, MntFlags::MNT_DETACH);
        }
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            eprintln!("cannot remove {}: {error}", self.directory.display());
        }
    }
}

/// Root: goes into a mount namespace where [`CGROUP`] is cgroup v2. True when there are cgroups to give away.
fn private_cgroup() -> Fallible<bool> {
    if !host::is_root() {
        return Ok(false);
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    // No event reaches the host; below us all is shared, as systemd has it: what leaves a container would be seen.
    for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | propagation, None::<&str>)?;
    }
    if !Path::new(CGROUP).join("cgroup.controllers").exists() {
        mount(Some("cgroup2"), CGROUP, Some("cgroup2"), MsFlags::empty(), None::<&str>)?;
    }
    Ok(true)
}

/// One identity's home, runtime directory and cgroup.
struct Place {
    rung: &'static str,
    directory: PathBuf,
    cgroup: Option<PathBuf>,
    refused: Option<String>,
}

impl Place {
    fn make(bed: &Path, identity: &Identity, refused: Option<&str>, has_cgroup: bool) -> Fallible<Self> {
        let (uid, gid) = (identity.user.uid.as_raw(), identity.user.gid.as_raw());
        let numbers = 0..;
        let free = |number: &u32| !bed.join(format!("{}{number}", identity.rung)).exists();
        let number = numbers.into_iter().find(free).unwrap_or_default();
        let directory = bed.join(format!("{}{number}", identity.rung));
        for path in [directory.clone(), directory.join("home"), directory.join("run")] {
            fs::create_dir(&path)?;
            chown(&path, Some(uid), Some(gid))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
        }
        let mut place = Place { rung: identity.rung, directory, cgroup: None, refused: refused.map(str::to_owned) };
        if has_cgroup {
            let name = bed.file_name().unwrap_or_default().to_string_lossy();
            let group = Path::new(CGROUP).join(format!("{name}-{}{number}", identity.rung));
            for path in [group.clone(), group.join("in")] {
                fs::create_dir(&path)?;
                let files = ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"];
                for file in files.iter().map(|file| path.join(file)).filter(|file| file.exists()) {
                    chown(&file, Some(uid), Some(gid))?;
                }
            }
            place.cgroup = Some(group);
        }
        Ok(place)
    }

    /// A program under this identity, in its cgroup, with nothing of our environment.
    fn command(&self, identity: &Identity, program: &Path) -> Fallible<Command> {
        let enter = self.cgroup.as_ref().map(|group| group.join("in/cgroup.procs"));
        let script = match (enter, host::is_root()) {
            (Some(procs), _) => format!("echo $$ >{} && exec \"$@\"", procs.display()),
            (None, _) => "exec \"$@\"".to_owned(),
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script, "sh"]);
        if let Some(refused) = &self.refused {
            command.arg(std::env::current_exe()?).args(["refuse", refused]);
        }
        if host::is_root() {
            let ids = [format!("--reuid={}", identity.user.uid), format!("--regid={}", identity.user.gid)];
            command.arg("setpriv").args(ids).arg("--init-groups");
        }
        command.arg(program).env_clear().current_dir(&self.directory);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", self.directory.join("home")).env("XDG_RUNTIME_DIR", self.directory.join("run"));
        command.env("USER", &identity.user.name).env("LOGNAME", &identity.user.name);
        command.env("SUBLET_TEST_DIR", &self.directory).env("SUBLET_TEST_IDENTITY", identity.rung);
        command.env("RUST_BACKTRACE", "1");
        Ok(command)
    }

    /// Waits until nothing is left in the cgroup, kills what stays, and removes the group.
    fn leave(self, tally: &mut Tally) -> Fallible<()> {
        let Some(group) = self.cgroup else { return Ok(()) };
        let began = Instant::now();
        let mut left = members(&group);
        // Emptying of a tree of groups is not one event; the limit is what matters.
        while !left.is_empty() && began.elapsed() < LINGER_LIMIT {
            std::thread::sleep(Duration::from_millis(200));
            left = members(&group);
        }
        for process in &left {
            tally.failed.push(format!("leak ({}): {process}", self.rung));
        }
        if !left.is_empty() {
            fs::write(group.join("cgroup.kill"), "1")?;
            std::thread::sleep(Duration::from_secs(1));
        }
        remove_groups(&group);
        Ok(())
    }
}

/// The processes in a group and all groups below: `pid command line`.
fn members(group: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        found.push(format!("{pid} {}", String::from_utf8_lossy(&line).replace('\0', " ").trim_end()));
    }
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(members(&entry.path()));
    }
    found
}

/// Removes a group and all groups below; one that is in use stays and is named.
fn remove_groups(group: &Path) {
    let below = fs::read_dir(group).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_groups(&entry.path());
    }
    if let Err(error) = fs::remove_dir(group) {
        eprintln!("cannot remove {}: {error}", group.display());
    }
}

/// The tests that need systemd, in a QEMU guest: each directory of `tests/vm` with a `run.sh` is one payload and one
/// boot. It runs as the guest's root with `lib.sh` and the binary beside it, and prints what libtest would print.
fn guest(bed: &Bed, selection: &Selection, tally: &mut Tally) -> Fallible<()> {
    let script = workspace().join("tests/vm/guest");
    let mut payloads = payloads(&workspace().join("tests/vm"))?;
    payloads.retain(|payload| selection.has(&format!("vm/{}", name_of(payload))));
    if payloads.is_empty() {
        return Ok(());
    }
    if which("qemu-system-x86_64").is_none() || !host::is_root() {
        let reason =
            if host::is_root() { "qemu-system-x86_64 is not installed" } else { "root makes the guest's disks" };
        tally.skipped.extend(payloads.iter().map(|payload| format!("vm {}: {reason}", name_of(payload))));
        return Ok(());
    }
    println!("== guest image (some minutes, once)");
    if let Err(error) = must(Command::new(&script).arg("make")) {
        tally.skipped.extend(payloads.iter().map(|payload| format!("vm {}: no image: {error}", name_of(payload))));
        return Ok(());
    }
    let mut ready = Vec::new();
    for payload in &payloads {
        let name = name_of(payload);
        let directory = bed.directory.join("vm").join(&name);
        fs::create_dir_all(&directory)?;
        if WITH_NETWORK.contains(&name.as_str()) {
            match bed.registry_for_guest() {
                Ok(address) => fs::write(directory.join("registry"), address + "\n")?,
                Err(reason) => {
                    tally.skip(format!("vm {name}: {reason}"));
                    continue;
                }
            }
        }
        let own = fs::read_dir(payload)?.flatten().map(|entry| entry.path());
        for file in own.chain([workspace().join("tests/vm/lib.sh"), bed.directory.join("bin/sublet")]) {
            fs::copy(&file, directory.join(name_of(&file)))?;
        }
        // Crate tests that it runs, as cargo is told of them: `-p CRATE --test NAME` a line.
        for line in fs::read_to_string(payload.join("tests")).unwrap_or_default().lines() {
            for test in build_tests(line.split(' '))? {
                fs::copy(&test.executable, directory.join(test.name.rsplit('/').next().unwrap_or_default()))?;
            }
        }
        ready.push((name, directory));
    }
    boot_all(&script, &ready, tally);
    Ok(())
}

/// Runs the payloads, some at once: a guest keeps one processor of the host busy at most times.
fn boot_all(script: &Path, payloads: &[(String, PathBuf)], tally: &mut Tally) {
    let next = AtomicUsize::new(0);
    let booted = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..GUESTS_AT_ONCE {
            scope.spawn(|| {
                while let Some((name, directory)) = payloads.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut boot = Command::new(script);
                    boot.env("SUBLET_VM_LIMIT_S", BOOT_LIMIT.as_secs().to_string());
                    let mut apart = Tally::apart();
                    let done = apart.run(&format!("vm {name}"), boot.arg("run").arg(directory), GUEST_LIMIT);
                    if let Err(error) = done {
                        apart.failed.push(format!("vm {name}: {error}"));
                    }
                    booted.lock().unwrap_or_else(PoisonError::into_inner).push(apart);
                }
            });
        }
    });
    booted.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().for_each(|apart| tally.add(apart));
}

/// The payload directories in order of their names.
fn payloads(directory: &Path) -> Fallible<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)?.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.join("run.sh").exists());
    found.sort();
    Ok(found)
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
