//! The edits for GPUs that no spec file describes, made from what the kernel and the driver show.
//!
//! NVIDIA: the nodes `/dev/nvidiactl`, `nvidia-uvm`, `nvidia-uvm-tools`, `nvidia-modeset` and `nvidiaN`, and the
//! driver's libraries, which must be of the kernel module's version and so cannot come with an image. They are found in
//! the dynamic linker's cache, else in the usual directories, and shown read-only below `/usr/local/nvidia`, where
//! NVIDIA's own images look for them. AMD: `/dev/kfd` and the render nodes; its libraries come with the image.
//!
//! Left out: parts of a GPU (MIG), 32-bit libraries, and the links that NVIDIA's hooks make; for those a spec file by
//! `nvidia-ctk` is the way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base::{Explain, Kind};

use crate::document::{ContainerEdits, DeviceNode, Mount};
use crate::library_cache;

/// The kind of NVIDIA's spec files.
pub const NVIDIA: &str = "nvidia.com/gpu";
/// The kind of AMD's.
pub const AMD: &str = "amd.com/gpu";

/// Nodes that every NVIDIA GPU needs; only the first is there with every driver.
const NVIDIA_NODES: [&str; 4] = ["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset"];
/// Programs of the driver.
const NVIDIA_PROGRAMS: [&str; 4] =
    ["nvidia-smi", "nvidia-debugdump", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"];
const PROGRAM_DIRECTORIES: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/lib/wsl/lib", "/run/opengl-driver/bin"];
/// Where the driver's libraries lie on machines whose linker has no cache, as those with musl.
const LIBRARY_DIRECTORIES: [&str; 6] = [
    if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" },
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
];
/// The library without which no program finds a GPU.
const CUDA: &str = "libcuda.so.1";
/// Where they are in the container.
const LIBRARIES: &str = "/usr/local/nvidia/lib64";
const PROGRAMS: &str = "/usr/local/nvidia/bin";
/// A driver has some forty libraries.
const LIBRARIES_MAX: usize = 512;
/// The number of AMD among the makers of PCI devices.
const AMD_VENDOR: &str = "0x1002";

/// Which GPUs are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All that there are.
    All,
    /// So many, the first ones.
    Count(usize),
    /// By number, or by NVIDIA's UUID.
    Named(Vec<String>),
}

/// What gives GPUs to a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// The edits.
    pub edits: ContainerEdits,
    /// Variables that are lists of directories, and a directory to add to each.
    pub search: Vec<(&'static str, &'static str)>,
    /// What of the driver was not found.
    pub missing: Option<String>,
}

/// The edits for NVIDIA's GPUs; `None` where its driver is not loaded. `root` is the machine's root directory.
pub fn nvidia(root: &Path, which: &Which) -> Result<Option<Generated>, GpuError> {
    let dev = root.join("dev");
    if !dev.join(NVIDIA_NODES[0]).exists() {
        return Ok(None);
    }
    let mut minors: Vec<u32> = numbered(&dev, "nvidia");
    minors.sort_unstable();
    let chosen = match which {
        Which::Named(names) => {
            let minor = |name: &String| by_name(root, &minors, name);
            names.iter().map(minor).collect::<Result<Vec<_>, _>>()?
        }
        _ => first(which, &minors)?,
    };
    let general = NVIDIA_NODES.iter().filter(|name| dev.join(name).exists()).map(|name| format!("/dev/{name}"));
    let nodes = general.chain(chosen.iter().map(|minor| format!("/dev/nvidia{minor}")));
    let libraries = driver_libraries(root);
    let missing = (!libraries.contains_key(CUDA)).then(|| {
        format!(
            "{CUDA} is neither in /etc/ld.so.cache nor in {}; it must be in the image",
            LIBRARY_DIRECTORIES.join(", ")
        )
    });
    let mut mounts: Vec<Mount> = libraries.iter().map(|(name, file)| shown(file, LIBRARIES, name)).collect();
    mounts.extend(NVIDIA_PROGRAMS.iter().filter_map(|name| {
        let files = PROGRAM_DIRECTORIES.iter().map(|directory| Path::new(directory).join(name));
        let file = files.into_iter().find(|file| below(root, file).is_file())?;
        Some(shown(&file, PROGRAMS, name))
    }));
    let edits = ContainerEdits { device_nodes: nodes.map(node).collect(), mounts, ..ContainerEdits::default() };
    let search = vec![("LD_LIBRARY_PATH", LIBRARIES), ("PATH", PROGRAMS)];
    Ok(Some(Generated { edits, search, missing }))
}

