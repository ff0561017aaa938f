//! The grammars of `-v`, `--mount`, `--volumes-from`, `--tmpfs` and `--storage-opt`. Pure, as [`crate::parse`] is.

use std::path::PathBuf;

use base::Report;
use engine::container::record::{Below, Volume, VolumeSource};

use crate::parse::{csv, wrong};

/// `-v [SOURCE:]DESTINATION[:OPTIONS]`. A source with a slash or a dot in front is a path, else the name of a volume.
pub fn volume(text: &str) -> Result<Volume, Report> {
    let bad = |why: &str| wrong(format!("invalid volume specification: '{text}': {why}"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, destination, options) = match parts[..] {
        [destination] => (None, destination, ""),
        [source, destination] => (Some(source), destination, ""),
        [source, destination, options] => (Some(source), destination, options),
        _ => return Err(bad("it must be SOURCE:DESTINATION or SOURCE:DESTINATION:OPTIONS")),
    };
    if parts.iter().any(|part| part.is_empty()) {
        return Err(bad("empty section between colons"));
    }
    let mut volume =
        Volume { destination: engine::volume::destination(destination).map_err(|why| bad(&why))?, ..Volume::default() };
    match source {
        None => volume.anonymous = true,
        Some(source) if source.starts_with(['/', '.']) => volume.source = VolumeSource::Path(PathBuf::from(source)),
        Some(source) => {
            engine::volume::check_name(source).map_err(|report| bad(&report.to_string()))?;
            volume.source = VolumeSource::Named(source.to_owned());
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (kind, known) = volume_option(&mut volume, option);
        // Of words that say different things about one only one may stand.
        if !known || seen.contains(&kind) {
            return Err(bad(&format!("invalid mode: {options}")));
        }
        seen.push(kind);
    }
    if volume.cow && volume.read_only {
        return Err(bad("invalid mode: what cannot be written needs no layer of its own (cow, ro)"));
    }
    Ok(volume)
}

/// Takes one option of `-v`; the answer is what it is about, and whether it is one.
fn volume_option<'t>(volume: &mut Volume, option: &'t str) -> (&'t str, bool) {
    let is_path = volume.source.name().is_none();
    let mut say = || volume.options.push(option.to_owned());
    match option {
        "ro" => volume.read_only = true,
        // `consistent` and its like are of Docker's for macOS.
        "rw" | "rbind" | "consistent" | "cached" | "delegated" => {}
        "z" | "Z" => volume.relabel = true,
        "U" => volume.chown = true,
        "O" | "cow" => volume.cow = true,
        "nocopy" if !is_path => volume.no_copy = true,
        "copy" if !is_path => {}
        "idmap" => volume.idmap = true,
        "bind" => volume.below = Below::Hidden,
        "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" if is_path => say(),
        "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" => say(),
        _ => return (option, false),
    }
    let kind = match option {
        "ro" | "rw" => "mode",
        "z" | "Z" => "label",
        "O" | "cow" => "cow",
        "copy" | "nocopy" => "copy",
        "bind" | "rbind" => "bind",
        "exec" | "noexec" => "exec",
        "suid" | "nosuid" => "suid",
        "dev" | "nodev" => "dev",
        "consistent" | "cached" | "delegated" => "consistency",
        word if word.ends_with("private") || word.ends_with("slave") || word.ends_with("shared") => "propagation",
        other => other,
    };
    (kind, true)
}

/// What `--mount` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    /// A directory of the host, or a volume.
    Volume(Box<Volume>),
    /// A file system in memory: where, and with which options.
    Memory(String, String),
}

/// `--mount KEY=VALUE,…` by the grammars of Docker and of Podman; a value with a comma stands in quotes.
pub fn mount(text: &str) -> Result<Mounted, Report> {
    let bad = |why: String| wrong(format!("invalid argument \"{text}\" for \"--mount\" flag: {why}"));
    let fields = csv(text).map_err(|why| bad(why.to_owned()))?;
    let mut reading = Mounting::default();
    for field in &fields {
        reading.field(field).map_err(bad)?;
    }
    reading.finish().map_err(bad)
}

