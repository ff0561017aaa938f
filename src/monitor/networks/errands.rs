//! What children of the monitor do for a container's networks: each answers once and ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use base::{Failure, Report};
use net::bridge::Made;
use net::client::Membership;
use net::{NetError, Publish, Published};
use runtime::stage::{ask, in_outer, join_outer};
use serde::{Deserialize, Serialize};
use sys::role::Inherited;

use crate::networks::{Joined, replug};

/// What a child has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// A membership: its socket, and the network's namespace.
    pub membership: Option<(OwnedFd, OwnedFd)>,
    /// Of each device that was made whether its namespace has IPv6.
    pub ipv6: Vec<bool>,
    /// Ports that were bound.
    pub published: Option<Vec<Published>>,
    /// What failed, and does not make the rest undone.
    pub aside: Option<Report>,
}

/// The same on its way, with the membership beside it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    ipv6: Vec<bool>,
    published: Option<Vec<Published>>,
    aside: Option<Failure>,
}

/// Has these devices made, each with its name at the bridge.
pub(super) fn plug(outer: BorrowedFd<'_>, container: BorrowedFd<'_>, joined: &[Joined]) -> Result<OwnedFd, Report> {
    let names: Vec<String> = (0..joined.len()).map(|number| format!("network-{number}")).collect();
    let mut fds = vec![("outer", outer), ("container", container)];
    fds.extend(names.iter().zip(joined).map(|(name, joined)| (name.as_str(), joined.namespace.as_fd())));
    spawn(&fds, |inherited| {
        join_outer(inherited.fd("outer")?.as_fd())?;
        let container = inherited.fd("container")?;
        let mut answer = Answer::default();
        for (name, joined) in names.iter().zip(joined) {
            answer.ipv6.push(plug_one(inherited.fd(name)?.as_fd(), container.as_fd(), joined)?);
        }
        Ok((answer, None))
    })
}

fn plug_one(network: BorrowedFd<'_>, container: BorrowedFd<'_>, joined: &Joined) -> Result<bool, Report> {
    let plug = joined.admission.joining.plug(joined.init);
    net::bridge::plug(network, container, &plug).map_err(NetError::into_report)
}

/// Has a device made for a container that runs, and these ports bound for it.
pub(super) fn connect(
    outer: BorrowedFd<'_>,
    container: BorrowedFd<'_>,
    joined: &Joined,
    ports: &[Publish],
) -> Result<OwnedFd, Report> {
    let mut fds = vec![("outer", outer), ("container", container), ("network", joined.namespace.as_fd())];
    fds.extend(joined.socket.as_ref().map(|socket| ("member", socket.as_fd())));
    spawn(&fds, |inherited| {
        let (outer, container, network) =
            (inherited.fd("outer")?, inherited.fd("container")?, inherited.fd("network")?);
        let fds = [("container", container.as_fd()), ("network", network.as_fd())];
        let (ipv6, []) = in_outer(outer.as_fd(), &fds, |inherited| {
            let ipv6 = plug_one(inherited.fd("network")?.as_fd(), inherited.fd("container")?.as_fd(), joined)?;
            Ok((ipv6, []))
        })?;
        let mut answer = Answer { ipv6: vec![ipv6], ..Answer::default() };
        bind_again(inherited, ports, &mut answer);
        Ok((answer, None))
    })
}

