//! From arguments to a command, and from its result to the screen.

use crate::access;
use crate::commands;
use crate::commands::shard;
use crate::config::{Settings, UsageError};
use crate::daemon::child::PARENT;
use crate::exit::{Exit, Failure};
use crate::metrics::{self, Run, Tally};
use crate::notify::Telling;
use crate::screen::{self, Style};
use crate::standing::Standing;
use anyhow::Context as _;
use clap::ArgMatches;
use immich_backup_core::event::{Event, Monitor};
use immich_backup_core::model::RepositoryId;
use immich_backup_core::repository::place::{self, Place, without_secrets};
use immich_backup_core::repository::state::{StateFolder, place_of};
use immich_backup_core::repository::store::Store;
use immich_backup_core::repository::workers::Workers;
use immich_backup_core::repository::{OpenError, Repository, Session, Until, init, open_store};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Who made a repository; stands in its `format.json`.
const PROGRAM: &str = concat!("immich-backup ", env!("CARGO_PKG_VERSION"));

/// The end of a command waits no longer for the metrics.
const METRICS_WITHIN: Duration = Duration::from_secs(10);

/// A repository was there and is not there now.
#[derive(Debug, thiserror::Error)]
#[error("repository {before} was at `{url}` before, and is not there now: no new one is made in its place")]
pub struct GoneAway {
    url: String,
    before: RepositoryId,
    place: PathBuf,
}

impl GoneAway {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        format!(
            "mount its disk; if all is there but `format.json`, `immich-backup repair` brings that back; if the old one is gone for good, remove `{}` and run again",
            self.place.display()
        )
    }
}

/// How a command ended, and what is to be said about it.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub exit: Exit,
    /// For people.
    pub text: String,
    /// For programs: the summary's own fields.
    pub fields: Map<String, Value>,
}

impl Outcome {
    /// An outcome with `text`, and `fields` (an object).
    #[must_use]
    pub fn new(exit: Exit, text: String, fields: Value) -> Self {
        let fields = if let Value::Object(fields) = fields { fields } else { Map::new() };
        Self { exit, text, fields }
    }
}

/// What every command needs.
pub struct App {
    /// All settings.
    pub settings: Settings,
    /// Where events go.
    pub monitor: Arc<dyn Monitor>,
    /// What they come to.
    pub tally: Arc<Tally>,
    /// Set by Ctrl-C and SIGTERM.
    pub stop: CancellationToken,
    /// The positional argument.
    pub argument: Option<String>,
    /// Whether output is for programs.
    pub json: bool,
    standing: Mutex<Option<Standing>>,
}

/// A session and, where it was needed, the temporary state folder that goes with it.
pub struct Reading {
    /// The session.
    pub session: Session,
    _temporary: Option<TempDir>,
}

impl Reading {
    /// What the session's files need to last; the session itself ends.
    pub fn at_rest(self) -> Option<TempDir> {
        self._temporary
    }
}

/// What a command line comes to.
enum Prepared {
    /// A command to run.
    Run(Box<App>),
    /// Something to show.
    Shown(bool, Outcome),
}

/// Runs the program.
pub fn run(matches: &ArgMatches) -> Exit {
    let Some((name, matches)) = matches.subcommand() else { return Exit::Usage };
    let environment = |name: &str| std::env::var(name).ok();
    let (json, ended) = match prepare(name, matches, &environment) {
        Ok(Prepared::Run(app)) => (app.json, run_command(name, &app)),
        Ok(Prepared::Shown(json, outcome)) => (json, Ok(outcome)),
        Err(error) => {
            let said = environment("IMMICH_BACKUP_JSON").is_some_and(|on| ["true", "1", "yes", "on"].contains(&on.to_ascii_lowercase().as_str()));
            (matches.get_flag("json") || said, Err(Failure::from(error)))
        }
    };
    match ended {
        Ok(outcome) => {
            show(name, json, &outcome);
            outcome.exit
        }
        Err(failure) => {
            show_failure(name, json, &failure);
            failure.exit
        }
    }
}

fn prepare(name: &str, matches: &ArgMatches, environment: &dyn Fn(&str) -> Option<String>) -> anyhow::Result<Prepared> {
    let settings = Settings::resolve(matches, environment)?;
    let style = Style { json: settings.switch("json")?, quiet: settings.switch("quiet")?, verbose: settings.switch("verbose")? };
    if settings.switch("show-config")? {
        return Ok(Prepared::Shown(style.json, commands::show_config(name, &settings)));
    }
    let argument = matches.try_get_one::<String>("argument").ok().flatten().cloned();
    let tally = Arc::new(Tally::new(screen::monitor(style)));
    let monitor: Arc<dyn Monitor> = Arc::<Tally>::clone(&tally);
    let app = App { monitor, tally, stop: CancellationToken::new(), argument, json: style.json, settings, standing: Mutex::default() };
    Ok(Prepared::Run(Box::new(app)))
}

