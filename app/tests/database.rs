//! A backup of Immich is its files and its database, in agreement: both go out, are proven against each other, and come back, by what real servers wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stand;
mod support;

use immich::{Immich, all, arguments, assert_names_only, flip, found, named, numbers, proof, text_of};
use immich_backup_core::model::Sha1;
use immich_backup_core::verdict::{Proof, Thing, Verdict};
use immich_backup_testbed::fixture::{Fixture, IMMICH_1, IMMICH_3};
use immich_backup_testbed::postgres::{Dump, Options, Postgres};
use stand::Stand;
use std::fs;
use support::{Ran, Tree, settle};

/// Backs all of it up, compares the proof with expected.json, and brings files and rows back.
fn goes_out_proven_and_comes_back(immich: &Immich, server: &Postgres) {
    let expected = immich.expected();
    let trees = immich.trees();
    let backup = immich.backup(&[]).ended(0);
    let proven = proof(&backup);
    assert_eq!(numbers(&proven), expected);
    assert_eq!(proven.named, [], "there is nothing to name");
    assert_eq!(proven.headline(), "proven 93 of 93, 4 external");
    assert_eq!(backup.number("/files/seen"), (trees.0.len() + trees.1.len()) as u64);
    // All 97 were recorded by this run, and nothing was listed or read since.
    assert_eq!((proven.ages.recorded.assets, proven.ages.listed.assets, proven.ages.read.assets), (97, 0, 0));
    let dump = backup.summary()["dump"].clone();
    let key = dump["key"].as_str().unwrap();
    assert!(key.starts_with("database/") && key.ends_with(&format!("-immich-v{}.sql.gz", immich.fixture.expected.version)), "{key}");
    let counted: u64 = server.counts("immich").values().sum();
    assert_eq!(dump["rows"].as_u64(), Some(counted));
    // What Immich knows of each asset is what the backup says of it, by name.
    let hits = found(&immich.world.run(&["find", "--json"]).ended(0));
    // The video of a live photo is not found by itself: it belongs to its photo.
    let live: Vec<_> = immich.fixture.expected.assets.iter().filter_map(|asset| asset.live_photo_video_id.as_ref()).collect();
    assert_eq!(hits.len(), 97 - live.len());
    for asset in immich.fixture.expected.assets.iter().filter(|asset| !live.contains(&&asset.id)) {
        let hit = &hits[&asset.id];
        assert_eq!(hit["path"], immich.shown(&asset.original_path), "{hit}");
        assert_eq!(hit["name"], asset.original_file_name.as_str());
        assert_eq!(hit["owner_email"], asset.owner_email.as_str());
        assert_eq!(hit["trashed"], asset.is_trashed);
        assert_eq!(hit["sha1"].as_str(), (!asset.is_external).then_some(asset.sha1.as_str()), "{hit}");
    }
    // And what is stored for each has the SHA-1 that expected.json says, the external ones too.
    let stored = immich.world.run(&["ls", "--json"]).ended(0).events("file");
    for asset in &immich.fixture.expected.assets {
        let path = immich.shown(&asset.original_path);
        let file = stored.iter().find(|file| file["path"] == path.as_str()).unwrap_or_else(|| panic!("{path} is not stored"));
        assert_eq!(file["sha1"], asset.sha1.as_str(), "{path}");
    }
    // The same proof at any later time, from the stored dump and the log alone.
    let verified = immich.world.run(&["verify", "--proof", "--json"]).ended(0).summary();
    let again: Proof = serde_json::from_value(verified["proof"]["now"].clone()).unwrap();
    assert_eq!(numbers(&again), expected);
    assert_eq!(verified["proof"]["differences"].as_array().map(Vec::len), Some(0), "{verified}");
    // Back into an empty folder and an empty database.
    server.create_database("back");
    let place = immich.place("back");
    let restored = immich.restore(&place, &arguments(server, "back"), &[]).ended(0);
    assert_eq!(restored.summary()["database"]["rows"].as_u64(), Some(counted));
    let (rows, back) = (server.rows("immich"), server.rows("back"));
    assert_eq!(rows.keys().collect::<Vec<_>>(), back.keys().collect::<Vec<_>>());
    for (table, rows) in &rows {
        assert!(rows == &back[table], "the rows of {table} came back otherwise: {} and {}", rows.len(), back[table].len());
    }
    place.assert_is(&trees, "restored with the database");
    println!("{}: {} files and {counted} rows came back", immich.fixture.expected.version, trees.0.len() + trees.1.len());
}

