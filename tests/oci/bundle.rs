//! A bundle with a root file system of busybox, and the runtime called on it.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::{Value, json};

use crate::support::{Done, Home, LIMIT, finish, read_until, skip, start, unique};

/// Programs that scripts of the tests use.
const APPLETS: [&str; 24] = [
    "cat", "chmod", "echo", "env", "false", "grep", "head", "hostname", "id", "ls", "mkdir", "mount", "od", "printf",
    "ps", "readlink", "rm", "sh", "sleep", "stat", "touch", "tr", "true", "umount",
];

/// What tests call their containers.
const NAMES: [&str; 3] = ["box", "first", "second"];

/// A bundle in a home of its own. What is left of its containers at the end is removed.
pub struct Bundle {
    /// Where the runtime keeps its states.
    pub home: Home,
    /// The bundle's directory.
    pub path: PathBuf,
    /// What `config.json` will be.
    pub config: Value,
    /// Variables of the runtime's.
    pub env: Vec<(&'static str, String)>,
    /// Ends every id, as the cgroups of all tests are siblings.
    number: String,
}

impl Bundle {
    /// A new bundle whose configuration is that of `spec`, without a terminal; `None` (and the skip is noted) without the
    /// programs.
    pub fn new() -> Option<Self> {
        let home = Home::new(&[])?;
        let busybox = Bundle::busybox()?;
        let path = home.path("bundle");
        for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(path.join("rootfs").join(name)).expect("the home is ours");
        }
        fs::copy(busybox, path.join("rootfs/bin/busybox")).expect("busybox can be copied");
        for applet in APPLETS {
            symlink("busybox", path.join("rootfs/bin").join(applet)).expect("the home is ours");
        }
        fs::write(path.join("rootfs/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/www:/bin/sh\n")
            .expect("the home is ours");
        fs::set_permissions(path.join("rootfs/tmp"), fs::Permissions::from_mode(0o1777)).expect("the home is ours");
        let mut bundle = Bundle { home, path, config: Value::Null, env: Vec::new(), number: unique() };
        bundle.ok(&["spec", "--rootless", "--bundle", &bundle.at()]);
        let text = fs::read(bundle.path.join("config.json")).expect("spec has written it");
        bundle.config = serde_json::from_slice(&text).expect("spec writes JSON");
        bundle.config["process"]["terminal"] = json!(false);
        bundle.config["root"]["readonly"] = json!(false);
        Some(bundle)
    }

    /// The host's busybox; without one the skip is noted.
    pub fn busybox() -> Option<&'static str> {
        let found = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        if found.is_none() {
            skip("busybox is not installed");
        }
        found
    }