fn run_command(name: &str, app: &App) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().worker_threads(threads()).max_blocking_threads(blocking_threads(app));
    let runtime = builder.build().context("cannot start threads")?;
    let ended = runtime.block_on(async {
        let (mut ended, telling) = match begin(name, app) {
            Ok(telling) => (commands::run(name, app).await.map_err(Failure::from), telling),
            // That is an end, too.
            Err(error) => (Err(Failure::from(error)), None),
        };
        if let (Ok(outcome), Some(standing)) = (&mut ended, app.standing()) {
            outcome.fields.insert("standing".to_owned(), json!(standing));
        }
        let exit = ended.as_ref().map_or_else(|failure| failure.exit, |outcome| outcome.exit);
        let (ended_at, took) = (Timestamp::now(), began.elapsed());
        if let Some(telling) = telling {
            let summary = match &ended {
                Ok(outcome) => summary(name, outcome.exit, outcome.fields.clone()),
                Err(failure) => summary_of_failure(name, failure),
            };
            telling.end(app, summary).await;
        }
        // Last: the disk that they go to may hang.
        app.write_metrics(Run { ended_at, ..Run::new(name, exit, took) }).await;
        ended
    });
    // Threads that wait for a hung disk must not keep the program from ending.
    runtime.shutdown_timeout(Duration::from_secs(5));
    ended
}

/// What comes before the command.
fn begin(name: &str, app: &App) -> anyhow::Result<Option<Telling>> {
    let is_job = end_with_the_daemon()?;
    listen_for_signals(app)?;
    // Of its jobs the daemon tells: one that is killed could not.
    if is_job { Ok(None) } else { Ok(Telling::begin(app, name)?) }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get).clamp(2, 8)
}

/// A worker needs two at most (one reads a large file, one writes it), and the log some more. Without a bound a busy machine gets hundreds, and
/// each of them keeps memory.
fn blocking_threads(app: &App) -> usize {
    app.workers().map_or(4, Workers::max) * 2 + 16
}

/// A job whose daemon died is asked to end, too: the next daemon would find it in its way. Says whether this is a job.
fn end_with_the_daemon() -> anyhow::Result<bool> {
    let parent = rustix::process::getppid().map(|parent| parent.as_raw_pid().to_string());
    // What this process starts has the same environment, and another parent.
    let is_job = parent.is_some() && set(PARENT) == parent;
    if is_job {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM)).context("cannot be bound to the daemon")?;
        if rustix::process::getppid().map(|parent| parent.as_raw_pid().to_string()) != parent {
            anyhow::bail!("the daemon that started this job has died");
        }
    }
    Ok(is_job)
}

/// The first signal asks the command to end well; the second ends the program at once.
fn listen_for_signals(app: &App) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let (stop, monitor) = (app.stop.clone(), Arc::clone(&app.monitor));
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.is_cancelled() {
                #[expect(clippy::exit, reason = "asked twice: what is on disk is safe at any instruction")]
                std::process::exit(Exit::Interrupted.code().into());
            }
            monitor.emit(Event::Warned { message: "asked to stop: what runs writes a last checkpoint (once more to end at once)".to_owned() });
            stop.cancel();
        }
    });
    Ok(())
}

fn show(name: &str, json: bool, outcome: &Outcome) {
    if json {
        screen::print_json(&Value::Object(summary(name, outcome.exit, outcome.fields.clone())));
    } else if !outcome.text.is_empty() {
        screen::print_line(&outcome.text);
    }
}

fn show_failure(name: &str, json: bool, failure: &Failure) {
    if json {
        screen::print_json(&Value::Object(summary_of_failure(name, failure)));
        return;
    }
    screen::print_error(&format!("immich-backup: {}", failure.message));
    if let Some(hint) = &failure.hint {
        screen::print_error(&format!("  {hint}"));
    }
}

fn summary_of_failure(name: &str, failure: &Failure) -> Map<String, Value> {
    summary(name, failure.exit, Map::from_iter([("errors".to_owned(), json!([failure]))]))
}

