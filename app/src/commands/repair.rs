use super::{externals, library};
use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::backup::Source;
use immich_backup_core::repair::{
    self, Branch, Decision, Found, Heal, HealReport, Healing, IdentityRepair, LibraryOptions, LibrarySource, LogPlan, LogReport, ObjectsOptions, ObjectsPlan,
    ObjectsReport, Refusal, Told,
};
use immich_backup_core::repository::log::EpochFact;
use immich_backup_core::repository::manifest::{EpochRow, Manifest, ManifestError};
use immich_backup_core::repository::place::without_secrets;
use immich_backup_core::repository::state::{StateFolder, place_of};
use immich_backup_core::repository::store::Store;
use immich_backup_core::repository::{OpenError, Repository, Session};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// Things of one kind that people are shown; JSON has more.
const SHOWN_MAX: usize = 20;

/// What was planned and done, part by part.
#[derive(Default)]
struct Said {
    lines: Vec<String>,
    fields: Map<String, Value>,
    /// The log is not as it should be.
    is_log_open: bool,
    /// Something stays damaged.
    is_damaged: bool,
    /// Something could be done and was not, since nobody said --apply.
    could: bool,
}

impl Said {
    fn field(&mut self, name: &str, value: Value) {
        self.fields.insert(name.to_owned(), value);
    }

    fn outcome(mut self, apply: bool) -> Outcome {
        let exit = if self.is_log_open {
            Exit::LogDamaged
        } else if self.is_damaged || self.could {
            Exit::Damaged
        } else {
            Exit::Done
        };
        if self.could && !apply {
            self.lines.push("nothing was changed: say --apply to do it".to_owned());
        }
        self.field("applied", json!(apply));
        self.fields.entry("errors").or_insert_with(|| json!([]));
        Outcome::new(exit, self.lines.join("\n"), Value::Object(self.fields))
    }
}

/// Goes on after the log was damaged, and brings back what is damaged in the store or in the library.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let apply = app.settings.switch("apply")?;
    let decision = decision(app)?;
    let sources = sources(app)?;
    let store = app.store().await?;
    let mut said = Said::default();
    let Some(repository) = identity(app, store, apply, &mut said).await? else { return Ok(said.outcome(apply)) };
    let state = app.state(&repository)?;
    if !log(app, &repository, &state, &decision, apply, &mut said).await? {
        return Ok(said.outcome(apply));
    }
    if app.settings.switch("source")? {
        heal_library(app, repository, state, sources, apply, &mut said).await?;
    } else {
        heal_objects(app, repository, state, sources, apply, &mut said).await?;
    }
    Ok(said.outcome(apply))
}

/// The repairs that the log has been through, for people and for programs.
pub fn repairs(manifest: &Manifest) -> Result<(Vec<String>, Value), ManifestError> {
    let epochs = manifest.epochs()?;
    let line = |epoch: &EpochRow| {
        let EpochFact { at, host, reason, rejected_count, missing_count, .. } = &epoch.fact;
        let (rejected, base) = (screen::count(*rejected_count), epoch.sequence.saturating_sub(1));
        let missing = if *missing_count > 0 { format!(", {} entries missing", screen::count(*missing_count)) } else { String::new() };
        let (host, reason) = (host.escape_debug(), reason.escape_debug());
        format!("epoch {} after entry {base}, on `{host}` {} ({at:.0}): {rejected} objects rejected{missing}; {reason}", epoch.number, screen::age(*at))
    };
    let fields = epochs.iter().map(|epoch| json!({ "epoch": epoch.number, "sequence": epoch.sequence, "writer": epoch.writer, "fact": epoch.fact }));
    Ok((epochs.iter().map(line).collect(), fields.collect()))
}

