use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::daemon::board::Board;
use crate::daemon::feed::{Feed, Happened};
use crate::daemon::guard;
use crate::daemon::log::Log;
use crate::daemon::memory::{Found, MemoryFile, Remembered};
use crate::daemon::metrics::{self, MetricsFile};
use crate::daemon::notify::Teller;
use crate::daemon::turn::Loop;
use crate::daemon::{child, http};
use crate::exit::Exit;
use crate::notify::{Notifiers, Origin};
use crate::page::{self, Live, Place};
use crate::schedule::Calendar;
use crate::schedule::planner::{Job, Planner};
use crate::screen::Style;
use crate::services;
use anyhow::{Context as _, bail};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::FlockOperation;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The setting that each job's schedule is.
const SCHEDULES: [(Job, &str); 4] =
    [(Job::Backup, "schedule"), (Job::Verify, "verify-schedule"), (Job::Drill, "drill-schedule"), (Job::Prune, "prune-schedule")];

/// Runs jobs on their schedules, until it is asked to stop; or asks the daemon that does.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let settings = &app.settings;
    let address = settings.text("listen").filter(|text| !text.is_empty()).map(http::address).transpose()?;
    if settings.switch("check")? {
        let address = address.ok_or_else(|| UsageError("--check asks the daemon at --listen (IMMICH_BACKUP_LISTEN): say where it listens".to_owned()))?;
        http::check(address).await?;
        return Ok(Outcome::new(Exit::Done, "the daemon turns".to_owned(), json!({ "errors": [] })));
    }
    settings.required("schedule")?;
    let zone = zone(app)?;
    let page_place = Place::Remembered { base: app.state_base(), url: app.place()?.to_string() };
    let calendars = calendars(app, &zone)?;
    let (jitter, retry_after) = (settings.time("jitter")?.unwrap_or_default(), settings.time("retry-after")?.unwrap_or_default());
    if retry_after < MIN_RETRY_AFTER {
        return Err(UsageError("--retry-after takes 1s at least".to_owned()).into());
    }
    let run_now = settings.switch("run-now")?;
    let max_age = settings.time("max-age")?;
    // Where the repository is has to be said, whether or not it can be reached now.
    let repository = app.repository_name()?;
    let named = settings.text("metrics-file").filter(|path| !path.is_empty()).map(PathBuf::from);
    let metrics_file = MetricsFile { path: named.unwrap_or_else(|| app.state_base().join(metrics::NAME)), repository };
    let (notifiers, origin) = (Notifiers::of(settings)?, Origin::of(metrics_file.repository.clone()));
    let sparse = max_age.and_then(|max_age| too_sparse(&calendars, max_age));

    let style = Style { json: app.json, quiet: settings.switch("quiet")?, verbose: settings.switch("verbose")? };
    let log = Log::new(style, zone.clone());
    let listener = match address {
        Some(address) => Some(http::listen(address).await?),
        None => None,
    };
    let _alone = alone(app)?;
    let file = MemoryFile::below(&app.state_base());
    let now = Timestamp::now();
    let (remembered, damaged) = match file.read() {
        Found::Kept(remembered) => (*remembered, None),
        Found::Nothing => (Remembered::new(now), None),
        Found::Damaged(why) => (Remembered::new(now), Some(why)),
    };
    let board = Arc::new(Board::new(&remembered, max_age));
    let log = Arc::new(log);
    let mut feed = Feed::default().with(Arc::<Log>::clone(&log)).with(Arc::<Board>::clone(&board)).with(Arc::new(metrics_file.clone()));
    let live = Arc::new(Live::new());
    let page = page::of_settings(settings, page_place, Some(Arc::clone(&live)), Arc::clone(&board), zone, metrics_file.repository.clone())?;
    match (&page, &listener) {
        (Some(_), None) => {
            return Err(UsageError("--page-password-file is for the page at --listen (IMMICH_BACKUP_LISTEN): say where that is".to_owned()).into());
        }
        (Some(page), Some(_)) => {
            page.get_ready();
            feed = feed.with(live).with(Arc::<page::Page>::clone(page));
        }
        (None, _) => {}
    }
    let mut delivery = None;
    if !notifiers.is_empty() {
        let (teller, delivered) = Teller::start(notifiers, origin, log);
        feed = feed.with(teller);
        delivery = Some(delivered);
    }
    let mut planner = Planner::new(calendars, remembered.schedules.clone(), jitter, retry_after, now);
    if let Some(why) = &damaged {
        let message = format!("`{}` cannot be understood ({why}): a backup runs now, since nobody knows whether one was missed", file.path().display());
        feed.tell(&Happened::Warned(&message));
    }
    if let Some(message) = sparse {
        feed.tell(&Happened::Warned(&message));
    }
    if run_now || damaged.is_some() {
        planner.ask(Job::Backup);
    }
    if let Some(listener) = listener {
        tokio::spawn(http::serve(listener, Arc::clone(&board), metrics_file.clone(), page));
    }
    before_jobs(app, &board).await;
    let told = |job| child::told(job, settings).with("IMMICH_BACKUP_METRICS_FILE", metrics_file.path.display().to_string());
    let told = Job::ALL.into_iter().map(|job| (job, told(job))).collect();
    let guard = tokio::spawn(guard::watch(feed.clone(), Arc::clone(&board), max_age, remembered.since));
    let stopped = Loop { planner, told, feed, board, file, remembered }.run(&app.stop).await;
    guard.abort();
    if let Some(delivery) = delivery {
        delivery.end().await;
    }
    let (exit, text) =
        if stopped.interrupted { (Exit::Interrupted, "stopped in the middle of a job; the next one goes on from there") } else { (Exit::Done, "stopped") };
    Ok(Outcome::new(exit, text.to_owned(), json!({ "runs": stopped.runs, "errors": [] })))
}

