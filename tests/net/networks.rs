//! Networks that containers share: who is reached by which name and address, and who is not.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{SockFlag, connect};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::http::{Answer, Server, get, primary_address};
use crate::support::{Home, LIMIT, Need, busybox, end, eventually, free_port, processes, skip, start};

/// A web server in networks, whose page is its name.
fn web(home: &Home, name: &str, options: &[&str]) {
    let serve = format!("mkdir /page; echo {name} >/page/index.html; exec httpd -f -h /page");
    let image = busybox();
    home.ok(&[&["run", "-d", "--name", name], options, &[image.as_str(), "sh", "-c", &serve]].concat());
}

/// What a page is, seen from a container; what `wget` says where it has none.
fn fetch(home: &Home, from: &str, host: &str) -> String {
    let host = to_address(home, from, host);
    let script = format!("for try in 1 2 3 4 5; do timeout 3 wget -q -O - http://{host}/ && exit; sleep .2; done 2>&1");
    home.run(&["exec", from, "sh", "-c", &script]).stdout
}

/// Whether a host is reached from a container.
fn reaches(home: &Home, from: &str, host: &str) -> bool {
    let page = format!("http://{}/", to_address(home, from, host));
    home.run(&["exec", from, "timeout", "1", "wget", "-q", "-O", "/dev/null", &page]).code == 0
}

/// A name's first address of IPv4, as a static `wget` knows of no name servers. Addresses are taken as they are.
fn to_address(home: &Home, from: &str, host: &str) -> String {
    if host.contains(['.', ':']) && !host.ends_with("internal") {
        return host.to_owned();
    }
    let found = lookup(home, from, host).into_iter().find(|address| !address.contains(':'));
    found.unwrap_or_else(|| "192.0.2.1".to_owned())
}

/// The addresses that a name has inside, in the order of the answer.
fn lookup(home: &Home, from: &str, name: &str) -> Vec<String> {
    let said = home.run(&["exec", from, "nslookup", name]).stdout;
    // That of the server has a tab.
    let addresses = said.lines().filter_map(|line| line.strip_prefix("Address")?.split_once(": "));
    addresses.map(|(_, address)| address.trim().to_owned()).collect()
}

fn address(home: &Home, container: &str, network: &str) -> String {
    home.inspect(container, &format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
}

#[test]
fn members_reach_each_other_by_name_and_nobody_else() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    home.ok(&["network", "create", "back"]);
    web(&home, "one", &["--network", "front", "--hostname", "first"]);
    web(&home, "two", &["--network", "front", "--network-alias", "Second"]);
    web(&home, "far", &["--network", "back"]);
    for name in ["one", "first", &home.inspect("one", "{{.Id}}")[..12], &address(&home, "one", "front")] {
        assert_eq!(fetch(&home, "two", name), "one\n", "{name}");
    }
    assert_eq!(fetch(&home, "one", "second"), "two\n");
    let v6 = home.inspect("two", "{{.NetworkSettings.Networks.front.GlobalIPv6Address}}");
    assert_eq!(fetch(&home, "one", &format!("[{v6}]")), "two\n");
    let far = address(&home, "far", "back");
    assert!(!far.is_empty() && !home.inspect("far", "{{json .NetworkSettings.Networks}}").contains("front"));
    assert!(!reaches(&home, "one", "far") && !reaches(&home, "one", &far) && !reaches(&home, "far", "one"));
    assert_eq!(lookup(&home, "one", "far"), [""; 0]);
    // A container with a network of its own is in none of them.
    home.ok(&["run", "-d", "--name", "alone", &busybox(), "sleep", "600"]);
    assert!(!reaches(&home, "alone", "one") && !reaches(&home, "alone", &address(&home, "one", "front")));

    let listed: Value = serde_json::from_str(&home.ok(&["network", "inspect", "front"])).unwrap();
    let names: BTreeSet<&str> =
        listed[0]["Containers"].as_object().unwrap().values().filter_map(|member| member["Name"].as_str()).collect();
    assert_eq!(names, ["one", "two"].into());
    home.ok(&["rename", "one", "uno"]);
    assert_eq!(fetch(&home, "two", "uno"), "one\n");
    assert!(lookup(&home, "two", "one").is_empty());
    home.ok(&["rm", "-f", "uno"]);
    eventually("it has no name any more", || lookup(&home, "two", "uno").is_empty());
}

