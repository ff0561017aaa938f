//! `--storage-opt size=`: the most that a container may write into its own layer.

use crate::support::{Home, busybox};

#[test]
fn a_container_writes_no_more_than_it_may() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let script = "dd if=/dev/zero of=/big bs=64k count=64 2>&1 | grep -o 'No space left on device'; stat -c %s /big; df -k / | tail -1";
    let done = home.run(&["run", "--name", "small", "--storage-opt", "size=2m", &image, "sh", "-c", script]);
    assert_eq!(done.code, 0, "{done:#?}");
    assert!(done.stderr.contains("storage driver: fuse, since overlay does not count"), "{done:#?}");
    let mut lines = done.stdout.lines();
    assert_eq!(lines.next(), Some("No space left on device"), "{done:#?}");
    let size: u64 = lines.next().unwrap().parse().unwrap();
    assert!((1 << 20..=2 << 20).contains(&size), "{size}");
    let df: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(df[1], "2048", "{df:?}");
    // Room that is given back can be taken again, and what is there can be written again.
    let script = "dd if=/dev/zero of=/big bs=64k count=16 conv=notrunc 2>/dev/null && echo again; : >/big; \
                  dd if=/dev/zero of=/other bs=64k count=24 2>/dev/null && echo other; rm /other; \
                  dd if=/dev/zero of=/third bs=64k count=24 2>/dev/null && echo third; rm /third; \
                  dd if=/dev/zero of=/sparse bs=1 count=1 seek=1073741823 2>/dev/null && echo sparse; \
                  dd if=/dev/zero of=/sparse bs=64k seek=100 count=64 conv=notrunc 2>/dev/null || echo full; rm /sparse; \
                  cp /bin/busybox /copy && cp /bin/busybox /copy2 && cp /bin/busybox /copy3 && cp /bin/busybox /copy4 && cp /bin/busybox /copy5 || echo full";
    let seen = home.ok(&["run", "--rm", "--storage-opt", "size=2m", &image, "sh", "-c", script]);
    assert_eq!(seen, "again\nother\nthird\nsparse\nfull\nfull\n");
    // Not without the limit.
    let script = "dd if=/dev/zero of=/big bs=64k count=64 2>/dev/null && echo written";
    assert_eq!(home.ok(&["run", "--rm", "--storage-driver", "fuse", &image, "sh", "-c", script]), "written\n");
}

#[test]
fn volumes_do_not_count_and_other_drivers_cannot() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let script = "dd if=/dev/zero of=/data/big bs=64k count=64 2>/dev/null && echo written";
    let size = ["run", "--rm", "--storage-opt", "size=1m"];
    assert_eq!(home.ok(&[&size[..], &["-v", "data:/data", &image, "sh", "-c", script]].concat()), "written\n");
    for (words, text) in [
        (
            vec!["--storage-driver", "overlay", &image],
            "the storage driver overlay keeps no container from writing more",
        ),
        (vec!["host:"], "the image host: keeps no container from writing more"),
    ] {
        let said = home.fails(125, &[&size[..], &words, &["true"]].concat());
        assert!(said.contains(text) && said.contains("hint: "), "{said}");
    }
    for (option, text) in [("size=0", "the size is 0"), ("size=x", "size=x"), ("inodes=1", "unknown storage option")] {
        let said = home.fails(125, &["run", "--rm", "--storage-opt", option, &image, "true"]);
        assert!(said.contains(text), "{said}");
    }
}
