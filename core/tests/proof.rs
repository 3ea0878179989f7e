//! What real servers of Immich wrote is proven as it is known to be; and each thing that goes wrong with it is named in its class.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::database::stored::StoredDumpError;
use immich_backup_core::event::{Event, Monitor, Phase, Recorder, Silent};
use immich_backup_core::listing::ListError;
use immich_backup_core::model::{RootPath, RunId};
use immich_backup_core::prove::{self, Difference, ProveError};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{Fact, Listed, Pruned};
use immich_backup_core::repository::manifest::{Manifest, Selector, unpack};
use immich_backup_core::repository::store::read_all;
use immich_backup_core::verdict::{Presence, Proof, Thing, Verdict};
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use support::immich::Immich;
use support::{Tampered, World, silent};
use tokio_util::sync::CancellationToken;

const GENERATIONS: [&str; 2] = ["immich-1.135.3", "immich-3.1.0"];

/// What a server left, asked what this file's tests have to know.
struct Fixture(Immich);

impl std::ops::Deref for Fixture {
    type Target = Immich;

    fn deref(&self) -> &Immich {
        &self.0
    }
}

impl Fixture {
    async fn take(generation: &str, external: bool) -> Option<Self> {
        if external { Immich::take_with_external(generation).await.map(Self) } else { Immich::take(generation).await.map(Self) }
    }

    /// Paths of assets of the media location, as people see them, whose row fits.
    fn paths(&self, fits: impl Fn(&serde_json::Value) -> bool) -> Vec<String> {
        let own = |asset: &&serde_json::Value| asset["isExternal"] == false && fits(asset);
        let path = |asset: &serde_json::Value| {
            let path = asset["originalPath"].as_str().unwrap();
            let below = path.strip_prefix("/data/").or_else(|| path.strip_prefix("upload/")).unwrap().to_owned();
            RootPath::from_bytes(below.as_bytes()).unwrap().to_string()
        };
        self.expected["assets"].as_array().unwrap().iter().filter(own).map(path).collect()
    }

    /// The path of an asset that was uploaded and has no sidecar, the first or another.
    fn upload(&self, number: usize) -> String {
        let plain = |asset: &serde_json::Value| {
            asset["type"] == "IMAGE" && asset["originalPath"].as_str().unwrap().contains("upload/upload/")
                || asset["originalPath"].as_str().unwrap().starts_with("/data/upload/")
        };
        self.paths(plain)[number].clone()
    }

    fn on_disk(&self, path: &str) -> PathBuf {
        self.world.library.join(RootPath::parse(path).unwrap().to_path())
    }

    /// Backs up the files, stores the dump `text`, and makes a snapshot of both.
    async fn back_up(&self, text: &str) -> RunId {
        self.back_up_bytes(text.as_bytes(), |_| {}).await
    }

    async fn report(&self, which: &str, state: &str, monitor: &Arc<dyn Monitor>) -> Result<prove::Report, ProveError> {
        let session = self.world.reading(state).await.unwrap();
        let snapshot = session.manifest.select(&which.parse::<Selector>().unwrap()).unwrap();
        let report = prove::prove_snapshot(&session, &snapshot, monitor, &CancellationToken::new()).await;
        let left: Vec<_> = std::fs::read_dir(session.state.manifest().parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("inventory")), "{left:?}");
        report
    }

    async fn proof(&self) -> Proof {
        self.report("latest", "state", &silent()).await.unwrap().proof
    }

    async fn error(&self) -> ProveError {
        self.report("latest", "state", &silent()).await.unwrap_err()
    }

    fn count(&self, what: &str) -> u64 {
        self.expected["counts"][what].as_u64().unwrap()
    }
}

/// What is named: verdict, thing, path, kept.
fn names(proof: &Proof) -> Vec<(Verdict, Option<Thing>, &str, bool)> {
    proof.named.iter().map(|named| (named.verdict, named.thing, named.path.as_str(), named.kept)).collect()
}