#[test]
fn what_is_outside_is_reached_unless_the_network_is_internal() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(outside, [("/".to_owned(), Answer::ok("text/plain", b"outside\n"))].into());
    home.ok(&["network", "create", "open"]);
    home.ok(&["network", "create", "--internal", "closed"]);
    web(&home, "one", &["--network", "open"]);
    web(&home, "two", &["--network", "closed"]);
    web(&home, "three", &["--network", "closed", "--network", "open"]);
    let outside = server.address.to_string();
    for container in ["one", "three"] {
        assert_eq!(fetch(&home, container, &outside), "outside\n", "{container}");
    }
    assert!(!reaches(&home, "two", &outside) && !reaches(&home, "two", "host.docker.internal"));
    assert_eq!(fetch(&home, "two", "three"), "three\n");
    assert_eq!(fetch(&home, "three", "two"), "two\n");
    assert_eq!(fetch(&home, "three", "one"), "one\n");
}

#[test]
fn an_alias_leads_to_all_who_have_it_in_turn() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    let names = ["one", "two", "three"];
    for name in names {
        web(&home, name, &["--network", "name=front,alias=pool"]);
    }
    let answers: Vec<Vec<String>> = (0..12).map(|_| lookup(&home, "one", "pool")).collect();
    let all: BTreeSet<String> = names.iter().map(|name| address(&home, name, "front")).collect();
    for answer in &answers {
        assert!(all.iter().all(|address| answer.contains(address)), "{answers:?}");
    }
    let first: BTreeSet<&String> = answers.iter().filter_map(|answer| answer.first()).collect();
    assert!(first.len() > 1, "{answers:?}");
}

#[test]
fn a_link_is_a_name_for_one_container_alone() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    home.ok(&["network", "create", "back"]);
    // Before what it leads to is there, and before a name that others know; by the network that is asked and by another one.
    web(&home, "linked", &["--network", "front", "--network", "back", "--link", "one:db", "--link", "two:one"]);
    web(&home, "one", &["--network", "front"]);
    web(&home, "two", &["--network", "front"]);
    web(&home, "far", &["--network", "back"]);
    assert_eq!(fetch(&home, "linked", "db"), "one\n");
    assert_eq!(fetch(&home, "linked", "one"), "two\n");
    assert_eq!(fetch(&home, "two", "one"), "one\n");
    assert!(!reaches(&home, "two", "db"));
    let links = home.inspect("linked", "{{json .NetworkSettings.Networks.front.Links}}");
    assert_eq!(links, r#"["one:db","two:one"]"#);
    // It follows the name.
    home.ok(&["rm", "-f", "one"]);
    web(&home, "one", &["--network", "front"]);
    assert_eq!(fetch(&home, "linked", "db"), "one\n");
    home.ok(&["network", "disconnect", "back", "linked"]);
    home.ok(&["network", "connect", "--link", "far:near", "back", "linked"]);
    eventually("the name of the other network is known", || {
        lookup(&home, "linked", "near").contains(&address(&home, "far", "back"))
    });
    home.fails(125, &["run", "--rm", "--link", "one:db", &busybox(), "true"]);
}

