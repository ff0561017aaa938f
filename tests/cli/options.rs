//! The options of `run`, each seen from inside the container.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fixture::image::{Image, LayerBuilder, Meta};
use serde_json::json;

use crate::support::http::{Server, registry_of};
use crate::support::oracle::host_busybox;
use crate::support::{Home, LIMIT, Need, busybox, finish, skip};

#[test]
fn environment_directory_and_host_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home
        .sh(&["-e", "A=b c", "-w", "/var/www", "--hostname", "tester"], "echo \"$A|$FIXTURE|$PWD|$(hostname)|$HOME\"");
    assert_eq!(seen, "b c|busybox|/var/www|tester|/root\n");
}

#[test]
fn variables_are_left_out_and_handed_on() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "echo ${FIXTURE-none} ${A-none} ${PATH:+path}";
    assert_eq!(home.sh(&["--unsetenv", "FIXTURE", "-e", "A=1"], script), "none 1 path\n");
    assert_eq!(home.sh(&["--unsetenv", "A", "-e", "A=1"], script), "busybox 1 path\n");
    assert_eq!(home.sh(&["--unsetenv-all"], script), "none none path\n");
    let mut command = home.command(&["run", "--rm", "--env-host", &busybox(), "sh", "-c", script]);
    // What the image has goes before.
    let done = finish(command.env("A", "here").env("FIXTURE", "here"), b"", LIMIT);
    assert_eq!(done.stdout, "busybox here path\n", "{done:#?}");
    fs::create_dir_all(home.path(".docker")).unwrap();
    fs::write(home.path(".docker/config.json"), r#"{"proxies":{"default":{"httpProxy":"http://p:1"}}}"#).unwrap();
    let script = "echo ${http_proxy-none}";
    assert_eq!(home.sh(&[], script), "http://p:1\n");
    assert_eq!(home.sh(&["--http-proxy=false"], script), "none\n");
}

#[test]
fn podmans_words_for_mask_hosts_zone_and_time() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.sh(&[], "umask"), "0022\n");
    home.ok(&["run", "-d", "--name", "masked", "--umask", "0077", &busybox(), "sleep", "600"]);
    let script = "umask; cat /proc/1/status | grep Umask | tail -c 5; touch /new; stat -c %a /new";
    assert_eq!(home.ok(&["exec", "masked", "sh", "-c", script]), "0077\n0077\n600\n");
    let said = home.fails(125, &["run", "--rm", "--umask", "0999", &busybox(), "true"]);
    assert!(said.contains("octal"), "{said}");
    assert_eq!(home.sh(&["--no-hosts"], "wc -c </etc/hosts"), "0\n", "the image has none");
    home.fails(125, &["run", "--rm", "--no-hosts", "--add-host", "a:192.0.2.1", &busybox(), "true"]);
    if std::path::Path::new("/usr/share/zoneinfo/Europe/Berlin").exists() {
        let seen = home.sh(&["--tz", "Europe/Berlin"], "tail -n 1 /etc/localtime");
        assert!(seen.starts_with("CET-1CEST"), "{seen}");
    }
    for zone in ["No/Where", "../passwd", ""] {
        let said = home.fails(125, &["run", "--rm", "--tz", zone, &busybox(), "true"]);
        assert!(said.contains("--tz"), "{said}");
    }
    let began = std::time::Instant::now();
    let done = home.run(&["run", "--name", "brief", "--timeout", "1", &busybox(), "sleep", "600"]);
    assert!(done.code == 137 && began.elapsed().as_secs() >= 1, "{done:#?}");
    assert_eq!(home.inspect("brief", "{{.State.Status}} {{.State.ExitCode}}"), "exited 137");
}

