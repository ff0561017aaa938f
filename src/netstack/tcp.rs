//! The TCP machine of one flow.
//!
//! **Sides.** The *container* speaks TCP to us in frames; the *host socket* is a kernel connection to the real peer.
//! Outward flows begin with the container's SYN: it is answered when the host's connect has finished, so the container
//! sees refused and unreachable as they are. Inward flows (published ports) begin with an accepted host socket. One
//! over IPv6 whose SYN the container refuses begins again over IPv4, under the same number: the socket has kept what
//! the client sent, as only an acknowledgement consumes it.
//!
//! **To the container.** `una <= snd <= snd_max`: what the container has acknowledged, the next to send, the most ever
//! sent. The bytes `una..snd` are still in the host socket's receive queue; sending peeks at offset `snd - una`, an
//! acknowledgement consumes. Going back to `una` after a timeout or three duplicate acknowledgements sends them again.
//! A FIN is sent when a peek at the end finds the peer's end of stream, and takes one number. A zero window is probed
//! with one byte beyond it, by the same timer.
//!
//! **From the container.** Bytes in order are written to the host socket at once; what that does not take goes to the
//! stash and is acknowledged when it has been taken. The TAP keeps order, but the way to it does not always: veth(4) has a
//! queue for each processor, and a sender that moves to another one overtakes itself. So segments that came before their turn
//! wait as an *island*, in blocks of the same pool: one for each flow, which grows at its end, and is joined when
//! the gap before it is filled. Without it each would be sent again, behind timeouts that double, since new data that is dropped
//! is no sign to the sender that the path is alive. What fits no island is dropped. The right edge of the
//! advertised window never moves left. The window follows the room in the kernel's send buffer but never below what the
//! stash can hold, because the kernel enlarges a send buffer only while it is kept full.
//!
//! **Phases and events.** [`Phase`] orders set-up and end; while `Open`, what has happened is a set of [flags](Flags)
//! rather than a product of states. Both FINs acknowledged: the socket is closed and the flow lingers for a resent FIN.
//!
//! **Limits.** At most one peek buffer in flight (256 KiB where the host cannot peek at an offset); five tries for a
//! handshake, eight retransmissions for data; keepalives after 300 s on a half-closed flow, 2 h on an open one.

use std::net::{IpAddr, SocketAddr};

use crate::accounts::Kind;
use crate::flows::Tally;
use crate::rate::Way;
use crate::stack::Run;
use crate::stash;
use crate::wire::icmp::Unreachable;
use crate::wire::tcp::{ACK, FIN, Outgoing, PSH, RST, SYN, Segment, SeqNumber, SynOptions};
use crate::{Host, Peek, SocketError, Wrote};

/// The shift of the windows that we advertise.
const WINDOW_SHIFT: u8 = 8;
/// The largest window that we advertise.
const WINDOW_MAX: u32 = 4 << 20;
/// The window while the stash is scarce.
const WINDOW_SCARCE: u32 = 64 << 10;
/// In flight without `SO_PEEK_OFF`: each peek then copies what lies in front again.
const IN_FLIGHT_WITHOUT_OFFSET: u32 = 256 << 10;
/// In flight at most.
const IN_FLIGHT_MAX: u32 = 4 << 20;
/// TCP payload of one frame: an IP packet of 65535 bytes less its headers.
const FRAME_PAYLOAD: usize = 65535 - 60;

const S: u64 = 1_000_000;
const RTO_INITIAL_US: u32 = 1_000_000;
const RTO_MIN_US: u32 = 200_000;
const RTO_MAX_US: u32 = 60_000_000;
const CONNECT_TIMEOUT_US: u64 = 140 * S;
const LINGER_US: u64 = 4 * S;
const STASH_RETRY_US: u64 = 200_000;
const KEEPALIVE_HALF_CLOSED_US: u64 = 300 * S;
const KEEPALIVE_OPEN_US: u64 = 7200 * S;
const KEEPALIVE_INTERVAL_US: u64 = 30 * S;
const HANDSHAKE_TRIES: u8 = 5;
const DATA_TRIES: u8 = 8;

/// The two ends of a flow as the container sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub container: (IpAddr, u16),
    pub remote: (IpAddr, u16),
}

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The container's SYN is here; the host socket connects.
    Connecting,
    /// Our SYN-ACK is out.
    SynReceived,
    /// Our SYN is out, for an accepted host socket.
    SynSent,
    /// Data flows.
    Open,
    /// Both directions have ended; no socket any more.
    Lingering,
}

/// What has happened on an open flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Flags(u16);

