//! A disk that is full at any page, and one that has no inodes left: one clear error, and what is there is whole. What frees
//! space needs none.

use std::fs;
use std::process::Command;

use crate::support::{Home, LIMIT, Within, busybox, finish, identity, in_namespaces};
use crate::{du, serve};

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
         echo \"$small were too small\" >&2; cat err >&2"
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
    // The pull for which they were just enough.
    assert!(told.contains("warning: ") && told.contains(" inodes free"), "{told}");
}

/// Does something to a copy of the test's data, on disks that have this much more room than the copy needs.
fn on_growing_disks(home: &Home, command: &str, at_least: u32) {
    let data = home.directory.join("data");
    let (bin, kept) = (home.bin().display().to_string(), home.path("kept").display().to_string());
    let copied = finish(Command::new("cp").args(["-a"]).arg(&data).arg(&kept), b"", LIMIT);
    assert_eq!(copied.code, 0, "{copied:#?}");
    // A page for each file and directory more than du says, as a file system in memory counts.
    let size_kib = du(&data).div_ceil(1024);
    let script = format!(
        "size={size_kib}; small=0
         while :; do
             mount -t tmpfs -o size=${{size}}k tmpfs {data} || exit 1
             if cp -a {kept}/. {data} 2>/dev/null; then
                 before=$({bin} images -aq)
                 if {bin} {command} >out 2>err; then break; fi
                 small=$((small + 1))
                 grep -q 'No space left on device' err || {{ echo \"$size: no word of a full disk\"; cat err; }}
                 grep -q 'hint: ' err || {{ echo \"$size: no hint\"; cat err; }}
                 {bin} system fsck >out 2>&1 || {{ echo \"$size: not whole\"; cat out; }}
                 [ \"$({bin} images -aq 2>&1)\" = \"$before\" ] || echo \"$size: other images\"
             fi
             umount {data}
             size=$((size + 8))
             [ $size -lt {most} ] || {{ echo never; exit 1; }}
         done
         {bin} system fsck >out 2>&1 || {{ echo \"$size: not whole\"; cat out; }}
         umount {data}
         echo \"$small were too small\" >&2",
        data = data.display(),
        most = size_kib + 4000,
    );
    let Some(done) = in_namespaces(home, Within::Root, "mount -t tmpfs tmpfs /mnt", &script) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
    println!("{}", done.stderr);
    let small: u32 = done.stderr.split_whitespace().next().unwrap().parse().unwrap();
    assert!(small >= at_least, "{done:#?}");
}

#[test]
fn at_any_second_page_of_a_commit() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let noise = "dd if=/dev/urandom of=/noise bs=1k count=150 2>/dev/null";
    // What its own overlay has kept needs no namespace and no attributes of the disk.
    let options = ["run", "--name", "one", "--network", "none", "--storage-driver", "fuse"];
    home.ok(&[&options[..], &[&busybox(), "sh", "-c", noise]].concat());
    on_growing_disks(&home, "commit one made", 20);
}

#[test]
fn at_any_second_page_of_a_load() {
    let Some(home) = Home::new(&[]) else { return };
    let server = serve(&[("a", &[1, 2])]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    home.ok(&["save", "-o", "saved.tar", &name]);
    home.ok(&["rmi", &name]);
    home.ok(&["system", "prune", "-af"]);
    on_growing_disks(&home, "load -i saved.tar", 20);
}

/// What removes things does so on a copy of the test's data on a disk without a free byte, which `mount` puts on `$data`.
fn on_a_full_disk(home: &Home, mount: &str, commands: &[&str]) {
    let (bin, kept) = (home.bin().display().to_string(), home.path("kept").display().to_string());
    let data = home.directory.join("data");
    if !home.path("kept").exists() {
        let copied = finish(Command::new("cp").args(["-a"]).arg(&data).arg(&kept), b"", LIMIT);
        assert_eq!(copied.code, 0, "{copied:#?}");
    }
    let each = commands.iter().map(|command| format!("full {command}")).collect::<Vec<_>>().join("\n");
    let data = data.display();
    let prepare = format!("data={data}; {mount} && umount $data");
    let script = format!(
        "free() {{ df --output=avail -B1 $data | tail -n 1; }}
         full() {{
             {mount} || exit 1
             cp -a {kept}/. $data || exit 1
             dd if=/dev/zero of=$data/fill bs=4k 2>/dev/null
             n=0; while echo x 2>/dev/null >$data/fill-$n; do n=$((n + 1)); done
             before=$(free)
             [ $before -lt 4096 ] || echo \"$*: there is room\"
             {bin} \"$@\" >out 2>err || {{ echo \"$*: failed\"; cat err; }}
             [ $(free) -gt $((before + 90000)) ] || {{ echo \"$*: it freed nothing\"; cat out err; }}
             {bin} system fsck >out 2>&1 || {{ echo \"$*: not whole\"; cat out; }}
             umount $data
         }}
         {each}"
    );
    let Some(done) = in_namespaces(home, Within::Root, &prepare, &script) else { return };
    assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{done:#?}");
}

#[test]
fn what_frees_space_needs_none() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // Names for more than one block of a directory.
    let seeds: Vec<u64> = (1..25).collect();
    let server = serve(&[("a", &seeds)]);
    let name = format!("{}/a", server.address);
    home.ok(&["pull", &name]);
    let noise = "dd if=/dev/urandom of=/noise bs=1k count=150 2>/dev/null";
    let options = ["run", "--name", "one", "--network", "none", "--storage-driver", "fuse"];
    home.ok(&[&options[..], &[&busybox(), "sh", "-c", noise]].concat());
    let partial = home.store().join("store/ingest").join("0".repeat(64));
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("data"), crate::noise(7, 100_000)).unwrap();
    let rmi = format!("rmi {name}");
    let commands = [rmi.as_str(), "image prune -af", "rm one", "container prune -f", "system prune -af"];
    on_a_full_disk(&home, "mount -t tmpfs -o size=64m tmpfs $data", &commands);
    // A directory of ext4 needs a block for more names, as renames give the trash.
    if identity() == "root" {
        let disk = home.path("disk").display().to_string();
        let made = format!(
            "rm -f {disk} && truncate -s 64M {disk} && mke2fs -q -m 0 -b 1024 -t ext4 {disk} && mount -o loop {disk} $data"
        );
        on_a_full_disk(&home, &made, &commands);
    }
}
