//! The host's and the container's namespaces, and what runs in them.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use base::ContainerId;
use net::client::{self, Control};
use net::{Addressing, NetSpec, Published, RoleSpec, setup};
use sys::process::{self, Child, Exit, Flags};
use sys::{netlink, tuntap};

/// The host's primary addresses.
pub const HOST: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 7))];

/// The loopback addresses.
pub const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// A process whose success is expected.
#[must_use]
pub struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Waits for it.
    pub fn finish(self) {
        let exit = process::reap(self.child.pidfd.as_fd(), true).unwrap();
        assert_eq!(exit, Some(Exit::Code(0)), "{}", self.name);
    }
}

fn fork(name: &'static str, flags: Flags, run: impl FnOnce()) -> Result<Process, sys::SysError> {
    let child = process::fork(flags, None, || match catch_unwind(AssertUnwindSafe(run)) {
        Ok(()) => 0,
        Err(_) => 1,
    })?;
    Ok(Process { name, child })
}

/// Runs a function in a process with user and network namespaces of its own, as their root.
pub fn in_namespaces(name: &'static str, run: impl FnOnce()) -> Result<Process, sys::SysError> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    fork(name, Flags::NEWUSER | Flags::NEWNET, || {
        std::fs::write("/proc/self/setgroups", "deny").unwrap();
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
        run();
    })
}

/// Runs a function in a process of its own.
pub fn in_process(name: &'static str, run: impl FnOnce()) -> Process {
    fork(name, Flags::empty(), run).unwrap()
}

/// Gives the namespace a device with [`HOST`]'s addresses and default routes into the void.
pub fn become_host() {
    let tap = tuntap::open().unwrap();
    tuntap::make_tap(tap.as_fd(), "world0").unwrap();
    // The device lives as long as the process.
    std::mem::forget(tap);
    for device in ["default", "world0"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/accept_dad"), "0").unwrap();
    }
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let index = nix::net::if_::if_nametoindex("world0").unwrap();
    let mut batch = netlink::Batch::default();
    batch.link_up(1).link_setup(index, 1500, [2, 0, 0, 0, 0, 7], true).link_up(index);
    for (address, prefix, router) in
        [(HOST[0], 24, "198.51.100.1".parse().unwrap()), (HOST[1], 64, "2001:db8:1::1".parse::<IpAddr>().unwrap())]
    {
        let nowhere = if address.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
        batch.address(index, address, prefix).route(index, (router, if router.is_ipv4() { 32 } else { 128 }), None);
        batch.route(index, (nowhere, 0), Some(router)).neighbour(index, router, [2, 0, 0, 0, 0, 1]);
    }
    batch.run().unwrap();
}

/// Switches IPv6 off in the namespace.
pub fn disable_ipv6() {
    for device in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").unwrap();
    }
}

/// A container's network with its process.
pub struct Bed {
    /// The published ports as they were bound.
    pub published: Vec<Published>,
    control: Control,
    role: Child,
    inside: Process,
    ready: OwnedFd,
}

impl Bed {
    /// Starts the network process and runs `inside` in a container's namespace. See [`Bed::wait_inside`] for
    /// their agreement.
    pub fn start(spec: &NetSpec, inside: impl FnOnce(&Inside)) -> Self {
        Self::start_prepared(spec, || (), inside)
    }

    /// The same, with a namespace to which `prepare` has been done.
    pub fn start_prepared(spec: &NetSpec, prepare: impl FnOnce(), inside: impl FnOnce(&Inside)) -> Self {
        let (role, control) =
            client::spawn(&RoleSpec::Own(spec.clone()), "test", None, Some(std::io::stderr().as_fd())).unwrap();
        let (published, _) = control.wait_ready().unwrap();
        let (ready, theirs) = sys::socket::pair().unwrap();
        let inside = in_namespaces("the container", || {
            prepare();
            let tap = setup::in_namespace(&spec.addressing).unwrap();
            control.hand_tap(&tap).unwrap();
            drop(tap);
            inside(&Inside {
                addressing: spec.addressing.clone(),
                ready: theirs.as_fd().try_clone_to_owned().unwrap(),
            });
        });
        Bed { published, control, role, inside: inside.unwrap(), ready }
    }

    /// Waits until [`Inside::ready`] was called.
    pub fn wait_inside(&self) {
        let mut buffer = [0; 8];
        assert_eq!(sys::socket::receive(self.ready.as_fd(), &mut buffer).unwrap().0, 1);
    }

    /// Tells the network process of other resolvers.
    pub fn set_resolvers(&mut self, resolvers: &[SocketAddr]) {
        self.control.set_resolvers(resolvers);
    }

    /// Waits for the inside's end; then the network process must end with its control socket.
    pub fn finish(self) {
        self.inside.finish();
        drop(self.control);
        assert_eq!(process::reap(self.role.pidfd.as_fd(), true).unwrap(), Some(Exit::Code(0)), "the network process");
    }
}

/// What the inside knows.
pub struct Inside {
    pub addressing: Addressing,
    ready: OwnedFd,
}

impl Inside {
    /// Lets [`Bed::wait_inside`] return.
    pub fn ready(&self) {
        sys::socket::send(self.ready.as_fd(), b"!", &[]).unwrap();
    }

    /// The gateway's addresses, in the order of [`HOST`].
    pub fn gateways(&self) -> [IpAddr; 2] {
        [self.addressing.v4.gateway.into(), self.addressing.v6.gateway.into()]
    }
}

/// A network without published ports.
pub fn spec() -> NetSpec {
    NetSpec {
        addressing: Addressing::default_bridge(&ContainerId::from_random([0x5a; 32])),
        publish: Vec::new(),
        resolvers: Vec::new(),
        resolvers_are_the_hosts: false,
        names: vec![("Web".to_owned(), vec![IpAddr::from([10, 213, 0, 100])])],
        host_loopback: false,
        egress: None,
        rate: None,
    }
}

/// Runs a function in a thread; the handle is to be joined before the next scenario, as processes are made by one
/// thread only.
pub fn thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::spawn(run)
}

/// Bytes without structure, of a length that no buffer size divides: what is lost, doubled or exchanged shows.
fn pattern() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(next).take(1_000_003).collect()
}

/// Sends `count` bytes of the pattern.
pub fn send_pattern(mut stream: &TcpStream, count: usize) {
    let pattern = pattern();
    let mut left = count;
    while left > 0 {
        let part = left.min(pattern.len());
        stream.write_all(&pattern[..part]).unwrap();
        left -= part;
    }
}

/// Receives to the end and compares with `count` bytes of the pattern; sleeps `pause_us` after each read.
pub fn expect_pattern(mut stream: &TcpStream, count: usize, pause_us: u64) {
    let pattern = pattern();
    let mut buffer = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let length = stream.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            let at = received % pattern.len();
            let part = rest.len().min(pattern.len() - at);
            assert!(rest[..part] == pattern[at..at + part], "contents differ after byte {received}");
            rest = &rest[part..];
            received += part;
        }
        if pause_us > 0 {
            std::thread::sleep(std::time::Duration::from_micros(pause_us));
        }
    }
    assert_eq!(received, count, "length of the stream");
}

/// Sends a text, ends the sending direction and returns what comes back.
pub fn converse(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
