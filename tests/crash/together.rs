//! Random commands on the same few containers by many at once, undisturbed and while everything is killed at random.
//!
//! Undisturbed no answer is wrong: each command does what it says or names the reason that another one has made. With kills
//! each command ends, nothing panics, and afterwards one `rm -f` for each container leaves nothing.
//! `SUBLET_TEST_STORM_S` says for how many seconds each goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::storm::Left;
use crate::support::{Done, Home, LIMIT, Random, assert_sound, busybox, end, number, start};
use crate::{of_all_roles, of_role};

const SHELLS: usize = 16;
/// Fewer while processes are killed, so that each container lives long enough to be hit.
const SHELLS_WITH_KILLS: usize = 6;
/// None is the beginning of an id.
const NAMES: [&str; 6] = ["x0", "x1", "x2", "x3", "x4", "x5"];
/// What one command may find that another one has done meanwhile.
const REASONS: [&str; 17] = [
    "No such container",
    "is not running",
    "is already in use",
    "already in progress",
    "container is running",
    "is paused",
    "is not paused",
    "is already paused",
    "is restarting",
    "has ended",
    "container is stopped",
    "is being removed",
    "is already running",
    "same name as its current name",
    "No such object",
    "the start was given up",
    "is making or renaming container",
];

/// What an exec says whose container ends, or is started again, while it is being set up: the step that it had come to.
const CUT_OFF: [&str; 3] = [
    "was killed while it was being set up",
    "the channel between monitor and container failed",
    "the container's monitor ended unexpectedly",
];

/// A command line of a container's life, and what it prints if it does what it says.
struct Step {
    words: Vec<String>,
    prints: Option<String>,
}

impl Step {
    fn random(random: &mut Random, network: &str, token: u64) -> Self {
        let name = NAMES[random.below(NAMES.len() as u64) as usize];
        let other = NAMES[random.below(NAMES.len() as u64) as usize];
        let (image, token) = (busybox(), format!("token-{token}"));
        let (words, prints): (Vec<&str>, Option<&str>) = match random.below(20) {
            0..=4 => (vec!["run", "-d", "--network", network, "--name", name, &image, "sleep", "1000"], None),
            5 | 6 => (vec!["run", "--rm", "--network", "none", &image, "echo", &token], Some(&token)),
            7..=9 => (vec!["exec", name, "echo", &token], Some(&token)),
            10 => (vec!["stop", "-t", "0", name], Some(name)),
            11 => (vec!["start", name], Some(name)),
            12 => (vec!["restart", "-t", "0", name], Some(name)),
            13 => (vec!["kill", name], Some(name)),
            14 => (vec!["rm", name], Some(name)),
            15 => (vec!["rm", "-f", name], None),
            16 => (vec!["rename", name, other], None),
            17 => (vec!["inspect", "--format", "{{.Name}}", name], None),
            18 => (vec!["logs", name], None),
            _ => (vec!["ps", "-a", "--format", "{{.Names}}"], None),
        };
        Step { words: words.into_iter().map(str::to_owned).collect(), prints: prints.map(str::to_owned) }
    }

    fn command(&self, home: &Home) -> std::process::Command {
        home.command(&self.words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Whether this is an answer that a command may give while others work on the same containers.
    fn is_answered(&self, done: &Done) -> bool {
        if done.code != 0 {
            // An exec or a run that another one has killed ends as the killed do.
            let cut_off = self.words[0] == "exec" && CUT_OFF.iter().any(|words| done.stderr.contains(words));
            let killed = done.code == 137 && matches!(self.words[0].as_str(), "exec" | "run");
            return killed || cut_off || REASONS.iter().any(|reason| done.stderr.contains(reason));
        }
        match (self.words[0].as_str(), &self.prints) {
            (_, Some(text)) => done.stdout.trim_end() == text,
            ("ps", None) => {
                let names: Vec<&str> = done.stdout.lines().collect();
                names.iter().collect::<BTreeSet<_>>().len() == names.len()
            }
            _ => true,
        }
    }
}

/// For how long a test goes on.
fn duration() -> Duration {
    Duration::from_secs(number("STORM_S").unwrap_or(10))
}

#[test]
fn sixteen_at_once_get_no_wrong_answer() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.sh(&[], "true");
    let before = Left::of(&home);
    let (until, tokens) = (Instant::now() + duration(), AtomicU64::new(0));
    let answers = Mutex::new(BTreeMap::<String, (u32, u32)>::new());
    let mut seed = Random::seeded();
    let shells: Vec<Random> = (0..SHELLS).map(|_| seed.split()).collect();
    std::thread::scope(|scope| {
        for mut random in shells {
            let (home, tokens, answers) = (&home, &tokens, &answers);
            scope.spawn(move || {
                while Instant::now() < until {
                    let step = Step::random(&mut random, "none", tokens.fetch_add(1, Ordering::Relaxed));
                    let done = end(start(&mut step.command(home)), LIMIT);
                    assert!(step.is_answered(&done), "{:?}: {done:#?}", step.words);
                    let mut answers = answers.lock().unwrap();
                    let (did, refused) = answers.entry(step.words[0].clone()).or_default();
                    *(if done.code == 0 { did } else { refused }) += 1;
                }
            });
        }
    });
    println!("did, refused: {:?}", answers.into_inner().unwrap());
    remove_all(&home);
    before.assert_nothing_new(&home);
    assert_sound(&home, "afterwards");
}

#[test]
fn everything_may_be_killed_at_any_time() {
    let others = of_all_roles();
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.sh(&[], "true");
    let before = Left::of(&home);
    let (until, tokens) = (Instant::now() + duration(), AtomicU64::new(0));
    let kills = Mutex::new(BTreeMap::<&str, u32>::new());
    let count = |who: &'static str| *kills.lock().unwrap().entry(who).or_default() += 1;
    let mut seed = Random::seeded();
    let shells: Vec<Random> = (0..SHELLS_WITH_KILLS).map(|_| seed.split()).collect();
    std::thread::scope(|scope| {
        for mut random in shells {
            let (home, tokens, count) = (&home, &tokens, &count);
            scope.spawn(move || {
                while Instant::now() < until {
                    let network = if random.below(3) == 0 { "builtin" } else { "none" };
                    let step = Step::random(&mut random, network, tokens.fetch_add(1, Ordering::Relaxed));
                    let mut child = start(&mut step.command(home));
                    if random.below(5) == 0 {
                        std::thread::sleep(Duration::from_millis(random.below(60)));
                        count("cli");
                        // It may have ended.
                        let _ = child.kill();
                    }
                    let done = end(child, LIMIT);
                    assert!(!done.stderr.contains("panicked"), "{:?}: {done:#?}", step.words);
                }
            });
        }
        let mut random = seed.split();
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20 + random.below(150)));
            let role = ["monitor", "fs", "net"][random.below(3) as usize];
            let found: Vec<i32> = of_role(role).into_iter().filter(|pid| !others.contains(pid)).collect();
            if !found.is_empty() {
                let pid = found[random.below(found.len() as u64) as usize];
                // It may have ended.
                if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
                    count(role);
                }
            }
        }
    });
    println!("killed: {:?}", kills.into_inner().unwrap());
    remove_all(&home);
    before.assert_nothing_new(&home);
    assert_sound(&home, "afterwards");
    assert_eq!(home.sh(&[], "echo as before"), "as before\n");
}

/// One `rm -f` for each container, which must do.
#[track_caller]
fn remove_all(home: &Home) {
    home.ok(&["ps", "-a"]);
    for id in home.containers() {
        home.ok(&["rm", "-f", &id]);
    }
    assert!(home.containers().is_empty());
}