/// Anybody of the user's processes can connect to a network's role.
#[test]
fn who_has_not_joined_is_not_obeyed_and_not_served() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    web(&home, "one", &["--network", "front"]);
    let roles = home.directory.join("run/sublet/n");
    let place = fs::read_dir(roles).unwrap().next().unwrap().unwrap().path();
    let directory = sys::socket::open_directory(&place).unwrap();
    let door = sys::socket::address_in(directory.as_fd(), "sock").unwrap();
    let messages = [
        r#"{"Resolvers":["192.0.2.1:53"]}"#,
        r#"{"Called":["one"]}"#,
        r#""Follow""#,
        r#"{"Ipv6":false}"#,
        r#"{"Names":{"first":true,"names":[["one",["192.0.2.1"]]]}}"#,
        r#"{"Join":{"id":"x","names":["one"],"v4":null,"v6":null,"resolvers":null,"mac":null}}"#,
        "{",
        "",
    ];
    for message in messages {
        let socket = sys::socket::seqpacket(SockFlag::empty()).unwrap();
        connect(socket.as_raw_fd(), &door).unwrap();
        sys::socket::send(socket.as_fd(), message.as_bytes(), &[]).unwrap();
        let told = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::from(5000_u16));
        let received = sys::socket::receive(socket.as_fd(), &mut [0; 4096]);
        assert!(told == Ok(1) && received.is_ok_and(|(length, _)| length == 0), "{message}");
    }
    assert_eq!(lookup(&home, "one", "one").first(), Some(&address(&home, "one", "front")));
    web(&home, "two", &["--network", "front"]);
    assert_eq!(fetch(&home, "two", "one"), "one\n");
}

#[test]
fn ports_are_published_from_each_network() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    for network in ["front", "back"] {
        home.ok(&["network", "create", network]);
        let port = free_port();
        let publish = format!("127.0.0.1:{port}:80");
        web(&home, &format!("of-{network}"), &["--network", network, "-p", &publish]);
        let at = format!("127.0.0.1:{port}");
        eventually("it answers", || get(&at, "/").is_ok_and(|body| body == format!("of-{network}\n")));
        let ports = home.ok(&["ps", "--filter", &format!("name=of-{network}"), "--format", "{{.Ports}} {{.Networks}}"]);
        assert_eq!(ports, format!("127.0.0.1:{port}->80/tcp {network}\n"));
        home.ok(&["stop", "-t", "0", &format!("of-{network}")]);
        eventually("the port is free again", || std::net::TcpListener::bind(&at).is_ok());
    }
}

#[test]
fn containers_come_and_go_as_they_run() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    home.ok(&["network", "create", "back"]);
    let port = free_port();
    web(&home, "mover", &["--network", "front", "-p", &format!("127.0.0.1:{port}:80")]);
    web(&home, "left", &["--network", "front"]);
    web(&home, "right", &["--network", "back"]);
    assert!(!reaches(&home, "mover", "right"));

    home.ok(&["network", "connect", "--alias", "guest", "back", "mover"]);
    for name in ["left", "right"] {
        assert_eq!(fetch(&home, "mover", name), format!("{name}\n"));
    }
    assert_eq!(fetch(&home, "right", "guest"), "mover\n");
    assert!(!reaches(&home, "right", "left"), "networks are not joined by a member of both");
    let there = address(&home, "mover", "back");
    assert!(home.ok(&["exec", "mover", "cat", "/etc/hosts"]).contains(&there));
    let again = home.fails(1, &["network", "connect", "back", "mover"]);
    assert!(again.contains("endpoint with name mover already exists in network back"), "{again}");

    // The one that leads is left: route, names and ports are the other's then.
    home.ok(&["network", "disconnect", "front", "mover"]);
    assert_eq!(fetch(&home, "mover", "right"), "right\n");
    assert!(!reaches(&home, "mover", "left") && !reaches(&home, "left", "mover"));
    let routes = home.ok(&["exec", "mover", "ip", "route"]);
    assert!(routes.contains("default via") && routes.contains("eth1") && !routes.contains("eth0"), "{routes}");
    let at = format!("127.0.0.1:{port}");
    eventually("its port answers", || get(&at, "/").is_ok_and(|body| body == "mover\n"));
    // So at the next start.
    home.ok(&["restart", "-t", "0", "mover"]);
    assert_eq!(fetch(&home, "right", "mover"), "mover\n");

    // Who leaves a network that does not lead forgets its names.
    home.ok(&["network", "connect", "front", "mover"]);
    assert_eq!(fetch(&home, "mover", "left"), "left\n");
    home.ok(&["network", "disconnect", "front", "mover"]);
    eventually("its names are forgotten", || lookup(&home, "mover", "left").is_empty());

    home.ok(&["network", "disconnect", "back", "mover"]);
    let devices = home.ok(&["exec", "mover", "ls", "/sys/class/net"]);
    assert_eq!(devices.trim(), "lo");
    let away = home.fails(1, &["network", "disconnect", "back", "mover"]);
    assert!(away.contains("is not connected to the network back"), "{away}");
    home.ok(&["network", "connect", "front", "mover"]);
    assert_eq!(fetch(&home, "left", "mover"), "mover\n");
}

