//! `kill -9` between any two steps of a command that changes the store: what is there is whole, what it takes is what the
//! disk says, the next command goes on, and after a prune nothing is left that nothing leads to.

use std::time::{Duration, Instant};

use crate::support::Random;
use crate::support::{Home, LIMIT, busybox, end, finish, number, start};
use crate::{assert_sound, serve};

/// Kills the command at its first step, its second, and so on, until it has no further one; `prepare` runs before each.
#[track_caller]
fn at_each_step(home: &Home, arguments: &[&str], at_least: u32, prepare: impl Fn()) {
    at_each_step_without("", home, arguments, at_least, prepare);
}

/// The same where the command does without something (`SUBLET_WITHOUT`).
#[track_caller]
fn at_each_step_without(without: &str, home: &Home, arguments: &[&str], at_least: u32, prepare: impl Fn()) {
    let mut killed = 0;
    loop {
        let at = format!("command:{}", killed + 1);
        prepare();
        let mut command = home.command(arguments);
        let done = finish(command.env("SUBLET_KILL_AT", &at).env("SUBLET_WITHOUT", without), b"", LIMIT);
        assert_sound(home, &at);
        home.ok(&["image", "prune", "-f"]);
        let told = assert_sound(home, &format!("{at}, pruned"));
        assert!(!told.contains("nothing leads to"), "{at}: {told}");
        if !done.stderr.contains(&format!("killed at {at}\n")) {
            assert_eq!(done.code, 0, "{at}: {done:#?}");
            break;
        }
        killed += 1;
    }
    println!("{arguments:?}: killed at {killed} steps");
    assert!(killed >= at_least, "killed at {killed} steps only");
}

#[test]
fn a_pull() {
    killed_pulls("");
}

/// There a file moves to its final name.
#[test]
fn a_pull_without_hard_links() {
    killed_pulls("hard-links");
}

/// There a container's name is a file of its own, made exclusively.
#[test]
fn containers_without_hard_links() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let start_without = |arguments: &[&str]| start(home.command(arguments).env("SUBLET_WITHOUT", "hard-links"));
    let without = |arguments: &[&str]| end(start_without(arguments), LIMIT);
    let run = ["run", "--name", "one", "--network", "none", &image, "echo", "ran"];
    let done = without(&run);
    assert_eq!((done.code, done.stdout.as_str()), (0, "ran\n"), "{done:#?}");
    let taken = without(&run);
    assert!(taken.code == 125 && taken.stderr.contains("is already in use by container"), "{taken:#?}");
    assert_eq!(home.ok(&["ps", "-a", "--format", "{{.Names}}"]), "one\n");
    assert_eq!(without(&["rm", "one"]).code, 0);
    // Of several at once one gets the name.
    let run = ["run", "--name", "two", "--network", "none", &image, "true"];
    let started: Vec<_> = (0..8).map(|_| start_without(&run)).collect();
    let codes: Vec<i32> = started.into_iter().map(|child| end(child, LIMIT).code).collect();
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| matches!(code, 0 | 125)), "{codes:?}");
    assert_eq!(without(&["rm", "two"]).code, 0);
    // What a kill has left before the id was in it keeps no name from the next one.
    let host = std::fs::read_dir(home.store().join("hosts")).unwrap().next().unwrap().unwrap();
    let names = host.path().join("names");
    std::fs::write(names.join("four"), "").unwrap();
    assert_eq!(without(&["run", "--rm", "--name", "four", "--network", "none", &image, "true"]).code, 0);
    // The monitor removes the container when the command has ended.
    crate::support::eventually("no name is left", || std::fs::read_dir(&names).unwrap().next().is_none());
}

fn killed_pulls(without: &str) {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["pull", &b]);
    // A run that was not killed leaves the image; a killed one may leave what the next one goes on with.
    at_each_step_without(without, &home, &["pull", &a], 20, || {
        home.ok(&["image", "prune", "-f"]);
        drop(home.run(&["rmi", &a]));
    });
    assert!(home.ok(&["images"]).contains(&a));
    home.ok(&["system", "prune", "-af"]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}

#[test]
fn a_removal() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["pull", &b]);
    at_each_step(&home, &["rmi", &a], 10, || drop(home.ok(&["pull", &a])));
    assert!(!home.ok(&["images"]).contains(&a));
}

/// What the removal has left in the trash serves the image that comes back. Each container of this driver has a server of
/// its own, which has no file open from before.
#[test]
fn a_removal_and_then_a_pull_and_a_run() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let mut killed = 0;
    loop {
        let at = format!("command:{}", killed + 1);
        let done = finish(home.command(&["rmi", &image]).env("SUBLET_KILL_AT", &at), b"", LIMIT);
        home.ok(&["pull", &image]);
        let run = ["run", "--rm", "--network", "none", "--storage-driver", "fuse", &image, "cat", "/etc/replaced"];
        assert_eq!(home.ok(&run), "second\n", "{at}");
        if !done.stderr.contains(&format!("killed at {at}\n")) {
            break;
        }
        killed += 1;
    }
    println!("rmi: killed at {killed} steps");
    assert!(killed >= 10, "killed at {killed} steps only");
}

