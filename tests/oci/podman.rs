//! Podman, and buildah in it, with us as the runtime: each command line first with crun, then with us, the outputs
//! compared whole.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::oracle::{end_podman, podman_cannot_run, podman_of};
use crate::support::{Done, Home, Need, busybox, end, finish, skip, start, unique};

/// Podman starts slowly on a loaded machine.
const LIMIT: Duration = Duration::from_mins(2);

/// A store of Podman's with the small image, and the two runtimes.
struct Podman {
    home: Home,
    /// Ends every name, as some are seen by all tests.
    number: String,
}

/// Who makes the containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runtime {
    Crun,
    Ours,
}

const BOTH: [Runtime; 2] = [Runtime::Crun, Runtime::Ours];

impl Podman {
    /// `None` (and the skip is noted) where Podman cannot run containers with crun.
    fn new() -> Option<Self> {
        let home = Home::new(&[Need::Registry, Need::Subids])?;
        if Command::new("podman").arg("--version").output().is_err() {
            skip("podman is not installed");
            return None;
        }
        // A user may have 200 keyrings, those of the other tests' containers included, and crun insists on one.
        let settings = home.path(".config/containers");
        fs::create_dir_all(&settings).expect("the home is ours");
        fs::write(settings.join("containers.conf"), "[containers]\nkeyring = false\n").expect("the home is ours");
        // By this name the binary is the runtime.
        symlink(home.bin(), home.path("sublet-runtime")).expect("the home is ours");
        let podman = Podman { home, number: unique() };
        let pulled = podman.call(Runtime::Crun, &["pull", "--quiet", "--tls-verify=false", &busybox()]);
        let tried = podman.call(Runtime::Crun, &["run", "--rm", &busybox(), "true"]);
        if pulled.code != 0 || podman_cannot_run(&tried) {
            skip(&format!("podman cannot run containers here: {}", tried.stderr.lines().last().unwrap_or_default()));
            return None;
        }
        Some(podman)
    }

    fn command(&self, runtime: Runtime, arguments: &[&str]) -> Command {
        let mut podman = podman_of(&self.home);
        match runtime {
            Runtime::Crun => podman.args(["--runtime", "crun"]),
            Runtime::Ours => podman.arg("--runtime").arg(self.home.path("sublet-runtime")),
        };
        podman.args(arguments);
        podman
    }

    fn call(&self, runtime: Runtime, arguments: &[&str]) -> Done {
        finish(&mut self.command(runtime, arguments), b"", LIMIT)
    }

    #[track_caller]
    fn ok(&self, runtime: Runtime, arguments: &[&str]) -> String {
        let done = self.call(runtime, arguments);
        assert_eq!(done.code, 0, "{runtime:?} {arguments:?}: {done:#?}");
        done.stdout
    }

