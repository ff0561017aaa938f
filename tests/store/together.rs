//! Several commands at once over the same images.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Home, LIMIT, busybox, number};
use crate::{assert_sound, serve};

#[test]
fn pulls_prunes_and_removals_of_the_same_images_lose_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2, 3])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    let until = Instant::now() + Duration::from_secs(10);
    let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    let going = || Instant::now() < until && !stop.load(Ordering::Relaxed);
    let done = |arguments: &[&str]| {
        let done = home.run(arguments);
        // What another one has removed is not there.
        let fine = done.code == 0 || done.stderr.contains("No such image");
        if !fine {
            stop.store(true, Ordering::Relaxed);
        }
        assert!(fine, "{arguments:?}: {done:#?}");
        rounds.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let (going, done) = (&going, &done);
        for name in names.iter().chain(&names) {
            scope.spawn(move || {
                while going() {
                    done(&["pull", name]);
                }
            });
        }
        scope.spawn(|| {
            while going() {
                done(&["system", "prune", "-af"]);
            }
        });
        scope.spawn(|| {
            while going() {
                done(&["rmi", &names[1]]);
            }
        });
        scope.spawn(|| {
            while going() {
                done(&["tag", &names[1], "kept"]);
                done(&["rmi", "kept"]);
            }
        });
        scope.spawn(|| {
            while going() {
                let checked = home.run(&["system", "fsck"]);
                if checked.code != 0 {
                    stop.store(true, Ordering::Relaxed);
                }
                assert_eq!(checked.code, 0, "what goes meanwhile is no fault: {checked:#?}");
            }
        });
        scope.spawn(|| {
            while going() {
                done(&["--cache-max", "1k", "pull", &names[0]]);
            }
        });
    });
    println!("{} commands", rounds.into_inner());
    for name in &names {
        home.ok(&["pull", name]);
    }
    assert_sound(&home, "after the storm");
    home.ok(&["system", "prune", "-af"]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}

/// Pulls, runs, commits, removals and prunes by eight processes over the same images.
#[test]
fn eight_at_once_over_shared_images_lose_nothing() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2, 3])]);
    let (small, [a, b]) = (busybox(), ["a", "b"].map(|name| format!("{}/{name}", server.address)));
    home.ok(&["run", "--name", "one", "--network", "none", &small, "sh", "-c", "echo x >/x"]);
    let until = Instant::now() + Duration::from_secs(number("STORM_S").unwrap_or(10));
    // How often each kind of command did what it should.
    let (stop, rounds) = (AtomicBool::new(false), Mutex::new(BTreeMap::<String, u32>::new()));
    let done = |arguments: &[&str], expected: &str| {
        let done = home.run(arguments);
        // What another one has removed is not there to be run, removed, or committed upon; what another one runs is not removed.
        let absent = done.stderr.contains("No such image") || done.stderr.contains("is not in the store");
        let gone = absent && matches!(arguments[0], "run" | "rmi" | "commit");
        let used = arguments[0] == "rmi" && done.stderr.contains("is being used by running container");
        let fine = if done.code == 0 { expected.is_empty() || done.stdout == expected } else { gone || used };
        stop.fetch_or(!fine, Ordering::Relaxed);
        assert!(fine, "{arguments:?}: {done:#?}");
        *rounds.lock().unwrap().entry(arguments[0].to_owned()).or_insert(0) += u32::from(done.code == 0);
    };
    let run = |image: &str, file: &str, expected: &str| {
        done(&["run", "--rm", "--pull", "never", "--network", "none", image, "cat", file], expected);
    };
    let turns: [&(dyn Fn() + Sync); 8] = [
        &|| {
            done(&["pull", &small], "");
            done(&["pull", &a], "");
        },
        &|| {
            done(&["pull", &b], "");
            done(&["pull", &small], "");
        },
        &|| run(&small, "/etc/replaced", "second\n"),
        &|| run("made", "/x", "x\n"),
        &|| done(&["commit", "one", "made"], ""),
        &|| {
            done(&["commit", "one"], "");
            done(&["rmi", &b], "");
        },
        &|| {
            done(&["rmi", "-f", &small], "");
            done(&["rmi", &a], "");
            done(&["rmi", "-f", "made"], "");
        },
        &|| {
            done(&["image", "prune", "-af"], "");
            done(&["system", "fsck"], "");
        },
    ];
    std::thread::scope(|scope| {
        for turn in turns {
            let stop = &stop;
            scope.spawn(move || {
                while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                    turn();
                }
            });
        }
    });
    let successes = rounds.lock().unwrap().clone();
    println!("{successes:?}");
    assert!(successes.len() == 6 && successes.values().all(|count| *count > 0), "{successes:?}");
    assert_sound(&home, "after the storm");
    for image in [&small, &a, &b] {
        home.ok(&["pull", image]);
    }
    home.ok(&["commit", "one", "made"]);
    run("made", "/x", "x\n");
    home.ok(&["image", "prune", "-f"]);
    let told = assert_sound(&home, "pruned");
    assert!(!told.contains("nothing leads to"), "{told}");
}

