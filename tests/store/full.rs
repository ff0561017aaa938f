//! A disk that is full at any page, and one that has no inodes left: one clear error, and what is there is whole.

use crate::serve;
use crate::support::{Home, Within, in_namespaces};

/// Pulls on file systems that grow until the image fits; prints what is wrong at which size, and how many were too small.
fn pull_on_growing_disks(option: &str, first: u32, step: u32) -> Option<String> {
    let home = Home::new(&[])?;
    let server = serve(&[("a", &[1, 2])]);
    let (data, bin) = (home.directory.join("data"), home.bin().display().to_string());
    let (data, address) = (data.display(), server.address);
    let script = format!(
        "size={first}; small=0
         while :; do
             mount -t tmpfs -o {option} tmpfs {data} || exit 1
             if {bin} pull -q {address}/a >out 2>err; then break; fi
             small=$((small + 1))
             grep -q 'No space left on device' err || {{ echo \"$size: no word of a full disk\"; cat err; }}
             grep -q 'hint: ' err || {{ echo \"$size: no hint\"; cat err; }}
             {bin} system fsck >out 2>&1 || {{ echo \"$size: not whole\"; cat out; }}
             [ \"$({bin} images -q 2>&1)\" = '' ] || echo \"$size: there is an image\"
             umount {data}
             size=$((size + {step}))
             [ $size -lt 4000 ] || {{ echo never; exit 1; }}
         done
         {bin} system fsck || echo \"$size: not whole\"
         umount {data}
         echo \"$small were too small\" >&2"
    );
    let done = in_namespaces(&home, Within::Root, "mount -t tmpfs tmpfs /mnt", &script)?;
    assert_eq!(done.code, 0, "{done:#?}");
    let lines: Vec<&str> = done.stdout.lines().filter(|line| !line.ends_with(": clean")).collect();
    assert!(lines.is_empty(), "{done:#?}");
    Some(done.stderr)
}

#[test]
fn at_any_page() {
    // Two halves, each with the limit of a whole run for itself.
    for first in [8, 12] {
        let Some(told) = pull_on_growing_disks("size=${size}k", first, 8) else { return };
        println!("{told}");
        let small: u32 = told.split_whitespace().next().unwrap().parse().unwrap();
        assert!(small > 40, "{told}");
    }
}

#[test]
fn at_any_inode() {
    let Some(told) = pull_on_growing_disks("nr_inodes=$size", 2, 1) else { return };
    println!("{told}");
    let small: u32 = told.split_whitespace().next().unwrap().parse().unwrap();
    assert!(small > 10, "{told}");
}
