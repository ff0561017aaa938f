//! A scope of its own for one container, as an engine asks for by `--systemd-cgroup`: what it is called, its properties,
//! its beginning and end.
//!
//! systemd is told every limit that it has a property for, although the files are written as well: it would write its
//! own values back at the next `daemon-reload`.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::blocking::{Connection, Proxy};
use zbus::zvariant::{OwnedObjectPath, Value};

use crate::error::CgroupError;
use crate::scope::{JobError, control_group, is, job};
use crate::setting::{Absent, DEFAULT_PERIOD_US, Setting};

/// The beginning of the keys of annotations that become properties of the unit; runc's.
pub const PROPERTY_ANNOTATIONS: &str = "org.systemd.property.";
/// Quotas are percent of a processor in systemd: microseconds of a second, rounded up to these.
const PERCENT_US: u64 = 10_000;
const SECOND_US: u64 = 1_000_000;

/// A value of a property.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Property {
    Bool(bool),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    U64(u64),
    F64(f64),
    Text(String),
    Texts(Vec<String>),
    Bytes(Vec<u8>),
    Pids(Vec<u32>),
}

impl Property {
    fn value(&self) -> Value<'_> {
        match self {
            Property::Bool(value) => Value::from(*value),
            Property::U8(value) => Value::from(*value),
            Property::I16(value) => Value::from(*value),
            Property::U16(value) => Value::from(*value),
            Property::I32(value) => Value::from(*value),
            Property::U32(value) => Value::from(*value),
            Property::I64(value) => Value::from(*value),
            Property::U64(value) => Value::from(*value),
            Property::F64(value) => Value::from(*value),
            Property::Text(value) => Value::from(value.as_str()),
            Property::Texts(value) => Value::from(value.clone()),
            Property::Bytes(value) => Value::from(value.clone()),
            Property::Pids(value) => Value::from(value.clone()),
        }
    }
}

/// A named property.
pub(crate) type Named = (String, Property);

/// What `linux.cgroupsPath` says when systemd keeps the cgroups: `slice:prefix:name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    /// The slice that holds the scope.
    pub slice: String,
    /// The scope.
    pub unit: String,
}

impl Name {
    /// Without a path the scope is `sublet-ID.scope`. Without a slice it lies in `user.slice` of the user's systemd, or
    /// in the system's `system.slice`.
    pub fn parse(path: Option<&str>, id: &str, is_rootless: bool) -> Result<Self, String> {
        let default_path = format!(":sublet:{id}");
        let path = path.unwrap_or(&default_path);
        let parts: Vec<&str> = path.split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            return Err(format!("with systemd it has the form slice:prefix:name, and {path:?} has not"));
        };
        let default_slice = if is_rootless { "user.slice" } else { "system.slice" };
        let slice = if slice.is_empty() { default_slice } else { slice };
        if !is_slice(slice) {
            return Err(format!("{slice:?} is no name of a slice"));
        }
        if name.strip_suffix(".slice").is_some() {
            return Err(format!("a container is a scope, and {name:?} names a slice"));
        }
        let unit = format!("{prefix}-{name}.scope");
        // The characters of unit names: systemd.unit(5).
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        if name.is_empty() || unit.len() > 255 || !unit.bytes().all(fits) {
            return Err(format!("{unit:?} is no name of a unit"));
        }
        Ok(Name { slice: slice.to_owned(), unit })
    }
}

/// `a-b.slice` lies in `a.slice`, hence no part between dashes is empty; `-.slice` is the root.
fn is_slice(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\@".contains(&byte);
    name.strip_suffix(".slice")
        .is_some_and(|stem| stem == "-" || stem.split('-').all(|part| !part.is_empty() && part.bytes().all(fits)))
}

