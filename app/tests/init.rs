//! `init` before there is anything: what it prints without asking anybody.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test may"
)]

mod support;

use serde_json::Value;
use std::fs;
use support::{Ran, Running, World, program};

const AMAZON: &str = "s3://pictures/immich?region=eu-central-1";

/// `init` at `place`, without any credentials.
fn init(world: &World, place: &str, more: &[&str]) -> Ran {
    let mut command = program();
    command.args(["init", "--repository", place, "--state-dir"]).arg(&world.state).arg("--library").arg(&world.library).args(more);
    Running::start(command).wait()
}

#[test]
fn a_dry_run_shows_the_rights_to_be_given_and_touches_nothing() {
    let world = World::new();
    let ran = init(&world, AMAZON, &["--dry-run"]).ended(0).says("dry run").says("\"NeverOverwrite\"").says("s3:if-none-match");
    let ran = ran.says("immich-backup restore -r 's3://pictures/immich?region=eu-central-1' --to NEW_MEDIA_LOCATION");
    assert!(!ran.out.contains("made repository"), "{}", ran.told());
    for (place, told) in [
        ("gs://pictures", "roles/storage.objectCreator"),
        ("az://pictures?account=me", "--permissions crl"),
        ("s3://pictures?endpoint=https://s3.eu-central-003.backblazeb2.com", "b2 key create"),
        (world.repository.to_str().unwrap(), "has to own the folder"),
    ] {
        init(&world, place, &["-n"]).ended(0).says(told);
    }
    let summary = init(&world, AMAZON, &["--dry-run", "--json", "--storage-class", "glacier_ir"]).ended(0).summary();
    assert_eq!((&summary["repository"], &summary["dry_run"], &summary["storage_class"]), (&Value::Null, &Value::Bool(true), &"GLACIER_IR".into()));
    assert_eq!(summary["privileges"]["document"]["Statement"][0]["Resource"], "arn:aws:s3:::pictures/immich/*");
    assert!(!world.repository.exists() && !world.state.exists());
}

#[test]
fn making_a_repository_shows_the_rights_too() {
    let world = World::new();
    let ran = world.run(&["init", "--json"]).ended(0);
    let summary = ran.summary();
    assert!(summary["repository"].is_string() && summary["dry_run"] == false, "{}", ran.told());
    assert!(summary["privileges"]["summary"].as_str().unwrap().contains("only ever adds files"));
}

#[test]
fn an_estimate_has_the_first_year_in_each_class_and_one_restore() {
    let world = World::new();
    // 100 GB of which no byte is on the disk: 5,961 parts of 16 MiB. Beside it five markers; the sixth is in backups/, which is left out.
    let video = world.library.join("upload/u0/video.mov");
    fs::create_dir_all(video.parent().unwrap()).unwrap();
    fs::File::create(&video).unwrap().set_len(100_000_000_000).unwrap();
    let arguments = ["--estimate", "--storage-class", "GLACIER_IR"];
    let summary = init(&world, AMAZON, &[&arguments[..], &["--json"]].concat()).ended(0).summary();
    assert_eq!((&summary["originals"]["files"], &summary["originals"]["bytes"]), (&1.into(), &100_000_000_000_u64.into()));
    assert_eq!((&summary["originals"]["write_requests"], &summary["others"]["files"]), (&5_963.into(), &5.into()));
    let classes = summary["estimate"]["classes"].as_array().unwrap();
    let names: Vec<_> = classes.iter().map(|class| class["class"].as_str().unwrap()).collect();
    assert_eq!(names, ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR"]);
    let chosen: Vec<_> = classes.iter().filter(|class| class["chosen"] == true).collect();
    assert_eq!(chosen.len(), 1);
    // 100 GB * 0.004 * 12; 5,963 writes at 0.02 a thousand; 5,961 reads at 0.01, and 100 GB at 0.03 and at 0.09.
    let cents = |name: &str| chosen[0][name].as_u64().unwrap();
    assert_eq!((cents("storage_cents"), cents("first_backup_cents"), cents("restore_cents")), (480, 12, 1_206));
    assert_eq!((cents("upkeep_cents"), cents("first_year_cents"), cents("later_year_cents")), (2, 494, 482));

    let ran = init(&world, AMAZON, &arguments).ended(0).says("> GLACIER_IR").says("FIRST YEAR").says("2026-09").says("90 days");
    assert!(!ran.out.contains("What it needs"), "{}", ran.told());
    init(&world, AMAZON, &["--estimate", "-n"]).ended(0).says("> STANDARD ").says("What it needs");
    init(&world, "s3://b?endpoint=http://127.0.0.1:9", &["--estimate"]).ended(0).says("is not known");
    init(&world, world.repository.to_str().unwrap(), &["--estimate"]).ended(0).says("asks for no money");
    assert!(!world.repository.exists() && !world.state.exists());
}

#[test]
fn what_cannot_be_used_is_wrong_usage_with_a_remedy() {
    let world = World::new();
    init(&world, AMAZON, &["-n", "--storage-class", "GLACIER"]).ended(2).says("thawed").says("GLACIER_IR");
    init(&world, AMAZON, &["-n", "--storage-class", "COLDLINE"]).ended(2).says("STANDARD_IA");
    init(&world, world.repository.to_str().unwrap(), &["-n", "--storage-class", "STANDARD"]).ended(2).says("no storage classes");
    init(&world, "s3://key:HIDDEN@b", &["-n"]).ended(2).says("credentials do not belong");
    let mut command = program();
    command.args(["init", "--estimate", "-r", AMAZON]);
    Running::start(command).wait().ended(2).says("--library");
    let mut command = program();
    command.args(["init", "--estimate", "-r", AMAZON, "--library", "/nonexistent"]);
    Running::start(command).wait().ended(1).says("/nonexistent");
}