fn fixture_goes_out_and_comes_back(name: &str) {
    let Some(fixture) = Fixture::open(name) else { return };
    let server = Postgres::start().unwrap();
    goes_out_proven_and_comes_back(&Immich::new(fixture, &server), &server);
}

fn fixture_goes_out_and_comes_back_by_s3(name: &str) {
    let Some(fixture) = Fixture::open(name) else { return };
    let server = Postgres::start().unwrap();
    let stand = Stand::s3().append_only(true);
    goes_out_proven_and_comes_back(&Immich::new(fixture, &server).lent(|world| stand.lend("p", world)), &server);
    assert!(stand.keys("p").iter().any(|key| key.starts_with("database/")));
    stand.assert_written_once();
}

#[test]
fn immich_3_1_0_is_proven_as_expected_and_comes_back_with_its_rows_from_a_directory() {
    fixture_goes_out_and_comes_back(IMMICH_3);
}

#[test]
fn immich_1_135_3_is_proven_as_expected_and_comes_back_with_its_rows_from_a_directory() {
    fixture_goes_out_and_comes_back(IMMICH_1);
}

#[test]
fn immich_3_1_0_is_proven_as_expected_and_comes_back_with_its_rows_from_s3() {
    fixture_goes_out_and_comes_back_by_s3(IMMICH_3);
}

#[test]
fn immich_1_135_3_is_proven_as_expected_and_comes_back_with_its_rows_from_s3() {
    fixture_goes_out_and_comes_back_by_s3(IMMICH_1);
}

/// One of each generation, each in a server of its own.
fn each(check: impl Fn(&Immich, &Postgres)) {
    for fixture in Fixture::all() {
        let server = Postgres::start().unwrap();
        println!("Immich {}", fixture.expected.version);
        check(&Immich::new(fixture, &server), &server);
    }
}

// What is wrong shows by name, in the right class.

#[test]
fn a_flipped_byte_in_an_original_is_doubtful_and_the_good_copy_stays_and_comes_back() {
    each(|immich, _| {
        let trees = immich.trees();
        immich.backup(&[]).ended(0);
        settle();
        let asset = immich.plain_asset(3);
        let shown = immich.shown(&asset.original_path);
        flip(&immich.original(asset));
        let backup = immich.backup(&[]).ended(3);
        let summary = backup.summary();
        assert_eq!((summary["doubtful_count"].as_u64(), &summary["doubtful"]), (Some(1), &serde_json::json!([shown])), "{summary}");
        // What stands is what Immich recorded.
        assert_eq!(numbers(&proof(&backup)), immich.expected());
        let place = immich.place("good");
        immich.restore(&place, &[], &[]).ended(0);
        place.assert_is(&trees, "the good copy");
        // The damaged bytes are kept too, beside.
        let flipped = fs::read(immich.original(asset)).unwrap();
        let kept = immich::facts(immich, "doubtful");
        assert_eq!(kept.len(), 1);
        assert_eq!(fs::read(immich.world.repository.join(kept[0]["key"].as_str().unwrap())).unwrap(), flipped);
        // It is not forgotten by a run that finds nothing new.
        let status = immich.world.run(&["status", "--json"]).ended(3).summary();
        assert!(status["problems"].to_string().contains("not what Immich recorded"), "{status}");
        immich.backup(&[]).ended(3);
        immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
    });
}

