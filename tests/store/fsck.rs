//! `system fsck`: what is damaged is found, and mended as far as it can be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::{Done, Home, busybox, each_file};
use crate::{assert_sound, image, layer, serve};

/// The files of one kind of content.
fn files(home: &Home, family: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    each_file(&home.store().join("store").join(family), &mut |path, metadata| {
        if metadata.is_file() {
            files.push(path.to_owned());
        }
    });
    files.sort();
    files
}

/// Every file that a repair could take away.
fn everything(home: &Home) -> Vec<PathBuf> {
    ["blobs", "objects", "layers", "lists", "refs"].iter().flat_map(|family| files(home, family)).collect()
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap()
}

/// The file of a blob.
fn blob(home: &Home, digest: &str) -> PathBuf {
    let hex = hex(digest);
    home.store().join("store/blobs/sha256").join(&hex[..2]).join(hex)
}

fn fsck(home: &Home, options: &[&str]) -> Done {
    home.run(&[&["system", "fsck"], options].concat())
}

#[test]
fn what_can_be_made_again_is() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[2, 3])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    for name in &names {
        home.ok(&["pull", name]);
    }
    for family in ["chains", "layers", "objects"] {
        let whole = files(&home, family);
        for path in &whole {
            damage(path);
            let found = fsck(&home, &[]);
            assert!(
                found.code == 1 && found.stdout.contains(&path.file_stem().unwrap().to_string_lossy()[..]),
                "{found:#?}"
            );
            assert!(found.stdout.ends_with("fault\n") || found.stdout.ends_with("faults\n"), "{found:#?}");
            let again = fsck(&home, &[]);
            assert_eq!(again.stdout, found.stdout, "a check changes nothing");
            let repaired = fsck(&home, &["--repair"]);
            assert_eq!(repaired.code, 1, "{repaired:#?}");
            assert!(!repaired.stdout.contains("pull again"), "{repaired:#?}");
            assert_sound(&home, "after a repair");
        }
        if family != "chains" {
            assert_eq!(files(&home, family), whole);
        }
    }
    fs::remove_file(&files(&home, "layers")[0]).unwrap();
    let found = fsck(&home, &[]);
    assert!(found.code == 1 && found.stdout.contains("lacks"), "{found:#?}");
    let repaired = fsck(&home, &["--repair"]);
    assert!(repaired.stdout.contains("was missing [made again from its blob]"), "{repaired:#?}");
    assert_sound(&home, "after the repair of a missing index");
    let asked = server.asked.lock().unwrap().len();
    for name in &names {
        home.ok(&["pull", name]);
    }
    let new: Vec<String> = server.asked.lock().unwrap()[asked..].to_vec();
    assert!(new.iter().all(|path| !path.contains("/blobs/")), "nothing is fetched again: {new:?}");
}

#[test]
fn what_cannot_be_made_again_needs_a_pull() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[3])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    for name in &names {
        home.ok(&["pull", name]);
    }
    let (a, first) = (image("a", &[1, 2]), layer(1));
    let lost = [
        vec![blob(&home, &fixture::image::digest(&first.gzip)), index(&home, &first.diff_id)],
        vec![blob(&home, &a.digest())],
        vec![blob(&home, &config_of(&a))],
    ];
    for paths in lost {
        for path in &paths {
            damage(path);
        }
        let repaired = fsck(&home, &["--repair"]);
        let wanted = format!("pull again: {}:latest\n", names[0]);
        assert!(repaired.code == 1 && repaired.stdout.contains(&wanted), "{repaired:#?}");
        assert!(!repaired.stdout.contains(&names[1]), "the other image is whole: {repaired:#?}");
        let still = fsck(&home, &[]);
        assert!(
            still.code == 1 && still.stdout.contains(&format!("image {}:latest lacks sha256:", names[0])),
            "{still:#?}"
        );
        home.ok(&["pull", &names[0]]);
        assert_sound(&home, "after the pull that the repair asked for");
    }
}

