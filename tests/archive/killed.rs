//! `kill -9` between any two steps of a command that makes an image: the name stands for the old image or for the new one,
//! what was there before is there, the store is sound, and the same command works afterwards.

use crate::support::{Home, LIMIT, assert_sound, busybox, finish};

/// Kills the command at its first step, its second, and so on, until it has no further one; `prepare` runs before each,
/// `check` after.
fn at_each_step(home: &Home, arguments: &[&str], prepare: impl Fn(), check: impl Fn(&str)) {
    let mut killed = 0;
    loop {
        let at = format!("command:{}", killed + 1);
        prepare();
        let mut command = home.command(arguments);
        let done = finish(command.env("SUBLET_KILL_AT", &at).env("SOURCE_DATE_EPOCH", "1000"), b"", LIMIT);
        check(&at);
        assert_sound(home, &at);
        home.ok(&["image", "prune", "-f"]);
        let told = assert_sound(home, &format!("{at}, pruned"));
        assert!(!told.contains("nothing leads to"), "{at}: {told}");
        if !done.stderr.contains(&format!("killed at {at}\n")) {
            assert_eq!(done.code, 0, "{at}: {done:#?}");
            break;
        }
        killed += 1;
    }
    println!("{arguments:?}: killed at {killed} steps");
    assert!(killed >= 10, "killed at {killed} steps only");
}

fn id_of(home: &Home, name: &str) -> Option<String> {
    let done = home.run(&["image", "inspect", "--format", "{{.Id}}", name]);
    (done.code == 0).then(|| done.stdout.trim_end().to_owned())
}

#[test]
fn a_commit() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "one", "--network", "none", &busybox(), "sh", "-c", "echo x >/x"]);
    let unnamed = || finish(home.command(&["commit", "one"]).env("SOURCE_DATE_EPOCH", "1000"), b"", LIMIT).stdout;
    let new = unnamed();
    let new = new.trim_end();
    let old = id_of(&home, &busybox()).unwrap();
    // The same image is there already without a name, and the name has another one.
    let prepare = || {
        home.ok(&["tag", &busybox(), "made"]);
        assert_eq!(unnamed().trim_end(), new);
    };
    at_each_step(&home, &["commit", "one", "made"], prepare, |at| {
        assert_eq!(id_of(&home, new).as_deref(), Some(new), "{at}: the image without a name");
        let named = id_of(&home, "made").unwrap();
        assert!(named == old || named == new, "{at}: {named}");
    });
    assert_eq!(id_of(&home, "made").as_deref(), Some(new));
    assert_eq!(home.ok(&["run", "--rm", "--network", "none", "made", "cat", "/x"]), "x\n");
}

#[test]
fn a_load() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["tag", &busybox(), "small"]);
    let new = id_of(&home, "small").unwrap();
    let path = home.path("saved.tar");
    let path = path.to_string_lossy();
    home.ok(&["save", "-o", &path, "small"]);
    let second = Home::new(&[]).unwrap();
    // Nothing of it is there.
    let prepare = || {
        drop(second.run(&["rmi", "small"]));
        second.ok(&["system", "prune", "-af"]);
    };
    at_each_step(&second, &["load", "-i", &path], prepare, |at| {
        let found = id_of(&second, "small");
        assert!(found.is_none() || found.as_deref() == Some(&new), "{at}: {found:?}");
        second.ok(&["load", "-i", &path]);
        assert_eq!(id_of(&second, "small").as_deref(), Some(&*new), "{at}");
    });
    assert_eq!(second.ok(&["run", "--rm", "--network", "none", "small", "cat", "/etc/replaced"]), "second\n");
}
