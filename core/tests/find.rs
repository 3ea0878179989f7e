//! Assets are found by what they mean to people, from a snapshot's dump and the log alone, and their files come back: in what real servers wrote.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::database::inventory::{Kind as AssetKind, Meaning};
use immich_backup_core::event::{Event, Phase, Recorder, Silent};
use immich_backup_core::find::{self, FileName, FindError, Hit, Query, Selection};
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::listing::ListError;
use immich_backup_core::model::RunId;
use immich_backup_core::repository::Session;
use immich_backup_core::repository::log::{Fact, Pruned};
use immich_backup_core::repository::manifest::{Selector, SnapshotRow};
use immich_backup_core::restore;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use support::immich::Immich;
use support::{World, contents, copy_folder, silent, workers};
use tokio_util::sync::CancellationToken;

const GENERATIONS: [&str; 2] = ["immich-1.135.3", "immich-3.1.0"];
const SUMMER: &str = "Summer 🌞 'n' sea";

/// What a server left, asked what this file's tests have to know.
struct Fixture(Immich);

impl std::ops::Deref for Fixture {
    type Target = Immich;

    fn deref(&self) -> &Immich {
        &self.0
    }
}

/// One row of the dump, by the names of its columns.
type Row = BTreeMap<String, String>;

impl Fixture {
    async fn take(generation: &str) -> Option<Self> {
        Immich::take(generation).await.map(Self)
    }

    /// All rows of one of these tables, read the plain way.
    fn rows(&self, tables: &[&str]) -> Vec<Row> {
        let mut lines = self.dump.lines();
        let heads: Vec<_> = tables.iter().map(|table| format!("COPY public.{table} (")).collect();
        let head = lines.find_map(|line| heads.iter().find_map(|head| line.strip_prefix(head.as_str()))).unwrap();
        let columns: Vec<_> = head.strip_suffix(") FROM stdin;").unwrap().split(", ").map(|column| column.trim_matches('"').to_owned()).collect();
        lines.take_while(|line| *line != "\\.").map(|line| columns.iter().cloned().zip(line.split('\t').map(str::to_owned)).collect()).collect()
    }

    fn assets(&self) -> &[Value] {
        self.expected["assets"].as_array().unwrap()
    }

    fn asset(&self, id: &str) -> &Value {
        self.assets().iter().find(|asset| asset["id"] == id).unwrap()
    }

    /// Videos of live photos: they belong to their photo.
    fn live_videos(&self) -> BTreeSet<String> {
        self.assets().iter().filter_map(|asset| asset["livePhotoVideoId"].as_str()).map(str::to_owned).collect()
    }

    /// Ids of assets that fit, but for videos of live photos.
    fn ids(&self, fits: impl Fn(&Value) -> bool) -> BTreeSet<String> {
        let live = self.live_videos();
        let ids = self.assets().iter().filter(|asset| fits(asset)).map(|asset| asset["id"].as_str().unwrap().to_owned());
        ids.filter(|id| !live.contains(id)).collect()
    }

