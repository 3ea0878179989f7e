//! No such project yet: its stored configuration is laid into a folder, and it is said, step by step, how it becomes a project.

use super::{Look, look};
use crate::app::{App, Outcome};
use crate::config::{Origin, UsageError};
use crate::exit::Exit;
use crate::screen;
use anyhow::Context as _;
use immich_backup_core::event::{Event, Monitor};
use immich_backup_core::model::Root;
use immich_backup_core::repository::Session;
use immich_backup_core::repository::manifest::{ManifestError, SnapshotRow};
use immich_backup_core::restore::compose::IntoProjectError;
use immich_backup_core::restore::{self, Plan};
use immich_backup_core::stack::copies::CONTAINERS_FILE as CONTAINERS;
use immich_backup_core::stack::ready::{Over, Patience};
use immich_backup_core::stack::redact::MARK as REDACTED;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The largest file of a configuration that is looked into.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What was done where there is no project.
pub enum Laid {
    /// It was said what to do, and the project is to be waited for.
    Waiting,
    /// It was said what to do.
    Told(Box<Outcome>),
}

/// What is stored of the project as it was.
#[derive(Default)]
struct Before {
    /// The folder of its Compose file.
    folder: Option<PathBuf>,
    /// Folders of the host that its containers had, outside of that folder.
    mounted: BTreeSet<PathBuf>,
}

struct Silent;

impl Monitor for Silent {
    fn emit(&self, _: Event) {}
}

/// Lays the stored configuration of `name`, and says what is left to do.
pub async fn lay(app: &App, session: &Session, snapshot: &SnapshotRow, name: &str, dry_run: bool) -> anyhow::Result<Laid> {
    let stored = stored(session, snapshot)?;
    let waits = app.settings.found("wait").is_some_and(|found| found.origin == Origin::Flag) && !dry_run;
    let (heading, steps, folder) = if stored.is_empty() {
        (format!("there is no Compose project `{name}` here, and the snapshot has no configuration of one"), by_the_book(name, snapshot), None)
    } else {
        let before = before(app, session, snapshot, &stored).await?;
        let said = app.settings.text("compose-dir").map(|said| std::path::absolute(said).with_context(|| format!("cannot understand --compose-dir `{said}`")));
        let free = before.folder.clone().filter(|folder| is_free(folder) || holds_any(folder, &stored));
        let folder = said.transpose()?.or(free).ok_or_else(|| {
            UsageError(format!(
                "there is no Compose project `{name}` here, and the folder that it had is not known or not empty: say with --compose-dir DIR where its \
                 stored configuration is to go"
            ))
        })?;
        let there = holds_any(&folder, &stored);
        if !there && !dry_run {
            write(session, &plan(app, snapshot, &folder, &[])?, &app.monitor, app).await?;
        }
        let shown = folder.display();
        let lies = match (there, dry_run) {
            (true, _) => format!("its configuration is in `{shown}` already, and is left as it is"),
            (false, true) => format!("its configuration ({} files) would go into `{shown}`", stored.len()),
            (false, false) => format!("its configuration ({} files) is in `{shown}` now", stored.len()),
        };
        let steps = steps(name, &folder, &stored, &before, there || !dry_run);
        (format!("there is no Compose project `{name}` here; {lies}"), steps, Some(folder))
    };
    let mut lines = vec![format!("{heading}. What is left to do:")];
    lines.extend(steps.iter().enumerate().map(|(number, step)| format!("  {}. {step}", number + 1)));
    if waits {
        lines.push("  This command waits for the project, and goes on by itself.".to_owned());
        if !app.json {
            screen::print_error(&lines.join("\n"));
        }
        for step in steps.iter().filter(|_| app.json) {
            app.monitor.emit(Event::Waiting { what: step.clone() });
        }
        return Ok(Laid::Waiting);
    }
    lines.push("  Then run the same command again (with --wait 1h it waits for the project, and goes on by itself).".to_owned());
    let fields = json!({
        "snapshot": snapshot.id,
        "dry_run": dry_run,
        "project": name,
        "compose_dir": folder.map(|folder| folder.display().to_string()),
        "steps": steps,
        "errors": [],
    });
    let exit = if dry_run { Exit::Done } else { Exit::Incomplete };
    Ok(Laid::Told(Box::new(Outcome::new(exit, lines.join("\n"), fields))))
}

