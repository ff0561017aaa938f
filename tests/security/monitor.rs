//! The monitor as a target: where a container shares the host's process ids, its root may be the monitor's own user.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::bundle::Bundle;
use crate::support::{Home, LIMIT, Need, finish, identity, processes};

#[test]
fn a_monitor_cannot_be_looked_into() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let Some(mut bundle) = Bundle::new() else { return };
    home.ok(&["run", "-d", "--name", "box", &crate::support::busybox(), "sleep", "600"]);
    let id = home.inspect("box", "{{.Id}}");
    let ours =
        |words: &[String]| words[0] == "sublet-monitor" && words.get(1).is_some_and(|label| id.starts_with(&**label));
    let monitor = processes(ours)[0];
    let mut other = Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap();
    let probe = format!(
        "for pid in {monitor} {}; do for file in exe cwd root fd/0 ns/user maps mem environ; do \
         {{ readlink /proc/$pid/$file || head -c 1 /proc/$pid/$file; }} >/dev/null 2>&1 && echo $pid $file; done; done; \
         echo done",
        other.id()
    );
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    for set in ["bounding", "permitted", "effective"] {
        bundle.push(&format!("/process/capabilities/{set}"), json!("CAP_SYS_PTRACE"));
    }
    bundle.script(&format!("test -d /proc/{monitor} || echo not there; {probe}"));
    let inside = bundle.runs(0);
    assert_eq!(inside, "done\n", "neither the monitor nor another process of the host");
    // The probe sees what can be seen; the monitor lets not even its own user look.
    let done = finish(Command::new("sh").args(["-c", &probe]), b"", LIMIT);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(done.stdout.contains(&format!("{} exe\n", other.id())), "{done:#?}");
    assert!(identity() == "root" || !done.stdout.contains(&format!("{monitor} ")), "{done:#?}");
}

/// In a container that shows the monitor's socket its root may be the monitor's own user, and is not served.
#[test]
fn a_monitor_serves_no_other_user_namespace() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser]) else { return };
    home.ok(&["run", "-d", "--name", "box", "--network", "none", &crate::support::busybox(), "sleep", "600"]);
    let exec = |before: &[&str]| {
        let plain = home.command(&["exec", "box", "echo", "served"]);
        let words = before.iter().map(std::ffi::OsStr::new).chain([plain.get_program()]).chain(plain.get_args());
        let words: Vec<_> = words.collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        home.surround(&mut command);
        finish(&mut command, b"", LIMIT)
    };
    assert_eq!(exec(&["env"]).stdout, "served\n");
    let other = exec(&["unshare", "--user", "--map-current-user"]);
    assert!(other.code != 0 && other.stdout.is_empty(), "{other:#?}");
    assert!(!other.stderr.contains("unshare:"), "{other:#?}");
}
