//! Health checks: when they are made, what is told of them, and what becomes of a probe that fails or hangs.

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::Value;

use crate::support::http::{Server, registry_of};
use crate::support::oracle::host_busybox;
use crate::support::{Home, busybox, eventually, skip};

/// Runs a container that sleeps, with these options.
fn sleeper(home: &Home, name: &str, options: &[&str]) {
    let image = busybox();
    home.ok(&[&["run", "-d", "--name", name], options, &[image.as_str(), "sleep", "600"]].concat());
}

fn health(home: &Home, name: &str) -> Value {
    serde_json::from_str(&home.inspect(name, "{{json .State.Health}}")).unwrap()
}

#[test]
fn a_container_becomes_healthy_then_unhealthy_and_healthy_again() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let options = ["--health-cmd", "echo out; echo err >&2; test ! -e /broken", "--health-interval", "100ms"];
    sleeper(&home, "web", &[&options[..], &["--health-retries", "2"]].concat());
    let status = || home.ok(&["ps", "--format", "{{.Status}}"]);
    eventually("it is healthy", || status().ends_with(" (healthy)\n"));
    home.ok(&["exec", "web", "touch", "/broken"]);
    eventually("it is unhealthy", || status().ends_with(" (unhealthy)\n"));
    assert_eq!(home.ok(&["ps", "-q", "--filter", "health=unhealthy"]).lines().count(), 1);
    assert_eq!(home.ok(&["ps", "-q", "--filter", "health=healthy"]), "");
    let found = health(&home, "web");
    assert!(found["FailingStreak"].as_u64().unwrap() >= 2, "{found}");
    let log = found["Log"].as_array().unwrap();
    let last = log.last().unwrap();
    assert!(log.len() <= 5 && last["ExitCode"] == 1 && last["Output"] == "out\nerr\n", "{found}");
    assert!(last["Start"].as_str().unwrap() < last["End"].as_str().unwrap(), "{found}");
    home.ok(&["exec", "web", "rm", "/broken"]);
    eventually("it is healthy again", || status().ends_with(" (healthy)\n"));
    home.ok(&["stop", "-t", "0", "web"]);
    assert_eq!(home.inspect("web", "{{.State.Health.Status}}"), "unhealthy");
    // Nothing is probed any more, and what was found stays known.
    let found = health(&home, "web");
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(health(&home, "web"), found);
    home.ok(&["start", "web"]);
    assert_eq!(health(&home, "web")["Log"][0], found["Log"][0]);
    eventually("it is healthy after a start", || status().ends_with(" (healthy)\n"));
}

#[test]
fn a_probe_that_hangs_or_cannot_start_has_failed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let fast = ["--health-interval", "100ms", "--health-timeout", "200ms", "--health-retries", "1"];
    sleeper(&home, "hangs", &[&fast[..], &["--health-cmd", "echo so far; exec sleep 600"]].concat());
    eventually("it is unhealthy", || health(&home, "hangs")["Status"] == "unhealthy");
    let probe = health(&home, "hangs")["Log"][0].clone();
    assert_eq!(probe["ExitCode"], -1);
    assert_eq!(probe["Output"], "Health check exceeded timeout (200ms): so far\n");
    // None of them is left.
    let top = home.ok(&["top", "hangs"]);
    assert!(top.lines().filter(|line| line.contains("sleep 600")).count() <= 2, "{top}");
    home.ok(&["commit", "-c", "HEALTHCHECK --interval=100ms --retries=1 CMD [\"/none\"]", "hangs", "odd"]);
    home.ok(&["run", "-d", "--name", "odd", "--health-interval", "200ms", "--health-cmd", "", "odd"]);
    eventually("it is unhealthy", || health(&home, "odd")["Status"] == "unhealthy");
    let probe = health(&home, "odd")["Log"][0].clone();
    assert!(probe["ExitCode"] == -1 && probe["Output"].as_str().unwrap().contains("/none"), "{probe}");
}

/// A probe that is under way stands still with the container, and has its time again.
#[test]
fn a_pause_fails_no_probe() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let fast = ["--health-interval", "10ms", "--health-timeout", "1s", "--health-retries", "1"];
    sleeper(&home, "still", &[&fast[..], &["--health-cmd", "sleep .5"]].concat());
    eventually("it is healthy", || health(&home, "still")["Status"] == "healthy");
    let done = home.run(&["pause", "still"]);
    if done.code != 0 {
        home.ok(&["rm", "-f", "still"]);
        return skip("there is no cgroup to freeze");
    }
    let before = health(&home, "still");
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(health(&home, "still"), before, "nothing is probed");
    home.ok(&["unpause", "still"]);
    eventually("it is probed again", || health(&home, "still")["Log"] != before["Log"]);
    let log = health(&home, "still")["Log"].clone();
    assert!(log.as_array().unwrap().iter().all(|probe| probe["ExitCode"] == 0), "{log}");
}

#[test]
fn failures_do_not_count_in_the_start_period() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let fast = ["--health-start-interval", "50ms", "--health-interval", "10m", "--health-retries", "1"];
    let period = ["--health-start-period", "10m", "--health-cmd", "test -e /ready"];
    sleeper(&home, "slow", &[&fast[..], &period].concat());
    eventually("it was probed", || health(&home, "slow")["Log"].as_array().is_some_and(|log| log.len() == 5));
    let found = health(&home, "slow");
    assert!(found["Status"] == "starting" && found["FailingStreak"] == 0, "{found}");
    assert!(home.ok(&["ps", "--format", "{{.Status}}"]).ends_with(" (health: starting)\n"));
    home.ok(&["exec", "slow", "touch", "/ready"]);
    eventually("it is healthy", || health(&home, "slow")["Status"] == "healthy");
}

