//! Spec files of devices that are broken, contradict each other, or ask for what must not be.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::{Home, busybox, identity};

const GOOD: &str = r#"{"cdiVersion":"0.6.0","kind":"vendor.com/device",
    "devices":[{"name":"good","containerEdits":{"env":["GOOD=1"]}}]}"#;

/// A directory with these spec files.
fn directory(home: &Home, files: &[(&str, &str)]) -> PathBuf {
    let directory = home.path("cdi");
    fs::create_dir_all(&directory).unwrap();
    for (name, text) in files {
        fs::write(directory.join(name), text).unwrap();
    }
    directory
}

/// What is said of a device that cannot be had; no image is asked for before.
fn refusal(home: &Home, directory: &str, device: &str) -> String {
    let arguments = ["--cdi-spec-dir", directory, "run", "--rm", "--device", device, "127.0.0.1:1/none", "true"];
    let said = home.fails(125, &arguments);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    said
}

#[test]
fn an_unknown_device_names_those_that_are_there() {
    let Some(home) = Home::new(&[]) else { return };
    let place = directory(&home, &[("a.json", GOOD)]);
    let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=other");
    assert!(said.contains("there is no device vendor.com/device=other"), "{said}");
    assert!(said.contains("hint: the devices are vendor.com/device=good"), "{said}");
    let said = refusal(&home, "/nowhere", "vendor.com/device=good");
    assert!(said.contains("in the spec files of /nowhere") && said.contains("--cdi-spec-dir"), "{said}");
}

#[test]
fn a_broken_spec_file_is_named_with_the_reason_and_spares_the_others() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let twice =
        GOOD.replace("\"devices\":[", "\"devices\":[{\"name\":\"good\",\"containerEdits\":{\"env\":[\"A=1\"]}},");
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, reason) in [
        ("{", "EOF while parsing"),
        ("", "EOF while parsing"),
        (nested.as_str(), "it is no CDI spec file"),
        (&GOOD.replace("0.6.0", "9.0.0"), "its cdiVersion is \"9.0.0\""),
        (&GOOD.replace("0.6.0", "v0.6"), "its cdiVersion is \"v0.6\""),
        (&GOOD.replace("vendor.com/device", "../../etc"), "is no vendor"),
        (&GOOD.replace("\"good\"", "\"../good\""), "is no device name"),
        (&GOOD.replace("GOOD=1", "GOOD"), "is no environment variable"),
        (&GOOD.replace("\"env\"", "\"environment\""), "unknown field `environment`"),
        (&twice, "two devices \"good\""),
    ] {
        let place = directory(&home, &[("bad.json", text)]);
        let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=good");
        assert!(said.contains("bad.json: ") && said.contains(reason), "{reason}: {said}");
    }
    let place = directory(&home, &[("good.json", GOOD), ("other.yaml", "cdiVersion: [0.6.0")]);
    let image = busybox();
    let options = ["--cdi-spec-dir", place.to_str().unwrap(), "run", "--rm", "--device", "vendor.com/device=good"];
    let done = home.run(&[options.as_slice(), &[&image, "sh", "-c", "echo $GOOD"]].concat());
    assert_eq!((done.code, done.stdout.as_str()), (0, "1\n"), "{done:#?}");
    for (file, reason) in [("bad.json", "two devices"), ("other.yaml", "it is no CDI spec file in YAML")] {
        let lines: Vec<&str> = done.stderr.lines().filter(|line| line.contains(file)).collect();
        assert!(lines.len() == 1 && lines[0].starts_with("warning: CDI: ") && lines[0].contains(reason), "{done:#?}");
    }
}

#[test]
fn two_files_with_one_device_are_a_conflict_and_a_later_directory_decides() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let place = directory(&home, &[("a.json", GOOD), ("b.json", &GOOD.replace("GOOD=1", "GOOD=2"))]);
    let place = place.to_str().unwrap();
    let said = refusal(&home, place, "vendor.com/device=good");
    assert!(said.contains("is in two spec files") && said.contains("a.json") && said.contains("b.json"), "{said}");
    let later = home.path("later");
    fs::create_dir(&later).unwrap();
    fs::write(later.join("c.json"), GOOD.replace("GOOD=1", "GOOD=3")).unwrap();
    let options =
        ["--cdi-spec-dir", place, "--cdi-spec-dir", later.to_str().unwrap(), "--device", "vendor.com/device=good"];
    assert_eq!(home.sh(&options, "echo $GOOD"), "3\n");
}

#[test]
fn what_cannot_be_read_is_not_waited_for() {
    let Some(home) = Home::new(&[]) else { return };
    let place = directory(&home, &[]);
    nix::unistd::mkfifo(&place.join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=good");
    assert!(said.contains("pipe.json: it is no regular file"), "{said}");
    fs::write(place.join("large.json"), vec![b' '; 5 << 20]).unwrap();
    let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=good");
    assert!(said.contains("large.json: it is larger than 4 MiB"), "{said}");
    if identity() != "root" {
        fs::set_permissions(&place, fs::Permissions::from_mode(0o000)).unwrap();
        let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=good");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o700)).unwrap();
        assert!(said.contains("Permission denied"), "{said}");
    }
}

#[test]
fn edits_that_cannot_be_made_are_refused_by_name() {
    let Some(home) = Home::new(&[]) else { return };
    let edits = |edits: &str| GOOD.replace("0.6.0", "1.1.0").replace(r#""env":["GOOD=1"]"#, edits);
    for (text, reason) in [
        (edits(r#""intelRdt":{"closID":"x"}"#), "has intelRdt: "),
        (edits(r#""netDevices":[{"hostInterfaceName":"a","name":"b"}]"#), "has netDevices: "),
        (edits(r#""deviceNodes":[{"path":"/dev/none-of-these"}]"#), "lstat(\"/dev/none-of-these\")"),
        (edits(r#""deviceNodes":[{"path":"/dev/x","hostPath":"/etc/passwd"}]"#), "/etc/passwd is not a device"),
        (
            edits(r#""deviceNodes":[{"path":"/dev/full","type":"b","major":1,"minor":7}]"#),
            "has the type c, and its spec file says type b",
        ),
        (edits(r#""deviceNodes":[{"path":"/dev/full","type":"c","major":1,"minor":9}]"#), "has the number 1:7"),
    ] {
        let place = directory(&home, &[("a.json", &text)]);
        let said = refusal(&home, place.to_str().unwrap(), "vendor.com/device=good");
        assert!(said.contains(reason), "{reason}: {said}");
    }
    for name in ["vendor.com/device=", "vendor.com/=x", "/=x/=", "vendor.com/device=../x", "vendor.com/device=a b"] {
        refusal(&home, "/nowhere", name);
    }
}

/// Our own directories stay closed, whoever asks for them; a source that is not there is told.
#[test]
fn mounts_of_a_spec_file_have_the_same_bounds_as_volumes() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for (source, reason) in [(home.store(), "sublet's own"), (home.path("none"), "No such file or directory")] {
        let mount = format!(r#""mounts":[{{"hostPath":"{}","containerPath":"/in"}}]"#, source.display());
        let place = directory(&home, &[("a.json", &GOOD.replace(r#""env":["GOOD=1"]"#, &mount))]);
        let options = ["--cdi-spec-dir", place.to_str().unwrap(), "run", "--rm", "--device", "vendor.com/device=good"];
        let said = home.fails(125, &[options.as_slice(), &[&busybox(), "true"]].concat());
        assert!(said.contains(reason), "{said}");
    }
}
