//! The driver and the options of a container's log, in Docker's words.

use std::collections::BTreeMap;
use std::path::Path;

use base::units::parse_bytes;
use base::{Context, Kind, Report};
use monitor::journal::SOCKET;
use monitor::log::{Format, Rules};

use crate::Engine;
use crate::container::record::{LogConfig, LogDriver, Record};

/// Docker's options that change nothing here: what they ask for other loggers to be told is in the container's record, and
/// writing a log never stops a container.
const WITHOUT_EFFECT: [&str; 5] = ["compress", "env-regex", "labels-regex", "max-buffer-size", "mode"];

/// Refuses what cannot be, and tells what has no effect.
pub(crate) fn check(engine: &Engine, config: &LogConfig) -> Result<(), Report> {
    rules(config)?;
    if config.driver == LogDriver::Journald && !Path::new(SOCKET).exists() {
        let text = format!("journald is not enabled on this host: there is no {SOCKET}");
        return Err(Report::new(Kind::Unsupported, text).with_hint("--log-driver json-file keeps a log without it"));
    }
    for name in config.options.keys().filter(|name| WITHOUT_EFFECT.contains(&name.as_str())) {
        engine.notice(&format!("--log-opt {name} has no effect here"));
    }
    Ok(())
}

/// The option of the name by which readers of a log know a container.
const TAG: &str = "tag";
/// Those of labels and variables that they are told of.
const LABELS: &str = "labels";
const ENV: &str = "env";

/// What readers of a log are told of its container beside each line, as in Docker: the labels and variables that the options
/// name, and the tag.
pub(crate) fn attributes(record: &Record) -> BTreeMap<String, String> {
    let Record { settings, host, .. } = record;
    let named = |option: &str| {
        let names = host.log.options.get(option).into_iter().flat_map(|names| names.split(','));
        names.map(str::trim).map(str::to_owned).collect::<Vec<_>>()
    };
    let variable = |name: &str| {
        let mut variables = settings.env.iter().filter_map(|entry| entry.split_once('='));
        variables.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned())
    };
    let labels = named(LABELS).into_iter().filter_map(|name| Some((settings.labels.get(&name)?.clone(), name)));
    let variables = named(ENV).into_iter().filter_map(|name| Some((variable(&name)?, name)));
    let tag = host.log.options.get(TAG).map(|template| (tag(record, template), TAG.to_owned()));
    labels.chain(variables).chain(tag).map(|(value, name)| (name, value)).collect()
}

/// The tag that a template of Docker's means.
fn tag(record: &Record, template: &str) -> String {
    let image_id = record.image.id.map(|digest| digest.to_string()).unwrap_or_default();
    let marks = [
        ("{{.ID}}", record.id.short()),
        ("{{.FullID}}", record.id.as_str()),
        ("{{.Name}}", &record.name),
        ("{{.ImageName}}", &record.image.reference),
        ("{{.ImageFullID}}", &image_id),
    ];
    marks.iter().fold(template.to_owned(), |tag, (mark, value)| tag.replace(mark, value))
}

/// The fields of a container's entries in the journal, those of Docker; none with another driver.
pub(crate) fn journal(record: &Record) -> BTreeMap<String, String> {
    let LogConfig { driver: LogDriver::Journald, options } = &record.host.log else { return BTreeMap::new() };
    let (id, name, image) = (&record.id, &record.name, &record.image.reference);
    let tag = tag(record, options.get(TAG).map_or("{{.ID}}", String::as_str));
    let fields = [
        ("CONTAINER_ID", id.short()),
        ("CONTAINER_ID_FULL", id.as_str()),
        ("CONTAINER_NAME", name),
        ("CONTAINER_TAG", &tag),
        ("IMAGE_NAME", image),
        ("SYSLOG_IDENTIFIER", &tag),
    ];
    fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Who reads a log has all of its files open.
const FILES_MAX: u64 = 500;

/// How the monitor keeps the log.
pub(crate) fn rules(config: &LogConfig) -> Result<Rules, Report> {
    let mut rules = match config.driver {
        LogDriver::JsonFile => Rules::default(),
        // Its format is nobody's business; what Docker's users see of it is its size.
        LogDriver::Local | LogDriver::Journald => Rules { max_bytes: Some(20 << 20), max_files: 5, ..Rules::default() },
        LogDriver::K8sFile => Rules { format: Some(Format::K8s), ..Rules::default() },
        LogDriver::None => Rules { format: None, ..Rules::default() },
    };
    let name = config.driver.as_str();
    for (option, value) in &config.options {
        let step = || format!("--log-opt {option}={value}");
        match option.as_str() {
            "max-size" if rules.format.is_some() => {
                let bytes = match value.as_str() {
                    "-1" => None,
                    text => Some(parse_bytes(text).map_err(Report::from).step(step)?),
                };
                rules.max_bytes = bytes.filter(|bytes| *bytes > 0);
            }
            "max-file" if rules.format.is_some() => {
                let wrong = |text: String| Report::new(Kind::Usage, text);
                rules.max_files = match value.parse() {
                    Ok(files @ 1..=FILES_MAX) => files,
                    Ok(1..) => return Err(wrong(format!("max-file cannot be more than {FILES_MAX}"))),
                    _ => return Err(wrong("max-file cannot be less than 1".to_owned())),
                };
            }
            TAG | LABELS | ENV => {}
            other if WITHOUT_EFFECT.contains(&other) => {}
            _ => return Err(Report::new(Kind::Usage, format!("unknown log opt '{option}' for {name} log driver"))),
        }
    }
    Ok(rules)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn options_become_rules() {
        let of = |driver, options: &[(&str, &str)]| {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            rules(&LogConfig { driver, options }).ok()
        };
        let sizes = |rules: Option<Rules>| rules.map(|rules| (rules.max_bytes, rules.max_files));
        assert_eq!(sizes(of(LogDriver::JsonFile, &[])), Some((None, 1)));
        assert_eq!(sizes(of(LogDriver::Local, &[("max-file", "2")])), Some((Some(20 << 20), 2)));
        assert_eq!(
            sizes(of(LogDriver::K8sFile, &[("max-size", "10k"), ("mode", "non-blocking")])),
            Some((Some(10 << 10), 1))
        );
        assert_eq!(sizes(of(LogDriver::JsonFile, &[("max-size", "-1")])), Some((None, 1)));
        assert_eq!(of(LogDriver::None, &[]).unwrap().format, None);
        for (option, value) in
            [("max-file", "0"), ("max-size", "x"), ("max-file", "-1"), ("max-file", "501"), ("odd", "1")]
        {
            assert_eq!(of(LogDriver::JsonFile, &[(option, value)]), None, "{option}={value}");
        }
        assert_eq!(of(LogDriver::None, &[("max-size", "1m")]), None);
    }
}
