//! What the commands over files show meanwhile (docs/progress.md; for registries `tests/registry/progress.rs`).

use std::fs;

use serde_json::Value;

use crate::support::{Done, Home, busybox};

/// The objects on standard error, all of it.
fn objects(done: &Done) -> Vec<Value> {
    assert_eq!(done.code, 0, "{done:#?}");
    done.stderr.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}: {done:#?}"))).collect()
}

fn all<'a>(objects: &'a [Value], status: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["status"] == status).collect()
}

/// The last object about everything says that everything has moved.
#[track_caller]
fn assert_all_moved(objects: &[Value]) {
    let detail = &all(objects, "Total").last().unwrap()["progressDetail"];
    assert!(detail["current"].as_u64().is_some_and(|bytes| bytes > 0), "{detail}");
    assert_eq!(detail["current"], detail["total"], "{detail}");
}

#[test]
fn programs_get_an_object_a_line() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let path = |name: &str| home.path(name).to_string_lossy().into_owned();
    let layers: Value =
        serde_json::from_str(&home.ok(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", &busybox()]))
            .unwrap();
    for (format, word) in [("docker-archive", "archive"), ("oci-dir", "layout"), ("docker-dir", "directory")] {
        let saved = objects(&home.run(&["--progress=json", "save", "--format", format, "-o", &path(word), &busybox()]));
        assert_all_moved(&saved);
        // Of directories each blob is told: two layers, the configuration, of a layout the manifest.
        let count = match format {
            "docker-archive" => 1,
            "oci-dir" => 4,
            _ => 3,
        };
        assert_eq!(all(&saved, "Saved").len(), count, "{format}");
        assert_eq!(all(&saved, "Saving").iter().filter(|object| object["digest"].is_string()).count() > 0, count > 1);

        let second = Home::new(&[]).unwrap();
        let done = second.run(&["--progress=json", "load", "-i", &path(word)]);
        let loaded = objects(&done);
        assert!(done.stdout.starts_with("Loaded image") && done.stdout.lines().count() == 1, "{done:#?}");
        assert_all_moved(&loaded);
        assert_eq!(all(&loaded, "Loaded").len(), layers.as_array().unwrap().len(), "{format}");
    }
    // A stream has no end before its end: first it is read, then its layers are.
    let second = Home::new(&[]).unwrap();
    let stream = fs::read(home.path("archive")).unwrap();
    let loaded = objects(&second.run_with_input(&["--progress=json", "load"], &stream));
    let read = all(&loaded, "Loading").into_iter().rfind(|object| object["digest"].is_null()).unwrap();
    assert!(read["progressDetail"]["total"].is_null(), "{read}");
    assert_eq!(all(&loaded, "Loaded").len(), 1 + layers.as_array().unwrap().len());

    home.ok(&["run", "--name", "cc", "--network", "none", &busybox(), "sh", "-c", "echo mine >/mine"]);
    let done = home.run(&["commit", "--progress=json", "cc", "made"]);
    assert!(done.stdout.starts_with("sha256:"), "{done:#?}");
    assert_all_moved(&objects(&done));
    home.ok(&["export", "-o", &path("tree"), "cc"]);
    let done = home.run(&["import", "--progress=json", &path("tree"), "made"]);
    assert!(done.stdout.starts_with("sha256:"), "{done:#?}");
    let imported = objects(&done);
    assert_all_moved(&imported);
    let size = fs::metadata(home.path("tree")).unwrap().len();
    assert_eq!(all(&imported, "Importing").last().unwrap()["progressDetail"]["total"], size);
}

#[test]
fn only_terminals_get_bars_and_only_answers_are_on_standard_output() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let saved = home.path("saved").to_string_lossy().into_owned();
    let bin = home.bin().display();
    let line = |words: &str| format!("TERM=xterm {bin} {words}");
    home.ok(&["run", "--name", "cc", "--network", "none", &busybox(), "sh", "-c", "echo mine >/mine"]);
    for (words, answer) in [
        (format!("save -o {saved} {}", busybox()), ""),
        ("commit cc made".to_owned(), "sha256:"),
        (format!("export cc -o {saved}.tree && TERM=xterm {bin} import {saved}.tree made"), "sha256:"),
    ] {
        let seen = home.on_a_terminal(&line(&words));
        assert!(seen.contains("total       : "), "{words}: {seen:?}");
        let answers = seen.rsplit('\u{1b}').next().unwrap();
        assert!(answers.contains(answer) && !answers.contains("total"), "{words}: {seen:?}");
    }
    let second = Home::new(&[]).unwrap();
    let seen = second.on_a_terminal(&line(&format!("load -i {saved}")));
    assert!(seen.contains("total       : ") && seen.contains("Loaded image: "), "{seen:?}");
    fs::remove_file(&saved).unwrap();
    for words in [
        format!("save -q -o {saved} {}", busybox()),
        format!("load -q -i {saved}"),
        "commit -q cc made".to_owned(),
        format!("import -q {saved}.tree made"),
        // Nothing moves.
        format!("run --rm --network none {} true", busybox()),
    ] {
        let seen = home.on_a_terminal(&line(&words));
        assert!(!seen.contains("total") && !seen.contains('\u{1b}'), "{words}: {seen:?}");
    }
    for words in [&["save", "-o", &saved, &busybox()][..], &["load", "-i", &saved], &["commit", "cc", "made"]] {
        let done = home.run(words);
        assert_eq!((done.code, done.stderr.as_str()), (0, ""), "{words:?}: {done:#?}");
    }
}
