//! Where each setting's value comes from: flags over environment over configuration file over default.

use crate::settings::{SETTINGS, Setting, Takes, setting};
use clap::ArgMatches;
use clap::parser::ValueSource;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Wrong usage: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// This name in the environment.
    Environment(&'static str),
    /// This file.
    File(PathBuf),
    /// The table.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Environment(name) => write!(f, "environment: {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value that has been found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What was given; `true` or `false` for a switch.
    pub values: Vec<String>,
    /// By whom.
    pub origin: Origin,
}

/// All settings that have a value.
#[derive(Debug, Default)]
pub struct Settings(BTreeMap<&'static str, Found>);

/// The environment: a name's value.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// Finds all values.
    ///
    /// # Errors
    /// A configuration file that cannot be read or has a key that is no setting.
    pub fn resolve(matches: &ArgMatches, environment: Environment<'_>) -> Result<Self, UsageError> {
        let mut settings = Self::default();
        for setting in SETTINGS {
            if let Some(found) = from_flags(setting, matches).or_else(|| from_environment(setting, environment)) {
                settings.0.insert(setting.name, found);
            }
        }
        let file = config_file(settings.text("config"), environment)?;
        let mut from_file = file.map(|path| read_file(&path)).transpose()?.unwrap_or_default();
        for setting in SETTINGS {
            let default = setting.default.map(|value| Found { values: vec![value.to_owned()], origin: Origin::Default });
            if !settings.0.contains_key(setting.name)
                && let Some(found) = from_file.remove(setting.name).or(default)
            {
                settings.0.insert(setting.name, found);
            }
        }
        Ok(settings)
    }

    /// What was found for `name`.
    #[must_use]
    pub fn found(&self, name: &str) -> Option<&Found> {
        self.0.get(name)
    }

    /// The value of `name`.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.values.first().map(String::as_str)
    }

    /// The values of `name`.
    #[must_use]
    pub fn texts(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], |found| &found.values)
    }

    /// Whether the switch `name` is on.
    ///
    /// # Errors
    /// A value that is neither on nor off.
    pub fn switch(&self, name: &'static str) -> Result<bool, UsageError> {
        match self.text(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false" | "0" | "no" | "off" | "") => Ok(false),
            Some("true" | "1" | "yes" | "on") => Ok(true),
            Some(_) => Err(self.wrong(name, &"say true or false")),
        }
    }

    /// The value of `name`, understood.
    ///
    /// # Errors
    /// It cannot be understood.
    pub fn parsed<T: FromStr>(&self, name: &'static str) -> Result<Option<T>, UsageError>
    where
        T::Err: fmt::Display,
    {
        self.text(name).map(|text| text.parse().map_err(|error| self.wrong(name, &error))).transpose()
    }

    /// The span of time that `name` gives, e.g. `90s`, `15m`, `26h`, `7d`.
    ///
    /// # Errors
    /// It is no span of time, or less than nothing.
    pub fn time(&self, name: &'static str) -> Result<Option<std::time::Duration>, UsageError> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let span = text.parse::<jiff::Span>().and_then(|span| span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()));
        let time = span.ok().and_then(|span| std::time::Duration::try_from(span).ok());
        let plain_zero = (text == "0").then_some(std::time::Duration::ZERO);
        time.or(plain_zero).map(Some).ok_or_else(|| self.wrong(name, &"write a time like 90s, 15m, 26h or 7d"))
    }

    /// The value of `name`, which has to be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&self, name: &'static str) -> Result<&str, UsageError> {
        if let Some(text) = self.text(name).filter(|text| !text.is_empty()) {
            return Ok(text);
        }
        let environment =
            setting(name).and_then(|setting| setting.environment.first()).map_or_else(String::new, |name| format!(" (or {name} in the environment)"));
        Err(UsageError(format!("say --{name}{environment}")))
    }

    fn wrong(&self, name: &'static str, why: &dyn fmt::Display) -> UsageError {
        let (value, origin) = self.found(name).map_or((String::new(), String::new()), |found| (found.values.join(","), found.origin.to_string()));
        UsageError(format!("--{name} cannot be `{value}` (from the {origin}): {why}"))
    }
}

fn from_flags(setting: &'static Setting, matches: &ArgMatches) -> Option<Found> {
    // A setting of another command is unknown to this one's matches.
    if !matches!(matches.try_contains_id(setting.name), Ok(true)) || matches.value_source(setting.name) != Some(ValueSource::CommandLine) {
        return None;
    }
    let values = match setting.takes {
        Takes::Switch => vec![matches.get_flag(setting.name).to_string()],
        Takes::Value(_) | Takes::Values(_) => matches.get_many::<String>(setting.name)?.cloned().collect(),
    };
    Some(Found { values, origin: Origin::Flag })
}

fn from_environment(setting: &'static Setting, environment: Environment<'_>) -> Option<Found> {
    setting.environment.iter().find_map(|name| {
        let value = environment(name).filter(|value| !value.is_empty())?;
        let values = match setting.takes {
            Takes::Values(_) => value.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect(),
            Takes::Switch | Takes::Value(_) => vec![value],
        };
        Some(Found { values, origin: Origin::Environment(name) })
    })
}

