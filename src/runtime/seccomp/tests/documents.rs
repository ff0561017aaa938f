//! Profiles in Docker's format.

use super::document::{DocumentError, Host, read};
use super::*;

const HOST: Host = Host { capabilities: 0, kernel: (6, 1), machine: Arch::ScmpArchX86_64 };
const SYS_ADMIN: u64 = 1 << 21;
const SYS_PTRACE: u64 = 1 << 19;

fn names(text: &str, host: Host) -> Vec<String> {
    let profile = read(text, host).unwrap().unwrap();
    profile.syscalls().iter().flatten().flat_map(|rule| rule.names().clone()).collect()
}

/// A profile of one rule, for `read`, with these further fields.
fn with(fields: &str) -> String {
    format!(
        r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{{"names":["read"],"action":"SCMP_ACT_ALLOW",{fields}}}]}}"#
    )
}

#[test]
fn every_field_is_read() {
    let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"defaultErrno":"ENOSYS",
        "archMap":[{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]},
                   {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],
        "flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/agent","listenerMetadata":"m",
        "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ERRNO","errnoRet":22,"errno":"EINVAL","comment":"c",
            "args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}],"includes":{},"excludes":{}}]}"#;
    let read_profile = read(text, HOST).unwrap().unwrap();
    let expected = parse(
        r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/agent","listenerMetadata":"m",
            "syscalls":[{"names":["read","write"],"action":"SCMP_ACT_ERRNO","errnoRet":22,
                "args":[{"index":1,"value":2,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#,
    );
    assert_eq!(read_profile, expected);
}

#[test]
fn rules_apply_by_capability_machine_and_kernel() {
    let applies = |fields: &str, host: Host| !names(&with(fields), host).is_empty();
    let capable = |capabilities| Host { capabilities, ..HOST };
    let kernel = |version, major| Host { kernel: (version, major), ..HOST };
    for (fields, host, expected) in [
        (r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, capable(SYS_ADMIN), true),
        (r#""includes":{"caps":["CAP_SYS_ADMIN"]}"#, HOST, false),
        (r#""includes":{"caps":["CAP_SYS_ADMIN","CAP_SYS_PTRACE"]}"#, capable(SYS_ADMIN), false),
        (r#""includes":{"caps":["CAP_SYS_ADMIN","CAP_SYS_PTRACE"]}"#, capable(SYS_ADMIN | SYS_PTRACE), true),
        (r#""includes":{"caps":["CAP_TIME_TRAVEL"]}"#, capable(capabilities::ALL), false),
        (r#""excludes":{"caps":["CAP_SYS_ADMIN","CAP_SYS_PTRACE"]}"#, capable(SYS_ADMIN), false),
        (r#""excludes":{"caps":["CAP_SYS_ADMIN"]}"#, capable(SYS_PTRACE), true),
        (r#""includes":{"arches":["amd64","x32"]}"#, HOST, true),
        (r#""includes":{"arches":["arm64"]}"#, HOST, false),
        (r#""excludes":{"arches":["amd64"]}"#, HOST, false),
        (r#""excludes":{"arches":["s390","s390x"]}"#, HOST, true),
        (r#""includes":{"minKernel":"4.8"}"#, kernel(4, 8), true),
        (r#""includes":{"minKernel":"4.8"}"#, kernel(4, 7), false),
        (r#""includes":{"minKernel":"4.8"}"#, kernel(5, 0), true),
        (r#""excludes":{"minKernel":"4.8"}"#, kernel(4, 8), false),
        (r#""excludes":{"minKernel":"4.8"}"#, kernel(3, 10), true),
        (r#""includes":{"minKernel":""}"#, kernel(2, 6), true),
        (r#""includes":null,"excludes":null,"args":null,"comment":null"#, HOST, true),
        (
            r#""includes":{"caps":["CAP_SYS_ADMIN"],"arches":["amd64"]},"excludes":{"minKernel":"7.0"}"#,
            capable(SYS_ADMIN),
            true,
        ),
    ] {
        assert_eq!(applies(fields, host), expected, "{fields} on {host:?}");
    }
}

#[test]
fn the_older_form_and_absent_lists() {
    let older = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","action":"SCMP_ACT_ERRNO"}]}"#;
    assert_eq!(names(older, HOST), ["read"]);
    let bare = read(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":null,"syscalls":null}"#, HOST);
    assert_eq!(bare.unwrap().unwrap(), parse(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":[],"syscalls":[]}"#));
    // Docker takes this to mean no filter.
    assert_eq!(read("{}", HOST).unwrap(), None);
    assert_eq!(read(r#"{"defaultAction":"","syscalls":[]}"#, HOST).unwrap(), None);
}

#[test]
fn documents_that_are_no_profiles() {
    let refusal = |text: &str| read(text, HOST).unwrap_err();
    assert!(matches!(
        refusal(r#"{"syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#),
        DocumentError::NoDefault
    ));
    assert!(matches!(
        refusal(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],
                "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":null}]}"#
        ),
        DocumentError::Both("architectures", "archMap")
    ));
    assert!(matches!(refusal(&with(r#""name":"write""#)), DocumentError::Both("name", "names")));
    for text in [
        String::new(),
        "[]".to_owned(),
        r#"{"defaultAction":"SCMP_ACT_DANCE"}"#.to_owned(),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["amd64"]}"#.to_owned(),
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"]}]}"#.to_owned(),
        with(r#""args":[{"index":0,"value":0,"op":"="}]"#),
        with(r#""args":[{"index":-1,"value":0,"op":"SCMP_CMP_EQ"}]"#),
        with(r#""includes":{"minKernel":"4"}"#),
        with(r#""includes":{"minKernel":"4.8.1"}"#),
        with(r#""includes":{"minKernel":"0.0"}"#),
        with(r#""includes":{"minKernel":4.8}"#),
    ] {
        assert!(matches!(refusal(&text), DocumentError::Format(_)), "{text}");
    }
}

/// Podman's default profile, where it is installed: it compiles, and nothing in it is without effect.
#[test]
fn the_profile_of_podman() {
    let Ok(text) = std::fs::read_to_string("/usr/share/containers/seccomp.json") else {
        println!("skipped: there is no /usr/share/containers/seccomp.json");
        return;
    };
    for set in [capabilities::default_set(), capabilities::ALL] {
        let profile = read(&text, Host::here(set)).unwrap().unwrap();
        let filter = compile(&profile).unwrap();
        assert_eq!(filter.ignored(), []);
        let native = abi(NATIVE);
        let answer = |name: &str| interpret(filter.instructions(), number(name, native), native, [0; 6]);
        assert_eq!(answer("openat"), ALLOW);
        assert_eq!(answer("bpf") == ALLOW, set == capabilities::ALL);
        println!("{} instructions", filter.instructions().len());
    }
    assert!(Host::here(0).kernel >= (4, 18));
}
