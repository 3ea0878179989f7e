//! `repair` as people use it: the log goes on, the store is healed from the library, and the library from the store.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stand;
mod support;

use immich::{flip, installed};
use serde_json::json;
use stand::Stand;
use std::fs;
use std::path::Path;
use support::{World, by_hand, forge_entry, remove, tool, write_entry};

/// Both scripts bring back `tree`; before there is a copy of the manifest since a repair, the first one says so.
fn assert_restores_by_hand(world: &World, copy: &Path, tree: &support::Tree, has_copy: bool) {
    if has_copy {
        world.assert_restores_by_hand(copy, tree);
        return;
    }
    let to = world.at("by-hand");
    let refused = std::process::Command::new("bash").arg(by_hand("restore-from-manifest.sh")).arg(copy).arg(&to).output().unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("restore-from-log.py"), "{refused:?}");
    assert!(!to.exists());
    tool("python3", &[by_hand("restore-from-log.py").as_os_str(), copy.as_os_str(), to.as_os_str()]);
    support::Tree::of(&to).assert_is(tree, "restored by hand from the log");
    remove(&to);
}

#[test]
fn in_a_bucket_that_lets_nobody_overwrite_a_spoilt_log_goes_on_and_a_lost_object_is_stored_again() {
    let stand = Stand::s3().append_only(true);
    let world = stand.lend("p", World::new());
    world.pictures(60);
    let first_tree = world.tree();
    let first = world.backup(&[]).ended(0);
    world.file("upload/u/new.jpg", 900, 3);
    let second_tree = world.tree();
    world.backup(&[]).ended(0);
    let log: Vec<_> = stand.keys("p").into_iter().filter(|key| key.starts_with("log/")).collect();
    let next = format!("log/{:010}.ndjson.zst", log.len() + 1);
    stand.bucket().put_raw(&format!("p/{next}"), b"I was here").unwrap();
    world.backup(&[]).ended(11).says("immich-backup repair");
    let before = stand.keys("p");
    let planned = world.run(&["repair", "--json"]).ended(11);
    let plan = planned.summary();
    assert_eq!((&plan["log"]["opens_epoch"], &plan["log"]["rejected_count"], &plan["applied"]), (&json!(1), &json!(1), &json!(false)), "{}", planned.told());
    assert_eq!((&plan["log"]["rejected"][0]["key"], &plan["log"]["rejected"][0]["size"]), (&json!(next), &json!(10)));
    assert_eq!(stand.keys("p"), before, "a plan changes nothing");
    world.run(&["repair", "--apply"]).ended(0).says("epoch 1 was opened");
    world.run(&["repair"]).ended(0).says("one chain, repaired 1 times");
    let copy = world.at("copy");
    stand.mirror("p", &copy);
    assert_restores_by_hand(&world, &copy, &second_tree, false);
    world.file("upload/u/third.jpg", 901, 4);
    let third_tree = world.tree();
    let third = world.backup(&[]).ended(0);
    assert_eq!(third.number("/files/sent"), 1, "{}", third.told());
    world.run(&["status"]).says("log repaired").says("1 objects rejected");
    // A machine that knows nothing.
    remove(&world.state);
    world.assert_restores(&first.snapshot(), &first_tree);
    world.assert_restores("latest", &third_tree);
    world.run(&["verify", "--read-data"]).ended(0).says("repaired   epoch 1");
    world.run(&["ls", "--until", &format!("0:{}", log.len()), "--json"]).ended(0);
    // An object goes; it comes back under its own name, for the first snapshot too.
    let gone = stand.keys("p").into_iter().find(|key| key.starts_with("library/upload/u") && key.ends_with("00007.jpg")).unwrap();
    stand.assert_written_once();
    stand.bucket().delete_raw(&format!("p/{gone}")).unwrap();
    world.run(&["verify"]).ended(12).says("immich-backup repair");
    let library = world.library.to_str().unwrap();
    world.run(&["repair", "--library", library]).ended(12).says("will be stored again").says("say --apply");
    assert!(!stand.keys("p").contains(&gone));
    world.run(&["repair", "--library", library, "--apply"]).ended(0).says("1 stored again");
    assert!(stand.keys("p").contains(&gone));
    world.run(&["verify", "--read-data"]).ended(0);
    remove(&world.state);
    world.assert_restores(&first.snapshot(), &first_tree);
    assert!(stand.denied().is_empty(), "nothing that overwrites or removes was even asked for: {:?}", stand.denied());
}

