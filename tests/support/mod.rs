//! What every system test uses: the real binary in a home of its own, with limits on every wait and nothing left behind.
//!
//! `cargo xtask test` passes everything in the environment (docs/testing.md). A test that lacks something skips itself by
//! name: it notes the reason in the file that xtask sums up, and returns.

#![allow(dead_code, reason = "each test binary uses a part of the helpers")]

pub mod http;
pub mod oracle;
pub mod tar;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub use fixture::skip;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// No single command of a test takes longer, but those that say so.
pub const LIMIT: Duration = Duration::from_mins(1);

/// The storage drivers, each of which must do everything that a container can see.
pub const DRIVERS: [&str; 4] = ["overlay", "fuse", "tree", "copy"];

/// Something that a test needs beside the binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The loopback registry with the image `busybox`.
    Registry,
    /// The image `debian` in it.
    Debian,
    /// More than one id in the container.
    Subids,
    /// A caller who is not root.
    PlainUser,
    /// `/dev/fuse` can be opened.
    Fuse,
    /// `/dev/net/tun` can be opened.
    Tun,
}

impl Need {
    /// Why it is not there, if so.
    fn missing(self) -> Option<&'static str> {
        let opens = |path: &str| fs::OpenOptions::new().read(true).write(true).open(path).is_ok();
        match self {
            Need::Registry if variable("REGISTRY").is_none() => Some("no loopback registry"),
            Need::Debian if variable("DEBIAN").is_none() => Some("no Debian image"),
            Need::Subids if identity() == "one-id" => Some("the caller has one id"),
            Need::PlainUser if identity() == "root" => Some("the caller is root"),
            Need::Fuse if !opens("/dev/fuse") => Some("/dev/fuse cannot be opened"),
            Need::Tun if !opens("/dev/net/tun") => Some("/dev/net/tun cannot be opened"),
            _ => None,
        }
    }
}

/// `$SUBLET_TEST_<name>`.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(format!("SUBLET_TEST_{name}")).ok()
}

/// The same as a number; `None` where it is none.
pub fn number(name: &str) -> Option<u64> {
    variable(name)?.parse().ok()
}

/// `subuids`, `one-id` or `root`.
pub fn identity() -> String {
    variable("IDENTITY").unwrap_or_default()
}

/// The registry's `127.0.0.1:port`.
pub fn registry() -> String {
    variable("REGISTRY").expect("a test that uses the registry names it as a need")
}

/// The small image's reference.
pub fn busybox() -> String {
    format!("{}/busybox", registry())
}

/// The Debian image's reference.
pub fn debian() -> String {
    format!("{}/debian", registry())
}

/// Whether the mirror of the host's apt can be reached; if not, why not.
pub fn mirror() -> Result<(), &'static str> {
    fixture::mirror::reach(variable("MIRROR").as_deref())
}

/// A home, a data directory and a runtime directory of one test. At its end all containers are removed, every file of the store
/// is the caller's, and the store is deleted by plain means, which must work.
pub struct Home {
    /// The directory that holds the others.
    pub directory: PathBuf,
    bin: PathBuf,
}