#[tokio::test]
async fn each_generation_is_proven_as_it_is_known_to_be() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation, true).await else { return };
        fixture.back_up(&fixture.dump).await;
        let recorder = Arc::new(Recorder::default());
        let report = fixture.report("latest", "state", &(recorder.clone() as Arc<dyn Monitor>)).await.unwrap();
        let proof = report.proof;
        let provable = fixture.paths(|asset| asset["contentMatchesChecksum"] == true).len() as u64;
        assert_eq!((proof.assets, proof.proven, proof.unprovable), (fixture.count("assets"), provable, fixture.count("external")), "{generation}");
        assert_eq!((proof.proven, proof.unprovable), (93, 4));
        assert_eq!((proof.moved, proof.outside, proof.offline, proof.mismatched, proof.missing, proof.untracked), (0, 0, 0, 0, 0, 0), "{:?}", proof.named);
        assert_eq!((proof.headline().as_str(), proof.is_complete(), names(&proof)), ("proven 93 of 93, 4 external", true, vec![]));
        // Nine sidecars and one picture of a user.
        assert_eq!(proof.companions, Presence { present: 10, missing: 0 }, "{generation}");
        let derived = fixture.expected["assets"].as_array().unwrap().iter().flat_map(|asset| asset["files"].as_array().unwrap());
        let encoded =
            fixture.expected["assets"].as_array().unwrap().iter().filter(|asset| asset["encodedVideoPath"].as_str().is_some_and(|path| !path.is_empty()));
        let people = fixture.expected["people"].as_array().unwrap().iter().filter(|person| person["thumbnailPath"] != "");
        let derived = derived.filter(|file| file["type"] != "sidecar").count() + encoded.count() + people.count();
        assert_eq!(proof.derived, Presence { present: derived as u64, missing: 0 }, "{generation}");
        assert_eq!(proof.ages.recorded.assets, 97);
        assert_eq!((proof.ages.listed.assets, proof.ages.read.assets), (0, 0), "nobody has looked yet");
        assert_eq!(report.summary.assets, 97);
        let events = recorder.events();
        let phase = |wanted| {
            events.iter().filter(|event| matches!(event, Event::PhaseStarted { phase, .. } | Event::PhaseFinished { phase } if *phase == wanted)).count()
        };
        assert_eq!((phase(Phase::ReadDump), phase(Phase::Prove)), (2, 2));
        let read: u64 = events.iter().map(|event| if let Event::DumpRead { bytes } = event { *bytes } else { 0 }).sum();
        assert_eq!(read, fixture.dump.len() as u64);
    }
}

#[tokio::test]
async fn an_external_library_that_is_no_part_of_the_backup_is_outside() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation, false).await else { return };
        fixture.back_up(&fixture.dump).await;
        let proof = fixture.proof().await;
        assert_eq!((proof.assets, proof.proven, proof.unprovable, proof.outside, proof.missing), (97, 93, 0, 4, 0), "{generation}");
        assert_eq!(proof.companions, Presence { present: 9, missing: 0 }, "the sidecar that lies there belongs to what is outside");
        assert_eq!((proof.headline().as_str(), proof.is_complete(), proof.is_complete_inside()), ("proven 93 of 93, 4 outside", false, true));
        let paths: Vec<_> = names(&proof).into_iter().map(|(verdict, thing, path, _)| (verdict, thing, path.to_owned())).collect();
        assert!(
            paths.iter().all(|(verdict, thing, path)| (*verdict, *thing) == (Verdict::Outside, Some(Thing::Asset)) && path.starts_with("/mnt/external/")),
            "{paths:?}"
        );
    }
}

