//! `images`: filters, patterns, keys of templates, and what a list reads.

use std::fs;

use crate::support::{Home, busybox, finish};

/// An image of an empty archive, built so many seconds after 1970.
#[track_caller]
pub fn make(home: &Home, name: &str, created_s: u32, label: &str) {
    let mut command = home.command(&["import", "-c", &format!("LABEL {label}"), "-", name]);
    let done = finish(command.env("SOURCE_DATE_EPOCH", created_s.to_string()), &[0; 1024], crate::support::LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
}

/// The names of what is listed with these arguments.
#[track_caller]
fn names(home: &Home, arguments: &[&str]) -> String {
    let mut all = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
    all.extend(arguments);
    home.ok(&all).lines().collect::<Vec<_>>().join(" ")
}

#[test]
fn filters_say_which_images_are_listed() {
    let Some(home) = Home::new(&[]) else { return };
    make(&home, "one:1", 1000, "tier=web");
    make(&home, "one:2", 2000, "tier=db");
    make(&home, "example.org/team/two:1", 3000, "other=x");
    make(&home, "three", 4000, "gone=x");
    // The name moves on, and the image stays without one.
    make(&home, "three", 5000, "tier=");
    let all = "three:latest <none>:<none> example.org/team/two:1 one:2 one:1";
    for (arguments, expected) in [
        (&[][..], all),
        (&["-a"], all),
        (&["one"], "one:2 one:1"),
        (&["one:1"], "one:1"),
        (&["docker.io/library/one"], "one:2 one:1"),
        (&["team/two"], ""),
        (&["*/team/t?o"], "example.org/team/two:1"),
        (&["*"], "three:latest one:2 one:1"),
        (&["-f", "reference=one:[^1]"], "one:2"),
        (&["-f", "reference=one:1", "-f", "reference=three"], "three:latest one:1"),
        (&["three", "--filter", "reference=one:1"], "three:latest one:1"),
        (&["-f", "dangling=true"], "<none>:<none>"),
        (&["-f", "dangling=0"], "three:latest example.org/team/two:1 one:2 one:1"),
        (&["-f", "label=tier"], "three:latest one:2 one:1"),
        (&["-f", "label=tier=db"], "one:2"),
        (&["-f", "label=tier", "-f", "label!=tier=web"], "three:latest one:2"),
        (&["-f", "before=one:2"], "one:1"),
        (&["-f", "since=one:2"], "three:latest <none>:<none> example.org/team/two:1"),
        (&["-f", "since=one:1", "-f", "before=example.org/team/two:1"], "one:2"),
        (&["-f", "until=1970-01-01T00:40:00Z"], "one:2 one:1"),
        (&["-f", "until=1h", "-f", "label=gone"], "<none>:<none>"),
        (&["-f", "readonly=true"], ""),
        (&["-f", "readonly=false", "one:1"], "one:1"),
        (&["-f", "containers=true"], ""),
        (&["-f", "containers=false", "one:1"], "one:1"),
        (&["-f", "reference=none.invalid/none"], ""),
    ] {
        assert_eq!(names(&home, arguments), expected, "{arguments:?}");
    }
    for (filter, words) in [
        ("before=nothing", "No such image: nothing"),
        ("dangling=perhaps", "invalid filter 'dangling=perhaps'"),
        ("colour=red", "invalid filter 'colour'"),
        ("colour", "invalid filter 'colour'"),
        ("reference=[a", "syntax error in pattern '[a'"),
    ] {
        let said = home.fails(1, &["images", "-f", filter]);
        assert!(said.contains(words), "{filter}: {said}");
    }
}

#[test]
fn images_with_containers_are_told_apart_and_counted() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    make(&home, "unused", 1000, "a=b");
    home.ok(&["create", "--name", "one", &busybox(), "true"]);
    assert_eq!(names(&home, &["-f", "containers=true"]), format!("{}:latest", busybox()));
    assert_eq!(names(&home, &["-f", "containers=false"]), "unused:latest");
    // As with Docker who wants no numbers pays for none.
    let rows = home.ok(&["images", "--format", "json"]);
    let row: serde_json::Value = serde_json::from_str(rows.lines().next().unwrap()).unwrap();
    let keys: Vec<&String> = row.as_object().unwrap().keys().collect();
    let expected = [
        "Containers",
        "CreatedAt",
        "CreatedSince",
        "Digest",
        "ID",
        "Repository",
        "SharedSize",
        "Size",
        "Tag",
        "UniqueSize",
        "VirtualSize",
    ];
    assert_eq!(keys, expected);
    assert!(row["Containers"] == "N/A" && row["UniqueSize"] == "N/A" && row["VirtualSize"] == row["Size"], "{row}");
    let counted = home.ok(&["images", "--format", "{{.Repository}} {{.Containers}} {{.SharedSize}}"]);
    assert_eq!(counted, format!("{} 1 0B\nunused 0 0B\n", busybox()));
    let unique = home.ok(&["images", "--format", "{{.UniqueSize}}", &busybox()]);
    assert!(unique.ends_with("B\n") && !unique.starts_with('0'), "{unique}");
    let table = home.ok(&["images", "--digests", "--no-trunc", &busybox()]);
    let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["REPOSITORY", "TAG", "DIGEST", "IMAGE", "ID", "CREATED", "SIZE"]);
    assert_eq!(table.matches("sha256:").count(), 2, "{table}");
}

