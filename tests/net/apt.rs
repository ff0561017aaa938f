//! `apt-get install` through the builtin network from a tiny repository that the test makes and serves itself: the
//! stand-in for a mirror where there is none.

use std::collections::HashMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::http::{Answer, Server, primary_address};
use crate::support::{Home, LIMIT, Need, debian, finish, skip};

const CONTROL: &str = "Package: sublet-fixture\nVersion: 1.0\nArchitecture: all\nMaintainer: sublet tests <nobody@example.invalid>\nDescription: a package that only says hello\n";

/// Builds the package; its bytes.
fn package(home: &Home) -> Option<Vec<u8>> {
    let root = home.path("package");
    fs::create_dir_all(root.join("DEBIAN")).ok()?;
    fs::create_dir_all(root.join("usr/bin")).ok()?;
    fs::write(root.join("DEBIAN/control"), CONTROL).ok()?;
    fs::write(root.join("usr/bin/sublet-hello"), "#!/bin/sh\necho hello from a package\n").ok()?;
    let mut chmod = Command::new("chmod");
    home.surround(chmod.args(["0755", "DEBIAN", "usr", "usr/bin", "usr/bin/sublet-hello"]));
    finish(chmod.current_dir(&root), b"", LIMIT);
    let file = home.path("fixture.deb");
    let mut build = Command::new("dpkg-deb");
    home.surround(build.args(["--root-owner-group", "--build"]).arg(&root).arg(&file));
    let done = finish(&mut build, b"", LIMIT);
    assert_eq!(done.code, 0, "{done:#?}");
    fs::read(file).ok()
}

/// A flat repository with this package: `deb [trusted=yes] http://…/ ./`.
fn repository(package: &[u8]) -> HashMap<String, Answer> {
    let digest = fixture::image::digest(package);
    let digest = digest.trim_start_matches("sha256:");
    let packages = format!("{CONTROL}Filename: ./fixture.deb\nSize: {}\nSHA256: {digest}\n\n", package.len());
    let of_packages = fixture::image::digest(packages.as_bytes());
    let of_packages = of_packages.trim_start_matches("sha256:");
    let release = format!("Date: Tue, 14 Nov 2023 22:13:20 UTC\nSHA256:\n {of_packages} {} Packages\n", packages.len());
    [
        ("/./Release".to_owned(), Answer::ok("text/plain", release.as_bytes())),
        ("/./Packages".to_owned(), Answer::ok("text/plain", packages.as_bytes())),
        ("/./fixture.deb".to_owned(), Answer::ok("application/octet-stream", package)),
    ]
    .into()
}

#[test]
fn a_package_is_installed_through_the_builtin_network() {
    let Some(home) = Home::new(&[Need::Registry, Need::Debian, Need::Tun, Need::Subids]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    if Command::new("dpkg-deb").arg("--version").output().is_err() {
        return skip("dpkg-deb is not installed");
    }
    let package = package(&home).expect("the package can be built");
    let server = Server::start_on(address, repository(&package));
    let done = finish(&mut home.command(&["pull", &debian()]), b"", Duration::from_mins(3));
    assert_eq!(done.code, 0, "{done:#?}");
    let script = format!(
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; \
         echo 'deb [trusted=yes] http://{}/ ./' >/etc/apt/sources.list; \
         apt-get -qq update && apt-get -qq install -y sublet-fixture >/dev/null 2>&1 && sublet-hello",
        server.address
    );
    let image = debian();
    let mut command = home.command(&["run", "--rm"]);
    command.args(home.limits(&image)).args([&image, "sh", "-c", &script]);
    let done = finish(&mut command, b"", Duration::from_mins(2));
    let asked = server.asked.lock().unwrap().clone();
    assert_eq!((done.code, done.stdout.as_str()), (0, "hello from a package\n"), "asked: {asked:?}\n{done:#?}");
}
