//! What can go wrong between a container and its network.

use base::{Explain, Failure, Kind, Report};
use nix::errno::Errno;
use sys::SysError;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The TAP device could not be opened.
    #[error("cannot open a TAP device")]
    Tun(#[source] SysError),
    /// A step of setting up the namespace.
    #[error("cannot set up the container's network: {step}")]
    Setup {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: SysError,
    },
    /// No bridge can be made.
    #[error("cannot make the network's bridge")]
    Bridge {
        /// Why.
        #[source]
        source: SysError,
    },
    /// No pair of Ethernet devices can be made.
    #[error("cannot make the container's device at the network's bridge")]
    Veth {
        /// Why.
        #[source]
        source: SysError,
    },
    /// A rule for what a container may reach is none.
    #[error("invalid rule {text:?}: {why}")]
    Rule {
        /// What was written.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The process of a network does not know rules, or limits.
    #[error("the process of this network is of an earlier version of sublet, which does not restrict {what}")]
    Unrestricted {
        /// What was to be restricted.
        what: &'static str,
    },
    /// A network refuses a member.
    #[error("{0}")]
    Refused(String),
    /// A published port is in use.
    #[error("Bind for {address} failed: port is already allocated")]
    PortTaken {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Words for who has it, where that is known.
        owner: Option<String>,
    },
    /// Every port of a published range is in use.
    #[error("Bind for {} failed: all ports are allocated", range(.address, *.first, *.last))]
    PortsTaken {
        /// The address, the first of them when there are several.
        address: std::net::IpAddr,
        /// The first port.
        first: u16,
        /// The last port.
        last: u16,
    },
    /// A published port is refused.
    #[error("Bind for {address} failed")]
    Bind {
        /// Address and port.
        address: std::net::SocketAddr,
        /// The first port that needs no privilege.
        unprivileged_from: u16,
        /// Why.
        #[source]
        source: SysError,
    },
    /// A system call of the role or its client.
    #[error(transparent)]
    System(#[from] SysError),
    /// A message between monitor and role cannot be read.
    #[error("malformed message on the network's control socket")]
    Protocol(#[source] serde_json::Error),
    /// The role ended before it was ready.
    #[error("the network process ended unexpectedly")]
    Ended,
    /// A program that serves a container has ended.
    #[error("{name} has ended ({how}){}", if .said.is_empty() { String::new() } else { format!(": {}", .said) })]
    Program {
        /// Its name.
        name: &'static str,
        /// How it ended.
        how: String,
        /// What it said last.
        said: String,
    },
    /// The role reported a failure; convert with [`NetError::into_report`] to keep its kind and hint.
    #[error("{}", .0.lines.join(": "))]
    Role(Failure),
}

/// `0.0.0.0:8000-8010`.
fn range(address: &std::net::IpAddr, first: u16, last: u16) -> String {
    format!("{}-{last}", std::net::SocketAddr::new(*address, first))
}

impl NetError {
    /// The report for the user; a failure of the role arrives as the role worded it.
    pub fn into_report(self) -> Report {
        match self {
            NetError::Role(failure) => failure.into(),
            other => other.into(),
        }
    }
}

impl Explain for NetError {
    fn kind(&self) -> Kind {
        match self {
            NetError::Tun(source)
            | NetError::Setup { source, .. }
            | NetError::Bridge { source }
            | NetError::Veth { source }
            | NetError::Bind { source, .. }
            | NetError::System(source) => source.kind(),
            NetError::PortTaken { .. } | NetError::PortsTaken { .. } | NetError::Refused(_) => Kind::Conflict,
            NetError::Rule { .. } => Kind::Usage,
            NetError::Unrestricted { .. } => Kind::Unsupported,
            NetError::Protocol(_) | NetError::Ended | NetError::Program { .. } => Kind::Internal,
            NetError::Role(failure) => failure.kind,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            NetError::Tun(source) if matches!(source.errno(), Errno::ENOENT | Errno::ENODEV) => {
                Some("load the kernel module tun (modprobe tun), or use --network host or none".to_owned())
            }
            NetError::Tun(_) => {
                Some("let users open /dev/net/tun (mode 0666), or use --network host or none".to_owned())
            }
            NetError::Bridge { source } if source.errno() == Errno::EOPNOTSUPP => {
                Some("load the kernel module bridge (modprobe bridge)".to_owned())
            }
            NetError::Veth { source } if source.errno() == Errno::EOPNOTSUPP => {
                Some("load the kernel module veth (modprobe veth)".to_owned())
            }
            NetError::Bind { address, unprivileged_from, source }
                if source.errno() == Errno::EACCES && address.port() < *unprivileged_from =>
            {
                Some(format!(
                    "ports below {unprivileged_from} need a privilege: publish a higher one, or let an administrator \
                     run sysctl net.ipv4.ip_unprivileged_port_start={}",
                    address.port()
                ))
            }
            NetError::PortTaken { owner: Some(owner), .. } => Some(format!("{owner}: publish another port")),
            NetError::Rule { .. } => Some(
                "a rule is HOST[:PORT[-PORT]][/tcp|/udp], and a host a name, *.NAME, *, an address or ADDRESS/BITS"
                    .to_owned(),
            ),
            NetError::Unrestricted { .. } => {
                Some("restart the containers that are in the network, or use another one".to_owned())
            }
            NetError::Role(failure) => failure.hint.clone(),
            _ => None,
        }
    }
}
