//! Being in a network: the place that a container gets in it before it starts, or while it runs.
//!
//! A network's role is found by its socket; where none listens, the network has no member, and it is made: by a child in the
//! outer user namespace, to which it then belongs, under the lock of all networks, so that two starts make it once. A membership
//! is a connection to the role, and is handed to the container's monitor. Until then it is the command's, and ends with it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Context, Kind, Report};
use monitor::networks::{Admission, Joining, replug};
use net::bridge::Made;
use net::client::{Entry, Membership};
use net::control::Wish;
use net::{NetError, NetworkSpec};
use runtime::stage::in_outer;

use crate::Engine;
use crate::container::record::{NetworkMode, Record};
use crate::network::endpoint::{Wanted, members};
use crate::network::{Network, find, lock_file};
use crate::paths::make_dir;

/// The port of name servers.
const DNS: u16 = 53;

/// A container's place in a network.
#[derive(Debug)]
pub(crate) struct Place {
    /// What the monitor is told.
    pub admission: Admission,
    /// The connection.
    pub socket: OwnedFd,
    /// The network's namespace.
    pub namespace: OwnedFd,
    /// The role's process.
    pub pid: i32,
}

/// Gets a container its places, in the order of its wishes. The first from which something leads out has the route to what is
/// elsewhere, unless the container has a network of its own.
pub(crate) fn join_all(engine: &Engine, record: &Record, outer: BorrowedFd<'_>) -> Result<Vec<Place>, Report> {
    let mut places: Vec<Place> = Vec::new();
    let has_own = record.host.network == NetworkMode::Builtin;
    let mut leads = has_own;
    for (number, wanted) in (usize::from(has_own)..).zip(&record.host.networks) {
        let network = find(engine, &wanted.network)?;
        let mut place = join(engine, record, &network, wanted, outer)?;
        place.admission.joining.device = format!("eth{number}");
        place.admission.joining.default = !leads && !network.internal;
        leads |= place.admission.joining.default;
        places.push(place);
    }
    Ok(places)
}

/// Gets a container its place in one network. The caller must have one thread.
pub(crate) fn join(
    engine: &Engine,
    record: &Record,
    network: &Network,
    wanted: &Wanted,
    outer: BorrowedFd<'_>,
) -> Result<Place, Report> {
    let directory = engine.paths().run_network(&network.id);
    make_dir(&directory)?;
    let hostname = &record.settings.hostname;
    let mut names = vec![record.name.clone(), record.id.short().to_owned()];
    if !names.contains(hostname) {
        names.push(hostname.clone());
    }
    names.extend(wanted.aliases.iter().cloned());
    let dns = &record.host.dns;
    let resolvers = (!dns.is_empty()).then(|| dns.iter().map(|address| SocketAddr::new(*address, DNS)).collect());
    let mut avoid = Vec::new();
    if net::client::is_young(&directory) {
        let others = members(engine)?.into_iter().filter(|other| other.id != record.id);
        let others = others.filter(|other| other.joining.network == network.id);
        avoid.extend(others.map(|other| other.joining.addressing.v4.container));
    }
    let wish = Wish {
        id: record.id.to_string(),
        names,
        v4: wanted.ip,
        avoid,
        v6: wanted.ip6,
        resolvers,
        mac: wanted.mac,
        links: wanted.links.clone(),
        egress: record.host.egress.clone(),
        rate: record.host.net_rate,
    };
    let mut entry = Entry { wish, spec: network.spec(), directory, lock: lock_file(engine) };
    let membership = entry.join(|spec| make(spec, outer));
    let Membership { socket, addressing, namespace, pid } =
        membership.step(|| format!("connecting the container to network {}", network.name))?;
    entry.keep(&addressing);
    let (device, default) = (String::new(), false);
    let joining =
        Joining { network: network.id.clone(), name: network.name.clone(), device, addressing, default, ipv6: true };
    Ok(Place { admission: Admission { joining, entry }, socket, namespace, pid })
}

/// Gets a container that runs its places again after its monitor was killed, with the same addresses. A network whose members had
/// no monitor has ended with these: it is made anew, and so are the devices of all.
pub(crate) fn again(
    engine: &Engine,
    admissions: &[Admission],
    outer: BorrowedFd<'_>,
    (init, process): (i32, BorrowedFd<'_>),
) -> Result<Vec<Place>, Report> {
    let mut container = runtime::exec::open_namespaces(init, process, &["net"])?;
    let container = container.pop().ok_or_else(|| Report::new(Kind::Internal, "it has no network namespace"))?;
    let mut places = Vec::new();
    for admission in admissions {
        match place_again(admission, outer, (init, container.as_fd())) {
            Ok(place) => places.push(place),
            Err(report) => {
                let why = report.lines().join(": ");
                engine.notice(&format!("it is not in network {} any more: {why}", admission.joining.name));
            }
        }
    }
    Ok(places)
}

fn place_again(
    admission: &Admission,
    outer: BorrowedFd<'_>,
    (init, container): (i32, BorrowedFd<'_>),
) -> Result<Place, Report> {
    let Admission { joining, entry } = admission;
    make_dir(&entry.directory)?;
    let Membership { socket, namespace, pid, .. } = entry.join(|spec| make(spec, outer))?;
    let ipv6 = replug(outer, namespace.as_fd(), container, &joining.plug(init))?;
    let mut admission = admission.clone();
    admission.joining.ipv6 = ipv6.unwrap_or(joining.ipv6);
    Ok(Place { admission, socket, namespace, pid })
}

/// Has a network made by a child that joins the outer user namespace.
fn make(spec: &NetworkSpec, outer: BorrowedFd<'_>) -> Result<Made, Report> {
    let ((), [namespace, tap]) = in_outer(outer, &[], |_| {
        let Made { namespace, tap } = net::bridge::make(spec).map_err(NetError::into_report)?;
        Ok(((), [namespace, tap]))
    })?;
    Ok(Made { namespace, tap })
}
