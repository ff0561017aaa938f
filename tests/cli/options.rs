//! The options of `run`, each seen from inside the container.

use std::fs;

use crate::support::{Home, Need, busybox};

#[test]
fn environment_directory_and_host_name() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let seen = home
        .sh(&["-e", "A=b c", "-w", "/var/www", "--hostname", "tester"], "echo \"$A|$FIXTURE|$PWD|$(hostname)|$HOME\"");
    assert_eq!(seen, "b c|busybox|/var/www|tester|/root\n");
}

#[test]
fn variables_come_from_a_file_and_the_options_win() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let file = home.path("env");
    fs::write(&file, "# comment\nA=from file\nB=x=y\n\nC=1\n").unwrap();
    let seen = home.sh(&["--env-file", file.to_str().unwrap(), "-e", "C=2"], "echo \"$A|$B|$C\"");
    assert_eq!(seen, "from file|x=y|2\n");
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
    let seen = home.sh(&["-v", &format!("{directory}:/data:ro")], "touch /data/x 2>/dev/null || echo refused");
    assert_eq!(seen, "refused\n");
}

#[test]
fn a_read_only_root_with_a_writable_tmpfs() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "touch /etc/x 2>/dev/null || echo refused; touch /scratch/x && echo written";
    assert_eq!(home.sh(&["--read-only", "--tmpfs", "/scratch"], script), "refused\nwritten\n");
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

#[test]
fn sensitive_files_are_masked() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    let script = "wc -c </proc/kcore; echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused";
    let seen = home.sh(&[], script);
    assert_eq!(seen, "0\nrefused\n");
}

#[test]
fn with_init_the_command_is_not_process_one_and_orphans_are_reaped() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.sh(&[], "echo $$"), "1\n");
    let script = "[ $$ != 1 ] && echo child; (sh -c 'sleep 0.1 &'); sleep 0.5; ps -o stat | grep -c Z";
    assert_eq!(home.run(&["run", "--rm", "--init", &busybox(), "sh", "-c", script]).stdout, "child\n0\n");
}

#[test]
fn descriptors_of_the_caller_and_of_the_engine_do_not_leak_in() {
    let Some(home) = Home::with_busybox(&[]) else { return };
    assert_eq!(home.sh(&[], "ls /proc/self/fd | tr '\\n' ' '"), "0 1 2 3 \n");
}
