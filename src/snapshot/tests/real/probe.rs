//! The ladder of drivers on this very host.

use crate::Test;
use crate::support::Outer;

pub const TESTS: &[Test] = &[("probe_finds_the_rung_and_leaves_nothing", finds_the_rung)];

fn finds_the_rung(outer: &Outer) {
    let snaps = outer.scratch.path().join("probed");
    let ladder = snapshot::probe(&snaps);
    // The other tests mount overlayfs here, so it must be found.
    assert_eq!((ladder.chosen, ladder.step_down()), (Some("overlay"), None), "{ladder:?}");
    assert_eq!(std::fs::read_dir(&snaps).unwrap().count(), 0);
    // The kernel's own file systems take no directories: the next rung, with a reason.
    let refused = snapshot::probe(std::path::Path::new("/proc/sublet"));
    assert_eq!(refused.chosen, Some("fuse"));
    assert!(refused.step_down().unwrap().contains("overlay is not possible: mkdir"), "{refused:?}");
}
