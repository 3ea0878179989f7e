use crate::app::{App, Outcome};
use crate::config::Origin;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::repository::manifest::Selector;
use immich_backup_core::restore::{self, Plan, Prepared, Preview, Report, RestoreError};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Restores.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let to = PathBuf::from(app.settings.required("to")?);
    let paths = super::patterns(app.settings.texts("path"))?;
    // Where a restore writes is said here and now: what the configuration names for `backup` is the live library.
    let said_here = app.settings.found("external").is_some_and(|found| found.origin == Origin::Flag);
    let externals = if said_here { super::externals(app)?.into_iter().map(|external| (external.name, external.path)).collect() } else { BTreeMap::new() };
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let dry_run = app.settings.switch("dry-run")?;
    let reading = app.reading().await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let id = snapshot.id;
    let heading = format!("snapshot {} of {:.0} to {}", id.short(), snapshot.fact.taken_at, to.display());
    let plan = Plan { snapshot, to, externals, paths, chosen: None, overwrite: app.settings.switch("overwrite")?, workers: app.workers()? };
    let prepared: Prepared = match restore::prepare(&reading.session, plan, app.monitor.as_ref(), &app.stop).await {
        Err(error @ RestoreError::Differs { .. }) if dry_run => return Err(error.into()),
        other => other?,
    };
    if !app.json && !app.settings.switch("quiet")? {
        screen::print_error(&format!("{heading}\n{}", plan_text(&prepared.preview)));
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
        _ => Exit::Done,
    };
    Ok(Outcome::new(exit, text(exit, &report), fields(&report, false)))
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
