//! Which database is meant, and with what it is reached: settings, and the names that PostgreSQL's own programs read from the environment.

use crate::app::App;
use crate::config::{Origin, Settings, UsageError};
use crate::stack;
use anyhow::Context as _;
use immich_backup_core::database::client::Client;
use immich_backup_core::database::connection::{Connection, InvalidConnection, Password};
use immich_backup_core::database::container::ContainerOptions;
use immich_backup_core::stack::discover::Database as Found;
use immich_backup_core::stack::engine::Engine;
use std::path::{Path, PathBuf};

/// What PostgreSQL's programs read from the environment and what is passed on to them; hosts, names and passwords have settings of their own.
const PASSED_ON: [&str; 10] =
    ["HOME", "PGPASSFILE", "PGREQUIRESSL", "PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGCHANNELBINDING", "PGGSSENCMODE"];

/// Names under which people keep the password. Immich's own is among them.
const PASSWORDS: [&str; 3] = ["IMMICH_BACKUP_DATABASE_PASSWORD", "DB_PASSWORD", "PGPASSWORD"];

/// Settings that say which database, or that there is none.
const NAMES: [&str; 4] = ["no-database", "database-container", "database", "database-host"];

/// Who may name the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Anyone: it is only read.
    Anywhere,
    /// The command line alone: it is written to, and what the environment names is the live one.
    OnCommandLine,
}

/// What the settings ask for.
#[derive(Debug)]
pub enum Wanted {
    /// They say nothing of a database.
    Unsaid,
    /// They say that there is to be none.
    Refused,
    /// This one.
    Database(Box<Client>),
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A flag outweighs the environment, which outweighs the configuration file.
fn weight(settings: &Settings, name: &'static str) -> u8 {
    match settings.found(name).filter(|found| found.values.iter().any(|value| !value.is_empty() && value != "false")).map(|found| &found.origin) {
        Some(Origin::Flag) => 3,
        Some(Origin::Environment(_)) => 2,
        Some(Origin::File(_)) => 1,
        Some(Origin::Default) | None => 0,
    }
}

/// Whether the settings say anything of a database.
pub fn said_at_all(settings: &Settings) -> bool {
    NAMES.into_iter().any(|name| weight(settings, name) > 0)
}

/// The client of a database that was found; what the settings say of user, name and password counts.
///
/// # Errors
/// It cannot be reached, or the settings cannot be understood.
pub async fn of_found(app: &App, found: &Found, engine: Option<&Engine>) -> anyhow::Result<Client> {
    let settings = &app.settings;
    let text = |name: &'static str| said_text(settings, name, Said::Anywhere).map(str::to_owned);
    match (found, engine) {
        (Found::InContainer { container, user, name, password: known }, Some(engine)) => Ok(Client::in_container(ContainerOptions {
            docker: engine.address().to_owned(),
            container: container.clone(),
            user: text("database-user").or_else(|| user.clone()),
            database: text("database-name").or_else(|| name.clone()),
            password: password(settings)?.or_else(|| known.clone()),
            run_as: None,
        })
        .await?),
        (Found::InContainer { container, .. }, None) => Err(UsageError(format!("no engine runs programs in `{container}`: say --database URL")).into()),
        (Found::Elsewhere(connection), _) => {
            let mut connection = connection.clone();
            if let Some(user) = text("database-user") {
                connection = connection.with_user(user);
            }
            if let Some(name) = text("database-name") {
                connection = connection.with_database(name);
            }
            if let Some(password) = password(settings)? {
                connection = connection.with_password(password);
            }
            for name in PASSED_ON {
                if let Some(value) = environment(name) {
                    connection = connection.with_variable(name, value);
                }
            }
            Ok(Client::local(connection, programs(settings)))
        }
    }
}

/// The database that the settings name.
///
/// # Errors
/// They contradict each other or cannot be understood, or Docker cannot be asked.
pub async fn wanted(app: &App, said: Said) -> anyhow::Result<Wanted> {
    let settings = &app.settings;
    let least = if said == Said::OnCommandLine { 3 } else { 1 };
    let flags: Vec<_> = NAMES.into_iter().filter(|name| weight(settings, name) == 3).collect();
    if let [first, second, ..] = flags.as_slice() {
        return Err(UsageError(format!("--{first} and --{second} contradict each other")).into());
    }
    // Of those that are said in the same way, the first counts.
    let chosen = NAMES.into_iter().rev().max_by_key(|name| weight(settings, name)).filter(|name| weight(settings, name) >= least);
    Ok(match chosen {
        None => Wanted::Unsaid,
        Some("no-database") => Wanted::Refused,
        Some("database-container") => Wanted::Database(Box::new(in_container(settings, said).await?)),
        Some(name) => Wanted::Database(Box::new(Client::local(connection(settings, name, said)?, programs(settings)))),
    })
}

/// What may be taken from the environment only where the database is read.
fn said_text<'a>(settings: &'a Settings, name: &'static str, said: Said) -> Option<&'a str> {
    settings.text(name).filter(|_| said == Said::Anywhere || weight(settings, name) == 3)
}

async fn in_container(settings: &Settings, said: Said) -> anyhow::Result<Client> {
    let text = |name: &'static str| said_text(settings, name, said).map(str::to_owned);
    Ok(Client::in_container(ContainerOptions {
        docker: stack::engine(settings).await?.address().to_owned(),
        container: settings.required("database-container")?.to_owned(),
        user: text("database-user"),
        database: text("database-name"),
        password: password(settings)?,
        run_as: None,
    })
    .await?)
}

/// Where PostgreSQL's programs are looked for, in order.
pub fn programs(settings: &Settings) -> Vec<PathBuf> {
    let mut folders: Vec<_> = settings.texts("postgres-programs").iter().map(PathBuf::from).collect();
    let mut installed: Vec<_> =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
    installed.sort();
    folders.extend(installed);
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

fn connection(settings: &Settings, named_by: &str, by: Said) -> anyhow::Result<Connection> {
    let mut said = Connection::new();
    if let Some(user) = said_text(settings, "database-user", by) {
        said = said.with_user(user);
    }
    if let Some(name) = said_text(settings, "database-name", by) {
        said = said.with_database(name);
    }
    if let Some(password) = password(settings)? {
        said = said.with_password(password);
    }
    let mut connection = match settings.text("database").filter(|_| named_by == "database") {
        // What the URL says counts.
        Some(url) => Connection::parse(url).map_err(|error| hinted(&error))?.or(said),
        None => {
            if let Some(host) = settings.text("database-host") {
                said = said.with_host(host);
            }
            if let Some(port) = settings.parsed::<u16>("database-port")? {
                said = said.with_port(port);
            }
            said
        }
    };
    for name in PASSED_ON {
        if let Some(value) = environment(name) {
            connection = connection.with_variable(name, value);
        }
    }
    // As Immich calls it.
    if let Some(mode) = environment("DB_SSL_MODE").filter(|_| environment("PGSSLMODE").is_none()) {
        connection = connection.with_variable("PGSSLMODE", mode);
    }
    Ok(connection)
}

fn hinted(error: &InvalidConnection) -> UsageError {
    let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
    UsageError(format!("--database: {error}{hint}"))
}

fn password(settings: &Settings) -> anyhow::Result<Option<Password>> {
    if let Some(path) = settings.text("database-password-file") {
        let text = std::fs::read_to_string(Path::new(path)).with_context(|| format!("cannot read --database-password-file `{path}`"))?;
        return Ok(Some(Password::new(text.trim_end_matches(['\r', '\n']))));
    }
    Ok(PASSWORDS.into_iter().find_map(environment).map(Password::new))
}
