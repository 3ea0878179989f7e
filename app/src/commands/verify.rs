use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::prove::{self, Difference};
use immich_backup_core::repository::manifest::Selector;
use immich_backup_core::verdict::{Age, Ages};
use immich_backup_core::verify::{self, Depth, Plan, Report};
use serde_json::{Value, json};

/// Objects that no log entry names and that people are shown; JSON has more.
const UNNAMED_SHOWN_MAX: usize = 10;

/// Verifies.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let sample = app.settings.parsed("sample")?;
    let depth = match (app.settings.switch("listing")?, app.settings.switch("read-data")?) {
        (true, true) => return Err(UsageError("say --listing or --read-data, not both".to_owned()).into()),
        (_, true) => Depth::Read(sample),
        (_, false) if sample.is_some() && app.settings.found("sample").is_some_and(|found| found.origin == crate::config::Origin::Flag) => {
            return Err(UsageError("--sample goes with --read-data".to_owned()).into());
        }
        (_, false) => Depth::Listing,
    };
    let record = app.settings.text("until").is_none();
    let mut reading = app.reading().await?;
    let plan = Plan { depth, workers: app.workers()?, record };
    let prove = app.settings.switch("proof")?;
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    if !prove && app.settings.found("snapshot").is_some_and(|found| found.origin == crate::config::Origin::Flag) {
        return Err(UsageError("--snapshot goes with --proof: all else looks at every object of every snapshot".to_owned()).into());
    }
    if record {
        app.note(&reading.session);
    }
    let report = verify::run(&mut reading.session, plan, app.monitor.as_ref(), &app.stop).await?;
    let proof = if prove && !report.interrupted {
        let snapshot = reading.session.manifest.select(&selector)?;
        Some(prove::prove_snapshot(&reading.session, &snapshot, &app.monitor, &app.stop).await?)
    } else {
        None
    };
    if record {
        app.note(&reading.session);
    }
    let ignored = reading.session.manifest.select(&selector).map_or(0, |snapshot| snapshot.fact.ignored);
    let repairs = super::repair::repairs(&reading.session.manifest)?;
    Ok(outcome(&report, proof.as_ref(), ignored, repairs))
}

fn proof_lines(report: &prove::Report) -> Vec<String> {
    let Ages { recorded, listed, read } = report.proof.ages;
    let age = |age: Age| age.oldest.map_or_else(|| "none".to_owned(), |at| format!("{} assets, the oldest {}", screen::count(age.assets), screen::age(at)));
    let mut lines = vec![report.proof.headline()];
    lines.push(format!("  dump       {}", report.dump.key));
    for (name, look) in [("recorded", recorded), ("in lists", listed), ("read back", read)] {
        lines.push(format!("  {name:<10} {}", age(look)));
    }
    lines.extend(super::backup::proof_lines(&report.proof));
    for difference in &report.differences {
        let Difference { what, recorded, now } = difference;
        lines.push(format!("  differs    {what}: {} when the snapshot was taken, {} now", screen::count(*recorded), screen::count(*now)));
    }
    lines
}

fn outcome(report: &Report, proof: Option<&prove::Report>, ignored: u64, (repaired, repairs): (Vec<String>, Value)) -> Outcome {
    let exit = match report {
        Report { lost: 1.., .. } | Report { new: 1.., .. } => Exit::Damaged,
        Report { interrupted: true, .. } => Exit::Interrupted,
        _ if proof.is_some_and(|proof| !proof.proof.is_complete_inside() || proof.proof.outside > ignored) => Exit::Incomplete,
        _ => Exit::Done,
    };
    let mut lines = vec![match exit {
        Exit::Damaged => format!("DAMAGE: {} objects are not as they should be, {} of them hold what is stored nowhere else", report.damaged, report.lost),
        Exit::Interrupted => "interrupted before the end: what was looked at is whole".to_owned(),
        Exit::Incomplete => "every object is as it should be, but the backup lacks what is named above".to_owned(),
        _ => "sound".to_owned(),
    }];
    if let Some(proof) = proof {
        lines.splice(0..0, proof_lines(proof));
    }
    lines.push(format!("  log        {} entries, each follows the one before", screen::count(report.entries)));
    lines.extend(repaired.iter().map(|line| format!("  repaired   {line}")));
    lines.push(format!("  listed     {}", screen::tally(report.listed)));
    if let Some(part) = report.part {
        let which = if part.of > 1 { format!(", part {} of {}", part.part + 1, part.of) } else { String::new() };
        lines.push(format!("  read back  {}{which}", screen::tally(report.read)));
    }
    if report.unannounced > 0 {
        lines.push(format!(
            "  unnamed    {} objects that no log entry names (a run that died, or one that runs now); the next backup takes up what the library still holds of them",
            screen::count(report.unannounced)
        ));
        lines.extend(report.unnamed.iter().take(UNNAMED_SHOWN_MAX).map(|key| format!("             {key}")));
    }
    for finding in &report.findings {
        let replaced = if finding.replaced { " (what it should hold is stored elsewhere too)" } else { "" };
        lines.push(format!("  damaged    {}: {}{replaced}", finding.key, finding.problem));
    }
    if report.lost > 0 {
        lines.push("run `immich-backup backup`: what the library still has is stored again, under another key; or `immich-backup repair`, which heals the snapshots of before as well".to_owned());
    }
    let findings: Vec<_> =
        report.findings.iter().map(|finding| json!({ "key": finding.key, "problem": finding.problem, "replaced": finding.replaced })).collect();
    let fields = json!({
        "entries": report.entries,
        "listed": report.listed,
        "read": report.read,
        "part": report.part,
        "unannounced": report.unannounced,
        "unnamed": report.unnamed,
        "damaged": report.damaged,
        "lost": report.lost,
        "findings": findings,
        "repairs": repairs,
        "proof": proof.map(|proof| json!({
            "dump": proof.dump.key,
            "now": proof.proof,
            "recorded": proof.recorded,
            "differences": proof.differences.iter().map(|difference| json!({ "what": difference.what, "recorded": difference.recorded, "now": difference.now })).collect::<Vec<_>>(),
        })),
        "errors": [],
    });
    Outcome::new(exit, lines.join("\n"), fields)
}
