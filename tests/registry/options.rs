//! Podman's options of commands that speak to registries, and what Docker's configuration hands on to them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::places::configure;
use crate::support::http::{Answer, Asked, Server, find, guarded, primary_address};
use crate::support::{Home, skip};
use crate::{run_with, serving};

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

/// A registry that has `team/app` behind a token service.
fn guarded_registry() -> (Server, String) {
    let server = Server::answering(guarded(serving("team/app"), BASIC));
    let name = format!("{}/team/app", server.address);
    (server, name)
}

#[test]
fn a_file_of_credentials_is_asked_in_place_of_all_others() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = guarded_registry();
    let host = server.address.to_string();
    let file = home.path("own/auth.json").display().to_string();
    let said = home.fails(1, &["pull", "--authfile", &file, &name]);
    assert!(said.contains("looking for --authfile") && said.contains("No such file"), "{said}");

    let login = ["login", "--authfile", &file, "-u", "me", "--password-stdin", &host];
    assert_eq!(home.run_with_input(&login, b"secret").code, 0);
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept, json!({ "auths": { &host: { "auth": "bWU6c2VjcmV0" } } }));
    assert!(!home.path(".docker").exists() && !home.path(".config").exists());
    home.fails(1, &["pull", &name]);
    // What the environment has is wrong, and not asked.
    let wrong = json!({ "auths": { &host: { "username": "me", "password": "wrong" } } }).to_string();
    let done = run_with(&home, &[("DOCKER_AUTH_CONFIG", &wrong)], &["pull", "--authfile", &file, &name]);
    assert_eq!(done.code, 0, "{done:#?}");
    let listed = home.ok(&["manifest", "inspect", "--authfile", &file, &name]);
    assert!(listed.contains("schemaVersion"), "{listed}");
    home.ok(&["logout", "--authfile", &file, &host]);
    home.ok(&["rmi", &name]);
    home.fails(1, &["pull", "--authfile", &file, &name]);
}

/// A helper of `registries.conf` has other files' place, not that of the one which the user names.
#[test]
fn a_file_of_credentials_is_asked_in_place_of_helpers() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = guarded_registry();
    let host = server.address.to_string();
    // Not installed: whoever asks it fails.
    configure(&home, "credential-helpers = ['nowhere']\n");
    let file = home.path("auth.json").display().to_string();
    let login = ["login", "--authfile", &file, "-u", "me", "--password-stdin", &host];
    let done = home.run_with_input(&login, b"secret");
    assert_eq!(done.code, 0, "{done:#?}");
    let kept: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(kept, json!({ "auths": { &host: { "auth": "bWU6c2VjcmV0" } } }));
    home.ok(&["pull", "--authfile", &file, &name]);
    home.fails(1, &["manifest", "inspect", &name]);
    let said = home.ok(&["logout", "--authfile", &file, &host]);
    assert_eq!(said, format!("Removing login credentials for {host}\n"));
    home.fails(1, &["manifest", "inspect", "--authfile", &file, &name]);
}

#[test]
fn credentials_of_the_command_line_go_to_the_registry_that_is_named_alone() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = guarded_registry();
    home.fails(1, &["pull", "--creds", "me:wrong", &name]);
    for wrong in ["", ":secret"] {
        let said = home.fails(1, &["pull", "--creds", wrong, &name]);
        assert!(!said.contains("secret"), "{said}");
    }
    // Its mirror wants to know who we are, too, and is refused it.
    let mirror = Server::answering(|asked: &Asked| {
        assert_eq!(asked.header("authorization"), "");
        Answer::refused(401, "").with("WWW-Authenticate", "Basic realm=\"mine\"")
    });
    let (host, other) = (server.address, mirror.address);
    let mirrored = format!("[[registry]]\nlocation = \"{host}\"\n[[registry.mirror]]\nlocation = \"{other}\"\n");
    configure(&home, &mirrored);
    let done = home.run(&["pull", "--creds", "me:secret", &name]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(!mirror.asked.lock().unwrap().is_empty());
    assert!(!home.path(".docker").exists(), "nothing is kept");
    home.fails(1, &["manifest", "inspect", &name]);
    home.ok(&["manifest", "inspect", "--creds", "me:secret", &name]);

    configure(&home, &format!("unqualified-search-registries = [\"{host}\", \"{other}\"]\n"));
    let before = mirror.asked.lock().unwrap().len();
    let said = home.fails(1, &["pull", "--creds", "me:secret", "team/other"]);
    assert!(said.contains("--creds is for one registry") && said.contains("hint: "), "{said}");
    assert_eq!(mirror.asked.lock().unwrap().len(), before);
}

