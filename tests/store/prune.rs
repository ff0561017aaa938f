//! `system prune`, `image prune`, `container prune`: Docker's questions and answers; nothing goes that is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::http::{Server, find, registry_of};
use crate::support::{Home, busybox};
use crate::{assert_sound, df, image, serve};

#[test]
fn a_question_is_asked_and_a_no_changes_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let question = "Are you sure you want to continue? [y/N] ";
    for (command, warning) in [
        (
            &["image", "prune", "-a"][..],
            "This will remove all images without at least one container associated to them.\n",
        ),
        (&["image", "prune"], "This will remove all dangling images.\n"),
        (&["container", "prune"], "This will remove all stopped containers.\n"),
        (
            &["system", "prune", "--volumes", "--filter", "until=1h"],
            "This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n  - all anonymous volumes not used by at least one container\n  \
             - all dangling images\n\n  Items to be pruned will be filtered with:\n  - until=1h\n\n",
        ),
    ] {
        for answer in [&b"n\n"[..], b"", b"yes\n"] {
            let done = home.run_with_input(command, answer);
            assert_eq!((done.code, done.stdout), (0, format!("WARNING! {warning}{question}")), "{command:?}");
        }
    }
    assert!(home.ok(&["images"]).contains(&name));
    let done = home.run_with_input(&["image", "prune", "-a"], b"Y\n");
    let shown = format!("{question}Deleted Images:\nuntagged: {name}:latest\ndeleted: sha256:");
    assert!(done.stdout.contains(&shown) && done.stdout.contains("\n\nTotal reclaimed space: "), "{done:#?}");
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}

#[test]
fn what_containers_need_stays() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let other = format!("{}/a", server.address);
    home.ok(&["pull", &other]);
    home.ok(&["run", "-d", "--name", "running", &busybox(), "sleep", "600"]);
    home.ok(&["run", "--name", "stopped", "--label", "tier=web", &busybox(), "true"]);
    let id = home.inspect("stopped", "{{.Id}}");
    let freed = df(&home, "Images", "ReclaimableBytes");
    let said = home.ok(&["container", "prune", "-f", "--filter", "label=tier=db"]);
    assert_eq!(said, "Total reclaimed space: 0B\n");
    let said = home.ok(&["container", "prune", "-f", "--filter", "label=tier=web"]);
    assert!(said.starts_with(&format!("Deleted Containers:\n{id}\n\nTotal reclaimed space: ")), "{said}");
    let before = df(&home, "Images", "SizeBytes");
    let said = home.ok(&["image", "prune", "-af", "--filter", "label=name=b"]);
    assert_eq!(said, "Total reclaimed space: 0B\n");
    let said = home.ok(&["system", "prune", "-af"]);
    assert!(said.contains(&format!("untagged: {other}:latest\n")) && !said.contains("Deleted Containers"), "{said}");
    let gone = before - df(&home, "Images", "SizeBytes");
    assert!((0..=4096).contains(&(gone - freed)), "what was reclaimable, {freed}, and the file of the name: {gone}");
    assert_sound(&home, "after a prune");
    assert_eq!(home.ok(&["exec", "running", "echo", "alive"]), "alive\n");
    assert_eq!(home.sh(&[], "echo again"), "again\n");
}

#[test]
fn images_without_a_name_go_by_age_and_label() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    for name in ["a", "b"] {
        let name = format!("{}/{name}", server.address);
        home.ok(&["pull", &name]);
        std::fs::remove_file(home.store().join("store/refs").join(format!("{}:latest", name.replace('/', "%2F"))))
            .unwrap();
    }
    let blobs = || home.ok(&["content", "ls", "-q"]).lines().count();
    assert_eq!(blobs(), 6);
    home.ok(&["image", "prune", "-f", "--filter", "label=name=c"]);
    assert_eq!(blobs(), 6);
    home.ok(&["image", "prune", "-f", "--filter", "label=name=a"]);
    assert_eq!(blobs(), 3);
    assert_sound(&home, "with an image that has no name");
    home.ok(&["image", "prune", "-f"]);
    assert_eq!(blobs(), 0);
}

/// As with Docker: what had the name goes on without one.
#[test]
fn an_image_whose_name_a_pull_moves_stays_until_a_prune() {
    let Some(home) = Home::new(&[]) else { return };
    let answers = [("first", 1), ("second", 2)].map(|(label, seed)| registry_of("a", &image(label, &[seed])));
    let moved = Arc::new(AtomicBool::new(false));
    let server = Server::answering({
        let moved = Arc::clone(&moved);
        move |request| find(&answers[usize::from(moved.load(Ordering::Relaxed))], &request.path)
    });
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let id = |rows: String, name: &str| rows.lines().find_map(|row| row.strip_prefix(name).map(str::to_owned));
    let rows = || home.ok(&["images", "--format", "{{.Repository}} {{.ID}}"]);
    let old = id(rows(), &name).expect("a row");
    home.ok(&["pull", &name]);
    assert_eq!(rows().lines().count(), 1, "nothing has moved");
    moved.store(true, Ordering::Relaxed);
    home.ok(&["pull", &name]);
    assert_eq!(id(rows(), "<none>"), Some(old.clone()));
    assert_ne!(id(rows(), &name), Some(old));
    assert_sound(&home, "with an image without a name");
    home.ok(&["image", "prune", "-f"]);
    assert_eq!((id(rows(), "<none>"), rows().lines().count()), (None, 1));
}
