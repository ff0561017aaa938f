//! The container's side: device, addresses, routes, made by the container's init, or for it by [`crate::bridge`].

use std::fs::OpenOptions;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use sys::netlink::Batch;
use sys::{Call, SysError, tuntap};

use crate::{Addressing, NetError};

/// The device's name.
pub const DEVICE: &str = "eth0";
/// The loopback device of every network namespace.
const LOOPBACK: u32 = 1;

/// A container's TAP device.
#[derive(Debug)]
pub struct Tap {
    /// Its descriptor.
    pub device: OwnedFd,
    /// Whether the namespace has IPv6.
    pub ipv6: bool,
}

/// Sets up the network namespace that the calling thread is in and returns the TAP device, which the network process
/// is to get.
///
/// The caller is single-threaded, has `CAP_NET_ADMIN` over the namespace, and sees the host's `/dev/net/tun` and a
/// `/proc` (whose `sys/net` always shows the caller's own namespace). Takes well under 2 ms.
pub fn in_namespace(addressing: &Addressing) -> Result<Tap, NetError> {
    let device = tuntap::open().map_err(NetError::Tun)?;
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    tuntap::make_tap(device.as_fd(), DEVICE).map_err(at("making the TAP device"))?;
    // The close of a device's last descriptor takes the device away and waits 15 to 40 ms for it. The namespace's end
    // takes it away too, and nobody waits for that.
    tuntap::set_persistent(device.as_fd()).map_err(at("making the TAP device last"))?;
    offloads(&device).map_err(at("enabling offloads"))?;
    sysctls().map_err(at("writing network settings"))?;
    let ipv6 = configure(addressing, DEVICE, true)?;
    Ok(Tap { device, ipv6 })
}

/// Opens the TAP device again that [`in_namespace`] has made, for a network process in place of one that has ended. The caller has
/// one thread and all rights over the container's network namespace, and is there from now on.
pub fn reopen(container: BorrowedFd<'_>) -> Result<Tap, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    let entered = setns(container, CloneFlags::CLONE_NEWNET).call(|| "setns(CLONE_NEWNET)".to_owned());
    entered.map_err(at("entering the container's network namespace"))?;
    let device = tuntap::open().map_err(NetError::Tun)?;
    tuntap::make_tap(device.as_fd(), DEVICE).map_err(at("opening the container's TAP device"))?;
    offloads(&device).map_err(at("enabling offloads"))?;
    let disabled = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{DEVICE}/disable_ipv6"));
    Ok(Tap { device, ipv6: disabled.is_ok_and(|disabled| disabled.trim() == "0") })
}

/// Readies the network namespace that the calling thread is in for devices that others put there.
pub fn for_plugs() -> Result<(), NetError> {
    sysctls().map_err(|source| NetError::Setup { step: "writing network settings", source })?;
    loopback()
}

/// Gives a device of the calling thread's network namespace its addresses and routes, `default` for what is elsewhere; whether
/// the namespace has IPv6.
pub(crate) fn configure(addressing: &Addressing, device: &str, default: bool) -> Result<bool, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    let index = index_of(device).map_err(at("finding the device"))?;
    links(addressing, index, default).run().map_err(at("configuring the device"))?;
    if addressing.v6.container.is_unspecified() {
        return Ok(false);
    }
    where_ipv6_is(&links_v6(addressing, index, default)).map_err(at("configuring IPv6"))
}

/// Lets what is elsewhere be reached by a device that has been configured.
pub(crate) fn lead(addressing: &Addressing, device: &str) -> Result<(), NetError> {
    let at = |source: SysError| NetError::Setup { step: "routing by another device", source };
    let index = index_of(device).map_err(at)?;
    let (v4, v6) = ((Ipv4Addr::UNSPECIFIED.into(), 0), (Ipv6Addr::UNSPECIFIED.into(), 0));
    Batch::default().route(index, v4, Some(addressing.v4.gateway.into())).run().map_err(at)?;
    where_ipv6_is(Batch::default().route(index, v6, Some(addressing.v6.gateway.into()))).map(drop).map_err(at)
}

/// Does requests of IPv6; whether there is any.
fn where_ipv6_is(batch: &Batch) -> Result<bool, SysError> {
    match batch.run() {
        // EAFNOSUPPORT: a kernel without IPv6. EACCES, EOPNOTSUPP: IPv6 is disabled by sysctl. IPv4 is what is left.
        Err(error) if [Errno::EAFNOSUPPORT, Errno::EOPNOTSUPP, Errno::EACCES].contains(&error.errno()) => Ok(false),
        done => done.map(|()| true),
    }
}

