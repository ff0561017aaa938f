//! `rmi` of all images.

use crate::list::make;
use crate::support::{Home, busybox};

#[test]
fn all_images_go_but_those_of_containers() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    make(&home, "one:1", 1000, "a=b");
    home.ok(&["tag", "one:1", "one:2"]);
    // One without a name too.
    make(&home, "two", 2000, "a=b");
    make(&home, "two", 3000, "a=b");
    home.ok(&["create", "--name", "user", &busybox(), "true"]);
    let done = home.run(&["rmi", "-a", "--no-prune"]);
    assert!(done.code == 1 && done.stderr.contains("must be forced"), "{done:#?}");
    assert_eq!(done.stdout.matches("Untagged: ").count(), 3, "{done:#?}");
    assert_eq!(done.stdout.matches("Deleted: ").count(), 3, "{done:#?}");
    assert_eq!(home.ok(&["images", "--format", "{{.Repository}}"]), format!("{}\n", busybox()));
    home.ok(&["rmi", "--all", "--force"]);
    assert_eq!(home.ok(&["images", "-aq"]), "");
    // Nothing is there, which is what is wanted.
    assert_eq!(home.ok(&["rmi", "-a"]), "");
    home.fails(1, &["rmi"]);
    home.fails(1, &["rmi", "-a", "one:1"]);
}
