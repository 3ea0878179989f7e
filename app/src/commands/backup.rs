use crate::app::{App, Outcome};
use crate::commands::shard;
use crate::config::{Origin, UsageError};
use crate::database::{self, Said, Wanted};
use crate::exit::Exit;
use crate::screen;
use crate::services;
use crate::stack::{self, Externals, Findings, Stack};
use immich_backup_core::backup::{self, Counts, Database, Downtime, Ending, NotUp, Plan, Report, Source};
use immich_backup_core::database::client::Client;
use immich_backup_core::database::compress::Compression;
use immich_backup_core::event::Event;
use immich_backup_core::library::scope::Scope;
use immich_backup_core::model::{ExternalName, InvalidPath, Root};
use immich_backup_core::prune::{self, AfterRun};
use immich_backup_core::repository::log::Tally;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::{InitError, OpenError, Repository, Session};
use immich_backup_core::retention::Policy;
use immich_backup_core::stack::copies::Copied;
use immich_backup_core::stack::services::Intent;
use immich_backup_core::verdict::{NamedVerdict, Proof, Verdict};
use immich_backup_core::verify;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Walking is bound by the disk's latency, not by cores.
const WALKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

/// The folder of copies of the stack's configuration, in the repository's state folder.
const CONFIGURATION: &str = "config";

/// Backs up.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let dry = app.settings.switch("dry-run")?;
    let stops = app.settings.switch("stop-services")?;
    if !dry {
        services::recover_before_run(app).await;
    }
    let place = app.place()?;
    let findings = stack::find(app).await?;
    let mut plan = plan(app, findings.as_ref())?;
    // Whatever can be found out is, before anything is stopped.
    let stopped = if stops { Some(Arc::new(services::stopped(app, dry).await?)) } else { None };
    plan.downtime = stopped.clone().map(|stopped| stopped as Arc<dyn Downtime>);
    add_stopped(app, &mut plan)?;
    let repository = if let Place::Directory(path) = &place { Some(path.as_path()) } else { None };
    backup::refuse_overlap(&plan, repository, &app.state_base())?;
    let policy = super::prune::retention(app)?;
    let mut wanted = database::wanted(app, Said::Anywhere).await?;
    if let (Wanted::Unsaid, Some(findings)) = (&wanted, &findings)
        && let Some(client) = findings.client(app).await?
    {
        wanted = Wanted::Database(Box::new(client));
    }
    let without_database = matches!(wanted, Wanted::Unsaid);
    if let Wanted::Database(client) = wanted {
        plan.database = Some(database_plan(app, *client, findings.as_ref())?);
    }
    let (said, externals) = (plan.sources.clone(), externals(app, findings.as_ref(), &plan).await?);
    if let Some(findings) = &findings {
        plan.sources.extend(findings.external_sources(app, &externals, &said, &plan.drop_externals, None)?);
        backup::refuse_overlap(&plan, repository, &app.state_base())?;
    }
    let repository = open_or_init(app).await?;
    let state = app.state(&repository)?;
    let mut session = backup::open(repository, state, plan.wait, app.monitor.as_ref(), &app.stop).await?;
    app.note(&session);
    let mut configuration = None;
    if let Some(findings) = &findings {
        // Named as they were before.
        let known = backup::known_externals(&session)?;
        let externals = findings.external_sources(app, &externals, &said, &plan.drop_externals, Some(&known))?;
        plan.sources = said.into_iter().chain(externals).collect();
        configuration = copy_configuration(app, &findings.stack, &session, &mut plan).await?;
    } else if let Some(stack) = stack::beside(app).await {
        configuration = copy_configuration(app, &stack, &session, &mut plan).await?;
    }
    if dry {
        let would_stop = match &stopped {
            Some(stopped) => Some(stopped.intent().await?),
            None => None,
        };
        let would_dump = match &plan.database {
            Some(database) => Some(dump_text(&database.client).await?),
            None => None,
        };
        let report = tokio::task::block_in_place(|| backup::dry_run(&session, &plan, &app.monitor, &app.stop))?;
        return Ok(outcome(&report, &After { without_database, would_dump, would_stop, pruned_dumps: 0, configuration }, started.elapsed()));
    }
    look_at_objects(app, &mut session).await?;
    if let Some(database) = plan.database.as_ref().filter(|_| stops) {
        // Not while Immich is down: that it cannot be dumped.
        dump_text(&database.client).await?;
    }
    let report = backup::run(&mut session, &plan, &app.monitor, &app.stop).await?;
    // A prune that hangs or fails takes nothing from what is known of the backup.
    app.note(&session);
    let pruned_dumps = if report.ending == Ending::Snapshot { prune_dumps(app, &mut session, &policy).await } else { 0 };
    Ok(outcome(&report, &After { without_database, pruned_dumps, would_dump: None, would_stop: None, configuration }, started.elapsed()))
}

