use crate::app::{App, Outcome};
use crate::config::{Origin, UsageError};
use crate::database::{self, Said, Wanted};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::database::Client;
use immich_backup_core::database::load::LoadPlan;
use immich_backup_core::event::Event;
use immich_backup_core::find::{self, FindError, Selection};
use immich_backup_core::listing;
use immich_backup_core::repository::Session;
use immich_backup_core::repository::manifest::{Selector, SnapshotRow};
use immich_backup_core::restore::{self, DatabasePlan, DatabaseReport, DumpSource, Plan, Prepared, PreparedDatabase, Preview, Report, RestoreError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod compose;

/// Restores.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    // What the environment names is the live one.
    let project = app.settings.found("compose-project").filter(|found| found.origin == Origin::Flag).and_then(|found| found.values.first());
    if let Some(project) = project {
        return Box::pin(compose::run(app, project)).await;
    }
    let database = wanted_database(app).await?;
    let folder = |name| app.settings.text(name).map(PathBuf::from);
    let (to, config_to, postgres_to) = (folder("to"), folder("config-to"), folder("postgres-to"));
    if to.is_none() && config_to.is_none() && postgres_to.is_none() {
        return match database {
            Some(client) => Box::pin(database_alone(app, client)).await,
            None => {
                Err(UsageError("say --to DIR, or --database URL, or both, or --compose-project NAME (or --config-to DIR, --postgres-to DIR)".to_owned()).into())
            }
        };
    }
    let paths = super::patterns(app.settings.texts("path"))?;
    // Where a restore writes is said here and now: what the configuration names for `backup` is the live library.
    let said_here = |name| app.settings.found(name).is_some_and(|found| found.origin == Origin::Flag);
    let mounts = if said_here("media-mount") { super::media_mounts(app)? } else { Vec::new() };
    let externals =
        if said_here("external") { super::externals(app)?.into_iter().map(|external| (external.name, external.path)).collect() } else { BTreeMap::new() };
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let dry_run = app.settings.switch("dry-run")?;
    let query = super::find::query(app)?;
    let mut reading = app.reading_until(super::find::log_end(app)?).await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let prepared_database = match database {
        Some(client) => Some(prepare_database(app, &reading.session, &snapshot, client).await?),
        None => None,
    };
    let selection = if query.is_any() {
        // Files go where the database expects them, whatever Immich moved while the snapshot was taken.
        let arranged = snapshot.fact.dump.is_some() && find::is_out_of_place(&snapshot);
        if arranged { arrange(app, &reading.session, &snapshot).await? } else { None }
    } else {
        let asked = super::find::snapshot(app, &reading.session.manifest, query.deleted)?;
        Some(find::choose(&reading.session, &query, asked.as_ref(), app.monitor.as_ref(), &app.stop).await?)
    };
    let id = snapshot.id;
    let folders: Vec<_> = [&to, &config_to, &postgres_to].into_iter().flatten().map(|path| path.display().to_string()).collect();
    let heading = format!("snapshot {} of {:.0} to {}", id.short(), snapshot.fact.taken_at, folders.join(", "));
    let chosen = selection.as_ref().map(|selection| Arc::clone(&selection.chosen));
    let overwrite = app.settings.switch("overwrite")?;
    let plan = Plan { snapshot, to, externals, mounts, config_to, postgres_to, paths, chosen, overwrite, workers: app.workers()? };
    let prepared: Prepared = match restore::prepare(&reading.session, plan, app.monitor.as_ref(), &app.stop).await {
        Err(error @ RestoreError::Differs { .. }) if dry_run => return Err(error.into()),
        other => other?,
    };
    if !app.json && !app.settings.switch("quiet")? {
        let found = selection.as_ref().map_or_else(String::new, found_text);
        let database = prepared_database.as_ref().map_or_else(String::new, |prepared| format!("\n{}", load_text(&prepared.load)));
        screen::print_error(&format!("{heading}\n{found}{}{database}", plan_text(&prepared.preview)));
    }
    let fields = |report: &Report, dry_run: bool, database: Option<Value>| {
        let preview = &report.preview;
        json!({
            "snapshot": id,
            "dry_run": dry_run,
            "plan": { "write": preview.write, "replace": preview.replace, "right": preview.right, "free_bytes": preview.free_bytes },
            "left": { "config": preview.config_left, "postgres": preview.postgres_left },
            "written": report.written,
            "failed": report.failed,
            "damaged": report.damaged,
            "failures": report.failures,
            "markers_made": report.markers,
            "database": database,
            "found": selection.as_ref().map(found_object),
            "errors": [],
        })
    };
    if dry_run {
        let report = Report { preview: prepared.preview, ..Report::default() };
        return Ok(Outcome::new(Exit::Done, "dry run: nothing was written".to_owned(), fields(&report, true, None)));
    }
    let report = prepared.run(&reading.session, &app.monitor, &app.stop).await?;
    let mut exit = match &report {
        Report { damaged: 1.., .. } => Exit::Damaged,
        Report { interrupted: true, .. } => Exit::Interrupted,
        Report { failed: 1.., .. } => Exit::Incomplete,
        _ if selection.as_ref().is_some_and(|selection| selection.missing + selection.mismatched > 0) => Exit::Incomplete,
        _ => Exit::Done,
    };
    let mut told = format!("{}{}", text(exit, &report), selection.as_ref().map_or_else(String::new, lacking_text));
    let mut loaded = None;
    if let Some(prepared) = prepared_database.filter(|_| exit != Exit::Interrupted) {
        let report = Box::pin(prepared.run(&mut reading.session, &app.monitor, &app.stop)).await?;
        told = format!("{told}\n{}", database_text(&report));
        loaded = Some(database_object(&report));
        if !report.differ.is_empty() && exit == Exit::Done {
            exit = Exit::Incomplete;
        }
    }
    Ok(Outcome::new(exit, told, fields(&report, false, loaded)))
}

