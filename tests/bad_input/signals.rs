//! Ctrl-C at any time.

use std::fs;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::time::{Duration, Instant};

use fixture::image::{Image, LayerBuilder, Meta};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::http::{Server, registry_of};
use crate::support::{Home, LIMIT, busybox, end, eventually, processes, read_until, signal, skip, start};

#[test]
fn a_pull_is_interrupted_and_the_next_one_completes() {
    let Some(home) = Home::new(&[]) else { return };
    let layer = LayerBuilder::default().file("f", Meta::root(0o644), &vec![7; 300_000]).unwrap().finish().unwrap();
    let image = Image::new(vec![layer], &json!({}));
    let mut answers = registry_of("slow", &image);
    let path = format!("/v2/slow/blobs/{}", image.blobs[0].0);
    answers.get_mut(&path).unwrap().stall = Duration::from_secs(30);
    let slow = Server::start(answers);
    let child = start(&mut home.command(&["pull", &format!("{}/slow", slow.address)]));
    eventually("the layer is asked for", || slow.asked.lock().unwrap().contains(&path));
    signal(&child, Signal::SIGINT);
    let done = end(child, Duration::from_secs(5));
    assert_eq!(done.code, 130, "{done:#?}");
    assert_eq!(home.ok(&["images", "-q"]), "");
    let quick = Server::start(registry_of("slow", &image));
    home.ok(&["pull", &format!("{}/slow", quick.address)]);
}

#[test]
fn an_attached_run_passes_the_signal_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done";
    let mut child = start(&mut home.command(&["run", "--rm", &busybox(), "sh", "-c", script]));
    let seen = read_until(child.stdout.as_mut().unwrap(), "ready\n");
    signal(&child, Signal::SIGINT);
    let done = end(child, LIMIT);
    assert_eq!((done.code, seen + &done.stdout), (5, "ready\ncaught\n".to_owned()), "{}", done.stderr);
    eventually("--rm has removed it", || home.containers().is_empty());
}

#[test]
fn a_run_interrupted_at_any_moment_leaves_nothing_running() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let number = crate::support::unique();
    for delay_ms in [1, 5, 10, 20, 40, 80, 160] {
        let child = start(&mut home.command(&["run", "--rm", "--init", &busybox(), "sleep", &number]));
        std::thread::sleep(Duration::from_millis(delay_ms));
        signal(&child, Signal::SIGINT);
        end(child, Duration::from_secs(20));
    }
    for id in home.containers() {
        home.ok(&["rm", "-f", &id]);
    }
    eventually("no payload is left", || processes(|words| words.contains(&number)).is_empty());
    assert_eq!(home.sh(&[], "echo the next one works"), "the next one works\n");
}

/// A start that hangs: its monitor asks a D-Bus for a cgroup which takes connections and never answers.
struct Hanging {
    child: Child,
    /// Held open, since its end would be an answer.
    _bus: (UnixListener, UnixStream),
}

impl Hanging {
    /// `None` (and the skip is noted) where no D-Bus is asked.
    fn start(home: &Home, options: &[&str]) -> Option<Self> {
        if !fs::read_to_string("/proc/self/mounts").unwrap().contains(" cgroup2 ") {
            skip("no cgroup v2");
            return None;
        }
        let path = home.path("bus");
        // Of the start before this one.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let image = busybox();
        let arguments = [&["run"], options, &[&image, "sleep", "600"]].concat();
        let mut command = home.command(&arguments);
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", path.display()));
        let child = start(&mut command);
        // Whether somebody listens is tried by a connection that says nothing.
        let mut connections = listener.incoming().map(|asked| asked.unwrap());
        let asked = connections.find_map(|mut asked| (asked.read(&mut [0; 64]).unwrap() > 0).then_some(asked)).unwrap();
        Some(Hanging { child, _bus: (listener, asked) })
    }

    /// Sends a signal to the command, which must end at once with this code and without a word.
    fn interrupt(self, by: Signal, code: i32) {
        let began = Instant::now();
        signal(&self.child, by);
        let done = end(self.child, Duration::from_secs(5));
        let took = began.elapsed();
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{by}: {done:#?}");
        // What was said before is of the start: which ids there are.
        assert!(!done.stderr.contains("error"), "{by}: {done:#?}");
        assert!(took < Duration::from_millis(900), "{by}: {took:?}");
    }
}

/// The monitors of a container.
fn monitors(id: &str) -> Vec<i32> {
    processes(|words| words[0] == "sublet-monitor" && words.get(1).is_some_and(|label| id.starts_with(label)))
}

#[test]
fn a_start_that_hangs_is_given_up_at_once() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (by, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        for options in [&["--rm"][..], &["-d", "--rm"]] {
            let Some(hanging) = Hanging::start(&home, options) else { return };
            hanging.interrupt(by, code);
            eventually("--rm has removed it", || home.containers().is_empty());
        }
        let Some(hanging) = Hanging::start(&home, &["--name", "kept"]) else { return };
        let id = home.inspect("kept", "{{.Id}}");
        hanging.interrupt(by, code);
        assert_eq!(home.inspect("kept", "{{.State.Status}} {{.State.Running}}"), "created false");
        eventually("its monitor is gone", || monitors(&id).is_empty());
        assert!(home.inspect("kept", "{{.State.Error}}").contains("the start was given up"));
        home.ok(&["rm", "kept"]);
    }
    assert_eq!(home.sh(&[], "echo the next one works"), "the next one works\n");
}

#[test]
fn a_start_that_nobody_waits_for_any_more_is_given_up() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for options in [&["--name", "kept"][..], &["-d", "--name", "kept"]] {
        let Some(hanging) = Hanging::start(&home, options) else { return };
        let id = home.inspect("kept", "{{.Id}}");
        assert_eq!(monitors(&id).len(), 1);
        hanging.interrupt(Signal::SIGKILL, 137);
        eventually("its monitor is gone", || monitors(&id).is_empty());
        assert_eq!(home.inspect("kept", "{{.State.Status}} {{.State.Running}}"), "created false");
        home.ok(&["rm", "kept"]);
    }
}

#[test]
fn a_container_that_is_being_started_is_stopped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (command, state) in [(&["stop", "late"][..], Some("created false")), (&["rm", "-f", "late"], None)] {
        let Some(Hanging { child, _bus: bus }) = Hanging::start(&home, &["--name", "late"]) else { return };
        let stopping = start(&mut home.command(command));
        // While its monitor cannot listen, whoever stops it waits.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(home.inspect("late", "{{.State.Status}}"), "created");
        drop(bus);
        let (stopped, run) = (end(stopping, Duration::from_secs(10)), end(child, Duration::from_secs(10)));
        assert_eq!((stopped.code, stopped.stdout.as_str()), (0, "late\n"), "{stopped:#?}");
        assert!(run.code == 125 && run.stderr.contains("the start was given up"), "{run:#?}");
        match state {
            Some(state) => assert_eq!(home.inspect("late", "{{.State.Status}} {{.State.Running}}"), state),
            None => assert!(home.containers().is_empty()),
        }
        home.run(&["rm", "late"]);
    }
}
