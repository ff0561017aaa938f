//! Several images in one command: all tags of a repository, several names, some of which fail.

use serde_json::json;

use crate::support::http::{Answer, Server, find, registry_of};
use crate::support::{Home, each_file};
use crate::{image, serving};

/// A registry that has one image under these tags of `a`, and lists them in pages of two.
fn with_tags(tags: &'static [&'static str]) -> Server {
    let mut answers = serving("a");
    let manifest = answers["/v2/a/manifests/latest"].clone();
    answers.remove("/v2/a/manifests/latest");
    for tag in tags {
        answers.insert(format!("/v2/a/manifests/{tag}"), manifest.clone());
    }
    Server::answering(move |asked| {
        let Some(query) = asked.path.strip_prefix("/v2/a/tags/list?n=") else { return find(&answers, &asked.path) };
        let first: usize = query.split_once("&from=").map_or(0, |(_, from)| from.parse().unwrap());
        let page = json!({ "name": "a", "tags": tags.iter().skip(first).take(2).collect::<Vec<_>>() });
        let answer = Answer::ok("application/json", page.to_string().as_bytes());
        let next = format!("</v2/a/tags/list?n=2&from={}>; rel=\"next\"", first + 2);
        if first + 2 < tags.len() { answer.with("Link", &next) } else { answer }
    })
}

#[test]
fn all_tags_of_a_repository_are_pulled() {
    let Some(home) = Home::new(&[]) else { return };
    let server = with_tags(&["1", "1.0", "latest"]);
    let name = format!("{}/a", server.address);
    let said = home.ok(&["pull", "--all-tags", &name]);
    for tag in ["1", "1.0", "latest"] {
        assert!(said.contains(&format!("{tag}: Pulling from a\n")), "{said}");
        assert!(said.contains(&format!("Status: Downloaded newer image for {name}:{tag}\n")), "{said}");
    }
    assert_eq!(said.lines().last(), Some(name.as_str()));
    let listed = home.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]);
    assert_eq!(listed, format!("{name}:1\n{name}:1.0\n{name}:latest\n"));
    assert_eq!(server.count(&format!("/v2/a/blobs/{}", image().blobs[0].0)), 1, "the layer is fetched once");
    assert_eq!(home.ok(&["pull", "-aq", &name]), format!("{name}\n"));
}

#[test]
fn all_tags_are_of_a_repository_and_all_or_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let server = with_tags(&["1", "not/a/tag"]);
    let name = format!("{}/a", server.address);
    let said = home.fails(1, &["pull", "-a", &format!("{name}:1")]);
    assert!(said.contains("tag can't be used with --all-tags/-a"), "{said}");
    let said = home.fails(1, &["pull", "-a", &name]);
    assert!(said.contains("the tags of") && said.contains(r#""not/a/tag" is no tag"#), "{said}");
    let said = home.fails(1, &["pull", "-a", &format!("{}/none", server.address)]);
    assert!(said.contains("cannot list the tags of"), "{said}");
    let said = home.fails(1, &["--offline", "pull", "-a", &name]);
    assert!(said.contains("--offline"), "{said}");
    let said = home.fails(1, &["pull", "-a", "oci:./layout"]);
    assert!(said.contains("--all-tags is for repositories"), "{said}");
    home.fails(1, &["pull", "-a", "--locked", &name]);
    assert_eq!(home.ok(&["images", "-q"]), "");
}

#[test]
fn a_list_of_tags_without_end_is_refused() {
    let Some(home) = Home::new(&[]) else { return };
    let server = Server::answering(|asked| {
        let page = asked.path.rsplit('=').next().unwrap().parse::<usize>().unwrap_or(0);
        let next = format!("</v2/a/tags/list?n=1000&last={}>; rel=\"next\"", page + 1);
        Answer::ok("application/json", br#"{"tags":["1"]}"#).with("Link", &next)
    });
    let said = home.fails(1, &["pull", "-a", &format!("{}/a", server.address)]);
    assert!(said.contains("there are more than 100 pages of them"), "{said}");
    assert_eq!(server.asked.lock().unwrap().len(), 100);
}

#[test]
fn what_can_be_pulled_and_removed_of_several_is() {
    let Some(home) = Home::new(&[]) else { return };
    let tables = [serving("a"), registry_of("b", &image())];
    let server = Server::start(tables.into_iter().flatten().collect());
    let [a, none, b] = ["a", "none", "b"].map(|name| format!("{}/{name}", server.address));
    let done = home.run(&["pull", "-q", &a, &none, &b]);
    assert_eq!((done.code, done.stdout), (1, format!("{a}:latest\n{b}:latest\n")));
    assert!(done.stderr.contains(&format!("cannot pull {none}:latest")), "{}", done.stderr);
    // Whoever reads objects gets objects.
    let done = home.run(&["--progress=json", "pull", &none, &a]);
    let objects: Vec<serde_json::Value> =
        done.stderr.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert!(done.code == 1 && objects.iter().any(|object| object["error"].is_string()), "{objects:?}");

    let done = home.run(&["rmi", &a, "nothing", &b]);
    let id = image().blobs[1].0.clone();
    assert_eq!((done.code, done.stdout), (1, format!("Untagged: {a}:latest\nUntagged: {b}:latest\nDeleted: {id}\n")));
    assert_eq!(done.stderr, "error: No such image: nothing\n");
    let done = home.run(&["rmi", "--ignore", &a, "nothing"]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "", ""));
    // What is no name stays an error.
    home.fails(1, &["rmi", "--ignore", "No:Name"]);
    let mut left = 0;
    each_file(&home.store().join("store/blobs"), &mut |_, file| left += u32::from(file.is_file()));
    assert_eq!(left, 0);
}
