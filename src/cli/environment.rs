//! What the environment says: where the engine's bytes lie, and where other engines keep what we share with them.

use std::env;
use std::path::{Path, PathBuf};

use base::units::parse_bytes;
use base::{Context, Kind, Ladder, Report};
use engine::image::policy::PolicyPlaces;
use engine::registries::{ConfPlace, Credential, Sources};
use engine::{Engine, Options, Paths, Proxies, paths};

use crate::output;
use crate::progress::Choice;
use crate::registry_options::Reach;

/// The options before every command.
#[derive(Clone, Debug, Default)]
pub struct Globals {
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `--run-root`.
    pub run_root: Option<PathBuf>,
    /// `--strict`.
    pub strict: bool,
    /// `--store`.
    pub store: Option<String>,
    /// `--offline`.
    pub offline: bool,
    /// `--cache-max`.
    pub cache_max: Option<String>,
    /// `--additional-store`.
    pub additional_stores: Vec<PathBuf>,
    /// `--additional-store-owner`.
    pub additional_store_owner: Option<u32>,
    /// `--signature-policy`.
    pub signature_policy: Option<PathBuf>,
    /// `--cdi-spec-dir`.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// `--progress`.
    pub progress: Choice,
}

impl Globals {
    /// Tells an error on standard error, as an object where those are asked for.
    pub fn tell(&self, report: &Report) {
        match self.progress {
            Choice::Json => output::json_error(report),
            Choice::Auto | Choice::Tty | Choice::Plain => output::error(report),
        }
    }

    /// The engine that these options and the environment mean.
    pub fn engine(&self) -> Result<Engine, Report> {
        self.engine_reaching(&Reach::default(), None)
    }

    /// The same that reaches registries as told, and is there who it is told to be.
    pub fn engine_reaching(&self, reach: &Reach, credential: Option<Credential>) -> Result<Engine, Report> {
        let paths = Paths::new(self.data_dir()?, self.run_dir()?, paths::machine_name());
        let paths = match self.store.clone().or_else(|| word("SUBLET_STORE")) {
            Some(name) => paths.with_store(&name)?,
            None => paths,
        };
        Ok(Engine::open(paths, Options { credential, ..self.options(reach)? }))
    }

    fn options(&self, reach: &Reach) -> Result<Options, Report> {
        let words = |text: String| text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Ok(Options {
            strict: self.strict,
            home: home(),
            programs: env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default(),
            bus: env::var("DBUS_SESSION_BUS_ADDRESS").ok(),
            registries: registries(reach.authfile.as_deref())?,
            proxies: proxies(),
            insecure: env::var("SUBLET_INSECURE_REGISTRIES").map(words).unwrap_or_default(),
            certificates: certificates(),
            certificates_for_all: reach.cert_dir.as_deref().map(absolute).transpose()?,
            tls_verify: reach.tls_verify,
            credential: None,
            roots: path("SSL_CERT_FILE"),
            policy: self.policy()?,
            offline: self.offline,
            cache_max_bytes: self.cache_max_bytes()?,
            additional_stores: self.additional_stores()?,
            additional_store_owner: self.additional_store_owner,
            cdi_spec_dirs: self.cdi_spec_dirs.iter().map(|directory| absolute(directory)).collect::<Result<_, _>>()?,
            on_notice: Some(if self.progress == Choice::Json { output::json_warning } else { output::warning }),
        })
    }

    /// Where Podman looks for `policy.json`: a user's own file stands for the machine's.
    fn policy(&self) -> Result<PolicyPlaces, Report> {
        let roots = config_home().into_iter().chain([PathBuf::from("/etc")]);
        let usual = roots.map(|root| root.join("containers/policy.json")).collect();
        let named = self.signature_policy.as_deref().map(absolute).transpose()?;
        Ok(PolicyPlaces { named, usual })
    }

    /// Those of the options, else of the variable, where colons part them.
    fn additional_stores(&self) -> Result<Vec<PathBuf>, Report> {
        let named = match &self.additional_stores[..] {
            [] => word("SUBLET_ADDITIONAL_STORES").unwrap_or_default().split(':').map(PathBuf::from).collect(),
            named => named.to_vec(),
        };
        named.iter().filter(|path| !path.as_os_str().is_empty()).map(|path| absolute(path)).collect()
    }

