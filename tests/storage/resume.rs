//! `kill -9` of the file server of a running container: it goes on.

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Home, Need, busybox, eventually, processes, skip};

/// Whole walks to files that are there, that are not, and to one of its own, in a loop that ends at the first wrong answer.
const USER: &str = "i=0; mkdir /work; while :; do i=$((i+1)); echo $i >/work/f && [ \"$(cat /work/f)\" = $i ] && \
    mv /work/f /work/g && rm /work/g && [ ! -e /absent-$i ] && [ -e /bin/cat ] && ls /bin >/dev/null || break; \
    echo $i >/work/rounds; done; echo wrong in round $i; exit 1";

fn parent_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split(' ').nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0)
}

/// The servers of views whose key `is_meant`: those of their processes that have a keeper.
fn servers(is_meant: &dyn Fn(&str) -> bool) -> Vec<i32> {
    let all = processes(|words| words[0] == "sublet-fs" && words.get(1).is_some_and(|key| is_meant(key)));
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
    for (driver, image) in [("fuse", busybox()), ("overlay", busybox()), ("overlay", "host:".to_owned())] {
        let options = ["run", "-d", "--name", "user", "--network", "none", "--storage-driver", driver, &image];
        let id = home.ok(&[&options[..], &["sh", "-c", USER]].concat());
        let own = format!("c-{}", id.trim());
        // An image's key is its chain, which other tests may serve at this moment; their containers outlive it too.
        let is_meant = |key: &str| match (driver, image.as_str()) {
            ("fuse", _) => key == own,
            (_, "host:") => key.starts_with("host-"),
            _ => key.len() == 64,
        };
        let rounds = || home.run(&["exec", "user", "cat", "/work/rounds"]).stdout.trim().parse::<u64>().unwrap_or(0);
        eventually("the payload is at work", || rounds() > 0);
        for _ in 0..10 {
            let (killed, before) = (servers(&is_meant), rounds());
            assert!(!killed.is_empty(), "{image} with {driver} has a server");
            for pid in &killed {
                // Those of other tests may have ended, or be of another user.
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
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
            assert!(home.ok(&["diff", "user"]).contains("A /work/rounds"));
        }
        home.ok(&["rm", "user"]);
    }
}
