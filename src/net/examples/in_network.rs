//! Runs a command as root of new user and network namespaces behind the built-in network: for measurements by hand.
//!
//! `in_network [--mtu N] [-p HOST_PORT:PORT]... [--host-loopback] COMMAND [ARGUMENT]...`

use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use base::ContainerId;
use net::{Addressing, NetSpec, Publish, RoleSpec, Transport, client, setup};
use sys::process::{self, Flags};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(client::ARGV0) {
        return sys::role::Inherited::take().map_or(ExitCode::FAILURE, net::role::main);
    }
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error} ({error:?})");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<u8> {
    let (spec, command) = arguments()?;
    let (_role, control) =
        client::spawn(&RoleSpec::Own(spec.clone()), "in_network", None, Some(std::io::stderr().as_fd()))?;
    eprintln!("published: {:?}", control.wait_ready()?.0);
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let child = process::fork(Flags::NEWUSER | Flags::NEWNET, None, || {
        let inside = || -> Result<()> {
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
            control.hand_tap(&setup::in_namespace(&spec.addressing)?)?;
            Err(Command::new(&command[0]).args(&command[1..]).exec().into())
        };
        eprintln!("error: {:?}", inside().err());
        127
    })?;
    let exit = process::reap(child.pidfd.as_fd(), true)?.ok_or("no exit")?;
    Ok(exit.shell_code() as u8)
}

fn arguments() -> Result<(NetSpec, Vec<String>)> {
    let mut spec = NetSpec {
        addressing: Addressing::default_bridge(&ContainerId::from_random([7; 32])),
        publish: Vec::new(),
        resolvers: net::files::name_servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        resolvers_are_the_hosts: false,
        names: Vec::new(),
        host_loopback: false,
        egress: None,
        rate: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--mtu" => spec.addressing.mtu = arguments.next().ok_or("--mtu needs a number")?.parse()?,
            "--host-loopback" => spec.host_loopback = true,
            "-p" => {
                let pair = arguments.next().ok_or("-p needs ports")?;
                let (host, container) = pair.split_once(':').ok_or("-p needs HOST:CONTAINER")?;
                let host_port = host.parse()?;
                spec.publish.push(Publish {
                    host_ip: None,
                    host_port,
                    host_port_last: host_port,
                    container_port: container.parse()?,
                    transport: Transport::Tcp,
                });
            }
            _ => return Ok((spec, std::iter::once(argument).chain(arguments).collect())),
        }
    }
    Err("no command".into())
}