    fn album(&self, name: &str) -> BTreeSet<String> {
        let album = self.expected["albums"].as_array().unwrap().iter().find(|album| album["albumName"] == name).unwrap();
        album["assetIds"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// Paths below the media location of the original and the sidecars of an asset, and of its live photo's video.
    fn files(&self, id: &str) -> BTreeSet<PathBuf> {
        let asset = self.asset(id);
        let sidecars = asset["files"].as_array().unwrap().iter().filter(|file| file["type"] == "sidecar").map(|file| &file["path"]);
        let paths = [&asset["originalPath"], &asset["sidecarPath"]].into_iter().chain(sidecars).filter_map(Value::as_str);
        let below = |path: &str| path.strip_prefix("/data/").or_else(|| path.strip_prefix("upload/")).map(PathBuf::from);
        let mut files: BTreeSet<_> = paths.filter(|path| !path.is_empty()).filter_map(below).collect();
        files.extend(asset["livePhotoVideoId"].as_str().into_iter().flat_map(|video| self.files(video)));
        files
    }

    async fn back_up(&self) -> RunId {
        self.back_up_with(&self.dump.clone()).await
    }

    /// Backs up the files, stores the dump `text`, and makes a snapshot of both.
    async fn back_up_with(&self, text: &str) -> RunId {
        self.back_up_bytes(text.as_bytes(), |_| {}).await
    }

    /// The dump without these assets.
    fn dump_without(&self, ids: &[&str]) -> String {
        self.dump.lines().filter(|line| ids.iter().all(|id| !line.contains(id))).map(|line| format!("{line}\n")).collect()
    }

    fn remove_files(&self, id: &str) {
        for path in self.files(id) {
            self.world.remove(path.to_str().unwrap());
        }
    }
}

fn snapshot(session: &Session, which: &str) -> SnapshotRow {
    let selector: Selector = which.parse().unwrap();
    session.manifest.select(&selector).unwrap()
}

async fn try_find(world: &World, query: &Query, which: Option<&str>) -> Result<Vec<Hit>, FindError> {
    let session = world.reading("reader").await.unwrap();
    let snapshot = which.map(|which| snapshot(&session, which));
    let mut hits = Vec::new();
    let count = find::find(&session, query, snapshot.as_ref(), &Silent, &CancellationToken::new(), &mut |hit| hits.push(hit)).await?;
    assert_eq!(count, hits.len() as u64);
    let left: Vec<_> = support::files(&world.beside("reader")).into_iter().filter(|path| path.to_str().unwrap().contains("scratch")).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "scratch files are thrown away");
    Ok(hits)
}

async fn ids_of(world: &World, query: &Query) -> BTreeSet<String> {
    try_find(world, query, None).await.unwrap().into_iter().map(|hit| hit.asset.id.to_string()).collect()
}

fn by(change: impl FnOnce(&mut Meaning)) -> Query {
    let mut query = Query::default();
    change(&mut query.meaning);
    query
}

fn in_album(name: &str) -> Query {
    by(|meaning| meaning.albums.push(name.to_owned()))
}

fn deleted() -> Query {
    Query { deleted: true, ..Query::default() }
}

async fn choose(session: &Session, query: &Query, which: Option<&str>) -> Result<Selection, FindError> {
    let snapshot = which.map(|which| snapshot(session, which));
    find::choose(session, query, snapshot.as_ref(), &Silent, &CancellationToken::new()).await
}

/// Restores what `query` means to a new folder, from a state folder that never saw the repository.
async fn restore(world: &World, query: &Query, which: Option<&str>, paths: &[&str], to: &Path) -> (Selection, restore::Report) {
    let session = world.reading(&format!("restorer-{}", to.file_name().unwrap().to_str().unwrap())).await.unwrap();
    let selection = choose(&session, query, which).await.unwrap();
    let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
    let plan = restore::Plan {
        snapshot: snapshot(&session, which.unwrap_or("latest")),
        to: Some(to.to_owned()),
        externals: BTreeMap::new(),
        mounts: Vec::new(),
        config_to: None,
        postgres_to: None,
        paths: Patterns::new(&paths).unwrap(),
        chosen: Some(std::sync::Arc::clone(&selection.chosen)),
        overwrite: false,
        workers: workers(2),
    };
    let stop = CancellationToken::new();
    let prepared = restore::prepare(&session, plan, &Silent, &stop).await.unwrap();
    let report = Box::pin(prepared.run(&session, &silent(), &stop)).await.unwrap();
    (selection, report)
}

/// Exactly these files of the library lie in `to`, with its bytes.
fn has_exactly(world: &World, to: &Path, files: &BTreeSet<PathBuf>) {
    let found = contents(to);
    assert_eq!(&found.keys().cloned().collect::<BTreeSet<_>>(), files);
    assert_eq!(support::files(to).len(), files.len(), "and no markers: it is a part");
    for (path, content) in found {
        assert!(content == std::fs::read(world.library.join(&path)).unwrap(), "{}", path.display());
    }
}

#[tokio::test]
async fn assets_are_found_by_album_user_person_trash_and_type() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        fixture.back_up().await;
        let world = &fixture.world;
        let summer = fixture.album(SUMMER);
        assert_eq!(summer.len(), 11);
        assert_eq!(ids_of(world, &in_album(SUMMER)).await, summer);
        assert_eq!(ids_of(world, &in_album("summer*")).await, summer);
        assert_eq!(ids_of(world, &in_album("EMPTY")).await, BTreeSet::new());
        let annas = fixture.ids(|asset| asset["ownerEmail"] == "anna@lab.test");
        assert!(annas.len() > 10);
        assert_eq!(ids_of(world, &by(|meaning| meaning.users.push("anna@lab.test".to_owned()))).await, annas);
        assert_eq!(ids_of(world, &by(|meaning| meaning.users.push("ANNA".to_owned()))).await, annas);
        let both = by(|meaning| {
            meaning.albums.push(SUMMER.to_owned());
            meaning.users.push("anna@lab.test".to_owned());
        });
        assert_eq!(ids_of(world, &both).await, summer.intersection(&annas).cloned().collect());
        let grandma = fixture.expected["people"][0]["id"].as_str().unwrap();
        let faces = fixture.rows(&["asset_face", "asset_faces"]);
        let with_grandma: BTreeSet<_> = faces.iter().filter(|face| face["personId"] == grandma).map(|face| face["assetId"].clone()).collect();
        assert!(!with_grandma.is_empty());
        assert_eq!(ids_of(world, &by(|meaning| meaning.persons.push("grandma é".to_owned()))).await, with_grandma);
        let trashed = fixture.ids(|asset| asset["isTrashed"] == true);
        assert_eq!(trashed.len(), 2);
        assert_eq!(ids_of(world, &by(|meaning| meaning.trashed = Some(true))).await, trashed);
        let videos = fixture.ids(|asset| asset["type"] == "VIDEO");
        assert!(videos.len() >= 3);
        assert_eq!(ids_of(world, &by(|meaning| meaning.kind = Some(AssetKind::Video))).await, videos);
        assert_eq!(ids_of(world, &Query::default()).await, fixture.ids(|_| true));
    }
}

