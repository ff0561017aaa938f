//! `login` and `logout`, and the files, variables and helpers that hold credentials.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use nix::pty::openpty;
use serde_json::{Value, json};

use crate::support::http::{Answer, Asked, Server, guarded};
use crate::support::{Home, LIMIT, end, finish, read_until, start};
use crate::{run_with, serving};

/// `me:secret`.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn docker_config(home: &Home) -> PathBuf {
    home.path(".docker/config.json")
}

fn write_config(home: &Home, config: &Value) {
    fs::create_dir_all(home.path(".docker")).unwrap();
    fs::write(docker_config(home), config.to_string()).unwrap();
}

fn read_config(home: &Home) -> Value {
    serde_json::from_slice(&fs::read(docker_config(home)).unwrap()).unwrap()
}

/// A registry that has `team/app` behind a token service.
fn registry() -> (Server, String) {
    let server = Server::answering(guarded(serving("team/app"), BASIC));
    let name = format!("{}/team/app", server.address);
    (server, name)
}

fn log_in(home: &Home, server: &Server) {
    let done =
        home.run_with_input(&["login", "-u", "me", "--password-stdin", &server.address.to_string()], b"secret\n");
    assert_eq!((done.code, done.stdout.as_str()), (0, "Login Succeeded\n"), "{done:#?}");
}

#[test]
fn a_login_opens_what_was_denied_until_the_logout() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = registry();
    let host = server.address.to_string();
    write_config(&home, &json!({"psFormat": "x", "auths": {"other.io": {"auth": "eDp5"}}}));
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains(&format!("pull access denied for {name}")) && said.contains("docker login"), "{said}");
    log_in(&home, &server);
    let config = read_config(&home);
    let other = json!({"auth": "eDp5"});
    assert_eq!(config, json!({"psFormat": "x", "auths": {"other.io": other, &host: {"auth": "bWU6c2VjcmV0"}}}));
    let mode = fs::metadata(docker_config(&home)).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    home.ok(&["pull", &name]);
    assert_eq!(home.ok(&["login", &host]), "Login Succeeded\n", "what is kept is good");
    assert_eq!(home.ok(&["logout", &host]), format!("Removing login credentials for {host}\n"));
    assert_eq!(read_config(&home), json!({"psFormat": "x", "auths": {"other.io": other}}));
    assert_eq!(home.ok(&["logout", &host]), format!("Not logged in to {host}\n"));
    home.ok(&["rmi", &name]);
    home.fails(1, &["pull", &name]);
}

#[test]
fn a_wrong_password_is_refused_and_not_kept() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let host = server.address.to_string();
    let done = home.run_with_input(&["login", "-u", "me", "--password-stdin", &host], b"wrong");
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:#?}");
    assert!(done.stderr.contains("unauthorized") && done.stderr.contains("bad credentials"), "{done:#?}");
    assert!(!docker_config(&home).exists());
    let nobody = "127.0.0.1:1";
    let done = home.run_with_input(&["login", "-u", "me", "--password-stdin", nobody], b"x");
    assert!(done.code == 1 && done.stderr.contains("refused"), "{done:#?}");
}

#[test]
fn an_unencrypted_password_is_told_and_malformed_lines_are_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let host = server.address.to_string();
    let done = home.run(&["login", "-u", "me", "-p", "secret", &host]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Login Succeeded\n"), "{done:#?}");
    let path = docker_config(&home).display().to_string();
    for text in ["--password via the CLI is insecure", "stored unencrypted in", &path] {
        assert!(done.stderr.contains(text), "{text}: {done:#?}");
    }
    for (arguments, text) in [
        (vec!["login", "a.io"], "non TTY"),
        (vec!["login", "-u", "me", "a.io"], "non TTY"),
        (vec!["login", "--password-stdin", "a.io"], "Must provide --username"),
        (vec!["login", "-u", "me", "-p", "x", "--password-stdin", "a.io"], "mutually exclusive"),
        (vec!["login", "-u", "", "-p", "x", "a.io"], "Username Required"),
        (vec!["login", "-u", "me", "-p", "", "a.io"], "Password Required"),
        (vec!["login", "-u", "me", "-p", "x", "nohost"], "no registry's host"),
        (vec!["logout", "no host"], "no registry's host"),
    ] {
        let said = home.fails(1, &arguments);
        assert!(said.contains(text), "{arguments:?}: {said}");
    }
}

#[test]
fn a_password_is_typed_without_echo() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let pty = openpty(None, None).unwrap();
    let (mut screen, terminal) = (File::from(pty.master), pty.slave);
    let mut command = home.command(&["login", &server.address.to_string()]);
    command.stdin(Stdio::from(terminal.try_clone().unwrap()));
    let mut child = start(&mut command);
    let mut asked = child.stderr.take().unwrap();
    read_until(&mut asked, "Username: ");
    std::io::Write::write_all(&mut screen, b"me\n").unwrap();
    read_until(&mut asked, "Password: ");
    std::io::Write::write_all(&mut screen, b"secrex\x7ft\n").unwrap();
    let done = end(child, LIMIT);
    assert_eq!((done.code, done.stdout.as_str()), (0, "Login Succeeded\n"), "{done:#?}");
    let shown = read_until(&mut screen, "me\r\n");
    std::io::Write::write_all(&mut screen, b"seen again\n").unwrap();
    let shown = shown + &read_until(&mut screen, "again");
    assert!(!shown.contains("secre"), "{shown:?}");
    drop(terminal);
}