/// The edits for AMD's GPUs; `None` where its driver is not loaded.
pub fn amd(root: &Path, which: &Which) -> Result<Option<Generated>, GpuError> {
    if !root.join("dev/kfd").exists() {
        return Ok(None);
    }
    let mut minors = numbered(&root.join("dev/dri"), "renderD");
    minors.retain(|minor| {
        let vendor = root.join(format!("sys/class/drm/renderD{minor}/device/vendor"));
        fs::read_to_string(vendor).map_or(true, |vendor| vendor.trim() == AMD_VENDOR)
    });
    minors.sort_unstable();
    let chosen = match which {
        Which::Named(names) => {
            let minor = |name: &String| {
                let place = name.parse().ok().and_then(|place: usize| minors.get(place));
                place.copied().ok_or_else(|| unknown(name, 0..minors.len()))
            };
            names.iter().map(minor).collect::<Result<Vec<_>, _>>()?
        }
        _ => first(which, &minors)?,
    };
    let nodes = chosen.iter().map(|minor| format!("/dev/dri/renderD{minor}"));
    let device_nodes = ["/dev/kfd".to_owned()].into_iter().chain(nodes).map(node).collect();
    Ok(Some(Generated { edits: ContainerEdits { device_nodes, ..ContainerEdits::default() }, ..Generated::default() }))
}

/// The numbers of the nodes of this name in a directory.
fn numbered(directory: &Path, name: &str) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let digits = entry.file_name().to_str()?.strip_prefix(name)?.to_owned();
            digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
        })
        .collect()
}

fn first(which: &Which, minors: &[u32]) -> Result<Vec<u32>, GpuError> {
    let count = if let Which::Count(count) = which { *count } else { minors.len().max(1) };
    match minors.get(..count) {
        Some(first) => Ok(first.to_vec()),
        None => Err(GpuError::TooFew { asked: count, there: minors.len() }),
    }
}

/// The minor number of the GPU that a number or a UUID means.
fn by_name(root: &Path, minors: &[u32], name: &str) -> Result<u32, GpuError> {
    let found = match name.parse() {
        Ok(number) => Some(number),
        Err(_) => by_uuid(&root.join("proc/driver/nvidia/gpus"), name),
    };
    found.filter(|minor| minors.contains(minor)).ok_or_else(|| unknown(name, minors))
}

/// The driver's own list: a directory a GPU, whose file `information` has a line a fact.
fn by_uuid(gpus: &Path, uuid: &str) -> Option<u32> {
    fs::read_dir(gpus).ok()?.flatten().find_map(|gpu| {
        let text = fs::read_to_string(gpu.path().join("information")).ok()?;
        let fact = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.into_iter().find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned())
        };
        (fact("GPU UUID")? == uuid).then(|| fact("Device Minor")?.parse().ok()).flatten()
    })
}

fn unknown(name: &str, known: impl IntoIterator<Item = impl ToString>) -> GpuError {
    GpuError::Unknown { name: name.to_owned(), known: known.into_iter().map(|known| known.to_string()).collect() }
}

fn node(path: String) -> DeviceNode {
    DeviceNode { path: path.into(), ..DeviceNode::default() }
}

fn shown(file: &Path, directory: &str, name: &str) -> Mount {
    Mount {
        host_path: file.to_owned(),
        container_path: Path::new(directory).join(name),
        options: ["ro", "nosuid", "nodev", "bind"].map(str::to_owned).to_vec(),
        typ: None,
    }
}

/// The driver's libraries by the names under which programs ask for them.
fn driver_libraries(root: &Path) -> BTreeMap<String, PathBuf> {
    let cache = fs::read(root.join("etc/ld.so.cache")).unwrap_or_default();
    let cached = of_driver(root, library_cache::libraries(&cache).into_iter());
    if cached.contains_key(CUDA) {
        return cached;
    }
    let names = |directory: &'static Path| {
        let entries = fs::read_dir(below(root, directory)).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.map(move |name| (name.clone(), directory.join(name)))
    };
    of_driver(root, LIBRARY_DIRECTORIES.into_iter().map(Path::new).flat_map(names))
}

/// Of several files that have a name the first.
fn of_driver(root: &Path, libraries: impl Iterator<Item = (String, PathBuf)>) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for (name, file) in libraries {
        if is_of_driver(&name) && found.len() < LIBRARIES_MAX && below(root, &file).is_file() {
            found.entry(name).or_insert(file);
        }
    }
    found
}

fn is_of_driver(name: &str) -> bool {
    const BEGINNINGS: [&str; 5] = ["libcuda.so", "libcudadebugger.so", "libnvidia-", "libnvcuvid.so", "libnvoptix.so"];
    // Of NVIDIA's tools for containers, not of the driver.
    let tool = name.starts_with("libnvidia-container");
    let named = BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) || name.contains("_nvidia.so");
    named && !tool && name.contains(".so") && !name.contains('/')
}

/// A path of the machine below its root directory.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// GPUs that cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// Fewer than asked for.
    #[error("{asked} GPUs were asked for, and there are {there}")]
    TooFew {
        /// How many are wanted.
        asked: usize,
        /// How many have a node in `/dev`.
        there: usize,
    },
    /// A name that means none.
    #[error("there is no GPU {name:?}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What could have been.
        known: Vec<String>,
    },
}

