//! The least that the cloud has to allow, as the files below deploy/terraform allow it: a writer that can neither overwrite nor delete suffices for all
//! but `prune`, which says what is missing; a pruner that can remove what `prune` removes, and create nothing but log entries, suffices for that.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stand;
mod support;
#[path = "support/terraform.rs"]
mod terraform;

use immich::{Immich, error, installed, numbers, proof};
use immich_backup_testbed::postgres::Postgres;
use immich_backup_testbed::proxy::Policy;
use serde_json::json;
use stand::{Stand, denied_by};
use std::fs;
use std::time::Duration;
use support::World;
use terraform::Terraform;

/// An installation whose repository lies at `stand`.
fn installed_at(stand: &Stand) -> Option<(Immich, Postgres)> {
    let (immich, server) = installed()?;
    Some((immich.lent(|world| stand.lend("p", world)), server))
}

/// A dump is named after the second in which it began.
fn next_second() {
    std::thread::sleep(Duration::from_millis(1_100));
}

/// `backup`, `verify` and `drill` ask for nothing that an append-only identity may not; `prune` says that it may not remove, and changes nothing.
fn suffices_for_all_but_prune(stand: &Stand) {
    let Some((immich, server)) = installed_at(stand) else { return };
    // Larger than what goes in one request: in parts, or in a session.
    immich.world.file("upload/untracked/large.mov", 20 << 20, 1);
    let ran = immich.backup(&[]).ended(0);
    assert_eq!(proof(&ran).proven, immich.expected().proven, "{}", ran.told());
    immich.world.file("upload/untracked/second.jpg", 5_000, 2);
    next_second();
    immich.backup(&[]).ended(0);
    immich.world.run(&["verify", "--listing"]).ended(0);
    let verified = immich.world.run(&["verify", "--read-data", "--json"]).ended(0).summary();
    assert_eq!(verified["damaged"], json!(0), "{verified}");
    let programs = server.programs().to_str().unwrap();
    let drill = immich.world.run(&["drill", "--json", "--sample", "100%", "--postgres-programs", programs]).ended(0).summary();
    assert_eq!((&drill["verdict"], &drill["not_checked"]), (&json!("passed"), &json!(0)), "{drill}");
    let status = immich.world.run(&["status", "--json"]).ended(0).summary();
    assert_eq!(status["problems"], json!([]), "{status}");
    stand.assert_written_once();

    // Nothing of it is there only because this machine remembers it.
    support::remove(&immich.world.state);
    immich.world.run(&["verify", "--read-data"]).ended(0);
    stand.assert_written_once();

    let before = stand.keys("p");
    assert_eq!(before.iter().filter(|key| key.starts_with("database/")).count(), 2, "{before:?}");
    let words = ["may not remove objects", "give `prune` others, which may delete", "docs/stores.md"];
    let prune = ["prune", "--keep-last", "1"];
    words.iter().fold(immich.world.run(&prune).ended(1), |ran, word| ran.says(word));
    let (message, hint) = error(&immich.world.run(&[&prune[..], &["--json"]].concat()).ended(1));
    assert!(message.contains(words[0]) && hint.contains("nothing was changed") && hint.contains(words[1]), "{message}: {hint}");
    assert_eq!(stand.keys("p"), before);
    // It asked by removing what is not there, where a pruner may.
    let denied = stand.denied();
    assert!(denied.len() == 2 && denied.iter().all(|request| request.starts_with("DELETE ") && request.contains("/p/database/nothing-")), "{denied:?}");

    // What would go is shown all the same, and a retention does not fail a run whose credentials cannot carry it out.
    let plan = immich.world.run(&["prune", "--keep-last", "1", "--dry-run", "--json"]).ended(0).summary();
    assert_eq!(plan["to_remove"]["dumps"]["files"], json!(1), "{plan}");
    next_second();
    immich.backup(&["--database-keep", "1"]).ended(0).says("may not");
    let after = stand.keys("p");
    assert!(before.iter().all(|key| after.contains(key)), "{after:?}");
}

#[test]
fn a_writer_at_s3_that_can_neither_overwrite_nor_delete_suffices_for_backup_verify_and_drill_and_prune_says_what_is_missing() {
    suffices_for_all_but_prune(&Stand::s3().append_only(false));
}

#[test]
fn a_writer_at_google_that_can_neither_overwrite_nor_delete_suffices_for_backup_verify_and_drill_and_prune_says_what_is_missing() {
    suffices_for_all_but_prune(&Stand::gcs().append_only(false));
}

