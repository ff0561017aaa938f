//! Files of other ids between a container's end and the moment in which its monitor has given them back.

use std::fs::{self, File};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Home, Need, busybox, eventually};

#[test]
fn a_commit_and_an_export_see_what_is_not_given_back_yet() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    let script = "mkdir /shut; echo kept >/shut/file; chown -R 5:6 /shut; chmod 700 /shut; echo done; sleep 1000";
    let options = ["run", "-d", "--name", "ended", "--network", "none", "--storage-driver", "overlay"];
    home.ok(&[&options[..], &[&busybox(), "sh", "-c", script]].concat());
    eventually("the payload has written", || home.ok(&["logs", "ended"]) == "done\n");
    let machine = fs::read_dir(home.store().join("hosts")).unwrap().next().unwrap().unwrap().path();
    let directory = machine.join("containers").join(home.inspect("ended", "{{.Id}}"));
    // The monitor gives the files back under the container's lock: with the lock taken it is stopped before that.
    let path = directory.join("lock");
    let lock = File::options().write(true).open(&path).unwrap();
    sys::lock::exclusive(&lock, &path).unwrap();
    home.ok(&["kill", "ended"]);
    let json = |name: &str| -> Value { serde_json::from_slice(&fs::read(directory.join(name)).unwrap()).unwrap() };
    eventually("the end is recorded", || json("state.json")["status"] == "exited");
    let monitor = Pid::from_raw(json("pid.json")["monitor_pid"].as_i64().unwrap() as i32);
    kill(monitor, Signal::SIGSTOP).unwrap();
    // Before it has stopped it could still get the lock.
    let stat = || fs::read_to_string(format!("/proc/{monitor}/stat")).unwrap();
    eventually("the monitor is stopped", || stat().contains(") T "));
    drop(lock);
    let archive = home.path("ended.tar").to_string_lossy().into_owned();
    let done =
        [&["commit", "ended", "made"][..], &["export", "-o", &archive, "ended"]].map(|arguments| home.run(arguments));
    kill(monitor, Signal::SIGCONT).unwrap();
    assert!(done.iter().all(|done| done.code == 0), "{done:#?}");
    let look = "stat -c %u:%g:%a /shut /shut/file; cat /shut/file";
    let seen = home.ok(&["run", "--rm", "--network", "none", "made", "sh", "-c", look]);
    assert_eq!(seen, "5:6:700\n5:6:644\nkept\n");
    eventually("the monitor has given the files back", || !directory.join("pid.json").exists());
}