#[test]
fn whether_tls_is_wanted_is_said_for_all() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::start(serving("app"));
    let name = format!("{}/app", server.address);
    for wanted in ["--tls-verify", "--tls-verify=true"] {
        let said = home.fails(1, &["pull", wanted, &name]);
        assert!(said.contains("the request to https://"), "not even on this machine: {said}");
    }
    home.ok(&["pull", "--tls-verify=false", &name]);
    let nowhere = home.path("nowhere").display().to_string();
    let said = home.fails(1, &["pull", "--cert-dir", &nowhere, &name]);
    assert!(said.contains(&nowhere) && said.contains("No such file"), "{said}");
    let Some(address) = primary_address() else { return skip("this host has no address but loopback") };
    let server = Server::start_on(address, serving("app"));
    let name = format!("{}/app", server.address);
    home.fails(1, &["pull", &name]);
    home.ok(&["pull", "--tls-verify=false", &name]);
    let said = home.fails(1, &["login", "--tls-verify=true", "-u", "me", "-p", "secret", &server.address.to_string()]);
    assert!(said.contains("the request to https://"), "{said}");
}

#[test]
fn headers_of_dockers_configuration_go_to_the_registry_and_not_behind_it() {
    let Some(home) = Home::new(&[]) else { return };
    let storage = Server::answering(|asked: &Asked| {
        assert!(!asked.headers.keys().any(|name| name.starts_with("x-")), "{asked:?}");
        find(&serving("app"), &asked.path)
    });
    let elsewhere = storage.address;
    let server = Server::answering(move |asked: &Asked| {
        assert_eq!((asked.header("x-meta-team"), asked.header("x-other")), ("red", ""));
        if asked.path.contains("/blobs/") {
            let there = format!("http://{elsewhere}{}", asked.path);
            return Answer::refused(307, "").with("Location", &there);
        }
        find(&serving("app"), &asked.path)
    });
    let name = format!("{}/app", server.address);
    fs::create_dir_all(home.path(".docker")).unwrap();
    let write = |headers: Value| {
        fs::write(home.path(".docker/config.json"), json!({ "HttpHeaders": headers }).to_string()).unwrap();
    };
    // As Docker: what does not begin so is for its own daemon.
    write(json!({ "X-Meta-Team": "red", "X-Other": "x" }));
    home.ok(&["pull", &name]);
    assert!(!storage.asked.lock().unwrap().is_empty());
    for headers in [json!({ "X-Meta-A": "two\nlines" }), json!({ "X-Meta-\u{e9}": "x" })] {
        write(headers);
        let said = home.fails(1, &["pull", &name]);
        assert!(said.contains("HttpHeaders") && said.contains("is no header"), "{said}");
    }
}

#[test]
fn options_of_registries_are_refused_for_a_file() {
    let Some(home) = Home::new(&[]) else { return };
    for option in ["--creds=me:secret", "--authfile=auth.json", "--cert-dir=certs", "--tls-verify=false"] {
        let said = home.fails(1, &["pull", option, "oci:./layout"]);
        let name = option.split('=').next().unwrap();
        assert!(said.contains(&format!("{name} is for registries, and oci:./layout is a file")), "{said}");
    }
}

/// Two mirrors may be two paths of one host: a proxy with a project for each registry.
#[test]
fn a_mirror_that_fails_does_not_take_its_host_with_it() {
    let Some(home) = Home::new(&[]) else { return };
    let broken = Answer::refused(418, "");
    let proxy = Server::answering(move |asked: &Asked| {
        if asked.path.starts_with("/v2/first/") { broken.clone() } else { find(&serving("second/app"), &asked.path) }
    });
    let (first, second) = (Server::start(serving("other")), Server::start(serving("other")));
    let place = |server: &Server, project: &str| {
        let (host, proxy) = (server.address, proxy.address);
        format!("[[registry]]\nlocation = \"{host}\"\n[[registry.mirror]]\nlocation = \"{proxy}/{project}\"\n")
    };
    let search = format!("unqualified-search-registries = [\"{}\", \"{}\"]\n", first.address, second.address);
    configure(&home, &format!("{search}{}{}", place(&first, "first"), place(&second, "second")));
    let done = home.run(&["pull", "app"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let told = format!("the mirror {}/first/app is left out: ", proxy.address);
    assert_eq!(done.stderr.matches(&told).count(), 1, "{done:#?}");
}

/// Who searches a registry with more names than anybody reads gets what was found, and is told.
#[test]
fn a_catalogue_without_end_is_left_with_what_was_found() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::answering(|asked: &Asked| {
        let page = asked.path.rsplit('=').next().unwrap().parse::<usize>().unwrap_or(0);
        let name = if page == 1000 { "team/app-first".to_owned() } else { format!("other/{page}") };
        let next = format!("</v2/_catalog?n=1000&last={}>; rel=\"next\"", page + 1);
        Answer::ok("application/json", json!({ "repositories": [name] }).to_string().as_bytes()).with("Link", &next)
    });
    let done = home.run(&["search", "--format", "{{.Name}}", &format!("{}/app", server.address)]);
    assert_eq!((done.code, done.stdout), (0, format!("{}/team/app-first\n", server.address)));
    assert!(done.stderr.contains("has more names than the 100 pages"), "{}", done.stderr);
    assert_eq!(server.asked.lock().unwrap().len(), 100);
}

/// What a server of the tests asserts in its thread fails the test.
#[test]
#[should_panic(expected = "nobody asks for this")]
fn a_server_that_panics_fails_the_test() {
    let server = Server::answering(|asked: &Asked| panic!("nobody asks for this: {}", asked.path));
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 400", "it is answered all the same");
}