/// What is to be told besides the report of the run itself.
#[derive(Debug)]
struct After {
    /// Nobody said anything of a database.
    without_database: bool,
    /// Dumps that the policy removed.
    pruned_dumps: u64,
    /// In a dry run: which database would be dumped, and by what.
    would_dump: Option<String>,
    /// In a dry run: which services would be stopped.
    would_stop: Option<Intent>,
    /// What became of the stack's configuration, where there is a stack.
    configuration: Option<Copied>,
}

/// Where external libraries are, as the database says.
async fn externals(app: &App, findings: Option<&Findings>, plan: &Plan) -> anyhow::Result<Externals> {
    match findings {
        Some(findings) => findings.externals(app, plan.database.as_ref().map(|database| &database.client)).await,
        None => Ok(Externals::default()),
    }
}

/// Copies the stack's configuration into the state folder, and adds the copies to what is backed up. What goes wrong there is told and stops nothing.
async fn copy_configuration(app: &App, stack: &Stack, session: &Session, plan: &mut Plan) -> anyhow::Result<Option<Copied>> {
    let folder = session.state.folder().join(CONFIGURATION);
    let copied = match stack.copy_configuration(&folder, app.settings.switch("with-secrets")?).await {
        Ok(copied) => copied,
        Err(error) => {
            let problem = format!("the stack's configuration cannot be copied to `{}`: {error}", folder.display());
            app.monitor.emit(Event::Warned { message: problem.clone() });
            return Ok(Some(Copied { problems: vec![problem], ..Copied::default() }));
        }
    };
    for problem in &copied.problems {
        app.monitor.emit(Event::Warned { message: format!("configuration: {problem}") });
    }
    if !copied.files.is_empty() {
        plan.sources.push(Source { root: Root::Config, path: folder, server_path: None, mounts: Vec::new() });
    }
    Ok(Some(copied))
}

/// The database, and what would dump it: asked, so that a dry run finds what is wrong there too.
async fn dump_text(client: &Client) -> anyhow::Result<String> {
    let (server, (major, minor)) = (client.server().await?, client.pg_dump_version().await?);
    Ok(format!("{}, {}, PostgreSQL {}, by pg_dump {major}.{minor}", client.target(), screen::bytes(server.database_bytes), server.short_version()))
}

fn database_plan(app: &App, client: Client, findings: Option<&Findings>) -> anyhow::Result<Database> {
    let settings = &app.settings;
    let compression = match settings.text("compression") {
        None | Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        Some(other) => return Err(UsageError(format!("--compression takes `gzip` or `zstd`, not `{other}`")).into()),
    };
    let text = |name| settings.text(name).map(str::to_owned);
    Ok(Database {
        client,
        compression,
        lock_wait: settings.time("lock-wait")?.unwrap_or_default(),
        media_location: text("media-location").or_else(|| findings.and_then(Findings::media_location)),
        external_ignore: settings.texts("external-ignore").to_vec(),
        immich_url: text("immich-url"),
    })
}

