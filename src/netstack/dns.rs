//! The DNS server that a container sees: own names from a table, everything else forwarded.
//!
//! A question is forwarded byte for byte except for its identifier, so that types and extensions unknown here survive
//! and client and resolver agree on sizes between them. Each question has its own socket, a random identifier, and its
//! answer must repeat it. A resolver that does not answer in one second, or refuses, is passed over for 30 s unless
//! all are; after four tries the client is told so. There is no public resolver to fall back to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::RecordType;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::accounts::Kind;
use crate::config::Tables;
use crate::stack::{FlowId, Run};
use crate::tcp::Key;
use crate::{Host, Received};

const HEADER: usize = 12;
const QUESTION_MAX: usize = 4096;
/// What a client takes by UDP that says nothing about that (RFC 1035 §4.2.1).
const UDP_ROOM: usize = 512;
/// A record about the question's name, without its data.
const RECORD: usize = 12;
const TRY_US: u64 = 1_000_000;
const TRIES: u8 = 4;
const DEAD_US: u64 = 30_000_000;
/// Resolvers that are used; resolv.conf(5) knows three.
const RESOLVERS: usize = 8;
/// Resolvers that are known to be dead: containers of one network may have their own.
const DEAD: usize = 256;
/// Seconds for which the container may keep an answer from the table.
const TTL_S: u32 = 5;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;
/// The bit of the third byte that says that an answer was cut.
const CUT: u8 = 2;
/// Types of records that are answered from the table.
const A: u8 = 1;
const PTR: u8 = 12;
const AAAA: u8 = 28;

#[derive(Debug)]
pub(crate) struct Dns {
    pending: Vec<Option<Pending>>,
    live: usize,
    base: u32,
    /// Of resolvers that failed, until when they are passed over.
    dead_until_us: BTreeMap<SocketAddr, u64>,
}

/// A question that waits for its answer.
#[derive(Debug)]
struct Pending {
    client: Key,
    bytes: Vec<u8>,
    /// Where the question section ends.
    end: usize,
    id: u16,
    tries: u8,
    resolver: SocketAddr,
}

