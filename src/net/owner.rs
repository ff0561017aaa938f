//! Who has a port of the host, as far as `/proc` tells: proc_net_tcp(5) knows sockets with their user and inode, and the
//! descriptors of the caller's own processes lead to inodes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::Transport;
use crate::client::ARGV0;

/// A command line is told up to here.
const COMMAND_MAX: usize = 60;

/// Words for whoever has this port, at this address or at all; `None` where that is not known, or is a container of the
/// caller's: that has a name, which the engine knows, and its role net mostly lets nobody look into it.
pub fn of(address: SocketAddr, transport: Transport) -> Option<String> {
    // TCP_LISTEN, and TCP_CLOSE, in which datagram sockets stay.
    let (tables, state) = match transport {
        Transport::Tcp => (["tcp", "tcp6"], 0x0a),
        Transport::Udp => (["udp", "udp6"], 0x07),
    };
    let socket = tables.iter().find_map(|table| {
        let table = fs::read_to_string(format!("/proc/net/{table}")).ok()?;
        table.lines().skip(1).filter_map(Socket::parse).find(|socket| socket.state == state && socket.keeps(address))
    })?;
    let own = socket.uid == nix::unistd::geteuid().as_raw();
    match process_of(socket.inode) {
        Some((_, command)) if own && command.starts_with(ARGV0) => None,
        Some((pid, command)) => Some(format!("process {pid} ({command}) has it")),
        None => (!own).then(|| format!("a process of user {} has it", socket.uid)),
    }
}

/// A line of such a table.
#[derive(Debug, PartialEq, Eq)]
struct Socket {
    local: SocketAddr,
    state: u8,
    uid: u32,
    inode: u64,
}

impl Socket {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_whitespace();
        let (address, port) = fields.nth(1)?.split_once(':')?;
        let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
        let ip: IpAddr = match address.len() {
            8 => Ipv4Addr::from(word(0)?).into(),
            32 => {
                let mut octets = [0; 16];
                for (number, octets) in octets.chunks_exact_mut(4).enumerate() {
                    octets.copy_from_slice(&word(number * 8)?);
                }
                Ipv6Addr::from(octets).into()
            }
            _ => return None,
        };
        Some(Socket {
            local: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
            state: u8::from_str_radix(fields.nth(1)?, 16).ok()?,
            uid: fields.nth(3)?.parse().ok()?,
            inode: fields.nth(1)?.parse().ok()?,
        })
    }

    /// Whether others cannot have this address.
    fn keeps(&self, address: SocketAddr) -> bool {
        let (own, other) = (self.local.ip(), address.ip());
        self.local.port() == address.port() && (own == other || own.is_unspecified() || other.is_unspecified())
    }
}

/// The process that has the socket, as far as we may look into processes, with its command line.
fn process_of(inode: u64) -> Option<(u32, String)> {
    let link = format!("socket:[{inode}]");
    let has = |pid: &u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.into_iter().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == link.as_str()))
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids.into_iter().find(has)?;
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    // Others' text may hold anything.
    Some((pid, line.trim_end().chars().filter(|c| !c.is_control()).take(COMMAND_MAX).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_are_read() {
        let v4 =
            "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 100";
        let socket = Socket::parse(v4).expect("a line");
        assert_eq!(socket, Socket { local: ([127, 0, 0, 1], 8080).into(), state: 0x0a, uid: 1000, inode: 4711 });
        let keeps = |text: &str| socket.keeps(text.parse().expect("an address"));
        assert!(keeps("127.0.0.1:8080") && keeps("0.0.0.0:8080"));
        assert!(!keeps("127.0.0.2:8080") && !keeps("127.0.0.1:8081"));
        let v6 =
            "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 12 2";
        assert_eq!(Socket::parse(v6).map(|socket| socket.local), Some((Ipv6Addr::LOCALHOST, 53).into()));
        for bad in ["", "0: 0100007F", "0: 0100:1F90 0 0A", "0: xx00007F:1F90 0 0A 0 0 0 0 0 0"] {
            assert_eq!(Socket::parse(bad), None, "{bad}");
        }
    }
}
