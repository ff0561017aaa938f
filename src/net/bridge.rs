//! A network that containers share: a network namespace that belongs to the outer user namespace, with a bridge in it. The
//! gateway is a TAP device at the bridge, on whose other side the network process runs [`netstack`]; a member has one end of
//! a veth pair, the other of which is at the bridge. So members reach each other at the kernel's speed, what leaves the network
//! leaves it with its true source address, and networks have nothing in common.
//!
//! The namespace has no address and forwards nothing. All here is done by children that have joined the outer user namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};
use sys::netlink::{Batch, FarEnd};
use sys::{Call, SysError, tuntap};

use crate::setup::{configure, index_of, ipv6_exists, offloads};
use crate::{Addressing, NetError, NetworkSpec};

/// The bridge's name.
const BRIDGE: &str = "br0";
/// The TAP device's.
const UPLINK: &str = "up0";

/// What a new network has.
#[derive(Debug)]
pub struct Made {
    /// Its namespace.
    pub namespace: OwnedFd,
    /// The TAP device.
    pub tap: OwnedFd,
}

/// Makes a network in a new namespace, in which the calling process is from now on. It has one thread and all rights over its
/// user namespace, and sees the host's `/dev/net/tun`.
pub fn make(spec: &NetworkSpec) -> Result<Made, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    unshare(CloneFlags::CLONE_NEWNET)
        .call(|| "unshare(CLONE_NEWNET)".to_owned())
        .map_err(at("making the network's namespace"))?;
    let tap = tuntap::open().map_err(NetError::Tun)?;
    tuntap::make_tap(tap.as_fd(), UPLINK).map_err(at("making the TAP device"))?;
    // As that of a container: its end is the namespace's.
    tuntap::set_persistent(tap.as_fd()).map_err(at("making the TAP device last"))?;
    offloads(&tap).map_err(at("enabling offloads"))?;
    let (mut own, mut port) = (spec.gateway_mac, spec.gateway_mac);
    (own[5], port[5]) = (0xfe, 0xff);
    let ipv6 = ipv6_exists();
    let bridge = Batch::default().bridge(BRIDGE, spec.mtu.into(), own).raise(BRIDGE, ipv6).run();
    bridge.map_err(|source| NetError::Bridge { source })?;
    let attach = || {
        let (bridge, tap) = (index_of(BRIDGE)?, index_of(UPLINK)?);
        // The gateway's own MAC must not be a port's: the bridge would keep frames for it to itself.
        let mut batch = Batch::default();
        batch.link_setup(tap, spec.mtu.into(), port, ipv6).master(tap, bridge).link_up(tap);
        // A member that takes the gateway's MAC is not to get what others send there.
        batch.sticky(tap, spec.gateway_mac).run()
    };
    attach().map_err(at("attaching the TAP device to the bridge"))?;
    let namespace = sys::namespace::open_own("net").map_err(at("opening the network's namespace"))?;
    Ok(Made { namespace, tap })
}

/// Opens the device of a network whose role has ended, for another one. The caller is as for [`make`], and stays in the network.
pub fn reopen(network: OwnedFd) -> Result<Made, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    enter(network.as_fd()).map_err(at("entering the network"))?;
    let tap = tuntap::open().map_err(NetError::Tun)?;
    tuntap::make_tap(tap.as_fd(), UPLINK).map_err(at("opening the network's TAP device"))?;
    offloads(&tap).map_err(at("enabling offloads"))?;
    Ok(Made { namespace: network, tap })
}

/// A member's device, as it is put into its namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    /// Its name there.
    pub device: String,
    /// The name of the end at the bridge: no two members' are the same.
    pub peer: String,
    /// What it gets.
    pub addressing: Addressing,
    /// Whether what is elsewhere is reached by it.
    pub default: bool,
}

/// Puts a device of the network into a container's network namespace, where the calling process is from now on; whether that
/// has IPv6. The caller has one thread and all rights over the outer user namespace.
pub fn plug(network: BorrowedFd<'_>, container: BorrowedFd<'_>, plug: &Plug) -> Result<bool, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    enter(network).map_err(at("entering the network"))?;
    let (addressing, ipv6) = (&plug.addressing, ipv6_exists());
    let far = FarEnd { name: &plug.device, mac: addressing.mac, namespace: container };
    let pair = || {
        let mut batch = Batch::default();
        batch.veth(&plug.peer, index_of(BRIDGE)?, &far, addressing.mtu.into()).raise(&plug.peer, ipv6).run()
    };
    pair().map_err(|source| NetError::Veth { source })?;
    enter(container).map_err(at("entering the container's network namespace"))?;
    configure(addressing, &plug.device, plug.default)
}

/// Sees to it that a container has its device in a network, which may have been made anew: one of the same name that leads
/// elsewhere goes first. `None` where it is there. The caller is as for [`plug`].
pub fn replug(network: BorrowedFd<'_>, container: BorrowedFd<'_>, plug: &Plug) -> Result<Option<bool>, NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    enter(network).map_err(at("entering the network"))?;
    if index_of(&plug.peer).is_ok() {
        return Ok(None);
    }
    unplug(container, &plug.device)?;
    self::plug(network, container, plug).map(Some)
}

/// Takes the device of a member away again; one that the container's root has removed is gone.
pub fn unplug(network: BorrowedFd<'_>, peer: &str) -> Result<(), NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    enter(network).map_err(at("entering the network"))?;
    match Batch::default().delete_link(peer).run() {
        Err(error) if error.errno() == Errno::ENODEV => Ok(()),
        removed => removed.map_err(at("removing the container's device")),
    }
}

/// Lets a container reach what is elsewhere by this device from now on.
pub fn lead(container: BorrowedFd<'_>, device: &str, addressing: &Addressing) -> Result<(), NetError> {
    let at = |step: &'static str| move |source: SysError| NetError::Setup { step, source };
    enter(container).map_err(at("entering the container's network namespace"))?;
    crate::setup::lead(addressing, device)
}

fn enter(namespace: BorrowedFd<'_>) -> Result<(), SysError> {
    setns(namespace, CloneFlags::CLONE_NEWNET).call(|| "setns(CLONE_NEWNET)".to_owned())
}