/// Takes out of all names' records what an earlier version of the program did not write.
fn make_records_old(home: &Home) {
    for file in fs::read_dir(home.store().join("store/refs")).unwrap() {
        let path = file.unwrap().path();
        let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(record.as_object_mut().unwrap().remove("summary").is_some(), "{}", path.display());
        fs::write(&path, record.to_string()).unwrap();
    }
}

#[test]
fn records_say_what_documents_say() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    make(&home, "one:1", 1000, "a=b");
    make(&home, "one:2", 2000, "a=b");
    home.ok(&["tag", "one:1", "other"]);
    // The name moves on, and the image stays without one.
    home.ok(&["tag", "one:1", "one:2"]);
    home.ok(&["untag", "other", "other"]);
    let lists = |home: &Home| {
        [
            home.ok(&["images", "--no-trunc", "--format", "json"]),
            home.ok(&["images", "-f", "since=one:1", "--format", "{{.ID}} {{.CreatedAt}} {{.Size}}"]),
            home.ok(&["images", "-f", "label=a=b", "--format", "{{.ID}} {{.CreatedAt}} {{.Size}}"]),
            home.ok(&["inspect", "--format", "{{.Size}} {{.Created}}", &busybox()]),
        ]
    };
    let new = lists(&home);
    assert_eq!(new.each_ref().map(|list| list.lines().count()), [4, 2, 3, 1], "{new:#?}");
    assert!(new[1].contains("1970-01-01 00:33:20 +0000 UTC 30B"), "{new:#?}");
    make_records_old(&home);
    assert_eq!(lists(&home), new);
}

#[test]
fn a_list_reads_no_document_but_of_old_records() {
    let Some(home) = Home::new(&[]) else { return };
    make(&home, "one", 1000, "a=b");
    let remove = |name: &str, key: &str| {
        let digest = home.ok(&["images", "--no-trunc", "--format", key, name]);
        let hex = digest.trim_end().trim_start_matches("sha256:").to_owned();
        fs::remove_file(home.store().join(format!("store/blobs/sha256/{}/{hex}", &hex[..2]))).unwrap();
    };
    remove("one", "{{.Digest}}");
    let whole = home.run(&["images"]);
    assert!(whole.stderr.is_empty() && whole.stdout.contains("one"), "{whole:#?}");
    make_records_old(&home);
    let done = home.run(&["images"]);
    assert!(done.stderr.contains("cannot be shown") && !done.stdout.contains("one"), "{done:#?}");
    for arguments in [&["images", "-q"][..], &["images", "--format", "{{.Repository}}"]] {
        let done = home.run(arguments);
        assert!(done.stderr.is_empty() && done.stdout.lines().count() == 1, "the size alone is not known: {done:#?}");
    }
    make(&home, "two", 1000, "a=b");
    remove("two", "{{.Digest}}");
    remove("two", "{{.ID}}");
    let whole = home.run(&["images", "two"]);
    assert!(whole.stderr.is_empty() && whole.stdout.contains("two"), "{whole:#?}");
}