/// What the unit of a container is started with; the container's limits come after it.
pub(crate) fn base(name: &Name, pid: i32, annotations: &[Named]) -> Vec<Named> {
    let text = |text: &str| Property::Text(text.to_owned());
    let mut properties = vec![
        ("Description".to_owned(), text(&format!("Container of sublet: {}", name.unit))),
        ("Slice".to_owned(), text(&name.slice)),
        ("PIDs".to_owned(), Property::Pids(vec![pid.cast_unsigned()])),
        // Nothing of it would wait for the targets of a boot or a shutdown.
        ("DefaultDependencies".to_owned(), Property::Bool(false)),
        // One whose process was killed for want of memory would stay as failed and keep its name taken.
        ("CollectMode".to_owned(), text("inactive-or-failed")),
    ];
    // With accounting the controllers are there for limits that come later, and for what is read.
    let accounting = ["Delegate", "CPUAccounting", "MemoryAccounting", "IOAccounting", "TasksAccounting"];
    properties.extend(accounting.map(|name| (name.to_owned(), Property::Bool(true))));
    properties.extend(annotations.iter().cloned());
    properties
}

/// The properties that say what the control files will say; files without a property have none here.
pub(crate) fn of_settings(settings: &[Setting]) -> Result<Vec<Named>, CgroupError> {
    let idle = settings.iter().any(|setting| setting.file == "cpu.idle" && setting.value == "1");
    let mut properties = Vec::new();
    for setting in settings {
        let (file, value) = match &setting.absent {
            Absent::Instead(file, value) => (*file, value),
            _ => (setting.file.as_ref(), &setting.value),
        };
        let unreadable = |reason: String| {
            let option = setting.option.clone().unwrap_or_default().into_owned();
            CgroupError::Invalid { option, reason }
        };
        match property(file, value, idle) {
            Ok(Some(more)) => properties.extend(more.into_iter().map(|(name, value)| (name.to_owned(), value))),
            Ok(None) => {}
            Err(reason) => return Err(unreadable(reason)),
        }
    }
    Ok(properties)
}

/// systemd.resource-control(5) by control file. Numbers of it are `u64`, and its largest is no limit.
fn property(file: &str, value: &str, idle: bool) -> Result<Option<Vec<(&'static str, Property)>>, String> {
    let number = || amount(value).map(Property::U64);
    let one = |name, property| Ok(Some(vec![(name, property)]));
    match file {
        "memory.min" => one("MemoryMin", number()?),
        "memory.low" => one("MemoryLow", number()?),
        "memory.high" => one("MemoryHigh", number()?),
        "memory.max" => one("MemoryMax", number()?),
        "memory.swap.max" => one("MemorySwapMax", number()?),
        "memory.zswap.max" => one("MemoryZSwapMax", number()?),
        // It does not take 0, which means the same as 1.
        "pids.max" => one("TasksMax", Property::U64(amount(value)?.max(1))),
        "cpu.weight" if !idle => one("CPUWeight", number()?),
        // The weight 0 is idle (systemd 252).
        "cpu.idle" if idle => one("CPUWeight", Property::U64(0)),
        "cpu.max" => quota(value).map(Some),
        "cpuset.cpus" => one("AllowedCPUs", Property::Bytes(bits(value)?)),
        "cpuset.mems" => one("AllowedMemoryNodes", Property::Bytes(bits(value)?)),
        // That of one device has two words.
        "io.weight" => match value.strip_prefix("default ").unwrap_or(value) {
            weight if weight.contains(' ') => Ok(None),
            weight => one("IOWeight", Property::U64(amount(weight)?)),
        },
        _ => Ok(None),
    }
}

fn amount(value: &str) -> Result<u64, String> {
    if value == "max" { Ok(u64::MAX) } else { value.parse().map_err(|_| format!("{value:?} is no number")) }
}

/// `cpu.max`, `quota period`. systemd knows whole percents: it rounds up, and the file has the exact value.
fn quota(value: &str) -> Result<Vec<(&'static str, Property)>, String> {
    let mut fields = value.split_whitespace();
    let quota_us = amount(fields.next().unwrap_or_default())?;
    let period_us = fields.next().map_or(Ok(DEFAULT_PERIOD_US), amount)?;
    let per_second = match quota_us {
        u64::MAX => u64::MAX,
        quota_us => {
            let exact = u128::from(quota_us) * u128::from(SECOND_US) / u128::from(period_us.max(1));
            u64::try_from(exact).unwrap_or(u64::MAX).div_ceil(PERCENT_US).saturating_mul(PERCENT_US)
        }
    };
    Ok(vec![("CPUQuotaPeriodUSec", Property::U64(period_us)), ("CPUQuotaPerSecUSec", Property::U64(per_second))])
}

