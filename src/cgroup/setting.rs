//! One control file to write, and writing a list of them.

use std::borrow::Cow;

use nix::errno::Errno;
use sys::SysError;

use crate::dir::Dir;
use crate::error::CgroupError;

/// The period of `cpu.max` when nothing is said, in microseconds.
pub const DEFAULT_PERIOD_US: u64 = 100_000;

/// The major and the minor number of a block device.
pub type BlockDevice = (u64, u64);

/// One control file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Who asked for it: an option, or a key of the runtime specification; `None` for a default, which is skipped where
    /// it cannot be set.
    pub option: Option<Cow<'static, str>>,
    /// The file; what stands before its first dot is the controller.
    pub file: Cow<'static, str>,
    /// The text to write.
    pub value: String,
    /// What it means that the file does not exist.
    pub absent: Absent,
    /// Whether the kernel may refuse the value (`EINVAL`) until the files that follow are written.
    pub again: bool,
}

/// What it means that a control file does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// The limit is impossible.
    Refused,
    /// The same as the value.
    Same,
    /// Another file of the same controller is written instead.
    Instead(&'static str, String),
}

impl Setting {
    /// A file that must be there.
    pub fn new(option: impl Into<Cow<'static, str>>, file: impl Into<Cow<'static, str>>, value: String) -> Self {
        let option = Some(option.into());
        Setting { option, file: file.into(), value, absent: Absent::Refused, again: false }
    }

    /// With another meaning of a missing file.
    pub fn or(self, absent: Absent) -> Self {
        Setting { absent, ..self }
    }

    /// The controller that has the file.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }

    /// Who would miss it if it could not be written; `None` when nothing is lost.
    pub fn missed(&self) -> Option<&str> {
        self.option.as_deref().filter(|_| self.absent != Absent::Same)
    }
}

/// Writes the settings in order. One that was asked for and cannot be set is an error by its option's name; `parent` is
/// the cgroup above, which tells why a controller is missing.
pub fn write(dir: &Dir, parent: &Dir, settings: &[Setting]) -> Result<(), CgroupError> {
    let mut again = Vec::new();
    for setting in settings {
        if setting.again && put(dir, setting) == Err(Errno::EINVAL) {
            again.push(setting);
        } else {
            write_one(dir, parent, setting)?;
        }
    }
    again.into_iter().try_for_each(|setting| write_one(dir, parent, setting))
}

fn write_one(dir: &Dir, parent: &Dir, setting: &Setting) -> Result<(), CgroupError> {
    let (Err(errno), Some(option)) = (put(dir, setting), &setting.option) else { return Ok(()) };
    let option = option.clone().into_owned();
    match errno {
        // cgroupfs refuses to create files: a missing one is EACCES or EPERM for some callers.
        Errno::ENOENT | Errno::EACCES | Errno::EPERM => Err(missing(dir, parent, option, setting)),
        errno => {
            let file = setting.file.clone().into_owned();
            let source = SysError::new(format!("write({file:?})"), errno);
            Err(CgroupError::Value { option, file, value: setting.value.clone(), source })
        }
    }
}

fn put(dir: &Dir, setting: &Setting) -> Result<(), Errno> {
    match (dir.put(&setting.file, &setting.value), &setting.absent) {
        (Err(Errno::ENOENT), Absent::Same) => Ok(()),
        (Err(Errno::ENOENT), Absent::Instead(file, value)) => dir.put(file, value),
        (result, _) => result,
    }
}

/// Why a file is not here: its controller is here, but this kernel has no such file; the cgroup above has the controller
/// and cannot give it on; or has none.
fn missing(dir: &Dir, parent: &Dir, option: String, setting: &Setting) -> CgroupError {
    let controller = setting.controller().to_owned();
    let has = |dir: &Dir| {
        let names = dir.read("cgroup.controllers").unwrap_or_default();
        names.split_whitespace().any(|name| name == controller)
    };
    if controller == "cgroup" || has(dir) {
        CgroupError::NoFile { option, file: setting.file.clone().into_owned(), path: dir.path.display().to_string() }
    } else if has(parent) {
        CgroupError::Occupied { option, controller, path: parent.path.display().to_string() }
    } else {
        CgroupError::NotDelegated { option, controller, path: dir.path.display().to_string() }
    }
}

/// `max` for a negative number.
pub fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// The value of `cpu.max`; no quota, or none above zero, is no limit.
pub fn cpu_max(quota_us: Option<i64>, period_us: Option<u64>) -> String {
    let quota = quota_us.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
    format!("{quota} {}", period_us.unwrap_or(DEFAULT_PERIOD_US))
}

/// `cpu.weight` (1 to 10000) of `--cpu-shares` (2 to 262144, clamped).
pub fn weight_of_shares(shares: u64) -> u64 {
    let log = f64::from(u32::try_from(shares).unwrap_or(u32::MAX).clamp(2, 262_144)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// A weight of version 1 for a block device, or for all. The scheduler BFQ takes these numbers as they are.
pub fn disk_weight(option: &'static str, device: Option<BlockDevice>, weight: u16) -> Setting {
    let node = device.map(|(major, minor)| format!("{major}:{minor} ")).unwrap_or_default();
    let instead = Absent::Instead("io.weight", format!("{node}{}", io_weight(weight)));
    Setting::new(option, "io.bfq.weight", format!("{node}{weight}")).or(instead)
}

/// `io.weight` (1 to 10000) of a weight of version 1 (10 to 1000).
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    // 10, 1000: runc's `TestConvertBlkIOToIOWeightValue`; 750: the test "runc run (blkio weight)" of its suite.
    #[test]
    fn weights_of_disks_convert_where_bfq_is_missing() {
        for (weight, wanted) in [(10, 1), (750, 7475), (1000, 10_000), (1, 1)] {
            assert_eq!(io_weight(weight), wanted, "{weight}");
        }
        let setting = disk_weight("", Some((8, 0)), 1000);
        assert_eq!(setting.absent, Absent::Instead("io.weight", "8:0 10000".to_owned()));
    }

    // The first seven stand in runc's `TestConvertCPUSharesToCgroupV2Value` (whose 0 is no question here).
    #[test]
    fn shares_convert_as_other_runtimes_convert_them() {
        for (shares, weight) in [
            (1, 1),
            (2, 1),
            (3, 2),
            (1024, 100),
            (262_143, 10_000),
            (262_144, 10_000),
            (262_145, 10_000),
            (512, 59),
            (2048, 174),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight_of_shares(shares), weight, "{shares}");
        }
    }
}
