//! Addresses and names that a container is given, and the host's resolvers, which change while it runs.

use std::fs;

use crate::support::http::{Answer, Server, primary_address};
use crate::support::{Home, Need, Within, busybox, in_namespaces, skip};

/// Answers at the address 127.0.0.N of its argument, for every name: 192.0.2.N.
const DNS_SERVER: &str = r#"use IO::Socket::INET;
my $n = shift;
my $s = IO::Socket::INET->new(Proto => 'udp', LocalAddr => "127.0.0.$n", LocalPort => 53) or die;
while ($s->recv(my $q, 512)) {
    my $is_a = substr($q, -4, 2) eq "\0\1";
    substr($q, 2, 2) = "\x81\x80";
    substr($q, 6, 2) = $is_a ? "\0\1" : "\0\0";
    $q .= "\xc0\x0c\0\1\0\1\0\0\0\5\0\4" . pack("C4", 192, 0, 2, $n) if $is_a;
    $s->send($q);
}
"#;

/// A machine of which the test can change the resolvers: a link leads to the file, and both are replaced in turn.
#[test]
fn the_hosts_resolvers_are_followed() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    fs::write(home.path("serve.pl"), DNS_SERVER).unwrap();
    let prepare = "set -e; mkdir -p etc link; cp -r /etc/. etc 2>/dev/null || true; rm -f etc/resolv.conf
        echo nameserver 127.0.0.53 >link/resolv.conf; ln -s \"$PWD/link/resolv.conf\" etc/resolv.conf
        mount --bind etc /etc; perl -MIO::Socket::INET -e 1; unshare --net ip link set lo up";
    let script = format!(
        "unshare --net sh -c '
        sublet() {{ {bin} \"$@\"; }}
        ip link set lo up
        for number in 53 54 55; do perl serve.pl $number >/dev/null 2>&1 & servers=\"$servers $!\"; done
        asked() {{ grep -o \"192\\.0\\.2\\.[0-9]*\"; }}
        becomes() {{
            for try in $(seq 100); do
                found=$(sublet exec web nslookup example.org 2>&1 | asked)
                [ \"$found\" = \"$1\" ] && break; sleep 0.1
            done
            echo \"$found\"
        }}
        sublet run -d --name web {image} sleep 600 >id
        becomes 192.0.2.53
        echo nameserver 127.0.0.54 >link/new; mv link/new link/resolv.conf
        becomes 192.0.2.54
        echo nameserver 127.0.0.55 >/etc/new; mv /etc/new /etc/resolv.conf
        becomes 192.0.2.55
        sublet run --rm --dns 127.0.0.54 {image} nslookup example.org | asked
        sublet rm -f web >id
        kill $servers'",
        bin = home.bin().display(),
        image = busybox(),
    );
    let Some(done) = in_namespaces(&home, Within::Caller, prepare, &script) else { return };
    assert_eq!(done.stdout, "192.0.2.53\n192.0.2.54\n192.0.2.55\n192.0.2.54\n", "{done:#?}");
}

#[test]
fn what_is_given_stands_in_place_of_the_hosts() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let given = ["--dns", "192.0.2.53", "--dns-search", "a.test", "--dns-search", "b.test", "--dns-option", "ndots:3"];
    let show = "cat /etc/resolv.conf";
    // The server of ours asks those that were given.
    assert_eq!(home.sh(&given, show), "nameserver 10.213.0.2\nsearch a.test b.test\noptions ndots:3\n");
    let on_host = home.sh(&[&["--network", "host"][..], &given].concat(), show);
    assert_eq!(on_host, "nameserver 192.0.2.53\nsearch a.test b.test\noptions ndots:3\n");
    home.ok(&[&["run", "--name", "one", "--network", "none"][..], &given, &[&busybox(), "true"]].concat());
    let shown = home.inspect("one", "{{.HostConfig.Dns}}{{.HostConfig.DnsSearch}}{{.HostConfig.DnsOptions}}");
    assert_eq!(shown, "[192.0.2.53][a.test b.test][ndots:3]");
    assert!(!home.sh(&["--dns-search", "."], show).contains("search"));
    let said = home.fails(125, &["run", "--dns", "nowhere", &busybox(), "true"]);
    assert!(said.contains("--dns"), "{said}");
}

#[test]
fn addresses_can_be_chosen() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(address, [("/".to_owned(), Answer::ok("text/plain", b"reached\n"))].into());
    let chosen = ["--ip", "10.213.0.7", "--ip6", "fd00:1:2:3::7", "--mac-address", "02:42:AC:11:00:07"];
    let script = format!(
        "cat /sys/class/net/eth0/address; ip addr show eth0 | grep -o -e '10.213.0.7/24' -e 'fd00:1:2:3::7/64'
        nslookup itself | grep -c -e 10.213.0.7 -e fd00:1:2:3::7; wget -q -O - http://{}/",
        server.address
    );
    let seen = home.sh(&[&chosen[..], &["--name", "itself"]].concat(), &script);
    assert_eq!(seen, "02:42:ac:11:00:07\n10.213.0.7/24\nfd00:1:2:3::7/64\n2\nreached\n");
    home.ok(&[&["run", "-d", "--name", "one"][..], &chosen, &[&busybox(), "sleep", "600"]].concat());
    let shown = home.inspect("one", "{{.NetworkSettings.IPAddress}} {{.NetworkSettings.MacAddress}}");
    assert_eq!(shown, "10.213.0.7 02:42:ac:11:00:07");
    for (options, words) in [
        (&["--ip", "192.0.2.9"][..], "no configured subnet contains IP address 192.0.2.9"),
        (&["--ip", "10.213.0.1"], "no configured subnet contains IP address 10.213.0.1"),
        (&["--ip6", "fe80::7"], "no configured subnet contains IP address fe80::7"),
        (&["--mac-address", "03:00:00:00:00:01"], "03:00:00:00:00:01 is not a valid mac address"),
        (&["--network", "none", "--ip", "10.213.0.7"], "user specified IP address is supported on the builtin network"),
        (
            &["--network", "host", "--mac-address", "02:00:00:00:00:01"],
            "conflicting options: mac-address and the network mode",
        ),
        (&["--network", "container:one", "--dns", "192.0.2.1"], "conflicting options: dns and the network mode"),
    ] {
        let said = home.fails(125, &[&["run", "--rm"][..], options, &[&busybox(), "true"]].concat());
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn the_host_has_names() {
    let Some(home) = Home::with_busybox(&[Need::Tun]) else { return };
    let Some(address) = primary_address() else { return skip("this machine has no route out") };
    let server = Server::start_on(address, [("/".to_owned(), Answer::ok("text/plain", b"the host\n"))].into());
    let port = server.address.port();
    for name in ["host.docker.internal", "host.containers.internal", "upstairs"] {
        let seen = home.sh(&["--add-host", "upstairs:host-gateway"], &format!("wget -q -O - http://{name}:{port}/"));
        assert_eq!(seen, "the host\n", "{name}");
    }
    let seen = home.sh(&[], "nslookup 10.213.0.1 | grep -o 'name = .*' | sort");
    assert_eq!(seen, "name = host.containers.internal\nname = host.docker.internal\n");
}