/// A list such as `0-2,7` as a bit mask, the lowest bytes first.
fn bits(list: &str) -> Result<Vec<u8>, String> {
    const NUMBER_MAX: usize = 1 << 16;
    let mut mask = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let parse = |text: &str| text.parse::<usize>().ok().filter(|number| *number < NUMBER_MAX);
        let (Some(first), Some(last)) = (parse(first), parse(last)) else {
            return Err(format!("{range:?} is no range"));
        };
        if first > last {
            return Err(format!("{range:?} is no range"));
        }
        mask.resize(mask.len().max(last / 8 + 1), 0_u8);
        (first..=last).for_each(|number| mask[number / 8] |= 1 << (number % 8));
    }
    if mask.is_empty() { Err(format!("{list:?} names nothing")) } else { Ok(mask) }
}

/// Properties by annotations `org.systemd.property.NAME`, whose values are GVariants in text form.
pub(crate) fn of_annotations(annotations: &HashMap<String, String>) -> Result<Vec<Named>, CgroupError> {
    let mut named = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PROPERTY_ANNOTATIONS) else { continue };
        let invalid = |reason: String| CgroupError::Invalid { option: format!("annotation {key}"), reason };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(invalid(format!("{name:?} is no name of a property")));
        }
        let value = parse(text.trim()).ok_or_else(|| invalid(format!("cannot read the value {text:?}")))?;
        named.push(in_microseconds(name, value).map_err(invalid)?);
    }
    named.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(named)
}

/// `TimeoutStopSec` is `TimeoutStopUSec` on the bus. `USec` itself is spelled with a capital before `Sec`.
fn in_microseconds(name: &str, value: Property) -> Result<Named, String> {
    let stem = name.strip_suffix("Sec").filter(|stem| stem.ends_with(|letter: char| letter.is_ascii_lowercase()));
    let Some(stem) = stem else { return Ok((name.to_owned(), value)) };
    let seconds = match value {
        Property::U8(seconds) => Some(seconds.into()),
        Property::I16(seconds) => u64::try_from(seconds).ok(),
        Property::U16(seconds) => Some(seconds.into()),
        Property::I32(seconds) => u64::try_from(seconds).ok(),
        Property::I64(seconds) => u64::try_from(seconds).ok(),
        Property::U32(seconds) => Some(seconds.into()),
        Property::U64(seconds) => Some(seconds),
        Property::F64(seconds) if seconds >= 0.0 => {
            return Ok((format!("{stem}USec"), Property::U64((seconds * 1e6) as u64)));
        }
        _ => None,
    };
    let micros = seconds.and_then(|seconds| seconds.checked_mul(SECOND_US));
    let micros = micros.ok_or_else(|| "a time is a number of seconds".to_owned())?;
    Ok((format!("{stem}USec"), Property::U64(micros)))
}

/// The part of GVariant's text form that properties need: booleans, strings, lists of strings, numbers with or without
/// their type.
fn parse(text: &str) -> Option<Property> {
    match text {
        "true" => return Some(Property::Bool(true)),
        "false" => return Some(Property::Bool(false)),
        _ => {}
    }
    if let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let mut rest = list.trim();
        let mut texts = Vec::new();
        while !rest.is_empty() {
            let (text, after) = quoted(rest)?;
            texts.push(text);
            rest = after.trim_start();
            if !rest.is_empty() {
                rest = rest.strip_prefix(',')?.trim_start();
            }
        }
        return Some(Property::Texts(texts));
    }
    if text.starts_with(['\'', '"']) {
        return quoted(text).filter(|(_, after)| after.is_empty()).map(|(text, _)| Property::Text(text));
    }
    let (kind, number) = text.split_once(' ').map_or((None, text), |(kind, number)| (Some(kind), number.trim()));
    match kind {
        Some("byte") => number.parse().ok().map(Property::U8),
        Some("int16") => number.parse().ok().map(Property::I16),
        Some("uint16") => number.parse().ok().map(Property::U16),
        Some("int32") => number.parse().ok().map(Property::I32),
        Some("uint32") => number.parse().ok().map(Property::U32),
        Some("int64") => number.parse().ok().map(Property::I64),
        Some("uint64") => number.parse().ok().map(Property::U64),
        Some("double") => number.parse().ok().map(Property::F64),
        Some("boolean") => number.parse().ok().map(Property::Bool),
        Some(_) => None,
        None => number.parse().ok().map(Property::I32).or_else(|| number.parse().ok().map(Property::F64)),
    }
}

