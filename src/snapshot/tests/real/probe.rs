//! The ladder of drivers on this very host.

use std::os::unix::fs::PermissionsExt;

use crate::Test;
use crate::support::Outer;

pub const TESTS: &[Test] = &[("probe_finds_the_rung_and_leaves_nothing", finds_the_rung)];

fn finds_the_rung(outer: &Outer) {
    let snaps = outer.scratch.path().join("probed");
    // What a killed trial leaves: overlayfs takes every right from its own directory.
    let left = snaps.join(".sublet-probe/work/work");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::set_permissions(&left, PermissionsExt::from_mode(0)).unwrap();
    let ladder = snapshot::probe(&snaps);
    // The other tests mount overlayfs here, so it must be found.
    assert_eq!((ladder.chosen, ladder.step_down()), (Some("overlay"), None), "{ladder:?}");
    assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    // The kernel's own file systems take no directories: the next rung, with a reason.
    let refused = snapshot::probe(std::path::Path::new("/proc/sublet"));
    assert_eq!(refused.chosen, Some("fuse"));
    assert!(refused.step_down().unwrap().contains("overlay is not possible: mkdir"), "{refused:?}");
}