#[tokio::test]
async fn what_goes_wrong_in_the_library_is_named_in_its_class() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation, true).await else { return };
        let [flipped, deleted, renamed, forgotten] = [0, 1, 2, 3].map(|number| fixture.upload(number));
        // One byte.
        let mut bytes = std::fs::read(fixture.on_disk(&flipped)).unwrap();
        bytes[100] ^= 1;
        std::fs::write(fixture.on_disk(&flipped), bytes).unwrap();
        std::fs::remove_file(fixture.on_disk(&deleted)).unwrap();
        // As the storage template does.
        let moved = "library/admin/2024/2024-03-11/moved.jpg";
        std::fs::create_dir_all(fixture.on_disk(moved).parent().unwrap()).unwrap();
        std::fs::rename(fixture.on_disk(&renamed), fixture.on_disk(moved)).unwrap();
        // A row less: its file is nobody's.
        let is_row = |line: &&str| line.contains(&format!("{forgotten}\t"));
        assert_eq!(fixture.dump.lines().filter(is_row).count(), 1);
        let dump: String = fixture.dump.lines().filter(|line| !is_row(line)).flat_map(|line| [line, "\n"]).collect();
        fixture.back_up(&dump).await;
        let proof = fixture.proof().await;
        assert_eq!(
            names(&proof),
            [
                (Verdict::Missing, Some(Thing::Asset), deleted.as_str(), false),
                (Verdict::Mismatched, Some(Thing::Asset), flipped.as_str(), false),
                (Verdict::Proven, Some(Thing::Asset), renamed.as_str(), false),
            ]
            .into_iter()
            .chain({
                let mut untracked = [moved, forgotten.as_str()];
                untracked.sort_unstable();
                untracked.map(|path| (Verdict::Untracked, None, path, false))
            })
            .collect::<Vec<_>>(),
            "{generation}"
        );
        assert_eq!((proof.assets, proof.proven, proof.moved, proof.mismatched, proof.missing, proof.untracked), (96, 90, 1, 1, 1, 2));
        assert_eq!(proof.headline(), "proven 90 of 92, 1 mismatched, 1 missing, 4 external");
        for named in proof.named.iter().filter(|named| named.thing == Some(Thing::Asset)) {
            let asset = named.asset.unwrap().to_string();
            let row = fixture.expected["assets"].as_array().unwrap().iter().find(|row| row["id"] == asset.as_str()).unwrap();
            assert!(row["originalPath"].as_str().unwrap().ends_with(&named.path), "{named:?}");
        }
    }
}

#[tokio::test]
async fn an_old_snapshot_is_proven_as_it_was_whatever_happened_since() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    let first = fixture.back_up(&fixture.dump).await;
    let [changed, deleted] = [0, 1].map(|number| fixture.upload(number));
    std::fs::write(fixture.on_disk(&changed), "other content").unwrap();
    std::fs::remove_file(fixture.on_disk(&deleted)).unwrap();
    fixture.back_up(&fixture.dump).await;
    let proof = fixture.proof().await;
    // Both contents are in the repository still.
    assert_eq!(
        names(&proof),
        [(Verdict::Missing, Some(Thing::Asset), deleted.as_str(), true), (Verdict::Mismatched, Some(Thing::Asset), changed.as_str(), true)]
    );
    // From a machine that knows nothing.
    let report = fixture.report(&first.to_string(), "other", &silent()).await.unwrap();
    assert_eq!((report.proof.proven, report.proof.unprovable, report.proof.named), (93, 4, vec![]));
}