/// A string at the beginning, in either kind of quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mark = text.chars().next().filter(|mark| matches!(mark, '\'' | '"'))?;
    let mut out = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => out.push(letters.next()?.1),
            letter if letter == mark => return Some((out, &text[at + 1..])),
            letter => out.push(letter),
        }
    }
    None
}

/// In the role: starts the scope and says where it is. A name that a failed one has kept is taken from it; one of a
/// running unit is an error, and that unit is not touched.
pub(crate) fn start(bus: &Connection, manager: &Proxy<'_>, unit: &str, properties: &[Named]) -> Result<String, String> {
    let auxiliary: Vec<(&str, Vec<(&str, Value<'_>)>)> = Vec::new();
    let body = (unit, "fail", values(properties), auxiliary);
    let mut result = job(manager, "StartTransientUnit", &body);
    if matches!(&result, Err(JobError::Call(error)) if is(error, "UnitExists")) {
        reset(manager, unit);
        result = job(manager, "StartTransientUnit", &body);
    }
    let started = match result {
        Ok(result) if result == "done" => place(bus, manager, unit),
        Ok(result) => Err(format!("it could not be started: job result {result:?}")),
        Err(JobError::Call(error)) => return Err(format!("StartTransientUnit: {error}")),
        Err(error) => Err(format!("StartTransientUnit: {error}")),
    };
    // Whoever asked forgets the unit; why it was of no use is what must be heard.
    started.inspect_err(|_| drop(stop(manager, unit)))
}

/// The `ControlGroup` of a unit that has just started.
fn place(bus: &Connection, manager: &Proxy<'_>, unit: &str) -> Result<String, String> {
    let path = manager
        .call_method("GetUnit", &unit)
        .and_then(|reply| reply.body().deserialize::<OwnedObjectPath>())
        .and_then(|path| control_group(bus, path.as_str()));
    path.map_err(|error| format!("cannot ask for its cgroup: {error}"))?
        .ok_or_else(|| "its process ended while it was started".to_owned())
}

/// In the role: moves a process into the unit.
pub(crate) fn attach(manager: &Proxy<'_>, unit: &str, below: &str, pid: u32) -> Result<(), String> {
    let attached = manager.call_method("AttachProcessesToUnit", &(unit, below, vec![pid]));
    attached.map(drop).map_err(|error| format!("AttachProcessesToUnit({below}, {pid}): {error}"))
}

/// In the role: changes limits until the unit's end.
pub(crate) fn set(manager: &Proxy<'_>, unit: &str, properties: &[Named]) -> Result<(), String> {
    match manager.call_method("SetUnitProperties", &(unit, true, values(properties))) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("SetUnitProperties: {error}")),
    }
}

/// In the role: ends the unit. One that is gone is no error.
pub(crate) fn stop(manager: &Proxy<'_>, unit: &str) -> Result<(), String> {
    let stopped = job(manager, "StopUnit", &(unit, "replace"));
    reset(manager, unit);
    match stopped {
        Err(JobError::Call(error)) if is(&error, "NoSuchUnit") => Ok(()),
        Ok(result) if result == "done" => Ok(()),
        Ok(result) => Err(format!("it could not be stopped: job result {result:?}")),
        Err(error) => Err(format!("StopUnit: {error}")),
    }
}

