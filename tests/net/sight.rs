//! Looking at traffic: flows, rates and captures of containers with a network of their own and of members of a shared one.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::http::primary_address;
use crate::support::{Home, LIMIT, Need, busybox, end, eventually, finish, free_port, signal, skip, start};

/// A server on the host that sends so many bytes to each client, and keeps what it gets until the client ends.
fn sender(address: Ipv4Addr, bytes: usize) -> std::net::SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = client.write_all(&vec![b'x'; bytes]);
                let _ = client.read_to_end(&mut Vec::new());
            });
        }
    });
    address
}

/// A container that has sent five bytes to the server, takes all that comes, and stays connected.
fn talker(home: &Home, name: &str, options: &[&str], server: std::net::SocketAddr) {
    let script = format!("(echo 1234; sleep 600) | nc {} {} >/got & wait", server.ip(), server.port());
    let image = busybox();
    home.ok(&[&["run", "-d", "--name", name], options, &[image.as_str(), "sh", "-c", &script]].concat());
}

/// The flows of these containers, or of all.
fn flows(home: &Home, containers: &[&str]) -> Vec<Value> {
    let said = home.ok(&[&["net", "flows", "--format", "json"], containers].concat());
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_flow_shows_its_ends_and_what_it_has_carried() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = sender(outside, 70_000);
    talker(&home, "one", &[], server);
    let arrived = |flow: &&Value| flow["ReceivedBytes"] == "70000" && flow["SentBytes"] == "5";
    eventually("all has arrived", || flows(&home, &["one"]).iter().any(|flow| arrived(&flow)));
    let all = flows(&home, &[]);
    let flow = all.iter().find(arrived).unwrap();
    assert_eq!(all.iter().filter(|flow| flow["Protocol"] == "tcp").count(), 1, "{all:#?}");
    assert_eq!((flow["Container"].as_str(), flow["State"].as_str()), (Some("one"), Some("ESTABLISHED")));
    assert_eq!(flow["Destination"], server.to_string());
    assert!(flow["Source"].as_str().unwrap().starts_with("10.213.0.100:"), "{flow}");
    let table = home.ok(&["net", "flows", "-a"]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["CONTAINER", "PROTOCOL", "SOURCE", "DESTINATION", "STATE", "SENT", "RECEIVED", "AGE"]);
    assert!(table.contains("70kB"), "{table}");
    // Its end is seen too.
    home.ok(&["exec", "one", "killall", "nc"]);
    eventually("the flow has ended", || flows(&home, &["one"]).iter().all(|flow| flow["State"] != "ESTABLISHED"));
}

#[test]
fn a_flow_that_came_in_shows_its_client_as_the_source() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let port = free_port();
    let publish = format!("{port}:80");
    home.ok(&["run", "-d", "--name", "web", "-p", &publish, &busybox(), "nc", "-ll", "-p", "80", "-e", "cat"]);
    let mut client = None;
    eventually("it answers", || {
        let Ok(mut stream) = TcpStream::connect((outside, port)) else { return false };
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut back = [0; 3];
        let answers = stream.write_all(b"abc").is_ok() && stream.read_exact(&mut back).is_ok();
        client = answers.then_some(stream);
        answers
    });
    let client = client.unwrap();
    let shown = flows(&home, &["web"]);
    let source = client.local_addr().unwrap().to_string();
    let flow = shown.iter().find(|flow| flow["Source"] == source.as_str());
    let flow = flow.unwrap_or_else(|| panic!("{source} is not in {shown:#?}"));
    assert_eq!((flow["SentBytes"].as_str(), flow["ReceivedBytes"].as_str()), (Some("3"), Some("3")), "{flow}");
    assert_eq!(flow["Destination"], "10.213.0.100:80");
}

#[test]
fn members_of_a_network_have_each_their_own_flows_and_rates() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = sender(outside, 3_000_000);
    home.ok(&["network", "create", "front"]);
    talker(&home, "one", &["--network", "front"], server);
    home.ok(&["run", "-d", "--name", "two", "--network", "front", &busybox(), "sleep", "600"]);
    let tcp = |container| flows(&home, &[container]).iter().filter(|flow| flow["Protocol"] == "tcp").count();
    eventually("the first has a flow", || tcp("one") == 1);
    assert_eq!(tcp("two"), 0);
    let top = || {
        let said = home.ok(&["net", "top", "--no-stream", "--format", "json"]);
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let of = |rows: &[Value], name: &str, key: &str| {
        let row = rows.iter().find(|row| row["Container"] == name).unwrap_or_else(|| panic!("{rows:#?}"));
        assert_eq!(row["Network"], "front");
        row[key].as_str().unwrap().to_owned()
    };
    eventually("its bytes are counted", || of(&top(), "one", "ReceivedBytes").parse::<u64>().unwrap() > 3_000_000);
    let rows = top();
    assert!(of(&rows, "two", "ReceivedBytes").parse::<u64>().unwrap() < 100_000, "{rows:#?}");
    assert_eq!((of(&rows, "one", "Flows"), of(&rows, "two", "Flows")), ("1".to_owned(), "0".to_owned()));
    assert_eq!(of(&rows, "two", "SentRate"), "0B/s");
}