#[tokio::test]
async fn assets_are_found_by_the_time_on_the_clock_where_they_were_taken() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        fixture.back_up().await;
        let time = |row: &Row| format!("{}Z", row["localDateTime"].replace(' ', "T").trim_end_matches("+00")).parse::<Timestamp>().unwrap();
        let rows = fixture.rows(&["asset", "assets"]);
        let (since, until): (Timestamp, Timestamp) = ("2019-01-01T00:00:00Z".parse().unwrap(), "2020-08-14T10:11:12Z".parse().unwrap());
        let live = fixture.live_videos();
        let expected: BTreeSet<_> =
            rows.iter().filter(|row| (since..until).contains(&time(row))).map(|row| row["id"].clone()).filter(|id| !live.contains(id)).collect();
        assert!(!expected.is_empty() && expected.len() < rows.len() / 2, "{}", expected.len());
        let query = by(|meaning| (meaning.since, meaning.until) = (Some(since), Some(until)));
        let hits = try_find(&fixture.world, &query, None).await.unwrap();
        assert_eq!(hits.iter().map(|hit| hit.asset.id.to_string()).collect::<BTreeSet<_>>(), expected);
        assert!(hits.is_sorted_by_key(|hit| hit.asset.taken_at), "in the order of time");
    }
}

