//! Where names lead: `registries.conf` with mirrors, rewritten locations and short names; proxies.

use std::fs;
use std::path::PathBuf;
use std::sync::Barrier;

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::{Value, json};

use crate::support::http::{Answer, Asked, Server, find, primary_address, registry_of};
use crate::support::{Home, skip};
use crate::{image, run_with, serving};

fn conf_path(home: &Home) -> PathBuf {
    home.path(".config/containers/registries.conf")
}

pub(crate) fn configure(home: &Home, text: &str) {
    fs::create_dir_all(conf_path(home).parent().unwrap()).unwrap();
    fs::write(conf_path(home), text).unwrap();
}

fn names(home: &Home) -> String {
    home.ok(&["images", "--format", "{{.Repository}}"])
}

#[test]
fn mirrors_are_tried_in_order_and_then_the_location() {
    let Some(home) = Home::new(&[]) else { return };
    let (empty, last) = (Server::start(serving("something/else")), Server::start(serving("hub/library/small")));
    // A port that is nobody's without root.
    let dead = "127.0.0.1:1".to_owned();
    let mirror = |location: &str| format!("[[registry.mirror]]\nlocation = \"{location}\"\n");
    let text = format!("[[registry]]\nprefix = \"docker.io\"\nlocation = \"{}/hub\"\n", last.address);
    configure(&home, &format!("{text}{}{}", mirror(&dead), mirror(&format!("{}/m", empty.address))));
    let done = home.run(&["pull", "small"]);
    assert_eq!(done.code, 0, "{done:#?}");
    let told = done.stderr.matches(&format!("the mirror {dead} is left out: ")).count();
    assert!(told == 1 && !done.stderr.contains(&empty.address.to_string()), "{done:#?}");
    assert_eq!(empty.count("/v2/m/library/small/manifests/latest"), 1);
    assert_eq!(names(&home), "small\n", "it keeps the name that it was asked for by");
    home.ok(&["rmi", "small"]);

    let mirror_of = Server::start(serving("m/library/small"));
    let before = last.asked.lock().unwrap().len();
    configure(&home, &format!("{text}{}", mirror(&format!("{}/m", mirror_of.address))));
    home.ok(&["pull", "small"]);
    assert_eq!(last.asked.lock().unwrap().len(), before, "the mirror has all of it");
    home.ok(&["rmi", "small"]);

    // A mirror with another document than the one that is asked for is as good as none.
    let digest = image().digest();
    let mut lies = serving("m/library/small");
    if let Some(answer) = lies.get_mut(&format!("/v2/m/library/small/manifests/{digest}")) {
        answer.body.push(b' ');
        answer.send_bytes += 1;
    }
    let liar = Server::start(lies);
    configure(&home, &format!("{text}{}", mirror(&format!("{}/m", liar.address))));
    let done = home.run(&["pull", &format!("small@{digest}")]);
    assert!(done.code == 0 && done.stderr.contains("digest"), "{done:#?}");
}

#[test]
fn a_blocked_registry_and_a_wrong_file_are_named() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::start(serving("app"));
    let name = format!("{}/app", server.address);
    let path = conf_path(&home).display().to_string();
    configure(&home, &format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", server.address));
    let said = home.fails(1, &["pull", &name]);
    assert!(said.contains(&format!("registry {} is blocked in {path}", server.address)), "{said}");
    assert!(server.asked.lock().unwrap().is_empty());
    for (text, wanted) in [
        ("\n[[registry]\n", format!("{path}:2: ")),
        ("\n\n[[registry]]\nlocation = 5\n", format!("{path}:4: ")),
        ("[registries.search]\nregistries = ['a.io']\n", format!("{path}:1: [registries] is of version 1")),
    ] {
        configure(&home, text);
        let said = home.fails(1, &["pull", &name]);
        assert!(said.contains(&wanted), "{said}");
    }
    // A file that is named must be there, and is read in place of the user's.
    let missing = home.path("missing.conf").display().to_string();
    let done = run_with(&home, &[("CONTAINERS_REGISTRIES_CONF", &missing)], &["pull", &name]);
    assert!(done.code == 1 && done.stderr.contains(&missing), "{done:#?}");
    fs::write(home.path("missing.conf"), "").unwrap();
    let done = run_with(&home, &[("CONTAINERS_REGISTRIES_CONF", &missing)], &["pull", &name]);
    assert_eq!(done.code, 0, "{done:#?}");
}

#[test]
fn short_names_mean_what_the_configuration_says() {
    let Some(home) = Home::new(&[]) else { return };
    let (first, second) = (Server::start(serving("other")), Server::start(serving("app")));
    let search = format!("unqualified-search-registries = [\"{}\", \"{}\"]\n", first.address, second.address);
    configure(&home, &search);
    let done = home.run(&["pull", "app"]);
    let is = format!("note: app is {}/app:latest", second.address);
    assert!(done.code == 0 && done.stderr.contains(&is), "{done:#?}");
    assert_eq!(names(&home), format!("{}/app\n", second.address));
    assert!(home.ok(&["inspect", "--format", "{{.RepoTags}}", "app"]).contains("/app:latest"));
    home.ok(&["rmi", "app"]);

    configure(&home, &format!("short-name-mode = \"enforcing\"\n{search}"));
    let said = home.fails(1, &["pull", "app"]);
    assert!(said.contains("short name app may be") && said.contains("hint: "), "{said}");
    let drop_in = conf_path(&home).with_extension("conf.d").join("10-alias.conf");
    fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    fs::write(&drop_in, format!("[aliases]\n\"app\" = \"{}/app\"\n", second.address)).unwrap();
    home.ok(&["pull", "app:latest"]);
    home.ok(&["rmi", "app"]);
    fs::write(drop_in.with_file_name("20-later.conf"), "[aliases]\n\"app\" = \"\"\n").unwrap();
    home.fails(1, &["pull", "app"]);
    fs::write(drop_in.with_file_name("30-no-conf.txt"), "[[[").unwrap();
    home.fails(1, &["pull", "app"]);
}