#[test]
fn what_cannot_be_seen_is_said() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "-d", "--name", "hosts", "--network", "host", &busybox(), "sleep", "600"]);
    for command in [&["net", "flows", "hosts"][..], &["net", "top", "hosts"], &["net", "capture", "-w", "-", "hosts"]] {
        let said = home.fails(1, command);
        assert!(said.contains("container hosts does not run, or has no network of its own"), "{said}");
    }
    assert!(home.fails(1, &["net", "flows", "nobody"]).contains("No such container: nobody"));
    assert_eq!(home.ok(&["net", "flows"]).lines().count(), 1);
}

/// A pcap file's frames.
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_c3d4, 1), "a pcap file of Ethernet frames");
    let (mut frames, mut at) = (Vec::new(), 24);
    while at < file.len() {
        let length = word(at + 8) as usize;
        frames.push(&file[at + 16..at + 16 + length]);
        at += 16 + length;
    }
    frames
}

#[test]
fn a_capture_has_the_frames_of_the_container_and_of_no_other() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    home.ok(&["network", "create", "front"]);
    for name in ["one", "two"] {
        home.ok(&["run", "-d", "--name", name, "--network", "front", &busybox(), "sleep", "600"]);
    }
    let server = sender(outside, 200_000);
    let path = home.path("one.pcap");
    let mut capture = home.command(&["net", "capture", "-w", path.to_str().unwrap(), "one"]);
    let capture = start(capture.stdout(Stdio::piped()).stderr(Stdio::piped()));
    eventually("the capture has begun", || std::fs::metadata(&path).is_ok_and(|it| it.len() >= 24));
    let fetch = format!("nc {} {} </dev/null | wc -c", server.ip(), server.port());
    // What was asked for is at work when a frame shows.
    eventually("frames are seen", || {
        assert_eq!(home.ok(&["exec", "one", "sh", "-c", &fetch]), "200000\n");
        assert_eq!(home.ok(&["exec", "two", "sh", "-c", &fetch]), "200000\n");
        std::fs::metadata(&path).is_ok_and(|it| it.len() > 200_000)
    });
    signal(&capture, Signal::SIGINT);
    let done = end(capture, LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    let file = std::fs::read(&path).unwrap();
    let seen = frames(&file);
    assert_eq!(done.stderr, format!("{} frames captured\n", seen.len()));
    let address = home.inspect("two", "{{.NetworkSettings.Networks.front.IPAddress}}");
    let address: Ipv4Addr = address.parse().unwrap();
    let of_other = |frame: &&&[u8]| frame.windows(4).take(40).any(|part| part == address.octets());
    assert_eq!(seen.iter().filter(of_other).count(), 0);
    assert!(seen.iter().map(|frame| frame.len()).sum::<usize>() > 200_000);

    // The oracle.
    let mut tcpdump = Command::new("tcpdump");
    if Command::new("tcpdump").arg("--version").output().is_err() {
        return skip("no tcpdump");
    }
    let said = finish(tcpdump.args(["-nr", path.to_str().unwrap(), "tcp"]), b"", LIMIT).stdout;
    let there = format!("> {}.{}: Flags [S]", server.ip(), server.port());
    assert!(said.contains(&there) && said.contains("Flags [F.]"), "{said}");
    let carried: u64 = said
        .lines()
        .filter(|line| line.contains(&format!("IP {}.{} >", server.ip(), server.port())))
        .filter_map(|line| line.rsplit_once("length ")?.1.parse::<u64>().ok())
        .sum();
    assert!(carried >= 200_000 && carried.is_multiple_of(200_000), "{carried}: {said}");
}

#[test]
fn a_capture_ends_by_count_and_by_time_and_goes_to_a_pipe() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let ping = "while :; do ping -c 1 $(ip route | awk '/^default/ {print $3}') >/dev/null; sleep .1; done";
    home.ok(&["run", "-d", "--name", "one", &busybox(), "sh", "-c", ping]);
    let mut capture = home.command(&["net", "capture", "-w", "-", "-c", "4", "--snaplen", "50", "one"]);
    let output = capture.stderr(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    let seen = frames(&output.stdout);
    assert_eq!(seen.iter().map(|frame| frame.len()).collect::<Vec<_>>(), [50; 4]);
    let began = Instant::now();
    let path = home.path("two.pcap");
    let done = home.run(&["net", "capture", "-w", path.to_str().unwrap(), "--duration", "2s", "one"]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(began.elapsed() >= Duration::from_secs(2) && began.elapsed() < Duration::from_secs(20));
    assert!(frames(&std::fs::read(&path).unwrap()).len() > 4);
}

/// One that asks and does not read holds nobody up, and what it does not take is counted.
#[test]
fn an_observer_that_does_not_read_holds_nobody_up() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(outside) = primary_address() else { return skip("this machine has no route out") };
    let server = sender(outside, 30_000_000);
    home.ok(&["run", "-d", "--name", "one", &busybox(), "sleep", "600"]);
    let mut capture = home.command(&["net", "capture", "-w", "-", "one"]);
    let mut capture = start(capture.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let mut output = capture.stdout.take().unwrap();
    let mut header = [0; 24];
    output.read_exact(&mut header).unwrap();
    let fetch = format!("nc {} {} </dev/null | wc -c", server.ip(), server.port());
    for _ in 0..2 {
        assert_eq!(home.ok(&["exec", "one", "sh", "-c", &fetch]), "30000000\n");
    }
    let reader = std::thread::spawn(move || {
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).unwrap();
        rest.len()
    });
    signal(&capture, Signal::SIGINT);
    let done = end(capture, LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains(" dropped as they came too fast"), "{done:#?}");
    let length = reader.join().unwrap();
    assert!(length > 1 << 20 && length < 8 << 20, "{length}");
}
