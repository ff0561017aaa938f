//! How much a container may carry in a second.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::support::http::primary_address;
use crate::support::{Home, Need, busybox, skip};

/// A million bytes a second.
const RATE: &str = "8mbit";
/// Takes almost two seconds at that.
const SIZE: usize = 2_000_000;
/// What it takes at least: less than a tenth comes at once.
const LEAST: Duration = Duration::from_millis(1700);

/// Gives the first who calls as many bytes, or takes them: the time from the call to the end.
fn serve(address: Ipv4Addr, gives: bool) -> (SocketAddr, JoinHandle<Duration>) {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    let served = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let began = Instant::now();
        if gives {
            stream.write_all(&vec![7; SIZE]).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut taken = Vec::new();
        stream.read_to_end(&mut taken).unwrap();
        assert_eq!(taken.len(), if gives { 0 } else { SIZE });
        began.elapsed()
    });
    (at, served)
}

/// How long a transfer takes to a container, and from it.
fn transfers(home: &Home, container: &str, address: Ipv4Addr) -> [Duration; 2] {
    let (from, given) = serve(address, true);
    let began = Instant::now();
    let fetch = format!("nc {} {} </dev/null | wc -c", from.ip(), from.port());
    assert_eq!(home.ok(&["exec", container, "sh", "-c", &fetch]).trim(), SIZE.to_string());
    // The host's sockets have taken all of it long before.
    let fetched = began.elapsed();
    given.join().unwrap();
    let (to, taken) = serve(address, false);
    let send = format!("head -c {SIZE} /dev/zero | nc {} {}", to.ip(), to.port());
    home.ok(&["exec", container, "sh", "-c", &send]);
    [fetched, taken.join().unwrap()]
}

fn start(home: &Home, name: &str, options: &[&str]) {
    let run = ["run", "-d", "--name", name];
    home.ok(&[&run[..], options, &[&busybox(), "sleep", "600"]].concat());
}

#[test]
fn a_transfer_takes_its_time_either_way() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    start(&home, "slow", &["--net-rate", RATE]);
    let took = transfers(&home, "slow", address);
    assert!(took.iter().all(|took| (LEAST..4 * LEAST).contains(took)), "{took:?}");
    assert_eq!(home.inspect("slow", "{{.HostConfig.NetRate}}").trim(), "8000000");
    home.ok(&["rm", "-f", "slow"]);
}

#[test]
fn a_member_of_a_network_has_its_own() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    home.ok(&["network", "create", "lan"]);
    start(&home, "slow", &["--network", "lan", "--net-rate", RATE]);
    start(&home, "free", &["--network", "lan"]);
    let [slow, free] = ["slow", "free"].map(|container| transfers(&home, container, address));
    assert!(slow.iter().all(|took| (LEAST..4 * LEAST).contains(took)), "{slow:?}");
    assert!(free.iter().all(|took| *took < LEAST), "{free:?}");
    home.ok(&["rm", "-f", "slow", "free"]);
}

#[test]
fn what_is_no_rate_is_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for rate in ["0", "fast", "1000000", "8mb", "-8mbit", "63kbit", "1001gbit", "mbit"] {
        let said = home.fails(125, &["run", &format!("--net-rate={rate}"), &busybox(), "true"]);
        assert!(said.contains("it must be of 64kbit to 1000gbit a second"), "{rate}: {said}");
    }
    let said = home.fails(125, &["run", "--net-rate", RATE, "--network", "host", &busybox(), "true"]);
    assert!(said.contains("conflicting options: net-rate and the network mode"), "{said}");
}
