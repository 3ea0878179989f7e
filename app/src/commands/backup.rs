use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::backup::{self, Counts, Ending, Plan, Report, Source};
use immich_backup_core::library::scope::Scope;
use immich_backup_core::model::{ExternalName, InvalidPath, Root};
use immich_backup_core::repository::log::Tally;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::{OpenError, Repository};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Walking is bound by the disk's latency, not by cores.
const WALKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

/// Backs up.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let plan = plan(app)?;
    let place = app.place()?;
    let repository = if let Place::Directory(path) = &place { Some(path.as_path()) } else { None };
    backup::refuse_overlap(&plan, repository, &app.state_base())?;
    let repository = open_or_init(app).await?;
    let state = app.state(&repository)?;
    let mut session = backup::open(repository, state, plan.wait, app.monitor.as_ref(), &app.stop).await?;
    let report = if app.settings.switch("dry-run")? {
        tokio::task::block_in_place(|| backup::dry_run(&session, &plan, &app.monitor, &app.stop))?
    } else {
        backup::run(&mut session, &plan, &app.monitor, &app.stop).await?
    };
    Ok(outcome(&report, started.elapsed()))
}

async fn open_or_init(app: &App) -> anyhow::Result<Repository> {
    let make = app.settings.switch("init")? && !app.settings.switch("dry-run")?;
    match app.repository().await {
        Err(error) if make && matches!(error.downcast_ref(), Some(OpenError::NoRepository { .. })) => app.make_repository().await,
        other => other,
    }
}

fn plan(app: &App) -> anyhow::Result<Plan> {
    let settings = &app.settings;
    let library = Source { root: Root::Library, path: PathBuf::from(settings.required("library")?) };
    let externals = super::externals(app)?.into_iter().map(|(name, path)| Source { root: Root::External(name), path });
    let sources: Vec<_> = std::iter::once(library).chain(externals).collect();
    let dropped = settings.texts("drop-external").iter().map(|name| name.parse()).collect::<Result<Vec<ExternalName>, InvalidPath>>();
    Ok(Plan {
        sources,
        scope: Scope {
            originals_only: settings.switch("originals-only")?,
            exclude: super::patterns(settings.texts("exclude"))?,
            include: super::patterns(settings.texts("include"))?,
        },
        workers: app.workers()?,
        walkers: WALKERS,
        rehash: settings.parsed("rehash")?,
        accept: settings.parsed("accept")?,
        drop_externals: dropped.map_err(|error| UsageError(error.to_string()))?,
        ignore_missing_markers: settings.switch("ignore-missing-markers")?,
        label: settings.text("label").map(str::to_owned),
        immich_version: settings.text("immich-version").map(str::to_owned),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        wait: settings.time("wait")?.unwrap_or_default(),
        take_over: settings.switch("take-over")?,
    })
}

fn exit(report: &Report) -> Exit {
    match report.ending {
        Ending::Interrupted => Exit::Interrupted,
        Ending::Withheld { .. } => Exit::Withheld,
        Ending::Snapshot | Ending::DryRun if report.is_complete() => Exit::Done,
        Ending::Snapshot | Ending::DryRun => Exit::Incomplete,
    }
}

fn outcome(report: &Report, elapsed: Duration) -> Outcome {
    let exit = exit(report);
    Outcome::new(exit, text(report, elapsed), fields(report, elapsed))
}

fn text(report: &Report, elapsed: Duration) -> String {
    let Counts { seen, unchanged, touched, new, changed, known, sent, adopted, archived, special, unread, bit_rot } = &report.counts;
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
    };
    let mut lines = vec![first];
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
    if report.ending == Ending::Snapshot {
        lines.push("  the database is not part of this version's backups: keep Immich's own dumps (the folder backups/) elsewhere".to_owned());
    }
    lines.join("\n")
}

/// How many names a summary for people shows.
const SHOWN: usize = 20;

fn named(names: impl ExactSizeIterator<Item = String>) -> Vec<String> {
    let more = names.len().saturating_sub(SHOWN);
    let mut lines: Vec<_> = names.take(SHOWN).map(|name| format!("             {name}")).collect();
    if more > 0 {
        lines.push(format!("             … and {more} more"));
    }
    lines
}

fn fields(report: &Report, elapsed: Duration) -> Value {
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
        "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        "errors": [],
    })
}
