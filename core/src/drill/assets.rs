//! A sample of the assets that a restored database has, compared with the objects of the repository.

use super::{Drill, DrillError};
use crate::database::Client;
use crate::database::error::DatabaseError;
use crate::database::load::LoadError;
use crate::database::location::{Locations, Place};
use crate::event::{Event, Phase};
use crate::model::{Part, Sha1};
use crate::repository::fetch::Fetcher;
use crate::repository::key::Key;
use crate::repository::log::Damaged;
use crate::repository::store::StoreError;
use crate::task::joined;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::task::JoinSet;
use uuid::Uuid;

/// Rows that are asked for at a time.
const PAGE_ROWS: u64 = 2_000;

/// An asset, as the restored database has it.
struct Asset {
    id: Uuid,
    path: String,
    sha1: Sha1,
}

/// An object that should hold an asset.
struct Wanted {
    asset: Asset,
    key: String,
    size_bytes: u64,
}

/// What hashing an object gave, and which it was.
type Hashed = (Result<(Sha1, u64), StoreError>, Wanted);

async fn ask<T: DeserializeOwned>(client: &Client, wanted: &'static str, sql: &str) -> Result<T, DrillError> {
    let answer = client.query(sql).await.map_err(|error| DrillError::Load(error.into()))?;
    serde_json::from_str(&answer).map_err(|_| {
        let answer = answer.chars().take(200).collect();
        DrillError::Load(LoadError::Database(DatabaseError::Answer { program: "psql", wanted, answer }))
    })
}

/// Where assets with a checksum of their content are: what follows `FROM`, up to a condition; `None` where this is no Immich.
async fn assets_table(client: &Client) -> Result<Option<String>, DrillError> {
    let sql = "SELECT coalesce(json_agg(json_build_array(c.relname, a.attname)), '[]') FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
                WHERE n.nspname = 'public' AND c.relname IN ('asset', 'assets') AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped;\n";
    let columns: Vec<(String, String)> = ask(client, "the columns of assets", sql).await?;
    let has = |table: &str, column: &str| columns.iter().any(|(known, name)| known == table && name == column);
    // Plural until 1.136.
    let Some(table) = ["asset", "assets"].into_iter().find(|table| ["id", "originalPath", "checksum"].iter().all(|column| has(table, column))) else {
        return Ok(None);
    };
    // External assets have a checksum of their path: since 2.7 a column says so.
    let condition = if has(table, "checksumAlgorithm") {
        "\"checksumAlgorithm\"::text = 'sha1'"
    } else if has(table, "isExternal") {
        "NOT \"isExternal\""
    } else {
        "true"
    };
    Ok(Some(format!("public.{table} WHERE {condition}")))
}

/// The SHA-1 and the size of what an object holds. One bad transfer is no damage: where it is not what it should be, a second reading decides.
async fn hash(fetcher: &Fetcher, wanted: &Wanted) -> Result<(Sha1, u64), StoreError> {
    fetcher.sha1(&Key::parse(&wanted.key)?, wanted.size_bytes, &wanted.asset.sha1).await
}