/// Less would be no wait at all.
const MIN_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The daemon is seen to turn this often while it is not in its loop yet.
const TURN_EVERY: Duration = Duration::from_secs(20);

/// Held while this is the one daemon of its state folder; freed with the process, whatever happens.
struct Alone {
    _file: File,
}

/// What has to be done before the first job runs: what a run had stopped that died with the machine is started again. What goes wrong with that is told, and
/// jobs run all the same.
async fn before_jobs(app: &App, board: &Board) {
    let mut recovered = std::pin::pin!(services::recover_before_run(app));
    // Services that take long to be well keep nobody from being alive.
    while tokio::time::timeout(TURN_EVERY, &mut recovered).await.is_err() {
        board.turn();
    }
}

/// What is wrong with a schedule that leaves more time between two backups than `--max-age` has.
fn too_sparse(calendars: &BTreeMap<Job, Calendar>, max_age: Duration) -> Option<String> {
    let calendar = calendars.get(&Job::Backup)?;
    let next = calendar.next_after(Timestamp::now())?;
    let between = Duration::try_from(calendar.next_after(next)?.duration_since(next)).ok()?;
    let text = calendar.text();
    (between > max_age)
        .then(|| format!("--schedule `{text}` leaves more time between two backups than --max-age allows: each snapshot becomes too old before the next"))
}

fn alone(app: &App) -> anyhow::Result<Alone> {
    let base = app.state_base();
    let shown = base.display();
    std::fs::create_dir_all(&base).with_context(|| format!("cannot make the state folder `{shown}` (--state-dir)"))?;
    let file = File::create(base.join("daemon.lock")).with_context(|| format!("cannot write to the state folder `{shown}` (--state-dir)"))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Alone { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!("a daemon runs already with the state folder `{shown}`: end that one, or give this one another --state-dir")
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock the state folder `{shown}` (--state-dir)")),
    }
}

/// `--time-zone`, else that of the system: `TZ`, `/etc/localtime`.
pub(super) fn zone(app: &App) -> Result<TimeZone, UsageError> {
    if let Some(name) = app.settings.text("time-zone").filter(|name| !name.is_empty()) {
        return TimeZone::get(name).map_err(|_| UsageError(format!("--time-zone: there is no time zone `{name}`; write it like `Europe/Berlin`")));
    }
    // A misspelt `TZ` would mean UTC, without a word.
    match (TimeZone::try_system(), std::env::var("TZ")) {
        (Ok(zone), _) => Ok(zone),
        (Err(_), Ok(name)) if !name.is_empty() => {
            Err(UsageError(format!("TZ: there is no time zone `{name}`; write it like `Europe/Berlin`, or give --time-zone")))
        }
        // A machine that has no zone set is in UTC.
        (Err(_), _) => Ok(TimeZone::UTC),
    }
}

fn calendars(app: &App, zone: &TimeZone) -> Result<BTreeMap<Job, Calendar>, UsageError> {
    let said = SCHEDULES.into_iter().filter_map(|(job, name)| Some((job, name, app.settings.text(name).filter(|text| !text.is_empty())?)));
    said.map(|(job, name, text)| {
        let calendar = Calendar::new(text, zone.clone()).map_err(|error| UsageError(format!("--{name} `{text}`: {error}")))?;
        Ok((job, calendar))
    })
    .collect()
}
