//! A scope of systemd, where systemd is slow: `tests/vm/cgroups` has the real one.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::bundle::Bundle;
use crate::manager::Systemd;

/// What a creation needs in front to have systemd of a plain user make the scope.
pub const IN_A_SCOPE: [&str; 3] = ["--systemd-cgroup", "--rootless", "true"];

/// runc#1754, #2614: it waited a second for systemd, and then went on as if it had answered.
#[test]
fn a_slow_systemd_is_waited_for() {
    let Some(mut bundle) = Bundle::new() else { return };
    let delay = Duration::from_secs(2);
    let Some(systemd) = Systemd::start(&bundle.home, delay) else { return };
    bundle.env.push(("DBUS_SESSION_BUS_ADDRESS", systemd.address));
    bundle.config["linux"]["cgroupsPath"] = json!(format!("user.slice:slow:{}", bundle.id("box")));
    bundle.script("sleep 1000");
    let began = Instant::now();
    assert!(bundle.creates(&IN_A_SCOPE, "box"), "{}", bundle.log());
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    let pid = bundle.state("box", "pid");
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("init lives");
    assert!(cgroup.trim_end().ends_with(&format!("/slow-{}.scope", bundle.id("box"))), "{cgroup}");
    bundle.ok(&["start", "box"]);
    assert_eq!(bundle.state("box", "status"), "running");
    bundle.ok(&["delete", "--force", "box"]);
}