    fn cache_max_bytes(&self) -> Result<Option<u64>, Report> {
        let asked = self.cache_max.clone().map(|text| ("--cache-max", text));
        let asked = asked.or_else(|| Some(("SUBLET_CACHE_MAX", word("SUBLET_CACHE_MAX")?)));
        let Some((name, text)) = asked else { return Ok(None) };
        parse_bytes(&text).map(Some).step(|| format!("reading {name}"))
    }

    /// The directory of sockets and process ids.
    pub fn run_dir(&self) -> Result<PathBuf, Report> {
        if let Some(run_root) = &self.run_root {
            return absolute(run_root);
        }
        let (run, ladder) = runtime_dir();
        let run = run.ok_or_else(|| no_runtime_dir(&ladder))?;
        // Without the variable the second rung is what it would have said. A directory that it names and that cannot be
        // used is a mistake which would else hide the containers that are there.
        let refused = path("XDG_RUNTIME_DIR").is_some() && ladder.trials.len() > 1;
        match ladder.step_down().filter(|_| refused || ladder.fix.is_some()) {
            Some(line) if self.strict => return Err(Report::new(Kind::Unsupported, line)),
            Some(line) if refused => output::warning(&line),
            Some(_) | None => {}
        }
        Ok(run)
    }

    fn data_dir(&self) -> Result<PathBuf, Report> {
        Ok(self.data_dir_and_origin()?.0)
    }

    /// `--root`, `$SUBLET_ROOT`, `$XDG_DATA_HOME/sublet`, `$HOME/.local/share/sublet`; and which of these.
    pub fn data_dir_and_origin(&self) -> Result<(PathBuf, &'static str), Report> {
        let below = |variable: &'static str, rest: &str| Some((path(variable)?.join(rest), variable));
        let chosen = self
            .root
            .clone()
            .map(|root| (root, "--root"))
            .or_else(|| path("SUBLET_ROOT").map(|root| (root, "SUBLET_ROOT")))
            .or_else(|| below("XDG_DATA_HOME", "sublet"))
            .or_else(|| below("HOME", ".local/share/sublet"));
        let (chosen, origin) = chosen.ok_or_else(|| {
            Report::new(Kind::Usage, "no data directory: HOME is not set").with_hint("pass --root=DIRECTORY")
        })?;
        Ok((absolute(&chosen)?, origin))
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Report> {
    std::path::absolute(path)
        .map_err(|error| Report::of(Kind::Usage, error).with_step(format!("finding where {} is", path.display())))
}

/// The user's home directory, where the environment names one.
pub fn home() -> Option<PathBuf> {
    path("HOME")
}

/// The user's shell.
pub fn shell() -> String {
    word("SHELL").unwrap_or_else(|| "/bin/sh".to_owned())
}

/// The time that all that is made is to have, in seconds since 1970 (reproducible-builds.org, SOURCE_DATE_EPOCH).
pub fn source_date_epoch() -> Result<Option<i64>, Report> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if !text.is_empty() => {
            let seconds = text.parse::<i64>().ok().filter(|seconds| *seconds >= 0);
            let wrong = || Report::new(Kind::Usage, format!("SOURCE_DATE_EPOCH={text} is not a number of seconds"));
            seconds.map(Some).ok_or_else(wrong)
        }
        _ => Ok(None),
    }
}

/// Docker's own configuration of its command line.
pub fn docker_config() -> Result<Option<PathBuf>, Report> {
    let directory = named("DOCKER_CONFIG")?.or_else(|| path("HOME").map(|home| home.join(".docker")));
    Ok(directory.map(|directory| directory.join("config.json")))
}

/// Where Docker and Podman keep what they know of registries; with a file of credentials that the options name.
fn registries(authfile: Option<&Path>) -> Result<Sources, Report> {
    let docker = docker_config()?;
    let auth = env::var("DOCKER_AUTH_CONFIG").ok().filter(|text| !text.trim().is_empty());
    let conf = conf_places()?;
    if let Some(file) = authfile.map(absolute).transpose()? {
        return Ok(Sources {
            auth_files: vec![file.clone()],
            files_alone: true,
            login_file: Some(file),
            conf,
            ..Sources::default()
        });
    }
    // Who names a file means no other.
    if let Some(file) = named("REGISTRY_AUTH_FILE")? {
        return Ok(Sources {
            auth,
            auth_files: vec![file.clone()],
            login_file: Some(file),
            conf,
            ..Sources::default()
        });
    }
    let run = path("XDG_RUNTIME_DIR").map(|run| run.join("containers/auth.json"));
    let config = config_home().map(|config| config.join("containers/auth.json"));
    let auth_files = [run, config, docker.clone()].into_iter().flatten().collect();
    Ok(Sources { auth, auth_files, login_file: docker, conf, ..Sources::default() })
}

