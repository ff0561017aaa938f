//! Images that are damaged or go away, disks that are full in the middle of a copy-up, names and trees that nobody expects:
//! with every driver an error of the one call, and what was there stays as it was.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::support::{DRIVERS, Home, Need, Within, busybox, each_file, in_namespaces};

/// The files of one kind of content in the store, with their sizes.
fn contents(home: &Home, family: &str) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    each_file(&home.store().join("store").join(family), &mut |path, metadata| {
        if metadata.is_file() {
            files.push((path.to_owned(), metadata.len()));
        }
    });
    files
}

/// Makes the image `own`: the small one, a file of a pack and one that is an object alone.
fn own_image(home: &Home) {
    let script = "dd if=/dev/urandom of=/packed bs=5000 count=1 2>/dev/null; dd if=/dev/urandom of=/alone bs=200000 count=1 2>/dev/null";
    home.ok(&["run", "--name", "maker", "--network", "none", &busybox(), "sh", "-c", script]);
    home.ok(&["commit", "maker", "own"]);
    home.ok(&["rm", "maker"]);
}

/// Overwrites a file behind its first bytes with zeros. Its length stays, as somebody may have it mapped.
fn damage(path: &Path, intact: u64) {
    fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.write_all_at(&vec![0; (length - intact) as usize], intact).unwrap();
}

#[test]
fn a_start_that_fails_by_a_damaged_image_names_it_and_what_helps() {
    // The header stays whole, so that nothing is seen before the files are looked at.
    let index_of_zeros = |home: &Home| damage(&contents(home, "chains")[0].0, 256);
    let no_program = |home: &Home| {
        let (program, _) = contents(home, "objects").into_iter().max_by_key(|(_, size)| *size).unwrap();
        fs::remove_file(program).unwrap();
    };
    for (harm, word) in
        [(&index_of_zeros as &dyn Fn(&Home), "the index is damaged"), (&no_program, "is not in the store")]
    {
        let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
        harm(&home);
        let image = busybox();
        let done = home.run(&["run", "--rm", "--network", "none", &image, "cat", "/etc/replaced"]);
        assert!((125..=127).contains(&done.code), "{done:#?}");
        for words in [&format!("image {image}"), word, "hint: ", "`sublet system fsck --repair`"] {
            assert!(done.stderr.contains(words), "{words} is missing: {done:#?}");
        }
        home.run(&["system", "fsck", "--repair"]);
        assert_eq!(home.sh(&["--network", "none"], "cat /etc/replaced"), "second\n");
    }
}

#[test]
fn a_container_goes_on_when_contents_of_its_image_are_gone() {
    let Some(home) = Home::with_busybox(&[Need::Fuse]) else { return };
    own_image(&home);
    for driver in ["overlay", "fuse"] {
        let options = ["run", "-d", "--name", "one", "--network", "none", "--storage-driver", driver, "own"];
        home.ok(&[&options[..], &["sleep", "1000"]].concat());
        let aside = home.path("aside");
        fs::create_dir_all(&aside).unwrap();
        // All but the program itself.
        let gone: Vec<_> = contents(&home, "objects").into_iter().filter(|(_, size)| *size < 500_000).collect();
        for (path, _) in &gone {
            fs::rename(path, aside.join(path.file_name().unwrap())).unwrap();
        }
        for path in ["/packed", "/alone"] {
            for work in [format!("cat {path} >/dev/null"), format!("echo more >>{path}")] {
                let done = home.run(&["exec", "one", "sh", "-c", &work]);
                let told = ["Input/output error", "I/O error"].iter().any(|words| done.stderr.contains(words));
                assert!(done.code != 0 && told, "{driver}, {work}: {done:#?}");
            }
        }
        let seen = home.ok(&["exec", "one", "sh", "-c", "echo new >/new; cat /new /etc/replaced"]);
        assert_eq!(seen, "new\nsecond\n", "{driver}");
        for (path, _) in &gone {
            fs::rename(aside.join(path.file_name().unwrap()), path).unwrap();
        }
        let back = home.ok(&["exec", "one", "sh", "-c", "wc -c </packed; echo more >>/alone; wc -c </alone"]);
        assert_eq!(back, "5000\n200005\n", "{driver}");
        assert_eq!(home.inspect("one", "{{.State.Status}}"), "running", "{driver}");
        home.ok(&["rm", "-f", "one"]);
    }
}

