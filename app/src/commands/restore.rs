use crate::app::{App, Outcome};
use crate::config::Origin;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::find::{self, Selection};
use immich_backup_core::repository::manifest::Selector;
use immich_backup_core::restore::{self, Plan, Prepared, Preview, Report, RestoreError};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Restores.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let to = PathBuf::from(app.settings.required("to")?);
    let paths = super::patterns(app.settings.texts("path"))?;
    // Where a restore writes is said here and now: what the configuration names for `backup` is the live library.
    let said_here = app.settings.found("external").is_some_and(|found| found.origin == Origin::Flag);
    let externals = if said_here { super::externals(app)?.into_iter().map(|external| (external.name, external.path)).collect() } else { BTreeMap::new() };
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let dry_run = app.settings.switch("dry-run")?;
    let query = super::find::query(app)?;
    let reading = app.reading_until(super::find::log_end(app)?).await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let selection = if query.is_any() {
        None
    } else {
        let asked = super::find::snapshot(app, &reading.session.manifest, query.deleted)?;
        Some(find::choose(&reading.session, &query, asked.as_ref(), app.monitor.as_ref(), &app.stop).await?)
    };
    let id = snapshot.id;
    let heading = format!("snapshot {} of {:.0} to {}", id.short(), snapshot.fact.taken_at, to.display());
    let chosen = selection.as_ref().map(|selection| Arc::clone(&selection.chosen));
    let plan = Plan { snapshot, to, externals, paths, chosen, overwrite: app.settings.switch("overwrite")?, workers: app.workers()? };
    let prepared: Prepared = match restore::prepare(&reading.session, plan, app.monitor.as_ref(), &app.stop).await {
        Err(error @ RestoreError::Differs { .. }) if dry_run => return Err(error.into()),
        other => other?,
    };
    if !app.json && !app.settings.switch("quiet")? {
        let found = selection.as_ref().map_or_else(String::new, found_text);
        screen::print_error(&format!("{heading}\n{found}{}", plan_text(&prepared.preview)));
    }
    let fields = |report: &Report, dry_run: bool| {
        let preview = &report.preview;
        json!({
            "snapshot": id,
            "dry_run": dry_run,
            "plan": { "write": preview.write, "replace": preview.replace, "right": preview.right, "free_bytes": preview.free_bytes },
            "written": report.written,
            "failed": report.failed,
            "damaged": report.damaged,
            "failures": report.failures,
            "markers_made": report.markers,
            "found": selection.as_ref().map(found_object),
            "errors": [],
        })
    };
    if dry_run {
        let report = Report { preview: prepared.preview, ..Report::default() };
        return Ok(Outcome::new(Exit::Done, "dry run: nothing was written".to_owned(), fields(&report, true)));
    }
    let report = prepared.run(&reading.session, &app.monitor, &app.stop).await?;
    let exit = match &report {
        Report { damaged: 1.., .. } => Exit::Damaged,
        Report { interrupted: true, .. } => Exit::Interrupted,
        Report { failed: 1.., .. } => Exit::Incomplete,
        _ if selection.as_ref().is_some_and(|selection| selection.missing + selection.mismatched > 0) => Exit::Incomplete,
        _ => Exit::Done,
    };
    let lacking = selection.as_ref().map_or_else(String::new, lacking_text);
    Ok(Outcome::new(exit, format!("{}{lacking}", text(exit, &report)), fields(&report, false)))
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
    if report.markers > 0 {
        lines.push(format!("  {} .immich markers were made", report.markers));
    }
    lines.join("\n")
}