#[test]
fn a_flipped_byte_that_was_there_before_the_first_backup_is_mismatched_by_name() {
    each(|immich, _| {
        let asset = immich.plain_asset(3);
        flip(&immich.original(asset));
        let backup = immich.backup(&[]).ended(3);
        let proof = proof(&backup);
        let expected = immich.expected();
        assert_eq!(numbers(&proof), Proof { proven: expected.proven - 1, mismatched: 1, ..expected });
        assert_names_only(&proof, Verdict::Mismatched, Some(Thing::Asset), &immich.shown(&asset.original_path), Some(&asset.id), false);
        assert_eq!(proof.headline(), "proven 92 of 93, 1 mismatched, 4 external");
        immich.world.run(&["status", "--json"]).ended(3);
        // The bytes that there are come back all the same.
        let place = immich.place("all-there-is");
        let restored = immich.restore(&place, &[], &[]).ended(3);
        assert!(restored.summary()["found"]["named"].to_string().contains(asset.original_path.rsplit('/').next().unwrap()), "{}", restored.told());
        place.assert_is(&immich.trees(), "all there is");
    });
}

#[test]
fn a_deleted_original_is_missing_by_name_and_the_earlier_copy_comes_back_where_the_database_names_it() {
    each(|immich, _| {
        let trees = immich.trees();
        immich.backup(&[]).ended(0);
        let asset = immich.plain_asset(3);
        fs::remove_file(immich.original(asset)).unwrap();
        let backup = immich.backup(&[]).ended(3);
        let proof = proof(&backup);
        let expected = immich.expected();
        assert_eq!(numbers(&proof), Proof { proven: expected.proven - 1, missing: 1, ..expected });
        assert_names_only(&proof, Verdict::Missing, Some(Thing::Asset), &immich.shown(&asset.original_path), Some(&asset.id), true);
        let place = immich.place("kept");
        immich.restore(&place, &[], &[]).ended(0);
        place.assert_is(&trees, "with what an earlier backup has");
    });
}

#[test]
fn an_original_that_was_never_there_is_missing_by_name_and_so_is_a_sidecar() {
    each(|immich, _| {
        let asset = immich.plain_asset(3);
        fs::remove_file(immich.original(asset)).unwrap();
        let beside = immich.fixture.expected.assets.iter().find(|asset| !asset.is_external && !immich::sidecars(asset).is_empty()).unwrap();
        let sidecar = immich::sidecars(beside)[0];
        fs::remove_file(immich.files.find(sidecar).unwrap()).unwrap();
        let backup = immich.backup(&[]).ended(3);
        let proof = proof(&backup);
        let mut expected = immich.expected();
        expected.companions.present -= 1;
        expected.companions.missing += 1;
        assert_eq!(numbers(&proof), Proof { proven: expected.proven - 1, missing: 1, ..expected });
        let names: Vec<_> = proof.named.iter().map(|named| (named.verdict, named.thing, named.path.clone(), named.kept)).collect();
        let missing = |thing, path: &str| (Verdict::Missing, Some(thing), immich.shown(path), false);
        assert_eq!(names, [missing(Thing::Asset, &asset.original_path), missing(Thing::Sidecar, sidecar)]);
    });
}

#[test]
fn an_original_that_the_storage_template_has_moved_is_proven_by_its_sha1_and_comes_back_where_the_database_names_it() {
    each(|immich, server| {
        let trees = immich.trees();
        let asset = immich.plain_asset(3);
        let from = immich.original(asset);
        let to = from.with_file_name("moved by the storage template.jpg");
        fs::rename(&from, &to).unwrap();
        let backup = immich.backup(&[]).ended(0);
        let proof = proof(&backup);
        let expected = immich.expected();
        assert_eq!(numbers(&proof), Proof { moved: 1, untracked: 1, ..expected });
        let new_place = immich.shown(&asset.original_path).rsplit_once('/').unwrap().0.to_owned() + "/moved by the storage template.jpg";
        assert_eq!(named(&proof, Verdict::Untracked), [new_place.as_str()]);
        server.create_database("back");
        let place = immich.place("back");
        immich.restore(&place, &arguments(server, "back"), &[]).ended(0);
        place.assert_is(&trees, "where the database names it");
        assert_eq!(server.rows("immich"), server.rows("back"));
    });
}

