//! One file a command: open, call, translate. What is decided is decided in the core.

mod backup;
mod daemon;
mod doctor;
mod drill;
mod find;
mod init;
mod ls;
mod notify;
mod prune;
mod repair;
mod restore;
mod serve;
mod services;
pub mod shard;
mod snapshots;
mod status;
mod verify;

use crate::app::{App, Outcome};
use crate::config::{Settings, UsageError};
use crate::exit::Exit;
use crate::settings::{COMMANDS, EVERYWHERE, settings_of};
use crate::stack::Findings;
use immich_backup_core::backup::Source;
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{ExternalName, InvalidPath, Root, RootPath};
use immich_backup_core::repository::place::without_secrets;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Runs the command `name`.
///
/// # Errors
/// What stopped it.
pub async fn run(name: &str, app: &App) -> anyhow::Result<Outcome> {
    match name {
        "init" => init::run(app).await,
        "backup" => Box::pin(backup::run(app)).await,
        "snapshots" => snapshots::run(app).await,
        "ls" => ls::run(app).await,
        "status" => status::run(app).await,
        "verify" => verify::run(app).await,
        "restore" => Box::pin(restore::run(app)).await,
        "drill" => drill::run(app).await,
        "doctor" => doctor::run(app).await,
        "prune" => prune::run(app).await,
        "repair" => Box::pin(repair::run(app)).await,
        "find" => find::run(app).await,
        "notify" => notify::run(app).await,
        "daemon" => Box::pin(daemon::run(app)).await,
        "serve" => Box::pin(serve::run(app)).await,
        "services" => Box::pin(services::run(app)).await,
        other => Err(UsageError(format!("there is no command `{other}`")).into()),
    }
}

/// A value as it may be shown. What names a database and is no URL may be anything, a password too.
fn shown(name: &str, value: &str) -> String {
    // The path of such an address is what nobody may know; a file's name is no secret.
    if matches!(name, "notify-ping" | "notify-webhook") && !value.starts_with('@') {
        let host = value.split('/').take(3).collect::<Vec<_>>().join("/");
        return format!("{}/…", without_secrets(&host));
    }
    if name == "database" && !value.contains("://") { "…".to_owned() } else { without_secrets(value) }
}

/// Each setting of the command, its value, and where that came from.
pub fn show_config(command: &str, settings: &Settings) -> Outcome {
    let names = COMMANDS.iter().find(|spec| spec.name == command).map_or_else(Vec::new, settings_of);
    let mut lines = Vec::new();
    let mut values = Vec::new();
    for name in names.iter().chain(EVERYWHERE).filter(|name| **name != "show-config") {
        let (value, origin) = settings.found(name).map_or_else(
            || ("-".to_owned(), "not set".to_owned()),
            |found| (found.values.iter().map(|value| shown(name, value)).collect::<Vec<_>>().join(", "), found.origin.to_string()),
        );
        lines.push(format!("{name:<24} {value:<40} {origin}"));
        values.push(json!({ "name": name, "value": value, "origin": origin }));
    }
    Outcome::new(Exit::Done, lines.join("\n"), json!({ "settings": values }))
}

/// An external library as the command line names it.
struct External {
    name: ExternalName,
    path: PathBuf,
    /// Where Immich's server sees it, if that was said.
    server_path: Option<Vec<u8>>,
}

impl External {
    fn source(self) -> Source {
        Source { root: Root::External(self.name), path: self.path, server_path: self.server_path, mounts: Vec::new() }
    }
}

/// `--external NAME=DIR[:SERVER_DIR]`, as often as it is given. Both folders may hold colons; what Immich's server sees begins with a slash.
fn externals(app: &App) -> Result<Vec<External>, UsageError> {
    let parse = |text: &String| {
        let (name, paths) = text.split_once('=').ok_or_else(|| UsageError(format!("--external `{text}`: write NAME=DIR, or NAME=DIR:SERVER_DIR")))?;
        let name = name.parse().map_err(|error: InvalidPath| UsageError(error.to_string()))?;
        let (path, server_path) = match paths.rfind(":/").and_then(|colon| paths.split_at_checked(colon)) {
            Some((path, server_path)) => (path, Some(server_path.trim_start_matches(':').as_bytes().to_vec())),
            None => (paths, None),
        };
        Ok(External { name, path: PathBuf::from(path), server_path })
    };
    let externals: Vec<External> = app.settings.texts("external").iter().map(parse).collect::<Result<_, _>>()?;
    let names: BTreeSet<_> = externals.iter().map(|external| &external.name).collect();
    if names.len() < externals.len() {
        return Err(UsageError("--external names one library twice; each needs a name of its own".to_owned()));
    }
    Ok(externals)
}

/// The media location: as it was said, else as it was found.
fn library(app: &App, findings: Option<&Findings>) -> anyhow::Result<Source> {
    let said = media_mounts(app)?;
    let found = findings.map(Findings::library).transpose()?.flatten();
    let mut library = match found {
        Some(found) => found,
        None => Source { root: Root::Library, path: PathBuf::from(app.settings.required("library")?), server_path: None, mounts: Vec::new() },
    };
    // What was said of a folder counts.
    library.mounts.retain(|(at, _)| said.iter().all(|(other, _)| other != at));
    library.mounts.extend(said);
    Ok(library)
}

/// `--media-mount PATH=DIR`, as often as it is given.
fn media_mounts(app: &App) -> Result<Vec<(RootPath, PathBuf)>, UsageError> {
    let parse = |text: &String| {
        let wrong =
            || UsageError(format!("--media-mount `{text}`: write PATH=DIR, PATH being that of a folder below the media location (`thumbs=/ssd/thumbs`)"));
        let (path, folder) = text.split_once('=').ok_or_else(wrong)?;
        let at = RootPath::from_bytes(path.trim_end_matches('/').as_bytes()).map_err(|_| wrong())?;
        if folder.is_empty() { Err(wrong()) } else { Ok((at, PathBuf::from(folder))) }
    };
    let mounts: Vec<_> = app.settings.texts("media-mount").iter().map(parse).collect::<Result<_, _>>()?;
    let places: BTreeSet<_> = mounts.iter().map(|(at, _)| at).collect();
    if places.len() < mounts.len() {
        return Err(UsageError("--media-mount names one folder of the media location twice".to_owned()));
    }
    Ok(mounts)
}

fn patterns(texts: &[String]) -> Result<Patterns, UsageError> {
    Patterns::new(texts).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        UsageError(format!("{error}{cause}"))
    })
}