impl Dns {
    pub fn new(base: u32, capacity: u32) -> Self {
        Dns { pending: (0..capacity).map(|_| None).collect(), live: 0, base, dead_until_us: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.live
    }

    /// Takes no resolver for dead any more, as there are others now.
    pub fn forget_the_dead(&mut self) {
        self.dead_until_us.clear();
    }

    /// The resolver to ask now, of these: after the one that has just failed, if one has.
    pub fn best(&self, now_us: u64, resolvers: &[SocketAddr], failed: Option<SocketAddr>) -> Option<SocketAddr> {
        let resolvers = &resolvers[..resolvers.len().min(RESOLVERS)];
        let after = resolvers.iter().position(|resolver| Some(*resolver) == failed).map_or(0, |failed| failed + 1);
        let order = || resolvers.iter().cycle().skip(after).take(resolvers.len());
        let lives = |resolver: &&SocketAddr| self.dead_until_us.get(resolver).is_none_or(|until| *until <= now_us);
        order().find(lives).or_else(|| order().next()).copied()
    }

    fn passed_over(&mut self, now_us: u64, resolver: SocketAddr) {
        self.dead_until_us.retain(|_, until| *until > now_us);
        if self.dead_until_us.len() < DEAD {
            self.dead_until_us.insert(resolver, now_us + DEAD_US);
        }
    }

    /// A datagram to port 53.
    pub fn question_in<H: Host>(&mut self, client: &Key, bytes: &[u8], run: &mut Run<'_, H>) {
        let Some((query, end)) = parse_question(bytes) else {
            run.shared.counters.dropped_questions += 1;
            return;
        };
        let tables = run.shared.config.tables(client.container.0);
        if let Some(answer) = own_answer(&bytes[..end], &query, tables, room(bytes)) {
            run.datagram(client.remote, client.container, &answer);
            return;
        }
        if !run.may_ask(client.container.0, &lower(&query)) {
            run.datagram(client.remote, client.container, &header_answer(&bytes[..end], REFUSED));
            return;
        }
        let again = self.pending.iter().flatten().any(|p| p.client == *client && p.bytes == bytes);
        let free = self.pending.iter().position(Option::is_none);
        let may = run.may_hold(client.container.0, Kind::Dns, self.live);
        let Some(slot) = free.filter(|_| may && !again && bytes.len() <= QUESTION_MAX) else {
            run.shared.counters.dropped_questions += u64::from(!again);
            return;
        };
        let resolver = SocketAddr::from(([0; 4], 0));
        self.pending[slot] = Some(Pending { client: *client, bytes: bytes.to_vec(), end, id: 0, tries: 0, resolver });
        self.live += 1;
        run.hold(client.container.0, Kind::Dns);
        self.ask(slot as u32, None, run);
    }

    /// Sends a pending question to the next resolver.
    fn ask<H: Host>(&mut self, slot: u32, failed: Option<SocketAddr>, run: &mut Run<'_, H>) {
        let id = FlowId(self.base + slot);
        let Some(client) = self.pending[slot as usize].as_ref().map(|pending| pending.client) else { return };
        let chosen = self.best(run.now_us, run.shared.config.resolvers_of(client.container.0), failed);
        let Some(pending) = self.pending[slot as usize].as_mut() else { return };
        pending.tries += 1;
        let Some(chosen) = chosen.filter(|_| pending.tries <= TRIES) else {
            let failure = header_answer(&pending.bytes[..pending.end], SERVFAIL);
            run.datagram(pending.client.remote, pending.client.container, &failure);
            return self.finish(slot, run);
        };
        pending.resolver = chosen;
        pending.id = run.host.random() as u16;
        run.shared.timers.set(id, run.now_us + TRY_US);
        let mut copy = pending.bytes.clone();
        copy[..2].copy_from_slice(&pending.id.to_be_bytes());
        let sent = run.host.udp_open(id, None, chosen).and_then(|()| run.host.datagram_send(id, &copy));
        if sent.is_err() {
            self.next(slot, run);
        }
    }

    /// This resolver failed: on to the next.
    fn next<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        run.host.close(FlowId(self.base + slot), false);
        let Some(pending) = self.pending[slot as usize].as_ref() else { return };
        let failed = pending.resolver;
        self.passed_over(run.now_us, failed);
        self.ask(slot, Some(failed), run);
    }

    pub fn socket_ready<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        self.answers(slot, &mut scratch, run);
        run.shared.scratch = scratch;
    }

    fn answers<H: Host>(&mut self, slot: u32, buffer: &mut [u8], run: &mut Run<'_, H>) {
        loop {
            let Some(pending) = self.pending.get(slot as usize).and_then(Option::as_ref) else { return };
            match run.host.datagram_receive(FlowId(self.base + slot), buffer) {
                Received::Datagram(length) => {
                    let answer = &mut buffer[..length];
                    if !answers(pending, answer) {
                        continue;
                    }
                    answer[..2].copy_from_slice(&pending.bytes[..2]);
                    if run.is_restricted(pending.client.container.0) {
                        pin(pending, answer, run);
                    }
                    run.datagram(pending.client.remote, pending.client.container, answer);
                    self.dead_until_us.remove(&pending.resolver);
                    return self.finish(slot, run);
                }
                Received::Failed(_) => return self.next(slot, run),
                Received::Nothing => return,
            }
        }
    }

    pub fn expire<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        self.next(slot, run);
    }

    fn finish<H: Host>(&mut self, slot: u32, run: &mut Run<'_, H>) {
        if let Some(pending) = self.pending[slot as usize].take() {
            self.live -= 1;
            run.let_go(pending.client.container.0, Kind::Dns);
            run.shared.timers.clear(FlowId(self.base + slot));
            run.host.close(FlowId(self.base + slot), false);
        }
    }
}