#[tokio::test]
async fn assets_are_found_by_a_part_of_their_name_or_a_glob_over_it() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up().await;
    let named = |text: &str| Query { name: Some(FileName::new(text).unwrap()), ..Query::default() };
    let has = |asset: &Value, part: &str| asset["originalFileName"].as_str().unwrap().to_lowercase().contains(part);
    let birthdays = fixture.ids(|asset| has(asset, "birthday"));
    assert!(birthdays.len() > 3);
    assert_eq!(ids_of(&fixture.world, &named("BIRTHDAY")).await, birthdays);
    assert_eq!(ids_of(&fixture.world, &named("Übergröße 202*")).await, fixture.ids(|asset| has(asset, "übergröße 202")));
    assert_eq!(ids_of(&fixture.world, &named("*.tiff")).await.len(), fixture.ids(|asset| has(asset, ".tiff")).len());
    assert_eq!(ids_of(&fixture.world, &named("birthday*")).await, BTreeSet::new(), "a glob is over all of the name");
    assert!(matches!(FileName::new("a[").unwrap_err(), FindError::Pattern { .. }));
}

#[tokio::test]
async fn a_hit_says_what_people_want_to_know() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    let run = fixture.back_up().await;
    let hits = try_find(&fixture.world, &in_album(SUMMER), None).await.unwrap();
    for hit in hits {
        let expected = fixture.asset(&hit.asset.id.to_string());
        assert_eq!(hit.snapshot, run);
        assert_eq!(hit.asset.owner_email.as_deref(), expected["ownerEmail"].as_str());
        assert_eq!(hit.asset.original_name, expected["originalFileName"].as_str().unwrap());
        assert_eq!(hit.asset.albums, [SUMMER]);
        assert_eq!(format!("/data/{}", hit.asset.file.unwrap()), expected["originalPath"].as_str().unwrap());
        assert_eq!(hit.asset.sha1.unwrap().to_string(), expected["sha1"].as_str().unwrap());
    }
}

#[tokio::test]
async fn a_name_that_is_not_there_is_an_error_that_tells_names_like_it() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up().await;
    let refused = async |query: Query| match try_find(&fixture.world, &query, None).await.unwrap_err() {
        error @ FindError::Unknown { .. } => (error.to_string(), error.hint().unwrap()),
        other => panic!("{other}"),
    };
    let (message, hint) = refused(in_album("sumer")).await;
    assert_eq!(message, "there is no album `sumer`");
    assert!(hint.contains("Summer"), "a slip in one word: {hint}");
    let (_, hint) = refused(in_album("winter")).await;
    assert!(!hint.contains("did you mean"), "{hint}");
    let (_, hint) = refused(in_album("Summer")).await;
    assert!(hint.contains("did you mean `Summer 🌞 \\'n\\' sea`") || hint.contains(SUMMER), "{hint}");
    let (message, hint) = refused(by(|meaning| meaning.users.push("ana@lab.test".to_owned()))).await;
    assert_eq!(message, "there is no user `ana@lab.test`");
    assert!(hint.contains("`anna@lab.test`"), "{hint}");
    let (message, hint) = refused(by(|meaning| meaning.persons.push("Grandma E".to_owned()))).await;
    assert_eq!(message, "there is no person `Grandma E`");
    assert!(hint.contains("Grandma É"), "{hint}");
    let typo_beside_a_right_one = by(|meaning| meaning.albums = vec![SUMMER.to_owned(), "Anna privat".to_owned()]);
    assert!(refused(typo_beside_a_right_one).await.1.contains("`Anna private`"));
}

#[tokio::test]
async fn a_snapshot_without_a_dump_is_an_error_with_the_remedy() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.world.back_up().await;
    let error = try_find(&fixture.world, &in_album(SUMMER), None).await.unwrap_err();
    assert!(matches!(error, FindError::Listing(ListError::NoDump { .. })) && error.hint().unwrap().contains("--snapshot"), "{error}");
    assert!(matches!(try_find(&fixture.world, &deleted(), None).await.unwrap_err(), FindError::NothingEarlier));
    let first = fixture.back_up().await;
    fixture.back_up().await;
    let mut session = fixture.world.writing(fixture.world.directory(), "state").await.unwrap();
    let key = snapshot(&session, &first.to_string()).fact.dump.unwrap();
    let pruned = Pruned { at: Timestamp::now(), keys: vec![key], rule: "test".to_owned(), removed_up_to: None };
    session.commit(None, &[Fact::Pruned(pruned)], &Silent).await.unwrap();
    drop(session);
    let error = try_find(&fixture.world, &in_album(SUMMER), Some(&first.to_string())).await.unwrap_err();
    assert!(matches!(error, FindError::Listing(ListError::Pruned { ref snapshot, .. }) if *snapshot == first.short()), "{error}");
    assert!(matches!(try_find(&fixture.world, &deleted(), None).await.unwrap_err(), FindError::NothingEarlier));
}