#[test]
fn an_insecure_registry_may_do_without_tls() {
    let Some(home) = Home::new(&[]) else { return };
    let Some(address) = primary_address() else { return skip("this host has no address but loopback") };
    let server = Server::start_on(address, serving("app"));
    let name = format!("{}/app", server.address);
    home.fails(1, &["pull", &name]);
    configure(&home, &format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", server.address));
    home.ok(&["pull", &name]);
}

#[test]
fn a_proxy_leads_to_hosts_that_are_not_excepted() {
    let Some(home) = Home::new(&[]) else { return };
    let proxy = Server::start(serving("app"));
    let address = format!("http://{}", proxy.address);
    // A name that nothing can resolve (RFC 6761).
    let name = "registry.invalid:5000/app";
    let base = [("SUBLET_INSECURE_REGISTRIES", "registry.invalid:5000"), ("http_proxy", &address)];
    let with = |more: &[(&str, &str)]| {
        let mut variables = base.to_vec();
        variables.extend(more);
        run_with(&home, &variables, &["pull", name])
    };
    let done = with(&[("HTTPS_PROXY", &address), ("no_proxy", "other.invalid, .registry.invalid")]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(proxy.count("CONNECT registry.invalid:5000") > 0, "{:?}", proxy.asked.lock().unwrap());
    home.ok(&["rmi", name]);
    let before = proxy.asked.lock().unwrap().len();
    for none in ["registry.invalid", "*", "invalid", "registry.invalid:5000"] {
        let done = with(&[("https_proxy", &address), ("NO_PROXY", none)]);
        assert_eq!(done.code, 1, "{none}: {done:#?}");
    }
    assert_eq!(proxy.asked.lock().unwrap().len(), before);
    let done = with(&[("https_proxy", "gopher://x")]);
    assert!(done.code == 1 && done.stderr.contains("the proxy for "), "{done:#?}");
}

/// A layer that its registry may not hand out is where its manifest says, or nowhere.
#[test]
fn a_layer_that_lies_elsewhere_is_fetched_from_there() {
    let Some(home) = Home::new(&[]) else { return };
    let (digest, layer) = image().blobs.into_iter().find(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b])).unwrap();
    let answer = Answer::ok("application/octet-stream", &layer);
    let storage = Server::answering(move |asked: &Asked| {
        assert_eq!(asked.header("authorization"), "");
        if asked.path == "/layer" { answer.clone() } else { Answer::refused(404, "") }
    });
    let serving_with = |urls: &[String]| {
        let mut foreign = image();
        let mut manifest: Value = serde_json::from_slice(&foreign.manifest).unwrap();
        manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
        manifest["layers"][0]["urls"] = json!(urls);
        foreign.manifest = manifest.to_string().into_bytes();
        foreign.blobs.retain(|(blob, _)| *blob != digest);
        Server::start(registry_of("app", &foreign))
    };
    let at = |path: &str| format!("http://{}{path}", storage.address);
    let server = serving_with(&["ftp://x/layer".to_owned(), at("/none"), at("/layer")]);
    let name = format!("{}/app", server.address);
    let auth = format!(r#"{{"auths":{{"{}":{{"username":"me","password":"secret"}}}}}}"#, storage.address);
    let done = run_with(&home, &[("DOCKER_AUTH_CONFIG", &auth)], &["pull", &name]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert_eq!(done.stderr.matches("is not to be had elsewhere").count(), 2, "{done:#?}");
    home.ok(&["rmi", &name]);
    let server = serving_with(&[at("/none")]);
    let said = home.fails(1, &["pull", &format!("{}/app", server.address)]);
    assert!(said.contains("not found") && said.contains("status 404"), "{said}");
}

/// One layer does not wait for another.
#[test]
fn layers_come_side_by_side() {
    let Some(home) = Home::new(&[]) else { return };
    let layer =
        |name: &str| LayerBuilder::default().file(name, Meta::root(0o644), name.as_bytes()).unwrap().finish().unwrap();
    let image = Image::new(["a", "b", "c"].map(layer).into(), &json!({}));
    let layers: Vec<String> = image
        .blobs
        .iter()
        .filter(|(_, bytes)| bytes.starts_with(&[0x1f, 0x8b]))
        .map(|(digest, _)| digest.clone())
        .collect();
    assert_eq!(layers.len(), 3);
    let (table, waiting) = (registry_of("app", &image), Barrier::new(3));
    // Nobody is answered before all three are asked for; a client that asked for one alone would wait for ever.
    let server = Server::answering(move |asked: &Asked| {
        if layers.iter().any(|digest| asked.path.ends_with(digest)) {
            waiting.wait();
        }
        find(&table, &asked.path)
    });
    home.ok(&["pull", &format!("{}/app", server.address)]);
}