/// A device that its root has removed does not hold a container in a network.
#[test]
fn what_root_inside_does_to_devices_is_no_hindrance() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    home.ok(&["network", "create", "back"]);
    web(&home, "one", &["--network", "front", "--network", "back", "--cap-add", "NET_ADMIN"]);
    home.ok(&["exec", "one", "ip", "link", "del", "eth1"]);
    home.ok(&["network", "disconnect", "back", "one"]);
    home.ok(&["network", "connect", "back", "one"]);
    web(&home, "two", &["--network", "back"]);
    assert_eq!(fetch(&home, "two", "one"), "one\n");
}

/// Ports wait for a network that leads out.
#[test]
fn an_internal_network_publishes_nothing() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "--internal", "closed"]);
    home.ok(&["network", "create", "open"]);
    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    web(&home, "one", &["--network", "closed", "-p", &format!("{at}:80")]);
    assert!(std::net::TcpStream::connect(&at).is_err());
    home.ok(&["network", "connect", "open", "one"]);
    eventually("it answers", || get(&at, "/").is_ok_and(|body| body == "one\n"));
    assert!(home.ok(&["port", "one"]).contains(&at));
    home.ok(&["network", "disconnect", "open", "one"]);
    eventually("it does not any more", || std::net::TcpStream::connect(&at).is_err());
}

/// Networks that lead each other: names go to and fro once.
#[test]
fn idle_networks_do_nothing() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "idle-a"]);
    home.ok(&["network", "create", "idle-b"]);
    web(&home, "one", &["--network", "idle-a", "--network", "idle-b"]);
    web(&home, "two", &["--network", "idle-b", "--network", "idle-a"]);
    web(&home, "only-a", &["--network", "idle-a"]);
    assert_eq!(fetch(&home, "two", "only-a"), "only-a\n");
    assert_eq!(fetch(&home, "one", "two"), "two\n");
    let mut all = processes(|words| words[0] == "sublet-net" && words[1].starts_with("idle-"));
    let ids = ["one", "two"].map(|name| home.inspect(name, "{{.Id}}"));
    all.extend(processes(|words| words[0] == "sublet-monitor" && ids.iter().any(|id| id.starts_with(&words[1]))));
    assert_eq!(all.len(), 4);
    let ticks = || -> u64 {
        let of = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<u64> =
                stat.rsplit(") ").next().unwrap().split(' ').filter_map(|text| text.parse().ok()).collect();
            // Without the letter of the state the fields of proc(5) begin with the fourth.
            fields[10] + fields[11]
        };
        all.iter().map(of).sum()
    };
    let flat = || {
        let before = ticks();
        std::thread::sleep(std::time::Duration::from_secs(1));
        ticks() - before <= 2
    };
    eventually("they are at rest", flat);
}

/// What a policy starts again has the networks that were joined meanwhile.
#[test]
fn a_restart_in_place_has_them_all() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    web(&home, "peer", &["--network", "front"]);
    home.ok(&["run", "-d", "--name", "again", "--restart", "always", &busybox(), "sleep", "600"]);
    home.ok(&["network", "connect", "front", "again"]);
    let before = address(&home, "again", "front");
    let pid = home.inspect("again", "{{.State.Pid}}").parse().unwrap();
    if kill(Pid::from_raw(pid), Signal::SIGKILL).is_err() {
        return skip("the payload's ids are not the caller's to kill");
    }
    eventually("it runs again", || home.inspect("again", "{{.RestartCount}} {{.State.Status}}") == "1 running");
    assert_eq!(fetch(&home, "again", "peer"), "peer\n");
    assert_eq!(address(&home, "again", "front"), before);
    assert!(home.ok(&["exec", "again", "ip", "addr"]).contains("10.213.0."));
}

