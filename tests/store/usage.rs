//! `system df`: the sum is that of du(1), shares are true, what is reclaimable goes.

use serde_json::Value;

use crate::support::{Home, busybox, eventually};
use crate::{assert_sound, df, du, serve};

#[test]
fn the_sum_is_that_of_the_disk() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&[
        "run",
        "--name",
        "writer",
        "-v",
        "data:/data",
        &busybox(),
        "sh",
        "-c",
        "head -c 200000 /dev/zero >/data/x",
    ]);
    let host = home.store().join("hosts");
    let machine = std::fs::read_dir(&host).unwrap().next().unwrap().unwrap().path();
    let record = machine.join("containers").join(home.inspect("writer", "{{.Id}}")).join("pid.json");
    eventually("the monitor has done all that follows the end", || !record.exists());
    assert_sound(&home, "after a run");
    let volumes = du(&machine.join("volumes"));
    assert_eq!(df(&home, "Local Volumes", "SizeBytes"), volumes);
    assert_eq!(df(&home, "Containers", "SizeBytes"), du(&machine) - volumes);
    let table = home.ok(&["system", "df"]);
    let first: Vec<&str> = table.lines().take(5).map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(first, ["TYPE", "Images", "Containers", "Local Volumes", "Build Cache"], "{table}");
    assert!(table.lines().next().unwrap().split_whitespace().eq(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]));
    assert!(
        table.lines().any(|line| line.starts_with("Store: ") && line.contains("free on the file system")),
        "{table}"
    );
    let counts = home.ok(&["system", "df", "--format", "{{.TotalCount}}/{{.Active}}/{{.ReclaimableBytes}}"]);
    let reclaimable = df(&home, "Containers", "ReclaimableBytes");
    let expected = format!("1/1/0\n1/0/{reclaimable}\n1/1/0\n0/0/0\n");
    assert!(reclaimable > 0 && counts == expected, "{counts}");
    home.ok(&["rm", "writer"]);
    let (size, free) = (df(&home, "Local Volumes", "SizeBytes"), df(&home, "Local Volumes", "ReclaimableBytes"));
    assert!(free >= 200_000 && size - free <= 4096, "all but the directory of the volumes: {free} of {size}");
}

#[test]
fn what_images_share_is_told_apart() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2]), ("b", &[1, 3]), ("c", &[4])]);
    for name in ["a", "b", "c"] {
        home.ok(&["pull", &format!("{}/{name}", server.address)]);
    }
    let all: Value = serde_json::from_str(&home.ok(&["system", "df", "-v", "--format", "json"])).unwrap();
    let images = all["Images"].as_array().unwrap();
    let bytes = |name: &str, key: &str| -> u64 {
        let image = images.iter().find(|image| image["Repository"].as_str().unwrap().ends_with(name)).unwrap();
        image[key].as_str().unwrap().parse().unwrap()
    };
    assert_eq!(bytes("/a", "SharedBytes"), bytes("/b", "SharedBytes"));
    assert!(bytes("/a", "SharedBytes") > 200_000, "a blob and an object of 100 kB each, and more");
    assert!(bytes("/a", "UniqueBytes") > 200_000 && bytes("/c", "UniqueBytes") > 200_000);
    assert_eq!(bytes("/c", "SharedBytes"), 0);
    // What goes with an image is what only it needs.
    let before = df(&home, "Images", "SizeBytes");
    home.ok(&["rmi", &format!("{}/a", server.address)]);
    let freed = before - df(&home, "Images", "SizeBytes");
    assert!((0..=4096).contains(&(freed - bytes("/a", "UniqueBytes"))), "that, and the file of the name: {freed}");
    let verbose = home.ok(&["system", "df", "-v"]);
    for title in ["Images space usage:", "Containers space usage:", "Local Volumes space usage:", "SHARED SIZE"] {
        assert!(verbose.contains(title), "{verbose}");
    }
    assert_eq!(df(&home, "Images", "ReclaimableBytes"), {
        let left: Value = serde_json::from_str(&home.ok(&["system", "df", "-v", "--format", "json"])).unwrap();
        let bytes = |key: &str| {
            left["Images"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i[key].as_str().unwrap().parse::<u64>().unwrap())
                .sum::<u64>()
        };
        bytes("UniqueBytes") + bytes("SharedBytes")
    });
}

#[test]
fn without_a_store_there_is_nothing() {
    let Some(home) = Home::new(&[]) else { return };
    let rows = home.ok(&["system", "df", "--format", "{{.Type}}: {{.TotalCount}} {{.Size}} {{.Reclaimable}}"]);
    let expected = "Images: 0 0B 0B\nContainers: 0 0B 0B\nLocal Volumes: 0 0B 0B\nBuild Cache: 0 0B 0B\n";
    assert_eq!(rows, expected);
    assert!(home.ok(&["system", "fsck"]).contains("clean"));
    assert_eq!(home.ok(&["system", "prune", "-af"]), "Total reclaimed space: 0B\n");
    assert!(!home.store().exists(), "a question makes no directory");
}