fn index(home: &Home, diff_id: &str) -> PathBuf {
    home.store().join("store/layers").join(format!("{}.idx", hex(diff_id)))
}

fn config_of(image: &fixture::image::Image) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_name_that_cannot_be_read_goes_and_its_content_stays_until_the_next_repair() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    for name in &names {
        home.ok(&["pull", name]);
    }
    let file = home.store().join("store/refs").join(format!("{}:latest", names[0].replace('/', "%2F")));
    fs::write(file, "{").unwrap();
    let before = files(&home, "blobs");
    let listed = home.run(&["images", "--format", "{{.Repository}}"]);
    assert_eq!((listed.code, listed.stdout), (0, format!("{}\n", names[1])), "{}", listed.stderr);
    assert!(listed.stderr.contains("passed over: ") && listed.stderr.contains("system fsck"), "{}", listed.stderr);
    // By id, for which all names are read.
    let id = home.ok(&["image", "inspect", "--format", "{{.Id}}", &names[1]]);
    assert!(home.fails(1, &["image", "prune", "-af"]).contains("is damaged"));
    let removed = home.run(&["rmi", id.trim_end()]);
    assert_eq!((removed.code, removed.stdout), (0, format!("Untagged: {}:latest\n", names[1])), "{}", removed.stderr);
    assert!(removed.stderr.contains("stays in the store"), "{}", removed.stderr);
    assert_eq!(files(&home, "blobs"), before, "what cannot be read may lead there");
    let repaired = fsck(&home, &["--repair"]);
    assert!(repaired.stdout.contains(&format!("pull again: {}:latest\n", names[0])), "{repaired:#?}");
    assert_eq!(files(&home, "blobs"), before, "what it led to may be whole");
    let asked = server.asked.lock().unwrap().len();
    home.ok(&["pull", &names[0]]);
    let new: Vec<String> = server.asked.lock().unwrap()[asked..].to_vec();
    assert!(new.iter().filter(|path| path.contains("/blobs/")).count() <= 1, "the layer was kept: {new:?}");
    assert_sound(&home, "after the pull");
}

/// A power loss leaves files cut short that were renamed into their place and not synced.
#[test]
fn what_is_cut_short_is_brought_by_the_next_pull_or_load() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let (image, archive) = (busybox(), home.path("image.tar").display().to_string());
    home.ok(&["save", "--format", "oci-archive", "-o", &archive, &image]);
    let mut cut_files = 0;
    for again in [&["pull", "-q", &image][..], &["load", "-q", "-i", &archive]] {
        for family in ["blobs", "chains", "layers", "objects"] {
            for path in files(&home, family) {
                let length = fs::metadata(&path).unwrap().len();
                for left in [0, length / 2] {
                    let what = format!("{again:?} after {} was cut from {length} to {left}", path.display());
                    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
                    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(left).unwrap();
                    let done = home.run(again);
                    assert_eq!(done.code, 0, "{what}: {done:#?}");
                    assert_sound(&home, &what);
                    cut_files += 1;
                }
            }
        }
    }
    assert!(cut_files >= 24, "{cut_files}");
    assert_eq!(home.sh(&[], "sha256sum /bin/busybox >/a && cmp /bin/busybox /bin/sh && echo whole"), "whole\n");
}

#[test]
fn what_nothing_leads_to_is_a_note() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    home.ok(&["pull", &format!("{}/a", server.address)]);
    home.run_with_input(&["content", "put"], b"nothing leads here");
    let noted = assert_sound(&home, "with an orphan");
    assert!(noted.contains("note: nothing leads to 1 contents"), "{noted}");
    let repaired = fsck(&home, &["--repair"]);
    assert!(repaired.code == 0 && !repaired.stdout.contains("nothing leads"), "{repaired:#?}");
    assert_eq!(files(&home, "blobs").len(), 3);
}