/// One with a network of its own has that besides.
#[test]
fn a_container_with_its_own_network_joins_others() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    web(&home, "one", &["--network", "front"]);
    web(&home, "own", &[]);
    home.ok(&["network", "connect", "front", "own"]);
    assert_eq!(fetch(&home, "own", "one"), "one\n");
    assert_eq!(fetch(&home, "one", "own"), "own\n");
    let routes = home.ok(&["exec", "own", "ip", "route"]);
    assert!(routes.contains("default via 10.213.0.1 dev eth0") && routes.contains("dev eth1"), "{routes}");
}

#[test]
fn fifty_containers_find_each_other() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "crowd"]);
    let names: Vec<String> = (0..50).map(|number| format!("m{number:02}")).collect();
    for name in &names {
        home.ok(&["run", "-d", "--name", name, "--network", "crowd", &busybox(), "sleep", "600"]);
    }
    assert_eq!(processes(|words| words[0] == "sublet-net" && words[1] == "crowd").len(), 1);
    let addresses: Vec<String> = names.iter().map(|name| address(&home, name, "crowd")).collect();
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 50);
    let all = addresses.join(" ");
    let script = format!("for address in {all}; do ping -c 1 -W 5 $address >/dev/null && echo -n \"$address \"; done");
    for asker in [0, 24, 49] {
        assert_eq!(home.ok(&["exec", &names[asker], "sh", "-c", &script]).trim(), all, "{asker}");
    }
    for (number, name) in names.iter().enumerate() {
        let other = (number + 7) % 50;
        let found = lookup(&home, name, &names[other]);
        assert!(found.contains(&addresses[other]) && found.len() <= 2, "{name}: {found:?}");
    }
    home.ok(&[&["rm", "-f"], &names.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
    eventually("the network's process has ended", || {
        processes(|words| words[0] == "sublet-net" && words[1] == "crowd").is_empty()
    });
}

#[test]
fn addresses_are_those_that_are_asked_for() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let subnet = ["--subnet", "10.99.7.0/24", "--ip-range", "10.99.7.128/25", "--gateway", "10.99.7.9"];
    home.ok(&[&["network", "create", "--subnet", "fd99:7::/64"], &subnet[..], &["given"]].concat());
    let options = ["--network", "given", "--ip", "10.99.7.30", "--ip6", "fd99:7::30", "--mac-address"];
    web(&home, "one", &[&options[..], &["02:00:00:00:07:30"]].concat());
    let seen = home.ok(&["exec", "one", "ip", "addr", "show", "eth0"]);
    for text in ["10.99.7.30/24", "fd99:7::30/64", "02:00:00:00:07:30"] {
        assert!(seen.contains(text), "{seen}");
    }
    assert!(home.ok(&["exec", "one", "ip", "route"]).contains("default via 10.99.7.9"));
    web(&home, "two", &["--network", "given"]);
    let pool: u8 = address(&home, "two", "given").strip_prefix("10.99.7.").unwrap().parse().unwrap();
    assert!(pool >= 128, "{pool}");
    let image = busybox();
    let taken = home.fails(125, &["run", "--rm", "--network", "given:ip=10.99.7.30", &image, "true"]);
    assert!(taken.contains("address 10.99.7.30 is in use in network given"), "{taken}");
    let away = home.fails(125, &["run", "--rm", "--network", "given", "--ip", "10.98.0.1", &image, "true"]);
    assert!(away.contains("no configured subnet contains IP address 10.98.0.1"), "{away}");
    // It is free when its container has ended.
    home.ok(&["rm", "-f", "one"]);
    home.ok(&["run", "--rm", "--network", "given:ip=10.99.7.30", &image, "true"]);
}