fn decision(app: &App) -> Result<Decision, UsageError> {
    let decision = Decision {
        reject_from: app.settings.parsed("reject-from")?,
        reject_epoch: app.settings.parsed("reject-epoch")?,
        keep: app.settings.text("keep").map(str::to_owned),
        accept_epoch: app.settings.parsed("accept-epoch")?,
    };
    let rejects = decision.reject_from.is_some() || decision.reject_epoch.is_some();
    if decision.accept_epoch.is_some() && (rejects || decision.keep.is_some()) {
        return Err(UsageError("--accept-epoch goes alone: what somebody else has repaired counts, or it does not".to_owned()));
    }
    if decision.keep.as_ref().is_some_and(String::is_empty) {
        return Err(UsageError("--keep takes the beginning of a run's id, as the plan shows it".to_owned()));
    }
    Ok(decision)
}

/// The folders that healing looks into: none where no library is named.
fn sources(app: &App) -> anyhow::Result<Vec<LibrarySource>> {
    let externals = externals(app)?;
    let mut sources = Vec::new();
    if app.settings.text("library").is_some() || app.settings.switch("source")? {
        let Source { root, path, mounts, .. } = library(app, None)?;
        sources.push(LibrarySource { root, path, mounts });
    }
    sources.extend(externals.into_iter().map(|external| {
        let Source { root, path, mounts, .. } = external.source();
        LibrarySource { root, path, mounts }
    }));
    Ok(sources)
}

/// Opens the repository; where `format.json` is missing, it is brought back from the state folder.
async fn identity(app: &App, store: Arc<dyn Store>, apply: bool, said: &mut Said) -> anyhow::Result<Option<Repository>> {
    let error = match Repository::open(Arc::clone(&store)).await {
        Ok(repository) => return Ok(Some(repository)),
        Err(error @ (OpenError::NoRepository { .. } | OpenError::DamagedIdentity { .. } | OpenError::UnknownFormat { .. })) => error,
        Err(error) => return Err(error.into()),
    };
    let base = app.state_base();
    let state = StateFolder::remembered(&base, store.url()).and_then(|repository| StateFolder::existing(&base, repository));
    match repair::repair_identity(store.as_ref(), state.as_ref(), apply).await? {
        IdentityRepair::Restorable(id) if apply => {
            said.lines.push(format!("`format.json` of repository {id} was created again, byte for byte"));
            said.lines.push("  nothing else was looked at yet: `immich-backup repair` shows whether the log is as it should be".to_owned());
            said.field("identity", json!("created"));
            Ok(None)
        }
        IdentityRepair::Restorable(id) => {
            said.lines.push(format!("`format.json` is missing; the state folder has the bytes of repository {id}, and it can be created again"));
            said.field("identity", json!("missing"));
            (said.is_log_open, said.could) = (true, true);
            Ok(None)
        }
        IdentityRepair::Taken(kept) => {
            said.lines.push(format!(
                "`format.json` at `{}` holds other bytes than it did, and nothing is overwritten: with credentials that may, put the bytes of `{}` there, or take that version back at the store",
                without_secrets(store.url()),
                kept.display()
            ));
            said.field("identity", json!("damaged"));
            said.is_log_open = true;
            Ok(None)
        }
        IdentityRepair::Nothing => {
            let message = "there is no log either: it is not only `format.json` that is missing, but all of the repository".to_owned();
            app.monitor.emit(immich_backup_core::event::Event::Warned { message });
            Err(error.into())
        }
        IdentityRepair::Unknown => {
            let place = place_of(&base, store.url());
            let hint = format!(
                "no state folder of this machine has the bytes of `format.json` (looked for by `{}`); run this where backups were made from, or bring it back from the store's versions or a second copy: the log names its SHA-256, and no other bytes will do",
                place.display()
            );
            app.monitor.emit(immich_backup_core::event::Event::Warned { message: hint });
            Err(error.into())
        }
    }
}

