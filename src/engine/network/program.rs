//! Networks by installed programs, slirp4netns and pasta: what is asked of them, and whether they can do it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base::{ContainerId, Context, Kind, Report};
pub use net::helper::Choice;
use net::helper::options::Plan;
use net::helper::{HelperSpec, Program};

use crate::Engine;
use crate::container::network::published;
use crate::container::record::{HostSettings, NetworkMode, Record};

/// Refuses what the program cannot do, or is not there for.
pub(crate) fn check(engine: &Engine, choice: &Choice, host: &HostSettings, id: &ContainerId) -> Result<(), Report> {
    let plan = choice.plan(id, host.mac_address, has_ipv6())?;
    if choice.program == Program::Slirp
        && let Some(address) = host.ports.iter().filter_map(|port| port.host_ip).find(IpAddr::is_ipv6)
    {
        let text = format!("slirp4netns publishes ports of IPv4 only, not of {address}");
        return Err(Report::new(Kind::Usage, text).with_hint("use the builtin network, or --network pasta"));
    }
    probe(&find(engine, choice.program)?, choice, &plan)
}

/// What the network of a container comes to, if it is one of a program.
pub(crate) fn plan(record: &Record) -> Option<Plan> {
    let NetworkMode::Program(choice) = &record.host.network else { return None };
    // It was checked when the container was made.
    choice.plan(&record.id, record.host.mac_address, has_ipv6()).ok()
}

/// The machine's address as a container sees it that has the network of a program; `None` where that is its gateway.
pub(crate) fn host(record: &Record) -> Option<IpAddr> {
    let plan = plan(record).filter(|plan| !plan.gateway_is_host)?;
    let v4 = Some(IpAddr::from(Ipv4Addr::UNSPECIFIED)).filter(|_| !plan.addressing.v4.container.is_unspecified());
    net::primary_address(v4.unwrap_or(Ipv6Addr::UNSPECIFIED.into()))
}

/// What the role net is told.
pub(crate) fn spec(engine: &Engine, record: &Record, run_dir: &Path) -> Result<Option<HelperSpec>, Report> {
    let (NetworkMode::Program(choice), Some(plan)) = (&record.host.network, plan(record)) else { return Ok(None) };
    let path = find(engine, choice.program)?;
    // It may be another build than when the container was made.
    probe(&path, choice, &plan)?;
    let Plan { addressing, device, arguments, .. } = plan;
    let (program, publish, directory) = (choice.program, published(record), run_dir.to_owned());
    Ok(Some(HelperSpec { program, path, arguments, device, addressing, publish, directory }))
}

fn has_ipv6() -> bool {
    net::primary_address(Ipv6Addr::UNSPECIFIED.into()).is_some()
}

fn find(engine: &Engine, program: Program) -> Result<PathBuf, Report> {
    let is_program =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    let mut places = engine.options().programs.iter().map(|directory| directory.join(program.name()));
    places.find(is_program).ok_or_else(|| {
        let (name, package) = (program.name(), program.package());
        Report::new(Kind::Unsupported, format!("the network {name} needs the program {name}, which is not in $PATH"))
            .with_hint(format!("install the package {package}, or use the builtin network"))
    })
}

/// Refuses options that this build of the program does not have.
fn probe(path: &Path, choice: &Choice, plan: &Plan) -> Result<(), Report> {
    let output = Command::new(path).arg("--help").output();
    let output = output.map_err(|error| Report::of(Kind::Unsupported, error));
    let output = output.step(|| format!("asking {} for its options", path.display()))?;
    // pasta's goes to the standard error.
    let help = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let Some(option) = plan.missing(&help) else { return Ok(()) };
    let text = format!("this build of {} has no option {option}, which the network {choice} needs", path.display());
    Err(Report::new(Kind::Unsupported, text).with_hint("leave the option out, or install a newer build"))
}