/// Removes older dumps, where a policy says so and the credentials may. The snapshot is committed by then: what goes wrong is a warning.
async fn prune_dumps(app: &App, session: &mut Session, policy: &Policy) -> u64 {
    let message = match prune::after_run(session, policy, &TimeZone::system(), app.monitor.as_ref(), &app.stop).await {
        Ok(AfterRun::Nothing) => return 0,
        Ok(AfterRun::Done(report)) => return report.removed,
        Ok(AfterRun::NotPermitted { dumps }) => {
            format!(
                "{} older dumps may go by --database-keep, and these credentials may not delete: run `immich-backup prune` with others now and then",
                dumps.files
            )
        }
        Ok(AfterRun::Postponed { who }) => format!("older dumps were not removed: another run has the repository: {who}"),
        Err(error) => format!("older dumps could not be removed: {error}"),
    };
    app.monitor.emit(Event::Warned { message });
    0
}

/// Lists the store where that was not done for long: what is lost is found before the walk, which stores it again.
async fn look_at_objects(app: &App, session: &mut Session) -> anyhow::Result<()> {
    let max_unseen = app.settings.time("max-unseen")?.unwrap_or_default();
    let last = session.manifest.last_verification("listed", 1)?.map(|listed| listed.at);
    let first = session.manifest.snapshot_times()?.into_iter().next().map(|(_, taken_at)| taken_at);
    // A repository that was never listed is as unseen as its first snapshot is old.
    let Some(since) = last.or(first) else { return Ok(()) };
    if shard::of(app)?.is_some_and(|shard| shard.part.part > 0) {
        // The first one does.
        return Ok(());
    }
    let age = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
    // Another machine may be at it: what is found would go into the log beside its run, which a store without conditions cannot keep apart.
    let own = shard::of(app)?.map(|shard| shard.run);
    let others = session.manifest.runs(1)?.into_iter().any(|run| run.outcome.is_none() && run.writer != session.writer && Some(run.id) != own);
    if age > max_unseen && !others {
        let plan = verify::Plan { depth: verify::Depth::Listing, workers: app.workers()?, record: true };
        let report = verify::run(session, plan, app.monitor.as_ref(), &app.stop).await?;
        if report.lost > 0 {
            let message = format!("{} objects are missing or not whole; this run stores again what the library still has of them", report.lost);
            app.monitor.emit(Event::Warned { message });
        }
    }
    Ok(())
}

async fn open_or_init(app: &App) -> anyhow::Result<Repository> {
    let make = app.settings.switch("init")? && !app.settings.switch("dry-run")?;
    match app.repository().await {
        Err(error) if make && matches!(error.downcast_ref(), Some(OpenError::NoRepository { .. })) => match app.make_repository().await {
            // Another shard was faster.
            Err(error) if shard::of(app)?.is_some() && matches!(error.downcast_ref(), Some(InitError::Exists { .. } | InitError::NotEmpty { .. })) => {
                app.repository().await
            }
            made => made,
        },
        other => other,
    }
}

fn plan(app: &App, findings: Option<&Findings>) -> anyhow::Result<Plan> {
    let settings = &app.settings;
    let library = super::library(app, findings)?;
    let externals = super::externals(app)?.into_iter().map(super::External::source);
    let sources: Vec<_> = std::iter::once(library).chain(externals).collect();
    let dropped = settings.texts("drop-external").iter().map(|name| name.parse()).collect::<Result<Vec<ExternalName>, InvalidPath>>();
    Ok(Plan {
        sources,
        database: None,
        scope: Scope {
            originals_only: settings.switch("originals-only")?,
            exclude: super::patterns(settings.texts("exclude"))?,
            include: super::patterns(settings.texts("include"))?,
            ..Scope::default()
        },
        workers: app.workers()?,
        walkers: WALKERS,
        rehash: settings.parsed("rehash")?,
        accept: settings.parsed("accept")?,
        drop_externals: dropped.map_err(|error| UsageError(error.to_string()))?,
        ignore_missing_markers: settings.switch("ignore-missing-markers")?,
        label: settings.text("label").map(str::to_owned),
        immich_version: settings.text("immich-version").map(str::to_owned).or_else(|| Some(findings?.stack.site.version()?.value)),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        wait: settings.time("wait")?.unwrap_or_default(),
        take_over: settings.switch("take-over")?,
        shard: shard::of(app)?,
        downtime: None,
        stage: None,
    })
}