/// Whether the log can be read, by now.
async fn log(app: &App, repository: &Repository, state: &StateFolder, decision: &Decision, apply: bool, said: &mut Said) -> anyhow::Result<bool> {
    let plan = repair::prepare_log(repository, state, decision).await?;
    let lines = log_lines(&plan);
    said.field("log", log_fields(&plan));
    if plan.is_empty() {
        said.lines.extend(lines);
        return Ok(true);
    }
    if !apply {
        said.lines.extend(lines);
        said.is_log_open = true;
        said.could = plan.survey.branches.is_empty() && plan.refused.is_none();
        return Ok(false);
    }
    if !app.json && !app.settings.switch("quiet")? {
        screen::print_error(&lines.join("\n"));
    }
    let busy = || repair::RepairError::Busy { who: "another process on this machine holds its state folder".to_owned() };
    let lock = state.try_lock().map_err(OpenError::from)?.ok_or_else(busy)?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // The first plan has been shown; a later round shows its own.
    let (mut is_first, is_shown) = (true, !app.json && !app.settings.switch("quiet")?);
    let show = |plan: &LogPlan| {
        if is_shown && !std::mem::take(&mut is_first) {
            screen::print_error(&log_lines(plan).join("\n"));
        }
    };
    let LogReport { opened, accepted } = repair::repair_log(repository, state, decision, &host, show).await?;
    drop(lock);
    for (epoch, _) in &opened {
        said.lines.push(format!("the log goes on: epoch {epoch} was opened"));
    }
    if let Some(epoch) = accepted {
        said.lines.push(format!("epoch {epoch} is accepted here; what it rejects does not count any more"));
    }
    if !opened.is_empty() {
        said.lines.push("  run a backup now: what the rejected entries spoke of is found in the store and taken up, not sent again".to_owned());
        said.lines.push("  other machines that have seen what was rejected stop until they are told: `immich-backup repair --accept-epoch`".to_owned());
    }
    said.field("opened", json!(opened.iter().map(|(epoch, _)| epoch).collect::<Vec<_>>()));
    said.field("accepted", json!(accepted));
    Ok(true)
}