#[test]
fn files_of_an_asset_whose_row_was_deleted_are_untracked_by_name() {
    each(|immich, server| {
        let asset = immich.plain_asset(3);
        server.psql("immich", &format!("DELETE FROM {} WHERE id = '{}'", immich.table(), asset.id));
        let backup = immich.backup(&[]).ended(0);
        let proof = proof(&backup);
        let mut expected = immich.expected();
        expected.derived.present -= 2;
        assert_eq!(numbers(&proof), Proof { assets: expected.assets - 1, proven: expected.proven - 1, untracked: 3, ..expected });
        let mut paths: Vec<_> =
            [asset.original_path.as_str()].into_iter().chain(asset.files.iter().map(|file| file.path.as_str())).map(|path| immich.shown(path)).collect();
        paths.sort();
        let mut untracked = named(&proof, Verdict::Untracked);
        untracked.sort_unstable();
        assert_eq!(untracked, paths);
    });
}

#[test]
fn an_external_library_that_is_not_given_is_outside_by_name_and_may_be_left_out_on_purpose() {
    each(|immich, _| {
        let backup = immich.backup_without_external(&[]).ended(3);
        let proof = proof(&backup);
        let mut expected = immich.expected();
        expected.companions.present -=
            immich.fixture.expected.assets.iter().filter(|asset| asset.is_external).map(|asset| immich::sidecars(asset).len() as u64).sum::<u64>();
        let expected = Proof { unprovable: 0, outside: 4, ..expected };
        assert_eq!(numbers(&proof), expected);
        let mut outside = named(&proof, Verdict::Outside);
        outside.sort_unstable();
        let mut paths: Vec<_> = immich.fixture.expected.assets.iter().filter(|asset| asset.is_external).map(|asset| asset.original_path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(outside, paths);
        for name in ["NAS photos", "/mnt/external"] {
            let backup = immich.backup_without_external(&["--external-ignore", name]).ended(0);
            assert_eq!(numbers(&immich::proof(&backup)), expected);
        }
        let other = immich.backup_without_external(&["--external-ignore", "Another"]).ended(3);
        assert!(other.says("Immich has no external library of this name").code == 3);
    });
}

// Later looks.

#[test]
fn the_proof_of_an_older_snapshot_is_the_same_later_whatever_has_happened_since() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    let first = immich.backup(&[]).ended(0).snapshot();
    let asset = immich.plain_asset(3);
    fs::remove_file(immich.original(asset)).unwrap();
    server.psql("immich", &format!("DELETE FROM asset WHERE id = '{}'", immich.plain_asset(4).id));
    let second = immich.backup(&[]).ended(3).snapshot();
    let proof_of = |ran: Ran| {
        let summary = ran.summary();
        assert_eq!(summary["proof"]["differences"].as_array().map(Vec::len), Some(0), "{summary}");
        serde_json::from_value::<Proof>(summary["proof"]["now"].clone()).unwrap()
    };
    let older = proof_of(immich.world.run(&["verify", "--proof", "--snapshot", &first, "--json"]).ended(0));
    assert_eq!(numbers(&older), immich.expected());
    let newer = proof_of(immich.world.run(&["verify", "--proof", "--snapshot", &second, "--json"]).ended(3));
    assert_eq!((newer.assets, newer.proven, newer.missing, newer.untracked), (96, 91, 1, 3));
    assert_eq!(named(&newer, Verdict::Missing), [immich.shown(&asset.original_path)]);
}