/// A `--mount` that is being read.
#[derive(Default)]
struct Mounting {
    kind: Option<String>,
    source: Option<String>,
    volume: Volume,
    memory: Vec<String>,
    /// Whether what is mounted below is to be read-only too, or else nothing mounted.
    only_read: bool,
    /// Groups of options that only one type has, by the first of each.
    of_type: Vec<(&'static str, String)>,
}

impl Mounting {
    fn field(&mut self, field: &str) -> Result<(), String> {
        let (key, value) = field.split_once('=').map_or((field, None), |(key, value)| (key, Some(value)));
        let must = || {
            value.filter(|value| !value.is_empty()).ok_or(format!("invalid field '{field}' must be a key=value pair"))
        };
        let flag = || boolean(key, value);
        let key = key.to_ascii_lowercase();
        for group in ["bind", "volume", "tmpfs", "image"] {
            if key.starts_with(group) && key.as_bytes().get(group.len()) == Some(&b'-') {
                self.of_type.push((group, key.clone()));
            }
        }
        let volume = &mut self.volume;
        match key.as_str() {
            "type" => self.kind = Some(must()?.to_ascii_lowercase()),
            "source" | "src" => self.source = Some(must()?.to_owned()),
            "target" | "dst" | "destination" => must()?.clone_into(&mut volume.destination),
            "readonly" | "ro" => volume.read_only = flag()?,
            "rw" => volume.read_only = !flag()?,
            "consistency" => drop(must()?),
            "bind-propagation" => volume.options.push(propagation(must()?)?),
            "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" if value.is_none() => {
                self.of_type.push(("bind", key.clone()));
                volume.options.push(key);
            }
            "bind-nonrecursive" => volume.below = if flag()? { Below::Hidden } else { Below::Shown },
            "bind-recursive" => {
                volume.below = recursion(must()?)?;
                self.only_read = value == Some("readonly");
            }
            "bind-create-src" => volume.must_exist = !flag()?,
            "volume-nocopy" => volume.no_copy = flag()?,
            "volume-subpath" | "subpath" => volume.subpath = Some(subpath(must()?)?),
            "volume-driver" => {
                let driver = must()?;
                if driver != "local" {
                    return Err(format!("error looking up volume plugin {driver}: plugin \"{driver}\" not found"));
                }
            }
            "volume-opt" => pair(must()?, &mut volume.driver_options),
            "volume-label" => pair(must()?, &mut volume.labels),
            "tmpfs-size" => self.memory.push(format!("size={}", bytes(must()?)?)),
            "tmpfs-mode" => self.memory.push(format!("mode={}", octal(must()?)?)),
            "tmpcopyup" | "notmpcopyup" => {
                self.of_type.push(("tmpfs", key.clone()));
                if key == "tmpcopyup" && flag()? {
                    self.memory.push(key);
                }
            }
            "exec" | "noexec" | "suid" | "nosuid" | "dev" | "nodev" if value.is_none() => volume.options.push(key),
            "u" | "chown" => volume.chown = flag()?,
            "cow" => volume.cow = flag()?,
            "idmap" if value.is_none_or(|value| value == "true") => volume.idmap = true,
            "relabel" if matches!(value, Some("shared" | "private")) => volume.relabel = true,
            "z" if value.is_none() => volume.relabel = true,
            _ if value.is_none() => return Err(format!("invalid field '{field}' must be a key=value pair")),
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        }
        Ok(())
    }