#[tokio::test]
async fn a_dump_that_is_damaged_or_not_immichs_finds_nothing() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up_with("--\n-- PostgreSQL database dump\n--\n\n--\n-- PostgreSQL database dump complete\n--\n").await;
    let error = try_find(&fixture.world, &Query::default(), None).await.unwrap_err();
    assert!(matches!(error, FindError::Listing(ListError::NotImmich { .. })), "{error}");
    let run = fixture.back_up().await;
    let session = fixture.world.reading("reader").await.unwrap();
    let key = snapshot(&session, &run.to_string()).fact.dump.unwrap();
    support::Tampered::with(&fixture.world.repository.join(key), |mut bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        Some(bytes)
    })
    .keep();
    let error = try_find(&fixture.world, &Query::default(), None).await.unwrap_err();
    assert!(matches!(&error, FindError::Listing(listing) if listing.is_damage()), "{error}");
}

#[tokio::test]
async fn what_was_deleted_is_found_in_the_newest_snapshot_that_still_had_it() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        // Not the one that the album is shown by: its id stands in the album's own row.
        let covers: BTreeSet<_> = fixture.rows(&["album", "albums"]).into_iter().map(|album| album["albumThumbnailAssetId"].clone()).collect();
        let summer: Vec<_> = fixture.album(SUMMER).into_iter().filter(|id| !covers.contains(id)).collect();
        let (first, second) = (summer[0].as_str(), summer[5].as_str());
        let runs = [
            fixture.back_up().await,
            fixture.back_up_with(&fixture.dump_without(&[first])).await,
            fixture.back_up_with(&fixture.dump_without(&[first, second])).await,
        ];
        let found = async |query: &Query, which: Option<RunId>| {
            let hits = try_find(&fixture.world, query, which.map(|run| run.to_string()).as_deref()).await.unwrap();
            hits.into_iter().map(|hit| (hit.asset.id.to_string(), hit.snapshot)).collect::<BTreeSet<_>>()
        };
        let (of_first, of_second) = ((first.to_owned(), runs[0]), (second.to_owned(), runs[1]));
        assert_eq!(found(&deleted(), None).await, [of_first.clone(), of_second.clone()].into());
        assert_eq!(found(&deleted(), Some(runs[1])).await, [of_second].into());
        assert_eq!(found(&deleted(), Some(runs[0])).await, [of_first.clone(), (second.to_owned(), runs[0])].into());
        let error = try_find(&fixture.world, &deleted(), Some(&runs[2].to_string())).await.unwrap_err();
        assert!(matches!(error, FindError::NothingEarlier), "{error}");
        // The album of a deleted asset is looked for where the asset was.
        let in_album = Query { deleted: true, ..in_album(SUMMER) };
        assert_eq!(found(&in_album, None).await.len(), 2);
        let elsewhere = Query { deleted: true, ..self::in_album("Anna private") };
        assert_eq!(found(&elsewhere, None).await.len(), 0);
        let nowhere = Query { deleted: true, ..self::in_album("Anna's") };
        assert!(matches!(try_find(&fixture.world, &nowhere, None).await.unwrap_err(), FindError::Unknown { .. }));
    }
}

