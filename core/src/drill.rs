//! The drill: a snapshot's database is loaded into a server that is thrown away, its rows are counted, and files are compared with what it says of them.
//!
//! Nothing of the live Immich is touched: the server is made for the drill, or the database that is named has to be empty.

mod assets;

use crate::budget::NAMED_MAX;
use crate::database::Client;
use crate::database::cluster::{Cluster, ClusterError, ClusterPlan};
use crate::database::load::{self, LoadError, LoadOptions, Loaded};
use crate::database::stored::{DumpText, StoredDumpError};
use crate::event::{Event, Monitor, Phase};
use crate::listing::{self, ListError};
use crate::model::{Part, Sample};
use crate::repository::fetch::Fetcher;
use crate::repository::log::{Damaged, DrillOutcome, Drilled, DumpFact, Fact};
use crate::repository::manifest::{ManifestError, SnapshotRow};
use crate::repository::store::StoreError;
use crate::repository::workers::Workers;
use crate::repository::{OpenError, Session};
use crate::told::told;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Problems that go into the log; the report has more.
const PROBLEMS_LOGGED_MAX: usize = 20;

/// Where the dump is loaded.
#[derive(Debug, Clone)]
pub enum DrillTarget {
    /// Into a server made of the programs of this machine.
    Local {
        /// Where PostgreSQL's programs are looked for.
        folders: Vec<PathBuf>,
        /// Where a folder for the server's data is made.
        parent: PathBuf,
        /// User and group to run it, where this program runs as root; `nobody` where absent.
        owner: Option<(u32, u32)>,
    },
    /// Into an empty database, which is emptied again afterwards.
    Scratch(Client),
}

/// What to drill.
#[derive(Debug, Clone)]
pub struct DrillPlan {
    /// The snapshot.
    pub snapshot: SnapshotRow,
    /// How many of the assets to look at.
    pub sample: Sample,
    /// Where.
    pub target: DrillTarget,
    /// Objects that are read at once.
    pub workers: Workers,
    /// Whether to write down in the log how it ended.
    pub record: bool,
}

/// What a drill found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillReport {
    /// When it began.
    pub at: Timestamp,
    /// How it ended.
    pub outcome: DrillOutcome,
    /// The dump.
    pub dump: String,
    /// The server that it was loaded into, e.g. `18.4`.
    pub server_version: Option<String>,
    /// Tables whose rows were counted.
    pub tables: u64,
    /// Rows in them.
    pub rows: u64,
    /// Assets with a checksum of their content in the restored database.
    pub assets: u64,
    /// Of these, assets whose bytes were read and hashed. The others were not checked.
    pub sampled: u64,
    /// Their size.
    pub sampled_bytes: u64,
    /// Which part of the assets that was; the next drill takes the next.
    pub part: Option<Part>,
    /// How much was wrong.
    pub problem_count: u64,
    /// What was wrong; the first of it.
    pub problems: Vec<String>,
    /// Tables with columns that were loaded as text.
    pub as_text: BTreeSet<String>,
    /// Things of the dump that were left out.
    pub left_out: Vec<String>,
    /// Asked to stop before the end: nothing was written down.
    pub interrupted: bool,
}

impl DrillReport {
    /// Assets that were not looked at.
    #[must_use]
    pub fn unchecked(&self) -> u64 {
        self.assets.saturating_sub(self.sampled)
    }

    fn problem(&mut self, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < NAMED_MAX {
            self.problems.push(problem);
        }
    }
}

/// Why there was no drill. What a drill finds is no error; it is in the report.
#[derive(Debug, thiserror::Error)]
pub enum DrillError {
    /// The snapshot has no dump, or not any more.
    #[error(transparent)]
    Dump(ListError),
    /// There is no server to load it into.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The dump could not be loaded, for a reason that says nothing of the dump.
    #[error("cannot load the dump for the drill")]
    Load(#[source] LoadError),
    /// The repository failed.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl From<ListError> for DrillError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Manifest(error) => error.into(),
            other => Self::Dump(other),
        }
    }
}

impl From<ManifestError> for DrillError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl From<StoreError> for DrillError {
    fn from(error: StoreError) -> Self {
        Self::Open(error.into())
    }
}

