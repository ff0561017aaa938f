//! Devices by what they are: names of CDI devices, and GPUs.
//!
//! GPUs come from a spec file of their maker where there is one, else from what the kernel shows. Grammar and rules are
//! Docker's (`daemon/devices*.go` of moby): a request names a driver, or capabilities that a driver must have.

use std::path::Path;

use base::{Kind, Report};
use cdi::gpu::{AMD, Generated, GpuError, NVIDIA, Which, amd, nvidia};
use cdi::{ContainerEdits, DeviceName, Registry};

use super::wrong;
use crate::container::record::DeviceRequest;

/// The driver of requests that name CDI devices.
pub(crate) const CDI: &str = "cdi";

/// A maker of GPUs.
struct Maker {
    driver: &'static str,
    kind: &'static str,
    capabilities: &'static [&'static str],
    make: fn(&Path, &Which) -> Result<Option<Generated>, GpuError>,
}

/// In the order in which they are tried.
const MAKERS: [Maker; 2] = [
    Maker {
        driver: "nvidia",
        kind: NVIDIA,
        capabilities: &["gpu", "nvidia", "compute", "compat32", "graphics", "utility", "video", "display"],
        make: nvidia,
    },
    Maker { driver: "amd", kind: AMD, capabilities: &["gpu", "amd"], make: amd },
];

/// The edits for requests.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub edits: ContainerEdits,
    /// Variables that are lists of directories, and what is added to each.
    pub search: Vec<(String, String)>,
    /// What of a driver was not found.
    pub missing: Vec<String>,
}

enum Gpus {
    Named(Vec<DeviceName>),
    Generated(Generated),
}

pub(super) fn find(requests: &[DeviceRequest], registry: &Registry) -> Result<Found, Report> {
    let mut found = Found::default();
    // Of one spec file what holds for all of its devices is wanted once, whoever asks for them.
    let mut names: Vec<DeviceName> = Vec::new();
    for request in requests {
        if request.driver == CDI {
            names.extend(by_name(request)?);
            continue;
        }
        match gpus(request, registry).map_err(|report| report.with_step("adding GPUs"))? {
            Gpus::Named(gpus) => names.extend(gpus),
            Gpus::Generated(gpus) => {
                found.edits.append(&gpus.edits);
                found.search.extend(gpus.search.iter().map(|(name, directory)| ((*name).into(), (*directory).into())));
                found.missing.extend(gpus.missing.map(|line| format!("GPUs: {line}")));
            }
        }
    }
    let step =
        || format!("adding the devices {}", names.iter().map(DeviceName::to_string).collect::<Vec<_>>().join(", "));
    let mut edits = registry.edits(&names).map_err(|error| Report::from(error).with_step(step()))?;
    edits.append(&found.edits);
    found.edits = edits;
    Ok(found)
}

fn by_name(request: &DeviceRequest) -> Result<Vec<DeviceName>, Report> {
    if request.count != 0 {
        return Err(wrong("unexpected count in CDI device request"));
    }
    let parse =
        |id: &String| id.parse().map_err(|error| Report::from(error).with_step(format!("adding the device {id}")));
    request.device_ids.iter().map(parse).collect()
}

fn gpus(request: &DeviceRequest, registry: &Registry) -> Result<Gpus, Report> {
    let makers = makers(request)?;
    let which = match (request.count, request.device_ids.as_slice()) {
        (0, []) => return Ok(Gpus::Named(Vec::new())),
        (0, ids) => Which::Named(ids.to_vec()),
        (count, []) => usize::try_from(count).map_or(Which::All, Which::Count),
        _ => return Err(wrong("cannot set both Count and DeviceIDs on device request")),
    };
    for maker in &makers {
        let known = registry.of_kind(maker.kind);
        if !known.is_empty() {
            return Ok(Gpus::Named(named(maker.kind, &known, &which)?));
        }
    }
    for maker in &makers {
        if let Some(generated) = (maker.make)(Path::new("/"), &which)? {
            return Ok(Gpus::Generated(generated));
        }
    }
    Err(nothing(&makers, registry))
}