/// A device's number.
pub(crate) fn index_of(device: &str) -> Result<u32, SysError> {
    nix::net::if_::if_nametoindex(device).call(|| format!("if_nametoindex({device:?})"))
}

/// Raises the loopback device, which is all that a container without a network has.
pub fn loopback() -> Result<(), NetError> {
    let raised = Batch::default().link_up(LOOPBACK).run();
    raised.map_err(|source| NetError::Setup { step: "raising the loopback device", source })
}

/// The best set of offloads that this kernel knows.
pub(crate) fn offloads(tap: &OwnedFd) -> Result<(), SysError> {
    use tuntap::{OFFLOAD_CSUM, OFFLOAD_TSO_ECN, OFFLOAD_TSO4, OFFLOAD_TSO6};
    let most = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6;
    for set in [most | OFFLOAD_TSO_ECN, most] {
        match tuntap::set_offload(tap.as_fd(), set) {
            Err(error) if error.errno() == Errno::EINVAL => {}
            result => return result,
        }
    }
    tuntap::set_offload(tap.as_fd(), 0)
}

/// Links, and what IPv4 needs.
fn links(addressing: &Addressing, index: u32, default: bool) -> Batch {
    let v4 = &addressing.v4;
    let mut batch = Batch::default();
    batch.link_up(LOOPBACK).link_setup(index, addressing.mtu.into(), addressing.mac, ipv6_exists()).link_up(index);
    if v4.container.is_unspecified() {
        return batch;
    }
    batch.address(index, v4.container.into(), v4.prefix);
    batch.route(index, (network_v4(v4.gateway, v4.prefix), v4.prefix), None);
    if default {
        batch.route(index, (Ipv4Addr::UNSPECIFIED.into(), 0), Some(v4.gateway.into()));
    }
    for address in [v4.gateway, v4.dns].into_iter().filter(|_| addressing.gateway_mac != [0; 6]) {
        batch.neighbour(index, address.into(), addressing.gateway_mac);
    }
    batch
}

fn links_v6(addressing: &Addressing, index: u32, default: bool) -> Batch {
    let v6 = &addressing.v6;
    let mut batch = Batch::default();
    batch.address(index, v6.container.into(), v6.prefix).local_route(index, v6.container);
    batch.route(index, (network_v6(v6.gateway, v6.prefix), v6.prefix), None);
    if default {
        batch.route(index, (Ipv6Addr::UNSPECIFIED.into(), 0), Some(v6.gateway.into()));
    }
    for address in [v6.gateway, v6.dns].into_iter().filter(|_| addressing.gateway_mac != [0; 6]) {
        batch.neighbour(index, address.into(), addressing.gateway_mac);
    }
    batch
}

/// Whether this kernel has IPv6 at all.
pub(crate) fn ipv6_exists() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

fn network_v4(address: Ipv4Addr, prefix: u8) -> IpAddr {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Ipv4Addr::from(u32::from(address) & mask).into()
}

fn network_v6(address: Ipv6Addr, prefix: u8) -> IpAddr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from(u128::from(address) & mask).into()
}

/// Low ports and pings for every user inside; no IPv6 autoconfiguration, as everything is configured here. A kernel
/// without one of them (IPv6 disabled) has nothing to be set.
fn sysctls() -> Result<(), SysError> {
    write("ipv4/ip_unprivileged_port_start", "0")?;
    if let Some(last) = last_mapped_group() {
        write("ipv4/ping_group_range", &format!("0 {last}"))?;
    }
    for device in ["all", "default", DEVICE] {
        for name in ["accept_dad", "accept_ra", "router_solicitations"] {
            write(&format!("ipv6/conf/{device}/{name}"), "0")?;
        }
    }
    Ok(())
}

fn write(name: &str, value: &str) -> Result<(), SysError> {
    let path = format!("/proc/sys/net/{name}");
    let result = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.call(|| format!("write({path:?}, {value:?})")),
    }
}

/// The end of the first extent of the group map, which begins at 0 in a container.
fn last_mapped_group() -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/gid_map").ok()?;
    let mut fields = map.lines().next()?.split_whitespace();
    let (inside, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?);
    // The range's end must be below the kernel's limit for groups.
    (inside == 0 && count > 0).then(|| (count - 1).min(i32::MAX as u32 - 1))
}
