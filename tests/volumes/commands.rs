//! `volume` and its words, `rm -v`, `system df` and `system prune --volumes`.

use serde_json::{Value, json};

use crate::support::{Home, busybox};

fn names(home: &Home) -> Vec<String> {
    home.ok(&["volume", "ls", "-q"]).lines().map(str::to_owned).collect()
}

#[test]
fn a_volume_is_made_listed_inspected_and_removed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.ok(&["volume", "ls"]), "DRIVER    VOLUME NAME\n");
    assert_eq!(home.ok(&["volume", "create", "--label", "tier=web", "--label", "bare", "data"]), "data\n");
    // As in Docker, what is there is the answer.
    assert_eq!(home.ok(&["volume", "create", "data"]), "data\n");
    let anonymous = home.ok(&["volume", "create"]).trim().to_owned();
    assert!(anonymous.len() == 64 && anonymous.bytes().all(|byte| byte.is_ascii_hexdigit()), "{anonymous}");
    let found: Value = serde_json::from_str(&home.ok(&["volume", "inspect", "data"])).unwrap();
    let mountpoint = found[0]["Mountpoint"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&mountpoint).is_dir(), "{mountpoint}");
    let created = found[0]["CreatedAt"].as_str().unwrap();
    let wanted = json!([{
        "CreatedAt": created, "Driver": "local", "Labels": {"bare": "", "tier": "web"}, "Mountpoint": mountpoint,
        "Name": "data", "Options": null, "Scope": "local",
    }]);
    assert_eq!(found, wanted);
    assert_eq!(home.ok(&["volume", "inspect", "-f", "{{.Name}} {{.Labels.tier}}", "data"]), "data web\n");
    assert_eq!(home.ok(&["inspect", "-f", "{{.Mountpoint}}", "data"]).trim_end(), mountpoint);
    for (filter, count) in [
        ("label=tier", 1),
        ("label=tier=web", 1),
        ("label=tier=db", 0),
        ("name=at", 1),
        ("driver=local", 2),
        ("driver=nfs", 0),
        ("dangling=true", 2),
        ("dangling=0", 0),
    ] {
        let listed = home.ok(&["volume", "ls", "-q", "--filter", filter]);
        assert_eq!(listed.lines().count(), count, "{filter}: {listed}");
    }
    let listed = home.ok(&["volume", "ls", "--format", "{{.Driver}} {{.Name}} {{.Scope}} {{.Label \"tier\"}}"]);
    assert!(listed.contains("local data local web\n"), "{listed}");
    assert_eq!(home.run(&["volume", "exists", "data"]).code, 0);
    assert_eq!(home.run(&["volume", "exists", "nothing"]).code, 1);
    assert_eq!(home.ok(&["volume", "rm", "data", &anonymous]), format!("data\n{anonymous}\n"));
    assert_eq!(names(&home), [""; 0]);
    let said = home.fails(1, &["volume", "rm", "data"]);
    assert!(said.contains("get data: no such volume"), "{said}");
    assert_eq!(home.ok(&["volume", "rm", "-f", "data"]), "data\n");
    let done = home.run(&["volume", "inspect", "data"]);
    assert_eq!((done.code, done.stdout.as_str()), (1, "[]\n"), "{done:#?}");
    assert!(done.stderr.contains("get data: no such volume"), "{done:#?}");
}

#[test]
fn what_is_no_volume_is_refused_in_dockers_words() {
    let Some(home) = Home::new(&[]) else { return };
    for (arguments, words) in [
        (vec!["volume", "create", "a/b"], "includes invalid characters for a local volume name"),
        (vec!["volume", "create", "../../x"], "includes invalid characters for a local volume name"),
        (vec!["volume", "create", ".gone-x"], "includes invalid characters for a local volume name"),
        (vec!["volume", "create", "a"], "volume name is too short"),
        (vec!["volume", "create", "-d", "nfs", "ab"], "plugin \"nfs\" not found"),
        (vec!["volume", "create", "-o", "size=1g", "ab"], "invalid option: \"size\""),
        (vec!["volume", "create", "-o", "type=nfs", "-o", "o=addr=1", "-o", "device=:/x", "ab"], "mounted by root"),
        (vec!["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=x", "ab"], "no absolute path"),
        (vec!["volume", "create", "--name", "ab", "cd"], "conflicting options"),
        (vec!["volume", "rm", "../containers"], "no such volume"),
        (vec!["volume", "ls", "--filter", "colour=red"], "invalid filter"),
        (vec!["volume", "prune", "-f", "--filter", "all=perhaps"], "invalid filter"),
    ] {
        let said = home.fails(1, &arguments);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(names(&home), [""; 0]);
}

#[test]
fn a_volume_stays_while_a_container_has_it() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    home.ok(&["run", "--name", "user", "-v", "data:/data", &image, "sh", "-c", "echo kept >/data/file"]);
    let id = home.inspect("user", "{{.Id}}");
    let said = home.fails(1, &["volume", "rm", "-f", "data"]);
    assert!(said.contains(&format!("remove data: volume is in use - [{id}]")), "{said}");
    assert_eq!(home.ok(&["volume", "prune", "-af"]), "Total reclaimed space: 0B\n");
    // A named volume outlives its containers, also with -v.
    home.ok(&["rm", "-v", "user"]);
    assert_eq!(
        home.sh(&["-v", "data:/data:ro"], "cat /data/file; touch /data/x 2>/dev/null || echo refused"),
        "kept\nrefused\n"
    );
    assert!(home.ok(&["volume", "prune", "-af"]).starts_with("Deleted Volumes:\ndata\n\nTotal reclaimed space: "));
    assert_eq!(names(&home), [""; 0]);
}