/// What cannot be read may be whole, and what a newer engine wrote is: both are told, and stay.
#[test]
fn only_what_is_damaged_is_removed() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    let names = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    for name in &names {
        home.ok(&["pull", name]);
    }
    home.ok(&["manifest", "create", "team/list", &names[0]]);
    let list = home.store().join("store/lists/docker.io%2Fteam%2Flist:latest");
    let of_list = fs::read_to_string(&list).unwrap();
    fs::write(&list, of_list.replace("\"format\":1", "\"format\":2")).unwrap();
    let newer = files(&home, "layers").remove(0);
    let mut bytes = fs::read(&newer).unwrap();
    // The version stands behind the eight bytes by which an index is known.
    bytes[8] += 1;
    fs::set_permissions(&newer, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&newer, &bytes).unwrap();
    // Nobody's rights let a link be opened in place of a file (ELOOP), not even root's.
    let (unreadable, aside) = (blob(&home, &image("b", &[2]).digest()), home.path("aside"));
    fs::rename(&unreadable, &aside).unwrap();
    std::os::unix::fs::symlink(&aside, &unreadable).unwrap();
    let before = everything(&home);
    for options in [&[][..], &["--repair"]] {
        let found = fsck(&home, options);
        assert!(found.code == 1 && found.stdout.contains("3 faults"), "{found:#?}");
        for wanted in ["(ELOOP)", "has format 2; this engine reads 1", "the index has format version"] {
            assert!(found.stdout.contains(wanted), "{wanted}: {found:#?}");
        }
        assert_eq!(found.stdout.matches("[left as it is: ").count(), if options.is_empty() { 0 } else { 3 });
        assert!(!found.stdout.contains("again"), "{found:#?}");
        assert_eq!(everything(&home), before);
    }
    fs::write(&list, of_list).unwrap();
    bytes[8] -= 1;
    fs::write(&newer, &bytes).unwrap();
    fs::rename(&aside, &unreadable).unwrap();
    assert_sound(&home, "as it was");
}

/// What the list led to is not known any more.
#[test]
fn the_repair_that_removes_a_list_sweeps_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    home.ok(&["manifest", "create", "team/list", &name]);
    home.ok(&["rmi", &name]);
    let before = files(&home, "blobs");
    fs::write(home.store().join("store/lists/docker.io%2Fteam%2Flist:latest"), "{").unwrap();
    let repaired = fsck(&home, &["--repair"]);
    assert!(
        repaired.code == 1 && repaired.stdout.contains("list of images docker.io/team/list:latest"),
        "{repaired:#?}"
    );
    assert!(repaired.stdout.contains("[removed]"), "{repaired:#?}");
    assert_eq!(files(&home, "blobs"), before);
}

#[test]
fn an_image_that_was_made_here_is_not_to_be_pulled() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let (name, archive) = (format!("{}/a", server.address), home.path("a.tar").display().to_string());
    home.ok(&["pull", &name]);
    home.ok(&["save", "-o", &archive, &name]);
    home.ok(&["rmi", &name]);
    home.ok(&["load", "-i", &archive]);
    let config = blob(&home, &config_of(&image("a", &[1])));
    damage(&config);
    let repaired = fsck(&home, &["--repair"]);
    assert!(repaired.stdout.contains(&format!("made here, load or build again: {name}:latest\n")), "{repaired:#?}");
    assert!(!repaired.stdout.contains("pull again"), "{repaired:#?}");
    home.ok(&["load", "-i", &archive]);
    assert_sound(&home, "after the load");
}

/// It was applied again at each pull: what was made did not take the place of a file of the same size.
#[test]
fn a_pull_puts_an_index_of_the_right_size_and_a_wrong_head_in_order() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let path = files(&home, "layers").pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[0] ^= 1;
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    fs::write(&path, &bytes).unwrap();
    home.ok(&["pull", &name]);
    assert!(fs::read(&path).unwrap() == whole, "the first pull has made it again");
    assert_sound(&home, "after it");
    let said = home.ok(&["pull", &name]);
    assert!(said.contains("Image is up to date"), "{said}");
}
