//! Many containers, one after another and at once: nothing is left, and the last costs what the first did.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::bundle::Bundle;
use crate::support::{assert_flat, processes};

const IN_A_ROW: usize = 200;
const AT_ONCE: usize = 200;

/// What containers may leave: mounts, cgroups, processes of the runtime, states.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    mounts: Vec<String>,
    cgroups: BTreeSet<String>,
    processes: Vec<i32>,
    states: usize,
}

impl Left {
    fn of(bundle: &Bundle) -> Self {
        let (at, number) = (bundle.at(), bundle.id("box").replace("box-", ""));
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
        let mut cgroups = BTreeSet::new();
        let mut below = vec![Path::new("/sys/fs/cgroup").to_path_buf()];
        while let Some(directory) = below.pop() {
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            below.extend(entries.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir())).map(|one| one.path()));
            cgroups.insert(directory.to_string_lossy().into_owned());
        }
        Left {
            mounts: mounts.lines().filter(|line| line.contains(&at)).map(str::to_owned).collect(),
            cgroups: cgroups.into_iter().filter(|path| path.contains(&number)).collect(),
            processes: processes(|words| words.iter().any(|word| word.ends_with(&number))),
            states: fs::read_dir(bundle.home.directory.join("run/sublet/oci")).map_or(0, Iterator::count),
        }
    }
}

#[test]
fn the_last_of_many_in_a_row_costs_what_the_first_did() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("true");
    let before = Left::of(&bundle);
    assert_flat(IN_A_ROW, || drop(bundle.runs(0)));
    assert_eq!(Left::of(&bundle), before);
    bundle.script("ls /proc/self/fd");
    assert_eq!(bundle.runs(0), "0\n1\n2\n3\n", "ls has the directory itself open as the next one");
}

#[test]
fn many_at_once_leave_nothing() {
    let Some(mut bundle) = Bundle::new() else { return };
    bundle.script("sleep 1000");
    let before = Left::of(&bundle);
    // Writes the configuration, which none of the others may find half written.
    bundle.create("box");
    bundle.ok(&["delete", "box"]);
    bundle.config = Value::Null;
    let number = bundle.id("box").replace("box-", "");
    let ids: Vec<String> = (0..AT_ONCE).map(|n| format!("n{n}-{number}")).collect();
    let began = Instant::now();
    each(&bundle, &ids, &["run", "--detach", "--bundle", &bundle.at()]);
    println!("{AT_ONCE} at once: started within {:?}", began.elapsed());
    let rows: Vec<Value> = serde_json::from_str(&bundle.ok(&["list", "--format", "json"])).expect("a list");
    assert_eq!(rows.len(), AT_ONCE);
    assert!(rows.iter().all(|row| row["status"] == "running"), "{rows:#?}");
    each(&bundle, &ids, &["delete", "--force"]);
    println!("{AT_ONCE} at once: gone after {:?}", began.elapsed());
    assert_eq!(Left::of(&bundle), before);
}

/// Calls the runtime for each id, all at once; all must succeed.
#[track_caller]
fn each(bundle: &Bundle, ids: &[String], arguments: &[&str]) {
    let start = |id: &String| {
        let mut command: Command = bundle.command(arguments);
        // The containers inherit the streams.
        let log = fs::File::create(bundle.path.join(format!("log-{id}"))).expect("the home is ours");
        command.arg(id).stdout(Stdio::null()).stderr(log);
        (id.clone(), command.spawn().expect("it starts"))
    };
    let children: Vec<(String, Child)> = ids.iter().map(start).collect();
    for (id, mut child) in children {
        let status = child.wait().expect("our own child");
        let log = fs::read_to_string(bundle.path.join(format!("log-{id}"))).unwrap_or_default();
        assert!(status.success(), "{arguments:?} {id}: {log}");
    }
}