impl Home {
    /// A fresh home; `None` (and the skip is noted) when something needed is missing.
    pub fn new(needs: &[Need]) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (Some(bin), Some(base)) = (variable("BIN"), variable("DIR")) else {
            skip("run by cargo xtask test");
            return None;
        };
        if let Some(reason) = needs.iter().find_map(|need| need.missing()) {
            skip(reason);
            return None;
        }
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: the runtime directory holds sockets, whose addresses have 107 bytes.
        let directory = Path::new(&base).join(format!("{}-{number}", std::process::id()));
        for name in ["home", "data", "run"] {
            fs::create_dir_all(directory.join(name)).expect("the test directory is the test user's");
        }
        fs::set_permissions(directory.join("run"), fs::Permissions::from_mode(0o700)).expect("our own directory");
        Some(Home { directory, bin: bin.into() })
    }

    /// A home that has the small image.
    pub fn with_busybox(needs: &[Need]) -> Option<Self> {
        let needs: Vec<Need> = [Need::Registry].iter().chain(needs).copied().collect();
        let home = Home::new(&needs)?;
        home.ok(&["pull", &busybox()]);
        Some(home)
    }

    /// A path below the home directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join("home").join(name)
    }

    /// Where the binary keeps its data.
    pub fn store(&self) -> PathBuf {
        self.directory.join("data/sublet")
    }

    /// The binary with these arguments, ready to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.bin);
        command.args(arguments);
        self.surround(&mut command);
        command
    }

    /// Gives a command this home's environment and nothing else.
    pub fn surround(&self, command: &mut Command) {
        command.env_clear().current_dir(self.directory.join("home")).stdin(Stdio::null());
        command.env("HOME", self.directory.join("home")).env("XDG_DATA_HOME", self.directory.join("data"));
        command.env("XDG_RUNTIME_DIR", self.directory.join("run"));
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        // The last one is what the suite has the binary do without.
        for name in ["USER", "LOGNAME", "SUBLET_WITHOUT"] {
            if let Ok(value) = std::env::var(name) {
                command.env(name, value);
            }
        }
    }

    /// The path of the binary, for scripts.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// From now on the binary is a copy of its own, which belongs to the caller.
    pub fn own_binary(&mut self) {
        let directory = self.path("bin");
        fs::create_dir_all(&directory).expect("the home is ours");
        let copy = directory.join("sublet");
        copy_program(variable("BIN").expect("there is no home without"), &copy);
        self.bin = copy;
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Done {
        finish(&mut self.command(arguments), b"", LIMIT)
    }

    /// Runs the binary to its end with this standard input.
    pub fn run_with_input(&self, arguments: &[&str], input: &[u8]) -> Done {
        finish(&mut self.command(arguments), input, LIMIT)
    }

    /// Runs a shell line, which must succeed, on a terminal of its own that script(1) makes; everything that appeared on it.
    #[track_caller]
    pub fn on_a_terminal(&self, line: &str) -> String {
        let mut script = Command::new("script");
        script.args(["-qec", line, "/dev/null"]);
        self.surround(&mut script);
        // Nobody types, and nobody hangs up: script(1) would type an end of file for it.
        let mut child = start(script.stdin(Stdio::piped()));
        let _open = child.stdin.take();
        let done = end(child, LIMIT);
        assert_eq!(done.code, 0, "{line}: {done:#?}");
        done.stdout.replace('\r', "")
    }

    /// Runs the binary, which must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "sublet {arguments:?}: {done:#?}");
        done.stdout
    }

    /// Runs the binary, which must fail with this code; its standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(done.code, code, "sublet {arguments:?}: {done:#?}");
        let errors = done.stderr.lines().filter(|line| line.to_lowercase().contains("error")).count();
        assert!(errors >= 1, "an error must say so: {done:#?}");
        assert!(!done.stderr.contains("panicked"), "an error is not a panic: {done:#?}");
        done.stderr
    }

    /// Runs a script in a fresh container of the small image; its standard output.
    #[track_caller]
    pub fn sh(&self, options: &[&str], script: &str) -> String {
        let image = busybox();
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(options);
        arguments.extend([image.as_str(), "sh", "-c", script]);
        self.ok(&arguments)
    }

    /// Runs a script in the host's bash over a view of the host's root, which has more programs than the small image;
    /// its standard output.
    #[track_caller]
    pub fn host_bash(&self, options: &[&str], script: &str) -> String {
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(options);
        arguments.extend(["host:", "bash", "-c", script]);
        self.ok(&arguments)
    }

    /// The options of limits where this machine can keep them. Where it cannot, they must be refused by name with a hint,
    /// and the test goes on without.
    #[track_caller]
    pub fn limits(&self, image: &str) -> &'static [&'static str] {
        let limits = &["--memory", "512m", "--pids-limit", "200"];
        let mut command = self.command(&["run", "--rm"]);
        let done = finish(command.args(limits).args([image, "true"]), b"", LIMIT);
        if done.code == 0 {
            return limits;
        }
        let refused = done.stderr.contains("--memory ") && done.stderr.contains("hint: ");
        assert!(done.code == 125 && refused, "{done:#?}");
        &[]
    }

    /// `inspect --format` of one container.
    #[track_caller]
    pub fn inspect(&self, container: &str, format: &str) -> String {
        self.ok(&["inspect", "--format", format, container]).trim_end().to_owned()
    }

    /// The ids of all containers.
    pub fn containers(&self) -> Vec<String> {
        self.run(&["ps", "-aq", "--no-trunc"]).stdout.lines().map(str::to_owned).collect()
    }

    /// Every file below the store belongs to the caller, or does once the monitors are done that are giving files back: no
    /// command waits for them.
    #[track_caller]
    pub fn assert_store_is_ours(&self) {
        let uid = nix::unistd::getuid().as_raw();
        eventually("every file of the store is the caller's", || {
            let (mut seen, mut foreign) = (0_u32, None);
            each_file(&self.store(), &mut |path, metadata| {
                seen += 1;
                if metadata.uid() != uid {
                    foreign = Some(path.to_owned());
                }
            });
            assert!(seen > 10, "the store {} holds only {seen} files", self.store().display());
            foreign.is_none()
        });
    }

    /// How many files of the store are not the caller's now.
    pub fn foreign_files(&self) -> u32 {
        let (uid, mut count) = (nix::unistd::getuid().as_raw(), 0);
        each_file(&self.store(), &mut |_, metadata| count += u32::from(metadata.uid() != uid));
        count
    }

    fn clean(&self) -> Result<(), String> {
        for id in self.containers() {
            let done = self.run(&["rm", "-f", &id]);
            if done.code != 0 {
                return Err(format!("rm -f {id}: {done:#?}"));
            }
        }
        let leftover = self.containers();
        if !leftover.is_empty() {
            return Err(format!("containers are left: {leftover:?}"));
        }
        // Monitors may still be giving files back.
        let began = Instant::now();
        while self.foreign_files() > 0 {
            if began.elapsed() > Duration::from_secs(20) {
                return Err(format!("{} files of the store are somebody else's", self.foreign_files()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let here = self.directory.to_string_lossy().into_owned();
        if let Some(line) = mounts.lines().find(|line| line.contains(&here)) {
            return Err(format!("still mounted on the host: {line}"));
        }
        // By the program, which also removes an empty directory that it may not read, as overlayfs makes them.
        let removed = finish(Command::new("rm").arg("-rf").arg(&self.directory), b"", LIMIT);
        if removed.code == 0 { Ok(()) } else { Err(format!("rm -rf {here}: {removed:#?}")) }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let cleaned = self.clean();
        if !std::thread::panicking() {
            cleaned.expect("a test leaves nothing behind");
        }
    }
}

/// Copies a program that is to be executed. Not in our own process: what another thread starts meanwhile would have the
/// copy open for writing, and while anybody has it cannot be executed.
#[track_caller]
pub fn copy_program(from: impl AsRef<Path>, to: &Path) {
    let done = finish(Command::new("cp").arg(from.as_ref()).arg(to), b"", LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
}

/// How a script of a test comes into its namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// A mount namespace; for a plain user as root of a user namespace with one id.
    Root,
    /// The same, but a plain user stays who it is, with every capability.
    Caller,
}

/// Runs a shell script in a mount namespace of its own, after `prepare`, which makes the machine that the script is about.
///
/// `None` (and the skip is noted) where this host does not let a test do what `prepare` does. That is found out by a run
/// of `prepare` alone, in which nothing of ours takes part: what fails afterwards is ours, whatever it says.
#[track_caller]
pub fn in_namespaces(home: &Home, within: Within, prepare: &str, script: &str) -> Option<Done> {
    let run = |script: &str| {
        let mut command = Command::new("unshare");
        match within {
            _ if identity() == "root" => {}
            Within::Root => drop(command.args(["--user", "--map-root-user"])),
            Within::Caller => drop(command.args(["--user", "--map-current-user", "--keep-caps"])),
        }
        command.args(["--mount", "sh", "-c", script]);
        home.surround(&mut command);
        finish(&mut command, b"", LIMIT)
    };
    let tried = run(prepare);
    if tried.code != 0 {
        let why = tried.stderr.lines().last().unwrap_or("no word why");
        skip(&format!("a test may not make such a machine here: {why}"));
        return None;
    }
    Some(run(&format!("{prepare} && {script}")))
}

/// Calls `visit` for every file below a directory, the directory included; what vanishes meanwhile is passed over.
pub fn each_file(path: &Path, visit: &mut impl FnMut(&Path, &fs::Metadata)) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    visit(path, &metadata);
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            each_file(&entry.path(), visit);
        }
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Done {
    /// The exit code as a shell shows it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Done {
    fn new(output: &Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Done { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }
}

/// Runs a command to its end and to the end of its output, which a detached child must not hold open.
#[track_caller]
pub fn finish(command: &mut Command, input: &[u8], limit: Duration) -> Done {
    if !input.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = start(command);
    if let Some(mut stdin) = child.stdin.take() {
        let input = input.to_vec();
        // The reader may end early; then the rest has no taker.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    end(child, limit)
}

/// Starts a command with its output in pipes.
pub fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

/// Waits for a started command; at the limit it is killed and the test fails.
#[track_caller]
pub fn end(child: Child, limit: Duration) -> Done {
    let pid = Pid::from_raw(child.id() as i32);
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    let output = receive.recv_timeout(limit).unwrap_or_else(|_| {
        // It may have ended this moment.
        let _ = kill(pid, Signal::SIGKILL);
        let rest = receive.recv_timeout(Duration::from_secs(2)).ok().and_then(Result::ok);
        panic!("not finished after {limit:?}: {:#?}", rest.as_ref().map(Done::new))
    });
    Done::new(&output.expect("the child was not waited for before"))
}

/// Sends a signal to a started command.
pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).expect("the child was not waited for");
}

/// Waits until a condition holds; there is no event for it, or the test must not depend on the event.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does something so many times: the last quarter may cost twice what the first did, by the median. What else runs on the
/// machine may cost more, but not for ever; so a last quarter that was slow is measured again.
#[track_caller]
pub fn assert_flat(times: usize, mut what: impl FnMut()) {
    let quarter = times / 4;
    let mut median = |count: usize| {
        let mut each: Vec<Duration> = (0..count)
            .map(|_| {
                let began = Instant::now();
                what();
                began.elapsed()
            })
            .collect();
        each.sort_unstable();
        each[count / 2]
    };
    let first = median(quarter);
    median(times - 2 * quarter);
    let mut last = median(quarter);
    for _ in 0..3 {
        if last > first * 2 {
            last = median(quarter);
        }
    }
    println!("{times} times: the first quarter took {first:?} each, the last {last:?}");
    assert!(last <= first * 2, "the first quarter took {first:?} each, the last {last:?}");
}

/// Reads from a pipe until the text is there.
#[track_caller]
pub fn read_until(stream: &mut impl Read, text: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let length = stream.read(&mut byte).expect("a pipe can be read");
        assert!(length > 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// The pids of all processes whose `argv[0]` is this role's name, e.g. `sublet-monitor`, or whose arguments hold a text.
pub fn processes(matches: impl Fn(&[String]) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<i32>().ok());
    let matching = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        matches(&words)
    };
    pids.filter(matching).collect()
}

/// The parent of a process; 0 when that has ended.
pub fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// Bytes on the disk by du(1).
pub fn du(path: &Path) -> u64 {
    let done = finish(Command::new("du").args(["-s", "-B1"]).arg(path), b"", LIMIT);
    done.stdout.split_whitespace().next().unwrap_or_default().parse().expect("a number")
}

/// A column of one row of `system df`.
pub fn df(home: &Home, kind: &str, column: &str) -> u64 {
    let rows = home.ok(&["system", "df", "--format", &format!("{{{{.Type}}}}={{{{.{column}}}}}")]);
    let row = rows.lines().find_map(|line| line.strip_prefix(&format!("{kind}=")));
    row.expect("a row").parse().expect("a number")
}

/// What a check finds: nothing wrong, and this is how many bytes there are.
#[track_caller]
pub fn assert_sound(home: &Home, when: &str) -> String {
    let done = home.run(&["system", "fsck"]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{when}: {done:#?}");
    // The keeper of an image's files may write what was read of it, soon after the last container has ended.
    let store = home.store().join("store");
    let mut before = du(&store);
    loop {
        let (told, after) = (df(home, "Images", "SizeBytes"), du(&store));
        if before == after {
            assert_eq!(told, after, "{when}");
            break;
        }
        before = after;
    }
    done.stdout
}

/// A number that no other test uses, to recognise a payload by (`sleep <number>`).
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}{:03}", 1_000_000 + std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A TCP port of this machine that was free a moment ago.
pub fn free_port() -> u16 {
    /// Below those that the kernel gives to whoever connects or listens without naming one, which the next test may.
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Another suite may run beside this one.
    let begin = std::process::id().wrapping_mul(97);
    loop {
        let number = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST;
        let port = u16::try_from(number).expect("a port");
        if std::net::TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

/// Numbers that another run repeats which is given the seed.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// By `SUBLET_TEST_SEED`, else by the clock. The seed is printed.
    pub fn seeded() -> Self {
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64;
        let seed = number("SEED").unwrap_or_else(clock);
        println!("SUBLET_TEST_SEED={seed}");
        Random(seed)
    }

    /// The next one, less than the bound.
    pub fn below(&mut self, bound: u64) -> u64 {
        // Knuth's 64-bit congruential generator.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Other numbers, for another thread.
    pub fn split(&mut self) -> Self {
        Random(self.below(u64::MAX) << 20 ^ self.below(u64::MAX))
    }
}

/// Bytes that do not get smaller.
pub fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    std::iter::repeat_with(word).take(size.div_ceil(8)).flat_map(u64::to_le_bytes).take(size).collect()
}
