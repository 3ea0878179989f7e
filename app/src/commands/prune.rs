use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::prune::{self, Derived, Options, Plan, Report};
use immich_backup_core::repository::log::Tally;
use immich_backup_core::retention::{PlannedDump, Policy, Within};
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// Removes what is not needed any more.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let options = Options { policy: policy(app)?, zone: TimeZone::system(), copies: true, derived: app.settings.switch("derived")? };
    let dry_run = app.settings.switch("dry-run")?;
    let repository = app.repository().await?;
    if dry_run {
        drop(repository);
        let reading = app.reading().await?;
        let plan = prune::prepare(&reading.session, &options).await?.plan;
        let text = format!("{}\ndry run: nothing was removed", plan_text(&plan));
        return Ok(Outcome::new(Exit::Done, text, fields(&Report { plan, ..Report::default() }, true)));
    }
    let state = app.state(&repository)?;
    let wait = app.settings.time("wait")?.unwrap_or_default();
    let mut session = prune::open(repository, state, wait, app.monitor.as_ref(), &app.stop).await?;
    app.note(&session);
    let prepared = prune::prepare(&session, &options).await?;
    if !app.json && !app.settings.switch("quiet")? {
        screen::print_error(&plan_text(&prepared.plan));
    }
    let report = prepared.run(&mut session, app.monitor.as_ref(), &app.stop).await?;
    app.note(&session);
    let exit = match &report {
        Report { interrupted: true, .. } if app.stop.is_cancelled() => Exit::Interrupted,
        Report { interrupted: true, .. } => Exit::Incomplete,
        _ => Exit::Done,
    };
    Ok(Outcome::new(exit, text(exit, &report), fields(&report, false)))
}

/// Which dumps stay: the `--keep` rules; where there are none, what holds at the end of each backup.
fn policy(app: &App) -> Result<Policy, UsageError> {
    let count = |name: &'static str| app.settings.parsed::<NonZeroU32>(name);
    let policy = Policy {
        last: count("keep-last")?,
        within: app.settings.parsed::<Within>("keep-within")?,
        daily: count("keep-daily")?,
        weekly: count("keep-weekly")?,
        monthly: count("keep-monthly")?,
        yearly: count("keep-yearly")?,
    };
    if policy.keeps_all() { retention(app) } else { Ok(policy) }
}

/// Which dumps stay when a backup ends: `--database-keep`, `DB_BACKUP_RETENTION`.
///
/// # Errors
/// It cannot be understood, or would keep nothing.
pub fn retention(app: &App) -> Result<Policy, UsageError> {
    let text = app.settings.text("database-keep").unwrap_or_default();
    Policy::from_retention_text(text).map_err(|error| UsageError(format!("--database-keep (DB_BACKUP_RETENTION): {error}")))
}

fn plan_text(plan: &Plan) -> String {
    let mut lines = vec![format!("rules: {}", plan.rule)];
    lines.extend(plan.dumps.dumps.iter().map(dump_line));
    let of = |what: &str, tally: Tally| format!("  {what:<24} {}", amount(tally));
    lines.push(of("dumps to remove", plan.dumps_removed()));
    if !plan.copies.is_empty() {
        lines.push(of("old manifests to remove", plan.copies_removed()));
    }
    if let Some(derived) = &plan.derived {
        lines.extend(derived_lines(derived));
    }
    if plan.left_behind > 0 {
        lines.push(format!("  {:<24} {} objects that an earlier prune has left", "also", screen::count(plan.left_behind)));
    }
    lines.join("\n")
}

fn amount(tally: Tally) -> String {
    let objects = if tally.files == 1 { "object" } else { "objects" };
    format!("{} {objects}, {}", screen::count(tally.files), screen::bytes(tally.bytes))
}

fn dump_line(dump: &PlannedDump) -> String {
    let why: Vec<_> = dump.reasons.iter().map(ToString::to_string).collect();
    let (verb, why) = if dump.is_kept() { ("keep  ", why.join("; ")) } else { ("remove", "no rule keeps it".to_owned()) };
    let name = dump.key.rsplit('/').next().unwrap_or(&dump.key);
    format!("  {verb}  {name}  {:>12}  {:>10}  {why}", screen::age(dump.taken_at), screen::bytes(dump.size_bytes))
}

fn snapshots(count: u64) -> String {
    format!("{} old snapshot{}", screen::count(count), if count == 1 { "" } else { "s" })
}

/// Snapshots that are named on the screen; JSON has more.
const SNAPSHOTS_SHOWN: usize = 10;

fn derived_lines(derived: &Derived) -> Vec<String> {
    let mut lines = vec![format!("  {:<24} {}", "derived files to remove", amount(derived.objects))];
    if derived.snapshots > 0 {
        lines.push(format!("  {} will lack files that Immich can make again:", snapshots(derived.snapshots)));
        let shown = derived.lacking.iter().take(SNAPSHOTS_SHOWN);
        lines.extend(shown.map(|lacking| format!("    {}  {:.0}  {}", lacking.id.short(), lacking.taken_at, screen::tally(lacking.files))));
        let more = derived.snapshots.saturating_sub(SNAPSHOTS_SHOWN as u64);
        if more > 0 {
            lines.push(format!("    and {} more", screen::count(more)));
        }
    }
    lines
}

fn text(exit: Exit, report: &Report) -> String {
    let removed = screen::count(report.removed);
    let mut lines = vec![match exit {
        Exit::Done if report.plan.is_empty() => "nothing to remove".to_owned(),
        Exit::Done if report.plan.left_behind == 0 && report.needed == 0 => format!("removed {}", amount(report.plan.removed())),
        Exit::Done => format!("removed {removed} objects"),
        Exit::Interrupted => format!("interrupted after {removed} objects; the next `prune` goes on from there"),
        _ => format!("a run began meanwhile: removed {removed} objects; the next `prune` removes the rest"),
    }];
    if report.needed > 0 {
        lines.push(format!("  {} objects stay after all: something that is needed lies in them", screen::count(report.needed)));
    }
    if report.missed > 0 {
        lines.push(format!("  {} of these were gone already; the next `backup` stores their content again", screen::count(report.missed)));
    }
    if let Some(derived) = report.plan.derived.as_ref().filter(|derived| derived.snapshots > 0) {
        let (files, snapshots) = (screen::count(derived.files.files), snapshots(derived.snapshots));
        lines.push(format!("  {snapshots} will come back without {files} versions of files that Immich can make again; all else is as it was"));
    }
    lines.join("\n")
}

fn fields(report: &Report, dry_run: bool) -> Value {
    let plan = &report.plan;
    json!({
        "dry_run": dry_run,
        "rule": plan.rule,
        "dumps": plan.dumps.dumps.iter().map(dump_object).collect::<Vec<_>>(),
        "to_remove": { "dumps": plan.dumps_removed(), "manifests": plan.copies_removed(), "derived": plan.derived, "left_behind": plan.left_behind },
        "removed": report.removed,
        "needed": report.needed,
        "missed": report.missed,
        "errors": [],
    })
}

fn dump_object(dump: &PlannedDump) -> Value {
    json!({
        "key": dump.key,
        "taken_at": dump.taken_at,
        "size": dump.size_bytes,
        "snapshot": dump.snapshot,
        "keep": dump.is_kept(),
        "reasons": dump.reasons,
    })
}