impl Flags {
    /// The host socket may have more than was peeked.
    const READABLE: u16 = 1;
    /// A FIN follows the last byte sent (cleared when going back).
    const FIN_SENT: u16 = 1 << 1;
    /// A FIN was sent once: it is the number before `snd_max`.
    const FIN_EVER: u16 = 1 << 2;
    /// The container has acknowledged our FIN.
    const FIN_ACKED: u16 = 1 << 3;
    /// The container's FIN is in order.
    const FIN_IN: u16 = 1 << 4;
    /// It was passed on to the host socket, and is acknowledged.
    const SHUT: u16 = 1 << 5;
    /// An acknowledgement is to be sent at the end of the batch.
    const ACK_DUE: u16 = 1 << 6;
    /// The flow stands in the ready ring.
    const QUEUED: u16 = 1 << 7;
    /// The last frame found the TAP full.
    const TAP_FULL: u16 = 1 << 8;
    /// The flow waits until its container may carry more.
    const WAITING: u16 = 1 << 9;
    /// The container's FIN follows the island.
    const ISLAND_FIN: u16 = 1 << 10;

    fn has(self, flag: u16) -> bool {
        self.0 & flag == flag
    }

    fn set(&mut self, flag: u16) {
        self.0 |= flag;
    }

    fn clear(&mut self, flag: u16) {
        self.0 &= !flag;
    }
}

/// Whether the flow goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Verdict {
    Keep,
    /// Its slot is to be freed; its socket is closed.
    Free,
    /// The container has nobody for it over IPv6: it is to begin again over IPv4.
    OverIpv4,
}

/// One flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp {
    phase: Phase,
    flags: Flags,
    una: SeqNumber,
    snd: SeqNumber,
    snd_max: SeqNumber,
    recover: SeqNumber,
    nxt: SeqNumber,
    edge: SeqNumber,
    /// What the container may still be sent, as of `una`.
    window: u32,
    mss: u16,
    their_shift: u8,
    our_shift: u8,
    dup_acks: u8,
    retries: u8,
    stash: stash::Queue,
    /// What came before its turn, and its first number.
    island: stash::Queue,
    island_at: SeqNumber,
    rto_us: u32,
    srtt_us: u32,
    rttvar_us: u32,
    timed_seq: SeqNumber,
    /// When `timed_seq` was sent; 0 when nothing is timed.
    timed_us: u64,
    pub tally: Tally,
}

impl Tcp {
    fn new(phase: Phase, initial: u32, mss: u16, began_us: u64) -> Self {
        let initial = SeqNumber(initial);
        Tcp {
            phase,
            flags: Flags::default(),
            una: initial,
            snd: initial,
            snd_max: initial,
            recover: initial,
            nxt: SeqNumber(0),
            edge: SeqNumber(0),
            window: 0,
            mss,
            their_shift: 0,
            our_shift: 0,
            dup_acks: 0,
            retries: 0,
            stash: stash::Queue::default(),
            island: stash::Queue::default(),
            island_at: initial,
            rto_us: RTO_INITIAL_US,
            srtt_us: 0,
            rttvar_us: 0,
            timed_seq: initial,
            timed_us: 0,
            tally: Tally::new(began_us, phase == Phase::SynSent),
        }
    }

    /// A flow that begins with the container's SYN.
    pub fn outward(syn: &Segment<'_>, initial: u32, mss: u16, began_us: u64) -> Self {
        let mut flow = Tcp::new(Phase::Connecting, initial, mss, began_us);
        flow.take_syn(syn);
        flow
    }

    /// A flow that begins with a connection to a published port.
    pub fn inward(initial: u32, mss: u16, began_us: u64) -> Self {
        let mut flow = Tcp::new(Phase::SynSent, initial, mss, began_us);
        flow.our_shift = WINDOW_SHIFT;
        flow
    }

    /// Forgets a refused SYN, but not what the host socket has said, which it will not say again.
    pub fn begin_again(&mut self, initial: u32, mss: u16) {
        let flags = self.flags;
        *self = Tcp::inward(initial, mss, self.tally.began_us);
        self.flags = flags;
    }

    fn take_syn(&mut self, syn: &Segment<'_>) {
        let options = syn.syn_options();
        self.mss = self.mss.min(options.mss.unwrap_or(536)).max(64);
        (self.their_shift, self.our_shift) = options.window_shift.map_or((0, 0), |shift| (shift, WINDOW_SHIFT));
        self.window = u32::from(syn.window);
        // Data in a SYN is not taken; it will be sent again.
        self.nxt = syn.seq.plus(1);
        self.edge = self.nxt.plus(0xffff);
    }