#[tokio::test]
async fn restore_of_an_album_writes_exactly_its_files() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        fixture.back_up().await;
        let files: BTreeSet<_> = fixture.album(SUMMER).iter().flat_map(|id| fixture.files(id)).collect();
        assert!(files.len() > 11 && files.iter().any(|path| path.extension().unwrap() == "xmp"), "sidecars too: {files:?}");
        let to = fixture.world.beside(generation);
        let (selection, report) = restore(&fixture.world, &in_album(SUMMER), None, &[], &to).await;
        assert_eq!((selection.assets, selection.missing, selection.by_content, selection.mismatched), (11, 0, 0, 0));
        assert_eq!(report.written, selection.chosen.files());
        has_exactly(&fixture.world, &to, &files);
    }
}

#[tokio::test]
async fn a_path_and_a_meaning_together_mean_both() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up().await;
    let files: BTreeSet<_> = fixture.album(SUMMER).iter().flat_map(|id| fixture.files(id)).filter(|path| path.extension().unwrap() == "xmp").collect();
    assert!(!files.is_empty());
    let to = fixture.world.beside("both");
    restore(&fixture.world, &in_album(SUMMER), None, &["**/*.xmp"], &to).await;
    has_exactly(&fixture.world, &to, &files);
}

#[tokio::test]
async fn the_video_of_a_live_photo_comes_with_it() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        fixture.back_up().await;
        let photo = fixture.assets().iter().find(|asset| asset["livePhotoVideoId"].is_string()).unwrap();
        let query = Query { name: Some(FileName::new(photo["originalFileName"].as_str().unwrap()).unwrap()), ..Query::default() };
        let files = fixture.files(photo["id"].as_str().unwrap());
        assert_eq!(files.len(), 2);
        let to = fixture.world.beside(generation);
        restore(&fixture.world, &query, None, &[], &to).await;
        has_exactly(&fixture.world, &to, &files);
    }
}

#[tokio::test]
async fn what_moved_since_the_dump_is_restored_from_where_it_stands() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    let ids: Vec<_> = fixture.album(SUMMER).into_iter().collect();
    let plain = ids.iter().find(|id| fixture.files(id).len() == 1).unwrap();
    let from = fixture.files(plain).pop_first().unwrap();
    // The dump names the old path; the walk came after the move.
    fixture.world.rename(from.to_str().unwrap(), "library/admin/moved.jpg");
    fixture.back_up().await;
    let mut files: BTreeSet<_> = ids.iter().flat_map(|id| fixture.files(id)).collect();
    files.remove(&from);
    files.insert("library/admin/moved.jpg".into());
    let to = fixture.world.beside("to");
    let (selection, _) = restore(&fixture.world, &in_album(SUMMER), None, &[], &to).await;
    assert_eq!((selection.by_content, selection.missing), (1, 0));
    has_exactly(&fixture.world, &to, &files);
}

#[tokio::test]
async fn what_is_stored_nowhere_is_named_and_what_has_other_bytes_is_named_too() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    let ids: Vec<_> = fixture.album(SUMMER).into_iter().collect();
    let plain: Vec<_> = ids.iter().filter(|id| fixture.files(id).len() == 1).map(|id| fixture.files(id).pop_first().unwrap()).collect();
    fixture.world.remove(plain[0].to_str().unwrap());
    fixture.world.write(plain[1].to_str().unwrap(), b"not what Immich recorded");
    fixture.back_up().await;
    let to = fixture.world.beside("to");
    let (selection, report) = restore(&fixture.world, &in_album(SUMMER), None, &[], &to).await;
    assert_eq!((selection.missing, selection.mismatched, report.failed), (1, 1, 0));
    let names: BTreeSet<_> = selection.named.iter().map(PathBuf::from).collect();
    assert_eq!(names, [plain[0].clone(), plain[1].clone()].into());
    assert_eq!(std::fs::read(to.join(&plain[1])).unwrap(), b"not what Immich recorded");
}