impl DrillError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Dump(error) => error.hint(),
            Self::Cluster(error) => error.hint().map(str::to_owned),
            Self::Load(LoadError::NotEmpty { .. }) => Some(
                "a drill needs a database of its own, never Immich's: make an empty one; if a drill that died has left this there, drop it and make it again"
                    .to_owned(),
            ),
            Self::Load(error) => error.hint(),
            Self::Open(error) => error.hint(),
        }
    }
}

/// What a failed load says: the dump is not good, or it could not be tried.
fn judged(error: LoadError, target: &DrillTarget) -> Result<String, DrillError> {
    let of_dump = match &error {
        LoadError::Filter(_) | LoadError::NotWhole(_) => true,
        // What has a remedy at the server (no room, a lock) is not the dump's fault.
        // In a server made for it everything is its own: what is refused there is nothing that Immich's user may do elsewhere either.
        LoadError::Sql { .. } => error.hint().is_none() || (error.is_of_rights() && matches!(target, DrillTarget::Local { .. })),
        LoadError::Text(source) => source.downcast_ref().is_some_and(|error: &StoredDumpError| {
            let gone = matches!(error, StoredDumpError::Store { source: StoreError::NotFound { .. }, .. });
            gone || error.is_damage() || matches!(error, StoredDumpError::UnknownKind { .. })
        }),
        _ => false,
    };
    if of_dump { Ok(told(&error)) } else { Err(DrillError::Load(error)) }
}

struct Drill<'a> {
    session: &'a Session,
    plan: &'a DrillPlan,
    dump: DumpFact,
    fetcher: Arc<Fetcher>,
    monitor: &'a dyn Monitor,
    stop: &'a CancellationToken,
    report: DrillReport,
    /// Objects that are not what they should be.
    damaged: Vec<Damaged>,
}

