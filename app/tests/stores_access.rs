//! Who may do what at a store, what is said where something is missing, and where the program finds the store: never a secret among it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/stores.rs"]
mod stand;
mod support;

use immich_backup_testbed::gcs::{self, Double, Permissions};
use immich_backup_testbed::servers::{Azurite, Credentials, Identity, Options, S3sFs};
use serde_json::Value;
use stand::{Stand, keys};
use std::path::PathBuf;
use support::{Ran, Running, Tree, World, program};

type Environment = Vec<(String, String)>;

fn named(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A library, and a repository that is said to be at `url`.
fn world_at(url: &str, environment: &Environment) -> World {
    let mut world = World::new();
    world.pictures(3);
    world.repository = PathBuf::from(url);
    world.environment = environment.clone();
    world.environment.extend(named(&[("IMMICH_BACKUP_RETRY_WAIT", "1ms"), ("AWS_EC2_METADATA_DISABLED", "true")]));
    world
}

/// Every command ends with 1 and says all of `words` and some remedy, for people and for programs, and none of `secrets`.
#[track_caller]
fn is_refused(url: &str, environment: &Environment, words: &[&str], secrets: &[&str]) {
    let world = world_at(url, environment);
    let library = world.library.to_str().unwrap();
    let commands: [&[&str]; 6] = [&["ls"], &["init"], &["backup", "--init", "--library", library], &["verify"], &["status"], &["doctor", "--library", library]];
    for command in commands {
        for json in [false, true] {
            let mut arguments = command.to_vec();
            arguments.extend(json.then_some("--json"));
            let ran = world.run(&arguments).ended(1);
            let said = format!("{}\n{}", ran.out, ran.err);
            for secret in secrets {
                assert!(!said.contains(secret), "a secret is shown\n{}", ran.told());
            }
            for word in words {
                assert!(said.contains(word), "`{command:?}` does not say `{word}`\n{}", ran.told());
            }
            let remedy = ["docs/stores.md", "doctor", "check the network", "make the bucket", "GCS_CREDENTIALS"];
            assert!(remedy.iter().any(|word| said.contains(word)), "`{command:?}` names no remedy\n{}", ran.told());
            if json && command[0] != "doctor" {
                let summary = ran.summary();
                let error = &summary["errors"][0];
                assert!(error["hint"].is_string() || error["message"].as_str().unwrap().contains("docs/stores.md"), "no hint: {summary}");
            }
        }
    }
}

#[test]
fn what_is_wrong_with_s3_is_said_with_a_remedy_and_without_a_secret() {
    let stand = Stand::s3_with(Options::default());
    let endpoint = stand.bucket().endpoint.clone();
    let url = format!("s3://test/p?endpoint={endpoint}");
    let good = Credentials::new("AKADMIN", "SKADMIN");
    // The place is right, and empty.
    world_at(&url, &keys(&good)).run(&["ls"]).ended(10).says("there is no repository").says("immich-backup init");
    world_at(&url, &keys(&good)).backup(&[]).ended(0);
    world_at(&url, &keys(&good)).run(&["doctor"]).ended(0).says("AKADMIN").says("may delete");

    is_refused(&url, &keys(&Credentials::new("AKNOBODY", "SECRET-OF-NOBODY")), &["not permitted", "403"], &["SECRET-OF-NOBODY"]);
    is_refused(&url, &keys(&Credentials::new("AKADMIN", "SECRET-THAT-IS-WRONG")), &["not permitted", "403"], &["SECRET-THAT-IS-WRONG", "SKADMIN"]);
    is_refused(&format!("s3://missing/p?endpoint={endpoint}"), &keys(&good), &["no such bucket", "NoSuchBucket"], &["SKADMIN"]);
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    is_refused(&format!("s3://test/p?endpoint=http://{nobody}"), &keys(&good), &["could not", "onnect", "tried 6 times"], &["SKADMIN"]);
    is_refused(&url, &Vec::new(), &["no credentials", "AWS_ACCESS_KEY_ID"], &[]);
}

#[test]
fn what_is_wrong_with_google_is_said_with_a_remedy_and_without_a_secret() {
    let identities = vec![gcs::Identity::new("owner", Permissions::ALL), gcs::Identity::new("nobody", Permissions::NONE)];
    let double = Double::start(gcs::Options { identities: identities.clone(), ..gcs::Options::default() });
    let url = format!("gs://bucket/p?endpoint={}", double.url());
    let key = |json: &str| named(&[("GCS_CREDENTIALS", json)]);
    let owner = key(&double.key_json("owner"));
    world_at(&url, &owner).run(&["ls"]).ended(10).says("there is no repository");
    world_at(&url, &owner).backup(&[]).ended(0);
    world_at(&url, &owner).run(&["doctor"]).ended(0).says("GCS_CREDENTIALS").says("may delete");

    let secret_of = |json: &str| {
        let key: Value = serde_json::from_str(json).unwrap();
        key["private_key"].as_str().unwrap().lines().nth(3).unwrap().to_owned()
    };
    let nobody = double.key_json("nobody");
    is_refused(&url, &key(&nobody), &["not permitted", "403"], &[&secret_of(&nobody)]);
    // A key that was revoked: its account knows another one by now.
    let revoked = Double::start(gcs::Options { identities, ..gcs::Options::default() });
    let foreign = revoked.key_json("owner").replace(revoked.url(), double.url());
    is_refused(&url, &key(&foreign), &["not permitted", "401"], &[&secret_of(&foreign)]);
    for garbage in ["{ \"private_key\": \"GARBAGE-KEY\"", "\"GARBAGE-KEY\"", "GARBAGE-KEY", "{ \"private_key\": [\"GARBAGE-KEY\"] }"] {
        is_refused(&url, &key(garbage), &["the key in GCS_CREDENTIALS cannot be used", "JSON of a service account"], &["GARBAGE-KEY"]);
    }
    let mut damaged: Value = serde_json::from_str(&nobody).unwrap();
    damaged["private_key"] = "-----BEGIN PRIVATE KEY-----\nGARBAGE-KEY\n-----END PRIVATE KEY-----\n".into();
    is_refused(&url, &key(&damaged.to_string()), &["the key in GCS_CREDENTIALS cannot be used"], &["GARBAGE-KEY"]);
    is_refused(
        &url,
        &named(&[("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")]),
        &["`/nowhere/key.json` (GOOGLE_APPLICATION_CREDENTIALS) cannot be used"],
        &[],
    );
    is_refused(&url.replace("gs://bucket", "gs://missing"), &owner, &["bucket"], &[&secret_of(&double.key_json("owner"))]);
}

/// Reads a repository as somebody who may only read, and is told so when writing.
fn reads_and_is_told(owner: &World, mut reader: World, words: &[&str]) {
    owner.pictures(20);
    owner.file("upload/u/large.mov", 20 << 20, 1);
    owner.backup(&[]).ended(0);
    reader.repository.clone_from(&owner.repository);
    reader.run(&["ls"]).ended(0).says("upload/u0/00/00000.jpg");
    reader.assert_restores("latest", &owner.tree());
    reader.run(&["verify", "--read-data"]).ended(0).says("could not be written to the log");
    reader.run(&["status"]).ended(0);
    reader.run(&["doctor"]).ended(1).says("may read, but not create objects");
    reader.pictures(1);
    let mut ran = reader.backup(&[]).ended(1).says("not permitted to store").says("doctor");
    for word in words {
        ran = ran.says(word);
    }
    owner.run(&["verify", "--read-data"]).ended(0);
}

#[test]
fn who_may_only_read_at_s3_lists_restores_and_verifies_and_is_told_what_a_backup_needs() {
    let stand = Stand::s3_with(Options { identities: vec![Identity::reader("AKREADER", "SKREADER")], ..Options::default() });
    let mut reader = World::new();
    reader.environment = keys(&Credentials::new("AKREADER", "SKREADER"));
    reads_and_is_told(&stand.lend("p", World::new()), reader, &["403", "AccessDenied"]);
}

#[test]
fn who_may_only_read_at_google_lists_restores_and_verifies_and_is_told_what_a_backup_needs() {
    let may = Permissions { create: false, ..Permissions::NO_DELETE };
    let identities = vec![gcs::Identity::new("owner", Permissions::ALL), gcs::Identity::new("reader", may)];
    let double = Double::start(gcs::Options { identities, ..gcs::Options::default() });
    let world = |who: &str| {
        let mut world = World::new();
        world.repository = PathBuf::from(format!("gs://bucket/p?endpoint={}", double.url()));
        world.environment = named(&[("GCS_CREDENTIALS", &double.key_json(who))]);
        world
    };
    reads_and_is_told(&world("owner"), world("reader"), &["storage.objects.create"]);
}

#[test]
fn an_identity_that_may_create_and_not_delete_is_told_that_this_is_as_it_should_be() {
    let stand = Stand::gcs();
    let world = stand.lend("p", World::new());
    world.pictures(3);
    world.backup(&[]).ended(0);
    world.run(&["doctor"]).ended(0).says("may read, and create objects").says("refuses to replace what exists").says("cannot delete");
    stand.assert_written_once();
    let stand = Stand::s3().append_only(false);
    let world = stand.lend("p", World::new());
    world.pictures(3);
    world.backup(&[]).ended(0);
    world.run(&["doctor"]).ended(0).says("may read, and create objects").says("refuses to replace what exists").says("cannot delete");
}

#[test]
fn names_of_the_environment_that_people_have_lead_to_the_repository() {
    let stand = Stand::s3_with(Options::default());
    let world = World::new();
    world.pictures(5);
    let mut environment = keys(stand.bucket_credentials());
    environment.extend(named(&[("AWS_ENDPOINT_URL", &stand.bucket().endpoint), ("S3_BUCKET", "test"), ("UPLOAD_LOCATION", world.library.to_str().unwrap())]));
    environment.push(("IMMICH_BACKUP_STATE_DIR".to_owned(), world.state.to_str().unwrap().to_owned()));
    let run = |arguments: &[&str], more: &[(&str, &str)]| -> Ran {
        let mut command = program();
        command.args(arguments).envs(environment.clone()).envs(more.iter().copied());
        Running::start(command).wait()
    };
    let first = [("S3_PREFIX", "immich/2026-11-21"), ("BACKUP_DATE", "2026-11-21")];
    run(&["backup", "--init"], &first).ended(0).says("`2026-11-21` of S3_PREFIX has BACKUP_DATE in it and is left out");
    assert!(stand.keys("immich").contains(&"format.json".to_owned()), "{:?}", stand.bucket().keys());
    // The next day it is the same repository, and the date is the snapshot's label.
    let second = [("S3_PREFIX", "/immich/backup_2026-11-22/"), ("BACKUP_DATE", "2026-11-22")];
    run(&["backup"], &second).ended(0);
    run(&["snapshots"], &[("S3_PREFIX", "immich")]).ended(0).says("2026-11-21").says("2026-11-22");
    run(&["ls"], &[("S3_PREFIX", "")]).ended(10).says("s3://test");
    run(&["ls"], &[("S3_PREFIX", "immich"), ("IMMICH_BACKUP_REPOSITORY", "/nowhere")]).ended(10).says("/nowhere");
    // Google has no variable for an endpoint: what would be asked is shown.
    let shown = |bucket: &str| {
        let mut command = program();
        command.args(["init", "--dry-run", "--json"]).env("GCS_BUCKET", bucket);
        Running::start(command).wait().ended(0).summary()["url"].as_str().unwrap().to_owned()
    };
    assert_eq!((shown("photos"), shown("gs://photos/immich/")), ("gs://photos".to_owned(), "gs://photos/immich".to_owned()));
}

// Buckets of whoever runs the tests.

/// What the programs of the stores find in the environment, too.
fn credentials_of_this_environment() -> Environment {
    let ours = |name: &str| ["AWS_", "AZURE_", "GCS_", "GOOGLE_"].iter().any(|start| name.starts_with(start)) || name == "HOME";
    std::env::vars().filter(|(name, _)| ours(name)).collect()
}

fn a_real_bucket_keeps_and_gives_back(variable: &str) {
    match std::env::var(variable) {
        Ok(url) => keeps_and_gives_back(&url, credentials_of_this_environment()),
        Err(_) => eprintln!("NOT TESTED: {variable} has no URL of a bucket to write to"),
    }
}

/// Backs up below a new prefix of `url`, and restores.
fn keeps_and_gives_back(url: &str, environment: Environment) {
    let (place, options) = url.split_once('?').map_or((url, String::new()), |(place, options)| (place, format!("?{options}")));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let mut world = World::new();
    world.repository = PathBuf::from(format!("{}/immich-backup-test-{now}{options}", place.trim_end_matches('/')));
    world.environment = environment;
    world.pictures(30);
    world.file("library/anna/2014/Übergröße & 100% #1.jpg", 3_000, 1);
    world.file("upload/u/in-parts.mov", (33 << 20) + 5, 1);
    let first_tree = world.tree();
    println!("{}", world.run(&["init"]).ended(0).out);
    println!("{}", world.run(&["doctor"]).ended(0).out);
    let first = world.backup(&[]).ended(0);
    world.file("upload/u0/00/00000.jpg", 500, 2);
    let second = world.backup(&[]).ended(0);
    assert_eq!(second.number("/files/sent"), 1);
    support::remove(&world.state);
    world.assert_restores(&first.snapshot(), &first_tree);
    world.assert_restores("latest", &world.tree());
    world.run(&["verify", "--read-data"]).ended(0);
    println!("{} files, two snapshots, restored and verified; left at {}", Tree::of(&world.library).len(), world.repository.display());
}

#[test]
fn azurite_keeps_and_gives_back() {
    let server = Azurite::start().unwrap();
    let container = server.container();
    let url = format!("az://{}?account={}&endpoint={}", container.name, Azurite::ACCOUNT, container.endpoint);
    keeps_and_gives_back(&url, named(&[("AZURE_STORAGE_ACCOUNT_KEY", Azurite::KEY)]));
    let mut world = world_at(&url.replace("az://", "az://missing-"), &named(&[("AZURE_STORAGE_ACCOUNT_KEY", Azurite::KEY)]));
    world.run(&["init"]).ended(1).says("no such bucket or container");
    // The key of somebody else.
    let foreign = "c2VjcmV0LW9mLW5vYm9keS1hdC1hbGwtMDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMg==";
    world.environment = named(&[("AZURE_STORAGE_ACCOUNT_KEY", foreign)]);
    for arguments in [&["ls"][..], &["doctor"], &["init", "--json"]] {
        let ran = world.run(arguments).ended(1).says("not permitted").says("403");
        assert!(!ran.out.contains(foreign) && !ran.err.contains(foreign), "{}", ran.told());
    }
}

#[test]
fn a_store_that_compares_the_signed_hash_of_each_body_keeps_and_gives_back() {
    let server = S3sFs::start().unwrap();
    keeps_and_gives_back(&format!("s3://test?endpoint={}", server.endpoint()), keys(&server.bucket().credentials));
}

#[test]
fn a_real_bucket_of_s3_keeps_and_gives_back() {
    a_real_bucket_keeps_and_gives_back("IMMICH_BACKUP_TEST_S3");
}

#[test]
fn a_real_bucket_of_google_keeps_and_gives_back() {
    a_real_bucket_keeps_and_gives_back("IMMICH_BACKUP_TEST_GCS");
}

#[test]
fn a_real_container_of_azure_keeps_and_gives_back() {
    a_real_bucket_keeps_and_gives_back("IMMICH_BACKUP_TEST_AZURE");
}
