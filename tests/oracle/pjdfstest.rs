//! The suite `pjdfstest` as root of a container, with each storage driver, and as root of a user namespace on the kernel's
//! overlayfs: what passes there passes here.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::oracle::host_busybox;
use crate::support::{DRIVERS, Home, Need, busybox, copy_program, finish, skip, variable};

/// One run takes some seconds.
const SUITE_LIMIT: Duration = Duration::from_mins(2);

/// Everything but what only BSD has, and remounting, for which a container has no right. The suite waits `naptime` seconds
/// where times must differ: more than the tick by which file systems stamp files.
const CONFIG: &str = "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\n[settings]\nnaptime = 0.015\n";

/// The users that the suite becomes, beside root.
const USERS: &str = "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\ntests:x:1234:1234::/:/bin/sh\n";
const GROUPS: &str = "root:x:0:\nnobody:x:65534:\ntests:x:1234:\n";

/// How each test ended, and the reason if it failed.
type Results = BTreeMap<String, (String, String)>;

/// Lines of a name and a verdict; what stands behind a tabulator belongs to the line before.
fn results(output: &str) -> Results {
    let mut results = Results::new();
    let mut name = String::new();
    for line in output.lines() {
        if let Some(reason) = line.strip_prefix('\t') {
            if let Some((_, reasons)) = results.get_mut(&name) {
                reasons.push_str(reason);
            }
        } else if let [first, verdict @ ("ok" | "FAILED" | "skipped")] = line.split_whitespace().collect::<Vec<_>>()[..]
        {
            first.clone_into(&mut name);
            results.insert(name.clone(), (verdict.to_owned(), String::new()));
        }
    }
    results
}

#[test]
fn no_test_of_pjdfstest_fails_that_passes_on_overlayfs() {
    let Some(home) = Home::with_busybox(&[Need::PlainUser, Need::Subids, Need::Fuse]) else { return };
    let Some(program) = variable("PJDFSTEST") else { return skip("pjdfstest could not be built") };
    let suite = home.path("lower");
    for directory in ["bin", "etc", "tests", "other"] {
        fs::create_dir_all(suite.join(directory)).unwrap();
    }
    copy_program(program, &suite.join("pjdfstest"));
    // The suite looks for a program that it can start.
    let Some(busybox_of_host) = host_busybox() else { return skip("no static busybox on the host") };
    copy_program(busybox_of_host, &suite.join("bin/busybox"));
    for applet in ["env", "sleep", "which"] {
        std::os::unix::fs::symlink("busybox", suite.join("bin").join(applet)).unwrap();
    }
    for (name, text) in [("pjdfstest.toml", CONFIG), ("etc/passwd", USERS), ("etc/group", GROUPS)] {
        fs::write(suite.join(name), text).unwrap();
    }
    let options = "-c /pjdfstest.toml -s /other -p /tests";
    let on_overlayfs = format!(
        "mkdir upper work merged && mount -t overlay -o userxattr,xino=on,lowerdir=lower,upperdir=upper,workdir=work overlay \
         merged && mount -t tmpfs tmpfs merged/other && chroot merged /bin/env PATH=/bin NO_COLOR=1 /pjdfstest {options}"
    );
    let mut oracle = Command::new("unshare");
    oracle.args(["--user", "--map-root-user", "--map-auto", "--mount", "sh", "-c", &on_overlayfs]);
    home.surround(&mut oracle);
    let oracle = finish(&mut oracle, b"", SUITE_LIMIT);
    // Root of a namespace owns what the suite has left there.
    let mut clear = Command::new("unshare");
    clear.args(["--user", "--map-root-user", "--map-auto", "rm", "-rf", "upper", "work"]);
    home.surround(&mut clear);
    assert_eq!(finish(&mut clear, b"", SUITE_LIMIT).code, 0);
    let expected = results(&oracle.stdout);
    if expected.is_empty() {
        return skip(&format!("overlayfs cannot be mounted in a user namespace here: {}", oracle.stderr));
    }
    let passed = |results: &Results| results.values().filter(|(verdict, _)| verdict == "ok").count();
    assert!(passed(&expected) > 200, "{oracle:#?}");
    println!("overlayfs: {} of {} passed", passed(&expected), expected.len());
    let volume = format!("{}:/suite:ro", suite.display());
    let script = format!(
        "cp /suite/etc/* /etc/ && cp /suite/pjdfstest* / && mkdir /tests && NO_COLOR=1 exec /pjdfstest {options}"
    );
    for driver in DRIVERS {
        let image = busybox();
        let run = ["run", "--rm", "--network", "none", "--storage-driver", driver, "-v", &volume, "--tmpfs", "/other"];
        let mut command = home.command(&[&run[..], &[&image, "sh", "-c", &script]].concat());
        let ours = finish(&mut command, b"", SUITE_LIMIT);
        let found = results(&ours.stdout);
        println!("{driver}: {} of {} passed", passed(&found), found.len());
        let worse: Vec<_> = expected
            .iter()
            .filter(|(name, (verdict, _))| verdict == "ok" && found.get(*name).is_none_or(|(ours, _)| ours != "ok"))
            .map(|(name, _)| (name, found.get(name)))
            .collect();
        assert!(worse.is_empty(), "{driver}: {worse:#?}\n{}", ours.stderr);
    }
}