impl Explain for GpuError {
    fn kind(&self) -> Kind {
        Kind::NotFound
    }

    fn hint(&self) -> Option<String> {
        match self {
            GpuError::Unknown { known, .. } if !known.is_empty() => Some(format!("the GPUs are {}", known.join(", "))),
            _ => None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn nodes(generated: &Generated) -> Vec<&str> {
        generated.edits.device_nodes.iter().filter_map(|node| node.path.to_str()).collect()
    }

    #[test]
    fn nvidia_is_its_nodes_and_its_driver() {
        let library = format!("{}/libcuda.so.1", LIBRARY_DIRECTORIES[0].trim_start_matches('/'));
        let root = machine(&[
            ("dev/nvidiactl", ""),
            ("dev/nvidia-uvm", ""),
            ("dev/nvidia0", ""),
            ("dev/nvidia10", ""),
            ("dev/nvidia2", ""),
            (
                "proc/driver/nvidia/gpus/0000:01:00.0/information",
                "Model: \t X\nGPU UUID: \t GPU-a\nDevice Minor: \t 2\n",
            ),
            (&library, ""),
            ("usr/lib64/libcuda.so.1", ""),
            ("usr/lib64/libnvidia-ml.so.1", ""),
            ("usr/lib64/libnvidia-container.so.1", ""),
            ("usr/lib64/libGLX_nvidia.so.0", ""),
            ("usr/lib64/libc.so.6", ""),
            ("usr/local/bin/nvidia-smi", ""),
        ]);
        let all = nvidia(root.path(), &Which::All).unwrap().unwrap();
        assert_eq!(nodes(&all), ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10"]);
        let pair = |mount: &Mount| format!("{} {}", mount.host_path.display(), mount.container_path.display());
        assert_eq!(
            all.edits.mounts.iter().map(pair).collect::<Vec<_>>(),
            [
                "/usr/lib64/libGLX_nvidia.so.0 /usr/local/nvidia/lib64/libGLX_nvidia.so.0".to_owned(),
                format!("/{library} /usr/local/nvidia/lib64/libcuda.so.1"),
                "/usr/lib64/libnvidia-ml.so.1 /usr/local/nvidia/lib64/libnvidia-ml.so.1".to_owned(),
                "/usr/local/bin/nvidia-smi /usr/local/nvidia/bin/nvidia-smi".to_owned(),
            ]
        );
        assert_eq!(all.missing, None);
        let which = |names: &[&str]| Which::Named(names.iter().map(ToString::to_string).collect());
        let some = |which: &Which| nvidia(root.path(), which).map(|some| nodes(&some.unwrap())[2..].join(" "));
        assert_eq!(some(&Which::Count(2)).unwrap(), "/dev/nvidia0 /dev/nvidia2");
        assert_eq!(some(&which(&["10", "GPU-a"])).unwrap(), "/dev/nvidia10 /dev/nvidia2");
        assert_eq!(some(&Which::Count(4)).unwrap_err(), GpuError::TooFew { asked: 4, there: 3 });
        for name in ["1", "GPU-b", "", "../x"] {
            assert!(some(&which(&[name])).is_err(), "{name}");
        }
    }

    #[test]
    fn without_the_drivers_library_that_is_told() {
        let root = machine(&[("dev/nvidiactl", ""), ("dev/nvidia0", "")]);
        let all = nvidia(root.path(), &Which::All).unwrap().unwrap();
        assert!(all.missing.is_some_and(|line| line.contains("libcuda.so.1")));
    }

    #[test]
    fn amd_is_its_render_nodes() {
        let root = machine(&[
            ("dev/kfd", ""),
            ("dev/dri/card0", ""),
            ("dev/dri/renderD129", ""),
            ("dev/dri/renderD128", ""),
            ("dev/dri/renderD130", ""),
            ("sys/class/drm/renderD128/device/vendor", "0x8086\n"),
            ("sys/class/drm/renderD130/device/vendor", "0x1002\n"),
        ]);
        let all = amd(root.path(), &Which::All).unwrap().unwrap();
        assert_eq!(nodes(&all), ["/dev/kfd", "/dev/dri/renderD129", "/dev/dri/renderD130"]);
        let second = amd(root.path(), &Which::Named(vec!["1".to_owned()])).unwrap().unwrap();
        assert_eq!(nodes(&second), ["/dev/kfd", "/dev/dri/renderD130"]);
        assert!(amd(root.path(), &Which::Count(3)).is_err());
    }

    #[test]
    fn without_a_driver_there_is_nothing() {
        let root = machine(&[("dev/null", "")]);
        assert_eq!(nvidia(root.path(), &Which::All), Ok(None));
        assert_eq!(amd(root.path(), &Which::All), Ok(None));
    }
}