/// Looks again and again, until the project is there.
pub async fn wait(app: &App, name: &str) -> anyhow::Result<Look> {
    let limit = app.settings.time("wait")?.unwrap_or_default();
    let mut patience = Patience::new(limit, app.monitor.as_ref(), &app.stop);
    loop {
        let looked = look(app, name).await?;
        // Compose makes one container after the other.
        if looked.site.as_ref().is_ok_and(|site| site.database().is_ok()) {
            return Ok(looked);
        }
        match patience.wait(|| format!("there is no Compose project `{name}` with Immich's server and its database yet")).await {
            Ok(()) => {}
            Err(Over::Interrupted) => return Err(IntoProjectError::Interrupted.into()),
            Err(Over::TooLong(_)) => return Ok(looked),
        }
    }
}

fn plan(app: &App, snapshot: &SnapshotRow, folder: &Path, paths: &[String]) -> anyhow::Result<Plan> {
    Ok(Plan {
        snapshot: snapshot.clone(),
        to: None,
        externals: BTreeMap::new(),
        mounts: Vec::new(),
        config_to: Some(folder.to_owned()),
        postgres_to: None,
        paths: crate::commands::patterns(paths)?,
        chosen: None,
        overwrite: false,
        workers: app.workers()?,
    })
}

async fn write(session: &Session, plan: &Plan, monitor: &Arc<dyn Monitor>, app: &App) -> anyhow::Result<()> {
    let prepared = restore::prepare(session, plan.clone(), monitor.as_ref(), &app.stop).await?;
    let report = prepared.run(session, monitor, &app.stop).await?;
    if report.interrupted {
        return Err(IntoProjectError::Interrupted.into());
    }
    match report.failures.first() {
        Some(failure) => Err(anyhow::anyhow!("cannot lay `{}`: {}", failure.path, failure.problem)),
        None => Ok(()),
    }
}

/// Paths of the files that the snapshot has of the stack's configuration.
fn stored(session: &Session, snapshot: &SnapshotRow) -> Result<BTreeSet<PathBuf>, ManifestError> {
    let mut found = BTreeSet::new();
    session.manifest.each_file(snapshot.sequence, |row| {
        if row.file.root == Root::Config {
            found.insert(row.file.path.to_path());
        }
        Ok::<_, ManifestError>(())
    })?;
    Ok(found)
}

/// What is stored of the project as it was: nothing, where it was backed up without an engine.
async fn before(app: &App, session: &Session, snapshot: &SnapshotRow, stored: &BTreeSet<PathBuf>) -> anyhow::Result<Before> {
    if !stored.contains(Path::new(CONTAINERS)) {
        return Ok(Before::default());
    }
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    let silent: Arc<dyn Monitor> = Arc::new(Silent);
    write(session, &plan(app, snapshot, scratch.path(), &[format!("config/{CONTAINERS}")])?, &silent, app).await?;
    let told: Value = read(&scratch.path().join(CONTAINERS)).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let absolute = |value: &Value| value.as_str().map(PathBuf::from).filter(|path| path.is_absolute());
    let folder = told.get("working_dir").and_then(absolute);
    let containers = told.get("containers").and_then(Value::as_array).into_iter().flatten();
    let mounts = containers.filter_map(|container| container.get("mounts")?.as_array()).flatten();
    let bound = mounts.filter(|mount| mount.get("volume").is_none_or(Value::is_null)).filter_map(|mount| absolute(mount.get("host")?));
    let mounted = bound.filter(|host| folder.as_ref().is_none_or(|folder| !host.starts_with(folder))).collect();
    Ok(Before { folder, mounted })
}

