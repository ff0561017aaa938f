//! `--cache-max` and `--offline`: what may go and what must not, and no question to a registry.

use fixture::image::Layer;

use crate::support::{Home, LIMIT, busybox, finish};
use crate::{assert_sound, df, layer, serve};

#[test]
fn what_can_be_fetched_again_goes_the_oldest_first() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["pull", &a]);
    let after_one = df(&home, "Images", "SizeBytes");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let kinds = || home.ok(&["content", "ls", "-a", "--format", "{{.Kind}} {{.Digest}}"]);
    let blob = |seed| fixture::image::digest(&layer(seed).gzip);
    // Room for all but about one blob of 100 kB.
    let max = (after_one * 2 - 60_000).to_string();
    let done = home.run(&["--cache-max", &max, "pull", &b]);
    assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{done:#?}");
    assert!(df(&home, "Images", "SizeBytes") <= max.parse().unwrap());
    assert!(!kinds().contains(&blob(1)) && kinds().contains(&blob(2)), "{}", kinds());
    assert_sound(&home, "with one blob less");
    // And with no room at all: what names need to run stays, and that it is too much is said.
    let mut command = home.command(&["pull", &b]);
    let done = finish(command.env("SUBLET_CACHE_MAX", "1k"), b"", LIMIT);
    assert!(done.code == 0 && done.stderr.contains("more than --cache-max"), "{done:#?}");
    let left = kinds();
    assert!(
        !left.contains("stack ") && !left.contains(&blob(2)) && left.matches("layer-index ").count() == 2,
        "{left}"
    );
    assert_sound(&home, "with nothing that can be had again");
    let said = home.fails(1, &["--cache-max", "much", "pull", &b]);
    assert!(said.contains("invalid size: 'much'"), "{said}");
}

#[test]
fn what_cannot_be_evicted_fails_no_pull() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["pull", &a]);
    // What it leads to is not known, so nothing may go.
    std::fs::write(home.store().join("store/refs/damaged:latest"), "{").unwrap();
    let done = home.run(&["--cache-max", "1k", "pull", &b]);
    assert!(done.code == 0 && done.stderr.contains("cannot be brought below --cache-max"), "{done:#?}");
}

#[test]
fn what_no_registry_has_stays() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, own) = (serve(&[("a", &[1])]), layer(2));
    let made = home.run_with_input(&["import", "-", "made:1"], &own.gzip);
    assert_eq!(made.code, 0, "{made:#?}");
    home.ok(&["--cache-max", "1k", "pull", &format!("{}/a", server.address)]);
    let blobs = home.ok(&["content", "ls", "--format", "{{.Digest}}"]);
    let has = |layer: &Layer| blobs.contains(&fixture::image::digest(&layer.gzip));
    assert!(has(&own) && !has(&layer(1)), "{blobs}");
}

#[test]
fn a_container_starts_without_what_was_evicted() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["--cache-max", "1k", "pull", &busybox()]);
    assert!(!home.ok(&["content", "ls", "-a", "--format", "{{.Kind}}"]).contains("stack"));
    assert_eq!(home.sh(&[], "cat /etc/replaced"), "second\n");
    home.ok(&["run", "--name", "kept", &busybox(), "sh", "-c", "echo x >/new"]);
    home.ok(&["--cache-max", "1k", "pull", &busybox()]);
    assert!(home.ok(&["diff", "kept"]).contains("A /new"));
}

#[test]
fn offline_asks_nobody_and_names_what_is_missing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2])]);
    let name = format!("{}/a", server.address);
    let said = home.fails(1, &["--offline", "pull", &name]);
    assert!(said.contains("--offline") && server.asked.lock().unwrap().is_empty(), "{said}");
    home.ok(&["pull", &name]);
    server.asked.lock().unwrap().clear();
    assert!(home.ok(&["--offline", "pull", &name]).contains("Image is up to date"));
    let first = layer(1);
    let index = first.diff_id.strip_prefix("sha256:").unwrap();
    std::fs::remove_file(home.store().join("store/layers").join(format!("{index}.idx"))).unwrap();
    home.ok(&["--offline", "pull", &name]);
    assert_sound(&home, "with an index that was made again from its blob");
    std::fs::remove_file(home.store().join("store/layers").join(format!("{index}.idx"))).unwrap();
    let blob = fixture::image::digest(&first.gzip);
    home.ok(&["content", "rm", "-f", &blob]);
    let said = home.fails(1, &["--offline", "pull", &name]);
    assert!(said.contains(&format!("missing: {blob}")), "{said}");
    assert!(server.asked.lock().unwrap().is_empty());
    home.ok(&["pull", &name]);
    assert_sound(&home, "after a pull");
}