impl Drill<'_> {
    /// Reads the next part of the assets back.
    pub(super) async fn compare_assets(&mut self, client: &Client, mut locations: Locations) -> Result<(), DrillError> {
        let Some(table) = assets_table(client).await? else {
            self.report.problem("the restored database has no table of assets: it is not Immich's".to_owned());
            return Ok(());
        };
        let location: Option<String> =
            match ask(client, "whether there is system_metadata", "SELECT to_json(to_regclass('public.system_metadata') IS NOT NULL);\n").await? {
                true => {
                    ask(
                        client,
                        "the media location",
                        "SELECT coalesce((SELECT to_json(value->>'location') FROM public.system_metadata WHERE key = 'MediaLocation'), 'null');\n",
                    )
                    .await?
                }
                false => None,
            };
        if let Some(location) = location {
            locations.prefer_media(location.as_bytes());
        }
        self.report.assets = ask(client, "the number of assets", &format!("SELECT to_json(count(*)) FROM {table};\n")).await?;
        let part = self.choose_part()?;
        self.report.part = Some(part);
        self.monitor.emit(Event::PhaseStarted { phase: Phase::ReadBack, total_files: Some(self.report.assets / part.of), total_bytes: None });
        let workers = self.plan.workers.count(&*self.session.repository.store);
        let mut reading = JoinSet::new();
        let mut after = Uuid::nil();
        let mut first = true;
        while !self.stop.is_cancelled() {
            let beyond = if first { String::new() } else { format!(" AND id > '{after}'") };
            let sql = format!(
                "SELECT coalesce(json_agg(json_build_array(a.id, a.\"originalPath\", encode(a.checksum, 'hex'))), '[]') FROM \
                 (SELECT id, \"originalPath\", checksum FROM {table}{beyond} ORDER BY id LIMIT {PAGE_ROWS}) a;\n"
            );
            let page: Vec<(Uuid, String, String)> = ask(client, "a page of assets", &sql).await?;
            let Some((last, ..)) = page.last() else { break };
            (after, first) = (*last, false);
            for (id, path, checksum) in page {
                if self.stop.is_cancelled() || !part.has(&id.to_string()) {
                    continue;
                }
                let mut digest = [0; 20];
                if hex::decode_to_slice(&checksum, &mut digest).is_err() {
                    self.report.problem(format!("asset {id} (`{}`) has a checksum that is no SHA-1", path.escape_debug()));
                    continue;
                }
                let Some(wanted) = self.look_up(Asset { id, path, sha1: Sha1(digest) }, &locations)? else { continue };
                while reading.len() >= workers {
                    self.take_next(&mut reading).await?;
                }
                let fetcher = Arc::clone(&self.fetcher);
                reading.spawn(async move { (hash(&fetcher, &wanted).await, wanted) });
            }
        }
        while !reading.is_empty() {
            self.take_next(&mut reading).await?;
        }
        self.monitor.emit(Event::PhaseFinished { phase: Phase::ReadBack });
        Ok(())
    }

    /// The part after that of the last drill, if that was one of as many; else one by the length of the log.
    fn choose_part(&self) -> Result<Part, DrillError> {
        let of = self.plan.sample.parts(self.report.assets);
        let manifest = &self.session.manifest;
        let last = manifest.last_drill()?.and_then(|drill| drill.fact.part).filter(|last| last.of == of);
        Ok(Part { of, part: last.map_or(manifest.head().sequence, |last| last.part.saturating_add(1)) % of })
    }

    /// The object that a restore would take: what stands at the asset's path in the snapshot, if that is its content; else another with its content.
    fn look_up(&mut self, asset: Asset, locations: &Locations) -> Result<Option<Wanted>, DrillError> {
        let manifest = &self.session.manifest;
        if let Place::In(file) = locations.place(asset.path.as_bytes())
            && let Some(row) = manifest.standing_at(&file, self.plan.snapshot.sequence)?
            && row.digests.sha1 == asset.sha1
        {
            return Ok(Some(Wanted { asset, key: row.key, size_bytes: row.size_bytes }));
        }
        if let Some(kept) = manifest.each_content_with_sha1(&asset.sha1)?.into_iter().next() {
            return Ok(Some(Wanted { asset, key: kept.object.key, size_bytes: kept.size_bytes }));
        }
        self.report.sampled += 1;
        self.report.problem(format!("asset {} (`{}`): no whole object has the content that the database names", asset.id, asset.path.escape_debug()));
        Ok(None)
    }

    async fn take_next(&mut self, reading: &mut JoinSet<Hashed>) -> Result<(), DrillError> {
        let Some(ended) = reading.join_next().await else { return Ok(()) };
        let (read, Wanted { asset, key, .. }) = joined(ended);
        let problem = match read {
            Ok((sha1, size_bytes)) if sha1 == asset.sha1 => {
                self.report.sampled += 1;
                self.report.sampled_bytes = self.report.sampled_bytes.saturating_add(size_bytes);
                self.monitor.emit(Event::ObjectChecked { size_bytes });
                return Ok(());
            }
            Ok(_) => "its bytes have another SHA-1 than the database names".to_owned(),
            Err(StoreError::NotFound { .. }) => "it is missing".to_owned(),
            Err(error) if error.is_of_medium() => super::told(&error),
            // Anything else says nothing of the object.
            Err(error) => return Err(error.into()),
        };
        self.report.sampled += 1;
        self.monitor.emit(Event::ObjectDamaged { key: key.clone(), problem: problem.clone() });
        self.report.problem(format!("asset {} (`{}`): the object `{key}` is damaged: {problem}", asset.id, asset.path.escape_debug()));
        if self.damaged.len() < crate::budget::NAMED_MAX {
            self.damaged.push(Damaged { key, problem });
        }
        Ok(())
    }
}