/// What is done with a stopped Immich besides: a stage, and PostgreSQL's raw folder. The environment of many has names for both; while Immich runs they mean
/// nothing.
fn add_stopped(app: &App, plan: &mut Plan) -> Result<(), UsageError> {
    let settings = &app.settings;
    if plan.downtime.is_none() {
        let said_here = |name: &&str| settings.found(name).is_some_and(|found| found.origin == Origin::Flag);
        return match ["stage", "postgres-dir"].iter().find(|name| said_here(name)) {
            Some(name) => Err(UsageError(format!("--{name} goes with --stop-services: a running Immich changes what is copied"))),
            None => Ok(()),
        };
    }
    plan.stage = settings.text("stage").map(PathBuf::from);
    let postgres = settings.text("postgres-dir").map(PathBuf::from);
    plan.sources.extend(postgres.map(|path| Source { root: Root::Postgres, path, server_path: None, mounts: Vec::new() }));
    Ok(())
}

fn exit(report: &Report) -> Exit {
    if report.not_up.is_some() {
        return Exit::Failed;
    }
    match report.ending {
        Ending::Interrupted => Exit::Interrupted,
        Ending::Withheld { .. } => Exit::Withheld,
        // What it found wrong is in the log: the one that makes the snapshot says it for all.
        Ending::Shard { .. } => Exit::Done,
        Ending::Snapshot | Ending::DryRun if report.is_complete() => Exit::Done,
        Ending::Snapshot | Ending::DryRun => Exit::Incomplete,
    }
}

fn outcome(report: &Report, after: &After, elapsed: Duration) -> Outcome {
    let exit = exit(report);
    Outcome::new(exit, text(report, after, elapsed), fields(report, after, elapsed))
}

