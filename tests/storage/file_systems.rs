//! Stores on the file systems that machines have: which driver is taken there, and that all of them work. `cargo xtask test`
//! makes them, as root; NFS is a test of the guest (`tests/vm/nfs`).

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{DRIVERS, Home, LIMIT, busybox, eventually, finish, skip, variable};

/// A home with the small image whose data lie on a file system of this type; `None` (and the skip is noted) where there is none.
fn home_on(file_system: &str) -> Option<Home> {
    let Some(places) = variable("FILE_SYSTEMS") else {
        skip("only root makes file systems");
        return None;
    };
    let place = Path::new(&places).join(file_system);
    if !place.exists() {
        skip(&format!("{file_system} could not be made here"));
        return None;
    }
    let home = Home::new(&[crate::support::Need::Registry])?;
    let (data, name) =
        (home.directory.join("data"), home.directory.strip_prefix("/").unwrap().to_string_lossy().replace('/', "-"));
    std::fs::create_dir(place.join(&name)).unwrap();
    std::fs::remove_dir(&data).unwrap();
    symlink(place.join(&name), &data).unwrap();
    home.ok(&["pull", "-q", &busybox()]);
    Some(home)
}

/// Whether a large file of a container's copy has its blocks in common with the store.
fn shares_blocks(home: &Home, container: &str) -> bool {
    let upper = home.inspect(container, "{{.GraphDriver.Data.UpperDir}}");
    let done = finish(Command::new("filefrag").args(["-v", &format!("{upper}/bin/busybox")]), b"", LIMIT);
    assert!(done.code == 0 && done.stdout.contains("extent"), "{done:#?}");
    done.stdout.contains("shared")
}

/// `shares` is whether the file system can, if it tells.
fn every_driver_works(file_system: &str, shares: Option<bool>) {
    let Some(home) = home_on(file_system) else { return };
    let image = busybox();
    let done = home.run(&["run", "--name", "auto", "--network", "none", &image, "true"]);
    assert!(done.code == 0 && !done.stderr.contains("rootfs"), "{done:#?}");
    assert_eq!(home.inspect("auto", "{{.Driver}}"), "overlay");
    let script = "echo more >>/etc/replaced; mv /etc/passwd /etc/moved; rm -r /var/www; mkdir /var/www; chmod 2711 /var/owned; \
        ln /bin/busybox /second; chown 5:6 /etc/replaced 2>/dev/null; cat /etc/replaced; [ -d /var/opaque ] && ls /var/owned";
    for driver in DRIVERS {
        let options =
            ["run", "--name", driver, "--network", "none", "--storage-driver", driver, &image, "sh", "-c", script];
        assert_eq!(home.ok(&options), "second\nmore\nagain\nfile\n", "{driver}");
        let diff = home.ok(&["diff", driver]);
        for line in
            ["C /etc/replaced", "D /etc/passwd", "A /etc/moved", "D /var/www/index.html", "C /var/owned", "A /second"]
        {
            assert!(diff.lines().any(|told| told == line), "{driver}: {line} is not in\n{diff}");
        }
        if let ("copy", Some(shares)) = (driver, shares) {
            assert_eq!(shares_blocks(&home, driver), shares);
        }
        let made = format!("of-{driver}");
        home.ok(&["commit", driver, &made]);
        let look = ["run", "--rm", "--network", "none", &made, "cat", "/etc/replaced"];
        assert_eq!(home.ok(&look), "second\nmore\n", "{driver}");
    }
    eventually("all files are given back", || home.foreign_files() == 0);
    home.assert_store_is_ours();
}

#[test]
fn every_driver_works_on_ext4() {
    every_driver_works("ext4", Some(false));
}

#[test]
fn every_driver_works_on_xfs() {
    every_driver_works("xfs", Some(true));
}

#[test]
fn every_driver_works_on_btrfs() {
    every_driver_works("btrfs", Some(true));
}

#[test]
fn every_driver_works_on_tmpfs() {
    every_driver_works("tmpfs", None);
}