#[tokio::test]
async fn deleted_assets_come_back_with_their_sidecars_from_what_is_archived() {
    for generation in GENERATIONS {
        let Some(fixture) = Fixture::take(generation).await else { return };
        let untouched = fixture.world.beside("untouched");
        copy_folder(&fixture.world.library, &untouched);
        let ids: Vec<_> = fixture.album(SUMMER).into_iter().collect();
        let with_sidecar = ids.iter().find(|id| fixture.files(id).len() == 2).unwrap().as_str();
        let plain = ids.iter().find(|id| fixture.files(id).len() == 1).unwrap().as_str();
        let first = fixture.back_up().await;
        fixture.remove_files(with_sidecar);
        fixture.back_up_with(&fixture.dump_without(&[with_sidecar])).await;
        fixture.remove_files(plain);
        fixture.back_up_with(&fixture.dump_without(&[with_sidecar, plain])).await;
        let files: BTreeSet<_> = [with_sidecar, plain].iter().flat_map(|id| fixture.files(id)).collect();
        assert_eq!(files.len(), 3);
        for (name, which) in [("all".to_owned(), None), ("first".to_owned(), Some(first.to_string()))] {
            let to = fixture.world.beside(&name);
            let (selection, _) = restore(&fixture.world, &deleted(), which.as_deref(), &[], &to).await;
            assert_eq!((selection.assets, selection.missing, selection.mismatched), (2, 0, 0));
            let found = contents(&to);
            assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), files);
            for (path, content) in found {
                assert!(content == std::fs::read(untouched.join(&path)).unwrap(), "{}", path.display());
            }
        }
    }
}

#[tokio::test]
async fn assets_of_an_external_library_come_back_below_its_name() {
    let Some(fixture) = Immich::take_with_external("immich-3.1.0").await.map(Fixture) else { return };
    fixture.back_up().await;
    let query = Query { name: Some(FileName::new("{ext ?,été}.jpg").unwrap()), ..Query::default() };
    let hits = try_find(&fixture.world, &query, None).await.unwrap();
    let external = fixture.ids(|asset| asset["isExternal"] == true);
    assert_eq!(hits.iter().map(|hit| hit.asset.id.to_string()).collect::<BTreeSet<_>>(), external);
    let to = fixture.world.beside("to");
    let (selection, _) = restore(&fixture.world, &query, None, &[], &to).await;
    assert_eq!((selection.assets, selection.missing), (4, 0));
    // Four originals and the sidecar of one.
    let found = contents(&to);
    assert_eq!(found.len(), 5, "{:?}", found.keys());
    for (path, content) in found {
        let source = fixture.external.as_ref().unwrap().join(path.strip_prefix("external/nas").unwrap());
        assert!(content == std::fs::read(source).unwrap(), "{}", path.display());
    }
}

#[tokio::test]
async fn an_asset_outside_of_the_backup_is_found_and_its_file_is_called_missing() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up().await;
    let query = Query { name: Some(FileName::new("{ext ?,été}.jpg").unwrap()), ..Query::default() };
    assert!(try_find(&fixture.world, &query, None).await.unwrap().iter().all(|hit| hit.asset.file.is_none()));
    let session = fixture.world.reading("reader").await.unwrap();
    let selection = choose(&session, &query, None).await.unwrap();
    assert_eq!((selection.assets, selection.missing, selection.chosen.files().files), (4, 4, 0));
}

#[tokio::test]
async fn reading_the_dump_is_told_and_may_be_stopped() {
    let Some(fixture) = Fixture::take("immich-3.1.0").await else { return };
    fixture.back_up().await;
    let session = fixture.world.reading("reader").await.unwrap();
    let (recorder, stop) = (Recorder::default(), CancellationToken::new());
    find::find(&session, &Query::default(), None, &recorder, &stop, &mut |_| {}).await.unwrap();
    let events = recorder.events();
    let read: u64 = events.iter().filter_map(|event| if let Event::DumpRead { bytes } = event { Some(*bytes) } else { None }).sum();
    assert_eq!(read, fixture.dump.len() as u64);
    assert!(events.contains(&Event::PhaseFinished { phase: Phase::ReadDump }));
    stop.cancel();
    let error = find::find(&session, &Query::default(), None, &recorder, &stop, &mut |_| {}).await.unwrap_err();
    assert!(matches!(error, FindError::Interrupted), "{error}");
}