#[test]
fn what_is_empty_was_not_asked_for() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    // As the image says: `-u "$UNSET"` must not be root.
    let Some(program) = host_busybox() else { return skip("no static busybox on the host") };
    let program = fs::read(program).unwrap();
    let layer = LayerBuilder::default().file("bin/busybox", Meta::root(0o755), &program).unwrap().finish().unwrap();
    let config = json!({ "User": "1234", "WorkingDir": "/srv", "Env": ["HOME=/srv"] });
    let server = Server::start(registry_of("user", &Image::new(vec![layer], &config)));
    let image = format!("{}/user", server.address);
    let script = "for applet in 'id -u' pwd hostname; do /bin/busybox $applet; done";
    let options = ["run", "--rm", "-u", "", "-w", "", "--hostname", "", "--name", ""];
    let seen = home.ok(&[&options[..], &[&image, "/bin/busybox", "sh", "-c", script]].concat());
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..2], ["1234", "/srv"], "{seen}");
    assert!(lines[2].len() == 12 && lines[2].bytes().all(|byte| byte.is_ascii_hexdigit()), "{seen}");
}

#[test]
fn what_cannot_have_its_effect_is_told_or_refused() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let image = busybox();
    let done = home.run(&["run", "--rm", "--network", "none", "-p", "8080:80", &image, "true"]);
    assert!(done.code == 0 && done.stderr.contains("Published ports are discarded when using none"), "{done:#?}");
    let said = home.fails(125, &["run", "--rm", "--host-home", &image, "true"]);
    assert!(said.contains("--host-home") && said.contains("hint: "), "{said}");
    for command in [&["run", "--rm", "-w", "rel", &image, "pwd"][..], &["run", "--rm", "-w", "./rel", &image, "pwd"]] {
        let said = home.fails(125, command);
        assert!(said.contains("is invalid, it needs to be an absolute path"), "{said}");
    }
    let mut command = home.command(&["run", "--rm", "-e", "ODD", &image, "true"]);
    command.env("ODD", std::ffi::OsStr::from_bytes(b"\xff"));
    let done = finish(&mut command, b"", LIMIT);
    assert!(done.code == 125 && done.stderr.contains("the value of ODD in the environment is not UTF-8"), "{done:#?}");
    assert!(home.containers().is_empty());
}

#[test]
fn a_container_in_the_hosts_network_has_the_hosts_name_or_its_own() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let hosts = nix::unistd::gethostname().unwrap().into_string().unwrap();
    assert_eq!(home.sh(&["--network", "host"], "hostname; echo $HOSTNAME"), format!("{hosts}\n{hosts}\n"));
    assert_eq!(home.sh(&["--network", "host", "--hostname", "own"], "hostname; echo $HOSTNAME"), "own\nown\n");
}

#[test]
fn a_volume_by_a_relative_path_is_below_the_working_directory() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    fs::create_dir_all(home.path("below/here")).unwrap();
    fs::write(home.path("below/here/file"), "seen\n").unwrap();
    for source in [".", "./", "../here"] {
        let mut command = home.command(&["run", "--rm", "-v", &format!("{source}:/in"), &busybox(), "cat", "/in/file"]);
        let done = finish(command.current_dir(home.path("below/here")), b"", LIMIT);
        assert_eq!((done.code, done.stdout.as_str()), (0, "seen\n"), "{source}: {done:#?}");
    }
}

#[test]
fn the_mask_of_new_files_is_our_own() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    for mask in ["777", "277", "000"] {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &format!("umask {mask}; exec \"$0\" run --rm \"$1\" sh -c 'umask'")]);
        home.surround(command.arg(home.bin()).arg(busybox()));
        let done = finish(&mut command, b"", LIMIT);
        assert_eq!((done.code, done.stdout.as_str()), (0, "0022\n"), "{mask}: {done:#?}");
    }
    assert!(home.containers().is_empty());
}

#[test]
fn variables_come_from_a_file_and_the_options_win() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = home.path("env");
    // A name without a value takes it from here; one that is not here leaves the image's alone.
    fs::write(&file, "# comment\nA=from file\nB=x=y\n\nC=1\nHOME\nFIXTURE\n").unwrap();
    let seen = home.sh(&["--env-file", file.to_str().unwrap(), "-e", "C=2"], "echo \"$A|$B|$C|$HOME|$FIXTURE\"");
    assert_eq!(seen, format!("from file|x=y|2|{}|busybox\n", home.path("").to_str().unwrap().trim_end_matches('/')));
    fs::write(&file, "A B=c\n").unwrap();
    let said = home.fails(125, &["run", "--env-file", file.to_str().unwrap(), &busybox(), "true"]);
    assert!(said.contains("variable 'A B' contains whitespaces"), "{said}");
}