#[test]
fn the_proof_tells_how_old_the_looks_are_that_it_rests_on() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    immich.backup(&[]).ended(0);
    // A run whose store was not looked at for longer than this lists it first.
    let listed = proof(&immich.backup(&["--max-unseen", "0s"]).ended(0));
    assert_eq!((listed.ages.recorded.assets, listed.ages.listed.assets, listed.ages.read.assets), (97, 97, 0));
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
    let read = proof(&immich.backup(&[]).ended(0));
    assert_eq!((read.ages.recorded.assets, read.ages.listed.assets, read.ages.read.assets), (97, 97, 97));
    assert!(read.ages.read.oldest > listed.ages.listed.oldest, "{read:?}");
    assert_eq!(read.ages.recorded.oldest, listed.ages.recorded.oldest);
}

#[test]
fn status_leads_with_the_proof_and_warns_where_no_drill_was_made() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    immich.backup(&[]).ended(0);
    for command in [&["status"][..], &["snapshots"]] {
        let said = immich.world.run(command).ended(0);
        assert!(said.out.contains("proven 93 of 93, 4 external"), "{}", said.told());
    }
    let said = immich.world.run(&["status"]).ended(0);
    assert!(said.out.starts_with("proven 93 of 93, 4 external\n"), "{}", said.told());
    let warnings = |code| immich.world.run(&["status", "--json"]).ended(code).summary()["warnings"].to_string();
    assert!(warnings(0).contains("no drill for more than 35 days"));
    let programs = server.programs().to_str().unwrap();
    immich.world.run(&["drill", "--postgres-programs", programs, "--json"]).ended(0);
    assert_eq!(warnings(0), "[]");
}

#[test]
fn photos_of_an_album_are_found_and_restored_from_the_stored_dump_alone() {
    each(|immich, server| {
        immich.backup(&[]).ended(0);
        // Neither the server nor the library is needed for that.
        server.psql("postgres", "DROP DATABASE immich WITH (FORCE)");
        let album = &immich.fixture.expected.albums[0];
        assert!(album.assets > 0);
        let mut ids = album.asset_ids.clone();
        ids.sort();
        let hits = found(&immich.world.run(&["find", "--album", &album.album_name, "--json"]).ended(0));
        assert_eq!(hits.keys().cloned().collect::<Vec<_>>(), ids);
        assert!(hits.values().all(|hit| hit["albums"].to_string().contains("Summer")));
        let place = immich.place("album");
        immich.restore(&place, &[], &["--album", &album.album_name]).ended(0);
        let trees = [Tree::of(&place.media).without("backups"), if place.external.exists() { Tree::of(&place.external) } else { Tree::default() }];
        let by_id = immich.fixture.expected.by_id();
        for id in &album.asset_ids {
            let asset = by_id[id.as_str()];
            let shown = immich.path(&asset.original_path);
            let path = shown.strip_prefix("external/nas/").map_or_else(|| place.media.join(&shown), |rest| place.external.join(rest));
            assert_eq!(Sha1::of(&fs::read(&path).unwrap()).to_string(), asset.sha1, "{shown}");
        }
        // With each photo comes what belongs to it, and nothing of any other.
        let others: Vec<_> = immich.fixture.expected.assets.iter().filter(|asset| !ids.contains(&asset.id)).collect();
        let live: Vec<_> = ids.iter().filter_map(|id| by_id[id.as_str()].live_photo_video_id.clone()).collect();
        for other in others.iter().filter(|other| !live.contains(&other.id)) {
            let shown = immich.path(&other.original_path);
            assert!(!trees.iter().any(|tree| tree.0.contains_key(shown.trim_start_matches("external/nas/").as_bytes())), "{shown} is not of this album");
        }
        // A name that nothing has is a mistake, and no album without photos.
        immich.world.run(&["find", "--album", "no such album", "--json"]).ended(1).says("there is no album `no such album`");
        assert_eq!(immich.world.run(&["find", "--album", "empty", "--json"]).ended(0).number("/assets"), 0);
    });
}

