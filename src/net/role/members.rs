//! Who is in a network: its one container, or those that have joined; what addresses and names they have.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use netstack::{Member, NameTable, Rule};
use nix::errno::Errno;

use crate::control::{Message, NAME_MAX, Wish, names_in_parts, send_now, take_names};
use crate::{Addressing, Family, NetError, NetworkSpec, egress, files};

/// Members at a time.
pub const MEMBERS_MAX: usize = 1024;
/// Names of one member.
const NAMES_MAX: usize = 64;

/// A connection, and what its container has.
#[derive(Debug)]
pub struct Connection {
    /// Its end is the member's.
    pub control: OwnedFd,
    /// `None` until it has joined.
    pub joined: Option<Joined>,
    /// Whether it is told the names of the network.
    follows: bool,
    /// Whether there are others since it was told last.
    behind: bool,
    /// The table that it is being told.
    telling: Option<Telling>,
    /// Names of its other networks.
    others: NameTable,
}

impl Connection {
    /// Of who has just come, or of the only one there is.
    pub fn new(control: OwnedFd, joined: Option<Joined>) -> Self {
        Connection { control, joined, follows: false, behind: false, telling: None, others: NameTable::new() }
    }
}

/// A table of names on its way, of which the first so many parts have been taken.
#[derive(Debug)]
struct Telling {
    parts: Arc<[Message]>,
    taken: usize,
}

impl Telling {
    fn new(names: &NameTable) -> Self {
        Telling { parts: names_in_parts(names).into(), taken: 0 }
    }

    /// Sends what is taken now; whether something is left. Who has gone shows that elsewhere.
    fn go_on(&mut self, control: BorrowedFd<'_>) -> bool {
        while let Some(part) = self.parts.get(self.taken) {
            match send_now(control, part) {
                Ok(()) => self.taken += 1,
                Err(error) => return matches!(error, NetError::System(error) if error.errno() == Errno::EAGAIN),
            }
        }
        false
    }
}

/// A member.
#[derive(Debug)]
pub struct Joined {
    id: String,
    names: Vec<String>,
    /// Names of its own for others, each with a name that these have.
    links: Vec<(String, String)>,
    resolvers: Option<Vec<SocketAddr>>,
    egress: Option<Arc<[Rule]>>,
    rate: Option<u64>,
    member: Member,
}

impl Joined {
    /// The only container of a network of its own, which has its names elsewhere.
    pub fn alone(addressing: &Addressing, egress: Option<Arc<[Rule]>>, rate: Option<u64>) -> Self {
        let member = Member {
            v4: addressing.v4.container,
            v6: addressing.v6.container,
            // As far as is known: its device is not there yet.
            ipv6: true,
            mac: addressing.mac,
        };
        Joined { id: String::new(), names: Vec::new(), links: Vec::new(), resolvers: None, egress, rate, member }
    }

    /// Its own names for those that have names in this table now.
    fn linked(&self, names: &NameTable) -> NameTable {
        let linked = self.links.iter().filter_map(|(link, name)| {
            let (_, addresses) = names.iter().find(|(known, _)| known == name)?;
            Some((link.clone(), addresses.clone()))
        });
        linked.collect()
    }
}

/// All connections, by numbers that are not used again.
#[derive(Debug, Default)]
pub struct Members {
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// Whether anyone has ever joined.
    had_any: bool,
    /// The address that the last one got without asking for it.
    last: Option<Ipv4Addr>,
}

impl Members {
    /// Adds a connection; its number.
    pub fn add(&mut self, connection: Connection) -> u64 {
        self.next += 1;
        self.connections.insert(self.next, connection);
        self.next
    }

    pub fn get(&self, number: u64) -> Option<&Connection> {
        self.connections.get(&number)
    }

    pub fn remove(&mut self, number: u64) -> Option<Connection> {
        self.connections.remove(&number)
    }

    /// Whether anyone has ever joined.
    pub fn had_any(&self) -> bool {
        self.had_any
    }