#[test]
fn a_line_is_run_by_the_shell_of_the_image() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let Some(program) = host_busybox() else { return skip("no static busybox on the host") };
    let program = std::fs::read(program).unwrap();
    let layer = LayerBuilder::default().file("bin/busybox", Meta::root(0o755), &program).unwrap().finish().unwrap();
    let config = serde_json::json!({
        "Cmd": ["/bin/busybox", "sleep", "100"],
        "Shell": ["/bin/busybox", "echo", "by the shell:"],
        "Healthcheck": { "Test": ["CMD-SHELL", "exit 3"] },
    });
    let server = Server::start(registry_of("shell", &Image::new(vec![layer], &config)));
    home.ok(&["run", "-d", "--name", "one", &format!("{}/shell", server.address)]);
    assert_eq!(home.inspect("one", "{{json .Config.Shell}}"), r#"["/bin/busybox","echo","by the shell:"]"#);
    home.ok(&["healthcheck", "run", "one"]);
    let found = health(&home, "one");
    assert_eq!(
        (found["Status"].as_str(), found["Log"][0]["Output"].as_str()),
        (Some("healthy"), Some("by the shell: exit 3\n"))
    );
    home.ok(&["rm", "-f", "one"]);
}

#[test]
fn a_check_comes_from_the_image_and_from_options() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    sleeper(&home, "base", &[]);
    assert_eq!(home.inspect("base", "{{json .State.Health}} {{json .Config.Healthcheck}}"), "null null");
    home.ok(&["commit", "-c", "HEALTHCHECK --interval=5m --retries=7 CMD exit 3", "base", "checked"]);
    let check = |options: &[&str]| {
        home.ok(&[&["create", "--name", "one"], options, &["checked"]].concat());
        let check = home.inspect("one", "{{json .Config.Healthcheck}}");
        home.ok(&["rm", "one"]);
        serde_json::from_str::<Value>(&check).unwrap()
    };
    let minutes = |count: u64| count * 60_000_000_000;
    let shell = serde_json::json!(["CMD-SHELL", "exit 3"]);
    assert_eq!(check(&[]), serde_json::json!({"Test": shell, "Interval": minutes(5), "Retries": 7}));
    let merged = serde_json::json!({"Test": shell, "Interval": minutes(1), "Timeout": minutes(2), "Retries": 7});
    assert_eq!(check(&["--health-interval=1m", "--health-timeout", "1m60s"]), merged);
    assert_eq!(check(&["--no-healthcheck"])["Test"], serde_json::json!(["NONE"]));
    assert_eq!(check(&["--health-cmd", "none"])["Test"], serde_json::json!(["NONE"]));

    home.ok(&["run", "-d", "--name", "web", "checked"]);
    assert_eq!(health(&home, "web")["Status"], "starting");
    // By hand: the next one would come in five minutes.
    let done = home.run(&["healthcheck", "run", "web"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, "unhealthy\n"), "{done:#?}");
    let found = health(&home, "web");
    assert!(found["FailingStreak"] == 1 && found["Log"][0]["ExitCode"] == 3, "{found}");
    home.ok(&["run", "-d", "--name", "well", "--health-cmd", "true", "checked"]);
    assert_eq!(home.ok(&["healthcheck", "run", "well"]), "");
    assert_eq!(health(&home, "well")["Status"], "healthy");
    home.ok(&["run", "-d", "--name", "unasked", "--no-healthcheck", "checked"]);
    assert_eq!(health(&home, "unasked"), Value::Null);
    assert_eq!(home.ok(&["ps", "--filter", "health=none", "--format", "{{.Names}}"]), "unasked\nbase\n");
    for name in ["unasked", "base"] {
        assert!(home.fails(125, &["healthcheck", "run", name]).contains("has no defined healthcheck"));
    }
    home.ok(&["stop", "-t", "0", "web"]);
    assert!(home.fails(125, &["healthcheck", "run", "web"]).contains("is not running"));
    assert!(home.fails(125, &["healthcheck", "run", "nobody"]).contains("No such container: nobody"));
}

#[test]
fn what_is_no_check_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (options, words) in [
        (&["--no-healthcheck", "--health-cmd", "x"][..], "--no-healthcheck conflicts with --health-* options"),
        (&["--health-interval", "-1s"], "--health-interval cannot be negative"),
        (&["--health-retries", "-1"], "--health-retries cannot be negative"),
        (&["--health-timeout", "5"], "invalid argument \"5\" for --health-timeout"),
        (&["--health-cmd", "x", "--health-timeout", "10us"], "Timeout in Healthcheck cannot be less than 1ms"),
        (&["--health-cmd", "x", "--health-start-period", "1ns"], "StartPeriod in Healthcheck cannot be less than 1ms"),
    ] {
        let image = busybox();
        let said = home.fails(125, &[&["run", "--rm"], options, &[image.as_str(), "true"]].concat());
        assert!(said.contains(words), "{options:?}: {said}");
    }
    assert!(home.fails(1, &["ps", "--filter", "health=ill"]).contains("invalid filter 'health=ill'"));
    assert_eq!(home.containers(), [""; 0]);
}