#[tokio::test]
async fn an_object_that_was_found_damaged_proves_nothing_and_the_difference_is_told() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    fixture.back_up(&fixture.dump).await;
    let recorded = fixture.proof().await;
    assert_eq!(recorded.ages.read.assets, 0);
    let path = fixture.upload(0);
    let object = fixture.world.repository.join("library").join(RootPath::parse(&path).unwrap().to_path());
    Tampered::with(&object, |mut bytes| {
        bytes[50] ^= 1;
        Some(bytes)
    })
    .keep();
    assert_eq!(fixture.proof().await.proven, 93, "nobody knows it yet");
    assert_eq!(fixture.world.verify("state", true).await.unwrap().damaged, 1);
    let report = fixture.report("latest", "state", &silent()).await.unwrap();
    assert_eq!(names(&report.proof), [(Verdict::Missing, Some(Thing::Asset), path.as_str(), false)]);
    assert_eq!((report.recorded.as_ref(), report.differences.as_slice()), (None, [].as_slice()), "nothing was recorded to compare with");
    let difference = |what, recorded, now| Difference { what, recorded, now };
    assert_eq!(prove::differences(&recorded, &report.proof), [difference("proven", 93, 92), difference("missing", 0, 1)]);
    let ages = report.proof.ages;
    assert_eq!((ages.recorded.assets, ages.listed.assets, ages.read.assets), (96, 96, 96));
    assert!(ages.read.oldest >= ages.recorded.oldest);
}

#[tokio::test]
async fn the_proof_that_was_recorded_is_compared_with() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    fixture.back_up(&fixture.dump).await;
    let proof = fixture.proof().await;
    let mut session = fixture.world.writing(fixture.world.directory(), "state").await.unwrap();
    let latest = session.manifest.latest_snapshot().unwrap().unwrap().fact;
    let started = session.manifest.runs(1).unwrap().remove(0).started;
    let recorded = Proof { missing: 1, proven: 92, ..proof.clone() };
    let run = RunId::random();
    let snapshot = immich_backup_core::repository::log::SnapshotFact { proof: Some(recorded.clone()), ..latest };
    session.commit(Some(run), &[Fact::RunStarted(started), Fact::Snapshot(Box::new(snapshot))], &Silent).await.unwrap();
    drop(session);
    let report = fixture.report("latest", "state", &silent()).await.unwrap();
    assert_eq!(report.recorded, Some(recorded));
    assert_eq!(report.differences, [Difference { what: "proven", recorded: 92, now: 93 }, Difference { what: "missing", recorded: 1, now: 0 }]);
}

#[tokio::test]
async fn a_listing_says_nothing_of_what_was_stored_while_it_ran() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    fixture.back_up(&fixture.dump).await;
    let mut session = fixture.world.writing(fixture.world.directory(), "state").await.unwrap();
    let at = Timestamp::now();
    // It began before the run did, and was written down after its end.
    session.commit(None, &[Fact::Listed(Listed { at, sequence: 0, objects: 0, damaged: 0 })], &Silent).await.unwrap();
    drop(session);
    assert_eq!(fixture.proof().await.ages.listed.assets, 0);
    let mut session = fixture.world.writing(fixture.world.directory(), "state").await.unwrap();
    let sequence = session.manifest.head().sequence;
    session.commit(None, &[Fact::Listed(Listed { at, sequence, objects: 0, damaged: 0 })], &Silent).await.unwrap();
    drop(session);
    let listed = fixture.proof().await.ages.listed;
    assert_eq!((listed.assets, listed.oldest), (97, Some(at)));
}

#[tokio::test]
async fn a_snapshot_without_a_dump_cannot_be_proven() {
    let world = World::with_files(1).await;
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let error = prove::prove_snapshot(&session, &snapshot, &silent(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ProveError::Listing(ListError::NoDump { .. })), "{error}");
    assert!(error.hint().is_some());
    let mut named = snapshot;
    named.fact.dump = Some("database/none.sql.gz".to_owned());
    let error = prove::prove_snapshot(&session, &named, &silent(), &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, ProveError::Listing(ListError::UnknownDump { .. })), "{error}");
}