fn told_text(told: &Told) -> String {
    let mut parts =
        vec![format!("{} stored ({})", screen::files(told.stored), screen::bytes(told.bytes)), format!("{} archived", screen::count(told.archived))];
    if !told.snapshots.is_empty() {
        let shown = told.snapshots.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
        parts.push(format!("snapshots {shown}"));
    }
    if told.dumps > 0 {
        parts.push(format!("{} dumps", screen::count(told.dumps)));
    }
    let others =
        [(told.damaged, "found damaged"), (told.relocated, "stored again elsewhere"), (told.pruned, "pruned: where they are gone, older snapshots miss them")];
    parts.extend(others.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{} objects {what}", screen::count(count))));
    parts.join(", ")
}

fn branch_lines(branch: &Branch) -> Vec<String> {
    let host = branch.host.as_ref().map_or_else(String::new, |host| format!(" on `{}`", host.escape_debug()));
    vec![
        format!("  --keep {}{host}", branch.name),
        format!("    {} entries, from {:.0} to {:.0}; `{}` is the first", screen::count(branch.entries), branch.first_at, branch.last_at, branch.key),
        format!("    {}", told_text(&branch.told)),
    ]
}

fn log_lines(plan: &LogPlan) -> Vec<String> {
    let survey = &plan.survey;
    if plan.is_empty() {
        let epochs = survey.openings.len();
        let repaired = if epochs == 0 { String::new() } else { format!(", repaired {epochs} times before") };
        return vec![format!("log: {} entries, one chain{repaired}", screen::count(survey.end.sequence))];
    }
    let mut lines = Vec::new();
    if let Some(refused) = plan.refused.as_ref().map(Refusal::error) {
        lines.push(format!("log: {refused}"));
        lines.extend(refused.hint().iter().map(|hint| format!("  {hint}")));
    }
    lines.extend(survey.problems.iter().take(SHOWN_MAX).map(|problem| format!("log: {problem}")));
    if let Some((epoch, host, at, _)) = &plan.accepts {
        lines.push(format!("  epoch {epoch}, opened on `{}` at {at:.0}, will be accepted here", host.escape_debug()));
    }
    if !survey.branches.is_empty() {
        lines.push("  which one is to count, nobody but you can say:".to_owned());
        lines.extend(survey.branches.iter().flat_map(branch_lines));
        return lines;
    }
    let Some(epoch) = plan.opens else { return lines };
    let end = survey.end;
    let of = if end.epoch == 0 { String::new() } else { format!(" of epoch {}", end.epoch) };
    lines.push(format!("  the last good entry is {}{of}; the log will go on after it, as epoch {epoch}", end.sequence));
    if survey.missing_count > 0 {
        lines.push(format!("  entries that are missing: {}; what only they said is lost, where no backup says it again", screen::count(survey.missing_count)));
    }
    lines.push(format!("  objects that will not be part of the log any more (they stay where they are): {}", screen::count(survey.rejected_count)));
    for rejected in survey.rejected.iter().take(SHOWN_MAX) {
        lines.push(format!("    {}  {}  {}", rejected.key, screen::bytes(rejected.size), rejected.why));
    }
    if survey.told.facts > 0 {
        lines.push(format!("  the intact ones among them state: {}", told_text(&survey.told)));
        lines.push(
            "    files that are still in the library are found in the store and taken up by the next backup; snapshots, dumps and archived files".to_owned(),
        );
        lines.push("    that only these entries name are not part of any snapshot any more, though their objects stay".to_owned());
    }
    lines
}

fn log_fields(plan: &LogPlan) -> Value {
    let survey = &plan.survey;
    json!({
        "last_good": survey.end,
        "problems": survey.problems,
        "refused": plan.refused.as_ref().map(|refused| refused.error().to_string()),
        "opens_epoch": plan.opens,
        "accepts_epoch": plan.accepts.as_ref().map(|(epoch, ..)| epoch),
        "rejected_count": survey.rejected_count,
        "rejected": survey.rejected,
        "missing_count": survey.missing_count,
        "told": survey.told,
        "branches": survey.branches,
    })
}

async fn heal_objects(app: &App, repository: Repository, state: StateFolder, sources: Vec<LibrarySource>, apply: bool, said: &mut Said) -> anyhow::Result<()> {
    let has_library = !sources.is_empty();
    // A plan can be made beside a run.
    let mut session = match apply {
        true => repair::open(repository, state, app.monitor.as_ref()).await?,
        false => Session::open_for_reading(repository, state, app.monitor.as_ref()).await?,
    };
    app.note(&session);
    let plan = repair::prepare_objects(&session, ObjectsOptions { sources }, app.monitor.as_ref(), &app.stop).await?;
    let listed = session.manifest.last_verification("listed", 1)?.map_or_else(|| "never".to_owned(), |look| screen::age(look.at));
    if plan.objects.is_empty() {
        said.lines.push(format!("objects: none is known to be damaged (last looked at by `verify`: {listed})"));
    } else {
        said.lines.push(format!(
            "objects: {} are known to be damaged, {} can be healed (last looked at by `verify`: {listed})",
            plan.objects.len(),
            plan.healable()
        ));
        said.lines.extend(plan.objects.iter().take(SHOWN_MAX).flat_map(|wanted| object_lines(wanted, has_library)));
    }
    said.could |= plan.healable() > 0 && !apply;
    said.is_damaged |= plan.lost().next().is_some();
    said.field("objects", json!(plan.objects));
    if apply {
        let report = plan.run(&mut session, app.monitor.as_ref(), &app.stop).await?;
        app.note(&session);
        said.is_damaged |= !report.failures.is_empty();
        said.lines.extend(objects_done(&plan, &report));
        said.field("healed", json!(report));
    }
    Ok(())
}

fn object_lines(wanted: &repair::Wanted, has_library: bool) -> Vec<String> {
    let state = if wanted.is_missing { "missing" } else { "damaged" };
    let what = match &wanted.found {
        Found::Whole => "whole after all; the log will say so".to_owned(),
        Found::Object { key } => format!("its content is whole in `{key}`, which will take its place"),
        Found::File { path } if wanted.is_missing => format!("will be stored again from `{path}`"),
        Found::File { path } => format!("will be stored again from `{path}`, under another key that takes its place"),
        Found::Nowhere { remark } if has_library || wanted.content.is_none() => format!("LOST: {remark}"),
        Found::Nowhere { .. } => "not found without a library: say --library".to_owned(),
    };
    let mut lines = vec![format!("  {state}  {}", wanted.key), format!("    {what}")];
    if matches!(wanted.found, Found::Nowhere { .. }) && !wanted.files.is_empty() {
        lines.push(format!("    it is the content of {}", wanted.files.join(", ")));
    }
    lines
}

fn objects_done(plan: &ObjectsPlan, report: &ObjectsReport) -> Vec<String> {
    let mut lines = Vec::new();
    if plan.healable() > 0 {
        let sent = screen::bytes(report.bytes);
        lines.push(format!("healed: {} stored again, {} in another's place, {} whole after all; {sent} sent", report.created, report.relocated, report.whole));
    }
    lines.extend(report.failures.iter().take(SHOWN_MAX).map(|(key, problem)| format!("  not healed  {key}: {problem}")));
    lines
}

async fn heal_library(app: &App, repository: Repository, state: StateFolder, sources: Vec<LibrarySource>, apply: bool, said: &mut Said) -> anyhow::Result<()> {
    // Nothing is written to the log: a run may be under way.
    let session = Session::open_for_reading(repository, state, app.monitor.as_ref()).await?;
    app.note(&session);
    let keep_damaged = app.settings.text("keep-damaged").map(PathBuf::from);
    let options = LibraryOptions { sources, read_data: app.settings.switch("read-data")?, keep_damaged };
    let plan = repair::prepare_library(&session, options, app.monitor.as_ref(), &app.stop).await?;
    said.lines.extend(library_lines(&plan));
    said.field("files", json!(plan.files));
    said.field("left_alone", json!(plan.left));
    said.field("remarks", json!(plan.remarks));
    said.could |= !plan.files.is_empty() && !apply;
    said.is_damaged |= plan.is_partial;
    if apply && !plan.files.is_empty() {
        let report = plan.run(&session, app.monitor.as_ref(), &app.stop).await?;
        said.is_damaged |= !report.failures.is_empty();
        said.lines.extend(library_done(&plan, &report));
        said.field("healed", json!(report));
        if let Some(error) = report.ended_by {
            // What was done until then is said all the same.
            screen::print_error(&said.lines.join("\n"));
            return Err(error.into());
        }
    }
    Ok(())
}

fn library_lines(plan: &Heal) -> Vec<String> {
    let mut lines: Vec<String> = plan.remarks.iter().map(|remark| format!("  {remark}")).collect();
    if plan.files.is_empty() {
        let known = if plan.is_partial { "no file was found" } else { "no file is known" };
        lines.push(format!("library: {known} to be damaged or lost that the repository could bring back"));
    } else {
        lines.push(format!("library: {} can be brought back", screen::files(plan.files.len() as u64)));
    }
    for file in plan.files.iter().take(SHOWN_MAX) {
        let why = match file.why {
            Healing::BitRot => "other content than was stored, though size and time are the same",
            Healing::Contradicts if file.live_mtime_ns.is_some_and(|live| live > file.stored_mtime_ns) => {
                "other content than Immich recorded, and changed later than what is stored: edited on purpose?"
            }
            Healing::Contradicts => "other content than Immich recorded; what is stored is right",
            Healing::Missing => "Immich names it, and it is not there",
        };
        let time = |ns: i64| Timestamp::from_nanosecond(ns.into()).map_or_else(|_| ns.to_string(), |at| format!("{at:.0}"));
        let live = file.live_mtime_ns.map_or_else(String::new, |live| format!("; the live file is of {}", time(live)));
        lines.push(format!("  {}  {}  {why}; from `{}` of {}{live}", file.file, screen::bytes(file.size_bytes), file.key, time(file.stored_mtime_ns)));
    }
    lines.extend(plan.left.iter().take(SHOWN_MAX).map(|(path, reason)| format!("  left alone  {path}: {reason}")));
    lines
}

fn library_done(plan: &Heal, report: &HealReport) -> Vec<String> {
    let mut lines = vec![format!("brought back: {}", screen::files(report.healed.len() as u64))];
    if !report.kept.is_empty() {
        lines.push(format!("  the damaged bytes are kept in `{}`; remove them when you have looked at the photos", plan.keep_damaged.display()));
    }
    lines.extend(report.failures.iter().take(SHOWN_MAX).map(|(path, problem)| format!("  not brought back  {path}: {problem}")));
    lines
}