/// Lets a failed unit go, so that its name is free. There mostly is none.
fn reset(manager: &Proxy<'_>, unit: &str) {
    let _ = manager.call_method("ResetFailedUnit", &unit);
}

fn values(properties: &[Named]) -> Vec<(&str, Value<'_>)> {
    properties.iter().map(|(name, property)| (name.as_str(), property.value())).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may die of a surprise")]

    use super::*;

    #[test]
    fn the_path_names_slice_prefix_and_name() {
        let parse = |path, is_rootless| Name::parse(path, "c1", is_rootless).map(|name| (name.slice, name.unit));
        let named = |slice: &str, unit: &str| Ok((slice.to_owned(), unit.to_owned()));
        assert_eq!(parse(Some("user.slice:libpod:1234"), true), named("user.slice", "libpod-1234.scope"));
        assert_eq!(parse(Some("machine-a.slice:docker:x"), false), named("machine-a.slice", "docker-x.scope"));
        assert_eq!(parse(Some(":docker:x"), true), named("user.slice", "docker-x.scope"));
        assert_eq!(parse(Some(":docker:x"), false), named("system.slice", "docker-x.scope"));
        assert_eq!(parse(None, true), named("user.slice", "sublet-c1.scope"));
        for wrong in [
            "/a/b",
            "a:b",
            "a.slice:b:c:d",
            "a:b:c",
            "a--b.slice:b:c",
            "../a.slice:b:c",
            "x.slice:b:c/d",
            "x.slice:b:",
            "x.slice:b:y.slice",
            "x.slice:b:c d",
        ] {
            assert!(parse(Some(wrong), true).is_err(), "{wrong}");
        }
    }

    fn properties(json: &str) -> Vec<(String, Property)> {
        let resources = crate::Resources::of(&serde_json::from_str(json).unwrap()).unwrap();
        of_settings(&resources.settings).unwrap()
    }

    // The values of runc's `genV2ResourcesProperties`, `addCPUQuota`, `unifiedResToSystemdProps` and `TestRangeToBits`.
    #[test]
    fn control_files_become_properties() {
        for (json, wanted) in [
            (
                r#"{"memory": {"limit": 100, "swap": 150, "reservation": 50}}"#,
                &[("MemorySwapMax", 50), ("MemoryMax", 100), ("MemoryLow", 50)][..],
            ),
            (r#"{"memory": {"limit": -1}}"#, &[("MemorySwapMax", u64::MAX), ("MemoryMax", u64::MAX)]),
            (r#"{"pids": {"limit": 20}}"#, &[("TasksMax", 20)]),
            (r#"{"pids": {"limit": -1}}"#, &[("TasksMax", u64::MAX)]),
            (r#"{"unified": {"pids.max": "0"}}"#, &[("TasksMax", 1)]),
            (r#"{"cpu": {"shares": 1024}}"#, &[("CPUWeight", 100)]),
            (r#"{"cpu": {"idle": 1}}"#, &[("CPUWeight", 0)]),
            (r#"{"unified": {"cpu.idle": "1", "cpu.weight": "8"}}"#, &[("CPUWeight", 0)]),
            (r#"{"cpu": {"quota": 50000}}"#, &[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", 500_000)]),
            // Rounded up to whole percents.
            (
                r#"{"cpu": {"quota": 3000, "period": 10000}}"#,
                &[("CPUQuotaPeriodUSec", 10_000), ("CPUQuotaPerSecUSec", 300_000)],
            ),
            (
                r#"{"cpu": {"quota": 64000, "period": 500000}}"#,
                &[("CPUQuotaPeriodUSec", 500_000), ("CPUQuotaPerSecUSec", 130_000)],
            ),
            (r#"{"cpu": {"quota": -1}}"#, &[("CPUQuotaPeriodUSec", 100_000), ("CPUQuotaPerSecUSec", u64::MAX)]),
            (r#"{"blockIO": {"weight": 1000}}"#, &[("IOWeight", 10_000)]),
            (
                r#"{"unified": {"io.weight": "default 200", "memory.high": "7", "memory.min": "max"}}"#,
                &[("IOWeight", 200), ("MemoryHigh", 7), ("MemoryMin", u64::MAX)],
            ),
            (r#"{"unified": {"io.weight": "8:0 200", "hugetlb.2MB.max": "1"}}"#, &[]),
        ] {
            let wanted: Vec<_> = wanted.iter().map(|(name, n)| ((*name).to_owned(), Property::U64(*n))).collect();
            assert_eq!(properties(json), wanted, "{json}");
        }
        let cpus = properties(r#"{"cpu": {"cpus": "0,8-9", "mems": "0-1"}}"#);
        assert_eq!(cpus[0], ("AllowedCPUs".to_owned(), Property::Bytes(vec![1, 3])));
        assert_eq!(cpus[1], ("AllowedMemoryNodes".to_owned(), Property::Bytes(vec![3])));
        for (list, mask) in [
            ("0", &[1][..]),
            (",0,1,", &[3]),
            ("0,1,2-3", &[0x0f]),
            ("4-7", &[0xf0]),
            ("0-15", &[0xff, 0xff]),
            ("16", &[0, 0, 1]),
            ("0-3,32-33", &[0x0f, 0, 0, 0, 3]),
            ("    , 1   , 3  ,  5-7,	", &[0xea]),
        ] {
            assert_eq!(bits(list).as_deref(), Ok(mask), "{list}");
        }
        for wrong in ["", ",", "a", "-", "1-", "-3", "54-53", "1 - 2", "99999999"] {
            assert!(bits(wrong).is_err(), "{wrong}");
        }
    }

    // The values of runc's `TestInitSystemdProps`, where it has them.
    #[test]
    fn annotations_become_properties() {
        let of = |name: &str, text: &str| {
            let map = HashMap::from([(format!("org.systemd.property.{name}"), text.to_owned())]);
            of_annotations(&map).ok().map(|mut named| named.remove(0))
        };
        let named = |name: &str, value| Some((name.to_owned(), value));
        assert_eq!(of("TimeoutStopUSec", "uint64 123456789"), named("TimeoutStopUSec", Property::U64(123_456_789)));
        assert_eq!(of("TimeoutStopSec", "456"), named("TimeoutStopUSec", Property::U64(456_000_000)));
        assert_eq!(of("TimeoutStopSec", "234.789"), named("TimeoutStopUSec", Property::U64(234_789_000)));
        for kind in ["byte", "int16", "uint16", "int32", "uint32", "int64", "uint64"] {
            let seconds = of("TimeoutStopSec", &format!("{kind} 234"));
            assert_eq!(seconds, named("TimeoutStopUSec", Property::U64(234_000_000)), "{kind}");
        }
        assert_eq!(
            of("CollectMode", "'inactive-or-failed'"),
            named("CollectMode", Property::Text("inactive-or-failed".into()))
        );
        assert_eq!(
            of("Description", r#""it's a \"scope\"""#),
            named("Description", Property::Text("it's a \"scope\"".into()))
        );
        assert_eq!(
            of("After", "['a.service', 'b.service']"),
            named("After", Property::Texts(vec!["a.service".into(), "b.service".into()]))
        );
        assert_eq!(of("SendSIGHUP", "true"), named("SendSIGHUP", Property::Bool(true)));
        assert_eq!(of("KillSignal", "int32 2"), named("KillSignal", Property::I32(2)));
        assert_eq!(of("KillSignal", "2"), named("KillSignal", Property::I32(2)));
        for (name, text) in [
            ("ab", "1"),
            ("Some_Name", "1"),
            ("", "1"),
            ("CollectMode", "'open"),
            ("CollectMode", "bare"),
            ("TimeoutStopSec", "'soon'"),
            ("TimeoutStopSec", "-1"),
            ("After", "['a' 'b']"),
            ("TimeoutStopSec", "false"),
            ("Some", "objectpath '/'"),
        ] {
            assert_eq!(of(name, text), None, "{name} {text}");
        }
        assert_eq!(of_annotations(&HashMap::from([("other".to_owned(), "x".to_owned())])).unwrap(), []);
    }
}