/// The makers whose GPUs a request can mean.
fn makers(request: &DeviceRequest) -> Result<Vec<&'static Maker>, Report> {
    let has = |maker: &Maker, list: &Vec<String>| list.iter().all(|word| maker.capabilities.contains(&word.as_str()));
    let fits = |maker: &&Maker| match request.driver.as_str() {
        "" => request.capabilities.iter().any(|list| has(maker, list)),
        driver => maker.driver == driver,
    };
    let makers: Vec<&Maker> = MAKERS.iter().filter(fits).collect();
    if makers.is_empty() {
        let capabilities: Vec<String> =
            request.capabilities.iter().map(|list| format!("[{}]", list.join(" "))).collect();
        let (driver, capabilities) = (&request.driver, capabilities.join(" "));
        let message = format!("could not select device driver {driver:?} with capabilities: [{capabilities}]");
        return Err(wrong(message).with_hint("the drivers are nvidia and amd"));
    }
    Ok(makers)
}

/// The names of a spec file's devices: those of GPUs are numbers, UUIDs, and `all`.
fn named(kind: &str, known: &[&str], which: &Which) -> Result<Vec<DeviceName>, Report> {
    let name = |name: &str| if name.contains('=') { name.parse() } else { DeviceName::new(kind, name) };
    let names: Result<Vec<_>, _> = match which {
        Which::All if known.contains(&"all") => return Ok(vec![DeviceName::new(kind, "all")?]),
        Which::All => known.iter().map(|known| name(known)).collect(),
        Which::Count(count) => {
            let there = known.iter().filter(|name| name.parse::<u32>().is_ok()).count();
            if *count > there {
                return Err(GpuError::TooFew { asked: *count, there }.into());
            }
            (0..*count).map(|number| name(&number.to_string())).collect()
        }
        Which::Named(names) => names.iter().map(|given| name(given)).collect(),
    };
    Ok(names?)
}

fn nothing(makers: &[&Maker], registry: &Registry) -> Report {
    let kinds: Vec<&str> = makers.iter().map(|maker| maker.kind).collect();
    let directories: Vec<String> = registry.directories().iter().map(|path| path.display().to_string()).collect();
    let (kinds, directories) = (kinds.join(" or "), directories.join(", "));
    let skipped: Vec<String> = registry.skipped().iter().map(|skipped| format!("; not used: {skipped}")).collect();
    let message = format!(
        "there is no GPU: no spec file of kind {kinds} in {directories}, neither /dev/nvidiactl nor /dev/kfd{}",
        skipped.concat()
    );
    Report::new(Kind::NotFound, message)
        .with_hint("load the GPU's driver, or write a spec file: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed request is a failed test")]
mod tests {
    use super::*;

    fn request(driver: &str, count: i64, ids: &[&str], capabilities: &[&str]) -> DeviceRequest {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        DeviceRequest {
            driver: driver.to_owned(),
            count,
            device_ids: texts(ids),
            capabilities: vec![texts(capabilities)],
        }
    }

    #[test]
    fn drivers_are_chosen_by_name_or_by_what_they_can() {
        let drivers = |driver, capabilities: &[&str]| {
            let names = |makers: Vec<&Maker>| makers.iter().map(|one| one.driver).collect::<Vec<_>>().join(" ");
            makers(&request(driver, -1, &[], capabilities)).map(names)
        };
        assert_eq!(drivers("", &["gpu"]).unwrap(), "nvidia amd");
        assert_eq!(drivers("", &["utility", "gpu"]).unwrap(), "nvidia");
        assert_eq!(drivers("amd", &["utility", "gpu"]).unwrap(), "amd");
        for (driver, capability) in [("other", "gpu"), ("", "tpu")] {
            let said = drivers(driver, &[capability]).unwrap_err().to_string();
            assert!(said.starts_with("could not select device driver"), "{said}");
        }
    }

    #[test]
    fn spec_files_name_gpus_by_number_uuid_and_all() {
        let names = |known: &[&str], which: &Which| {
            let names = named(NVIDIA, known, which);
            names.map(|names| names.iter().map(DeviceName::to_string).collect::<Vec<_>>().join(" "))
        };
        let known = ["0", "1", "GPU-a", "all"];
        assert_eq!(names(&known, &Which::All).unwrap(), "nvidia.com/gpu=all");
        assert_eq!(names(&known[..2], &Which::All).unwrap(), "nvidia.com/gpu=0 nvidia.com/gpu=1");
        assert_eq!(names(&known, &Which::Count(1)).unwrap(), "nvidia.com/gpu=0");
        let ids = Which::Named(vec!["GPU-a".to_owned(), "other.com/gpu=7".to_owned()]);
        assert_eq!(names(&known, &ids).unwrap(), "nvidia.com/gpu=GPU-a other.com/gpu=7");
        assert!(names(&known, &Which::Count(3)).is_err());
        assert!(names(&known, &Which::Named(vec!["../x".to_owned()])).is_err());
    }
}
