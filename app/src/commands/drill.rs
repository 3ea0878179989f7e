use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::database::{self, Said, Wanted};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::drill::{self, DrillPlan, DrillReport, DrillTarget};
use immich_backup_core::model::Sample;
use immich_backup_core::repository::log::DrillOutcome;
use immich_backup_core::repository::manifest::Selector;
use serde_json::json;

/// Originals that are fetched and compared where nothing else is said.
const SAMPLE: &str = "200";

/// Restores into a throw-away database, checks, and reports.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let sample = match app.settings.parsed::<Sample>("sample")? {
        Some(sample) => sample,
        None => SAMPLE.parse().map_err(|_| UsageError("--sample takes `200`, `5%` or `1/7`".to_owned()))?,
    };
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    // What the environment names is the live database: a drill never goes there.
    let target = match database::wanted(app, Said::OnCommandLine).await? {
        Wanted::Database(client) => DrillTarget::Scratch(*client),
        Wanted::Unsaid | Wanted::Refused => {
            // As root, it is run by `nobody`: the account `postgres` may own a live server's data.
            DrillTarget::Local { folders: database::programs(&app.settings), parent: std::env::temp_dir(), owner: None }
        }
    };
    let record = app.settings.text("until").is_none();
    let mut reading = app.reading().await?;
    let snapshot = reading.session.manifest.select(&selector)?;
    let id = snapshot.id;
    let plan = DrillPlan { snapshot, sample, target, workers: app.workers()?, record };
    if record {
        app.note(&reading.session);
    }
    let report = drill::run(&mut reading.session, &plan, app.monitor.as_ref(), &app.stop).await?;
    if record {
        app.note(&reading.session);
    }
    let exit = match (&report, report.outcome) {
        (DrillReport { interrupted: true, .. }, _) => Exit::Interrupted,
        (_, DrillOutcome::Failed) => Exit::Damaged,
        (_, DrillOutcome::Passed | DrillOutcome::Partial) => Exit::Done,
    };
    let fields = json!({
        "snapshot": id,
        "verdict": report.outcome,
        "dump": report.dump,
        "server_version": report.server_version,
        "tables": report.tables,
        "rows": report.rows,
        "assets": report.assets,
        "sampled": report.sampled,
        "sampled_bytes": report.sampled_bytes,
        "not_checked": report.unchecked(),
        "problem_count": report.problem_count,
        "problems": report.problems,
        "as_text": report.as_text,
        "left_out": report.left_out,
        "errors": [],
    });
    Ok(Outcome::new(exit, text(&id.short(), exit, &report), fields))
}

fn text(snapshot: &str, exit: Exit, report: &DrillReport) -> String {
    let verdict = match (exit, report.outcome) {
        (Exit::Interrupted, _) => "interrupted before the end: nothing was written to the log",
        (_, DrillOutcome::Passed) => "passed: it comes back",
        (_, DrillOutcome::Partial) => "passed in part: it comes back, but for what this machine's PostgreSQL could not take",
        (_, DrillOutcome::Failed) => "FAILED",
    };
    let mut lines = vec![format!("drill of snapshot {snapshot}: {verdict}")];
    let server = report.server_version.as_deref().unwrap_or("no server");
    lines.push(format!("  database   {} into PostgreSQL {server}", report.dump));
    lines.push(format!("  rows       {} in {} tables, counted", screen::count(report.rows), screen::count(report.tables)));
    lines.push(format!(
        "  originals  {} of {} fetched and compared with the SHA-1 in the restored database, {}; {} not checked",
        screen::count(report.sampled),
        screen::count(report.assets),
        screen::bytes(report.sampled_bytes),
        screen::count(report.unchecked())
    ));
    if !report.as_text.is_empty() {
        let tables: Vec<_> = report.as_text.iter().map(String::as_str).collect();
        lines.push(format!("  as text    {}: this PostgreSQL lacks an extension (vector, vchord); Immich's own has it", tables.join(", ")));
    }
    lines.extend(report.problems.iter().take(super::backup::SHOWN).map(|problem| format!("  problem    {problem}")));
    let more = report.problem_count.saturating_sub(report.problems.len().min(super::backup::SHOWN) as u64);
    if more > 0 {
        lines.push(format!("             … and {} more", screen::count(more)));
    }
    lines.join("\n")
}
