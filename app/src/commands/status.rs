use crate::app::{App, Outcome};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::repository::manifest::Verification;
use jiff::Timestamp;
use serde_json::json;
use std::time::Duration;

/// Says whether the backup is recent and sound.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let max_age = app.settings.time("max-age")?;
    let reading = app.reading().await?;
    let session = &reading.session;
    let manifest = &session.manifest;
    let latest = manifest.latest_snapshot()?;
    let last_run = manifest.runs(1)?.pop();
    let damaged = manifest.count_lost()?;
    let (listed, read) = (manifest.last_verification("listed", 1)?, manifest.last_verification("read", 1)?);
    let sampled = manifest.last_verification("read", u64::MAX >> 1)?.filter(|sample| sample.parts > 1);
    let archived = manifest.archived()?;

    let ended = last_run.as_ref().and_then(|run| run.outcome.as_deref());
    // A run writes at least every minute: one that is silent for longer than three has died.
    let silent = last_run.as_ref().is_some_and(|run| run.outcome.is_none() && is_older(run.last_entry_at, Duration::from_secs(180)));
    let rotten = latest.as_ref().map_or(0, |snapshot| snapshot.fact.bit_rot_count);
    let mut problems = Vec::new();
    if silent {
        problems.push("the last run died before its end; the next one goes on from there".to_owned());
    }
    if rotten > 0 {
        problems.push(format!("{rotten} files of the library differ from what was stored, though size and times are the same: probably damaged there"));
    }
    match (&latest, max_age) {
        (None, _) => problems.push("there is no snapshot yet".to_owned()),
        (Some(snapshot), Some(max_age)) if is_older(snapshot.fact.taken_at, max_age) => {
            problems.push(format!("the newest snapshot is older than {}", app.settings.text("max-age").unwrap_or_default()));
        }
        _ => {}
    }
    if let Some(run) = last_run.as_ref().filter(|run| !matches!(run.outcome.as_deref(), Some("snapshot") | None)) {
        let reason = run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        problems.push(format!("the last run {}{reason}", run.outcome.as_deref().unwrap_or_default()));
    }
    if damaged > 0 {
        problems.push(format!("{damaged} objects are damaged; the next backup stores them again from the library"));
    }
    let missing = latest.as_ref().map_or(0, |snapshot| snapshot.fact.unread_count);
    if missing > 0 {
        problems.push(format!("{missing} files or folders could not be read at the last backup"));
    }

    let when = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| format!("{} ({at:.0})", screen::age(at)));
    let look = |found: &Option<Verification>| {
        found.as_ref().map_or_else(|| "never".to_owned(), |found| format!("{}, {} objects", when(Some(found.at)), screen::count(found.objects)))
    };
    let mut lines = vec![if problems.is_empty() { "sound, as far as was looked".to_owned() } else { format!("NOT WELL: {}", problems.join("; ")) }];
    lines.push(format!("  repository     {} ({})", session.repository.store.url(), session.repository.id));
    lines.push(format!("  snapshot       {}", when(latest.as_ref().map(|snapshot| snapshot.fact.taken_at))));
    if let Some(snapshot) = &latest {
        lines.push(format!("  it holds       {}", screen::tally(snapshot.fact.totals.all())));
    }
    lines.push(format!("  archived       {}", screen::tally(archived)));
    lines.push(format!("  listed         {}", look(&listed)));
    lines.push(format!("  read in full   {}", look(&read)));
    if let Some(sample) = &sampled {
        lines.push(format!("  read in part   {}, part {} of {}", when(Some(sample.at)), sample.part + 1, sample.parts));
    }
    let at = |found: &Option<Verification>| found.as_ref().map(|found| found.at.to_string());
    let fields = json!({
        "repository": session.repository.id,
        "snapshot": latest.as_ref().map(|snapshot| json!({ "id": snapshot.id, "fact": snapshot.fact })),
        "archived": archived,
        "last_listed": at(&listed),
        "last_read": at(&read),
        "last_sampled": at(&sampled),
        "damaged": damaged,
        "problems": problems,
    });
    let too_old = latest.is_none() || matches!((&latest, max_age), (Some(snapshot), Some(max_age)) if is_older(snapshot.fact.taken_at, max_age));
    let exit = match () {
        () if too_old => Exit::Failed,
        () if damaged > 0 => Exit::Damaged,
        () if ended == Some("withheld") => Exit::Withheld,
        () if matches!(ended, Some("failed" | "interrupted")) || silent => Exit::Failed,
        () if rotten > 0 => Exit::Incomplete,
        () if missing > 0 => Exit::Incomplete,
        () => Exit::Done,
    };
    Ok(Outcome::new(exit, lines.join("\n"), fields))
}

/// A time in the future has no age: a clock is wrong, and nothing is known.
fn is_older(at: Timestamp, max_age: Duration) -> bool {
    Duration::try_from(Timestamp::now().duration_since(at)).map_or(true, |age| age > max_age)
}
