//! Which rung of the network's ladder this host offers.

use base::{Ladder, Trial};
use sys::tuntap;

/// Tries the built-in network's needs: a TAP device that this user may open. The namespaces are the ladder `ids`.
pub fn probe() -> Ladder {
    let failure = tuntap::open().err();
    let fix = failure.as_ref().map(|error| {
        let step = match error.errno() {
            sys::Errno::ENOENT | sys::Errno::ENODEV => "load the kernel module: modprobe tun",
            _ => "let users open the device: chmod 0666 /dev/net/tun",
        };
        format!("{step}; until then --network host or none")
    });
    let chosen = failure.is_none().then_some("builtin");
    // The host's network is another thing than one's own, so nobody gets it who has not asked for it.
    let failure = failure.map(|error| format!("{error}: {}", error.cause));
    Ladder { part: "network", trials: vec![Trial { rung: "builtin", failure }], chosen, fix }
}
