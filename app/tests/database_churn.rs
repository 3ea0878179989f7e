//! Immich does not stop for a backup. Whatever it does meanwhile, what the proof says is true, and each asset of the dump comes back or is named.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test may"
)]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{Immich, address, arguments, proof, text_of};
use immich_backup_core::model::{Sha1, Sha256};
use immich_backup_core::verdict::{Proof, Thing, Verdict};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::{Dump, Postgres};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::{Ran, Random, Running, Tree, settle};

/// Assets that are there at first, besides the fixture's.
const ASSETS: usize = 1_200;

/// What Immich's server does: it has the files and the rows, and nobody tells it of backups.
struct Busy {
    psql: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    media: PathBuf,
    /// The asset that new rows are made after.
    model: String,
    owner: String,
    /// Assets there are: id and path below the media location.
    assets: Vec<(String, String)>,
    random: Random,
    made: usize,
    /// What was done, by name.
    done: BTreeMap<&'static str, usize>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}

impl Busy {
    fn new(immich: &Immich, server: &Postgres, random: Random) -> Self {
        let mut psql = Command::new(server.programs().join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &address(server, "immich")]).env("PGPASSWORD", Postgres::PASSWORD);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (psql.stdin.take().unwrap(), BufReader::new(psql.stdout.take().unwrap()));
        let model = immich.plain_asset(0);
        let (model, owner) = (model.id.clone(), model.owner.clone());
        Self { psql, to, from, media: immich.files.media(), model, owner, assets: Vec::new(), random, made: 0, done: BTreeMap::new() }
    }

    /// Sends statements, and waits until they are done.
    fn sql(&mut self, text: &str) {
        writeln!(self.to, "{};\n\\echo done", text.trim_end_matches(';')).unwrap();
        self.to.flush().unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n", "psql refused: {text}");
    }

    /// The row of a new asset whose file is there.
    fn row(&mut self) -> String {
        self.made += 1;
        let id = format!("00000000-0000-4000-8000-{:012x}", self.made);
        let path = format!("upload/{}/{:02x}/{:02x}/{id}.jpg", self.owner, self.made % 7, self.made % 5);
        let size = 500 + self.random.below(20_000);
        let bytes = self.random.bytes(size);
        let whole = self.media.join(&path);
        fs::create_dir_all(whole.parent().unwrap()).unwrap();
        fs::write(&whole, &bytes).unwrap();
        let values = format!(
            "jsonb_build_object('id', '{id}', 'originalPath', '/data/{path}', 'originalFileName', '{}.jpg', 'checksum', '\\x{}', 'status', 'active')",
            self.made,
            Sha1::of(&bytes)
        );
        let row = format!("INSERT INTO asset SELECT (jsonb_populate_record(a, {values})).* FROM asset a WHERE a.id = '{}';", self.model);
        self.assets.push((id, path));
        row
    }

    fn upload(&mut self) {
        let row = self.row();
        self.sql(&row);
    }

    /// The storage template: the file, then the row; or across file systems: copy, row, unlink.
    fn move_one(&mut self) {
        let at = self.random.below(self.assets.len());
        let (id, from) = self.assets[at].clone();
        let to = format!("library/admin/{}/{id}-{}.jpg", 2000 + self.random.below(25), self.random.below(100));
        let (whole_from, whole_to) = (self.media.join(&from), self.media.join(&to));
        fs::create_dir_all(whole_to.parent().unwrap()).unwrap();
        let across = self.random.below(4) == 0;
        if across {
            fs::copy(&whole_from, &whole_to).unwrap();
        } else {
            fs::rename(&whole_from, &whole_to).unwrap();
        }
        // The sidecar goes along.
        let beside = |path: &Path| PathBuf::from(format!("{}.xmp", path.display()));
        if beside(&whole_from).exists() {
            fs::rename(beside(&whole_from), beside(&whole_to)).unwrap();
        }
        self.sql(&format!(
            "UPDATE asset SET \"originalPath\" = '/data/{to}' WHERE id = '{id}'; UPDATE asset_file SET path = '/data/{to}.xmp' WHERE \"assetId\" = '{id}' AND type = 'sidecar'"
        ));
        if across {
            fs::remove_file(&whole_from).unwrap();
        }
        self.assets[at].1 = to;
    }