/// Where Podman looks for `registries.conf`. A user's own file stands for the machine's and its drop-ins; the user's
/// drop-ins hold in any case.
fn conf_places() -> Result<Vec<ConfPlace>, Report> {
    const NAME: &str = "containers/registries.conf";
    let drop_ins = |file: &Path| file.with_extension("conf.d");
    let (machine, user) = (Path::new("/etc").join(NAME), config_home().map(|config| config.join(NAME)));
    let all: Vec<PathBuf> = [Some(&machine), user.as_ref()].into_iter().flatten().map(|file| drop_ins(file)).collect();
    let named = named("CONTAINERS_REGISTRIES_CONF")?;
    let named = named.map(|file| ConfPlace { file, named: true, drop_ins: all.clone() });
    let user = user.map(|file| ConfPlace { drop_ins: vec![drop_ins(&file)], file, named: false });
    let machine = ConfPlace { file: machine, named: false, drop_ins: all };
    Ok(named.into_iter().chain(user).chain([machine]).collect())
}

/// The drop-in for what is taken over from another engine.
pub fn imported_conf() -> Result<PathBuf, Report> {
    let config = config_home().ok_or_else(|| Report::new(Kind::Usage, "no directory of settings: HOME is not set"))?;
    Ok(config.join("containers/registries.conf.d/sublet-imported.conf"))
}

/// The proxies of the environment. A name in lower case goes before the one in upper case, as with curl.
fn proxies() -> Proxies {
    let variable = |name: &str| {
        let values = [name.to_owned(), name.to_uppercase()].into_iter().filter_map(|name| env::var(name).ok());
        values.map(|value| value.trim().to_owned()).find(|value| !value.is_empty())
    };
    let for_all = || variable("all_proxy");
    Proxies {
        http: variable("http_proxy").or_else(for_all),
        https: variable("https_proxy").or_else(for_all),
        none: variable("no_proxy").unwrap_or_default(),
    }
}

/// Where Docker and Podman look for certificates of a registry, the user's before the machine's.
fn certificates() -> Vec<PathBuf> {
    let roots = config_home().into_iter().chain([PathBuf::from("/etc")]);
    roots.flat_map(|root| ["containers", "docker"].map(|engine| root.join(engine).join("certs.d"))).collect()
}

/// `$XDG_CONFIG_HOME`, `$HOME/.config`.
fn config_home() -> Option<PathBuf> {
    path("XDG_CONFIG_HOME").or_else(|| path("HOME").map(|home| home.join(".config")))
}

/// Where the units of the user's systemd lie.
pub fn user_units() -> Option<PathBuf> {
    config_home().map(|config| config.join("systemd/user"))
}

/// A path that a variable of another engine names; relative ones are theirs too.
fn named(variable: &str) -> Result<Option<PathBuf>, Report> {
    let value = env::var_os(variable).filter(|value| !value.is_empty());
    value.map(|value| absolute(Path::new(&value))).transpose()
}

/// The runtime directory and how it was found.
pub fn runtime_dir() -> (Option<PathBuf>, Ladder) {
    paths::runtime_dir(path("XDG_RUNTIME_DIR").as_deref(), nix::unistd::getuid().as_raw())
}

fn no_runtime_dir(ladder: &Ladder) -> Report {
    let tried = ladder.trials.iter().filter_map(|trial| Some(format!("{}: {}", trial.rung, trial.failure.as_ref()?)));
    let report = Report::new(Kind::Denied, tried.collect::<Vec<_>>().join("; ")).with_step("no runtime directory");
    match &ladder.fix {
        Some(fix) => report.with_hint(fix),
        None => report,
    }
}

/// The first of these variables that is set and not empty.
pub fn variable_of(names: &[&'static str]) -> Option<&'static str> {
    names.iter().copied().find(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
}

/// A variable that is set and not empty.
fn word(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|text| !text.is_empty())
}

/// An absolute path in a variable; the XDG specification says to ignore others.
fn path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}