fn config_file(given: Option<&str>, environment: Environment<'_>) -> Result<Option<PathBuf>, UsageError> {
    if let Some(given) = given {
        let path = PathBuf::from(given);
        return if path.is_file() { Ok(Some(path)) } else { Err(UsageError(format!("there is no configuration file `{given}`"))) };
    }
    let home = environment("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| environment("HOME").map(|home| Path::new(&home).join(".config")));
    let places = [Some(PathBuf::from(".")), home, Some(PathBuf::from("/etc"))];
    Ok(places.into_iter().flatten().map(|folder| folder.join("immich-backup.toml")).find(|path| path.is_file()))
}

/// `[database] keep = …` is written `database-keep` here.
fn flat(table: toml::Table) -> Vec<(String, toml::Value)> {
    let mut values = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(section) => values.extend(section.into_iter().map(|(name, value)| (format!("{key}-{name}"), value))),
            value => values.push((key, value)),
        }
    }
    values
}

fn read_file(path: &Path) -> Result<BTreeMap<&'static str, Found>, UsageError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| UsageError(format!("cannot read the configuration file `{shown}`: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error| UsageError(format!("the configuration file `{shown}` cannot be understood: {error}")))?;
    let mut settings = BTreeMap::new();
    for (key, value) in flat(table) {
        // `[database] url` is what `database` is.
        let name = key.replace('_', "-");
        let Some(setting) = setting(&name).or_else(|| setting(name.strip_suffix("-url")?)).filter(|setting| !matches!(setting.name, "config" | "show-config"))
        else {
            return Err(UsageError(format!("`{key}` in the configuration file `{shown}` is no setting; docs/configuration.md has them all")));
        };
        if setting.environment.is_empty() {
            return Err(UsageError(format!("`{key}` in the configuration file `{shown}` can only be said on the command line: it is meant for one run")));
        }
        let single = |value: toml::Value| match value {
            toml::Value::String(text) => Ok(text),
            toml::Value::Integer(number) => Ok(number.to_string()),
            toml::Value::Boolean(on) => Ok(on.to_string()),
            _ => Err(UsageError(format!("`{key}` in the configuration file `{shown}` has a value of the wrong kind"))),
        };
        let values = match (value, setting.takes) {
            (toml::Value::Array(values), Takes::Values(_)) => values.into_iter().map(single).collect::<Result<_, _>>()?,
            (value, _) => vec![single(value)?],
        };
        settings.insert(setting.name, Found { values, origin: Origin::File(path.to_owned()) });
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, UsageError> {
        let matches = crate::cli::command().get_matches_from([&["immich-backup"], arguments].concat());
        let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve(matches.subcommand().unwrap().1, &lookup)
    }

    #[test]
    fn flags_win_over_environment_over_file_over_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "workers = 2\nlibrary = \"/from/file\"\nexclude = [\"a\", \"b\"]\noriginals_only = true\n").unwrap();
        let arguments = ["backup", "--config", file.to_str().unwrap(), "--label", "x"];
        let settings = resolve(&arguments, &[("UPLOAD_WORKERS", "8"), ("BACKUP_DATE", "y"), ("UPLOAD_LOCATION", "")]).unwrap();
        assert_eq!(settings.text("label"), Some("x"));
        assert_eq!(settings.found("workers").unwrap().origin, Origin::Environment("UPLOAD_WORKERS"));
        assert_eq!(settings.text("library"), Some("/from/file"));
        assert_eq!(settings.texts("exclude"), ["a", "b"]);
        assert!(settings.switch("originals-only").unwrap());
        assert_eq!(settings.found("wait").unwrap().origin, Origin::Default);
    }

    #[test]
    fn our_own_name_wins_over_those_that_people_have() {
        let settings = resolve(&["backup"], &[("UPLOAD_LOCATION", "/c"), ("LIBRARY_DIR", "/b"), ("IMMICH_BACKUP_LIBRARY", "/a")]).unwrap();
        assert_eq!(settings.text("library"), Some("/a"));
    }

    #[test]
    fn a_typo_in_the_file_and_a_wrong_value_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("c.toml");
        std::fs::write(&file, "worker = 2\n").unwrap();
        let error = resolve(&["backup", "--config", file.to_str().unwrap()], &[]).unwrap_err();
        assert!(error.to_string().contains("`worker`"), "{error}");
        let settings = resolve(&["backup"], &[("UPLOAD_WORKERS", "many")]).unwrap();
        let error = settings.parsed::<usize>("workers").unwrap_err();
        assert!(error.to_string().contains("UPLOAD_WORKERS") && error.to_string().contains("many"), "{error}");
        assert!(resolve(&["backup", "--config", "/nowhere.toml"], &[]).is_err());
    }

    #[test]
    fn times_have_units() {
        let time = |text: &str| resolve(&["status", "--max-age", text], &[]).unwrap().time("max-age");
        assert_eq!(time("26h").unwrap().unwrap().as_secs(), 26 * 3_600);
        assert_eq!(time("7d").unwrap().unwrap().as_secs(), 7 * 86_400);
        assert!(time("26").is_err() && time("soon").is_err());
    }
}
