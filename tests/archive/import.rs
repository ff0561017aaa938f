//! `import` from web addresses, and archives that are compressed as layers never are.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::http::{Answer, Asked, Server};
use crate::support::tar::{Entry, archive};
use crate::support::{Home, LIMIT, busybox, finish, identity, skip};

/// Bytes through a program of the host; `None` (and the skip is noted) where it is missing.
fn through(program: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program[0]).args(&program[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        skip(&format!("{} is not installed", program[0]));
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success());
    Some(output.stdout)
}

fn small() -> Vec<u8> {
    archive(&[Entry { path: "hello", content: b"hello\n", ..Entry::default() }])
}

fn layers(home: &Home, name: &str) -> Value {
    serde_json::from_str(&home.ok(&["image", "inspect", "--format", "{{json .RootFS.Layers}}", name])).unwrap()
}

#[test]
fn an_archive_is_fetched_from_a_web_address() {
    let Some(home) = Home::new(&[]) else { return };
    let tar = small();
    fs::write(home.path("small.tar"), &tar).unwrap();
    home.ok(&["import", &home.path("small.tar").to_string_lossy(), "local"]);
    let server = Server::answering(move |asked: &Asked| {
        assert_eq!(asked.header("authorization"), "");
        let whole = || Answer::ok("application/x-tar", &tar);
        match asked.path.as_str() {
            "/root.tar" | "/root.tar?token=secret" => whole(),
            "/moved" => Answer::refused(302, "").with("Location", "/root.tar"),
            "/away" => Answer::refused(302, "").with("Location", "file:///etc/passwd"),
            "/cut" => Answer { send_bytes: 600, ..whole() },
            // Behind the end of the archive there is more, which never comes: it is not all of what was announced.
            "/short" => Answer { send_bytes: tar.len(), body: [&tar[..], &[0; 4096]].concat(), ..whole() },
            "/login" => Answer::refused(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
            _ => Answer::refused(404, "none"),
        }
    });
    let url = |path: &str| format!("http://{}{path}", server.address);
    fs::create_dir_all(home.path(".docker")).unwrap();
    let known =
        serde_json::json!({ "auths": { server.address.to_string(): { "username": "me", "password": "secret" } } });
    fs::write(home.path(".docker/config.json"), known.to_string()).unwrap();
    for path in ["/root.tar", "/moved"] {
        let id = home.ok(&["import", &url(path), "fetched"]);
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(layers(&home, "fetched"), layers(&home, "local"));
    }
    let message = home.ok(&["history", "--format", "{{.Comment}}", "fetched"]);
    assert_eq!(message, format!("Imported from {}\n", url("/moved")));
    // Of an address that says who may have it.
    home.ok(&["import", &url("/root.tar?token=secret"), "fetched"]);
    let message = home.ok(&["history", "--format", "{{.Comment}}", "fetched"]);
    assert_eq!(message, format!("Imported from {}\n", url("/root.tar")));
    let progress = home.run(&["import", "--progress=json", &url("/root.tar"), "fetched"]).stderr;
    assert!(progress.contains(&format!("\"total\":{}", small().len())), "{progress}");
    for (path, why) in [
        ("/cut", "cannot import the archive"),
        ("/short", "cannot import the archive"),
        ("/none", "status 404"),
        ("/login", "status 401"),
        ("/away", "no web address"),
    ] {
        let said = home.fails(1, &["import", &url(path), "broken"]);
        assert!(said.contains(why), "{path}: {said}");
    }
    assert_eq!(home.run(&["image", "exists", "broken"]).code, 1);
    let said = home.fails(1, &["import", &format!("http://me:secret@{}/root.tar", server.address), "broken"]);
    assert!(said.contains("it names a user") && !said.contains("secret"), "{said}");
    let said = home.fails(1, &["--offline", "import", &url("/root.tar"), "broken"]);
    assert!(said.contains("offline"), "{said}");
    home.fails(1, &["import", "http://127.0.0.1:1/root.tar", "broken"]);
}

#[test]
fn archives_are_unpacked_however_they_are_compressed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let tar = small();
    fs::write(home.path("small.tar"), &tar).unwrap();
    home.ok(&["import", &home.path("small.tar").to_string_lossy(), "plain"]);
    let saved = home.path("saved.tar");
    home.ok(&["save", "-o", &saved.to_string_lossy(), &busybox()]);
    let image = fs::read(&saved).unwrap();
    for program in
        [&["bzip2"][..], &["xz", "-9", "-T2"], &["xz", "--check=sha256", "--x86", "--lzma2"], &["gzip"], &["zstd"]]
    {
        let (Some(packed), Some(packed_image)) = (through(program, &tar), through(program, &image)) else { continue };
        // Several streams behind each other are one file, as who compresses on several processors writes it.
        let (half, rest) = tar.split_at(512);
        let several = [through(program, half).unwrap(), through(program, rest).unwrap()].concat();
        for (what, bytes) in [("one", packed), ("several", several)] {
            let done = home.run_with_input(&["import", "-", "packed"], &bytes);
            assert_eq!(done.code, 0, "{program:?} {what}: {done:#?}");
            assert_eq!(layers(&home, "packed"), layers(&home, "plain"), "{program:?} {what}");
        }
        let second = Home::new(&[]).unwrap();
        let done = second.run_with_input(&["load"], &packed_image);
        assert_eq!(done.code, 0, "{program:?}: {done:#?}");
        let path = second.path("packed");
        fs::write(&path, &packed_image).unwrap();
        let loaded = second.ok(&["load", "-i", &path.to_string_lossy()]);
        assert_eq!(loaded, format!("Loaded image: {}:latest\n", busybox()), "{program:?}");
        assert_eq!(layers(&second, &busybox()), layers(&home, &busybox()), "{program:?}");
        // What is cut is no archive.
        fs::write(&path, &packed_image[..packed_image.len() / 2]).unwrap();
        second.fails(1, &["load", "-i", &path.to_string_lossy()]);
    }
}