#[test]
fn a_container_is_told_of_the_proxies_of_dockers_configuration() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    fs::create_dir(home.path(".docker")).unwrap();
    let config = r#"{"proxies":{"default":{"httpProxy":"http://proxy.example:3128","noProxy":"example.org"}}}"#;
    fs::write(home.path(".docker/config.json"), config).unwrap();
    let script = "echo $HTTP_PROXY $http_proxy $NO_PROXY $no_proxy";
    assert_eq!(home.sh(&[], script), "http://proxy.example:3128 http://proxy.example:3128 example.org example.org\n");
    assert_eq!(home.sh(&["-e", "http_proxy=own", "-e", "HTTP_PROXY="], script), "own example.org example.org\n");
    fs::write(home.path(".docker/config.json"), "{").unwrap();
    let done = home.run(&["run", "--rm", &busybox(), "true"]);
    assert!(done.code == 0 && done.stderr.contains("told of no proxies: reading"), "{done:#?}");
}

#[test]
fn our_own_directories_are_not_shared() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    std::os::unix::fs::symlink(home.store(), home.path("alias")).unwrap();
    let places =
        [home.store(), home.store().join("store/blobs"), home.directory.join("run/sublet"), home.path("alias")];
    for place in places {
        let volume = format!("{}:/in", place.display());
        let said = home.fails(125, &["run", "--rm", "-v", &volume, &busybox(), "true"]);
        assert!(said.contains("sublet's own") && said.contains("hint: "), "{said}");
    }
    for container in home.containers() {
        home.ok(&["rm", &container]);
    }
}

#[test]
fn a_shared_home_does_not_hold_our_own_directories() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    fs::write(home.path("mine"), "seen\n").unwrap();
    let volume = format!("{}:/in", home.directory.display());
    let script =
        "cat /in/home/mine; ls -A /in/data/sublet /in/run/sublet; touch /in/data/sublet/x 2>/dev/null || echo closed";
    assert_eq!(home.sh(&["-v", &volume], script), "seen\n/in/data/sublet:\n\n/in/run/sublet:\nclosed\n");
}

#[test]
fn a_user_by_number_and_by_name() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    assert_eq!(home.sh(&["-u", "1234:5678"], "id -u; id -g"), "1234\n5678\n");
    assert_eq!(home.sh(&["-u", "app"], "id -u; id -g; id -G"), "1234\n5678\n5678 777\n");
}

#[test]
fn an_entry_point_takes_the_commands_place() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.ok(&["run", "--rm", "--entrypoint", "echo", &busybox(), "a", "b"]);
    assert_eq!(seen, "a b\n");
}

#[test]
fn a_host_directory_is_shared_and_can_be_read_only() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let directory = home.path("shared");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("in"), "from host\n").unwrap();
    let directory = directory.to_str().unwrap();
    let seen = home.sh(&["-v", &format!("{directory}:/data")], "cat /data/in; echo from container >/data/out");
    assert_eq!(seen, "from host\n");
    assert_eq!(fs::read_to_string(home.path("shared/out")).unwrap(), "from container\n");
    let made = fs::metadata(home.path("shared/out")).unwrap();
    assert_eq!(made.uid(), nix::unistd::getuid().as_raw(), "root inside is the caller in what is bound in");
    let owned = home.sh(&["-v", &format!("{directory}:/data")], "stat -c '%u %g' /data/in /data/out /etc/hosts");
    assert_eq!(owned, "0 0\n0 0\n0 0\n");
    let seen = home.sh(&["-v", &format!("{directory}:/data:ro")], "touch /data/x 2>/dev/null || echo refused");
    assert_eq!(seen, "refused\n");
}

