//! The servers that tests talk to start, do what they are there for, and are gone afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stdout, reason = "how long a server takes to start is worth knowing")]

use std::env;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use immich_backup_testbed::proxy::{Action, Proxy, Rule};
use immich_backup_testbed::servers::{Azurite, Bucket, Credentials, Identity, Moto, Options, S3sFs, SeaweedFs};

/// Whether somebody accepts connections at this address.
fn listens(endpoint: &str) -> bool {
    let address = endpoint.trim_start_matches("http://").split('/').next().unwrap();
    TcpStream::connect(address).is_ok()
}

fn stops_listening(endpoint: &str, within: Duration) -> bool {
    let began = Instant::now();
    while listens(endpoint) {
        if began.elapsed() > within {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

#[test]
fn seaweedfs_takes_objects_and_is_gone_when_dropped() {
    let began = Instant::now();
    let server = SeaweedFs::start(Options::default()).unwrap();
    println!("SeaweedFS was ready after {:?}", began.elapsed());
    let bucket = server.bucket();
    assert!(bucket.keys().unwrap().is_empty());
    bucket.put_raw("a/ä & b+c", b"content").unwrap();
    assert_eq!(bucket.get("a/ä & b+c").unwrap().as_ref(), b"content");
    assert_eq!(bucket.keys().unwrap().into_iter().collect::<Vec<_>>(), [("a/ä & b+c".to_string(), 7)]);
    bucket.delete_raw("a/ä & b+c").unwrap();
    assert!(bucket.keys().unwrap().is_empty());
    let other = server.another_bucket("other").unwrap();
    other.put_raw("k", b"x").unwrap();
    assert!(bucket.keys().unwrap().is_empty());
    let (endpoint, folder) = (server.endpoint().to_string(), server.folder().to_path_buf());
    drop(server);
    assert!(!listens(&endpoint));
    assert!(!folder.exists());
}

#[test]
fn seaweedfs_counts_versions_markers_and_open_uploads() {
    let server = SeaweedFs::start(Options { versioning: true, ..Options::default() }).unwrap();
    let bucket = server.bucket();
    assert!(bucket.versions().unwrap().is_empty(), "the probe of its start has left something");
    bucket.put_raw("once", b"1").unwrap();
    bucket.put_raw("twice", b"1").unwrap();
    bucket.put_raw("twice", b"2").unwrap();
    bucket.delete_raw("once").unwrap();
    let versions: Vec<_> = bucket.versions().unwrap().into_iter().collect();
    assert_eq!(versions, [("once".to_string(), 1), ("twice".to_string(), 2)]);
    assert_eq!(bucket.delete_markers().unwrap().into_iter().collect::<Vec<_>>(), [("once".to_string(), 1)]);
    assert_eq!(bucket.keys().unwrap().into_keys().collect::<Vec<_>>(), ["twice"]);
    assert!(bucket.uploads().unwrap().is_empty());
    bucket.send_ok("POST", "big", &[("uploads", "")], &[], b"").unwrap();
    assert_eq!(bucket.uploads().unwrap(), ["big"]);
}

#[test]
fn seaweedfs_lists_past_a_page() {
    let server = SeaweedFs::start(Options { versioning: true, ..Options::default() }).unwrap();
    thread::scope(|scope| {
        for worker in 0..4 {
            let bucket = server.bucket();
            scope.spawn(move || (0..260).for_each(|number| bucket.put_raw(&format!("k/{worker}/{number}"), b"x").unwrap()));
        }
    });
    assert_eq!(server.bucket().keys().unwrap().len(), 1_040);
    let versions = server.bucket().versions().unwrap();
    assert_eq!((versions.len(), versions.values().max()), (1_040, Some(&1)));
}

#[test]
fn seaweedfs_keeps_creates_and_readers_apart() {
    let reader = Identity::reader("AKREADER", "SKREADER");
    let server = SeaweedFs::start(Options { identities: vec![reader.clone()], ..Options::default() }).unwrap();
    let bucket = server.bucket();
    let create = [("if-none-match", "*")];
    assert_eq!(bucket.send("PUT", "k", &[], &create, b"first").unwrap().status(), 200);
    assert_eq!(bucket.send("PUT", "k", &[], &create, b"second").unwrap().status(), 412);
    assert_eq!(bucket.get("k").unwrap().as_ref(), b"first");
    let as_reader = Bucket { credentials: reader.credentials, ..bucket.clone() };
    assert_eq!(as_reader.get("k").unwrap().as_ref(), b"first");
    assert_eq!(as_reader.send("PUT", "k2", &[], &[], b"x").unwrap().status(), 403);
    let stranger = Bucket { credentials: Credentials::new("AKADMIN", "wrong"), ..bucket.clone() };
    assert_eq!(stranger.send("GET", "k", &[], &[], b"").unwrap().status(), 403);
}

#[test]
fn azurite_takes_blobs_and_is_gone_when_dropped() {
    let began = Instant::now();
    let server = Azurite::start().unwrap();
    println!("Azurite was ready after {:?}", began.elapsed());
    let container = server.container();
    container.put_raw("a/ä & b+c", b"content").unwrap();
    assert_eq!(container.get("a/ä & b+c").unwrap().as_ref(), b"content");
    assert_eq!(container.blobs().unwrap().into_iter().collect::<Vec<_>>(), [("a/ä & b+c".to_string(), 7)]);
    assert_eq!(container.head("a/ä & b+c").unwrap()["x-ms-blob-type"], "BlockBlob");
    let create = [("if-none-match", "*"), ("x-ms-blob-type", "BlockBlob")];
    assert_eq!(container.send("PUT", "a/ä & b+c", &[], &create, b"again").unwrap().status(), 409);
    container.send_ok("PUT", "parts", &[("comp", "block"), ("blockid", "MDAw")], &[], b"block").unwrap();
    assert_eq!(container.uncommitted().unwrap(), ["parts"]);
    container.delete_raw("a/ä & b+c").unwrap();
    assert!(container.blobs().unwrap().is_empty());
    server.another_container("other").unwrap().put_raw("k", b"x").unwrap();
    let endpoint = server.endpoint().to_string();
    drop(server);
    assert!(!listens(&endpoint));
}

#[test]
fn s3s_fs_refuses_a_body_that_is_not_what_was_signed() {
    let server = S3sFs::start().unwrap();
    let bucket = server.bucket();
    bucket.put_raw("k", b"content").unwrap();
    assert_eq!(bucket.get("k").unwrap().as_ref(), b"content");
    let proxy = Proxy::start(server.endpoint()).unwrap();
    proxy.add(Rule::on("PUT").then(Action::CorruptRequest { offset: 3 }));
    let damaged = Bucket { endpoint: proxy.endpoint(), ..bucket.clone() };
    // Any refusal will do; it is 500 here, where S3 says 400 XAmzContentSHA256Mismatch.
    assert!(!damaged.send("PUT", "k2", &[], &[], b"content").unwrap().status().is_success());
    assert_eq!(bucket.keys().unwrap().into_keys().collect::<Vec<_>>(), ["k"]);
}

#[test]
fn moto_keeps_archived_objects_from_being_read_until_they_are_restored() {
    let server = Moto::start().unwrap();
    let bucket = server.bucket();
    bucket.send_ok("PUT", "k", &[], &[("x-amz-storage-class", "DEEP_ARCHIVE")], b"content").unwrap();
    let refusal = bucket.send("GET", "k", &[], &[], b"").unwrap();
    assert_eq!(refusal.status(), 403);
    assert!(String::from_utf8_lossy(refusal.body()).contains("InvalidObjectState"));
    let wanted = b"<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Days>1</Days></RestoreRequest>";
    assert_eq!(bucket.send("POST", "k", &[("restore", "")], &[], wanted).unwrap().status(), 202);
    assert_eq!(bucket.get("k").unwrap().as_ref(), b"content");
}

const AS_VICTIM: &str = "IMMICH_BACKUP_TESTBED_VICTIM";

/// Not a test: what the next one starts and kills.
#[test]
fn victim() {
    if env::var_os(AS_VICTIM).is_none() {
        return;
    }
    // On a thread that ends at once, as those of a runtime may.
    let server = thread::spawn(|| S3sFs::start().unwrap()).join().unwrap();
    println!("\nlistens at {}", server.endpoint());
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn a_killed_test_leaves_no_server_behind() {
    let mut command = Command::new(env::current_exe().unwrap());
    // It cannot remove its folders either.
    let folder = tempfile::tempdir().unwrap();
    command.args(["--exact", "victim", "--nocapture"]).env(AS_VICTIM, "1").env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let endpoint = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listens at ").map(ToString::to_string)).unwrap();
    assert!(listens(&endpoint));
    victim.kill().unwrap();
    victim.wait().unwrap();
    assert!(stops_listening(&endpoint, Duration::from_secs(10)), "the server at {endpoint} has outlived its test");
}