/// The database to restore into. What the environment or the configuration names is the live one, and does not count.
async fn wanted_database(app: &App) -> anyhow::Result<Option<Client>> {
    let wanted = database::wanted(app, Said::OnCommandLine).await?;
    let client = if let Wanted::Database(client) = wanted { Some(*client) } else { None };
    for name in ["replace", "dump-file"] {
        if client.is_none() && app.settings.found(name).is_some_and(|found| found.origin == Origin::Flag) {
            return Err(UsageError(format!("--{name} goes with --database or --database-container")).into());
        }
    }
    Ok(client)
}

async fn prepare_database(app: &App, session: &Session, snapshot: &SnapshotRow, client: Client) -> anyhow::Result<PreparedDatabase> {
    let replace = app.settings.switch("replace")?;
    if replace && app.settings.text("until").is_some() {
        return Err(UsageError("--replace writes to the repository, and --until only reads".to_owned()).into());
    }
    let source = match app.settings.text("dump-file") {
        Some(key) if key.starts_with("database/") && !Path::new(key).exists() => match session.manifest.dump(key)? {
            Some(dump) if !dump.pruned => DumpSource::Object(dump.fact),
            _ => return Err(UsageError(format!("--dump-file `{key}`: there is no such file, and no such dump in the repository")).into()),
        },
        Some(path) => DumpSource::File(PathBuf::from(path)),
        None => DumpSource::Object(listing::dump_of(&session.manifest, snapshot)?),
    };
    let database_in_dump = app.settings.text("database-in-dump").map(str::to_owned);
    Ok(restore::prepare_database(session, DatabasePlan { client, source, replace, database_in_dump }, app.monitor.as_ref()).await?)
}

async fn database_alone(app: &App, client: Client) -> anyhow::Result<Outcome> {
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let mut reading = app.reading().await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let prepared = prepare_database(app, &reading.session, &snapshot, client).await?;
    if !app.json && !app.settings.switch("quiet")? {
        screen::print_error(&format!("snapshot {} of {:.0}\n{}", snapshot.id.short(), snapshot.fact.taken_at, load_text(&prepared.load)));
    }
    if app.settings.switch("dry-run")? {
        return Ok(Outcome::new(Exit::Done, "dry run: nothing was written".to_owned(), json!({ "snapshot": snapshot.id, "dry_run": true, "errors": [] })));
    }
    let report = Box::pin(prepared.run(&mut reading.session, &app.monitor, &app.stop)).await?;
    let exit = if report.differ.is_empty() { Exit::Done } else { Exit::Incomplete };
    let fields = json!({ "snapshot": snapshot.id, "dry_run": false, "database": database_object(&report), "errors": [] });
    Ok(Outcome::new(exit, database_text(&report), fields))
}

/// The snapshot's files as its dump expects them; where the dump cannot be read, as they stood, which is said.
async fn arrange(app: &App, session: &Session, snapshot: &SnapshotRow) -> anyhow::Result<Option<Selection>> {
    match find::arrange(session, snapshot, app.monitor.as_ref(), &app.stop).await {
        Ok(selection) => Ok(Some(selection)),
        Err(error @ (FindError::Interrupted | FindError::Open(_))) => Err(error.into()),
        Err(error) => {
            let message = format!("files go where they stood, and not where the database expects those that were moved meanwhile: {error}");
            app.monitor.emit(Event::Warned { message });
            Ok(None)
        }
    }
}