/// The single question of a query, and where it ends; `None` for anything else.
fn parse_question(bytes: &[u8]) -> Option<(Query, usize)> {
    // A query with opcode QUERY and one question.
    if bytes.len() < HEADER || bytes[2] & 0xf8 != 0 || bytes[4..6] != [0, 1] {
        return None;
    }
    let mut decoder = BinDecoder::new(bytes);
    decoder.read_slice(HEADER).ok()?;
    let query = Query::read(&mut decoder).ok()?;
    Some((query, decoder.index()))
}

/// The name of a question, in lower case and without a dot at its end.
fn lower(query: &Query) -> String {
    let mut name = query.name().to_ascii();
    name.make_ascii_lowercase();
    if name.ends_with('.') {
        name.pop();
    }
    name
}

/// Lets a container that has rules reach the addresses of an answer. One that was cut passes for a whole one, as there is no other
/// way to ask.
fn pin<H: Host>(pending: &Pending, answer: &mut [u8], run: &mut Run<'_, H>) {
    let (Some((query, _)), Ok(message)) = (parse_question(&pending.bytes), Message::from_vec(answer)) else { return };
    let name = lower(&query);
    let mut any = false;
    for record in &message.answers {
        if let Some(address) = record.data.ip_addr() {
            run.pin(pending.client.container.0, &name, address, record.ttl);
            any = true;
        }
    }
    if any {
        answer[2] &= !CUT;
    }
}

/// Whether this is the answer to that question: identifier, answer bit, and the question again (its case may differ).
fn answers(pending: &Pending, answer: &[u8]) -> bool {
    answer.len() >= pending.end
        && answer[..2] == pending.id.to_be_bytes()
        && answer[2] & 0x80 != 0
        && answer[HEADER..pending.end].eq_ignore_ascii_case(&pending.bytes[HEADER..pending.end])
}

/// Header and question of an answer without records.
fn header_answer(question: &[u8], code: u8) -> Vec<u8> {
    let mut answer = question.to_vec();
    // Answer; keeps the client's wish for recursion, which is available.
    answer[2] = 0x80 | (question[2] & 1);
    answer[3] = 0x80 | code;
    answer[6..12].fill(0);
    answer
}

/// The same for a whole query, by TCP.
pub(crate) fn own_answer_to(query: &[u8], tables: Tables<'_>) -> Option<Vec<u8>> {
    let (question, end) = parse_question(query)?;
    own_answer(&query[..end], &question, tables, usize::from(u16::MAX))
}

/// The answer that a query cannot be answered; `None` when it is none.
pub(crate) fn failure(query: &[u8]) -> Option<Vec<u8>> {
    parse_question(query).map(|(_, end)| header_answer(&query[..end], SERVFAIL))
}

/// The answer that a query is not allowed; `None` when it is none.
pub(crate) fn refusal(query: &[u8]) -> Option<Vec<u8>> {
    parse_question(query).map(|(_, end)| header_answer(&query[..end], REFUSED))
}

/// The answer to a question about a name of ours or, backwards, an address of ours; `None` where others are to be asked.
/// It is cut where it does not fit `room` bytes, and says so.
fn own_answer(question: &[u8], query: &Query, tables: Tables<'_>, room: usize) -> Option<Vec<u8>> {
    let wanted = query.query_type();
    let name = lower(query);
    let name = name.as_str();
    let names = || tables.into_iter().flatten();
    if let Some((_, addresses)) = names().find(|(known, _)| known == name) {
        return Some(table_answer(question, wanted, addresses, room));
    }
    let address = reversed(name)?;
    let mut owners = names().filter(|(_, addresses)| addresses.contains(&address)).peekable();
    owners.peek()?;
    let wanted = [RecordType::PTR, RecordType::ANY].contains(&wanted);
    let mut answer = Answer::new(question, room);
    for name in owners.filter(|_| wanted).filter_map(|(name, _)| encoded(name)) {
        answer.push(PTR, &name);
    }
    Some(answer.bytes)
}