fn summary(name: &str, exit: Exit, fields: Map<String, Value>) -> Map<String, Value> {
    let mut object =
        Map::from_iter([("type".to_owned(), json!("summary")), ("command".to_owned(), json!(name)), ("outcome".to_owned(), json!(exit.outcome()))]);
    object.insert("exit_code".to_owned(), json!(exit.code()));
    object.extend(fields);
    object
}

/// A name of the environment that has a value.
fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl App {
    /// Where the repository is.
    ///
    /// # Errors
    /// It is not said, or cannot be understood.
    pub fn place(&self) -> Result<Place, UsageError> {
        let url = match self.settings.text("repository") {
            Some(url) if !url.is_empty() => url.to_owned(),
            _ => match self.bucket_of_environment() {
                Some(url) => url,
                None => self.settings.required("repository")?.to_owned(),
            },
        };
        let mut place = Place::parse(&url).map_err(|error| UsageError(error.to_string()))?;
        match &mut place {
            Place::Directory(path) => {
                // The same place has the same name, from wherever the program is started.
                *path = std::path::absolute(&*path).map_err(|error| UsageError(format!("--repository `{url}`: {error}")))?;
                if path.to_str().is_none() {
                    return Err(UsageError("--repository takes a path in UTF-8".to_owned()));
                }
            }
            Place::S3(bucket) if bucket.endpoint.is_none() => {
                // As Amazon's own programs have it.
                let named = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find_map(|name| Some((name, set(name)?)));
                let endpoint = named.map(|(name, text)| place::endpoint(&text).map_err(|problem| UsageError(format!("{name}: {problem}"))));
                bucket.endpoint = endpoint.transpose()?;
            }
            _ => {}
        }
        Ok(place)
    }

    /// What people who copied their library to a bucket before have set already.
    fn bucket_of_environment(&self) -> Option<String> {
        if let Some(bucket) = set("S3_BUCKET") {
            let mut prefix = set("S3_PREFIX").unwrap_or_default().trim_matches('/').to_owned();
            if let Some(date) = set("BACKUP_DATE")
                && let last = prefix.rsplit('/').next().unwrap_or_default().to_owned()
                && last.contains(&date)
            {
                let message = format!("`{last}` of S3_PREFIX has BACKUP_DATE in it and is left out: it would make a new repository each time");
                self.monitor.emit(Event::Warned { message });
                prefix.truncate(prefix.len() - last.len());
            }
            return Some(format!("s3://{}/{prefix}", bucket.trim_start_matches("s3://").trim_end_matches('/')));
        }
        set("GCS_BUCKET").map(|bucket| format!("gs://{}", bucket.trim_start_matches("gs://")))
    }

    /// The repository as metrics and notifications name it.
    ///
    /// # Errors
    /// See [`App::place`].
    pub fn repository_name(&self) -> Result<String, UsageError> {
        Ok(without_secrets(&self.place()?.to_string()))
    }

    /// Keeps how the repository of `session` stands: metrics and notifications are made of it, whatever comes after.
    pub fn note(&self, session: &Session) {
        match Standing::of(&session.manifest) {
            Ok(standing) => *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = Some(standing),
            Err(error) => self.monitor.emit(Event::Warned { message: format!("what is told of the repository may be old: {error}") }),
        }
    }

    /// How the repository stands, as far as this command has seen.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes `--metrics-file`, whatever came of the command; what goes wrong with that is told and stops nothing.
    async fn write_metrics(&self, run: Run<'_>) {
        let Some(path) = self.settings.text("metrics-file").filter(|path| !path.is_empty()) else { return };
        if !metrics::COMMANDS.contains(&run.command) || self.settings.switch("dry-run").unwrap_or(false) {
            return;
        }
        let Ok(repository) = self.repository_name() else { return };
        let (named, command, outcome) = (PathBuf::from(path), run.command.to_owned(), run.outcome.0.to_owned());
        let (code, ended_at, took) = (run.outcome.1, run.ended_at, run.took);
        let (tally, standing) = (Arc::clone(&self.tally), self.standing());
        let written = tokio::task::spawn_blocking(move || {
            let run = Run { command: &command, outcome: (&outcome, code), ended_at, took };
            metrics::update(&named, &repository, &run, Some(&tally), standing.as_ref())
        });
        let problem = match tokio::time::timeout(METRICS_WITHIN, written).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not written within {} s: does its disk hang?", METRICS_WITHIN.as_secs()),
        };
        self.monitor.emit(Event::Warned { message: format!("cannot write the metrics to `{path}` (--metrics-file): {problem}") });
    }

    /// The store that the repository is in.
    ///
    /// # Errors
    /// It is not said which, or something to reach it is missing.
    pub async fn store(&self) -> anyhow::Result<Arc<dyn Store>> {
        let place = self.place()?;
        let options = access::options(&self.settings, &place, &self.tally, &self.stop).await?;
        Ok(open_store(&place, options)?)
    }

    /// Opens the repository.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn repository(&self) -> anyhow::Result<Repository> {
        Ok(Repository::open(self.store().await?).await?)
    }

    /// The folder that holds a state folder for each repository.
    pub fn state_base(&self) -> PathBuf {
        let base = self.state_base_of_all();
        // What is wrong with --shard is said by the command.
        match shard::folder(self) {
            Ok(Some(folder)) => base.join(folder),
            _ => base,
        }
    }

    fn state_base_of_all(&self) -> PathBuf {
        if let Some(path) = self.settings.text("state-dir") {
            return PathBuf::from(path);
        }
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
        if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib/immich-backup")
        } else {
            std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home).unwrap_or_default().join("immich-backup")
        }
    }

    /// The state folder of `repository`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn state(&self, repository: &Repository) -> Result<StateFolder, OpenError> {
        let base = self.state_base();
        let state = StateFolder::open(&base, repository.id)?;
        StateFolder::remember(&base, repository.store.url(), repository.id)?;
        Ok(state)
    }

    /// Makes a repository, unless one was there before: a disk that is not mounted looks like an empty place.
    ///
    /// # Errors
    /// There is or was one, or the place cannot be used.
    pub async fn make_repository(&self) -> anyhow::Result<Repository> {
        let store = self.store().await?;
        let base = self.state_base();
        if let Some(before) = StateFolder::remembered(&base, store.url()) {
            return match Repository::open(Arc::clone(&store)).await {
                Ok(_) => Ok(init(store, PROGRAM).await?),
                Err(OpenError::NoRepository { .. }) => {
                    Err(anyhow::Error::from(GoneAway { url: store.url().to_owned(), before, place: place_of(&base, store.url()) }))
                }
                Err(error) => Err(error.into()),
            };
        }
        Ok(init(store, PROGRAM).await?)
    }

    /// Opens the repository for reading; with `--until`, as it stood then. Without a state folder that can be written, a temporary one is used.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn reading(&self) -> anyhow::Result<Reading> {
        self.reading_until(self.settings.parsed("until")?).await
    }

    /// Opens the repository for reading; as it stood at a log entry, where one is given.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn reading_until(&self, until: Option<Until>) -> anyhow::Result<Reading> {
        let repository = self.repository().await?;
        if let Some(until) = until {
            let temporary = self.temporary_state()?;
            let state = StateFolder::open(temporary.path(), repository.id).map_err(OpenError::from)?;
            let session = Session::open_until(repository, state, until, self.monitor.as_ref()).await?;
            return Ok(Reading { session, _temporary: Some(temporary) });
        }
        let opened = match self.state(&repository) {
            Ok(state) => Session::open_for_reading(repository.clone(), state, self.monitor.as_ref()).await,
            Err(error) => Err(error),
        };
        let error = match opened {
            Ok(session) => return Ok(Reading { session, _temporary: None }),
            Err(error) => error,
        };
        if !matches!(error, OpenError::State(_) | OpenError::Stale) {
            return Err(error.into());
        }
        let message = format!("{error}; a temporary state folder is used, which takes longer");
        self.monitor.emit(Event::Warned { message });
        let temporary = tempfile::tempdir().context("cannot make a temporary folder")?;
        let state = StateFolder::open(temporary.path(), repository.id).map_err(OpenError::from)?;
        let session = Session::open_for_reading(repository, state, self.monitor.as_ref()).await?;
        Ok(Reading { session, _temporary: Some(temporary) })
    }

    fn temporary_state(&self) -> anyhow::Result<TempDir> {
        let base = self.state_base();
        let made = std::fs::create_dir_all(&base).and_then(|()| tempfile::tempdir_in(&base));
        made.or_else(|_| tempfile::tempdir()).context("cannot make a temporary folder")
    }

    /// `--workers`.
    ///
    /// # Errors
    /// Neither `auto` nor a number from 1 to 256.
    pub fn workers(&self) -> Result<Workers, UsageError> {
        Ok(self.settings.parsed("workers")?.unwrap_or(Workers::ByDistance))
    }
}