    pub fn len(&self) -> usize {
        self.connections.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn joined(&self) -> impl Iterator<Item = &Joined> {
        self.connections.values().filter_map(|connection| connection.joined.as_ref())
    }

    /// Whose IPv4 address stands for the container behind a connection.
    pub fn address(&self, number: u64) -> Option<Ipv4Addr> {
        self.get(number)?.joined.as_ref().map(|joined| joined.member.v4)
    }

    /// Its MAC.
    pub fn mac(&self, number: u64) -> Option<[u8; 6]> {
        self.get(number)?.joined.as_ref().map(|joined| joined.member.mac)
    }

    /// Notes whether a member has IPv6.
    pub fn set_ipv6(&mut self, number: u64, ipv6: bool) {
        if let Some(joined) = self.connections.get_mut(&number).and_then(|connection| connection.joined.as_mut()) {
            joined.member.ipv6 = ipv6;
        }
    }

    /// Gives a member other names; more than [`NAMES_MAX`] are none of ours.
    pub fn call(&mut self, number: u64, names: Vec<String>) {
        if let Some(joined) = self.connections.get_mut(&number).and_then(|connection| connection.joined.as_mut())
            && names.len() <= NAMES_MAX
        {
            joined.names = lower(names);
        }
    }

    /// What the stack is to know of them.
    pub fn members(&self) -> netstack::Members {
        self.joined().map(|joined| joined.member).collect()
    }

    /// The names of all, in lower case, each with the addresses of everyone who has it, the first to join first.
    pub fn names(&self) -> NameTable {
        let mut names = NameTable::new();
        for joined in self.joined() {
            let mut addresses = vec![IpAddr::V4(joined.member.v4)];
            addresses.extend(joined.member.ipv6.then_some(IpAddr::V6(joined.member.v6)));
            for name in &joined.names {
                match names.iter_mut().find(|(known, _)| known == name) {
                    Some((_, known)) => known.extend(&addresses),
                    None => names.push((name.clone(), addresses.clone())),
                }
            }
        }
        names
    }

    /// The names that single members find besides.
    pub fn others(&self) -> BTreeMap<Ipv4Addr, NameTable> {
        let has_others = |connection: &&Connection| !connection.others.is_empty();
        let connections = self.connections.values().filter(has_others);
        connections
            .filter_map(|connection| Some((connection.joined.as_ref()?.member.v4, connection.others.clone())))
            .collect()
    }

    /// The names that single members have for others.
    pub fn links(&self) -> BTreeMap<Ipv4Addr, NameTable> {
        let names = self.names();
        let linked = self.joined().filter(|joined| !joined.links.is_empty());
        linked.map(|joined| (joined.member.v4, joined.linked(&names))).collect()
    }

    /// The resolvers of members that have their own.
    pub fn resolvers(&self) -> BTreeMap<Ipv4Addr, Vec<SocketAddr>> {
        self.joined().filter_map(|joined| Some((joined.member.v4, joined.resolvers.clone()?))).collect()
    }

    /// How many bits a second those of them may carry that have a limit.
    pub fn rates(&self) -> BTreeMap<Ipv4Addr, u64> {
        self.joined().filter_map(|joined| Some((joined.member.v4, joined.rate?))).collect()
    }

    /// What members may reach that have rules for it.
    pub fn egress(&self) -> BTreeMap<Ipv4Addr, Arc<[Rule]>> {
        self.joined().filter_map(|joined| Some((joined.member.v4, joined.egress.clone()?))).collect()
    }

    /// Takes a part of a member's table of other networks.
    pub fn take_others(&mut self, number: u64, first: bool, names: NameTable) {
        if let Some(connection) = self.connections.get_mut(&number) {
            take_names(&mut connection.others, first, names);
        }
    }

    /// Tells a member the names from now on.
    pub fn follow(&mut self, number: u64) {
        if let Some(connection) = self.connections.get_mut(&number) {
            (connection.follows, connection.behind) = (true, true);
        }
    }

    /// There are other names: who follows is to be told.
    pub fn names_changed(&mut self) {
        self.connections.values_mut().for_each(|connection| connection.behind = connection.follows);
    }

    /// Tells them to those who take them, each table to its end or until there are others; whether something is left to be told
    /// later.
    pub fn tell_names(&mut self) -> bool {
        if self.connections.values().any(|connection| connection.behind) {
            let names = self.names();
            let of_most = Telling::new(&names);
            for connection in self.connections.values_mut().filter(|connection| connection.behind) {
                let linking = connection.joined.as_ref().filter(|joined| !joined.links.is_empty());
                let own = linking.map(|joined| Telling::new(&[joined.linked(&names), names.clone()].concat()));
                let telling = own.unwrap_or_else(|| Telling { parts: Arc::clone(&of_most.parts), taken: 0 });
                (connection.telling, connection.behind) = (Some(telling), false);
            }
        }
        let mut is_left = false;
        for connection in self.connections.values_mut() {
            let control = connection.control.as_fd();
            connection.telling.take_if(|telling| !telling.go_on(control));
            is_left |= connection.telling.is_some();
        }
        is_left
    }

    /// Lets the container behind a connection into the network, with the addresses that it asks for or others that are free.
    pub fn join(&mut self, spec: &NetworkSpec, number: u64, wish: Wish) -> Result<Addressing, NetError> {
        let refuse = |words: String| Err(NetError::Refused(words));
        let Some(connection) = self.connections.get(&number) else { return refuse("it is not connected".to_owned()) };
        if connection.joined.is_some() || self.joined().any(|joined| joined.id == wish.id) {
            return refuse(format!("the container is in network {} already", spec.name));
        }
        if wish.names.len() > NAMES_MAX || wish.links.len() > NAMES_MAX {
            return refuse(format!("more than {NAMES_MAX} names or links of one container"));
        }
        let egress = wish.egress.as_deref().map(egress::parse).transpose()?;
        let v4 = self.choose(spec, &wish)?;
        let v6 = wish.v6.unwrap_or_else(|| counterpart(spec, v4));
        if v6 == spec.v6.gateway || v6 == spec.v6.dns || self.joined().any(|joined| joined.member.v6 == v6) {
            return refuse(format!("address {v6} is in use in network {}", spec.name));
        }
        let mac = wish.mac.unwrap_or_else(|| mac_of(v4));
        if mac == spec.gateway_mac || self.joined().any(|joined| joined.member.mac == mac) {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            return refuse(format!("MAC address {mac} is in use in network {}", spec.name));
        }
        let names = lower(wish.names);
        let links = lower_pairs(wish.links);
        let member = Member { v4, v6, ipv6: true, mac };
        if let Some(connection) = self.connections.get_mut(&number) {
            let Wish { id, resolvers, rate, .. } = wish;
            connection.joined = Some(Joined { id, names, links, resolvers, egress, rate, member });
        }
        self.had_any = true;
        Ok(Addressing {
            v4: Family { container: v4, gateway: spec.v4.gateway, dns: spec.v4.dns, prefix: spec.v4.prefix },
            v6: Family { container: v6, gateway: spec.v6.gateway, dns: spec.v6.dns, prefix: spec.v6.prefix },
            mac,
            gateway_mac: spec.gateway_mac,
            mtu: spec.mtu,
        })
    }

    /// The address that is asked for, or the next free one after the last that was given: who was there before is not taken
    /// for its successor.
    fn choose(&mut self, spec: &NetworkSpec, wish: &Wish) -> Result<Ipv4Addr, NetError> {
        let is_taken = |address: Ipv4Addr| {
            let had = |member: &Member| {
                member.v4 == address
                    || wish.v4.is_none() && wish.v6.is_none() && member.v6 == counterpart(spec, address)
                    || wish.v4.is_none() && wish.mac.is_none() && member.mac == mac_of(address)
            };
            let is_ours = address == spec.v4.gateway || address == spec.v4.dns;
            is_ours || wish.avoid.contains(&address) || self.joined().any(|joined| had(&joined.member))
        };
        if let Some(address) = wish.v4 {
            if is_taken(address) {
                return Err(NetError::Refused(format!("address {address} is in use in network {}", spec.name)));
            }
            return Ok(address);
        }
        let (first, end) = (u32::from(spec.pool.0), u32::from(spec.pool.1));
        let from = self.last.map_or(first, |last| u32::from(last).wrapping_add(1)).min(end).max(first);
        // Each member can be in the way with three addresses, who is to be avoided with one, and we with two.
        let tries = (from..=end).chain(first..from).take(3 * MEMBERS_MAX + wish.avoid.len() + 3).map(Ipv4Addr::from);
        let Some(address) = tries.into_iter().find(|address| !is_taken(*address)) else {
            return Err(NetError::Refused(format!("no address is free in network {}", spec.name)));
        };
        self.last = Some(address);
        Ok(address)
    }
}

/// Locally administered, unicast: who gets an address again has the same one, as others may remember.
fn mac_of(v4: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = v4.octets();
    [0x02, 0x42, a, b, c, d]
}

fn lower(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| name.len() <= NAME_MAX).map(|name| name.to_ascii_lowercase()).collect()
}

