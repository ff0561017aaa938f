//! What a container finds in `/etc/resolv.conf` and `/etc/hosts`, and what the host's resolv.conf says.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::Addressing;

/// The names under which a container reaches its host.
pub const HOST_NAMES: [&str; 2] = ["host.docker.internal", "host.containers.internal"];

/// The name servers in a resolv.conf(5), at most three. Lines that cannot be read (scoped addresses) are skipped.
pub fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(3)
        .collect()
}

/// The container's resolv.conf: the host's, with these words in place of what it has after the same keyword. No words
/// leave the host's; a `search` of `.` alone is none.
pub fn resolv_conf(host: &str, nameserver: &[IpAddr], search: &[String], options: &[String]) -> String {
    let keeps = |line: &&str| match line.split_whitespace().next() {
        Some("nameserver") => nameserver.is_empty(),
        Some("search" | "domain") => search.is_empty(),
        Some("options") => options.is_empty(),
        // Comments tell how the host's file is made.
        _ => false,
    };
    let mut lines: Vec<String> = nameserver.iter().map(|address| format!("nameserver {address}\n")).collect();
    lines.extend(host.lines().map(str::trim).filter(keeps).map(|line| format!("{line}\n")));
    if !search.is_empty() && search != ["."] {
        lines.push(format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        lines.push(format!("options {}\n", options.join(" ")));
    }
    lines.concat()
}

/// The container's hosts file, with its addresses in all of its networks; `host` is the machine's address as it sees it.
/// `added` are the pairs of `--add-host`; an address of `None` is `host-gateway`.
pub fn hosts(addressing: &[&Addressing], host: IpAddr, names: &[&str], added: &[(String, Option<IpAddr>)]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let _ = writeln!(text, "{host}\t{}", HOST_NAMES.join(" "));
    for (name, address) in added {
        let _ = writeln!(text, "{}\t{name}", address.unwrap_or(host));
    }
    let names = names.join(" ");
    for Addressing { v4, v6, .. } in addressing.iter().filter(|_| !names.is_empty()) {
        let own = [IpAddr::from(v4.container), v6.container.into()];
        for address in own.into_iter().filter(|address| !address.is_unspecified()) {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_in_place_of_the_hosts() {
        let host = "# made\nnameserver 192.0.2.1\ndomain a.test\noptions ndots:2\nsortlist 192.0.2.0\n";
        let words = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let own = [IpAddr::from([10, 213, 0, 2])];
        let kept = "nameserver 10.213.0.2\ndomain a.test\noptions ndots:2\n";
        assert_eq!(resolv_conf(host, &own, &[], &[]), kept);
        assert_eq!(resolv_conf(host, &[], &words(&["."]), &words(&["edns0"])), "nameserver 192.0.2.1\noptions edns0\n");
        let both = resolv_conf(host, &own, &words(&["b.test", "c.test"]), &words(&["ndots:1", "rotate"]));
        assert_eq!(both, "nameserver 10.213.0.2\nsearch b.test c.test\noptions ndots:1 rotate\n");
    }

    #[test]
    fn odd_lines_of_resolv_conf_are_skipped() {
        let text = "# comment\nnameserver fe80::1%eth0\n nameserver 127.0.0.53\nnameserver ::1\nsearch a b\n";
        let expected: [SocketAddr; 2] = [([127, 0, 0, 53], 53).into(), (std::net::Ipv6Addr::LOCALHOST, 53).into()];
        assert_eq!(name_servers(text), expected);
    }
}
