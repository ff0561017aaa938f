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

/// The container's resolv.conf: our server, with the host's `search` and `options`.
pub fn resolv_conf(host: &str, addressing: &Addressing) -> String {
    let mut text = format!("nameserver {}\n", addressing.v4.dns);
    for line in host.lines().map(str::trim) {
        if ["search ", "domain ", "options "].iter().any(|word| line.starts_with(word)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The container's hosts file. `added` are the pairs of `--add-host`; an address of `None` is `host-gateway`.
pub fn hosts(addressing: &Addressing, names: &[&str], added: &[(String, Option<IpAddr>)]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let _ = writeln!(text, "{}\t{}", addressing.v4.gateway, HOST_NAMES.join(" "));
    for (name, address) in added {
        let _ = writeln!(text, "{}\t{name}", address.unwrap_or(addressing.v4.gateway.into()));
    }
    if !names.is_empty() {
        let names = names.join(" ");
        let _ = write!(text, "{}\t{names}\n{}\t{names}\n", addressing.v4.container, addressing.v6.container);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_lines_of_resolv_conf_are_skipped() {
        let text = "# comment\nnameserver fe80::1%eth0\n nameserver 127.0.0.53\nnameserver ::1\nsearch a b\n";
        let expected: [SocketAddr; 2] = [([127, 0, 0, 53], 53).into(), (std::net::Ipv6Addr::LOCALHOST, 53).into()];
        assert_eq!(name_servers(text), expected);
    }
}