fn load_text(plan: &LoadPlan) -> String {
    let mut lines = vec![format!("  to load        the database, into {} (PostgreSQL {})", plan.target, plan.server_version)];
    if !plan.replaces.is_empty() {
        lines.push(format!("  to replace     {} tables and other things there; a dump of them is stored first", screen::count(plan.replaces.len() as u64)));
    }
    lines.join("\n")
}

fn database_text(report: &DatabaseReport) -> String {
    let rows = report.loaded.rows.values().sum();
    let tables = report.loaded.rows.len() as u64;
    let mut lines = vec![if report.differ.is_empty() {
        format!("restored {}: {} rows in {} tables, counted", report.target, screen::count(rows), screen::count(tables))
    } else {
        format!("restored {}, and the rows are NOT those of the dump (is Immich running?):", report.target)
    }];
    lines.extend(report.differ.iter().map(|differ| format!("  {differ}")));
    if let Some(saved) = &report.saved {
        lines.push(format!("  what was there before is kept; `restore --dump-file {} --replace` and the same database bring it back", saved.key));
    }
    if report.loaded.maintenance_cleared {
        lines.push("  the dump was taken in Immich's maintenance mode, which is over now".to_owned());
    }
    lines.join("\n")
}

fn database_object(report: &DatabaseReport) -> Value {
    json!({
        "target": report.target,
        "tables": report.loaded.rows.len(),
        "rows": report.loaded.rows.values().sum::<u64>(),
        "differ": report.differ.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "saved": report.saved,
        "left_out": report.loaded.left_out,
    })
}

fn found_text(found: &Selection) -> String {
    let files = screen::tally(found.chosen.files());
    let mut lines = vec![format!("  found          {} assets: {files}", screen::count(found.assets))];
    if found.by_content > 0 {
        lines.push(format!("  of these       {} files lie elsewhere than the dump says, found by their SHA-1", screen::count(found.by_content)));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn lacking_text(found: &Selection) -> String {
    let mut lines = vec![String::new()];
    if found.missing > 0 {
        lines.push(format!("  {} files of these assets are NOT in the backup", screen::count(found.missing)));
    }
    if found.mismatched > 0 {
        lines.push(format!("  {} files are not what Immich recorded, and the right ones are stored nowhere", screen::count(found.mismatched)));
    }
    lines.extend(found.named.iter().map(|name| format!("    {name}")));
    if lines.len() == 1 { String::new() } else { lines.join("\n") }
}

fn found_object(found: &Selection) -> Value {
    json!({
        "assets": found.assets,
        "files": found.chosen.files(),
        "by_content": found.by_content,
        "missing": found.missing,
        "mismatched": found.mismatched,
        "named": found.named,
    })
}

fn plan_text(preview: &Preview) -> String {
    let mut lines = vec![format!("  to write       {}", screen::tally(preview.write))];
    if preview.replace > 0 {
        lines.push(format!("  of these       {} replace a file that differs", screen::count(preview.replace)));
    }
    if preview.right.files > 0 {
        lines.push(format!("  there already  {}", screen::tally(preview.right)));
    }
    lines.push(format!("  room left      {}", screen::bytes(preview.free_bytes)));
    lines.join("\n")
}

/// What the snapshot has besides, and how it comes back.
fn left_lines(preview: &Preview) -> Vec<String> {
    let kinds = [(preview.config_left, "the stack's configuration", "config"), (preview.postgres_left, "PostgreSQL's raw folder", "postgres")];
    let left = kinds.into_iter().filter(|(tally, ..)| tally.files > 0);
    left.map(|(tally, what, name)| format!("  {what} is left alone ({}); --{name}-to DIR brings it back", screen::tally(tally))).collect()
}

fn text(exit: Exit, report: &Report) -> String {
    let mut lines = vec![match exit {
        Exit::Done => format!("restored {}, every byte verified", screen::tally(report.written)),
        Exit::Interrupted => format!("interrupted after {}; run the same command again to go on", screen::tally(report.written)),
        _ if report.failed == 0 => format!("restored {}, every byte verified, and something is missing:", screen::tally(report.written)),
        _ => format!("restored {}, and {} files could NOT be restored:", screen::tally(report.written), screen::count(report.failed)),
    }];
    lines.extend(report.failures.iter().map(|failure| format!("  {}: {}", failure.path, failure.problem)));
    if report.preview.right.files > 0 {
        lines.push(format!("  {} were there already, byte for byte", screen::tally(report.preview.right)));
    }
    lines.extend(left_lines(&report.preview));
    if report.markers > 0 {
        lines.push(format!("  .immich markers made: {}", report.markers));
    }
    lines.join("\n")
}