    fn finish(self) -> Result<Mounted, String> {
        let Mounting { kind, source, mut volume, mut memory, only_read, of_type } = self;
        let kind = kind.unwrap_or_else(|| "volume".to_owned());
        if volume.destination.is_empty() {
            return Err("target is required".to_owned());
        }
        volume.destination = engine::volume::destination(&volume.destination)?;
        if let Some((group, _)) = of_type.iter().find(|(group, _)| *group != kind) {
            return Err(format!("cannot mix '{group}-*' options with mount type '{kind}'"));
        }
        if only_read && !volume.read_only {
            return Err(
                "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction".to_owned()
            );
        }
        let config = |why: &str| Err(format!("invalid mount config for type \"{kind}\": {why}"));
        match kind.as_str() {
            "bind" => {
                let Some(source) = source else { return config("field Source must not be empty") };
                volume.source = VolumeSource::Path(PathBuf::from(source));
                volume.must_exist = !of_type.iter().any(|(_, key)| key == "bind-create-src") || volume.must_exist;
            }
            "volume" => match source {
                None => volume.anonymous = true,
                Some(name) => {
                    engine::volume::check_name(&name).map_err(|report| report.to_string())?;
                    volume.source = VolumeSource::Named(name);
                }
            },
            "tmpfs" => {
                if source.is_some_and(|source| source != "tmpfs") {
                    return config("field Source must not be specified");
                }
                if volume.chown || volume.cow || volume.idmap {
                    return config("chown, cow and idmap are for binds and volumes");
                }
                memory.extend(volume.options);
                memory.extend(volume.read_only.then(|| "ro".to_owned()));
                return Ok(Mounted::Memory(volume.destination, memory.join(",")));
            }
            "image" | "glob" | "devpts" | "ramfs" | "npipe" | "cluster" => return config("this type is not built"),
            _ => return config("mount type unknown"),
        }
        if volume.cow && volume.read_only {
            return config("what cannot be written needs no layer of its own (cow, readonly)");
        }
        Ok(Mounted::Volume(Box::new(volume)))
    }
}

/// Go's words for yes and no; a key alone is yes.
fn boolean(key: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(format!("invalid value for {key}: {value}")),
    }
}

fn propagation(text: &str) -> Result<String, String> {
    if ["private", "slave", "shared"].contains(&text.strip_prefix('r').unwrap_or(text)) {
        return Ok(text.to_owned());
    }
    Err(format!("invalid propagation mode: {text}"))
}

fn recursion(text: &str) -> Result<Below, String> {
    match text {
        "enabled" | "readonly" => Ok(Below::Shown),
        "writable" => Ok(Below::Writable),
        "disabled" => Ok(Below::Hidden),
        _ => Ok(if boolean("bind-recursive", Some(text))? { Below::Shown } else { Below::Hidden }),
    }
}

/// A path below a volume, which does not lead out by its words; by links it cannot.
fn subpath(text: &str) -> Result<String, String> {
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return Err("subpath must be a relative path within the volume".to_owned());
    }
    Ok(text.to_owned())
}

/// Adds `KEY[=VALUE]` to a map.
fn pair(text: &str, map: &mut std::collections::BTreeMap<String, String>) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    map.insert(key.to_owned(), value.to_owned());
}

fn bytes(text: &str) -> Result<u64, String> {
    base::units::parse_bytes(text).map_err(|_| format!("invalid value for tmpfs-size: {text}"))
}

fn octal(text: &str) -> Result<&str, String> {
    let valid = text.len() <= 5 && u32::from_str_radix(text, 8).is_ok_and(|mode| mode <= 0o7777);
    if valid { Ok(text) } else { Err(format!("invalid value for tmpfs-mode: {text}")) }
}

/// `--volumes-from CONTAINER[:ro|rw]`: the container, and whether its volumes may only be read.
pub fn volumes_from(text: &str) -> Result<(String, bool), Report> {
    let (name, mode) = text.split_once(':').unwrap_or((text, "rw"));
    let mut read_only = false;
    for word in mode.split(',') {
        match word {
            "ro" => read_only = true,
            // The labels are those of the other one.
            "rw" | "z" | "Z" => {}
            _ => return Err(wrong(format!("invalid mode for volumes-from: {mode}"))),
        }
    }
    if name.is_empty() {
        return Err(wrong("invalid volumes-from: a container must be named".to_owned()));
    }
    Ok((name.to_owned(), read_only))
}