#[test]
fn damaged_objects_are_replaced_for_every_snapshot_and_for_who_restores_by_hand() {
    let world = World::new();
    world.pictures(60);
    let tree = world.tree();
    world.backup(&[]).ended(0);
    let object = world.repository.join("library/upload/u0/00/00000.jpg");
    assert!(object.is_file());
    flip(&object);
    world.run(&["verify", "--read-data"]).ended(12);
    world.run(&["repair"]).ended(12).says("say --library");
    world.run(&["repair", "--library", world.library.to_str().unwrap(), "--apply"]).ended(0).says("1 in another's place");
    world.run(&["verify", "--read-data"]).ended(0);
    // The object that the log named is as bad as before, and nobody needs it.
    let to = world.at("by-hand");
    tool("python3", &[by_hand("restore-from-log.py").as_os_str(), world.repository.as_os_str(), to.as_os_str()]);
    support::Tree::of(&to).assert_is(&tree, "restored by hand from the log");
    remove(&to);
    world.assert_restores("latest", &tree);
    // What is nowhere is named, and stays an alarm.
    let lost = world.repository.join("library/upload/u1/00/00001.jpg");
    let lost = if lost.is_file() { lost } else { fs::read_dir(world.repository.join("library/upload/u1/00")).unwrap().next().unwrap().unwrap().path() };
    let live = world.library.join(lost.strip_prefix(world.repository.join("library")).unwrap());
    flip(&lost);
    flip(&live);
    world.run(&["verify", "--read-data"]).ended(12);
    let ran = world.run(&["repair", "--library", world.library.to_str().unwrap(), "--apply"]).ended(12);
    ran.says("LOST").says(lost.file_name().unwrap().to_str().unwrap());
}