    pub fn is_half_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::SynReceived | Phase::SynSent)
    }

    pub fn is_lingering(&self) -> bool {
        self.phase == Phase::Lingering
    }

    /// The state of the container's end, in the words of RFC 9293 §3.3.2.
    pub fn state(&self) -> &'static str {
        let (theirs, ours) = (self.flags.has(Flags::FIN_IN), self.flags.has(Flags::FIN_EVER));
        match self.phase {
            Phase::Connecting => "SYN-SENT",
            Phase::SynSent => "SYN-RECEIVED",
            Phase::SynReceived => "ESTABLISHED",
            Phase::Lingering => "TIME-WAIT",
            Phase::Open => match (theirs, ours) {
                (false, false) => "ESTABLISHED",
                (true, false) => "FIN-WAIT",
                (false, true) => "CLOSE-WAIT",
                (true, true) => "CLOSING",
            },
        }
    }

    /// Starts the timers of a new flow, and sends the SYN of an inward one.
    pub fn start<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        if self.phase == Phase::SynSent {
            self.send_syn(key, run);
        } else {
            run.shared.timers.set(run.id, run.now_us + CONNECT_TIMEOUT_US);
        }
    }

    /// The host socket has news.
    pub fn socket_ready<H: Host>(
        &mut self,
        key: &Key,
        readable: bool,
        writable: bool,
        run: &mut Run<'_, H>,
    ) -> Verdict {
        match self.phase {
            Phase::Connecting if writable => self.connect_ended(key, run),
            Phase::Connecting | Phase::Lingering => Verdict::Keep,
            Phase::SynSent | Phase::SynReceived => {
                self.flags.set(Flags::READABLE);
                Verdict::Keep
            }
            Phase::Open => {
                if writable && self.flush_stash(run).is_err() {
                    return self.reset(key, run);
                }
                // Past the end of what it sends a peek does not tell that the other side has reset the connection since.
                let past_end = readable && self.flags.has(Flags::FIN_EVER);
                if past_end && run.shared.streams.tcp_connected(run.host, run.id).is_err() {
                    return self.reset(key, run);
                }
                if readable {
                    self.flags.set(Flags::READABLE);
                    self.queue(run);
                }
                self.after(run)
            }
        }
    }

    fn connect_ended<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Verdict {
        match run.shared.streams.tcp_connected(run.host, run.id) {
            Ok(()) => {
                self.phase = Phase::SynReceived;
                self.flags.set(Flags::READABLE);
                self.send_syn(key, run);
                Verdict::Keep
            }
            Err(error) => {
                self.refuse(key, error, run);
                run.shared.streams.close(run.host, run.id, true);
                Verdict::Free
            }
        }
    }

    /// Tells the container why its SYN leads nowhere.
    pub fn refuse<H: Host>(&self, key: &Key, error: SocketError, run: &mut Run<'_, H>) {
        let reason = match error {
            SocketError::NetworkUnreachable => Unreachable::Network,
            SocketError::HostUnreachable => Unreachable::Host,
            SocketError::Prohibited => Unreachable::Prohibited,
            SocketError::TimedOut => return,
            SocketError::Refused | SocketError::TooBig { .. } | SocketError::Failed => {
                self.send(key, run, RST | ACK, SeqNumber(0), None);
                return;
            }
        };
        // The quoted packet is the SYN's header as far as the container's kernel looks at it: ports and number.
        let mut quoted = [0; 20];
        quoted[..2].copy_from_slice(&key.container.1.to_be_bytes());
        quoted[2..4].copy_from_slice(&key.remote.1.to_be_bytes());
        quoted[4..8].copy_from_slice(&self.nxt.plus(0_u32.wrapping_sub(1)).0.to_be_bytes());
        quoted[12..14].copy_from_slice(&[5 << 4, SYN]);
        run.unreachable(key.container.0, key.remote.0, crate::wire::ip::TCP, &quoted, reason);
    }

    fn send_syn<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        let shift = if self.phase == Phase::SynSent { Some(WINDOW_SHIFT) } else { None };
        let shift = shift.or((self.our_shift != 0).then_some(self.our_shift));
        let syn = SynOptions { mss: Some(run.shared.config.mss(key.container.0)), window_shift: shift };
        let flags = if self.phase == Phase::SynSent { SYN } else { SYN | ACK };
        self.send(key, run, flags, self.una, Some(syn));
        self.snd = self.una.plus(1);
        self.snd_max = self.snd;
        let backoff = RTO_INITIAL_US << self.retries.min(6);
        run.shared.timers.set(run.id, run.now_us + u64::from(backoff));
    }

    /// A segment from the container, its checksum verified.
    pub fn segment_in<H: Host>(&mut self, key: &Key, segment: &Segment<'_>, run: &mut Run<'_, H>) -> Verdict {
        match self.phase {
            Phase::Connecting if segment.has(RST) => {
                run.shared.streams.close(run.host, run.id, true);
                Verdict::Free
            }
            // The SYN sent again: its answer comes with the end of the connect.
            Phase::Connecting => Verdict::Keep,
            Phase::SynSent => self.answer_to_syn(key, segment, run),
            Phase::SynReceived | Phase::Open => self.established(key, segment, run),
            Phase::Lingering => {
                if !segment.has(RST) && (segment.has(FIN) || !segment.payload.is_empty()) {
                    self.send(key, run, ACK, self.snd, None);
                }
                Verdict::Keep
            }
        }
    }

    fn answer_to_syn<H: Host>(&mut self, key: &Key, segment: &Segment<'_>, run: &mut Run<'_, H>) -> Verdict {
        if !segment.has(ACK) {
            return Verdict::Keep;
        }
        if segment.ack != self.snd {
            // The container's end of an earlier connection. Our reset ends it, and the next SYN is taken (RFC 9293
            // §3.10.7.3).
            answer_stray(key, segment, run);
            return Verdict::Keep;
        }
        if segment.has(RST) && key.container.0.is_ipv6() {
            return Verdict::OverIpv4;
        }
        if segment.has(RST) {
            run.shared.streams.close(run.host, run.id, true);
            return Verdict::Free;
        }
        if segment.has(SYN) {
            self.take_syn(segment);
            self.opened(key, run);
            self.acknowledge_soon(run);
            self.queue(run);
        }
        Verdict::Keep
    }

    fn opened<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        self.una = self.snd;
        self.recover = self.snd;
        self.phase = Phase::Open;
        self.retries = 0;
        *run.half_open = run.half_open.saturating_sub(1);
        run.let_go(key.container.0, Kind::HalfOpen);
        self.arm(run);
    }

    fn established<H: Host>(&mut self, key: &Key, segment: &Segment<'_>, run: &mut Run<'_, H>) -> Verdict {
        if segment.has(RST) {
            // RFC 5961 §3.2: only the exact number resets; others in the window are challenged.
            if segment.seq == self.nxt {
                run.shared.streams.close(run.host, run.id, true);
                return Verdict::Free;
            }
            if segment.seq.since(self.nxt) > 0 && self.edge.since(segment.seq) >= 0 {
                self.acknowledge_soon(run);
            }
            return Verdict::Keep;
        }
        if segment.has(SYN) {
            if self.phase == Phase::Open {
                self.acknowledge_soon(run);
            }
            return Verdict::Keep;
        }
        if !segment.has(ACK) {
            return Verdict::Keep;
        }
        if self.phase == Phase::SynReceived {
            if segment.ack != self.snd {
                return Verdict::Keep;
            }
            self.window = u32::from(segment.window) << self.their_shift;
            self.opened(key, run);
            self.queue(run);
        }
        self.take_ack(segment, run);
        if self.take_data(key, segment, run).is_err() {
            return self.reset(key, run);
        }
        self.after(run)
    }

    /// The acknowledgement and window of a segment.
    fn take_ack<H: Host>(&mut self, segment: &Segment<'_>, run: &mut Run<'_, H>) {
        let acked = segment.ack.since(self.una);
        if acked > self.snd_max.since(self.una) {
            self.acknowledge_soon(run);
            return;
        }
        if acked < 0 {
            return;
        }
        let window = u32::from(segment.window) << self.their_shift;
        if acked == 0 {
            let pure = segment.payload.is_empty() && !segment.has(FIN);
            if pure && window == self.window && self.snd != self.una {
                self.duplicate_ack(run);
            }
            if window == 0 {
                // Still there, only full: probing goes on for ever.
                self.retries = 0;
            }
        } else {
            self.advance(segment.ack, acked as u32, run);
        }
        let opened = window > self.window || acked > 0;
        self.window = window;
        if opened && !self.flags.has(Flags::FIN_ACKED) {
            self.queue(run);
        }
    }

    fn duplicate_ack<H: Host>(&mut self, run: &mut Run<'_, H>) {
        self.dup_acks = self.dup_acks.saturating_add(1);
        if self.dup_acks == 3 && self.una.since(self.recover) >= 0 {
            self.recover = self.snd_max;
            self.go_back();
            run.shared.counters.retransmissions += 1;
            self.queue(run);
        }
    }

    fn go_back(&mut self) {
        self.snd = self.una;
        self.timed_us = 0;
        self.flags.clear(Flags::FIN_SENT);
        self.flags.set(Flags::READABLE);
    }

    fn advance<H: Host>(&mut self, ack: SeqNumber, acked: u32, run: &mut Run<'_, H>) {
        let fin = self.flags.has(Flags::FIN_EVER) && ack == self.snd_max;
        let bytes = acked - u32::from(fin);
        if bytes > 0 && !run.shared.streams.tcp_consume(run.host, run.id, bytes as usize) {
            // As if it had not been acknowledged: it stays peekable and will be acknowledged again.
            return;
        }
        self.una = ack;
        self.tally.to_container += u64::from(bytes);
        if self.snd.since(ack) < 0 {
            self.snd = ack;
        }
        if fin {
            self.flags.set(Flags::FIN_ACKED | Flags::FIN_SENT);
        }
        if !run.shared.config.peek_offset {
            // A peek that found nothing behind what is in flight could not tell "nothing yet" from the end of stream.
            self.flags.set(Flags::READABLE);
        }
        self.dup_acks = 0;
        self.retries = 0;
        if self.timed_us != 0 && ack.since(self.timed_seq) >= 0 {
            self.measure(run.now_us.saturating_sub(self.timed_us) as u32);
            self.timed_us = 0;
        }
        self.arm(run);
    }

    /// RFC 6298 §2.
    fn measure(&mut self, rtt_us: u32) {
        if self.srtt_us == 0 {
            self.srtt_us = rtt_us.max(1);
            self.rttvar_us = rtt_us / 2;
        } else {
            self.rttvar_us = (3 * (self.rttvar_us / 4)).saturating_add(self.srtt_us.abs_diff(rtt_us) / 4);
            self.srtt_us = (7 * (self.srtt_us / 8)).saturating_add(rtt_us / 8).max(1);
        }
        self.rto_us = self.srtt_us.saturating_add(4 * self.rttvar_us.min(RTO_MAX_US)).clamp(RTO_MIN_US, RTO_MAX_US);
    }

    /// The data and FIN of a segment. `Err` when the host socket is broken.
    fn take_data<H: Host>(&mut self, key: &Key, segment: &Segment<'_>, run: &mut Run<'_, H>) -> Result<(), ()> {
        let offset = segment.seq.since(self.nxt);
        let fin = segment.has(FIN);
        if segment.payload.is_empty() && !fin {
            // Nothing to take; a keepalive probe or anything else off the mark wants to know where we are.
            if offset != 0 {
                self.acknowledge_soon(run);
            }
            return Ok(());
        }
        if offset > 0 {
            // Something is missing. Each such segment is answered at once, as three answers make the container send
            // what is missing without waiting for a timeout (RFC 5681 §3.2).
            self.keep(segment, run);
            self.send(key, run, ACK, self.snd, None);
            return Ok(());
        }
        self.acknowledge_soon(run);
        let skip = usize::try_from(-i64::from(offset)).unwrap_or(usize::MAX);
        if skip > segment.payload.len() || self.flags.has(Flags::FIN_IN) {
            return Ok(());
        }
        let fresh = &segment.payload[skip..];
        let allowed = &fresh[..fresh.len().min(self.room_at(self.nxt))];
        let taken = self.deliver(allowed, run)?;
        self.nxt = self.nxt.plus(taken as u32);
        self.tally.from_container += taken as u64;
        run.carried(key.container.0, Way::FromContainer, taken);
        if taken < fresh.len() {
            run.shared.counters.dropped_segments += 1;
        } else if fin {
            self.flags.set(Flags::FIN_IN);
            self.nxt = self.nxt.plus(1);
            self.pass_fin(run);
        }
        self.join(key, run)
    }

    /// How many bytes from this number on are inside the window. Its field was rounded up: what that promised beyond the edge is taken
    /// too.
    fn room_at(&self, seq: SeqNumber) -> usize {
        let rounding = (1 << self.our_shift) - 1;
        (self.edge.since(seq) + rounding).max(0) as usize
    }

    /// Keeps a segment that came before its turn, if it begins an island or continues the one that is there.
    fn keep<H: Host>(&mut self, segment: &Segment<'_>, run: &mut Run<'_, H>) {
        // About half of the pool is left to what waits for a socket.
        if run.shared.stash.is_scarce() {
            return;
        }
        if self.island.len() == 0 {
            self.island_at = segment.seq;
            self.flags.clear(Flags::ISLAND_FIN);
        }
        if segment.seq != self.island_at.plus(self.island.len()) || self.flags.has(Flags::ISLAND_FIN) {
            return;
        }
        let allowed = segment.payload.len().min(self.room_at(segment.seq));
        let taken = run.shared.stash.push(&mut self.island, &segment.payload[..allowed]);
        if segment.has(FIN) && taken == segment.payload.len() && taken > 0 {
            self.flags.set(Flags::ISLAND_FIN);
        }
    }

    /// Takes the island if its turn has come.
    fn join<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Result<(), ()> {
        let again = self.nxt.since(self.island_at);
        if self.island.len() == 0 || again < 0 {
            return Ok(());
        }
        let mut island = std::mem::take(&mut self.island);
        // Where something waits for the socket already, it is sent again.
        if again as u32 > island.len() || self.flags.has(Flags::FIN_IN) || self.stash.len() > 0 {
            run.shared.stash.clear(&mut island);
            return Ok(());
        }
        run.shared.stash.skip(&mut island, again as u32);
        let count = island.len();
        self.stash = island;
        self.nxt = self.nxt.plus(count);
        self.tally.from_container += u64::from(count);
        run.carried(key.container.0, Way::FromContainer, count as usize);
        if self.flags.has(Flags::ISLAND_FIN) {
            self.flags.set(Flags::FIN_IN);
            self.nxt = self.nxt.plus(1);
        }
        self.flush_stash(run)?;
        if self.stash.len() > 0 {
            run.shared.timers.set(run.id, run.now_us + STASH_RETRY_US);
        }
        Ok(())
    }

    /// Hands bytes to the host socket or the stash and returns how many have found a place.
    fn deliver<H: Host>(&mut self, bytes: &[u8], run: &mut Run<'_, H>) -> Result<usize, ()> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut taken = 0;
        if self.stash.len() == 0 {
            match run.shared.streams.tcp_write(run.host, run.id, bytes, &run.shared.config) {
                Wrote::Taken(count) => taken = count,
                Wrote::Broken => return Err(()),
            }
        }
        if taken < bytes.len() {
            taken += run.shared.stash.push(&mut self.stash, &bytes[taken..]);
            run.shared.timers.set(run.id, run.now_us + STASH_RETRY_US);
        }
        Ok(taken)
    }

    fn flush_stash<H: Host>(&mut self, run: &mut Run<'_, H>) -> Result<(), ()> {
        let before = self.stash.len();
        while self.stash.len() > 0 {
            let (front, config) = (run.shared.stash.front(&self.stash), &run.shared.config);
            match run.shared.streams.tcp_write(run.host, run.id, front, config) {
                Wrote::Taken(0) => break,
                Wrote::Taken(count) => run.shared.stash.pop(&mut self.stash, count),
                Wrote::Broken => return Err(()),
            }
        }
        if self.stash.len() != before {
            self.acknowledge_soon(run);
        }
        self.pass_fin(run);
        Ok(())
    }

    /// Ends the host socket's sending direction once the container has ended its own and everything is delivered.
    fn pass_fin<H: Host>(&mut self, run: &mut Run<'_, H>) {
        if self.flags.has(Flags::FIN_IN) && !self.flags.has(Flags::SHUT) && self.stash.len() == 0 {
            run.shared.streams.tcp_shutdown(run.host, run.id);
            self.flags.set(Flags::SHUT);
            self.acknowledge_soon(run);
        }
    }

    /// What follows every event on an open flow: its end, when both directions have ended.
    fn after<H: Host>(&mut self, run: &mut Run<'_, H>) -> Verdict {
        if self.phase == Phase::Open && self.flags.has(Flags::SHUT | Flags::FIN_ACKED) {
            self.phase = Phase::Lingering;
            run.shared.streams.close(run.host, run.id, false);
            run.shared.timers.set(run.id, run.now_us + LINGER_US);
        }
        Verdict::Keep
    }

    /// The host side is broken: the container learns of it behind everything that was sent.
    fn reset<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Verdict {
        self.send(key, run, RST | ACK, self.snd, None);
        run.shared.stash.clear(&mut self.stash);
        run.shared.stash.clear(&mut self.island);
        run.shared.streams.close(run.host, run.id, true);
        Verdict::Free
    }

    /// Gives back what the flow holds outside itself.
    pub fn release<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        run.shared.stash.clear(&mut self.stash);
        run.shared.stash.clear(&mut self.island);
        if self.is_half_open() {
            *run.half_open = run.half_open.saturating_sub(1);
            run.let_go(key.container.0, Kind::HalfOpen);
        }
    }

    fn queue<H: Host>(&mut self, run: &mut Run<'_, H>) {
        if !self.flags.has(Flags::QUEUED) {
            self.flags.set(Flags::QUEUED);
            run.shared.ready.push_back(run.id);
        }
    }

    fn acknowledge_soon<H: Host>(&mut self, run: &mut Run<'_, H>) {
        if !self.flags.has(Flags::ACK_DUE) {
            self.flags.set(Flags::ACK_DUE);
            run.shared.acks.push(run.id);
        }
    }

    /// The end of a batch: the acknowledgement that is due.
    pub fn send_due_ack<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        if self.flags.has(Flags::ACK_DUE) && matches!(self.phase, Phase::Open | Phase::Lingering) {
            self.refresh_edge(key, run);
            self.send(key, run, ACK, self.snd, None);
        }
        self.flags.clear(Flags::ACK_DUE);
    }

    fn wait<H: Host>(&mut self, run: &mut Run<'_, H>) {
        if !self.flags.has(Flags::WAITING) {
            self.flags.set(Flags::WAITING);
            run.shared.waiting.push(run.id, run.now_us);
        }
    }

    /// The flow's container may carry more now.
    pub fn resume<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        if !self.flags.has(Flags::WAITING) {
            return;
        }
        self.flags.clear(Flags::WAITING);
        if self.phase == Phase::Open {
            let before = self.edge;
            self.refresh_edge(key, run);
            if self.edge != before {
                self.acknowledge_soon(run);
            }
            self.queue(run);
        }
    }

    /// The flow's turn in the ready ring: one peek's worth. `Keep` after it may have queued itself again.
    pub fn turn<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Verdict {
        if !self.flags.has(Flags::QUEUED) {
            return Verdict::Keep;
        }
        self.flags.clear(Flags::QUEUED);
        self.pump(key, self.window, run)
    }

    /// Sends what the container's window and the socket allow.
    fn pump<H: Host>(&mut self, key: &Key, window: u32, run: &mut Run<'_, H>) -> Verdict {
        if self.phase != Phase::Open || self.flags.has(Flags::FIN_SENT) || !self.flags.has(Flags::READABLE) {
            return Verdict::Keep;
        }
        let cap = if run.shared.config.peek_offset { IN_FLIGHT_MAX } else { IN_FLIGHT_WITHOUT_OFFSET };
        let in_flight = self.snd.since(self.una) as u32;
        let room = window.min(cap).saturating_sub(in_flight);
        // No silly segments: while something is in flight, an acknowledgement will come.
        if room == 0 || (room < u32::from(self.mss) && in_flight > 0) {
            self.keep_armed(run);
            return Verdict::Keep;
        }
        let allowed = run.may_carry(key.container.0, Way::ToContainer);
        if allowed < room.min(u32::from(self.mss)) {
            self.wait(run);
            self.keep_armed(run);
            return Verdict::Keep;
        }
        let mut scratch = std::mem::take(&mut run.shared.scratch);
        let most = scratch.len().min(room.min(allowed) as usize);
        let verdict = match run.shared.streams.tcp_peek(run.host, run.id, in_flight as usize, &mut scratch[..most]) {
            Peek::Data(count) => {
                self.send_data(key, &scratch[..count], run);
                if !self.flags.has(Flags::TAP_FULL) {
                    self.queue(run);
                }
                Verdict::Keep
            }
            Peek::End => {
                self.send_fin(key, run);
                Verdict::Keep
            }
            Peek::Nothing => {
                self.flags.clear(Flags::READABLE);
                Verdict::Keep
            }
            Peek::Broken => self.reset(key, run),
        };
        run.shared.scratch = scratch;
        if verdict == Verdict::Keep {
            self.keep_armed(run);
        }
        verdict
    }

    fn send_data<H: Host>(&mut self, key: &Key, data: &[u8], run: &mut Run<'_, H>) {
        self.flags.clear(Flags::TAP_FULL);
        self.refresh_edge(key, run);
        let mss = usize::from(self.mss);
        let per_frame = (FRAME_PAYLOAD / mss).max(1) * mss;
        let mut rest = data;
        while !rest.is_empty() {
            let (payload, later) = rest.split_at(rest.len().min(per_frame));
            let flags = if later.is_empty() { ACK | PSH } else { ACK };
            let outgoing = self.outgoing(key, flags, self.snd, None);
            if run.segment(&outgoing, payload, self.mss).is_err() {
                // Tried again when the TAP takes frames; the socket keeps the bytes.
                self.flags.set(Flags::TAP_FULL);
                run.shared.tap_full.push(run.id);
                break;
            }
            run.carried(key.container.0, Way::ToContainer, payload.len());
            if self.timed_us == 0 && self.snd == self.snd_max {
                (self.timed_seq, self.timed_us) = (self.snd.plus(payload.len() as u32), run.now_us.max(1));
            }
            self.snd = self.snd.plus(payload.len() as u32);
            if self.snd.since(self.snd_max) > 0 {
                self.snd_max = self.snd;
            }
            self.flags.clear(Flags::ACK_DUE);
            rest = later;
        }
    }

    /// The TAP takes frames again.
    pub fn tap_writable<H: Host>(&mut self, run: &mut Run<'_, H>) {
        if self.flags.has(Flags::TAP_FULL) {
            self.flags.clear(Flags::TAP_FULL);
            self.queue(run);
        }
    }

    fn send_fin<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        self.refresh_edge(key, run);
        self.send(key, run, FIN | ACK, self.snd, None);
        self.flags.set(Flags::FIN_SENT | Flags::FIN_EVER);
        self.flags.clear(Flags::READABLE | Flags::ACK_DUE);
        self.snd = self.snd.plus(1);
        self.snd_max = self.snd;
    }

    /// Sets the deadline that fits what is outstanding; restarts one that runs.
    fn arm<H: Host>(&mut self, run: &mut Run<'_, H>) {
        let at = self.deadline(run.now_us);
        run.shared.timers.set(run.id, at);
    }

    /// The same, but an earlier deadline stays: only acknowledgements restart the timer (RFC 6298 §5), or news of the
    /// host socket could put a retransmission off for ever.
    fn keep_armed<H: Host>(&mut self, run: &mut Run<'_, H>) {
        let at = self.deadline(run.now_us);
        run.shared.timers.set_earlier(run.id, at);
    }

    fn deadline(&self, now_us: u64) -> u64 {
        let delay = if self.snd != self.una || (self.window == 0 && self.flags.has(Flags::READABLE)) {
            u64::from(self.rto_us) << self.retries.min(8)
        } else if self.stash.len() > 0 {
            STASH_RETRY_US
        } else if self.retries > 0 {
            KEEPALIVE_INTERVAL_US
        } else if self.flags.0 & (Flags::FIN_ACKED | Flags::SHUT) != 0 {
            KEEPALIVE_HALF_CLOSED_US
        } else {
            KEEPALIVE_OPEN_US
        };
        let longest = if self.snd == self.una { KEEPALIVE_OPEN_US } else { u64::from(RTO_MAX_US) };
        now_us + delay.min(longest)
    }

    /// The flow's deadline has come.
    pub fn timer<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Verdict {
        match self.phase {
            Phase::Lingering => Verdict::Free,
            Phase::Connecting => {
                run.shared.streams.close(run.host, run.id, true);
                Verdict::Free
            }
            // It was accepted before the container's device, and what that has, was known.
            Phase::SynSent if !run.shared.config.is_member(key.container.0) => Verdict::OverIpv4,
            Phase::SynReceived | Phase::SynSent => {
                self.retries += 1;
                if self.retries >= HANDSHAKE_TRIES {
                    return self.reset(key, run);
                }
                self.send_syn(key, run);
                Verdict::Keep
            }
            Phase::Open => self.timer_open(key, run),
        }
    }

    fn timer_open<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) -> Verdict {
        if self.stash.len() > 0 && self.flush_stash(run).is_err() {
            return self.reset(key, run);
        }
        let outstanding = self.snd != self.una;
        let blocked = self.window == 0 && self.flags.has(Flags::READABLE);
        if !outstanding && self.stash.len() > 0 {
            self.arm(run);
            return self.after(run);
        }
        self.retries += 1;
        if self.retries > DATA_TRIES {
            return self.reset(key, run);
        }
        if outstanding || blocked {
            run.shared.counters.retransmissions += 1;
            self.go_back();
            // At least one byte, into a closed window too: the answer says when it opens.
            return self.pump(key, self.window.max(1), run);
        }
        // Keepalive: an old number draws an acknowledgement, or a reset from a kernel that has forgotten.
        self.send(key, run, ACK, self.snd.plus(0_u32.wrapping_sub(1)), None);
        self.arm(run);
        Verdict::Keep
    }

    /// Moves the right edge of the advertised window as far as the room behind it allows, never back.
    fn refresh_edge<H: Host>(&mut self, key: &Key, run: &mut Run<'_, H>) {
        let floor = if run.shared.stash.is_scarce() { WINDOW_SCARCE } else { stash::PER_FLOW };
        let window = match self.stash.len() {
            0 => run.shared.streams.tcp_room(run.host, run.id).clamp(floor, WINDOW_MAX),
            waiting => floor.saturating_sub(waiting),
        };
        let window = if self.our_shift == 0 { window.min(0xffff) } else { window };
        let allowed = run.may_carry(key.container.0, Way::FromContainer);
        let is_held_back = allowed < window;
        let window = window.min(allowed);
        let edge = self.acknowledged().plus(window);
        let moved = edge.since(self.edge);
        // Steps smaller than a segment are not worth announcing.
        let is_closed = self.edge == self.nxt && self.stash.len() == 0 && !is_held_back;
        if moved >= i32::from(self.mss) || is_closed && moved > 0 {
            self.edge = edge;
        }
        if is_held_back && self.edge.since(self.nxt) < i32::from(self.mss) && !self.flags.has(Flags::FIN_IN) {
            self.wait(run);
        }
    }

    /// The number up to which the host's kernel has everything.
    fn acknowledged(&self) -> SeqNumber {
        let fin = self.flags.has(Flags::FIN_IN) && !self.flags.has(Flags::SHUT);
        self.nxt.plus(0_u32.wrapping_sub(self.stash.len() + u32::from(fin)))
    }

    fn outgoing(&self, key: &Key, flags: u8, seq: SeqNumber, syn: Option<SynOptions>) -> Outgoing {
        let ack = self.acknowledged();
        let room = self.edge.since(ack).max(0) as u32;
        let shift = if syn.is_some() { 0 } else { self.our_shift };
        // Rounded up, as rounding down would take back what was promised (RFC 7323 §2.4).
        let window = if self.phase == Phase::SynSent { 0xffff } else { room.div_ceil(1 << shift).min(0xffff) as u16 };
        let ack = if flags & ACK == 0 { SeqNumber(0) } else { ack };
        Outgoing { source: key.remote, destination: key.container, seq, ack, flags, window, syn }
    }

    fn send<H: Host>(&self, key: &Key, run: &mut Run<'_, H>, flags: u8, seq: SeqNumber, syn: Option<SynOptions>) {
        // A lost control segment is sent again by its timer, or asked for again by the container.
        let _ = run.segment(&self.outgoing(key, flags, seq, syn), &[], 0);
    }

    /// Holds between any two events; tests check it.
    #[cfg(test)]
    pub fn check(&self) {
        assert!(self.snd.since(self.una) >= 0 && self.snd_max.since(self.snd) >= 0, "una <= snd <= snd_max");
        assert!(self.stash.len() <= stash::PER_FLOW && self.island.len() <= stash::PER_FLOW);
        assert!(self.island.len() == 0 || self.island_at.since(self.nxt) > 0, "an island lies ahead");
    }

    #[cfg(test)]
    pub fn edge(&self) -> SeqNumber {
        self.edge
    }
}

/// The answer to a segment that belongs to no flow: a reset (RFC 9293 §3.10.7.1).
pub(crate) fn answer_stray<H: Host>(key: &Key, segment: &Segment<'_>, run: &mut Run<'_, H>) {
    if segment.has(RST) {
        return;
    }
    let length = segment.payload.len() as u32 + u32::from(segment.has(SYN)) + u32::from(segment.has(FIN));
    let (flags, seq, ack) = if segment.has(ACK) {
        (RST, segment.ack, SeqNumber(0))
    } else {
        (RST | ACK, SeqNumber(0), segment.seq.plus(length))
    };
    let outgoing = Outgoing { source: key.remote, destination: key.container, seq, ack, flags, window: 0, syn: None };
    let _ = run.segment(&outgoing, &[], 0);
}

/// The address to connect to for a flow.
pub(crate) fn target(address: IpAddr, key: &Key) -> SocketAddr {
    SocketAddr::new(address, key.remote.1)
}
