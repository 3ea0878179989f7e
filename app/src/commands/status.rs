use crate::app::{App, Outcome};
use crate::exit::Exit;
use crate::screen;
use crate::standing::{Standing, is_older};
use immich_backup_core::budget::DEAD_AFTER;
use immich_backup_core::repository::log::DrillOutcome;
use immich_backup_core::repository::manifest::Verification;
use immich_backup_core::verdict::{Age, Ages};
use jiff::Timestamp;
use serde_json::json;

/// Says whether the backup is recent and sound.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let max_age = app.settings.time("max-age")?;
    let reading = app.reading().await?;
    let session = &reading.session;
    let manifest = &session.manifest;
    let (standing, now) = (Standing::of(manifest)?, Timestamp::now());
    app.note(session);
    let latest = manifest.latest_snapshot()?;
    let last_run = manifest.runs(1)?.pop();
    let damaged = manifest.count_lost()?;
    let (listed, read) = (manifest.last_verification("listed", 1)?, manifest.last_verification("read", 1)?);
    let sampled = manifest.last_verification("read", u64::MAX >> 1)?.filter(|sample| sample.parts > 1);
    let archived = manifest.archived()?;

    let drill = manifest.last_drill()?;
    let proof = latest.as_ref().and_then(|snapshot| snapshot.fact.proof.as_ref());
    let with_database = latest.as_ref().is_some_and(|snapshot| snapshot.fact.dump.is_some());

    let ended = last_run.as_ref().and_then(|run| run.outcome.as_deref());
    // A run writes at least every minute: one that is silent for longer than three has died.
    let silent = last_run.as_ref().is_some_and(|run| run.outcome.is_none() && is_older(run.last_entry_at, DEAD_AFTER, now));
    let rotten = latest.as_ref().map_or(0, |snapshot| snapshot.fact.bit_rot_count);
    let mut problems = Vec::new();
    if silent {
        problems.push("the last run died before its end; the next one goes on from there".to_owned());
    }
    if rotten > 0 {
        problems.push(format!("{rotten} files of the library differ from what was stored, though size and times are the same: probably damaged there; `immich-backup repair --source` brings the good ones back"));
    }
    let doubtful = latest.as_ref().map_or(0, |snapshot| snapshot.fact.doubtful_count);
    if doubtful > 0 {
        problems.push(format!(
            "{} of the library with content that is not what Immich recorded; the good versions are kept, and `repair --source` brings them back",
            screen::files(doubtful)
        ));
    }
    let ignored = latest.as_ref().map_or(0, |snapshot| snapshot.fact.ignored);
    let mut unproven = proof.map_or(0, |proof| proof.mismatched + proof.missing + proof.companions.missing + proof.outside.saturating_sub(ignored));
    if with_database && proof.is_none() {
        problems.push("the newest dump is not one of Immich: is the name of the database right?".to_owned());
        unproven = 1;
    }
    if let Some(proof) = proof.filter(|_| unproven > 0) {
        problems.push(format!("the newest snapshot lacks something: {}", proof.headline()));
    }
    let failed_drill = drill.as_ref().is_some_and(|drill| drill.fact.outcome == DrillOutcome::Failed);
    if failed_drill {
        problems.push("the last drill failed: this backup may not come back; `immich-backup drill` says why".to_owned());
    }
    let mut remarks = Vec::new();
    if latest.is_some() && !with_database {
        remarks.push("the newest snapshot has no database: files alone do not bring Immich back".to_owned());
    }
    if standing.lacks_drill(now) {
        remarks.push("no drill for more than 35 days: `immich-backup drill` shows whether this backup comes back".to_owned());
    }
    let too_old = latest.is_none() || max_age.is_some_and(|max_age| standing.is_older_than(max_age, now));
    let said = app.settings.text("max-age").unwrap_or_default();
    match (&latest, max_age, standing.proven_at) {
        (None, ..) => problems.push("there is no snapshot yet".to_owned()),
        _ if !too_old => {}
        (Some(snapshot), Some(max_age), _) if is_older(snapshot.fact.taken_at, max_age, now) => {
            problems.push(format!("the newest snapshot is older than {said}"))
        }
        (_, _, Some(at)) => problems.push(format!("the newest proven snapshot is older than {said} ({}); those after it lack something", screen::age(at))),
        (_, _, None) => problems.push("no snapshot was ever proven".to_owned()),
    }
    if let Some(run) = last_run.as_ref().filter(|run| !matches!(run.outcome.as_deref(), Some("snapshot") | None)) {
        let reason = run.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        problems.push(format!("the last run {}{reason}", run.outcome.as_deref().unwrap_or_default()));
    }
    if damaged > 0 {
        problems.push(format!("{damaged} objects are damaged; the next backup stores again what the library still has of them, and `immich-backup repair` heals old snapshots, too"));
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
    if let Some(proof) = proof {
        let damage = if damaged > 0 { " at the backup; objects were found damaged since" } else { "" };
        lines.insert(0, format!("{}{damage}", proof.headline()));
    }
    lines.extend(remarks.iter().map(|remark| format!("  warning        {remark}")));
    lines.push(format!("  repository     {} ({})", session.repository.store.url(), session.repository.id));
    lines.push(format!("  snapshot       {}", when(latest.as_ref().map(|snapshot| snapshot.fact.taken_at))));
    if let Some(snapshot) = &latest {
        lines.push(format!("  it holds       {}", screen::tally(snapshot.fact.totals.all())));
    }
    if let Some(proof) = proof {
        // As of the backup; what was looked at since stands below.
        let Ages { recorded, listed, read } = proof.ages;
        let known = |age: Age| screen::count(age.assets);
        lines.push(format!(
            "  at the backup  {} assets recorded, {} of them seen in a listing by then, {} read back",
            known(recorded),
            known(listed),
            known(read)
        ));
    }
    if let Some(drill) = &drill {
        let outcome = match drill.fact.outcome {
            DrillOutcome::Passed => "passed",
            DrillOutcome::Partial => "passed in part",
            DrillOutcome::Failed => "FAILED",
        };
        let sampled = format!("{} of {} originals compared", screen::count(drill.fact.sampled), screen::count(drill.fact.assets));
        lines.push(format!("  drill          {outcome}, {}, {sampled}", when(Some(drill.fact.at))));
    }
    lines.push(format!("  archived       {}", screen::tally(archived)));
    lines.push(format!("  listed         {}", look(&listed)));
    lines.push(format!("  read in full   {}", look(&read)));
    if let Some(sample) = &sampled {
        lines.push(format!("  read in part   {}, part {} of {}", when(Some(sample.at)), sample.part + 1, sample.parts));
    }
    let (repaired, repairs) = super::repair::repairs(manifest)?;
    lines.extend(repaired.iter().map(|line| format!("  log repaired   {line}")));
    let at = |found: &Option<Verification>| found.as_ref().map(|found| found.at.to_string());
    let fields = json!({
        "repository": session.repository.id,
        "snapshot": latest.as_ref().map(|snapshot| json!({ "id": snapshot.id, "fact": snapshot.fact })),
        "archived": archived,
        "last_listed": at(&listed),
        "last_read": at(&read),
        "last_sampled": at(&sampled),
        "damaged": damaged,
        "proof": proof,
        "drill": drill.as_ref().map(|drill| &drill.fact),
        "repairs": repairs,
        "problems": problems,
        "warnings": remarks,
    });
    let exit = match () {
        () if too_old => Exit::Failed,
        () if damaged > 0 => Exit::Damaged,
        () if ended == Some("withheld") => Exit::Withheld,
        () if matches!(ended, Some("failed" | "interrupted")) || silent => Exit::Failed,
        () if failed_drill => Exit::Damaged,
        () if rotten + doubtful + unproven > 0 => Exit::Incomplete,
        () if missing > 0 => Exit::Incomplete,
        () => Exit::Done,
    };
    Ok(Outcome::new(exit, lines.join("\n"), fields))
}
