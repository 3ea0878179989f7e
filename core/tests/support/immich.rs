//! A library as a real Immich server left it, and dumps put into its repository by hand: for what reads stored dumps, without a database.

use super::{World, copy_folder, silent};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use immich_backup_core::backup::Source;
use immich_backup_core::event::Silent;
use immich_backup_core::model::{Root, RunId, Sha256};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{DumpFact, Fact, RunStarted, SnapshotFact, SourceRoot};
use immich_backup_core::repository::store::{Attributes, Kind};
use immich_backup_testbed::fixture;
use jiff::Timestamp;
use serde_json::Value;
use std::cell::Cell;
use std::io::Write as _;
use std::path::PathBuf;

/// Where the fixtures' server saw its external library.
pub const EXTERNAL: &str = "/mnt/external";

/// A library as a server left it, the dump of its database, and a repository.
pub struct Immich {
    pub world: World,
    pub dump: String,
    /// What is known of it.
    pub expected: Value,
    /// The external library, if it is to be part of the backup: `nas`.
    pub external: Option<PathBuf>,
    runs: Cell<i64>,
}

impl Immich {
    /// `None` where fixtures are not there and that was said to be meant.
    pub async fn take(generation: &str) -> Option<Self> {
        let fixture = fixture::Fixture::open(generation)?;
        let world = World::with_files(0).await;
        copy_folder(&fixture.media(), &world.library);
        let expected = serde_json::from_slice(&std::fs::read(fixture::folder(generation)?.join("expected.json")).unwrap()).unwrap();
        let dump = String::from_utf8(fixture.dump_text()).unwrap();
        Some(Self { world, dump, expected, external: None, runs: Cell::new(0) })
    }

    /// The same, with the external library.
    pub async fn take_with_external(generation: &str) -> Option<Self> {
        Some(Self { external: Some(fixture::folder("immich-3.1.0/external")?), ..Self::take(generation).await? })
    }

    /// Backs up the files, stores the dump `text`, and makes a snapshot of both. `change` has the last word on what the log says of the dump.
    pub async fn back_up_bytes(&self, text: &[u8], change: impl FnOnce(&mut DumpFact)) -> RunId {
        let mut sources = vec![Source { root: Root::Library, path: self.world.library.clone(), server_path: None, mounts: Vec::new() }];
        let mut roots = vec![SourceRoot::new(&Root::Library, "/photos".to_owned(), None)];
        if let Some(path) = &self.external {
            sources.push(Source { root: Root::External("nas".parse().unwrap()), path: path.clone(), server_path: None, mounts: Vec::new() });
            roots.push(SourceRoot::new(&Root::External("nas".parse().unwrap()), "/nas".to_owned(), Some(EXTERNAL.to_owned())));
        }
        self.world.back_up_with(self.world.directory(), "state", &silent(), |plan| plan.sources = sources).await.unwrap();
        let taken_at = Timestamp::from_second(1_700_000_000 + self.runs.replace(self.runs.get() + 1)).unwrap();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        let bytes = Bytes::from(encoder.finish().unwrap());
        let (key, sha256, size) = (Key::dump(taken_at, "3.1.0", "gz"), Sha256::of(&bytes), bytes.len() as u64);
        let store = self.world.directory();
        store.create(&key, bytes, &Attributes::of(Kind::Dump, sha256)).await.unwrap();
        let mut dump = DumpFact {
            key: key.to_string(),
            sha256,
            size,
            plain_size: text.len() as u64,
            taken_at,
            immich_version: None,
            server_version: None,
            program_version: None,
            rows: 0,
            before_restore: false,
            without_data: Vec::new(),
        };
        change(&mut dump);
        let mut session = self.world.writing(store, "state").await.unwrap();
        let run = RunId::random();
        let started = RunStarted { at: taken_at, host: "test".to_owned(), roots, accepts: None, shard: None };
        let snapshot = session.manifest.latest_snapshot().unwrap().unwrap().fact;
        session.commit(Some(run), &[Fact::RunStarted(started), Fact::Dump(dump.clone())], &Silent).await.unwrap();
        session.commit(Some(run), &[Fact::Snapshot(Box::new(SnapshotFact { dump: Some(dump.key), ..snapshot }))], &Silent).await.unwrap();
        run
    }
}