/// The address that a name of `in-addr.arpa` (RFC 1035 §3.5) or `ip6.arpa` (RFC 3596 §2.5) stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = labels.split('.');
        for octet in octets.iter_mut().rev() {
            *octet = labels.next()?.parse().ok()?;
        }
        return labels.next().is_none().then(|| octets.into());
    }
    let mut labels = name.strip_suffix(".ip6.arpa")?.split('.');
    let mut digits = 0_u128;
    for number in 0..32 {
        let label = labels.next().filter(|label| label.len() == 1)?;
        digits |= u128::from(u8::from_str_radix(label, 16).ok()?) << (number * 4);
    }
    labels.next().is_none().then(|| std::net::Ipv6Addr::from(digits).into())
}

/// A name as it stands in a record; `None` where it cannot (RFC 1035 §3.1).
fn encoded(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

/// An answer that is being written.
struct Answer {
    bytes: Vec<u8>,
    room: usize,
    records: u16,
}

impl Answer {
    fn new(question: &[u8], room: usize) -> Self {
        Answer { bytes: header_answer(question, 0), room, records: 0 }
    }

    /// Appends a record about the question's name. One that does not fit is left out, and those behind it: the client asks again
    /// by TCP (RFC 2181 §9).
    fn push(&mut self, kind: u8, data: &[u8]) {
        if self.bytes[2] & CUT != 0 || self.bytes.len() + RECORD + data.len() > self.room {
            self.bytes[2] |= CUT;
            return;
        }
        // The name is a pointer to the question's; class IN.
        self.bytes.extend_from_slice(&[0xc0, HEADER as u8, 0, kind, 0, 1]);
        self.bytes.extend_from_slice(&TTL_S.to_be_bytes());
        self.bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(data);
        self.records += 1;
        self.bytes[6..8].copy_from_slice(&self.records.to_be_bytes());
    }
}

/// How large an answer the client takes by UDP: what it says by EDNS(0) (RFC 6891 §6.2.3), without that 512 bytes.
fn room(query: &[u8]) -> usize {
    let said = Message::from_vec(query).ok().and_then(|message| Some(message.edns?.max_payload()));
    usize::from(said.unwrap_or(0)).max(UDP_ROOM)
}

/// The answer from the table. A name without addresses of the wanted type exists nevertheless: no error, no record. Of several
/// addresses another one comes first each time, as the identifier of the question says, which is random.
fn table_answer(question: &[u8], wanted: RecordType, addresses: &[IpAddr], room: usize) -> Vec<u8> {
    let mut chosen: Vec<&IpAddr> = addresses
        .iter()
        .filter(|address| match wanted {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        })
        .collect();
    let turn = usize::from(u16::from_be_bytes([question[0], question[1]])) % chosen.len().max(1);
    chosen.rotate_left(turn);
    let mut answer = Answer::new(question, room);
    for address in chosen {
        match address {
            IpAddr::V4(address) => answer.push(A, &address.octets()),
            IpAddr::V6(address) => answer.push(AAAA, &address.octets()),
        }
    }
    answer.bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn question(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.add_query(Query::query(name.parse().unwrap(), kind));
        message.to_vec().unwrap()
    }

    #[test]
    fn table_answers_are_read_by_an_independent_parser() {
        let bytes = question("Web.Example.", RecordType::A);
        let (query, end) = parse_question(&bytes).unwrap();
        let addresses = ["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let answer = Message::from_vec(&table_answer(&bytes[..end], query.query_type(), &addresses, 512)).unwrap();
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.answers[0].data.ip_addr(), Some(addresses[0]));
        let none = Message::from_vec(&table_answer(&bytes[..end], RecordType::MX, &addresses, 512)).unwrap();
        assert!(none.answers.is_empty());
    }

    #[test]
    fn an_answer_that_the_client_does_not_take_is_cut_and_says_so() {
        let addresses: Vec<IpAddr> = (0..60).map(|last| [10, 1, 2, last].into()).collect();
        let names = [("pool".to_owned(), addresses)];
        let asked = |question: &[u8]| Message::from_vec(question).unwrap();
        let plain = question("pool.", RecordType::A);
        let (query, end) = parse_question(&plain).unwrap();
        let cut = asked(&own_answer(&plain[..end], &query, [&[], &names, &[]], room(&plain)).unwrap());
        assert!(cut.metadata.truncation && (20..60).contains(&cut.answers.len()), "{cut:?}");
        let whole = asked(&own_answer_to(&plain, [&[], &names, &[]]).unwrap());
        assert!(!whole.metadata.truncation && whole.answers.len() == 60);
        let mut able = Message::from_vec(&plain).unwrap();
        able.set_edns(hickory_proto::op::Edns::new());
        able.edns.as_mut().unwrap().set_max_payload(1232);
        let able = able.to_vec().unwrap();
        let whole = asked(&own_answer(&plain[..end], &query, [&[], &names, &[]], room(&able)).unwrap());
        assert!(!whole.metadata.truncation && whole.answers.len() == 60);
    }

    #[test]
    fn addresses_of_the_table_have_names() {
        let addresses: Vec<IpAddr> = vec!["10.1.2.3".parse().unwrap(), "fd00::3".parse().unwrap()];
        let names = [("web".to_owned(), addresses.clone()), ("www.web.test".to_owned(), addresses[..1].to_vec())];
        let ask = |name: &str, kind| {
            let bytes = question(name, kind);
            let (query, end) = parse_question(&bytes).unwrap();
            let answer = own_answer(&bytes[..end], &query, [&[], &names, &[]], 512)?;
            let answer = Message::from_vec(&answer).unwrap();
            Some(answer.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>())
        };
        let v6 = format!("3.{}0.0.d.f.ip6.arpa.", "0.".repeat(27));
        assert_eq!(ask("3.2.1.10.in-addr.arpa.", RecordType::PTR).unwrap(), ["web.", "www.web.test."]);
        assert_eq!(ask(&v6, RecordType::PTR).unwrap(), ["web."]);
        assert_eq!(ask(&v6, RecordType::A).unwrap(), [""; 0]);
        for other in ["4.2.1.10.in-addr.arpa.", "2.1.10.in-addr.arpa.", "0.3.2.1.10.in-addr.arpa.", "3.ip6.arpa."] {
            assert_eq!(ask(other, RecordType::PTR), None, "{other}");
        }
    }

    #[test]
    fn an_answer_must_repeat_identifier_and_question() {
        let bytes = question("example.org.", RecordType::AAAA);
        let (_, end) = parse_question(&bytes).unwrap();
        let key = Key { container: ("10.0.0.2".parse().unwrap(), 1), remote: ("10.0.0.1".parse().unwrap(), 53) };
        let pending = Pending { client: key, bytes: bytes.clone(), end, id: 7, tries: 1, resolver: ([0; 4], 0).into() };
        let mut answer = header_answer(&bytes[..end], 0);
        answer[..2].copy_from_slice(&7_u16.to_be_bytes());
        assert!(answers(&pending, &answer));
        answer[1] ^= 1;
        assert!(!answers(&pending, &answer));
        answer[1] ^= 1;
        answer[14] ^= 1;
        assert!(!answers(&pending, &answer));
    }

    proptest! {
        #[test]
        fn no_question_breaks_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some((query, end)) = parse_question(&bytes) {
                prop_assert!(end <= bytes.len());
                table_answer(&bytes[..end], query.query_type(), &["10.0.0.1".parse().unwrap()], 512);
            }
        }
    }
}
