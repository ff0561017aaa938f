//! Networks that are there already: another container's, and those of namespaces by path.

use std::process::Command;

use nix::sys::signal::Signal;

use crate::support::http::get;
use crate::support::{
    Home, LIMIT, Need, busybox, end, eventually, free_port, identity, processes, signal, start, unique,
};

/// A web server, whose page is on its own loopback too.
fn web(home: &Home, options: &[&str]) {
    home.ok(&[&["run", "-d", "--name", "web"], options, &[&busybox(), "httpd", "-f", "-h", "/var/www"]].concat());
}

const FETCH: &str = "for try in 1 2 3 4 5; do wget -q -O - http://127.0.0.1/ && break; sleep 1; done";

#[test]
fn a_container_has_the_network_of_another() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let port = free_port();
    web(&home, &["-p", &format!("127.0.0.1:{port}:81"), "--hostname", "one", "--add-host", "db:192.0.2.7"]);
    let shared = ["--network", "container:web"];
    assert_eq!(home.sh(&shared, FETCH), "it works\n");
    let files = "hostname; echo $HOSTNAME; cat /etc/hosts /etc/resolv.conf /etc/hostname; ip addr; ls /sys/class/net";
    assert_eq!(home.sh(&shared, files), home.ok(&["exec", "web", "sh", "-c", files]));

    // A server beside it is reached by the ports of the first.
    let word = unique();
    let serve = format!("echo {word} >/tmp/index.html; exec httpd -f -p 81 -h /tmp");
    home.ok(&["run", "-d", "--name", "beside", "--network", "container:web", &busybox(), "sh", "-c", &serve]);
    let address = format!("127.0.0.1:{port}");
    eventually("the server beside it answers", || get(&address, "/").is_ok_and(|body| body == format!("{word}\n")));
    let beside = home.inspect("beside", "{{.Id}}");
    assert!(processes(|words| words[0] == "sublet-net" && beside.starts_with(&words[1])).is_empty());
    let whose = home.inspect("web", "container:{{.Id}}");
    assert_eq!(home.inspect("beside", "{{.HostConfig.NetworkMode}}"), whose);
    assert_eq!(home.inspect("beside", "{{len .NetworkSettings.Networks}}{{.NetworkSettings.IPAddress}}"), "0");
    assert_eq!(home.inspect("beside", "{{.HostsPath}}"), home.inspect("web", "{{.HostsPath}}"));
    assert_eq!(home.ok(&["exec", "beside", "hostname"]), "one\n");

    // It outlives the other, as does the one that shares with it.
    home.ok(&["rm", "-f", "web"]);
    let further = ["run", "--rm", "--network", "container:beside", &busybox(), "true"];
    assert!(home.fails(125, &further).contains("No such container"), "its files of /etc are gone");
    assert_eq!(home.ok(&["exec", "beside", "wget", "-q", "-O", "-", "http://127.0.0.1:81/"]), format!("{word}\n"));
}

#[test]
fn its_rights_over_the_shared_network_are_those_of_the_first() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    web(&home, &["--init"]);
    let add = "ip addr add 192.0.2.99/32 dev lo && id -u";
    assert_eq!(home.sh(&["--network", "container:web", "--cap-add", "NET_ADMIN"], add), "0\n");
    assert!(home.ok(&["exec", "web", "ip", "addr"]).contains("192.0.2.99/32"));
    let without = ["run", "--rm", "--network", "container:web", &busybox(), "sh", "-c", add];
    assert_ne!(home.run(&without).code, 0);
}

#[test]
fn networks_are_shared_on() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    web(&home, &[]);
    let id = home.inspect("web", "{{.Id}}");
    let second = format!("container:{}", &id[..12]);
    home.ok(&["run", "-d", "--name", "second", "--network", &second, &busybox(), "sleep", "600"]);
    assert_eq!(
        home.sh(&["--network", "container:second"], &format!("{FETCH}; hostname")),
        format!("it works\n{}\n", &id[..12])
    );
    home.ok(&["run", "-d", "--name", "hosts", "--network", "host", &busybox(), "sleep", "600"]);
    let devices = "hostname; ls /proc/sys/net/ipv4/conf";
    assert_eq!(home.sh(&["--network", "container:hosts"], devices), home.sh(&["--network", "host"], devices));
    home.ok(&["run", "-d", "--name", "alone", "--network", "none", &busybox(), "httpd", "-f", "-h", "/var/www"]);
    assert_eq!(home.sh(&["--network", "container:alone"], FETCH), "it works\n");
}

#[test]
fn what_belongs_to_the_other_containers_network_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let run = |options: &[&str]| {
        home.fails(125, &[&["run", "--rm", "--network", "container:first"], options, &[&busybox(), "true"]].concat())
    };
    for (options, words) in [
        (&["--hostname", "x"][..], "conflicting options: hostname and the network mode"),
        (&["--add-host", "x:192.0.2.1"], "conflicting options: custom host-to-IP mapping and the network mode"),
        (&["-p", "80"], "conflicting options: port publishing and the container type network mode"),
        (&[], "No such container: first"),
    ] {
        let said = run(options);
        assert!(said.contains(words), "{said}");
    }
    home.ok(&["run", "--name", "first", "--network", "none", &busybox(), "true"]);
    let said = run(&[]);
    let id = home.inspect("first", "{{.Id}}");
    assert!(said.contains(&format!("cannot join network of a non running container: {id}")), "{said}");
    let said = home.fails(125, &["run", "--network", "container:", &busybox(), "true"]);
    assert!(said.contains("invalid container format container:<name|id>"), "{said}");
}

#[test]
fn a_namespace_is_joined_by_its_path() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    web(&home, &[]);
    let path = format!("ns:/proc/{}/ns/net", home.inspect("web", "{{.State.Pid}}"));
    assert_eq!(home.sh(&["--network", &path], FETCH), "it works\n");
    assert_eq!(home.sh(&["--network", &path, "--add-host", "db:192.0.2.7"], "grep -c db /etc/hosts"), "1\n");
    let refused = |network: &str| home.fails(125, &["run", "--rm", "--network", network, &busybox(), "true"]);
    let (file, missing) = (refused("ns:/etc/passwd"), refused("ns:/nowhere"));
    assert!(file.contains("/etc/passwd is no namespace"), "{file}");
    assert!(missing.contains("No such file or directory") && missing.contains("\"/nowhere\""), "{missing}");
    let other = refused(&path.replace("/net", "/ipc"));
    assert!(other.contains("the path is a namespace of another type"), "{other}");
}

#[test]
fn a_namespace_of_a_foreign_user_namespace_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let child = start(Command::new("unshare").args(["--user", "--net", "sleep", "600"]));
    let path = format!("/proc/{}/ns/net", child.id());
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    eventually("the namespace is there", || std::fs::read_link(&path).is_ok_and(|found| found != own));
    let run = ["run", "--rm", "--network", &format!("ns:{path}"), &busybox(), "ls", "/proc/sys/net/ipv4/conf"];
    let done = home.run(&run);
    signal(&child, Signal::SIGKILL);
    end(child, LIMIT);
    if identity() == "root" {
        assert_eq!((done.code, done.stdout.as_str()), (0, "all\ndefault\nlo\n"), "{done:#?}");
    } else {
        assert!(done.stderr.contains("a user namespace over which we have no rights"), "{done:#?}");
        assert_eq!(done.code, 125);
    }
}
