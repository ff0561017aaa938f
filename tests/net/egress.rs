//! What containers may reach: rules by address, block, port and name, and what becomes of everything else.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::http::{Answer, Server, primary_address};
use crate::support::{Home, Need, busybox, skip};

/// Fetches a page of a server, or says why not.
fn fetch(server: &Server, host: &str) -> String {
    let page = format!("http://{host}:{}/", server.address.port());
    format!("timeout 10 wget -q -O - {page} 2>&1 || echo failed")
}

fn page() -> std::collections::HashMap<String, Answer> {
    [("/".to_owned(), Answer::ok("text/plain", b"outside\n"))].into()
}

fn prohibited(home: &Home, container: &str) -> u64 {
    let said = home.ok(&["net", "top", "--no-stream", "--format", "json", container]);
    let row: Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
    row["Prohibited"].as_str().unwrap().parse().unwrap()
}

#[test]
fn what_no_rule_has_is_refused_at_once() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let (open, closed) = (Server::start_on(outside, page()), Server::start_on(outside, page()));
    let host = outside.to_string();
    let rule = format!("{}/tcp", open.address);
    home.ok(&[
        "run",
        "-d",
        "--name",
        "one",
        "--egress",
        &rule,
        "--egress",
        "198.51.100.0/24",
        &busybox(),
        "sleep",
        "600",
    ]);
    let inside = |script: &str| home.ok(&["exec", "one", "sh", "-c", script]);
    assert_eq!(inside(&fetch(&open, &host)), "outside\n");
    let began = Instant::now();
    assert!(inside(&fetch(&closed, &host)).ends_with("failed\n"));
    assert!(began.elapsed() < Duration::from_secs(5), "it is told, and does not wait for an answer");
    assert!(inside(&format!("ping -c 1 -W 2 {host} >/dev/null || echo failed")).ends_with("failed\n"));
    let asked = inside("nslookup nobody.example.org 2>&1; true");
    assert!(asked.contains("REFUSED"), "{asked}");
    assert!(prohibited(&home, "one") >= 3);
    let shown = home.ok(&["net", "flows", "--format", "{{.Protocol}} {{.Destination}} {{.State}}", "one"]);
    assert!(shown.lines().any(|line| line == format!("tcp {} REFUSED (no rule)", closed.address)), "{shown}");
    assert!(shown.lines().any(|line| line == format!("icmp {host}:0 REFUSED (no rule)")), "{shown}");
    let rules: Value = serde_json::from_str(&home.inspect("one", "{{json .HostConfig.Egress}}")).unwrap();
    assert_eq!(rules, serde_json::json!([rule, "198.51.100.0/24"]));
    // It holds for the next start too.
    home.ok(&["restart", "-t", "0", "one"]);
    assert!(inside(&fetch(&closed, &host)).ends_with("failed\n"));
    assert_eq!(inside(&fetch(&open, &host)), "outside\n");
}

#[test]
fn the_host_is_reached_by_a_rule_for_its_name() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(outside, page());
    let script = format!("host=$(ip route | awk '/^default/ {{print $3}}'); {}", fetch(&server, "$host"));
    let rule = format!("Host.Docker.Internal:{}", server.address.port());
    assert_eq!(home.sh(&["--egress", &rule], &script), "outside\n");
    for rule in ["none", "host.docker.internal:1"] {
        assert!(home.sh(&["--egress", rule], &script).ends_with("failed\n"), "{rule}");
    }
}

#[test]
fn rules_are_of_one_member_of_a_network() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(outside, page());
    home.ok(&["network", "create", "front"]);
    home.ok(&["run", "-d", "--name", "free", "--network", "front", &busybox(), "sleep", "600"]);
    home.ok(&["run", "-d", "--name", "bound", "--network", "front", "--egress", "none", &busybox(), "sleep", "600"]);
    let inside = |container: &str| home.ok(&["exec", container, "sh", "-c", &fetch(&server, &outside.to_string())]);
    assert_eq!(inside("free"), "outside\n");
    assert!(inside("bound").ends_with("failed\n"));
    assert_eq!((prohibited(&home, "free"), prohibited(&home, "bound") > 0), (0, true));
    // In the address of another one it is heard by nobody: this one's frames come from its own MAC.
    let free = home.inspect("free", "{{.NetworkSettings.Networks.front.IPAddress}}");
    let spoof = format!(
        "ip addr add {free}/32 dev eth0 && timeout 3 nc -s {free} {} {} </dev/null && echo through",
        server.address.ip(),
        server.address.port()
    );
    let seen =
        home.sh(&["--network", "front", "--cap-add", "NET_ADMIN", "--egress", "none"], &format!("{spoof}; true"));
    assert!(!seen.contains("through"), "{seen}");
}

#[test]
fn what_is_no_rule_is_refused_by_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (options, words) in [
        (&["--egress", "a..b"][..], "invalid rule \"a..b\""),
        (&["--egress", "10.0.0.0/33"], "invalid rule \"10.0.0.0/33\""),
        (&["--egress", "none", "--egress", "a"], "conflicting options: --egress none and other rules"),
        (&["--egress", "a", "--network", "host"], "conflicting options: egress and the network mode"),
    ] {
        let said = home.fails(125, &[&["run", "--rm"], options, &[&busybox(), "true"]].concat());
        assert!(said.contains(words), "{said}");
    }
}