#[test]
fn an_image_that_is_removed_stays_with_its_containers() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    for driver in DRIVERS {
        own_image(&home);
        let options = ["run", "-d", "--name", "one", "--network", "none", "--storage-driver", driver, "own"];
        home.ok(&[&options[..], &["sleep", "1000"]].concat());
        let said = home.fails(1, &["rmi", "-f", "own"]);
        assert!(said.contains("is being used by running container"), "{driver}: {said}");
        home.ok(&["untag", "own"]);
        home.run(&["rmi", "-f", &image]);
        home.ok(&["system", "prune", "-af"]);
        let script = "cat /packed /alone | wc -c; echo more >>/alone; cat /etc/replaced";
        assert_eq!(home.ok(&["exec", "one", "sh", "-c", script]), "205000\nsecond\n", "{driver}");
        home.ok(&["kill", "one"]);
        home.ok(&["wait", "one"]);
        home.ok(&["image", "prune", "-af"]);
        home.ok(&["start", "one"]);
        assert_eq!(home.ok(&["exec", "one", "sh", "-c", "wc -c </alone"]), "200005\n", "{driver}");
        home.ok(&["rm", "-f", "one"]);
        home.ok(&["system", "prune", "-af"]);
        assert_eq!(contents(&home, "objects").len(), 0, "{driver}");
        home.ok(&["pull", "-q", &image]);
    }
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_copy_up_leaves_the_file_as_it_was() {
    let Some(home) = Home::new(&[Need::Registry]) else { return };
    let (bin, image) = (home.bin().display().to_string(), busybox());
    let data = home.directory.join("data").display().to_string();
    let work = "sum=$(sha256sum </large); cat /etc/replaced >>/large 2>/dev/null && echo written || echo full; \
        [ \"$sum\" = \"$(sha256sum </large)\" ] && echo same; wc -c </large";
    let script = format!(
        "{bin} pull -q {image} >/dev/null && \
         {bin} run --name made --network none {image} sh -c 'head -c 4194304 /dev/urandom >/large' && \
         {bin} commit -q made large >/dev/null && {bin} rm made >/dev/null || exit 1
         for driver in overlay fuse tree; do
             {bin} run --rm --network none --storage-driver $driver large true || exit 1
             free=$(df --output=avail -B1 {data} | tail -n 1)
             head -c $((free - 800000)) /dev/zero >{data}/fill || exit 1
             {bin} run --name box --network none --storage-driver $driver large sh -c '{work}'
             rm {data}/fill
             {bin} start -a box
             {bin} rm box >/dev/null
         done"
    );
    let memory = format!("mount -t tmpfs -o size=64m,mode=700 tmpfs {data}");
    let Some(done) = in_namespaces(&home, Within::Caller, &memory, &script) else { return };
    let each = "full\nsame\n4194304\nwritten\n4194311\n";
    assert_eq!((done.code, done.stdout), (0, each.repeat(3)), "{}", done.stderr);
}

#[test]
fn names_may_be_any_bytes() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let make = "mkdir /odd; cd /odd; long=$(printf 'n%.0s' $(seq 255)); echo 1 >$long; echo 2 >\"$(printf 'new\\nline')\"; \
        echo 3 >\"$(printf 'no\\377utf8')\"; echo 4 >'*'; echo 5 >\"$(printf ' \\033[31m')\"; echo 6 >-rf; mkdir ./--; echo 7 >./--/...";
    let look = "cd /odd; for name in * --/...; do printf '%s' \"$name\" | md5sum; cat \"./$name\" 2>/dev/null; done";
    let mut wanted = None;
    for driver in DRIVERS {
        let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver];
        let seen = home.ok(&[&options[..], &[&busybox(), "sh", "-c", &format!("{make}; {look}")]].concat());
        let wanted = wanted.get_or_insert(seen.clone());
        assert!(wanted.lines().count() >= 15 && seen == *wanted, "{driver}: {seen}");
        let diff = home.ok(&["diff", driver]);
        assert!(
            diff.contains("A /odd\n") && diff.contains("A /odd/--/...\n") && diff.contains("A /odd/-rf\n"),
            "{diff}"
        );
        let image = format!("of-{driver}");
        home.ok(&["commit", driver, &image]);
        home.ok(&["rm", driver]);
        let options = ["run", "--rm", "--network", "none", "--storage-driver", driver, &image];
        assert_eq!(home.ok(&[&options[..], &["sh", "-c", look]].concat()), *wanted, "{driver}");
    }
}

/// Makes `/deep` of so many times 500 levels: each time the tree so far is moved to the bottom of a new one.
fn deepen(times: u32) -> String {
    format!(
        "d=d; i=1; while [ $i -lt 499 ]; do d=$d/d; i=$((i+1)); done; mkdir /deep; n=0; \
         while [ $n -lt {times} ]; do mkdir -p /next/$d; mv /deep /next/$d/d; mv /next /deep; n=$((n+1)); done; echo made"
    )
}

/// What is deeper than any path may be long is not listed, and nobody could unpack it.
#[test]
fn a_tree_of_ten_thousand_levels_is_a_tree() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for driver in DRIVERS {
        let options = ["run", "--name", driver, "--network", "none", "--storage-driver", driver];
        let script = format!("[ -e /deep ] && exec echo there; {}", deepen(20));
        assert_eq!(home.ok(&[&options[..], &[&busybox(), "sh", "-c", &script]].concat()), "made\n", "{driver}");
        assert_eq!(home.ok(&["start", "-a", driver]), "there\n", "{driver}");
        let diff = home.ok(&["diff", driver]);
        assert!(diff.starts_with("A /deep\nA /deep/d\n") && diff.lines().count() == 2046, "{driver}: {}", diff.len());
        let said = home.fails(1, &["commit", driver, "deep"]);
        assert!(said.contains("ENAMETOOLONG"), "{driver}: {said}");
        home.ok(&["rm", driver]);
    }
    home.assert_store_is_ours();
}