/// As a layer it would be compressed twice: an image that nobody could pull, or save and load.
#[test]
fn what_is_compressed_twice_is_refused_by_name() {
    let Some(home) = Home::new(&[]) else { return };
    for inner in ["gzip", "zstd", "bzip2", "xz"] {
        for outer in ["bzip2", "xz"] {
            let Some(once) = through(&[inner], &small()) else { continue };
            let Some(twice) = through(&[outer], &once) else { continue };
            let done = home.run_with_input(&["import", "-", "twice"], &twice);
            let why = format!("compressed twice: what comes out of it is {inner}");
            assert!(done.code == 1 && done.stderr.contains(&why) && done.stderr.contains("hint: "), "{done:#?}");
        }
        for outer in ["gzip", "zstd"] {
            let Some(once) = through(&[inner], &small()) else { continue };
            let Some(twice) = through(&[outer], &once) else { continue };
            assert_eq!(home.run_with_input(&["import", "-", "twice"], &twice).code, 1, "{inner} in {outer}");
        }
    }
    assert_eq!(home.run(&["image", "exists", "twice"]).code, 1);
}

/// A layer that is compressed so is no layer: other engines would not know it either.
#[test]
fn layers_that_are_compressed_so_are_refused_by_name() {
    let Some(home) = Home::new(&[]) else { return };
    for program in ["bzip2", "xz"] {
        let Some(packed) = through(&[program], &small()) else { continue };
        let digest = fixture::image::digest(&small());
        let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest] } });
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["odd:1"], "Layers": ["layer.tar"] }]);
        let (config, manifest) = (config.to_string(), manifest.to_string());
        let file = |path, content| Entry { path, content, ..Entry::default() };
        let image = archive(&[
            file("config.json", config.as_bytes()),
            file("manifest.json", manifest.as_bytes()),
            file("layer.tar", &packed),
        ]);
        let done = home.run_with_input(&["load"], &image);
        let why = format!("the layer is compressed with {program}, for which images have no media type");
        assert!(done.code == 1 && done.stderr.contains(&why) && done.stderr.contains("hint: "), "{done:#?}");
    }
}

/// What an image says reaches no terminal as a sequence that it obeys.
#[test]
fn an_image_cannot_speak_to_the_terminal() {
    let Some(home) = Home::new(&[]) else { return };
    let tar = small();
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": {},
        "history": [{ "created_by": "\u{1b}]0;mine\u{7}\n", "comment": "\u{9b}2J" }],
        "rootfs": { "type": "layers", "diff_ids": [fixture::image::digest(&tar)] } });
    let image = |layer: &str| {
        let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["loud:1"], "Layers": [layer] }]);
        let file = |path, content| Entry { path, content, ..Entry::default() };
        let (config, manifest) = (config.to_string(), manifest.to_string());
        archive(&[
            file("config.json", config.as_bytes()),
            file("manifest.json", manifest.as_bytes()),
            file("layer.tar", &tar),
        ])
    };
    let done = home.run_with_input(&["load"], &image("\u{1b}[2J"));
    assert!(done.code == 1 && done.stderr.contains("\\u{1b}[2J is missing"), "{done:#?}");
    assert!(!done.stderr.contains('\u{1b}'), "{done:#?}");
    assert_eq!(home.run_with_input(&["load"], &image("layer.tar")).code, 0);
    let table = home.ok(&["history", "--no-trunc", "loud:1"]);
    assert!(table.contains("\\u{1b}]0;mine\\u{7}\\n") && table.contains("\\u{9b}2J"), "{table}");
    assert!(!table.chars().any(|character| character.is_control() && character != '\n'), "{table:?}");
    // A template gives what is there.
    assert_eq!(home.ok(&["history", "--format", "{{json .Comment}}", "loud:1"]), "\"\u{9b}2J\"\n");
}

/// A user at the limit of processes, which counts threads, gets an error or what was asked for, and never an abort.
#[test]
fn without_threads_an_import_fails_and_a_removal_is_slower() {
    let Some(home) = Home::new(&[]) else { return };
    if identity() == "root" {
        return skip("root has no limit of processes");
    }
    let contents: Vec<(String, Vec<u8>)> =
        (0..400_u32).map(|number| (format!("f{number}"), number.to_le_bytes().repeat(20_000))).collect();
    let entries: Vec<Entry<'_>> =
        contents.iter().map(|(path, content)| Entry { path, content, ..Entry::default() }).collect();
    fs::write(home.path("many.tar"), archive(&entries)).unwrap();
    let limited = |arguments: &[&str]| {
        let mut command = Command::new("bash");
        command.args(["-c", "ulimit -u 1; exec \"$@\"", "bash"]).arg(home.bin()).args(arguments);
        home.surround(&mut command);
        finish(&mut command, b"", LIMIT)
    };
    let done = limited(&["import", "many.tar", "many"]);
    assert!(done.code == 1 && done.stderr.contains("cannot start a thread to read the layer"), "{done:#?}");
    assert!(done.stderr.contains("hint: see the limit on your processes"), "{done:#?}");
    home.ok(&["import", "many.tar", "many"]);
    let done = limited(&["rmi", "many"]);
    assert_eq!(done.code, 0, "{done:#?}");
    home.ok(&["system", "prune", "-af"]);
    assert_eq!(home.ok(&["content", "ls", "-aq"]), "");
}