#[test]
fn a_host_directory_that_is_missing_is_made() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let directory = home.path("not/yet/there");
    home.sh(&["-v", &format!("{}:/data", directory.display())], "echo x >/data/file");
    let made = fs::metadata(&directory).unwrap();
    assert!(made.is_dir() && made.permissions().mode() & 0o777 == 0o755, "{made:?}");
    assert_eq!(made.uid(), nix::unistd::getuid().as_raw());
    assert_eq!(fs::read_to_string(directory.join("file")).unwrap(), "x\n");
    if crate::support::identity() != "root" {
        let said = home.fails(125, &["run", "--rm", "-v", "/not-ours/new:/data", &busybox(), "true"]);
        assert!(said.contains("creating mount source path /not-ours/new"), "{said}");
    }
}

#[test]
fn labels_are_in_the_container_and_their_names_have_no_blanks() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    home.ok(&["run", "--name", "named", "--label", "com.example.a=b c", "-l", "alone", &busybox(), "true"]);
    let format = "{{index .Config.Labels \"com.example.a\"}}|{{index .Config.Labels \"alone\"}}";
    assert_eq!(home.inspect("named", format), "b c|");
    home.fails(125, &["run", "--label", "a b=c", &busybox(), "true"]);
    home.fails(125, &["run", "--label", "=c", &busybox(), "true"]);
}

#[test]
fn a_read_only_root_with_a_writable_tmpfs() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "touch /etc/x 2>/dev/null || echo refused; touch /scratch/x && echo written";
    assert_eq!(home.sh(&["--read-only", "--tmpfs", "/scratch"], script), "refused\nwritten\n");
    let mounted = "grep ' /scratch ' /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E '^(rw|no(suid|dev|exec)|size.*|mode.*)$'";
    let seen = home.sh(&["--tmpfs", "/scratch"], mounted);
    assert_eq!(seen, "rw\nnosuid\nnodev\nnoexec\n");
    let seen = home.sh(&["--tmpfs", "/scratch:exec,size=64k,mode=700"], mounted);
    assert_eq!(seen, "rw\nnosuid\nnodev\nsize=64k\nmode=700\n");
    let said = home.fails(125, &["run", "--rm", "--tmpfs", "/scratch:shared", &busybox(), "true"]);
    assert!(said.contains("invalid tmpfs option \"shared\""), "{said}");
}

#[test]
fn added_hosts_are_in_the_hosts_file() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home.sh(&["--add-host", "db:192.0.2.7"], "grep -w db /etc/hosts | tr -s '\\t ' ' '");
    assert_eq!(seen, "192.0.2.7 db\n");
}

#[test]
fn the_capability_set_is_dockers_and_can_be_changed() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let effective = |options: &[&str]| home.sh(options, "grep CapEff /proc/self/status | cut -f2");
    assert_eq!(effective(&[]), "00000000a80425fb\n");
    assert_eq!(effective(&["--cap-drop", "ALL"]), "0000000000000000\n");
    assert_eq!(effective(&["--cap-drop", "ALL", "--cap-add", "CHOWN"]), "0000000000000001\n");
    assert_eq!(effective(&["--cap-add", "SYS_PTRACE"]), "00000000a80c25fb\n");
}

#[test]
fn system_calls_are_filtered_unless_asked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let mode = "grep -w Seccomp /proc/self/status | cut -f2";
    assert_eq!(home.sh(&[], mode), "2\n");
    assert_eq!(home.sh(&["--security-opt", "seccomp=unconfined"], mode), "0\n");
    let nested = "unshare -U true 2>/dev/null && echo made || echo refused";
    assert_eq!(home.sh(&[], nested), "refused\n");
}