    /// The same output and code with both; `{}` is the runtime's own container. Returns the output.
    #[track_caller]
    fn same(&self, arguments: &[&str]) -> String {
        let [expected, ours] = BOTH.map(|runtime| {
            let name = self.name(runtime);
            let arguments: Vec<String> = arguments.iter().map(|word| word.replace("{}", &name)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut done = self.call(runtime, &arguments);
            done.stdout = done.stdout.replace(&name, "{}");
            done
        });
        let differs = |(one, other): &(&str, &str)| one != other;
        let lines = expected.stdout.lines().zip(ours.stdout.lines()).filter(differs).collect::<Vec<_>>();
        let same = (ours.code, &ours.stdout) == (expected.code, &expected.stdout);
        assert!(same, "{arguments:?}\ncrun: {expected:?}\nours: {ours:?}\nlines: {lines:#?}");
        ours.stdout
    }

    /// As [`Podman::same`], of a script in a new container.
    #[track_caller]
    fn same_script(&self, options: &[&str], script: &str) -> String {
        let image = busybox();
        // Podman loses what a container has said that ends before podman listens, whichever runtime it is.
        let script = format!("({script}\n); code=$?; sleep 0.3; exit $code");
        let mut arguments = vec!["run", "--rm"];
        arguments.extend(options);
        arguments.extend([image.as_str(), "sh", "-c", &script]);
        self.same(&arguments)
    }

    /// A container of each runtime that runs a script in the background; its id is printed.
    fn begin(&self, options: &[&str], script: &str) {
        let image = busybox();
        for runtime in BOTH {
            let name = self.name(runtime);
            let mut arguments = vec!["run", "-d", "--name", &name];
            arguments.extend(options);
            arguments.extend([image.as_str(), "sh", "-c", script]);
            self.ok(runtime, &arguments);
        }
        let runtime = self.ok(Runtime::Ours, &["inspect", "--format", "{{.OCIRuntime}}", &self.name(Runtime::Ours)]);
        assert!(runtime.contains("sublet-runtime"), "{runtime}");
    }

    fn name(&self, runtime: Runtime) -> String {
        format!("{}{}", if runtime == Runtime::Crun { "crun" } else { "ours" }, self.number)
    }

    /// Runs a command line of both on a terminal of 80 columns; everything that appeared on it must be the same.
    #[track_caller]
    fn same_on_a_terminal(&self, arguments: &str) -> String {
        let [expected, ours] = BOTH.map(|runtime| {
            let podman = self.command(runtime, &[]);
            let words =
                std::iter::once(podman.get_program()).chain(podman.get_args()).map(|word| word.to_string_lossy());
            let line = words.collect::<Vec<_>>().join(" ");
            let line = format!("stty rows 24 columns 80; {line} {}", arguments.replace("{}", &self.name(runtime)));
            let mut script = Command::new("script");
            script.args(["-qec", &line, "/dev/null"]);
            self.home.surround(&mut script);
            // Nobody types, and nobody hangs up: script(1) would type an end of file for it.
            let mut child = start(script.stdin(Stdio::piped()));
            let _open = child.stdin.take();
            let mut done = end(child, LIMIT);
            done.stdout = done.stdout.replace('\r', "");
            done
        });
        assert_eq!((ours.code, &ours.stdout), (expected.code, &expected.stdout), "{arguments}");
        ours.stdout
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        for runtime in BOTH {
            self.call(runtime, &["rm", "--force", "--time", "0", "--ignore", &self.name(runtime)]);
        }
        let left = self.home.run(&["runtime", "list", "--quiet"]);
        end_podman(&self.home);
        assert!(left.stdout.is_empty() || std::thread::panicking(), "containers are left: {left:#?}");
    }
}

#[test]
fn podman_runs_commands() {
    let Some(podman) = Podman::new() else { return };
    assert_eq!(podman.same_script(&[], "echo out; echo err >&2; exit 9"), "out\n");
    podman.same(&["run", "--rm", &busybox(), "no-such-program"]);
    podman.same(&["run", "--rm", &busybox(), "/etc/passwd"]);
    podman.same_script(
        &["-e", "A=b", "-w", "/tmp", "--user", "5:6"],
        "id; pwd; echo $A; umask; cat /proc/self/status | grep Cap",
    );
    let volume = podman.home.path("volume");
    fs::create_dir(&volume).expect("the home is ours");
    fs::write(volume.join("file"), "of the host\n").expect("the home is ours");
    let bind = format!("{}:/v", volume.display());
    podman.same_script(&["-v", &format!("{bind}:ro")], "cat /v/file; touch /v/x 2>&1; grep -c ' /v ' /proc/mounts");
    podman.same_script(&["-v", &bind], "echo of the container >/v/new; stat -c '%u %g' /v/new");
    assert_eq!(fs::read_to_string(volume.join("new")).expect("it was written"), "of the container\n");
    let mut command = podman.command(Runtime::Ours, &["run", "--rm", "-i", &busybox(), "sh", "-c", "cat; sleep 0.3"]);
    assert_eq!(finish(&mut command, b"typed\n", LIMIT).stdout, "typed\n");
}

/// What a container sees of its machine. Of what is hidden or read-only below `/proc` and `/sys` only the place is told: each
/// runtime takes another empty file system for it, and crun's lose `nosuid` and its kind. It links `/dev/core` where the
/// kernel has no `/proc/kcore`, too.
const SIGHT: &str = r#"id; env | grep -v ^HOSTNAME | sort; ulimit -a
    ls -l /dev | grep -v kcore | awk '{print $1,$3,$4,$5,$6,$NF}'
    grep -E '^(Cap|NoNew|Seccomp)' /proc/self/status; ls /proc/self/fd
    awk '$2 == "/" {next} $2 ~ "^/(proc|sys)/." && $3 != "cgroup2" {print $2, $3 == "proc" ? substr($4, 1, 2) : ""; next}
         {print $2,$3,$4}' /proc/mounts | sort
    cat /proc/self/oom_score_adj /proc/self/cgroup; ls /sys/fs/cgroup | head -n 3"#;

#[test]
fn podman_gives_the_same_machine() {
    let Some(podman) = Podman::new() else { return };
    for options in [
        &[][..],
        &["--network", "none", "--hostname", "box"],
        &["--privileged"],
        &["--read-only", "--tmpfs", "/scratch"],
        &["--cap-drop", "all", "--security-opt", "no-new-privileges", "--ulimit", "nofile=100:200"],
        &["--pid", "host", "--ipc", "host", "--uts", "host", "--cgroupns", "host"],
        &["--userns", "keep-id"],
        &["--security-opt", "seccomp=unconfined", "--security-opt", "unmask=ALL"],
        &["--sysctl", "net.ipv4.ip_unprivileged_port_start=80", "--shm-size", "1m", "--device", "/dev/fuse"],
    ] {
        podman.same_script(options, SIGHT);
    }
    // The directory of message queues belongs to who made their namespace: with crun the container's root, with us the
    // caller, who here is nobody inside.
    podman.same_script(&["--userns", "auto"], &SIGHT.replace("grep -v kcore", "grep -v -e kcore -e mqueue"));
}

#[test]
fn podman_has_terminals() {
    let Some(podman) = Podman::new() else { return };
    let image = busybox();
    // Podman tells the size a moment after the start, and loses what is said in the last moment before the end.
    let sized = "until stty size 2>/dev/null | grep -q '24 80'; do sleep 0.1; done";
    let script =
        format!("\"{sized}; test -t 0 && test -t 1 && tty; ls -l /dev/console | cut -c1-10; sleep 0.3; exit 3\"");
    let seen = podman.same_on_a_terminal(&format!("run --rm -it {image} sh -c {script}; echo $?"));
    assert_eq!(seen, "/dev/pts/0\ncrw--w----\n3\n");
    podman.begin(&[], "sleep 600");
    let seen = podman.same_on_a_terminal(&format!("exec -it {{}} sh -c \"{sized}; tty; sleep 0.3; exit 4\"; echo $?"));
    assert_eq!(seen, "/dev/pts/0\n4\n");
}

#[test]
fn podman_executes_in_containers() {
    let Some(podman) = Podman::new() else { return };
    podman.begin(&["-e", "A=b"], "sleep 600");
    podman.same(&[
        "exec",
        "{}",
        "sh",
        "-c",
        "id; pwd; echo $A; grep -E '^(Cap|NoNew|Seccomp)' /proc/self/status; exit 7",
    ]);
    podman.same(&[
        "exec",
        "--user",
        "5:6",
        "-w",
        "/tmp",
        "-e",
        "C=d",
        "{}",
        "sh",
        "-c",
        "id; pwd; echo $C; grep Cap /proc/self/status",
    ]);
    podman.same(&["exec", "--privileged", "{}", "grep", "Cap", "/proc/self/status"]);
    podman.same(&["exec", "{}", "sh", "-c", "for n in user mnt pid ipc uts net cgroup; do test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) && echo $n; done"]);
    podman.same(&["top", "{}", "pid", "user", "args"]);
    podman.same(&["exec", "{}", "no-such-program"]);
    podman.same(&["exec", "{}", "/etc/passwd"]);
    for runtime in BOTH {
        podman.ok(runtime, &["exec", "-d", &podman.name(runtime), "sh", "-c", "echo made >/tmp/made"]);
    }
    podman.same(&["exec", "{}", "sh", "-c", "until test -s /tmp/made; do sleep 0.1; done; cat /tmp/made"]);
    let mut command = podman.command(Runtime::Ours, &["exec", "-i", &podman.name(Runtime::Ours), "cat"]);
    assert_eq!(finish(&mut command, b"typed\n", LIMIT).stdout, "typed\n");
}

#[test]
fn podman_rules_the_life_of_containers() {
    let Some(podman) = Podman::new() else { return };
    podman.begin(&["--init=false"], "trap 'echo asked; exit 5' TERM; echo ready; while :; do sleep 0.1; done");
    let state = &["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", "{}"];
    assert_eq!(podman.same(state), "running 0 false\n");
    let name = podman.name(Runtime::Ours);
    let paused = podman.call(Runtime::Ours, &["pause", &name]);
    if paused.stderr.contains("has no cgroup") {
        skip("no cgroup v2 that the caller may write");
    } else {
        // For a plain user without systemd crun finds no cgroup.
        assert_eq!(paused.code, 0, "{paused:#?}");
        let state = |wanted: &str| {
            let said = podman.ok(Runtime::Ours, &["inspect", "--format", "{{.State.Status}}", &name]);
            assert_eq!(said.trim_end(), wanted);
        };
        state("paused");
        let refused = podman.call(Runtime::Ours, &["exec", &name, "true"]);
        assert_eq!((refused.code, refused.stdout.as_str()), (255, ""), "{refused:#?}");
        podman.ok(Runtime::Ours, &["unpause", &name]);
        state("running");
    }
    podman.same(&["stop", "{}"]);
    assert_eq!(podman.same(state), "exited 5 false\n");
    assert_eq!(podman.same(&["logs", "{}"]), "ready\nasked\n");
    podman.same(&["start", "{}"]);
    assert_eq!(podman.same(state), "running 0 false\n");
    podman.same(&["kill", "{}"]);
    assert_eq!(podman.same(&["wait", "{}"]), "137\n");
    podman.same(&["kill", "{}"]);
    podman.same(&["restart", "{}"]);
    podman.same(&["kill", "--signal", "TERM", "{}"]);
    assert_eq!(podman.same(&["wait", "{}"]), "5\n");
    podman.same(&["rm", "{}"]);
    podman.same(&["inspect", "{}"]);
}

#[test]
fn podman_counts_and_checks() {
    let Some(podman) = Podman::new() else { return };
    podman.begin(&["--health-cmd", "test -e /tmp/healthy", "--health-interval", "disable"], "sleep 600");
    podman.same(&["healthcheck", "run", "{}"]);
    podman.same(&["exec", "{}", "touch", "/tmp/healthy"]);
    podman.same(&["healthcheck", "run", "{}"]);
    podman.same(&["inspect", "--format", "{{.State.Healthcheck.Status}} {{len .State.Healthcheck.Log}}", "{}"]);
    podman.same(&["stats", "--no-stream", "--no-reset", "--format", "{{.Name}} {{.PIDs}}", "{}"]);
}

#[test]
fn podman_shares_namespaces() {
    let Some(podman) = Podman::new() else { return };
    podman.begin(&["--hostname", "first"], "touch /dev/shm/of-the-first; sleep 600");
    let image = busybox();
    let list = "ps | grep -c ' [s]leep 600$'; hostname; ls /dev/shm; for n in pid ipc uts net; do \
                test $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) && echo $n; done; sleep 0.3";
    let options =
        ["--pid", "container:{}", "--ipc", "container:{}", "--uts", "container:{}", "--network", "container:{}"];
    let mut arguments = vec!["run", "--rm"];
    arguments.extend(options);
    arguments.extend([image.as_str(), "sh", "-c", list]);
    podman.same(&arguments);
}

#[test]
fn podman_builds() {
    let Some(podman) = Podman::new() else { return };
    let context = podman.home.path("context");
    fs::create_dir(&context).expect("the home is ours");
    // This Podman cannot build on an image without history.
    let (base, archive) = (format!("localhost/base{}", podman.number), podman.home.path("base.tar"));
    let archive = archive.to_string_lossy();
    podman.ok(Runtime::Crun, &["create", "--name", &podman.name(Runtime::Crun), &busybox()]);
    podman.ok(Runtime::Crun, &["export", "--output", &archive, &podman.name(Runtime::Crun)]);
    podman.ok(Runtime::Crun, &["import", "--quiet", &archive, &base]);
    let file = format!(
        "FROM {base}\nENV A=b\nWORKDIR /srv\nRUN echo $A >built && id >>built && grep Cap /proc/self/status >>built\n\
         USER 5:6\nRUN id >/tmp/by-five\nRUN mount >/dev/null && exit 0\n"
    );
    fs::write(context.join("Containerfile"), file).expect("the home is ours");
    // That it is us is seen by what we are told.
    let (told, wrapper) = (podman.home.path("told"), podman.home.path("wrapper"));
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n",
        told.display(),
        podman.home.path("sublet-runtime").display()
    );
    fs::write(&wrapper, script).expect("the home is ours");
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).expect("the home is ours");
    let ours = wrapper.to_string_lossy();
    let [expected, seen] = [("crun", Runtime::Crun), (&*ours, Runtime::Ours)].map(|(path, runtime)| {
        let mut build = podman
            .command(runtime, &["build", "--runtime", path, "--isolation", "oci", "--network", "none", "--no-cache"]);
        let tag = format!("localhost/built-{}", podman.name(runtime));
        let done = finish(build.args(["--tls-verify=false", "-t", &tag]).arg(&context), b"", LIMIT);
        assert_eq!(done.code, 0, "{runtime:?}: {done:#?}");
        podman.ok(runtime, &["run", "--rm", &tag, "sh", "-c", "cat /srv/built /tmp/by-five; sleep 0.3"])
    });
    assert_eq!(seen, expected);
    let told = fs::read_to_string(told).unwrap_or_default();
    assert_eq!(
        told.lines().filter(|line| line.contains(" create ") || line.starts_with("create ")).count(),
        3,
        "{told}"
    );
    // A step that fails ends the build with its code.
    fs::write(context.join("Containerfile"), format!("FROM {base}\nRUN exit 42\n")).expect("the home is ours");
    let mut build = podman.command(
        Runtime::Ours,
        &["build", "--runtime", &ours, "--isolation", "oci", "--network", "none", "--no-cache"],
    );
    let done = finish(build.arg(&context), b"", LIMIT);
    assert!(done.code != 0 && done.stderr.contains("42"), "{done:#?}");
}