fn text(report: &Report, after: &After, elapsed: Duration) -> String {
    let Counts { seen, unchanged, touched, new, changed, known, sent, adopted, archived, special, unread, bit_rot, doubtful } = &report.counts;
    let seconds = elapsed.as_secs_f64();
    let first = match &report.ending {
        Ending::Snapshot => {
            format!("snapshot {} · {} · {} sent · {seconds:.1} s", report.run.short(), screen::tally(report.totals.all()), screen::bytes(sent.bytes))
        }
        Ending::Withheld { reason } => format!(
            "no snapshot: {reason}.\nEverything new is stored and nothing was archived. If this was meant, run the same command with\n  --accept {}",
            report.run
        ),
        Ending::Interrupted => format!("interrupted: {} is stored, and the next run goes on from there", screen::tally(*sent)),
        Ending::DryRun => "dry run: nothing was done".to_owned(),
        Ending::Shard { waiting_for } => shard::headline(report, waiting_for, seconds),
    };
    let mut lines: Vec<String> = report.proof.as_ref().map(Proof::headline).into_iter().collect();
    lines.push(first);
    let mut add = |name: &str, value: Tally| {
        if value.files > 0 {
            lines.push(format!("  {name:<10} {}", screen::tally(value)));
        }
    };
    add("seen", *seen);
    add("unchanged", *unchanged);
    add("new", *new);
    add("changed", *changed);
    add("moved", *known);
    add("touched", *touched);
    add("taken up", *adopted);
    add("archived", *archived);
    if *special > 0 {
        lines.push(format!("  {:<10} {} links, sockets, pipes or devices", "passed by", screen::count(*special)));
    }
    if *unread > 0 {
        lines.push(format!("  {:<10} {} files or folders could not be read:", "MISSING", screen::count(*unread)));
        lines.extend(named(report.unread.iter().map(|unread| format!("{}: {}", unread.path, unread.problem))));
    }
    if *bit_rot > 0 {
        lines.push(format!("  {:<10} {} files differ from what was stored, though size and times are the same:", "DAMAGED?", screen::count(*bit_rot)));
        lines.extend(named(report.bit_rot.iter().map(ToString::to_string)));
        lines.push(
            "             the stored version stays, and `restore --path FILE --to DIR` brings it back; if the change was meant, `touch` the file".to_owned(),
        );
    }
    if *doubtful > 0 {
        lines.push(format!("  {:<10} {} with other content than Immich recorded:", "DAMAGED", screen::files(*doubtful)));
        lines.extend(named(report.doubtful.iter().map(ToString::to_string)));
        lines.push(
            "             each is stored beside the good version, which stays; bring that back with `restore --path FILE --to DIR`, and put it in its place"
                .to_owned(),
        );
    }
    if let Some(proof) = &report.proof {
        lines.extend(proof_lines(proof));
    }
    lines.extend(dump_lines(report, after));
    lines.extend(downtime_ms(report).map(|downtime| format!("  {:<10} Immich, for {}", "was down", screen::seconds(downtime))));
    if let Some(NotUp { problem, hint }) = &report.not_up {
        lines.push(format!("  {:<10} Immich is not up again: {problem}", "DOWN"));
        lines.extend(hint.iter().map(|hint| format!("             {hint}")));
    }
    lines.extend(service_lines(after));
    lines.extend(after.configuration.iter().flat_map(configuration_lines));
    lines.join("\n")
}

/// What the proof found that is not as it should be, by name.
pub(super) fn proof_lines(proof: &Proof) -> Vec<String> {
    let mut lines = Vec::new();
    let kinds = [
        (Verdict::Missing, "MISSING", proof.missing + proof.companions.missing, "files that the database names are not there"),
        (
            Verdict::Mismatched,
            "MISMATCHED",
            proof.mismatched,
            "files do not have the SHA-1 that Immich recorded, and the right content does not stand in the snapshot",
        ),
        (
            Verdict::Outside,
            "outside",
            proof.outside,
            "assets lie in external libraries that were not included (--external NAME=DIR:SERVER_DIR, or --external-ignore NAME)",
        ),
        (Verdict::Untracked, "untracked", proof.untracked, "files that no row of the database names (stored all the same)"),
    ];
    for (verdict, name, count, what) in kinds {
        if count == 0 {
            continue;
        }
        lines.push(format!("  {name:<10} {} {what}:", screen::count(count)));
        let of_kind: Vec<_> = proof.named.iter().filter(|named| named.verdict == verdict).collect();
        let kept = |named: &NamedVerdict| if named.kept { " (an earlier backup has it: `find` and `restore` bring it back)" } else { "" };
        lines.extend(named(of_kind.iter().map(|named| format!("{}{}", named.path, kept(named)))));
    }
    lines
}

fn dump_lines(report: &Report, after: &After) -> Vec<String> {
    if let Some(text) = &after.would_dump {
        return vec![format!("  {:<10} {text}", "to dump")];
    }
    let Some(dump) = &report.dump else {
        let text = "  NO DATABASE: files alone do not bring Immich back. Give --database URL or --database-container NAME, or say --no-database";
        return if report.ending == Ending::Snapshot && after.without_database { vec![text.to_owned()] } else { Vec::new() };
    };
    let mut lines = vec![format!("  {:<10} {}, {} rows, {}", "database", dump.key, screen::count(dump.rows), screen::bytes(dump.size))];
    if !dump.without_data.is_empty() {
        let tables = dump.without_data.join(", ");
        lines.push(format!("  {:<10} the rows of {tables} could not be dumped: the database is damaged there. Immich can make them again (its jobs Smart Search and Face Detection)", "DAMAGED"));
    }
    if after.pruned_dumps > 0 {
        lines.push(format!("  {:<10} {} older dumps, as --database-keep says", "removed", screen::count(after.pruned_dumps)));
    }
    lines
}

