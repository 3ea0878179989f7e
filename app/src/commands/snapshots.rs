use crate::app::{App, Outcome};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::repository::manifest::SnapshotRow;
use serde_json::json;

/// Shows all snapshots.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let reading = app.reading().await?;
    let snapshots = reading.session.manifest.snapshots()?;
    for snapshot in &snapshots {
        if app.json {
            screen::print_json(&json!({ "type": "snapshot", "id": snapshot.id, "sequence": snapshot.sequence, "fact": snapshot.fact }));
        } else {
            screen::print_line(&line(snapshot));
        }
    }
    let runs = reading.session.manifest.runs(1)?;
    let text = match runs.first() {
        Some(run) if run.outcome.as_deref() != Some("snapshot") => {
            let outcome = run.outcome.as_deref().unwrap_or("is running, or died");
            let reason = run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            format!("the last run ({}, {}) has no snapshot: {outcome}{reason}", run.id, screen::age(run.last_entry_at))
        }
        None => "there is no snapshot yet".to_owned(),
        Some(_) => String::new(),
    };
    Ok(Outcome::new(Exit::Done, text, json!({ "snapshots": snapshots.len() })))
}

fn line(snapshot: &SnapshotRow) -> String {
    let fact = &snapshot.fact;
    let label = fact.label.as_ref().map_or_else(String::new, |label| format!("  {}", label.escape_debug()));
    let missing = if fact.unread_count > 0 { format!("  {} unread", screen::count(fact.unread_count)) } else { String::new() };
    let proof = match (&fact.proof, &fact.dump) {
        (Some(proof), _) => format!("  {}", proof.headline()),
        (None, Some(_)) => "  not proven: the dump is not Immich's".to_owned(),
        (None, None) => "  no database".to_owned(),
    };
    format!(
        "{}  {:.0}{proof}  {:>10} files  {:>10}  {:>10} sent  {} archived{missing}{label}",
        snapshot.id.short(),
        fact.taken_at,
        screen::count(fact.totals.all().files),
        screen::bytes(fact.totals.all().bytes),
        screen::bytes(fact.sent.bytes),
        screen::count(fact.archived),
    )
}