/// Docker's format: rules by capability, an errno of one's own; what cannot be kept is told or refused.
#[test]
fn seccomp_profiles_are_read_as_docker_reads_them() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = home.path("profile.json");
    let option = format!("seccomp={}", file.display());
    let rule = r#"{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":28,"comment":"full",
        "includes":{"minKernel":"4.8"},"excludes":{"caps":["CAP_SYS_NICE"]}},
        {"names":["no_such_call"],"action":"SCMP_ACT_LOG"}"#;
    let write = |rules: &str| {
        fs::write(&file, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rules}]}}"#)).unwrap();
    };
    write(rule);
    let script = "touch /f; chmod 600 /f 2>&1 && echo done";
    let image = busybox();
    let refused = home.run(&["run", "--rm", "--security-opt", &option, &image, "sh", "-c", script]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, "chmod: /f: No space left on device\n"), "{refused:#?}");
    assert!(refused.stderr.contains(r#"unknown system call "no_such_call""#), "{refused:#?}");
    assert_eq!(home.sh(&["--security-opt", &option, "--cap-add", "SYS_NICE"], script), "done\n");

    let fails = || home.fails(125, &["run", "--rm", "--security-opt", &option, &image, "true"]);
    write(r#"{"names":["chmod"],"action":"SCMP_ACT_NOTIFY"}"#);
    assert!(fails().contains("no listenerPath"));
    write(r#"{"names":["chmod"],"action":"SCMP_ACT_ALLOW","errnoRet":1}"#);
    assert!(fails().contains("returns no value"));
    write(r#"{"names":["chmod"],"action":"SCMP_ACT_DANCE"}"#);
    assert!(fails().contains("decoding the seccomp profile failed"));
}

#[test]
fn sensitive_files_are_masked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    // Not every kernel has every one of these files.
    let masked = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"];
    let here: Vec<&str> = masked.into_iter().filter(|path| fs::exists(path).unwrap_or(false)).collect();
    assert!(here.len() >= 2, "the kernel has only {here:?}");
    for path in &here {
        assert_eq!(home.sh(&[], &format!("wc -c <{path}")), "0\n", "{path}");
    }
    let seen = home.sh(&[], "echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused");
    assert_eq!(seen, "refused\n");
}

#[test]
fn with_init_the_command_is_not_process_one_and_orphans_are_reaped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.sh(&[], "echo $$"), "1\n");
    let script = "[ $$ != 1 ] && echo child; (sh -c 'sleep 0.1 &'); sleep 0.5; ps -o stat | grep -c Z";
    assert_eq!(home.run(&["run", "--rm", "--init", &busybox(), "sh", "-c", script]).stdout, "child\n0\n");
    // The reaper lets nobody look into it, and exec has to find the container's namespaces all the same.
    home.ok(&["run", "-d", "--init", "--name", "reaped", &busybox(), "sleep", "600"]);
    let out = home.ok(&["exec", "reaped", "sh", "-c", "readlink /proc/self/ns/mnt; readlink /proc/2/ns/mnt"]);
    let both: Vec<&str> = out.lines().collect();
    assert!(both.len() == 2 && both[0] == both[1], "{out}");
}

#[test]
fn nothing_of_the_host_stays_mounted_inside() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let points = home.sh(&[], "cut -d' ' -f5 /proc/self/mountinfo");
    let (own, bound) = (["/", "/dev", "/proc", "/sys"], ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]);
    for own in own {
        assert_eq!(points.lines().filter(|point| *point == own).count(), 1, "{own}: {points}");
    }
    let below = |point: &str| own[1..].iter().any(|own| point.starts_with(&format!("{own}/")));
    let foreign = points.lines().filter(|point| !own.contains(point) && !bound.contains(point) && !below(point));
    assert_eq!(foreign.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn standard_streams_can_be_opened_again() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "echo out >/dev/stdout; echo err >/dev/stderr";
    let done = home.run(&["run", "--name", "streams", &busybox(), "sh", "-c", script]);
    assert!(done.code == 0 && done.stdout == "out\n" && done.stderr.ends_with("err\n"), "{done:#?}");
    home.ok(&["run", "-d", "--name", "executed", &busybox(), "sleep", "600"]);
    let done = home.run(&["exec", "executed", "sh", "-c", script]);
    assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "out\n", "err\n"));
}

#[test]
fn standard_streams_can_be_opened_again_by_another_user() {
    let Some(home) = Home::with_busybox(&[Need::Subids]) else { return };
    assert_eq!(home.sh(&["-u", "app"], "echo out >/dev/stdout"), "out\n");
}

#[test]
fn descriptors_of_the_caller_and_of_the_engine_do_not_leak_in() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.sh(&[], "ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 ");
}
