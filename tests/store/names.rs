//! Names given and taken by several commands at once, and twice by one.

use std::fs::File;
use std::os::unix::fs::MetadataExt;

use crate::support::{Home, LIMIT, end, eventually, start};
use crate::{assert_sound, serve};

#[test]
fn a_name_taken_twice_over_keeps_the_image() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", "-q", &name]);
    home.ok(&["untag", &name, &name, &format!("{name}:latest")]);
    assert_eq!(home.ok(&["images", "--format", "{{.Repository}}"]), "<none>\n");
}

/// Each command has found the image before either may change a name: the second must see what the first has done.
#[test]
fn two_names_taken_at_once_keep_the_image() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1]), ("b", &[2])]);
    let [a, b] = ["a", "b"].map(|name| format!("{}/{name}", server.address));
    home.ok(&["pull", "-q", &a]);
    home.ok(&["tag", &a, "other"]);
    let names = || {
        let names = home.ok(&["images", "--format", "{{.Repository}}"]);
        let mut names: Vec<String> = names.lines().map(str::to_owned).collect();
        names.sort();
        names
    };
    together(&home, &[&["untag", &a], &["untag", "other"]]);
    assert_eq!(names(), ["<none>"]);
    home.ok(&["image", "prune", "-f"]);
    // A name that moves to another image meanwhile: either goes on, none is lost.
    home.ok(&["pull", "-q", &a]);
    home.ok(&["tag", &a, "other"]);
    home.ok(&["pull", "-q", &b]);
    together(&home, &[&["tag", &b, "other"], &["tag", &b, &a]]);
    assert_eq!(names(), [&a, &b, "<none>", "other"]);
    assert_sound(&home, "after names were moved");
}

/// Starts commands that change names, and lets them go on when all of them wait to.
fn together(home: &Home, commands: &[&[&str]]) {
    let file = File::options().write(true).open(home.store().join("store/refs.lock")).unwrap();
    sys::lock::exclusive(&file, &home.store().join("store/refs.lock")).unwrap();
    let children: Vec<_> = commands.iter().map(|arguments| start(&mut home.command(arguments))).collect();
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    eventually("all wait for the lock", || {
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        locks.lines().filter(|line| line.contains("-> OFDLCK") && line.contains(&inode)).count() == commands.len()
    });
    drop(file);
    for child in children {
        let done = end(child, LIMIT);
        assert_eq!(done.code, 0, "{done:#?}");
    }
}