#[test]
fn containers_start_while_their_image_is_removed_and_pruned() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let until = Instant::now() + Duration::from_secs(6);
    let going = || Instant::now() < until;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while going() {
                home.run(&["rmi", "-f", &image]);
                home.ok(&["image", "prune", "-af"]);
            }
        });
        scope.spawn(|| {
            let mut started = 0;
            // One at least: when nobody removes the image any more.
            while going() || (started == 0 && Instant::now() < until + LIMIT) {
                let done = home.run(&["run", "--rm", "--network", "none", &image, "cat", "/etc/replaced"]);
                let gone = done.stderr.contains("No such image") || done.stderr.contains("is not in the store");
                assert!((done.code, &*done.stdout) == (0, "second\n") || gone, "{done:#?}");
                started += u32::from(done.code == 0);
            }
            println!("{started} containers started");
            assert!(started > 0);
        });
    });
    assert_sound(&home, "after the storm");
}

/// What the pull has looked at stays until it ends, although no name leads to it any more.
#[test]
fn an_image_may_be_removed_while_the_registry_is_asked_whether_it_is_current() {
    let Some(home) = Home::new(&[]) else { return };
    let answers = crate::support::http::registry_of("a", &crate::image("a", &[1]));
    let removal = Arc::new(Mutex::new(None::<Command>));
    let to_do = Arc::clone(&removal);
    let server = crate::support::http::Server::answering(move |request| {
        if let Some(mut command) = to_do.lock().unwrap().take_if(|_| request.path.contains("/manifests/")) {
            let done = crate::support::finish(&mut command, b"", LIMIT);
            assert_eq!(done.code, 0, "{done:#?}");
        }
        crate::support::http::find(&answers, &request.path)
    });
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    *removal.lock().unwrap() = Some(home.command(&["rmi", &name]));
    home.ok(&["pull", &name]);
    assert!(removal.lock().unwrap().is_none(), "the registry was asked");
    assert_sound(&home, "after a removal beside a pull");
}

#[test]
fn a_waiting_pull_takes_over_from_a_killed_one() {
    let Some(home) = Home::new(&[]) else { return };
    let image = crate::image("a", &[1]);
    let layer = format!("/v2/a/blobs/{}", fixture::image::digest(&crate::layer(1).gzip));
    let (answers, asked) = (crate::support::http::registry_of("a", &image), AtomicU32::new(0));
    let server = crate::support::http::Server::answering(move |request| {
        let mut answer = crate::support::http::find(&answers, &request.path);
        // The first stalls until it is killed.
        if request.path == layer && asked.fetch_add(1, Ordering::Relaxed) == 0 {
            answer.stall = LIMIT;
        }
        answer
    });
    let name = format!("{}/a", server.address);
    let mut first = crate::support::start(&mut home.command(&["pull", &name]));
    let active = || home.ok(&["content", "active", "--format", "{{.State}} {{.Done}}"]);
    crate::support::eventually("the first has half of the layer", || {
        active().strip_prefix("active ").is_some_and(|done| done.trim() != "0B")
    });
    let second = crate::support::start(&mut home.command(&["pull", &name]));
    crate::support::eventually("the second is at work", || home.ok(&["lease", "ls", "-q"]).lines().count() == 2);
    first.kill().unwrap();
    first.wait().unwrap();
    let done = crate::support::end(second, LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    assert_sound(&home, "after the takeover");
    assert_eq!(active(), "");
}