#[test]
fn networks_are_made_listed_and_removed() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let id = home.ok(&["network", "create", "--label", "kind=a", "-o", "mtu=1500", "front"]);
    assert_eq!(id.trim().len(), 64);
    home.ok(&["network", "create", "--label", "kind=b", "back"]);
    let said = home.fails(1, &["network", "create", "front"]);
    assert!(said.contains("network with name front already exists"), "{said}");
    assert!(home.fails(1, &["network", "create", "no/name"]).contains("invalid network name"));
    assert!(home.fails(1, &["network", "create", "bridge"]).contains("predefined bridge network"));
    let format = "{{.Name}} {{.Driver}}";
    let listed = home.ok(&["network", "ls", "--format", format]);
    assert_eq!(listed, "back bridge\nbridge bridge\nfront bridge\nhost host\nnone null\n");
    assert_eq!(home.ok(&["network", "ls", "-f", "label=kind=a", "--format", "{{.Name}}"]), "front\n");
    assert_eq!(home.ok(&["network", "ls", "-q", "--no-trunc", "-f", "name=front"]), id);
    web(&home, "one", &["--network", "front"]);
    assert!(home.ok(&["exec", "one", "ip", "link"]).contains("mtu 1500"));
    assert_eq!(home.inspect("one", "{{.HostConfig.NetworkMode}}"), "front");
    let said = home.fails(1, &["network", "rm", "front"]);
    assert!(said.contains("has active endpoints (name:\"one\""), "{said}");
    assert_eq!(home.ok(&["network", "prune", "-f"]), "Deleted Networks:\nback\n\n");
    home.ok(&["rm", "-f", "one"]);
    home.ok(&["network", "create", "late"]);
    assert!(home.ok(&["system", "prune", "-f", "--filter", "label!=kind=a"]).contains("Deleted Networks:\nlate\n\n"));
    let format = "{{.Action}} {{.Actor.Attributes.name}}";
    let events = home.ok(&["events", "--since", "1h", "--until", "0s", "-f", "type=network", "--format", format]);
    let wanted = [
        "create front",
        "create back",
        "connect front",
        "destroy back",
        "disconnect front",
        "create late",
        "destroy late",
    ];
    assert_eq!(events.lines().collect::<Vec<_>>(), wanted);
    assert_eq!(home.ok(&["network", "rm", &id[..8]]), format!("{}\n", &id[..8]));
    assert!(home.fails(1, &["network", "rm", "front"]).contains("network front not found"));
    let said = home.fails(125, &["run", "--rm", "--network", "front", &busybox(), "true"]);
    assert!(said.contains("network front not found") && said.contains("network create"), "{said}");
}

/// One that claims to be the gateway gets nothing of what others send there.
#[test]
fn nobody_is_taken_for_the_gateway() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "front"]);
    web(&home, "honest", &["--network", "front"]);
    home.ok(&[
        "run",
        "-d",
        "--name",
        "liar",
        "--network",
        "front",
        "--cap-add",
        "NET_ADMIN",
        &busybox(),
        "sleep",
        "600",
    ]);
    let known = home.ok(&["exec", "liar", "ip", "neigh"]);
    let words: Vec<&str> = known.split_whitespace().collect();
    let mac = words.iter().zip(&words[1..]).find(|(word, _)| **word == "lladdr").unwrap().1;
    let leads_out = || !lookup(&home, "honest", "host.docker.internal").is_empty();
    assert!(leads_out());
    let lie = format!("ip link set eth0 address {mac} && ping -c 3 -W 1 {}; true", address(&home, "honest", "front"));
    home.ok(&["exec", "liar", "sh", "-c", &lie]);
    assert!(leads_out() && leads_out());
}