/// Drills.
///
/// # Errors
/// It could not be done. A dump or objects that are damaged are no error; they are in the report, and in the log.
pub async fn run(session: &mut Session, plan: &DrillPlan, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<DrillReport, DrillError> {
    let dump = listing::dump_of(&session.manifest, &plan.snapshot)?;
    let report = DrillReport {
        at: Timestamp::now(),
        outcome: DrillOutcome::Failed,
        dump: dump.key.clone(),
        server_version: None,
        tables: 0,
        rows: 0,
        assets: 0,
        sampled: 0,
        sampled_bytes: 0,
        part: None,
        problem_count: 0,
        problems: Vec::new(),
        as_text: BTreeSet::new(),
        left_out: Vec::new(),
        interrupted: false,
    };
    let fetcher = Arc::new(Fetcher::new(Arc::clone(&session.repository.store)));
    let mut drill = Drill { session, plan, dump, fetcher, monitor, stop, report, damaged: Vec::new() };
    drill.run().await?;
    let Drill { mut report, damaged, .. } = drill;
    report.interrupted = stop.is_cancelled();
    report.outcome = match (report.problem_count, report.as_text.is_empty()) {
        (0, true) => DrillOutcome::Passed,
        (0, false) => DrillOutcome::Partial,
        _ => DrillOutcome::Failed,
    };
    if plan.record && !report.interrupted {
        note(session, plan, &report, damaged, monitor).await?;
    }
    Ok(report)
}

/// Writes down how it ended. What cannot be written down was still found: the report says it all.
async fn note(session: &mut Session, plan: &DrillPlan, report: &DrillReport, damaged: Vec<Damaged>, monitor: &dyn Monitor) -> Result<(), DrillError> {
    let known: BTreeSet<_> = session.manifest.damaged_objects()?.into_iter().map(|(key, _)| key).collect();
    let mut facts: Vec<_> = damaged.into_iter().filter(|damaged| !known.contains(&damaged.key)).map(Fact::Damaged).collect();
    facts.push(Fact::Drilled(Drilled {
        at: report.at,
        snapshot: plan.snapshot.id,
        outcome: report.outcome,
        tables: report.tables,
        rows: report.rows,
        assets: report.assets,
        sampled: report.sampled,
        part: report.part,
        problems: report.problems.iter().take(PROBLEMS_LOGGED_MAX).cloned().collect(),
        as_text: report.as_text.iter().cloned().collect(),
    }));
    match session.note(&facts, monitor).await {
        // What was brought back was brought back, whatever became of the repository since; what was missing in one that went away says nothing.
        Err(error) if error.is_of_writing() || report.outcome != DrillOutcome::Failed => {
            monitor.emit(Event::Warned { message: format!("how the drill ended could not be written to the log: {error}") });
            Ok(())
        }
        other => Ok(other?),
    }
}

/// The database that is used, and what has to be done afterwards.
enum Target {
    Cluster(Box<Cluster>),
    Scratch(Client),
}

impl Target {
    fn client(&self) -> &Client {
        match self {
            Self::Cluster(cluster) => cluster.client(),
            Self::Scratch(client) => client,
        }
    }
}

impl Drill<'_> {
    fn text(&self) -> DumpText {
        DumpText::of_object(Arc::clone(&self.fetcher), &self.dump)
    }

    async fn run(&mut self) -> Result<(), DrillError> {
        self.monitor.emit(Event::PhaseStarted { phase: Phase::ReadDump, total_files: None, total_bytes: None });
        let surveyed = load::survey(load::stream(self.text()), None).await;
        self.monitor.emit(Event::PhaseFinished { phase: Phase::ReadDump });
        let head = match surveyed {
            Ok(head) => head,
            Err(error) => {
                let problem = judged(error, &self.plan.target)?;
                self.report.problem(problem);
                return Ok(());
            }
        };
        let target = match &self.plan.target {
            DrillTarget::Scratch(client) => Target::Scratch(client.clone()),
            DrillTarget::Local { folders, parent, owner } => {
                let wanted = ClusterPlan {
                    folders: folders.clone(),
                    parent: parent.clone(),
                    owner: *owner,
                    major: head.server_major(),
                    extensions: head.extensions.clone(),
                };
                Target::Cluster(Box::new(Cluster::start(&wanted).await?))
            }
        };
        let options = LoadOptions { scratch: true, vectors_as_text: true, ..LoadOptions::default() };
        let done = match load::preflight(target.client(), &head, &options).await {
            Ok(mut plan) => {
                plan.text_bytes = Some(self.dump.plain_size);
                for message in &plan.warnings {
                    self.monitor.emit(Event::Warned { message: message.clone() });
                }
                self.report.server_version = Some(plan.server_version.clone());
                let (loaded, done) = match load::load(target.client(), &plan, load::stream(self.text()), self.monitor, self.stop).await {
                    Ok(loaded) => (true, self.check(target.client(), loaded).await),
                    Err(LoadError::Stopped) => (false, Ok(())),
                    Err(error) => (false, judged(error, &self.plan.target).map(|problem| self.report.problem(problem))),
                };
                if let (Target::Scratch(client), true) = (&target, loaded)
                    && let Err(error) = load::clear(client, &plan.makes).await
                {
                    let message = format!("{} could not be emptied after the drill: {}", client.target(), told(&error));
                    self.monitor.emit(Event::Warned { message });
                }
                done
            }
            Err(error) => Err(DrillError::Load(error)),
        };
        if let Target::Cluster(cluster) = target {
            cluster.stop().await;
        }
        done
    }

    /// Compares what was loaded with the dump, and files with what was loaded.
    async fn check(&mut self, client: &Client, loaded: Loaded) -> Result<(), DrillError> {
        self.report.as_text = loaded.as_text;
        self.report.left_out = loaded.left_out;
        self.monitor.emit(Event::PhaseStarted { phase: Phase::CountRows, total_files: None, total_bytes: None });
        let counted = load::count_rows(client, &loaded.rows).await.map_err(DrillError::Load)?;
        self.monitor.emit(Event::PhaseFinished { phase: Phase::CountRows });
        self.report.tables = counted.len() as u64;
        self.report.rows = counted.values().sum();
        if counted.values().sum::<u64>() == 0 {
            self.report.problem("the restored database has no rows at all".to_owned());
        }
        for difference in load::differences(&loaded.rows, &counted) {
            self.report.problem(difference.to_string());
        }
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let started = self.session.manifest.run_started(self.plan.snapshot.id)?;
        let locations = listing::locations(started.as_ref().map_or(&[][..], |started| &started.roots));
        self.compare_assets(client, locations).await
    }
}