#[test]
fn sources_have_an_order() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = registry();
    let host = server.address.to_string();
    let good = json!({"auths": {&host: {"username": "me", "password": "secret"}}}).to_string();
    let bad = json!({"auths": {&host: {"username": "me", "password": "wrong"}}}).to_string();
    // A key with the beginning of the repository's path is nearer than the host's.
    let near = json!({"auths": {
        &host: {"username": "me", "password": "wrong"},
        format!("{host}/team"): {"username": "me", "password": "secret"},
    }})
    .to_string();
    let places = [
        home.path("named.json"),
        home.directory.join("run/containers/auth.json"),
        home.path(".config/containers/auth.json"),
        docker_config(&home),
    ];
    for place in &places {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
    }
    let named = places[0].display().to_string();
    let pulls = |variables: &[(&str, &str)]| {
        let done = run_with(&home, variables, &["pull", "-q", &name]);
        if done.code == 0 {
            home.ok(&["rmi", &name]);
        }
        done.code == 0
    };
    assert!(!pulls(&[]));
    assert!(pulls(&[("DOCKER_AUTH_CONFIG", &good)]));
    // From the last place to the first: each goes before those that are there already.
    for (place, content) in [(3, &good), (2, &bad), (1, &near)] {
        fs::write(&places[place], content).unwrap();
        assert_eq!(pulls(&[]), *content != bad, "{}", places[place].display());
    }
    fs::write(&places[0], &bad).unwrap();
    assert!(!pulls(&[("REGISTRY_AUTH_FILE", &named)]));
    assert!(pulls(&[("REGISTRY_AUTH_FILE", &named), ("DOCKER_AUTH_CONFIG", &good)]));
    let done = run_with(&home, &[("DOCKER_AUTH_CONFIG", "{")], &["pull", &name]);
    assert!(done.code == 1 && done.stderr.contains("reading DOCKER_AUTH_CONFIG"), "{done:#?}");
    fs::write(&places[1], "{").unwrap();
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains(&places[1].display().to_string()), "{said}");
}

