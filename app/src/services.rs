//! Stopping and starting the Compose project: which one, who watches over it, what a dead run left.

use crate::app::App;
use crate::config::UsageError;
use crate::stack::{self, Stack, Unfound};
use anyhow::Context as _;
use async_trait::async_trait;
use immich_backup_core::backup::{self, Downtime, DowntimeError};
use immich_backup_core::event::Event;
use immich_backup_core::stack::discover;
use immich_backup_core::stack::engine::Engine;
use immich_backup_core::stack::project::Container;
use immich_backup_core::stack::services::journal::{self, By, Hold, Journal, JournalError};
use immich_backup_core::stack::services::{Choice, Intent, Outage, Patience, ServicesError, Up, recover};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// How long the watcher may take until it watches.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What the watcher says when it does, on its standard output.
pub const READY: &str = "watching";

/// How often it is looked whether nobody has the services in hand any more.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// For a run that stops nothing: so long it waits for an engine, to start what another one left.
const LEFT_WAIT: Duration = Duration::from_secs(60);

/// A log of the watcher that is longer is begun anew.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What of the environment the watcher gets. No password is among it: it needs none.
const PASSED_ON: [&str; 8] = ["PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "RUST_BACKTRACE"];

/// The folder of journals.
///
/// # Errors
/// The working directory is gone.
pub fn folder(app: &App) -> anyhow::Result<PathBuf> {
    // Absolute: the watcher works elsewhere.
    Ok(std::path::absolute(app.state_base()).context("cannot tell where the state folder is")?.join("services"))
}

/// How long is waited for what.
///
/// # Errors
/// The setting cannot be understood.
pub fn patience(app: &App) -> Result<Patience, UsageError> {
    let usual = Patience::default();
    Ok(Patience { engine: app.settings.time("services-wait")?.unwrap_or(usual.engine), ..usual })
}

/// The engine.
///
/// # Errors
/// It cannot be asked.
pub async fn engine(app: &App) -> anyhow::Result<Engine> {
    Ok(stack::engine(&app.settings).await?)
}

/// The engine, and the services that are meant, as it and the Compose files say.
///
/// # Errors
/// There is no Immich, or more than one; or it belongs to no Compose project.
pub async fn choice(app: &App) -> anyhow::Result<(Engine, Choice)> {
    let Stack { site, engine, compose, .. } = stack::stack(app).await.map_err(|error| match error {
        // What is to be stopped cannot be said instead.
        Unfound::Engine(error) => anyhow::Error::from(error),
        error => error.into(),
    })?;
    let (engine, _) = engine.ok_or_else(|| UsageError("no engine can be asked to stop services or to start them".to_owned()))?;
    let database = match app.settings.text("database-container") {
        Some(name) => Some(name.to_owned()),
        None => match site.database().map(|found| found.value) {
            Ok(discover::Database::InContainer { container, .. }) => Some(container),
            // One that is elsewhere is not stopped anyway; one that cannot be found is the dump's to complain about.
            _ => None,
        },
    };
    let project = site.project.ok_or_else(|| {
        UsageError(format!("the container `{}` belongs to no Compose project: what else is to be stopped cannot be known; stop it yourself", site.server.name))
    })?;
    let is_it = |name: &String, container: &Container| container.name == *name || container.id.starts_with(name.as_str());
    let database = database.and_then(|name| project.containers().find(|container| is_it(&name, container)).map(|container| container.service.clone()));
    let (depends_on, stop_timeouts) = compose.map(|compose| (compose.depends_on(), compose.stop_timeouts())).unwrap_or_default();
    Ok((engine, Choice { project: project.name, database, depends_on, stop_timeouts }))
}

/// Who is at it, for others to read.
fn who(what: &str) -> String {
    format!("{what}, process {}", std::process::id())
}

/// Takes a project's services in hand; waits so long for others to let go of them.
///
/// # Errors
/// They do not, or the folder cannot be used.
pub async fn hold(app: &App, project: &str, what: &str, wait: Duration) -> anyhow::Result<Hold> {
    let (folder, began) = (folder(app)?, Instant::now());
    let mut told = false;
    loop {
        match Hold::take(&folder, project, &who(what)) {
            Err(JournalError::Busy { .. }) if began.elapsed() < wait && !app.stop.is_cancelled() => {
                // Who goes away at once is not worth a word.
                if !told && began.elapsed() > Duration::from_secs(1) {
                    told = true;
                    let others = journal::holder(&folder, project)?.unwrap_or_default();
                    app.monitor.emit(Event::Waiting { what: format!("the services of `{project}` are in other hands: {others}") });
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            taken => return Ok(taken?),
        }
    }
}

/// Everything that a run needs which stops services: found out, and nothing stopped yet. What a dead run left is started first, unless it is only looked.
///
/// # Errors
/// What would keep it from stopping or starting them.
pub async fn prepare(app: &App, by: By, only_look: bool) -> anyhow::Result<Outage> {
    let (engine, choice) = choice(app).await?;
    let (what, wait) = match by {
        By::Run => ("a backup with --stop-services", app.settings.time("wait")?.unwrap_or_default()),
        By::Hand => ("`services stop`", Duration::from_secs(5)),
    };
    let hold = hold(app, &choice.project, what, wait).await?;
    if let Some(left) = hold.read()?.filter(|left| left.by == By::Run && !only_look) {
        bring_back(app, &hold, &left, patience(app)?).await?;
    }
    Ok(Outage::prepare(engine, choice, by, hold, patience(app)?, std::sync::Arc::clone(&app.monitor)).await?)
}

/// Starts what a dead run left, and says so.
async fn bring_back(app: &App, hold: &Hold, left: &Journal, patience: Patience) -> anyhow::Result<Option<Up>> {
    let boot = if left.is_of_an_older_boot() { ", before the machine was started anew" } else { "" };
    let message =
        format!("a run that died left the services of `{}` down ({}, since {}{boot}): they are started", left.project, left.phase.text(), left.begun_at);
    app.monitor.emit(Event::Warned { message });
    Ok(recover(hold, patience, &app.monitor).await?)
}

/// What became of one journal.
pub struct Recovered {
    /// The project; the journal's file where that cannot be read.
    pub project: String,
    /// What was done, or why not.
    pub result: anyhow::Result<Left>,
}

/// What was found, and what was done about it.
pub enum Left {
    /// All of it is up again.
    Up(Up),
    /// Somebody is at it.
    InHands(String),
    /// The user stopped them: only the user starts them.
    ByHand,
    /// Somebody else brought it back just now.
    Nothing,
}

/// Starts what dead runs left, of every project or of one. A journal that somebody is at is left alone.
///
/// # Errors
/// The folder cannot be read.
pub async fn recover_all(app: &App, only: Option<&str>, patience: Patience) -> anyhow::Result<Vec<Recovered>> {
    let folder = folder(app)?;
    let mut all = Vec::new();
    for (path, journal) in journal::all(&folder)? {
        let journal = match journal {
            Ok(journal) => journal,
            Err(error) => {
                all.push(Recovered { project: path.display().to_string(), result: Err(error.into()) });
                continue;
            }
        };
        if only.is_some_and(|only| only != journal.project) {
            continue;
        }
        let result = recover_one(app, &journal, patience).await;
        all.push(Recovered { project: journal.project, result });
    }
    Ok(all)
}

async fn recover_one(app: &App, journal: &Journal, patience: Patience) -> anyhow::Result<Left> {
    if journal.by == By::Hand {
        return Ok(Left::ByHand);
    }
    let hold = match Hold::take(&folder(app)?, &journal.project, &who("one who brings back what a dead run left")) {
        Ok(hold) => hold,
        Err(JournalError::Busy { who, .. }) => return Ok(Left::InHands(who)),
        Err(error) => return Err(error.into()),
    };
    // It may have been brought back since it was read.
    let Some(left) = hold.read()?.filter(|left| left.by == By::Run) else { return Ok(Left::Nothing) };
    Ok(bring_back(app, &hold, &left, patience).await?.map_or(Left::Nothing, Left::Up))
}

/// Before a run: what a dead one left is started. What goes wrong with that is told, and the run goes on: a backup is better than none.
pub async fn recover_before_run(app: &App) {
    let result = async {
        let usual = patience(app)?;
        recover_all(app, None, Patience { engine: usual.engine.min(LEFT_WAIT), ..usual }).await
    };
    let warn = |message: String| app.monitor.emit(Event::Warned { message });
    match result.await {
        Ok(all) => {
            for Recovered { project, result } in all {
                match result {
                    Ok(Left::Up(_) | Left::Nothing) => {}
                    Ok(Left::InHands(who)) => warn(format!("the services of `{project}` are in other hands: {who}")),
                    Ok(Left::ByHand) => warn(format!("the services of `{project}` were stopped by `services stop`: `services start` starts them")),
                    Err(error) => warn(crate::exit::told_with_hint(error)),
                }
            }
        }
        Err(error) => warn(crate::exit::told_with_hint(error)),
    }
}

/// What the process needs to know that brings services back should this one die.
#[derive(Debug)]
struct Watcher {
    /// The state folder's base.
    base: PathBuf,
    project: String,
    /// How long it waits for an engine that is away.
    wait: Duration,
}

impl Watcher {
    /// Starts it, and returns once it watches.
    async fn start(&self) -> anyhow::Result<()> {
        let folder = self.base.join("services");
        journal::make_folder(&folder)?;
        let log = journal::watcher_log(&folder, &self.project);
        if std::fs::metadata(&log).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
            drop(std::fs::remove_file(&log));
        }
        let log_file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).with_context(|| format!("cannot write `{}`", log.display()))?;
        // The program that runs now, also where its file was replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.args(["services", "watch"]).arg(format!("--compose-project={}", self.project)).arg("--state-dir").arg(&self.base);
        command.arg(format!("--services-wait={}s", self.wait.as_secs()));
        command.env_clear().envs(PASSED_ON.iter().filter_map(|name| Some((*name, std::env::var_os(name)?))));
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
        // It goes on when this goes: that is what it is for.
        command.kill_on_drop(false);
        let mut child = command.spawn().context("cannot start the process that watches over stopped services")?;
        let mut said = Vec::new();
        if let Some(output) = child.stdout.take() {
            let mut output = output.take(READY.len().try_into().unwrap_or(u64::MAX));
            // What it says instead of that is in its log.
            drop(tokio::time::timeout(READY_WITHIN, output.read_to_end(&mut said)).await);
        }
        if said != READY.as_bytes() {
            drop(child.start_kill());
            anyhow::bail!("the process that watches over stopped services does not watch (its log: `{}`): nothing was stopped", log.display());
        }
        Ok(())
    }
}

/// A project that is stopped for a run.
#[derive(Debug)]
pub struct Stopped {
    outage: Mutex<Outage>,
    /// Started before the first stop.
    watcher: Watcher,
    /// Ends stopping early.
    stop: CancellationToken,
    up: Mutex<backup::Up>,
}

/// The project, to be stopped when a run says so.
///
/// # Errors
/// What would keep it from being stopped or started.
pub async fn stopped(app: &App, only_look: bool) -> anyhow::Result<Stopped> {
    let outage = prepare(app, By::Run, only_look).await?;
    // Absolute: the watcher works elsewhere.
    let base = std::path::absolute(app.state_base()).context("cannot tell where the state folder is")?;
    let watcher = Watcher { base, project: outage.project().to_owned(), wait: patience(app)?.engine };
    Ok(Stopped { outage: Mutex::new(outage), watcher, stop: app.stop.clone(), up: Mutex::default() })
}

impl Stopped {
    /// What would be stopped now.
    ///
    /// # Errors
    /// The engine's.
    pub async fn intent(&self) -> Result<Intent, ServicesError> {
        self.outage.lock().await.intent().await
    }
}

fn failed(error: ServicesError) -> DowntimeError {
    DowntimeError { what: error.to_string(), hint: error.hint(), source: std::error::Error::source(&error).map(|source| source.to_string().into()) }
}

/// That the user asked to end is no failure: the run sees it by itself, brings everything up and ends as one that was interrupted.
fn unless_interrupted(stopped: Result<(), ServicesError>) -> Result<(), DowntimeError> {
    match stopped {
        Err(error) if error.is_interruption() => Ok(()),
        stopped => stopped.map_err(failed),
    }
}

#[async_trait]
impl Downtime for Stopped {
    async fn database_alone(&self) -> Result<(), DowntimeError> {
        let mut outage = self.outage.lock().await;
        if !outage.is_down() {
            let failed = |error: anyhow::Error| DowntimeError { what: format!("{error:#}"), hint: None, source: None };
            self.watcher.start().await.map_err(failed)?;
        }
        unless_interrupted(outage.stop_all_but_database(&self.stop).await)
    }

    async fn all_stopped(&self) -> Result<(), DowntimeError> {
        unless_interrupted(self.outage.lock().await.stop_database(&self.stop).await)
    }

    async fn still_down(&self) -> Result<bool, DowntimeError> {
        Ok(self.outage.lock().await.risen().await.map_err(failed)?.is_empty())
    }

    async fn up_again(&self) -> Result<backup::Up, DowntimeError> {
        let up = self.outage.lock().await.up_again().await.map_err(failed)?;
        let mut told = self.up.lock().await;
        if let Some(downtime) = up.downtime {
            told.downtime = downtime;
        }
        Ok(*told)
    }
}