fn service_lines(after: &After) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(intent) = &after.would_stop {
        lines.push(format!("  {:<10} {}", "to stop", if intent.stopped.is_empty() { "nothing".to_owned() } else { intent.stopped.join(", ") }));
        lines.extend(intent.left.iter().map(|(name, why)| format!("  {:<10} {name}: {why}", "left alone")));
    }
    lines
}

fn configuration_lines(copied: &Copied) -> Vec<String> {
    let mut lines = Vec::new();
    if !copied.files.is_empty() {
        let secrets = match copied.redacted {
            0 => String::new(),
            count => format!(", {} secrets left out", screen::count(count)),
        };
        lines.push(format!("  {:<10} {} of the stack{secrets}", "config", screen::files(copied.files.len() as u64)));
    }
    lines.extend(copied.problems.iter().map(|problem| format!("  {:<10} {problem}", "NOT STORED")));
    lines
}

/// How many names a summary for people shows.
pub(super) const SHOWN: usize = 20;

fn named(names: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = names.len().saturating_sub(SHOWN);
    let mut lines: Vec<_> = names.take(SHOWN).map(|name| format!("             {name}")).collect();
    if more > 0 {
        lines.push(format!("             … and {more} more"));
    }
    lines
}

/// From the first stop until all of Immich was up and healthy, in ms.
fn downtime_ms(report: &Report) -> Option<u64> {
    report.downtime.map(|downtime| u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX))
}

fn fields(report: &Report, after: &After, elapsed: Duration) -> Value {
    let counts = &report.counts;
    let named: [(&str, Tally); 8] = [
        ("seen", counts.seen),
        ("unchanged", counts.unchanged),
        ("new", counts.new),
        ("changed", counts.changed),
        ("known", counts.known),
        ("touched", counts.touched),
        ("sent", counts.sent),
        ("archived", counts.archived),
    ];
    let files: serde_json::Map<_, _> = named.iter().map(|(name, tally)| ((*name).to_owned(), json!(tally.files))).collect();
    let bytes: serde_json::Map<_, _> = named.iter().map(|(name, tally)| ((*name).to_owned(), json!(tally.bytes))).collect();
    let reason = if let Ending::Withheld { reason } = &report.ending { Some(reason) } else { None };
    json!({
        "run": report.run,
        "snapshot": (report.ending == Ending::Snapshot).then_some(report.run),
        "dry_run": report.ending == Ending::DryRun,
        "waiting_for_shards": if let Ending::Shard { waiting_for } = &report.ending { Some(waiting_for) } else { None },
        "files": files,
        "bytes": bytes,
        "adopted": counts.adopted,
        "special": counts.special,
        "totals": report.totals,
        "withheld": reason,
        "unread_count": counts.unread,
        "unread": report.unread,
        "bit_rot_count": counts.bit_rot,
        "bit_rot": report.bit_rot,
        "doubtful_count": counts.doubtful,
        "doubtful": report.doubtful,
        "dump": report.dump,
        "proof": report.proof,
        "downtime_ms": downtime_ms(report),
        "configuration": after.configuration.as_ref().map(|copied| json!({ "files": copied.files, "redacted": copied.redacted, "problems": copied.problems })),
        "pruned_dumps": after.pruned_dumps,
        "would_dump": after.would_dump,
        "would_stop": after.would_stop.as_ref().map(|intent| &intent.stopped),
        "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        "errors": report.not_up.iter().map(|not_up| json!({ "message": format!("Immich is not up again: {}", not_up.problem), "hint": not_up.hint })).collect::<Vec<_>>(),
    })
}