fn is_free(folder: &Path) -> bool {
    match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Whether it was laid before: a person has filled in what was left out since, and that is not to be overwritten.
fn holds_any(folder: &Path, stored: &BTreeSet<PathBuf>) -> bool {
    stored.iter().filter(|path| path.as_path() != Path::new(CONTAINERS)).any(|path| folder.join(path).exists())
}

/// The text of a file of ordinary size.
fn read(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut text).ok()?;
    String::from_utf8(text).ok()
}

/// What a person has to do, one thing each.
fn steps(name: &str, folder: &Path, stored: &BTreeSet<PathBuf>, before: &Before, is_laid: bool) -> Vec<String> {
    let mut steps = Vec::new();
    if is_laid {
        for path in stored.iter().map(|path| folder.join(path)) {
            let lines = read(&path).map(|text| redacted(&text)).unwrap_or_default();
            if !lines.is_empty() {
                let lines = lines.join(", ");
                steps
                    .push(format!("write what was left out into `{}`: {lines}; the database is made anew, so any new password will do for it", path.display()));
            }
        }
    } else {
        steps.push(format!("write what was left out into its files, where they say {REDACTED}"));
    }
    let missing: Vec<_> = before.mounted.iter().filter(|path| !path.exists()).map(|path| quoted(path)).collect();
    let make = if missing.is_empty() { String::new() } else { format!("; these were there before and are not here: `mkdir -p {}`", missing.join(" ")) };
    steps.push(format!(
        "look whether the folders that these files name are where you want them on this machine (UPLOAD_LOCATION, DB_DATA_LOCATION, the server's other volumes){make}"
    ));
    steps.push(create(name, &quoted(folder)));
    steps
}

/// What to do without a stored configuration.
fn by_the_book(name: &str, snapshot: &SnapshotRow) -> Vec<String> {
    let version = snapshot.fact.immich_version.as_deref().map_or_else(|| "the version that it had".to_owned(), |version| format!("v{version}"));
    vec![
        format!("make a folder with the docker-compose.yml and .env of Immich's documentation (\"Docker Compose\"), with IMMICH_VERSION={version}"),
        create(name, "FOLDER"),
    ]
}

fn create(name: &str, folder: &str) -> String {
    let name = quoted(Path::new(name));
    format!(
        "make the containers, without starting them: `cd {folder} && docker compose --project-name {name} create` (Compose 1: `docker-compose --project-name \
         {name} up --no-start`)"
    )
}

/// Lines with a secret left out: the name of what it is, and their number.
fn redacted(text: &str) -> Vec<String> {
    let of_line = |(number, line): (usize, &str)| {
        // A comment only tells of it.
        if !line.contains(REDACTED) || line.trim_start().starts_with('#') {
            return None;
        }
        let name: String = line.trim_start_matches([' ', '-', '\t', '"', '\'']).chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        Some(if name.is_empty() { format!("line {}", number + 1) } else { format!("{name} (line {})", number + 1) })
    };
    text.lines().enumerate().filter_map(of_line).collect()
}

/// A path or a name as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte)) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_named_by_line_and_name() {
        let env = "A=1\nDB_PASSWORD=<redacted by immich-backup>\n# <redacted by immich-backup> means: left out\n";
        assert_eq!(redacted(env), ["DB_PASSWORD (line 2)"]);
        let yaml = "    environment:\n      - \"API_KEY=<redacted by immich-backup>\"\n      SECRET: <redacted by immich-backup>\n";
        assert_eq!(redacted(yaml), ["API_KEY (line 2)", "SECRET (line 3)"]);
        assert_eq!(redacted("requirepass: nothing"), [""; 0]);
    }

    #[test]
    fn a_folder_is_written_as_a_shell_takes_it() {
        assert_eq!(quoted(Path::new("/srv/immich-app")), "/srv/immich-app");
        assert_eq!(quoted(Path::new("/srv/it's mine")), r"'/srv/it'\''s mine'");
    }
}
