//! Many containers, one after another and at once: nothing is left, and the last costs what the first did.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::of_all_roles;
use crate::support::{Home, LIMIT, assert_flat, busybox, end, start};

const IN_A_ROW: usize = 200;
const AT_ONCE: usize = 200;
/// Every so many one has a network, which costs as much as the rest of a start.
const WITH_NETWORK: usize = 10;

/// What containers may leave, but for the file server of their image, which stays for a while.
#[derive(Debug)]
pub struct Left {
    mounts: Vec<String>,
    /// Of containers; and how many of monitors, as each is removed by the next one.
    cgroups: (Vec<PathBuf>, usize),
    roles: Vec<i32>,
    run_dirs: usize,
    /// Of each file server, for root: nobody else may count them.
    descriptors: BTreeMap<i32, usize>,
}

impl Left {
    pub fn of(home: &Home) -> Self {
        let here = home.directory.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let cgroups = fs::read_dir(base()).into_iter().flatten().flatten().map(|entry| entry.path());
        let named = |path: &PathBuf, start| path.file_name().unwrap().to_string_lossy().starts_with(start);
        let (containers, others): (Vec<_>, Vec<_>) = cgroups.partition(|path| named(path, "c-"));
        let monitors = others.iter().filter(|path| named(path, "m-")).count();
        let servers = crate::of_role("fs");
        let count = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Left {
            mounts: mounts.lines().filter(|line| line.contains(&here)).map(str::to_owned).collect(),
            cgroups: (containers, monitors),
            roles: of_all_roles().into_iter().filter(|pid| !servers.contains(pid)).collect(),
            run_dirs: fs::read_dir(home.directory.join("run/sublet/c")).map_or(0, Iterator::count),
            descriptors: servers.iter().map(|pid| (*pid, count(pid))).collect(),
        }
    }

    /// A monitor tidies up after its last client has its answer.
    #[track_caller]
    pub fn assert_nothing_new(&self, home: &Home) {
        let began = Instant::now();
        let mut now = Left::of(home);
        while !now.is_no_more_than(self) && began.elapsed() < Duration::from_secs(20) {
            // It removes the cgroups of monitors that have ended by now.
            home.sh(&[], "true");
            std::thread::sleep(Duration::from_millis(20));
            now = Left::of(home);
        }
        assert!(now.is_no_more_than(self), "left: {now:#?}, before: {self:#?}");
    }

    /// File servers and roles of other tests come and go, and give back what their containers had.
    fn is_no_more_than(&self, before: &Self) -> bool {
        let grown = |(pid, count): (&i32, &usize)| before.descriptors.get(pid).is_some_and(|was| count > was);
        let same = |left: &Self| (left.mounts.clone(), left.cgroups.clone(), left.run_dirs);
        same(self) == same(before)
            && self.roles.iter().all(|role| before.roles.contains(role))
            && !self.descriptors.iter().any(grown)
    }
}

/// Where the cgroups of containers are: beside our own.
fn base() -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default().to_owned();
    Path::new("/sys/fs/cgroup").join(own).parent().map(PathBuf::from).unwrap_or_default()
}

/// The server of the image is there, and what it opens once it has opened.
fn home() -> Option<Home> {
    let home = Home::with_busybox(&[])?;
    home.sh(&[], "true");
    Some(home)
}

#[test]
fn the_last_of_many_in_a_row_costs_what_the_first_did() {
    let Some(home) = home() else { return };
    let before = Left::of(&home);
    assert_flat(IN_A_ROW, || drop(home.ok(&["run", "--rm", "--network", "none", &busybox(), "true"])));
    before.assert_nothing_new(&home);
}

#[test]
fn many_at_once_leave_nothing() {
    let Some(home) = home() else { return };
    let before = Left::of(&home);
    let all_at_once = |commands: Vec<Vec<String>>| {
        let began = Instant::now();
        let start_one = |words: &Vec<String>| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            start(&mut home.command(&words))
        };
        let children: Vec<_> = commands.iter().map(start_one).collect();
        for (child, words) in children.into_iter().zip(&commands) {
            let done = end(child, LIMIT);
            assert_eq!(done.code, 0, "{words:?}: {done:#?}");
        }
        println!("{} times {:?} within {:?}", commands.len(), commands[0][0], began.elapsed());
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let names: Vec<String> = (0..AT_ONCE).map(|n| format!("n{n}")).collect();
    let run = |(number, name): (usize, &String)| {
        let network = if number % WITH_NETWORK == 0 { "builtin" } else { "none" };
        words(&["run", "-d", "--network", network, "--name", name, &busybox(), "sleep", "1000"])
    };
    all_at_once(names.iter().enumerate().map(run).collect());
    let running = home.ok(&["ps", "--format", "{{.Names}}"]);
    assert_eq!(running.lines().collect::<BTreeSet<_>>(), names.iter().map(String::as_str).collect());
    all_at_once(names.iter().map(|name| words(&["rm", "-f", name])).collect());
    assert!(home.containers().is_empty());
    before.assert_nothing_new(&home);
}
