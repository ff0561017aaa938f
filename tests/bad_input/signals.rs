//! Ctrl-C at any time.

use std::time::Duration;

use fixture::image::{Image, LayerBuilder, Meta};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::http::{Server, registry_of};
use crate::support::{Home, LIMIT, busybox, end, eventually, read_until, signal, start};

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
    eventually("no payload is left", || crate::support::processes(|words| words.contains(&number)).is_empty());
    assert_eq!(home.sh(&[], "echo the next one works"), "the next one works\n");
}
