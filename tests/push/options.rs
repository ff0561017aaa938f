//! Options of Podman's and Docker's of pushes and pulls.

use std::fs;

use fixture::memory_registry::{Features, MemoryRegistry};

use crate::support::Home;
use crate::{at, image_for};

#[test]
fn an_image_goes_to_a_name_that_is_not_its_own() {
    let Some(home) = Home::new(&[]) else { return };
    let (from, to) = (MemoryRegistry::start(Features::default()), MemoryRegistry::start(Features::default()));
    let image = image_for("amd64", &[b"lower", b"upper"]);
    from.put_image("base/app", "1", &image);
    let name = at(&from, "base/app:1");
    home.ok(&["pull", &name]);
    let id = home.inspect(&name, "{{.Id}}");
    home.ok(&["tag", &name, "short"]);
    let digest_file = home.path("digest");
    let digest_file = digest_file.to_str().unwrap();
    for (number, source) in [name.as_str(), "short", &id, &id["sha256:".len()..][..12]].into_iter().enumerate() {
        let place = format!("team/app-{number}");
        let pushed = at(&to, &place);
        // A tag is added where there is none, and the word of the transport may stand before it.
        let (given, tag) =
            if number % 2 == 0 { (format!("docker://{pushed}:x"), "x") } else { (pushed.clone(), "latest") };
        let said = home.ok(&["push", "--digestfile", digest_file, "--disable-content-trust", source, &given]);
        assert!(said.contains(&format!("The push refers to repository [{pushed}]\n")), "{said}");
        assert!(said.contains(&format!("{tag}: digest: {} size: ", image.digest())), "{said}");
        assert_eq!(to.manifest(&place, tag).unwrap(), image.manifest);
        assert_eq!(fs::read_to_string(digest_file).unwrap(), image.digest());
        assert_eq!(home.ok(&["push", "-q", source, &given]), format!("{pushed}:{tag}\n"));
    }
    // Nothing has got a name here.
    assert_eq!(home.ok(&["images", "-q"]).lines().count(), 1);
    assert_eq!(home.ok(&["images", "--format", "{{.Repository}}"]).lines().count(), 2);
    for (arguments, code, words) in [
        (&["nothing", "127.0.0.1:1/x"][..], 1, "No such image: nothing"),
        (&["short", "127.0.0.1:1/UPPER"], 1, "invalid reference format"),
        (&["short", &format!("127.0.0.1:1/x@{}", image.digest())], 1, "cannot push a digest reference"),
        (&["-a", "short", "127.0.0.1:1/x"], 1, "cannot be used with"),
        (&["short", "dir:/tmp/x"], 1, "images go to registries"),
        (&["-a", "--digestfile", "x", "short"], 1, "each tag has its own"),
        (&["--disable-content-trust=false", "short"], 1, "Docker Content Trust"),
    ] {
        let said = home.fails(code, &[&["push"], arguments].concat());
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}

#[test]
fn what_was_evicted_goes_to_another_name_too() {
    let Some(home) = Home::new(&[]) else { return };
    let (from, to) = (MemoryRegistry::start(Features::default()), MemoryRegistry::start(Features::default()));
    let image = image_for("amd64", &[b"lower"]);
    from.put_image("base/app", "1", &image);
    let name = at(&from, "base/app:1");
    home.ok(&["--cache-max", "1k", "pull", &name]);
    home.ok(&["push", &name, &at(&to, "app:1")]);
    assert_eq!(to.blob("app", &image.blobs[0].0).as_ref(), Some(&image.blobs[0].1));
}

#[test]
fn a_pull_and_a_list_write_their_digests() {
    let Some(home) = Home::new(&[]) else { return };
    let server = MemoryRegistry::start(Features::default());
    let image = image_for("amd64", &[b"lower"]);
    server.put_image("base/app", "1", &image);
    let (name, list) = (at(&server, "base/app:1"), at(&server, "list:1"));
    let file = home.path("digest");
    let text = file.to_str().unwrap();
    home.ok(&["pull", "-q", "--disable-content-trust=true", "--digestfile", text, &name]);
    assert_eq!(fs::read_to_string(&file).unwrap(), image.digest());
    for arguments in [&[name.as_str(), name.as_str()][..], &["-a", &at(&server, "base/app")], &["dir:/nowhere"]] {
        let said = home.fails(1, &[&["pull", "--digestfile", text], arguments].concat());
        assert!(said.contains("--digestfile holds one digest"), "{said}");
    }
    home.ok(&["manifest", "create", "--insecure", &list, &name]);
    let digest = home.ok(&["manifest", "push", "--insecure", "--digestfile", text, &list]);
    assert_eq!(digest, format!("{}\n", fs::read_to_string(&file).unwrap()));
    home.ok(&["manifest", "inspect", "--insecure", &list]);
    home.fails(1, &["manifest", "push", "--insecure", "--tls-verify", &list]);
    let said = home.fails(1, &["manifest", "push", "--digestfile", "/nowhere/digest", &list]);
    assert!(said.contains("writing --digestfile /nowhere/digest"), "{said}");
}