/// Paths at the stand of all keys of the repository that begin so.
fn paths(stand: &Stand, starts: &[impl AsRef<str>]) -> &'static [String] {
    let paths: Vec<String> = starts.iter().map(|start| format!("/{}/p/{}", stand.bucket_name(), start.as_ref())).collect();
    Vec::leak(paths)
}

/// The pruner of deploy/terraform/`name` can do all that `prune --derived` does, and nothing that a backup does.
fn prunes(stand: &Stand, name: &str) {
    let Some((immich, _server)) = installed_at(stand) else { return };
    let (removed, suffix) = Terraform::open(name).removed();
    let motion = "encoded-video/u/aa/bb/photo-MP.mp4";
    immich.world.file(motion, 3_000, 1);
    immich.world.file("thumbs/u/aa/bb/old-preview.jpeg", 4_000, 2);
    immich.world.file("thumbs/u/aa/bb/changed-preview.jpeg", 4_000, 3);
    immich.world.file("encoded-video/u/aa/bb/old.mp4", 5_000, 4);
    immich.backup(&[]).ended(0);
    // A version of its own, under versions/.
    immich.world.file("thumbs/u/aa/bb/changed-preview.jpeg", 4_001, 5);
    next_second();
    immich.backup(&[]).ended(0);
    for path in [motion, "thumbs/u/aa/bb/old-preview.jpeg", "thumbs/u/aa/bb/changed-preview.jpeg", "encoded-video/u/aa/bb/old.mp4"] {
        fs::remove_file(immich.world.library.join(path)).unwrap();
    }
    next_second();
    immich.backup(&[]).ended(0);
    let before = stand.keys("p");

    let way = stand.another_proxy();
    let creates = paths(stand, &["log/", "format.json"]);
    way.set_policy(Policy::Pruner { dialect: stand.dialect(), creates, removes: paths(stand, &removed), keeps: Box::leak(suffix.into_boxed_str()) });
    let mut pruner = stand.lend_to_pruner(&way, "p", World::bare());
    pruner.library.clone_from(&immich.world.library);
    pruner.environment.push(("DB_PASSWORD".to_owned(), Postgres::PASSWORD.to_owned()));
    let pruned = pruner.run(&["prune", "--keep-last", "1", "--derived", "--json"]).ended(0).summary();
    let gone: Vec<_> = before.iter().filter(|key| !stand.keys("p").contains(key)).cloned().collect();
    let count = |start: &str| gone.iter().filter(|key| key.starts_with(start)).count();
    assert_eq!(
        (count("database/"), count("library/thumbs/u/aa"), count("versions/thumbs/u/aa"), count("library/encoded-video/u/aa")),
        (2, 2, 1, 1),
        "{gone:?}"
    );
    assert_eq!(pruned["removed"].as_u64().unwrap(), gone.len() as u64, "{pruned}\n{gone:?}");
    assert!(stand.keys("p").contains(&format!("library/{motion}")), "Immich cannot make that one again");
    assert_eq!(denied_by(&way), [] as [String; 0], "it asked for what the pruner of deploy/terraform/{name} may not");
    pruner.run(&["prune", "--keep-last", "1", "--derived"]).ended(0).says("nothing to remove");
    pruner.run(&["doctor"]).says("may delete");
    // Who has its key cannot back up, and above all not replace what is there.
    immich.world.file("upload/untracked/new.jpg", 2_000, 6);
    let named = [immich.external(), immich.database.clone()].concat();
    let named: Vec<_> = named.iter().map(String::as_str).collect();
    pruner.backup(&named).ended(1).says("not permitted to store");
    let denied = denied_by(&way);
    assert!(denied.iter().any(|request| request.contains("/p/library/") || request.contains("/p/database/")), "{denied:?}");

    let ran = immich.backup(&[]).ended(0);
    assert_eq!(numbers(&proof(&ran)).proven, immich.expected().proven);
    immich.world.run(&["verify", "--read-data"]).ended(0);
}

#[test]
fn the_pruner_of_terraform_at_s3_suffices_for_prune_and_not_for_a_backup() {
    prunes(&Stand::s3(), "s3");
}

#[test]
fn the_pruner_of_terraform_at_google_suffices_for_prune_and_not_for_a_backup() {
    prunes(&Stand::gcs(), "gcs");
}