#[test]
fn a_prune() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[1, 2])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    let pull = || names.iter().for_each(|name| drop(home.ok(&["pull", name])));
    at_each_step(&home, &["system", "prune", "-af"], 10, pull);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}

#[test]
fn an_eviction() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2])]);
    let name = format!("{}/a", server.address);
    at_each_step(&home, &["--cache-max", "1k", "pull", &name], 5, || {
        drop(home.run(&["rmi", &name]));
        drop(home.ok(&["pull", &name]));
    });
    assert!(home.ok(&["images"]).contains(&name));
}

#[test]
fn a_repair() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let objects = || {
        let mut files = Vec::new();
        crate::support::each_file(&home.store().join("store/objects"), &mut |path, metadata| {
            if metadata.is_file() && metadata.len() == 150_000 {
                files.push(path.to_owned());
            }
        });
        files
    };
    let mut killed = 0;
    loop {
        let object = objects().remove(0);
        std::fs::remove_file(&object).unwrap();
        std::fs::write(&object, b"damaged").unwrap();
        let at = format!("command:{}", killed + 1);
        let done = finish(home.command(&["system", "fsck", "--repair"]).env("SUBLET_KILL_AT", &at), b"", LIMIT);
        if !done.stderr.contains(&format!("killed at {at}\n")) {
            break;
        }
        let next = home.run(&["system", "fsck", "--repair"]);
        assert!(!next.stdout.contains("pull again"), "{at}: the blob is whole: {next:#?}");
        assert_sound(&home, &at);
        killed += 1;
    }
    println!("fsck --repair: killed at {killed} steps");
    assert!(killed >= 5, "killed at {killed} steps only");
}

/// `kill -9` of a command that is chosen at random in a moment that is, again and again in one store. The moments are those of
/// the command's own time, so most of them are between its first step and its last.
#[test]
fn at_random_moments() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2, 3])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["run", "--name", "one", "--network", "none", &busybox(), "sh", "-c", "echo x >/x"]);
    home.ok(&["save", "-o", "saved.tar", &busybox()]);
    let commands: [&[&str]; 12] = [
        &["pull", &a],
        &["pull", &b],
        &["--cache-max", "1k", "pull", &a],
        &["rmi", &a],
        &["rmi", &b],
        &["commit", "one", "made"],
        &["commit", "one"],
        &["rmi", "made"],
        &["load", "-i", "saved.tar"],
        &["image", "prune", "-af"],
        &["system", "prune", "-f", "--filter", "until=1h"],
        &["system", "fsck", "--repair"],
    ];
    let mut random = Random::seeded();
    let (runs, mut killed) = (number("KILLS").unwrap_or(100), 0);
    let mut took = [Duration::from_millis(20); 12];
    for run in 0..runs {
        let chosen = random.below(commands.len() as u64) as usize;
        let moment = took[chosen] * random.below(120) as u32 / 100;
        let when = format!("run {run}, {:?} killed after {moment:?}", commands[chosen]);
        let began = Instant::now();
        let mut child = start(&mut home.command(commands[chosen]));
        std::thread::sleep(moment);
        let ended = child.try_wait().unwrap().is_some();
        if ended {
            took[chosen] = began.elapsed().min(took[chosen] * 2);
        } else {
            took[chosen] = (took[chosen] * 21 / 20).min(Duration::from_secs(2));
            child.kill().unwrap();
            killed += 1;
        }
        let done = end(child, LIMIT);
        // What an earlier one has removed, or was killed before it made, is not there.
        let absent = commands[chosen][0] == "rmi" && done.stderr.contains("No such image");
        assert!(!ended || done.code == 0 || absent, "{when}: {done:#?}");
        assert_sound(&home, &when);
        if run % 10 == 9 {
            home.ok(&["image", "prune", "-f"]);
            let told = assert_sound(&home, &when);
            assert!(!told.contains("nothing leads to"), "{when}: {told}");
        }
    }
    println!("{killed} of {runs} were killed");
    assert!(killed >= runs / 4, "{killed} of {runs} were killed");
    for image in [&a, &b] {
        home.ok(&["pull", image]);
    }
    home.ok(&["commit", "one", "made"]);
    assert_eq!(home.ok(&["run", "--rm", "--network", "none", "made", "cat", "/x"]), "x\n");
    home.ok(&["image", "prune", "-f"]);
    let told = assert_sound(&home, "at the end");
    assert!(!told.contains("nothing leads to"), "{told}");
}