#[test]
fn anonymous_volumes_go_with_their_container_where_asked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    home.ok(&["run", "--rm", "-v", "/data", &image, "sh", "-c", "echo x >/data/file"]);
    assert_eq!(names(&home), [""; 0], "--rm takes it along");
    for name in ["kept", "gone"] {
        home.ok(&["run", "--name", name, "-v", "/data", &image, "sh", "-c", "echo x >/data/file"]);
    }
    assert_eq!(names(&home).len(), 2);
    let volume = home.inspect("kept", "{{(index .Mounts 0).Name}}");
    assert_eq!(home.inspect("kept", "{{(index .Mounts 0).Type}} {{(index .Mounts 0).Driver}}"), "volume local");
    // Another container that has it keeps it.
    home.ok(&["run", "--name", "other", "--volumes-from", "gone", &image, "cat", "/data/file"]);
    home.ok(&["rm", "-v", "gone"]);
    assert_eq!(names(&home).len(), 2);
    home.ok(&["rm", "-v", "other"]);
    home.ok(&["rm", "kept"]);
    assert!(names(&home).contains(&volume));
    home.ok(&["volume", "create", "named"]);
    let said = home.ok(&["system", "prune", "-f", "--volumes"]);
    assert!(said.contains("Deleted Volumes:\n") && said.contains(&volume), "{said}");
    assert_eq!(names(&home), ["named"]);
    assert_eq!(
        home.run_with_input(&["volume", "prune", "-a"], b"n\n").stdout.lines().next().unwrap(),
        "WARNING! This will remove all local volumes not used by at least one container."
    );
    assert!(home.run_with_input(&["volume", "prune"], b"y\n").stdout.contains("anonymous local volumes"));
    assert_eq!(names(&home), ["named"]);
}

#[test]
fn df_counts_them() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    home.ok(&[
        "run",
        "--name",
        "user",
        "-v",
        "data:/data",
        "-v",
        "/more",
        &image,
        "dd",
        "if=/dev/zero",
        "of=/data/f",
        "bs=64k",
        "count=16",
    ]);
    home.ok(&["volume", "create", "idle"]);
    let total = |key: &str| {
        home.ok(&[
            "system",
            "df",
            "--format",
            &format!("{{{{if eq .Type \"Local Volumes\"}}}}{{{{.{key}}}}}{{{{end}}}}"),
        ])
        .trim()
        .to_owned()
    };
    assert_eq!((total("TotalCount"), total("Active")), ("3".to_owned(), "2".to_owned()));
    let all: Value = serde_json::from_str(&home.ok(&["system", "df", "-v", "--format", "json"])).unwrap();
    let volumes = all["Volumes"].as_array().unwrap();
    let one = |name: &str| volumes.iter().find(|volume| volume["Name"] == name).unwrap();
    assert_eq!((one("data")["Links"].as_str(), one("idle")["Links"].as_str()), (Some("1"), Some("0")));
    assert!(one("data")["SizeBytes"].as_str().unwrap().parse::<u64>().unwrap() >= 1 << 20, "{volumes:?}");
    assert_eq!(all["Containers"][0]["LocalVolumes"], "2");
}

#[test]
fn a_volume_may_be_a_directory_of_the_host() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let place = home.path("place");
    std::fs::create_dir(&place).unwrap();
    let device = format!("device={}", place.display());
    home.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "here"]);
    home.sh(&["-v", "here:/data"], "echo x >/data/file");
    assert_eq!(std::fs::read_to_string(place.join("file")).unwrap(), "x\n");
    home.ok(&["volume", "rm", "here"]);
    assert!(place.join("file").exists());
    // Our own directories are no place for one.
    let device = format!("device={}", home.store().display());
    let way_out = format!("device={}/ours/_data/../../..", crate::machine(&home).join("volumes").display());
    for (name, device) in [("ours", device), ("way", way_out)] {
        home.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, name]);
        let said = home.fails(125, &["run", "--rm", "-v", &format!("{name}:/data"), &busybox(), "true"]);
        assert!(said.contains("sublet's own data directory"), "{said}");
    }
    // A part of what holds them could lead there.
    let device = format!("device={}", home.directory.display());
    home.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &device, "above"]);
    let said = home.fails(125, &["run", "--rm", "--mount", "src=above,dst=/d,volume-subpath=x", &busybox(), "true"]);
    assert!(said.contains("of which a part is wanted"), "{said}");
}
