//! `kill -9` of the file server of a running container: it goes on.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, Need, busybox, eventually, parent_of, processes, skip, unique};

/// Whole walks to files that are there, that are not, and to one of its own, in a loop that ends at the first wrong answer.
const USER: &str = "i=0; mkdir /job; while :; do i=$((i+1)); echo $i >/job/f && [ \"$(cat /job/f)\" = $i ] && \
    mv /job/f /job/g && rm /job/g && [ ! -e /absent-$i ] && [ -e /bin/cat ] && ls /bin >/dev/null || break; \
    echo $i >/job/rounds; done; echo wrong in round $i; exit 1";

/// The keys of the views that are or were served in a home.
pub fn keys(home: &Home) -> BTreeSet<String> {
    let entries = fs::read_dir(home.directory.join("run/sublet/fs")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// The processes of a view: keepers and servers.
pub fn roles(key: &str) -> Vec<i32> {
    processes(|words| words[0] == "sublet-fs" && words.get(1).is_some_and(|word| word == key))
}

/// The servers of a view: those of its processes that have a keeper.
fn servers(key: &str) -> Vec<i32> {
    let all = roles(key);
    all.iter().copied().filter(|pid| all.contains(&parent_of(*pid))).collect()
}

fn can_resume() -> bool {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 9)
}

#[test]
fn a_container_outlives_its_file_server() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    if !can_resume() {
        return skip("before Linux 6.9 no request is sent again");
    }
    // The key of an image is its chain: other tests serve that of busybox. That of the host names the home's own places.
    home.ok(&[
        "run",
        "--name",
        "maker",
        "--network",
        "none",
        &busybox(),
        "sh",
        "-c",
        &format!("echo {} >/own", unique()),
    ]);
    home.ok(&["commit", "maker", "own"]);
    for (driver, image) in [("fuse", "own"), ("overlay", "own"), ("overlay", "host:")] {
        let before = keys(&home);
        let options = ["run", "-d", "--name", "user", "--network", "none", "--storage-driver", driver, image];
        home.ok(&[&options[..], &["sh", "-c", USER]].concat());
        let new: Vec<String> = keys(&home).difference(&before).cloned().collect();
        let [key] = &new[..] else { panic!("{image} with {driver} is served as {new:?}") };
        let rounds = || home.run(&["exec", "user", "cat", "/job/rounds"]).stdout.trim().parse::<u64>().unwrap_or(0);
        eventually("the payload is at work", || rounds() > 0);
        for _ in 0..10 {
            let (killed, before) = (servers(key), rounds());
            assert!(!killed.is_empty(), "{image} with {driver} has a server");
            for pid in &killed {
                kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
            }
            eventually("the payload goes on", || rounds() > before + 1);
        }
        assert_eq!(home.inspect("user", "{{.State.Status}}"), "running", "{image} with {driver}: {}", {
            home.run(&["logs", "user"]).stdout
        });
        home.ok(&["kill", "user"]);
        assert_eq!(home.ok(&["wait", "user"]), "137\n");
        // What the log says.
        if driver == "fuse" {
            assert!(home.ok(&["diff", "user"]).contains("A /job/rounds"));
        }
        home.ok(&["rm", "user"]);
    }
}