fn lower_pairs(pairs: Vec<(String, String)>) -> Vec<(String, String)> {
    let is_short = |(link, name): &(String, String)| link.len() <= NAME_MAX && name.len() <= NAME_MAX;
    let lower = |(link, name): (String, String)| (link.to_ascii_lowercase(), name.to_ascii_lowercase());
    pairs.into_iter().filter(is_short).map(lower).collect()
}

/// The IPv6 address with the number in its subnet that this IPv4 address has.
fn counterpart(spec: &NetworkSpec, v4: Ipv4Addr) -> Ipv6Addr {
    let number = u32::from(v4) & u32::MAX.checked_shr(spec.v4.prefix.into()).unwrap_or(0);
    let mask = u128::MAX.checked_shr(spec.v6.prefix.into()).unwrap_or(0);
    Ipv6Addr::from(u128::from(spec.v6.gateway) & !mask | u128::from(number) & mask)
}

/// The names of the host, which a name of a member does not change.
pub fn host_names(v4: Ipv4Addr, v6: Ipv6Addr) -> impl Iterator<Item = (String, Vec<IpAddr>)> {
    files::HOST_NAMES.into_iter().map(move |name| (name.to_owned(), vec![v4.into(), v6.into()]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::Subnet;
    use crate::control::receive;

    fn spec() -> NetworkSpec {
        NetworkSpec {
            name: "front".to_owned(),
            v4: Subnet { gateway: [10, 9, 0, 1].into(), dns: [10, 9, 0, 2].into(), prefix: 29 },
            pool: ([10, 9, 0, 1].into(), [10, 9, 0, 6].into()),
            v6: Subnet { gateway: "fd09::1".parse().unwrap(), dns: "fd09::2".parse().unwrap(), prefix: 64 },
            gateway_mac: [2; 6],
            mtu: 65520,
            internal: false,
            resolvers: Vec::new(),
        }
    }

    fn wish(id: &str) -> Wish {
        Wish { id: id.to_owned(), names: vec![id.to_owned(), "Web".to_owned()], ..Wish::default() }
    }

    fn connect(members: &mut Members) -> u64 {
        let control = std::fs::File::open("/dev/null").unwrap().into();
        members.add(Connection::new(control, None))
    }

    fn join(members: &mut Members, wish: Wish) -> (u64, Result<Addressing, String>) {
        let number = connect(members);
        (number, members.join(&spec(), number, wish).map_err(|error| error.to_string()))
    }

    fn has_more(socket: &OwnedFd) -> bool {
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn a_large_table_is_told_whole_to_who_reads_slowly() {
        let mut members = Members::default();
        let (ours, theirs) = sys::socket::pair().unwrap();
        let number = members.add(Connection::new(theirs, None));
        members.join(&spec(), number, wish("a")).unwrap();
        for id in ["b", "c"] {
            let names = (0..60).map(|count| format!("{id}{count}{}", "n".repeat(240))).collect();
            join(&mut members, Wish { names, ..wish(id) }).1.unwrap();
        }
        // What is told again and again is more than a socket holds.
        let mut rounds = 0;
        members.follow(number);
        while !members.tell_names() {
            members.names_changed();
            rounds += 1;
            assert!(rounds < 1000);
        }
        let names = members.names();
        let (mut table, mut is_left) = (NameTable::new(), true);
        while is_left {
            is_left = members.tell_names();
            while has_more(&ours) {
                let Some((Message::Names { first, names }, _)) = receive(&ours).unwrap() else { panic!("no table") };
                take_names(&mut table, first, names);
            }
        }
        assert_eq!(table, names);
    }

    #[test]
    fn addresses_are_free_ones_and_go_round() {
        let mut members = Members::default();
        let given = |members: &mut Members, id| join(members, wish(id)).1.unwrap().v4.container.octets()[3];
        assert_eq!([given(&mut members, "a"), given(&mut members, "b")], [3, 4]);
        members.remove(2);
        assert_eq!([given(&mut members, "c"), given(&mut members, "d"), given(&mut members, "e")], [5, 6, 4]);
        assert_eq!(join(&mut members, wish("f")).1.unwrap_err(), "no address is free in network front");
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused() {
        let mut members = Members::default();
        let asked = Wish { v4: Some([10, 9, 0, 5].into()), v6: Some("fd09::77".parse().unwrap()), ..wish("a") };
        let addressing = join(&mut members, asked.clone()).1.unwrap();
        assert_eq!((addressing.v4.container, addressing.v6.container), (asked.v4.unwrap(), asked.v6.unwrap()));
        assert_eq!(addressing.mac, [2, 0x42, 10, 9, 0, 5]);
        let refused = |members: &mut Members, wish| join(members, wish).1.unwrap_err();
        assert_eq!(refused(&mut members, wish("a")), "the container is in network front already");
        let same = Wish { id: "b".to_owned(), ..asked };
        assert_eq!(refused(&mut members, same), "address 10.9.0.5 is in use in network front");
        let gateway = Wish { v6: Some("fd09::1".parse().unwrap()), ..wish("c") };
        assert_eq!(refused(&mut members, gateway), "address fd09::1 is in use in network front");
        let mac = Wish { mac: Some([2, 0x42, 10, 9, 0, 5]), ..wish("d") };
        assert_eq!(refused(&mut members, mac), "MAC address 02:42:0a:09:00:05 is in use in network front");
    }

    #[test]
    fn what_nobody_asked_for_is_in_nobodys_way() {
        let mut members = Members::default();
        join(&mut members, Wish { v6: Some("fd09::4".parse().unwrap()), ..wish("a") }).1.unwrap();
        join(&mut members, Wish { mac: Some([2, 0x42, 10, 9, 0, 5]), v4: Some([10, 9, 0, 4].into()), ..wish("b") })
            .1
            .unwrap_err();
        let third = join(&mut members, wish("c")).1.unwrap();
        assert_eq!(third.v4.container, Ipv4Addr::new(10, 9, 0, 5));
        let nothing = NetworkSpec { pool: ([10, 9, 0, 1].into(), [10, 9, 0, 0].into()), ..spec() };
        let number = connect(&mut members);
        let refused = members.join(&nothing, number, wish("d")).map_err(|error| error.to_string());
        assert_eq!(refused.unwrap_err(), "no address is free in network front");
    }

    #[test]
    fn a_name_leads_to_all_who_have_it_while_they_are_there() {
        let mut members = Members::default();
        let (first, _) = join(&mut members, wish("a"));
        join(&mut members, wish("b")).1.unwrap();
        let addresses = |members: &Members, name: &str| {
            let names = members.names();
            let found = names.into_iter().find(|(known, _)| known == name).map(|(_, addresses)| addresses);
            found.unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(addresses(&members, "web"), ["10.9.0.3", "fd09::3", "10.9.0.4", "fd09::4"]);
        members.set_ipv6(first, false);
        assert_eq!(addresses(&members, "a"), ["10.9.0.3"]);
        members.remove(first);
        assert_eq!(addresses(&members, "web"), ["10.9.0.4", "fd09::4"]);
        assert!(addresses(&members, "a").is_empty());
    }
}