#[tokio::test]
async fn a_dump_that_was_pruned_or_is_damaged_or_cut_or_of_another_database_proves_nothing() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    // Stored whole by its SHA-256, and yet not whole.
    let middle = fixture.dump.find("COPY public.asset ").unwrap() + 2_000;
    let middle = middle + fixture.dump[middle..].find('\n').unwrap() + 1;
    fixture.back_up(&fixture.dump[..middle]).await;
    let error = fixture.error().await;
    assert!(matches!(error, ProveError::Listing(ListError::Inventory { .. })), "{error:?}");

    // Whole, and without a table of assets.
    fixture.back_up(&fixture.dump.replace("COPY public.asset ", "COPY public.thing ")).await;
    let error = fixture.error().await;
    assert!(matches!(error, ProveError::Listing(ListError::NotImmich { .. })), "{error:?}");

    let run = fixture.back_up(&fixture.dump).await;
    let session = fixture.world.reading("state").await.unwrap();
    let key = session.manifest.latest_snapshot().unwrap().unwrap().fact.dump.unwrap();
    drop(session);
    let path = fixture.world.repository.join(&key);
    for change in [|bytes: &mut Vec<u8>| bytes[40] ^= 1, |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2), |bytes: &mut Vec<u8>| bytes.push(0)] {
        let _damaged = Tampered::with(&path, |mut bytes| {
            change(&mut bytes);
            Some(bytes)
        });
        let error = fixture.error().await;
        assert!(matches!(error, ProveError::Listing(ListError::Dump(StoredDumpError::Different { .. }))), "{error:?}");
    }
    let gone = Tampered::with(&path, |_| None);
    let error = fixture.error().await;
    assert!(matches!(error, ProveError::Listing(ListError::Dump(StoredDumpError::Store { .. }))), "{error:?}");
    drop(gone);
    assert_eq!(fixture.proof().await.proven, 93);

    let mut session = fixture.world.writing(fixture.world.directory(), "state").await.unwrap();
    let pruned = Pruned { at: Timestamp::now(), keys: vec![key.clone()], rule: "test".to_owned(), removed_up_to: None };
    session.commit(None, &[Fact::Pruned(pruned)], &Silent).await.unwrap();
    drop(session);
    let error = fixture.report(&run.to_string(), "state", &silent()).await.unwrap_err();
    assert!(matches!(&error, ProveError::Listing(ListError::Pruned { key: named, .. }) if *named == key), "{error:?}");
    assert!(error.hint().unwrap().contains("--snapshot"));
}

#[tokio::test]
async fn who_asks_to_stop_is_heeded() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    fixture.back_up(&fixture.dump).await;
    let session = fixture.world.reading("state").await.unwrap();
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let error = prove::prove_snapshot(&session, &snapshot, &silent(), &stop).await.unwrap_err();
    assert!(matches!(error, ProveError::Interrupted), "{error:?}");
}

#[tokio::test]
async fn a_copy_of_the_manifest_knows_of_dumps_and_looks_as_the_manifest_does() {
    let Some(fixture) = Fixture::take("immich-3.1.0", true).await else { return };
    fixture.back_up(&fixture.dump).await;
    fixture.world.verify("state", true).await.unwrap();
    let session = fixture.world.reading("state").await.unwrap();
    let [plain, packed, unpacked] = ["plain.db", "packed.db.zst", "unpacked.db"].map(|name| fixture.world.beside(name));
    session.manifest.pack(&plain, &packed).unwrap();
    unpack(&packed, &unpacked).unwrap();
    let copy = Manifest::open(&unpacked, session.repository.id).unwrap().unwrap();
    assert_eq!(copy.dumps().unwrap(), session.manifest.dumps().unwrap());
    assert_eq!(copy.dumps().unwrap().len(), 1);
    for kind in ["listed", "read"] {
        assert_eq!(copy.verifications(kind).unwrap(), session.manifest.verifications(kind).unwrap());
        assert_eq!(copy.verifications(kind).unwrap().len(), 1);
    }
    assert!(read_all(fixture.world.directory().as_ref(), &Key::parse(&copy.dumps().unwrap()[0].fact.key).unwrap(), u64::MAX).await.is_ok());
}