    /// The bundle's directory as text.
    pub fn at(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    /// Has the container join these namespaces of a process, named as in `/proc/PID/ns` and by the specification alike. A user
    /// namespace that is joined has its maps.
    pub fn join(&mut self, pid: impl Display, names: &[&str]) -> &mut Self {
        for name in names {
            let list = self.config["linux"]["namespaces"].as_array_mut().expect("a list");
            list.retain(|one| one["type"] != *name);
            list.push(json!({ "type": name, "path": format!("/proc/{pid}/ns/{name}") }));
        }
        if names.contains(&"user") {
            for map in ["uidMappings", "gidMappings"] {
                self.config["linux"][map] = json!(null);
            }
        }
        self
    }

    /// Makes the payload a script.
    pub fn script(&mut self, script: &str) -> &mut Self {
        self.config["process"]["args"] = json!(["sh", "-c", script]);
        self
    }

    /// Appends to a list of the configuration, which is made when it is missing.
    pub fn push(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer has a slash");
        let list = &mut self.config.pointer_mut(parent).expect("the parent is there")[name];
        match list {
            Value::Array(list) => list.push(value),
            _ => *list = json!([value]),
        }
        self
    }

    /// Maps all subordinate ids that the caller has behind its own: 0 is the caller.
    pub fn map_all(&mut self) -> &mut Self {
        let name = std::env::var("USER").unwrap_or_default();
        let range = |path: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}:")).map(str::to_owned));
            let line = line.expect("the test asked for subordinate ids");
            let (start, count) = line.split_once(':').expect("START:COUNT");
            (start.parse::<u32>().expect("a number"), count.parse::<u32>().expect("a number"))
        };
        let map = |own: u32, (start, count): (u32, u32)| {
            json!([{ "containerID": 0, "hostID": own, "size": 1 },
                   { "containerID": 1, "hostID": start, "size": count }])
        };
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        self.config["linux"]["uidMappings"] = map(uid, range("/etc/subuid"));
        self.config["linux"]["gidMappings"] = map(gid, range("/etc/subgid"));
        self
    }

    /// A container's whole id.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.number)
    }

    /// The runtime with these arguments, after the configuration has been written; a name of [`NAMES`]
    /// becomes the container's whole id.
    pub fn command(&self, arguments: &[&str]) -> Command {
        if !self.config.is_null() {
            let text = serde_json::to_vec_pretty(&self.config).expect("a value is JSON");
            fs::write(self.path.join("config.json"), text).expect("the home is ours");
        }
        let mut command = self.home.command(&["runtime"]);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        let whole = |word: &&str| if NAMES.contains(word) { self.id(word) } else { (*word).to_owned() };
        command.args(arguments.iter().map(whole));
        command
    }

    /// Runs the runtime to its end.
    pub fn call(&self, arguments: &[&str]) -> Done {
        finish(&mut self.command(arguments), b"", LIMIT)
    }

    /// Runs the runtime, which must succeed; its standard output.
    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.call(arguments);
        assert_eq!(done.code, 0, "runtime {arguments:?}: {done:#?}");
        done.stdout
    }

    /// Runs the runtime, which must fail and say so in one error; its standard error.
    #[track_caller]
    pub fn fails(&self, arguments: &[&str]) -> String {
        let done = self.call(arguments);
        assert_ne!(done.code, 0, "runtime {arguments:?}: {done:#?}");
        assert_eq!(done.stderr.matches("error: ").count(), 1, "{done:#?}");
        assert!(!done.stderr.contains("panicked"), "{done:#?}");
        done.stderr
    }

    /// `run` of the bundle, which must end with this code; its standard output.
    #[track_caller]
    pub fn runs(&self, code: i32) -> String {
        let done = self.call(&["run", "--bundle", &self.at(), "box"]);
        assert_eq!(done.code, code, "{done:#?}");
        done.stdout
    }

    /// `run` of the bundle, which must be refused before anything is made; its standard error.
    #[track_caller]
    pub fn refused(&self) -> String {
        let error = self.fails(&["run", "--bundle", &self.at(), "box"]);
        assert_eq!(self.ok(&["list", "--quiet"]), "", "{error}");
        error
    }

    /// `create` of the bundle.
    #[track_caller]
    pub fn create(&self, id: &str) {
        assert!(self.creates(&[], id), "create: {}", self.log());
    }

    /// `create` of the bundle with options in front; whether it succeeded.
    pub fn creates(&self, options: &[&str], id: &str) -> bool {
        // Its streams would stay open in the container.
        let mut command = self.command(&[options, &["create", "--bundle", &self.at(), id]].concat());
        let log = self.new_log();
        command.stdout(log.try_clone().expect("a descriptor")).stderr(log).status().expect("it starts").success()
    }

    /// An empty log, which several may write to.
    pub fn new_log(&self) -> fs::File {
        let path = self.path.join("log");
        fs::write(&path, "").expect("the home is ours");
        fs::OpenOptions::new().append(true).open(&path).expect("the home is ours")
    }

    /// What the runtime and the containers of [`Bundle::create`] have written.
    pub fn log(&self) -> String {
        without_steps(&fs::read_to_string(self.path.join("log")).unwrap_or_default())
    }

    /// One field of `state`.
    #[track_caller]
    pub fn state(&self, id: &str, field: &str) -> Value {
        let state: Value = serde_json::from_str(&self.ok(&["state", id])).expect("state is JSON");
        state[field].clone()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for id in self.call(&["list", "--quiet"]).stdout.lines() {
            let done = self.call(&["delete", "--force", id]);
            assert!(done.code == 0 || std::thread::panicking(), "delete --force {id}: {done:#?}");
        }
    }
}

/// What was said beside the steps down that the suite forces (`--refuse mount-api`) or the place of the test does.
pub fn without_steps(text: &str) -> String {
    let steps = ["sublet: mounts: made by mount(2)", "sublet: the container runs without a cgroup"];
    text.split_inclusive('\n').filter(|line| !steps.iter().any(|step| line.starts_with(step))).collect()
}

/// A user namespace of one id, where setgroups(2) is forbidden, and others that it owns, kept by a process.
pub struct Holder(Child);

impl Holder {
    /// `others`: options of unshare(1).
    pub fn new(others: &[&str]) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user"]).args(others).args(["sh", "-c", "echo made; exec sleep 1000"]);
        let mut child = start(&mut unshare);
        read_until(child.stdout.as_mut().expect("a pipe"), "made\n");
        Holder(child)
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that has ended before is no loss.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