#[test]
fn entries_that_a_thief_wrote_are_rejected_by_number_and_a_missing_identity_comes_back() {
    let world = World::new();
    world.pictures(60);
    let tree = world.tree();
    world.backup(&[]).ended(0);
    let last = world.entries();
    let forged = forge_entry(&world, &[r#"{"fact":"archived","path":"upload/u0/00/00000.jpg"}"#]);
    assert_eq!(forged, last + 1);
    world.run(&["repair"]).ended(0).says("one chain");
    world.run(&["repair", "--reject-from", "99"]).ended(2).says("there is no entry 99");
    world.run(&["repair", "--accept-epoch", "1", "--keep", "x"]).ended(2);
    let number = forged.to_string();
    world.run(&["repair", "--reject-from", &number]).ended(11).says("1 archived").says("say --apply");
    world.run(&["repair", "--reject-from", &number, "--apply"]).ended(0);
    // What is not named as entries are is none, by hand too.
    let strays = ["x", "1.ndjson.zst"].map(|name| world.repository.join("log").join(name));
    strays.iter().for_each(|stray| fs::write(stray, b"stray").unwrap());
    assert_restores_by_hand(&world, &world.repository.clone(), &tree, false);
    world.assert_restores("latest", &tree);
    strays.iter().for_each(|stray| remove(stray));
    world.backup(&[]).ended(0);
    // Somebody's own "repair" of the log: who knows better refuses it.
    let opening = world.repository.join("log/9000000002.ndjson.zst");
    let first = fs::read(world.entry(1)).unwrap();
    let digest = immich_backup_core::model::Sha256::of(&first).to_string();
    let header =
        json!({"format":1,"epoch":2,"sequence":2,"previous_sha256":digest,"written_at":"2026-11-22T00:00:00Z","writer":"6fa459ea-ee8a-3ca4-894e-db77e160355e"});
    let fact = json!({"fact":"epoch","at":"2026-11-22T00:00:00Z","host":"thief","base_epoch":0,"reason":"none","rejected_count":0});
    write_entry(&opening, format!("{header}\n{fact}\n").as_bytes());
    world.backup(&[]).ended(11).says("`thief`").says("--reject-epoch 2");
    world.run(&["repair", "--apply"]).ended(11).says("--accept-epoch 2");
    world.run(&["repair", "--reject-epoch", "2", "--apply"]).ended(0).says("epoch 3");
    world.backup(&[]).ended(0);
    let kept = world.at("kept-state");
    fs::rename(&world.state, &kept).unwrap();
    world.run(&["verify", "--read-data"]).ended(0);
    remove(&world.state);
    // Without a state folder nobody has its bytes.
    let identity = world.repository.join("format.json");
    let bytes = fs::read(&identity).unwrap();
    remove(&identity);
    world.run(&["repair"]).ended(10).says("second copy");
    fs::rename(&kept, &world.state).unwrap();
    world.backup(&[]).ended(10).says("immich-backup repair");
    world.run(&["repair"]).ended(11).says("can be created again");
    assert!(!identity.exists());
    // A disk that is not mounted is no repository to be brought back.
    let away = world.at("away");
    fs::rename(&world.repository, &away).unwrap();
    fs::create_dir(&world.repository).unwrap();
    world.run(&["repair", "--apply"]).ended(10).says("there is no log either");
    assert_eq!(fs::read_dir(&world.repository).unwrap().count(), 0);
    fs::remove_dir(&world.repository).unwrap();
    fs::rename(&away, &world.repository).unwrap();
    world.run(&["repair", "--apply"]).ended(0).says("nothing else was looked at yet");
    assert_eq!(fs::read(&identity).unwrap(), bytes);
    world.backup(&[]).ended(0);
}

#[test]
fn a_photo_that_contradicts_its_checksum_and_one_that_is_gone_come_back_into_the_library() {
    let Some((immich, _server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let (damaged, gone) = (immich.plain_asset(0), immich.plain_asset(1));
    let (at, missing) = (immich.original(damaged), immich.original(gone));
    let (good, lost) = (fs::read(&at).unwrap(), fs::read(&missing).unwrap());
    flip(&at);
    let bad = fs::read(&at).unwrap();
    assert!(bad != good);
    remove(&missing);
    immich.backup(&[]).ended(3);
    let world = &immich.world;
    let library = world.library.to_str().unwrap().to_owned();
    let planned = world.run(&["repair", "--source", "--library", &library, "--json"]).ended(12);
    let mut files: Vec<_> = planned.summary()["files"].as_array().unwrap().iter().map(|file| (file["why"].clone(), file["file"].clone())).collect();
    files.sort_by_key(|(why, _)| why.to_string());
    let expected = [(json!("contradicts"), json!(immich.shown(&damaged.original_path))), (json!("missing"), json!(immich.shown(&gone.original_path)))];
    assert_eq!(files, expected, "{}", planned.told());
    assert!(fs::read(&at).unwrap() == bad && !missing.exists(), "a plan changes nothing");
    let kept = world.at("kept");
    world.run(&["repair", "--source", "--library", &library, "--apply", "--keep-damaged", &format!("{library}/kept")]).ended(2).says("--keep-damaged");
    world.run(&["repair", "--source", "--library", &library, "--apply", "--keep-damaged", kept.to_str().unwrap()]).ended(0).says("brought back: 2");
    assert!(fs::read(&at).unwrap() == good && fs::read(&missing).unwrap() == lost);
    let kept: Vec<_> = fs::read_dir(&kept).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(kept == [bad], "the damaged bytes are kept");
    let after = immich.backup(&[]).ended(0);
    assert_eq!(immich::proof(&after).proven, immich.expected().proven);
    world.run(&["repair", "--source", "--library", &library, "--read-data"]).ended(0).says("no file is known");
}
