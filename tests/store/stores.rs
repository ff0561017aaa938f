//! `--store`: names and containers of one's own over shared content.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::support::{DRIVERS, Home, LIMIT, Need, busybox, each_file, finish};
use crate::{assert_sound, serve};

#[test]
fn names_are_apart_and_content_is_shared() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    assert_eq!(home.ok(&["--store", "ci", "images", "-q"]), "");
    server.asked.lock().unwrap().clear();
    let mut command = home.command(&["pull", &name]);
    assert_eq!(finish(command.env("SUBLET_STORE", "ci"), b"", LIMIT).code, 0);
    let asked = server.asked.lock().unwrap().clone();
    let blobs = asked.iter().filter(|path| path.contains("/blobs/")).count();
    assert!(blobs <= 1, "no layer is fetched again: {asked:?}");
    home.ok(&["rmi", &name]);
    assert_eq!(home.ok(&["images", "-q"]), "");
    assert_sound(&home, "with names in one store only");
    home.ok(&["system", "prune", "-af"]);
    assert!(home.ok(&["--store", "ci", "images"]).contains(&name), "a prune keeps what another store names");
    home.ok(&["--store", "ci", "rmi", &name]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
    for wrong in ["", "..", ".x", "a/b", "-a"] {
        let said = home.fails(1, &["--store", wrong, "images"]);
        assert!(said.contains("invalid store name"), "{wrong}: {said}");
    }
}

#[test]
fn containers_are_apart() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["--store", "ci", "pull", &busybox()]);
    home.ok(&["--store", "ci", "run", "-d", "--name", "box", &busybox(), "sleep", "600"]);
    home.ok(&["run", "--name", "box", &busybox(), "true"]);
    assert_eq!(home.ok(&["ps", "--format", "{{.Names}}"]), "");
    assert_eq!(home.ok(&["--store", "ci", "ps", "--format", "{{.Names}}"]), "box\n");
    assert_eq!(home.ok(&["--store", "ci", "exec", "box", "cat", "/etc/replaced"]), "second\n");
    home.ok(&["rm", "box"]);
    home.ok(&["rmi", &busybox()]);
    let said = home.fails(1, &["--store", "ci", "rmi", "-f", &busybox()]);
    assert!(said.contains("running container"), "{said}");
    home.ok(&["--store", "ci", "rm", "-f", "box"]);
    home.ok(&["--store", "ci", "rmi", &busybox()]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}

