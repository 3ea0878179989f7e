//! Bringing a database back: looked at first, loaded in one transaction, its rows counted.

use super::RestoreError;
use crate::database::Client;
use crate::database::compress::Compression;
use crate::database::dump::{self, Destination, DumpPlan, LOCK_WAIT_DEFAULT};
use crate::database::filter::Head;
use crate::database::inventory::Builder;
use crate::database::keep::Whole;
use crate::database::load::{self, LoadError, LoadOptions, LoadPlan, Loaded, RowsDiffer};
use crate::database::location::Locations;
use crate::database::stored::DumpText;
use crate::event::{Event, Monitor, Phase};
use crate::repository::Session;
use crate::repository::fetch::Fetcher;
use crate::repository::log::{DumpFact, Fact};
use crate::task::blocking;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Where the dump is taken from.
#[derive(Debug, Clone)]
pub enum DumpSource {
    /// From the repository.
    Object(DumpFact),
    /// From a file: one that Immich itself wrote.
    File(PathBuf),
}

/// What to load, and where.
#[derive(Debug, Clone)]
pub struct DatabasePlan {
    /// The database.
    pub client: Client,
    /// The dump.
    pub source: DumpSource,
    /// The database is not empty: what is there is dumped into the repository first, and then replaced.
    pub replace: bool,
    /// Which database, where the dump is one of a whole server and several have Immich's tables.
    pub database_in_dump: Option<String>,
}

/// A restore of a database that was looked at and can be done.
#[derive(Debug)]
pub struct PreparedDatabase {
    plan: DatabasePlan,
    head: Head,
    options: LoadOptions,
    /// What it will do.
    pub load: LoadPlan,
}

/// What was done.
#[derive(Debug, Clone)]
pub struct DatabaseReport {
    /// The database, as people call it.
    pub target: String,
    /// What was loaded.
    pub loaded: Loaded,
    /// Tables that do not have the rows that the dump has.
    pub differ: Vec<RowsDiffer>,
    /// The dump of what was there before.
    pub saved: Option<DumpFact>,
}

impl DatabasePlan {
    fn text(&self, session: &Session) -> DumpText {
        match &self.source {
            DumpSource::Object(fact) => DumpText::of_object(Arc::new(Fetcher::new(Arc::clone(&session.repository.store))), fact),
            DumpSource::File(path) => DumpText::of_file(path),
        }
    }
}

/// Looks at the dump's beginning and at the database. Changes nothing.
///
/// # Errors
/// The dump could not be loaded there.
pub async fn prepare_database(session: &Session, plan: DatabasePlan, monitor: &dyn Monitor) -> Result<PreparedDatabase, RestoreError> {
    let head = load::survey(load::stream(plan.text(session)), plan.database_in_dump.as_deref()).await?;
    let options = LoadOptions { replace: plan.replace, database_in_dump: plan.database_in_dump.clone(), ..LoadOptions::default() };
    let mut load = load::preflight(&plan.client, &head, &options).await?;
    if let DumpSource::Object(fact) = &plan.source {
        load.text_bytes = Some(fact.plain_size);
    }
    for message in &load.warnings {
        monitor.emit(Event::Warned { message: message.clone() });
    }
    Ok(PreparedDatabase { plan, head, options, load })
}

impl PreparedDatabase {
    /// Does it.
    ///
    /// # Errors
    /// The database is as it was before, unless the error says that this is not known.
    pub async fn run(self, session: &mut Session, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<DatabaseReport, RestoreError> {
        let mut plan = self.load.clone();
        let saved = if self.load.replaces.is_empty() {
            None
        } else {
            let written = self.written().await?;
            let (fact, rows) = self.save(session, monitor, stop).await?;
            // The dump took a while: who came meanwhile, or wrote, would lose it.
            let text_bytes = plan.text_bytes;
            plan = load::preflight(&self.plan.client, &self.head, &self.options).await?;
            plan.text_bytes = text_bytes;
            let found = load::count_rows(&self.plan.client, &rows).await?;
            if !load::differences(&rows, &found).is_empty() || self.written().await? != written {
                return Err(RestoreError::ChangedMeanwhile { target: self.plan.client.target() });
            }
            Some(fact)
        };
        let text = load::stream(self.plan.text(session));
        let loaded = load::load(&self.plan.client, &plan, text, monitor.as_ref(), stop).await?;
        monitor.emit(Event::PhaseStarted { phase: Phase::CountRows, total_files: None, total_bytes: None });
        let counted = load::count_rows(&self.plan.client, &loaded.rows).await;
        let found = counted.map_err(|source| RestoreError::Uncounted { target: self.plan.client.target(), source })?;
        monitor.emit(Event::PhaseFinished { phase: Phase::CountRows });
        let differ = load::differences(&loaded.rows, &found);
        Ok(DatabaseReport { target: self.plan.client.target(), loaded, differ, saved })
    }

    /// How many rows were ever written in the database, as far as its statistics tell.
    async fn written(&self) -> Result<String, RestoreError> {
        let sql = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_catalog.pg_stat_user_tables;\n";
        Ok(self.plan.client.query(sql).await.map_err(LoadError::from)?)
    }

    /// Dumps what is about to be replaced, as an object of the repository. Returns its rows, too.
    async fn save(
        &self,
        session: &mut Session,
        monitor: &Arc<dyn Monitor>,
        stop: &CancellationToken,
    ) -> Result<(DumpFact, BTreeMap<String, u64>), RestoreError> {
        let (spool, names) = (session.state.own_file("before.sql"), session.state.own_file("before.db"));
        let plan = DumpPlan {
            application: dump::application(&session.writer),
            compression: Compression::Gzip,
            destination: Destination::Spool(spool.to_owned()),
            lock_wait: LOCK_WAIT_DEFAULT,
            estimated_bytes: None,
        };
        let sink = || Ok(Builder::create(&names, Locations::new([]))?);
        let (dumped, sink) = dump::take(&self.plan.client, &plan, sink, monitor, stop).await?;
        monitor.emit(Event::PhaseFinished { phase: Phase::Dump });
        let inventory = blocking(move || sink.finish()).await?;
        let (summary, rows) = (inventory.summary().clone(), inventory.rows().clone());
        drop(inventory);
        let whole = Whole { dumped, compression: Compression::Gzip, immich_version: summary.immich_version, rows: summary.rows_total };
        session.begin_writing().await?;
        let fact = DumpFact { before_restore: true, ..whole.send(session.store(), &spool).await? };
        session.note(&[Fact::Dump(fact.clone())], monitor.as_ref()).await?;
        monitor.emit(Event::DumpStored { key: fact.key.clone(), size_bytes: fact.size });
        Ok((fact, rows))
    }
}
