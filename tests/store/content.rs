//! `content` and `lease`: a look into the store, and no harm without `-f`.

use crate::support::Home;
use crate::{assert_sound, image, layer, serve};

#[test]
fn contents_are_listed_read_put_and_removed() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let image = image("a", &[1]);
    let blob = fixture::image::digest(&layer(1).gzip);
    let rows = home.ok(&["content", "ls", "--format", "{{.Kind}} {{.Digest}}"]);
    for row in [format!("manifest {}\n", image.digest()), format!("layer {blob}\n"), "config sha256:".to_owned()] {
        assert!(rows.contains(&row), "{rows}");
    }
    assert_eq!((rows.lines().count(), home.ok(&["content", "ls", "-aq"]).lines().count()), (3, 7), "{rows}");
    let head = home.ok(&["content", "ls"]);
    assert!(head.lines().next().unwrap().split_whitespace().eq(["DIGEST", "KIND", "SIZE", "USED"]), "{head}");
    assert_eq!(home.ok(&["content", "get", &image.digest()]).into_bytes(), image.manifest);
    assert_eq!(home.ok(&["content", "get", &image.digest()[..19]]).into_bytes(), image.manifest);
    let said = home.fails(1, &["content", "rm", &blob]);
    assert!(said.contains(&format!("it is needed by image {name}:latest")), "{said}");
    let put = home.run_with_input(&["content", "put"], b"new\n");
    let digest = fixture::image::digest(b"new\n");
    assert_eq!(put.stdout, format!("{digest}\n"), "{put:#?}");
    let put = home.run_with_input(&["content", "put", "--digest", &blob], b"other\n");
    assert!(put.code == 1 && put.stderr.contains("the content of sha256:"), "{put:#?}");
    assert_eq!(home.ok(&["content", "rm", &digest]), format!("{digest}\n"));
    for wrong in ["content get nothing", "content get sha256:abcd", "content rm abcdef", "content verify 0123456789"] {
        home.fails(1, &wrong.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(home.ok(&["content", "verify", &blob]), format!("{blob}: ok\n"));
    assert_eq!(home.ok(&["content", "verify"]).matches(": ok\n").count(), 3);
    home.ok(&["content", "rm", "-f", &blob]);
    assert_sound(&home, "without a blob that no container needs");
}

#[test]
fn leases_are_seen_while_a_command_is_at_work() {
    let Some(home) = Home::new(&[]) else { return };
    let image = image("a", &[1]);
    let path = format!("/v2/a/blobs/{}", fixture::image::digest(&layer(1).gzip));
    let mut answers = crate::support::http::registry_of("a", &image);
    // Until the pull is killed.
    answers.get_mut(&path).unwrap().stall = crate::support::LIMIT;
    let server = crate::support::http::Server::start(answers);
    assert_eq!(home.ok(&["lease", "ls", "-q"]), "");
    let mut pull = crate::support::start(&mut home.command(&["pull", &format!("{}/a", server.address)]));
    let pid = pull.id().to_string();
    let leases = || home.ok(&["lease", "ls", "--format", "{{.PID}} {{.Pins}} {{.State}}"]);
    crate::support::eventually("the pull has pinned its image", || leases() == format!("{pid} 4 active\n"));
    let name = home.ok(&["lease", "ls", "-q"]).trim().to_owned();
    let said = home.fails(1, &["lease", "rm", &name]);
    assert!(said.contains("is at work") && said.contains(&pid), "{said}");
    assert!(home.ok(&["image", "prune", "-f"]).contains("0B"), "a prune leaves what the pull works on");
    let pinned = home.run_with_input(&["content", "put"], &image.manifest).stdout.trim().to_owned();
    let said = home.fails(1, &["content", "rm", &pinned]);
    assert!(said.contains(&format!("it is needed by process {pid}, which is at work")), "{said}");
    let new = home.run_with_input(&["content", "put"], b"new").stdout.trim().to_owned();
    let said = home.fails(1, &["content", "rm", &new]);
    assert!(said.contains("it came while a command is at work"), "{said}");
    home.ok(&["content", "rm", "-f", &new]);
    pull.kill().unwrap();
    pull.wait().unwrap();
    assert_eq!(leases(), format!("{pid} 4 dead\n"));
    assert_eq!(home.ok(&["lease", "rm", &name]), format!("{name}\n"));
    home.fails(1, &["lease", "rm", &name]);
}