#[test]
fn a_store_that_is_only_read_serves_its_images() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (site, image) = (home.path("site"), busybox());
    let site_text = site.display().to_string();
    home.ok(&["--root", &site_text, "pull", &image]);
    let state = || {
        let mut files = Vec::new();
        each_file(&site, &mut |path, metadata| {
            files.push((path.to_owned(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()));
        });
        files.sort();
        files
    };
    let before = state();
    let with = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        finish(command.env("SUBLET_ADDITIONAL_STORES", &site), b"", LIMIT)
    };
    let listed = with(&["images"]);
    assert!(listed.code == 0 && listed.stdout.contains(&image), "{listed:#?}");
    for driver in DRIVERS {
        let options = ["run", "--rm", "--network", "none", "--storage-driver", driver, &image, "cat", "/etc/replaced"];
        let done = with(&options);
        assert_eq!((done.code, done.stdout.as_str()), (0, "second\n"), "{driver}: {done:#?}");
    }
    let done = with(&["--offline", "pull", &image]);
    assert_eq!(done.code, 0, "{done:#?}");
    let done = with(&["pull", &image.replace("127.0.0.1", "localhost")]);
    assert_eq!(done.code, 0, "{done:#?}");
    let own = home.ok(&["content", "ls", "-a", "--format", "{{.Kind}}"]);
    assert!(!own.contains("layer") && !own.contains("object"), "the contents are used in place: {own}");
    let names = |filter: &str| with(&["images", "-f", filter, "--format", "{{.Repository}}"]).stdout;
    assert_eq!(names("readonly=true"), format!("{image}\n"));
    assert_eq!(names("readonly=false"), format!("{}\n", image.replace("127.0.0.1", "localhost")));
    let done = with(&["rmi", &image]);
    assert!(done.code == 1 && done.stderr.contains("is in a store that is only read"), "{done:#?}");
    let done = with(&["system", "prune", "-af"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let checked = with(&["system", "fsck"]);
    assert_eq!((checked.code, checked.stderr.as_str()), (0, ""), "{checked:#?}");
    assert_eq!(state(), before, "nothing was written there, no time either");

    let deepest = |path: &str| fs::read_dir(site.join(path)).unwrap().next().unwrap().unwrap().path();
    let id = with(&["image", "inspect", "--format", "{{.Id}}", &image]).stdout;
    let configuration = site.join("store/blobs/sha256").join(&id["sha256:".len()..][..2]);
    let use_it = ["run", "--rm", "--network", "none", "--storage-driver", "fuse", image.as_str(), "true"];
    for (open, arguments, code) in [
        (site.join("store/objects"), &["images"][..], 1),
        (deepest("store/objects"), &use_it, 125),
        (configuration, &["image", "inspect", &image], 1),
    ] {
        fs::set_permissions(&open, PermissionsExt::from_mode(0o770)).unwrap();
        let done = with(arguments);
        let told = done.stderr.contains(&format!("{} ", open.display())) && done.stderr.contains("with mode 0770");
        assert!(done.code == code && told && done.stderr.contains("hint: "), "{arguments:?}: {done:#?}");
        fs::set_permissions(&open, PermissionsExt::from_mode(0o700)).unwrap();
    }
    fs::rename(&site, home.path("gone")).unwrap();
    let done = with(&["system", "fsck", "--repair"]);
    assert!(done.code == 1 && done.stderr.contains("opening the additional store"), "{done:#?}");
    assert!(done.stderr.contains("hint: make it available"), "what is there is not lost: {done:#?}");
    let done = with(&["images", "-q"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
    assert!(
        done.stderr.contains("warning: additional store ") && done.stderr.contains("there is no store at"),
        "{done:#?}"
    );
}

/// What its keeper left in disorder, or has closed to us, is passed over; the rest of the store is used, and our own.
#[test]
fn what_cannot_be_read_in_a_store_that_is_only_read_is_not_there() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (site, image) = (home.path("site"), busybox());
    home.ok(&["--root", &site.display().to_string(), "pull", &image]);
    fs::write(site.join("store/refs/docker.io%2Fbroken:latest"), "{").unwrap();
    let with = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        finish(command.env("SUBLET_ADDITIONAL_STORES", &site), b"", LIMIT)
    };
    let listed = with(&["images"]);
    assert!(listed.code == 0 && listed.stdout.contains(&image), "{listed:#?}");
    let notices = |done: &str| done.matches("passed over: ").count();
    assert_eq!(notices(&listed.stderr), 1, "{listed:#?}");
    let run = ["run", "--rm", "--network", "none", "--storage-driver", "fuse", &image, "cat", "/etc/replaced"];
    let done = with(&run);
    // A run reads the record of its own image and no other.
    assert_eq!((done.code, done.stdout.as_str(), notices(&done.stderr)), (0, "second\n", 0), "{done:#?}");
    let done = with(&["run", "--rm", "--pull", "never", "docker.io/broken", "true"]);
    assert_eq!((done.code, notices(&done.stderr)), (125, 1), "{done:#?}");
    if nix::unistd::geteuid().is_root() {
        // Nothing is closed to root.
        return;
    }
    for family in ["layers", "objects"] {
        each_file(&site.join("store").join(family), &mut |path, metadata| {
            if metadata.is_file() {
                fs::set_permissions(path, PermissionsExt::from_mode(0o000)).unwrap();
            }
        });
    }
    let done = with(&["pull", &image]);
    assert_eq!(done.code, 0, "{done:#?}");
    let done = with(&run);
    assert_eq!((done.code, done.stdout.as_str()), (0, "second\n"), "{done:#?}");
}

/// What a server has mapped must not be another user's to cut short.
#[test]
fn a_container_outlives_what_the_keeper_of_its_store_cuts_short() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (site, image) = (home.path("site"), busybox());
    home.ok(&["--root", &site.display().to_string(), "pull", &image]);
    let with = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        finish(command.env("SUBLET_ADDITIONAL_STORES", &site), b"", LIMIT)
    };
    for driver in DRIVERS {
        let options = ["run", "-d", "--name", driver, "--network", "none", "--storage-driver", driver, &image];
        let done = with(&[&options[..], &["sleep", "600"]].concat());
        assert_eq!(done.code, 0, "{driver}: {done:#?}");
    }
    each_file(&site.join("store/chains"), &mut |path, metadata| {
        if metadata.is_file() {
            fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
            fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }
    });
    for driver in DRIVERS {
        let done = with(&["exec", driver, "cat", "/etc/replaced"]);
        assert_eq!((done.code, done.stdout.as_str()), (0, "second\n"), "{driver}: {done:#?}");
        home.ok(&["rm", "-f", driver]);
    }
}

/// Looking at a container makes no store.
#[test]
fn what_only_reads_makes_no_store() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "box", "--network", "none", "--storage-driver", "fuse", &busybox(), "true"]);
    let (store, aside) = (home.store().join("store"), home.path("aside"));
    fs::rename(&store, &aside).unwrap();
    for command in [&["diff", "box"][..], &["export", "-o", "/dev/null", "box"], &["images"], &["system", "fsck"]] {
        home.run(command);
        assert!(!store.exists(), "{command:?}");
    }
    let said = home.fails(1, &["diff", "box"]);
    assert!(said.contains("there is no store at"), "{said}");
    fs::rename(&aside, &store).unwrap();
    home.ok(&["rm", "box"]);
}

#[test]
fn a_store_of_a_newer_version_is_left_alone() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let format = home.store().join("store/format");
    fs::write(&format, r#"{"version":9}"#).unwrap();
    for command in
        [&["images"][..], &["pull", &name], &["rmi", &name], &["system", "prune", "-af"], &["system", "fsck"]]
    {
        let said = home.fails(1, command);
        assert!(said.contains("has format version 9; this engine knows versions 1 and 2"), "{command:?}: {said}");
        assert!(said.contains("hint: use the newer engine, or another --root"), "{command:?}: {said}");
    }
    fs::write(&format, r#"{"version":1}"#).unwrap();
    assert_sound(&home, "as it was");
}