/// Has a device taken away by its name at the bridge, and what is elsewhere and these ports led by another network of the container.
pub(super) fn unplug(
    outer: BorrowedFd<'_>,
    (network, peer): (BorrowedFd<'_>, &str),
    next: Option<(BorrowedFd<'_>, &Joined)>,
    ports: &[Publish],
) -> Result<OwnedFd, Report> {
    let mut fds = vec![("outer", outer), ("network", network)];
    if let Some((container, joined)) = next {
        fds.push(("container", container));
        fds.extend(joined.socket.as_ref().map(|socket| ("member", socket.as_fd())));
    }
    spawn(&fds, |inherited| {
        let (outer, network) = (inherited.fd("outer")?, inherited.fd("network")?);
        let container = inherited.optional_fd("container");
        let mut fds = vec![("network", network.as_fd())];
        fds.extend(container.as_ref().map(|container| ("container", container.as_fd())));
        let (aside, []) = in_outer(outer.as_fd(), &fds, |inherited| {
            net::bridge::unplug(inherited.fd("network")?.as_fd(), peer).map_err(NetError::into_report)?;
            let mut aside = None;
            if let (Some(container), Some((_, joined))) = (inherited.optional_fd("container"), next) {
                let joining = &joined.admission.joining;
                // The container's root may have changed what it has.
                let led = net::bridge::lead(container.as_fd(), &joining.device, &joining.addressing);
                aside = led.map_err(NetError::into_report).err().map(|report| Failure::from(&report));
            }
            Ok((aside, []))
        })?;
        let mut answer = Answer { aside, ..Answer::default() };
        bind_again(inherited, ports, &mut answer);
        Ok((answer, None))
    })
}

/// Has a network joined again whose role has ended, and these ports bound again for the container. A command may have made the
/// network anew meanwhile; then the container, if it runs, gets a device there in place of the one that it has.
pub(super) fn revive(
    outer: BorrowedFd<'_>,
    running: Option<BorrowedFd<'_>>,
    joined: &Joined,
    ports: &[Publish],
) -> Result<OwnedFd, Report> {
    let mut fds = vec![("outer", outer), ("network", joined.namespace.as_fd())];
    fds.extend(running.map(|container| ("container", container)));
    spawn(&fds, |inherited| {
        let (outer, network) = (inherited.fd("outer")?, inherited.fd("network")?);
        let container = inherited.optional_fd("container");
        let Membership { socket, namespace, .. } = joined.admission.entry.join(|_| {
            let ((), [namespace, tap]) = in_outer(outer.as_fd(), &[("network", network.as_fd())], |inherited| {
                let Made { namespace, tap } =
                    net::bridge::reopen(inherited.fd("network")?).map_err(NetError::into_report)?;
                Ok(((), [namespace, tap]))
            })?;
            Ok(Made { namespace, tap })
        })?;
        let mut answer = Answer::default();
        if let Some(container) = container {
            let plug = joined.admission.joining.plug(joined.init);
            answer.ipv6.extend(replug(outer.as_fd(), namespace.as_fd(), container.as_fd(), &plug)?);
        }
        rebind(socket.as_fd(), ports, &mut answer);
        Ok((answer, Some((socket, namespace))))
    })
}

/// Has these ports bound again for the container.
pub(super) fn publish(member: BorrowedFd<'_>, ports: &[Publish]) -> Result<OwnedFd, Report> {
    spawn(&[("member", member)], |inherited| {
        let mut answer = Answer::default();
        bind_again(inherited, ports, &mut answer);
        Ok((answer, None))
    })
}

fn bind_again(inherited: &mut Inherited, ports: &[Publish], answer: &mut Answer) {
    if let Some(member) = inherited.optional_fd("member") {
        rebind(member.as_fd(), ports, answer);
    }
}

/// Binds ports that another role has had until now, and may have for a moment longer. One that cannot be had is told, and the
/// others are there.
fn rebind(member: BorrowedFd<'_>, ports: &[Publish], answer: &mut Answer) {
    if ports.is_empty() {
        return;
    }
    net::ports::await_free(ports);
    let mut bound = Vec::new();
    for port in ports {
        match net::client::publish(member, std::slice::from_ref(port)) {
            Ok(published) => bound.extend(published),
            Err(error) => answer.aside = Some(Failure::from(&error.into_report())),
        }
    }
    answer.published = Some(bound);
}

/// Lets a child do something; [`answered`] reads from what this gives.
fn spawn(
    fds: &[(&str, BorrowedFd<'_>)],
    task: impl FnOnce(&mut Inherited) -> Result<(Answer, Option<(OwnedFd, OwnedFd)>), Report>,
) -> Result<OwnedFd, Report> {
    let (_, answer) = ask(fds, |inherited| {
        let (answer, membership) = task(inherited)?;
        Ok((answer, membership.into_iter().flat_map(<[OwnedFd; 2]>::from).collect()))
    })?;
    Ok(answer)
}

/// What a child says.
pub(super) fn answered(answer: BorrowedFd<'_>) -> Result<Done, Report> {
    let (Answer { ipv6, published, aside }, fds) = runtime::stage::answered(answer)?;
    let membership = <[OwnedFd; 2]>::try_from(fds).ok().map(|[socket, namespace]| (socket, namespace));
    Ok(Done { membership, ipv6, published, aside: aside.map(Report::from) })
}