    /// A description is edited: its sidecar is written anew.
    fn edit(&mut self) {
        let at = self.random.below(self.assets.len());
        let (id, path) = self.assets[at].clone();
        let sidecar = self.media.join(format!("{path}.xmp"));
        let text = format!("<x:xmpmeta>{}</x:xmpmeta>", self.random.next());
        fs::write(&sidecar, text).unwrap();
        self.sql(&format!("INSERT INTO asset_file (\"assetId\", type, path) VALUES ('{id}', 'sidecar', '/data/{path}.xmp') ON CONFLICT DO NOTHING"));
    }

    /// The trash is emptied: the rows, then the files.
    fn delete(&mut self) {
        let at = self.random.below(self.assets.len());
        let (id, path) = self.assets.swap_remove(at);
        self.sql(&format!("DELETE FROM asset WHERE id = '{id}'"));
        fs::remove_file(self.media.join(&path)).unwrap();
        drop(fs::remove_file(self.media.join(format!("{path}.xmp"))));
    }

    fn go_on_until(&mut self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            // Where a tenth of a library goes during one run, somebody has to say that it was meant: not so much is moved away behind the walk, nor deleted.
            let little = |what: &str, of: usize| self.done.get(what).is_none_or(|done| *done < ASSETS / of);
            let (moves, deletes) = (little("moved", 5), little("deleted", 30));
            let (what, act): (_, fn(&mut Self)) = match self.random.below(10) {
                0..4 if moves => ("moved", Self::move_one),
                6..8 if deletes => ("deleted", Self::delete),
                0..8 => ("edited", Self::edit),
                _ => ("uploaded", Self::upload),
            };
            act(self);
            *self.done.entry(what).or_default() += 1;
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

/// SHA-1 of the bytes of each object that holds content of files, by key: read in full.
fn objects(repository: &Path) -> BTreeMap<String, (Sha1, Sha256)> {
    let mut objects = BTreeMap::new();
    for folder in ["library", "versions", "external"] {
        let root = repository.join(folder);
        if !root.exists() {
            continue;
        }
        for path in Tree::of(&root).0.keys() {
            let bytes = fs::read(root.join(support::raw(path))).unwrap();
            objects.insert(format!("{folder}/{}", String::from_utf8(path.clone()).unwrap()), (Sha1::of(&bytes), Sha256::of(&bytes)));
        }
    }
    objects
}

/// The assets with a checksum of their content, of a database that a dump was loaded into: id, path below the media location, SHA-1.
fn assets_of(server: &Postgres, database: &str) -> Vec<(String, String, String)> {
    let rows = server.psql(database, "SELECT id, \"originalPath\", encode(checksum, 'hex') FROM asset WHERE \"checksumAlgorithm\" = 'sha1' ORDER BY id");
    let row = |line: &str| {
        let mut columns = line.split('\t').map(str::to_owned);
        let mut next = || columns.next().unwrap();
        (next(), next().strip_prefix("/data/").unwrap().to_owned(), next())
    };
    rows.lines().map(row).collect()
}

/// The proof of a snapshot, compared with the snapshot's dump and with every byte of the repository.
fn assert_true(immich: &Immich, server: &Postgres, backup: &Ran, database: &str) -> Proof {
    let proof = proof(backup);
    let key = backup.summary()["dump"]["key"].as_str().unwrap().to_owned();
    server.create_loaded(database, Dump::Text(&text_of(&immich.world.repository.join(&key))));
    let objects = objects(&immich.world.repository);
    let stored: BTreeSet<String> = objects.values().map(|(sha1, _)| sha1.to_string()).collect();
    // What the log says of each file that stands is what its object holds.
    let standing = immich.world.run(&["ls", "--json", "--snapshot", &backup.snapshot()]).ended(0).events("file");
    let mut stands = BTreeMap::new();
    for file in &standing {
        let (sha1, sha256) = objects.get(file["key"].as_str().unwrap()).unwrap_or_else(|| panic!("{file} is not there"));
        assert_eq!((file["sha1"].as_str().unwrap(), file["sha256"].as_str().unwrap()), (sha1.to_string().as_str(), sha256.to_string().as_str()));
        stands.insert(sha1.to_string(), file["path"].as_str().unwrap().to_owned());
    }
    let assets = assets_of(server, database);
    assert_eq!(proof.assets, assets.len() as u64 + 4, "and four of the external library");
    let lacking: BTreeMap<String, (Verdict, bool)> = proof
        .named
        .iter()
        .filter(|named| named.thing == Some(Thing::Asset) && matches!(named.verdict, Verdict::Missing | Verdict::Mismatched))
        .map(|named| (named.asset.unwrap().to_string(), (named.verdict, named.kept)))
        .collect();
    assert_eq!(lacking.len() as u64, proof.missing + proof.mismatched, "more is missing than is named: {proof:?}");
    for (id, path, sha1) in &assets {
        match lacking.get(id) {
            None => assert!(stands.contains_key(sha1), "{path} is called proven, and its bytes do not stand in the snapshot"),
            Some((_, true)) => {
                assert!(stored.contains(sha1), "{path} is called kept, and its bytes are not stored");
                assert_eq!(stands.get(sha1), None, "{path} is called missing, and its bytes stand in the snapshot");
            }
            Some((_, false)) => assert!(!stored.contains(sha1), "{path} is called missing, and its bytes are stored"),
        }
    }
    assert_eq!(proof.proven, (assets.len() - lacking.len()) as u64);
    proof
}

#[test]
fn files_moved_edited_deleted_and_uploaded_all_through_a_run_leave_a_true_proof_and_every_asset_comes_back_or_is_named() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    let mut busy = Busy::new(&immich, &server, Random::fresh());
    let rows: String = (0..ASSETS).map(|_| busy.row()).collect();
    busy.sql(&rows);
    for _ in 0..30 {
        busy.edit();
    }
    settle();
    for round in 0..3 {
        let over = AtomicBool::new(false);
        busy.done.clear();
        let backup = std::thread::scope(|scope| {
            let (busy, over) = (&mut busy, &over);
            let churn = scope.spawn(move || busy.go_on_until(over));
            let backup = Running::start(immich.backup_command(&["--workers", "1"])).wait();
            over.store(true, Ordering::Relaxed);
            churn.join().unwrap();
            backup
        });
        assert!([0, 3].contains(&backup.code), "{}", backup.told());
        println!("round {round}: {:?} in {:?}: {}", busy.done, backup.took, proof(&backup).headline());
        assert!(busy.done.values().sum::<usize>() > 20, "nothing happened meanwhile");
        let proof = assert_true(&immich, &server, &backup, &format!("check-{round}"));
        // A run is complete exactly if nothing is missing.
        let missing = proof.missing + proof.mismatched + proof.companions.missing;
        assert_eq!(backup.code == 0, missing == 0 && backup.number("/unread_count") == 0 && backup.number("/doubtful_count") == 0, "{}", backup.told());
        // Each asset of the dump has its bytes where the restored database names it, or is named.
        let database = format!("back-{round}");
        server.create_database(&database);
        let place = immich.place(&database);
        let restored = immich.restore(&place, &arguments(&server, &database), &["--snapshot", &backup.snapshot()]);
        assert!([0, 3].contains(&restored.code), "{}", restored.told());
        let summary = restored.summary();
        let named = summary["found"]["named"].to_string();
        let mut absent = 0;
        for (id, path, sha1) in assets_of(&server, &database) {
            let right = fs::read(place.media.join(&path)).is_ok_and(|bytes| Sha1::of(&bytes).to_string() == sha1);
            if !right {
                absent += 1;
                assert!(named.contains(&path), "{id} at {path} did not come back and is not named\n{}", restored.told());
            }
        }
        assert_eq!(restored.code == 3, absent > 0, "{absent} are absent\n{}", restored.told());
        assert_eq!(server.rows(&database), server.rows(&format!("check-{round}")));
        support::remove(&place.media);
        support::remove(&place.external);
    }
    // When all is quiet again, everything is proven.
    settle();
    let quiet = immich.backup(&[]).ended(0);
    let last = assert_true(&immich, &server, &quiet, "check-quiet");
    assert_eq!((last.missing, last.mismatched, last.moved, last.companions.missing), (0, 0, 0, 0));
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
}