/// `--storage-opt size=BYTES`.
pub fn storage_option(text: &str) -> Result<u64, Report> {
    match text.split_once('=') {
        Some(("size", size)) => {
            let bytes =
                base::units::parse_bytes(size).map_err(|error| Report::from(error).with_step(text.to_owned()))?;
            if bytes == 0 { Err(wrong(format!("invalid storage option {text}: the size is 0"))) } else { Ok(bytes) }
        }
        _ => Err(wrong(format!("unknown storage option: {text}")).with_hint("the option is size=BYTES")),
    }
}

/// `--tmpfs DESTINATION[:OPTIONS]`; the options are Docker's: words of mount(8), and values of tmpfs itself.
pub fn tmpfs(text: &str) -> Result<(String, String), Report> {
    const WORDS: [&str; 18] = [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "strictatime",
        "tmpcopyup",
        "notmpcopyup",
        "nosymfollow",
    ];
    const VALUES: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];
    let (destination, options) = text.split_once(':').unwrap_or((text, ""));
    let destination = engine::volume::destination(destination).map_err(wrong)?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let known = match option.split_once('=') {
            Some((key, _)) => VALUES.contains(&key),
            None => WORDS.contains(&option),
        };
        if !known {
            return Err(wrong(format!("invalid tmpfs option \"{option}\"")));
        }
    }
    Ok((destination, options.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed parse is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_or_names() {
        let path = |text: &str| VolumeSource::Path(text.into());
        for (text, source, destination, read_only) in [
            ("/a:/b", path("/a"), "/b", false),
            ("/a:/b/:ro,z", path("/a"), "/b", true),
            ("./a:/b", path("./a"), "/b", false),
            ("..:/b", path(".."), "/b", false),
            ("data:/b:rw", VolumeSource::Named("data".into()), "/b", false),
            ("/b", VolumeSource::default(), "/b", false),
        ] {
            let parsed = volume(text).unwrap();
            let relabel = text.ends_with('z');
            let anonymous = !text.contains(':');
            let destination = destination.into();
            let wanted = Volume { source, destination, read_only, relabel, anonymous, ..Volume::default() };
            assert_eq!(parsed, wanted, "{text}");
        }
        for bad in [
            "",
            "a",
            "a/b:/c",
            "relative:..:bad:bad",
            "/a:b",
            "/a:/",
            "/a:/b:odd",
            "/a:/b/../c",
            ":/b",
            "/a::ro",
            "/a:/b:",
            "/a:/b:ro,rw",
            "/a:/b:nocopy",
            "data:/b:rslave",
            "/a:/b:rslave,private",
            "/a:/b:O,ro",
            "a:/b",
            "/a:/b:exec,noexec",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        let all = volume("/a:/b:U,cow,rslave,noexec,nosuid,nodev,bind").unwrap();
        assert!(all.chown && all.cow && all.below == Below::Hidden && !all.read_only);
        assert_eq!(all.options, ["rslave", "noexec", "nosuid", "nodev"]);
        assert!(volume("data:/b:nocopy").unwrap().no_copy);
    }

    fn mounted(text: &str) -> Volume {
        match mount(text).unwrap() {
            Mounted::Volume(volume) => *volume,
            Mounted::Memory(..) => panic!("{text}"),
        }
    }

    #[test]
    fn mounts_are_read_in_every_spelling() {
        for text in [
            "type=bind,source=/a,target=/b,readonly",
            "type=bind,src=/a,dst=/b,ro=true",
            "TYPE=bind,SRC=/a,destination=/b/,readonly=1",
            "type=bind,\"src=/a\",dst=/b,rw=false",
        ] {
            let source = VolumeSource::Path("/a".into());
            let wanted =
                Volume { source, destination: "/b".to_owned(), read_only: true, must_exist: true, ..Volume::default() };
            assert_eq!(mounted(text), wanted, "{text}");
        }
        let volume = mounted(
            "source=data,target=/b,volume-nocopy,volume-subpath=x/y,volume-label=a=b,\"volume-opt=o=bind,ro\",U=true",
        );
        assert_eq!((volume.source, volume.subpath.as_deref()), (VolumeSource::Named("data".into()), Some("x/y")));
        assert!(volume.no_copy && volume.chown && !volume.anonymous && !volume.must_exist);
        assert_eq!((&volume.labels["a"][..], &volume.driver_options["o"][..]), ("b", "bind,ro"));
        assert!(mounted("type=volume,target=/b").anonymous);
        for (word, below) in [
            ("bind-nonrecursive", Below::Hidden),
            ("bind-recursive=disabled", Below::Hidden),
            ("bind-recursive=writable", Below::Writable),
            ("bind-recursive=readonly,readonly", Below::Shown),
        ] {
            assert_eq!(mounted(&format!("type=bind,src=/a,dst=/b,{word}")).below, below, "{word}");
        }
        assert_eq!(mounted("type=bind,src=/a,dst=/b,bind-propagation=rslave").options, ["rslave"]);
        let memory = Mounted::Memory("/b".to_owned(), "size=1048576,mode=1700,ro".to_owned());
        assert_eq!(mount("type=tmpfs,dst=/b,tmpfs-size=1m,tmpfs-mode=1700,readonly").unwrap(), memory);
    }

    #[test]
    fn what_is_no_mount_is_told_in_dockers_words() {
        for (text, words) in [
            ("type=bind,src=/a", "target is required"),
            ("type=bind,dst=/b", "field Source must not be empty"),
            ("type=tmpfs,src=/a,dst=/b", "field Source must not be specified"),
            ("type=bind,src=/a,dst=/b,colour=red", "unexpected key 'colour' in 'colour=red'"),
            ("type=bind,src=/a,dst=/b,colour", "invalid field 'colour' must be a key=value pair"),
            ("type=bind,src=/a,dst=/b,readonly=perhaps", "invalid value for readonly: perhaps"),
            ("type=bind,src=/a,dst=/b,volume-nocopy", "cannot mix 'volume-*' options with mount type 'bind'"),
            (
                "type=volume,src=ab,dst=/b,bind-propagation=slave",
                "cannot mix 'bind-*' options with mount type 'volume'",
            ),
            ("type=bind,src=/a,dst=/b,tmpfs-size=1m", "cannot mix 'tmpfs-*' options with mount type 'bind'"),
            ("type=bind,src=/a,dst=/b,bind-propagation=odd", "invalid propagation mode: odd"),
            ("type=bind,src=/a,dst=/b,bind-recursive=readonly", "requires 'readonly' to be specified"),
            ("type=odd,src=/a,dst=/b", "mount type unknown"),
            ("type=image,src=x,dst=/b", "not built"),
            ("type=volume,src=../x,dst=/b", "includes invalid characters"),
            ("type=volume,src=ab,dst=/b,volume-subpath=../x", "subpath must be a relative path"),
            ("type=volume,src=ab,dst=/b,volume-subpath=/x", "subpath must be a relative path"),
            ("type=tmpfs,dst=/b,tmpfs-mode=9", "invalid value for tmpfs-mode: 9"),
            ("type=bind,src=/a,dst=b", "mount path must be absolute"),
            ("type=bind,src=/a,dst=/b/../c", "mount path must be absolute"),
            ("type=bind,\"src=/a", "a quote is not closed"),
        ] {
            let said = mount(text).unwrap_err().to_string();
            assert!(said.contains(words) && said.contains("for \"--mount\" flag"), "{text}: {said}");
        }
        for (text, answer) in
            [("a", Some(false)), ("a:ro", Some(true)), ("a:rw,z", Some(false)), ("a:x", None), (":ro", None)]
        {
            assert_eq!(volumes_from(text).ok().map(|(_, read_only)| read_only), answer, "{text}");
        }
        assert_eq!(storage_option("size=1g").unwrap(), 1 << 30);
        for bad in ["size", "size=0", "size=x", "inodes=1"] {
            assert!(storage_option(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn file_systems_in_memory() {
        assert_eq!(tmpfs("/t/:size=1m,exec").unwrap(), ("/t".into(), "size=1m,exec".into()));
        for bad in ["t", "/", "/t:size", "/t:odd=1", "/t:shared", "/t:ro=1"] {
            assert!(tmpfs(bad).is_err(), "{bad}");
        }
    }
}
