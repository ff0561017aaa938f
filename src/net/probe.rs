//! Which rung of the network's ladder this host offers.

use base::{Ladder, Trial};
use sys::tuntap;

/// Tries the built-in network's needs: a TAP device that this user may open. The namespaces are the ladder `ids`.
pub fn probe() -> Ladder {
    let failure = tuntap::open().err();
    let fix = failure.as_ref().map(|error| match error.errno() {
        sys::Errno::ENOENT | sys::Errno::ENODEV => "load the kernel module: modprobe tun".to_owned(),
        _ => "let users open the device: chmod 0666 /dev/net/tun".to_owned(),
    });
    let mut trials = vec![Trial { rung: "builtin", failure: failure.map(|error| format!("{error}: {}", error.cause)) }];
    let chosen = if trials[0].failure.is_none() {
        "builtin"
    } else {
        trials.push(Trial { rung: "host", failure: None });
        "host"
    };
    Ladder { part: "network", trials, chosen: Some(chosen), fix }
}