#[test]
fn what_immich_itself_has_dumped_comes_back_too_by_pg_dump_or_by_pg_dumpall() {
    each(|immich, server| {
        immich.backup(&[]).ended(0);
        server.create_database("own");
        let file = immich.fixture.dump_path().to_str().unwrap();
        let restored = immich.world.run(&[&["restore", "--json", "--dump-file", file], all(&[&arguments(server, "own")], &[]).as_slice()].concat()).ended(0);
        assert_eq!(restored.summary()["database"]["differ"].as_array().map(Vec::len), Some(0), "{}", restored.told());
        assert_eq!(server.rows("own"), server.rows("immich"));
        assert_eq!(server.databases(), ["immich", "own", "postgres"]);
    });
}

#[test]
fn a_restore_never_goes_to_a_database_that_the_environment_or_a_file_names() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start_with(&Options { settings: vec![("log_connections".to_owned(), "on".to_owned())], ..Options::default() }).unwrap();
    let mut immich = Immich::new(fixture, &server);
    let trees = immich.trees();
    immich.backup(&[]).ended(0);
    let before = server.rows("immich");
    let told = || server.log().matches("connection received").count();
    let connections = told();
    assert!(connections > 0);
    let live = server.url("immich");
    let config = immich.world.at("immich-backup.toml");
    fs::write(&config, format!("database = \"{live}\"\n")).unwrap();
    for (name, value) in
        [("DB_URL", live.as_str()), ("IMMICH_BACKUP_DATABASE", &live), ("PGHOST", "127.0.0.1"), ("PGDATABASE", "immich"), ("DB_CONTAINER", "immich_postgres")]
    {
        immich.world.environment.push((name.to_owned(), value.to_owned()));
    }
    let place = immich.place("files");
    immich.restore(&place, &[], &["--config", config.to_str().unwrap()]).ended(0);
    place.assert_is(&trees, "files alone");
    immich.world.run(&["restore", "--config", config.to_str().unwrap()]).ended(2);
    immich.world.run(&["restore", "--replace"]).ended(2);
    assert_eq!(told(), connections, "the live server was connected to:\n{}", server.log());
    // Named here and now, it is not overwritten unless that is said too.
    immich.world.run(&[&["restore", "--json"], all(&[&arguments(&server, "immich")], &[]).as_slice()].concat()).ended(1).says("is not empty");
    assert_eq!(server.rows("immich"), before);
}

#[test]
fn a_stored_dump_is_what_pg_dump_writes_and_loads_by_hand() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let immich = Immich::new(fixture, &server);
    immich.backup(&[]).ended(0);
    let dumps = immich.dumps();
    let text = text_of(&dumps[0]);
    assert!(text.starts_with(b"--\n-- PostgreSQL database dump\n"));
    server.create_loaded("by-hand", Dump::Text(&text));
    assert_eq!(server.rows("by-hand"), server.rows("immich"));
    let zstd = immich.backup(&["--compression", "zstd"]).ended(0);
    let key = zstd.summary()["dump"]["key"].as_str().unwrap().to_owned();
    assert!(key.ends_with(".sql.zst"), "{key}");
    let unpacked = immich::piped("zstd", &["-dcq"], &fs::read(immich.world.repository.join(&key)).unwrap());
    server.create_loaded("by-hand-2", Dump::Text(&unpacked));
    assert_eq!(server.rows("by-hand-2"), server.rows("immich"));
    server.create_database("by-program");
    immich.world.run(&[&["restore", "--json"], all(&[&arguments(&server, "by-program")], &[]).as_slice()].concat()).ended(0);
    assert_eq!(server.rows("by-program"), server.rows("immich"));
}