/// Subnets that the host or another network has are not taken.
#[test]
fn subnets_do_not_clash() {
    let Some(home) = Home::new(&[]) else { return };
    let subnet = "{{(index .IPAM.Config 0).Subnet}}";
    let subnets: BTreeSet<String> = (0..5)
        .map(|number| {
            let name = format!("net{number}");
            home.ok(&["network", "create", &name]);
            home.ok(&["network", "inspect", "--format", subnet, &name])
        })
        .collect();
    assert_eq!(subnets.len(), 5);
    let first = subnets.first().unwrap().trim().to_owned();
    let said = home.fails(1, &["network", "create", "--subnet", &first, "again"]);
    assert!(said.contains("overlap"), "{said}");
    assert!(home.fails(1, &["network", "create", "--subnet", "10.1.2.0/33", "wrong"]).contains("10.1.2.0/33"));
}

/// A container that starts before the members have noticed the end of the network's process gets no address of theirs.
#[test]
fn who_comes_before_the_members_takes_no_address_of_theirs() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "early"]);
    let names = ["one", "two", "three"];
    for name in names {
        web(&home, name, &["--network", "early"]);
    }
    let before = names.map(|name| address(&home, name, "early"));
    let role = || processes(|words| words[0] == "sublet-net" && words[1] == "early");
    let ids = home.containers();
    let monitors = processes(|words| words[0] == "sublet-monitor" && ids.iter().any(|id| id.starts_with(&words[1])));
    let signal_all = |signal| monitors.iter().for_each(|pid| kill(Pid::from_raw(*pid), signal).unwrap());
    signal_all(Signal::SIGSTOP);
    kill(Pid::from_raw(role()[0]), Signal::SIGKILL).unwrap();
    web(&home, "late", &["--network", "early"]);
    signal_all(Signal::SIGCONT);
    assert!(!before.contains(&address(&home, "late", "early")), "{before:?}");
    eventually("all are found", || names.iter().all(|name| !lookup(&home, "late", name).is_empty()));
    assert_eq!(names.map(|name| address(&home, name, "early")), before);
    assert_eq!(fetch(&home, "late", "one"), "one\n");
    assert_eq!(fetch(&home, "three", "late"), "late\n");
}

/// Killed, it is there again with the same addresses, names and ports, and one line tells it.
#[test]
fn a_killed_network_process_is_started_again() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    home.ok(&["network", "create", "killed"]);
    let port = free_port();
    web(&home, "one", &["--network", "killed", "-p", &format!("127.0.0.1:{port}:80")]);
    web(&home, "two", &["--network", "killed"]);
    web(&home, "three", &["--network", "killed"]);
    let before: Vec<String> = ["one", "two", "three"].map(|name| address(&home, name, "killed")).into();
    let role = || processes(|words| words[0] == "sublet-net" && words[1] == "killed");
    let killed = role();
    assert_eq!(killed.len(), 1);
    let attached = start(&mut home.command(&["attach", "--no-stdin", "two"]));
    eventually("it is attached", || home.ok(&["events", "--since", "1h", "--until", "0s"]).contains(" attach "));
    kill(Pid::from_raw(killed[0]), Signal::SIGKILL).unwrap();
    // Whoever is first makes it anew: a monitor, or a start.
    web(&home, "late", &["--network", "killed"]);
    eventually("there is another one", || role().first().is_some_and(|role| *role != killed[0]));
    let at = format!("127.0.0.1:{port}");
    eventually("the port answers", || get(&at, "/").is_ok_and(|body| body == "one\n"));
    eventually("all names are known", || {
        ["one", "two", "three"].iter().all(|name| !lookup(&home, "two", name).is_empty())
    });
    assert_eq!(role().len(), 1);
    let after: Vec<String> = ["one", "two", "three"].map(|name| address(&home, name, "killed")).into();
    assert_eq!(before, after);
    for (from, to) in [("three", "one"), ("late", "two"), ("one", "late")] {
        assert_eq!(fetch(&home, from, to), format!("{to}\n"));
    }
    home.ok(&["rm", "-f", "two"]);
    let told = end(attached, LIMIT).stderr;
    let lines = told.lines().filter(|line| line.contains("the process of network killed has ended")).count();
    assert_eq!(lines, 1, "{told}");
}
