//! The ladder of drivers on this very host.

use std::os::unix::fs::{PermissionsExt, symlink};

use nix::fcntl::{Flock, FlockArg};
use snapshot::Place;

use crate::Test;
use crate::support::Outer;

pub const TESTS: &[Test] = &[
    ("probe_finds_the_rung_and_leaves_nothing", finds_the_rung),
    ("probe_follows_no_link", follows_no_link),
    ("probe_removes_what_a_killed_one_left_elsewhere", removes_what_was_left),
];

fn finds_the_rung(outer: &Outer) {
    let snaps = outer.scratch.path().join("probed");
    // What a killed trial leaves: overlayfs takes every right from its own directory.
    let left = snaps.join(".sublet-probe").join("work/work");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::set_permissions(&left, PermissionsExt::from_mode(0o000)).unwrap();
    let ladder = snapshot::probe(Place::Snapshots(&snaps));
    // The other tests mount overlayfs here, so it must be found.
    assert_eq!((ladder.chosen, ladder.step_down()), (Some("overlay"), None), "{ladder:?}");
    assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    // The kernel's own file systems take no directories: the next rung, with a reason.
    let refused = snapshot::probe(Place::Snapshots(std::path::Path::new("/proc/sublet")));
    assert_eq!(refused.chosen, Some("fuse"));
    assert!(refused.step_down().unwrap().contains("overlay is not possible: mkdir"), "{refused:?}");
}

fn follows_no_link(outer: &Outer) {
    let (victim, place) = (outer.scratch.path().join("victim"), outer.scratch.path().join("shared"));
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("file"), "kept").unwrap();
    std::fs::create_dir(&place).unwrap();
    symlink(&victim, place.join(".sublet-probe")).unwrap();
    let refused = snapshot::probe(Place::Snapshots(&place));
    assert_eq!(refused.chosen, Some("fuse"), "{refused:?}");
    assert!(refused.step_down().unwrap().contains(".sublet-probe"), "{refused:?}");
    // A directory that is not ours keeps the name, whatever has it.
    let ladder = snapshot::probe(Place::Other(&place));
    assert_eq!(ladder.chosen, Some("overlay"), "{ladder:?}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 1);
    assert_eq!(std::fs::read(victim.join("file")).unwrap(), b"kept");
}

fn removes_what_was_left(outer: &Outer) {
    let place = outer.scratch.path().join("elsewhere");
    for (name, mode) in
        [(".sublet-probe-killed", 0o000), (".sublet-probe-atwork", 0o755), (".sublet-probe-another", 0o755)]
    {
        let work = place.join(name).join("work/work");
        std::fs::create_dir_all(&work).unwrap();
        std::fs::set_permissions(&work, PermissionsExt::from_mode(mode)).unwrap();
    }
    let at_work = std::fs::File::open(place.join(".sublet-probe-atwork")).unwrap();
    let _held = Flock::lock(at_work, FlockArg::LockExclusive).unwrap();
    let ladder = snapshot::probe(Place::Other(&place));
    assert_eq!(ladder.chosen, Some("overlay"), "{ladder:?}");
    let mut left: Vec<_> = std::fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [".sublet-probe-another", ".sublet-probe-atwork"], "of another trial, and of a longer name");
}