/// A helper that keeps one credential in a file beside it and notes what it was asked.
const HELPER: &str = r#"#!/bin/sh
here=${0%/*}
echo "$1" >> "$here/asked"
case $1 in
store) cat > "$here/kept" ;;
get) if [ -f "$here/kept" ]; then cat "$here/kept"; else echo "credentials not found in native keychain"; exit 1; fi ;;
erase) rm "$here/kept" ;;
esac
"#;

/// Puts a script into a directory of the search path; the path.
fn install(home: &Home, name: &str, script: &str) -> String {
    let directory = home.path("bin");
    fs::create_dir_all(&directory).unwrap();
    // By another process: what a thread of ours starts meanwhile would have the script open for writing.
    let target = directory.join(name).display().to_string();
    let mut shell = std::process::Command::new("sh");
    let done = finish(shell.args(["-c", "cat > $0 && chmod 755 $0", &target]), script.as_bytes(), LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    format!("{}:/usr/bin:/bin", directory.display())
}

#[test]
fn a_helper_keeps_the_password() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = registry();
    let host = server.address.to_string();
    let path = install(&home, "docker-credential-test", HELPER);
    let old = json!({&host: {"auth": "bWU6b2xk"}});
    for (config, after, conf) in [
        (json!({"credsStore": "test"}), json!({"credsStore": "test"}), ""),
        (json!({"credHelpers": {&host: "test"}}), json!({"credHelpers": {&host: "test"}}), ""),
        (json!({"credsStore": "test", "auths": old}), json!({"credsStore": "test", "auths": {}}), ""),
        (json!({}), json!({}), "credential-helpers = ['test', 'containers-auth.json']"),
    ] {
        write_config(&home, &config);
        crate::places::configure(&home, conf);
        let mut command = home.command(&["login", "-u", "me", "--password-stdin", &host]);
        let done = finish(command.env("PATH", &path), b"secret", LIMIT);
        assert_eq!((done.code, done.stdout.as_str()), (0, "Login Succeeded\n"), "{done:#?}");
        assert!(!done.stderr.contains("unencrypted"), "{done:#?}");
        assert_eq!(read_config(&home), after, "the password is nowhere else");
        let done = run_with(&home, &[("PATH", &path)], &["pull", &name]);
        assert_eq!(done.code, 0, "{done:#?}");
        home.ok(&["rmi", &name]);
        let done = run_with(&home, &[("PATH", &path)], &["logout", &host]);
        assert_eq!(done.stdout, format!("Removing login credentials for {host}\n"), "{done:#?}");
        assert_eq!(run_with(&home, &[("PATH", &path)], &["pull", &name]).code, 1);
        let asked = fs::read_to_string(home.path("bin/asked")).unwrap();
        assert_eq!(asked, "store\nget\nerase\nget\n");
        fs::remove_file(home.path("bin/asked")).unwrap();
    }
}

#[test]
fn a_password_that_is_kept_by_a_helper_goes_before_an_older_one_in_the_file() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = registry();
    let host = server.address.to_string();
    let path = install(&home, "docker-credential-test", HELPER);
    write_config(&home, &json!({"credsStore": "test", "auths": {&host: {"auth": "bWU6b2xk"}}}));
    assert_eq!(run_with(&home, &[("PATH", &path)], &["pull", &name]).code, 1, "the old one is wrong");
    let kept = r#"{"ServerURL":"x","Username":"me","Secret":"secret"}"#;
    fs::write(home.path("bin/kept"), kept).unwrap();
    assert_eq!(run_with(&home, &[("PATH", &path)], &["pull", &name]).code, 0);
}

#[test]
fn a_login_that_is_hidden_by_the_environment_is_told() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let host = server.address.to_string();
    let mut command = home.command(&["login", "-u", "me", "--password-stdin", &host]);
    command.env("DOCKER_AUTH_CONFIG", json!({"auths": {&host: {"auth": "bWU6b2xk"}}}).to_string());
    let done = finish(&mut command, b"secret", LIMIT);
    assert!(done.code == 0 && done.stderr.contains("DOCKER_AUTH_CONFIG in the environment goes before"), "{done:#?}");
}

#[test]
fn a_logout_goes_on_where_one_place_cannot_be_changed() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, _) = registry();
    let host = server.address.to_string();
    let path = install(&home, "docker-credential-broken", "#!/bin/sh\nexit 3\n");
    let first = home.path(".config/containers/auth.json");
    fs::create_dir_all(first.parent().unwrap()).unwrap();
    fs::write(&first, json!({"credHelpers": {&host: "broken"}}).to_string()).unwrap();
    write_config(&home, &json!({"auths": {&host: {"auth": "bWU6b2xk"}}}));
    let done = run_with(&home, &[("PATH", &path)], &["logout", &host]);
    assert!(done.code == 1 && done.stderr.contains("docker-credential-broken"), "{done:#?}");
    assert_eq!(read_config(&home), json!({"auths": {}}));
}

#[test]
fn a_broken_helper_stops_only_what_needs_it() {
    let Some(home) = Home::new(&[]) else { return };
    let (server, name) = registry();
    let public = Server::start(serving("open"));
    let path = install(&home, "docker-credential-broken", "#!/bin/sh\necho 'the keychain is locked'\nexit 3\n");
    for (helper, why) in
        [("broken", "the keychain is locked"), ("missing", "No such file"), ("../x", "a helper's name")]
    {
        write_config(&home, &json!({"credsStore": helper}));
        let done = run_with(&home, &[("PATH", &path)], &["pull", &format!("{}/open", public.address)]);
        assert_eq!(done.code, 0, "{done:#?}");
        let done = run_with(&home, &[("PATH", &path)], &["pull", &name]);
        let told = done.stderr.contains(why) && done.stderr.contains(&format!("docker-credential-{helper}"));
        assert!(done.code == 1 && told, "{done:#?}");
    }
    drop(server);
}

#[test]
fn a_refresh_token_buys_tokens_by_post() {
    let Some(home) = Home::new(&[]) else { return };
    let table = serving("team/app");
    let server = Server::answering(move |asked: &Asked| {
        if asked.path == "/token" {
            let wanted = ["grant_type=refresh_token", "refresh_token=the-refresh-token", "client_id=sublet"];
            let scope = asked.body.contains("scope=repository%3Ateam%2Fapp%3Apull");
            let good = asked.method == "POST" && scope && wanted.iter().all(|part| asked.body.contains(part));
            return if good {
                Answer::ok("application/json", br#"{"access_token":"bought","expires_in":300}"#)
            } else {
                Answer::refused(400, &format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, asked.body))
            };
        }
        if asked.header("authorization") == "Bearer bought" {
            return crate::support::http::find(&table, &asked.path);
        }
        let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, asked.header("host"));
        Answer::refused(401, "").with("WWW-Authenticate", &challenge)
    });
    let host = server.address.to_string();
    write_config(&home, &json!({"auths": {&host: {"auth": "eDp5", "identitytoken": "the-refresh-token"}}}));
    home.ok(&["pull", &format!("{host}/team/app")]);
    assert_eq!(server.count("/token"), 1, "one token for the manifest and all blobs");
}
