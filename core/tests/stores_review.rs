//! Stores that say strange things, or say them late: what is no answer of a store is not taken for one, and who waits long sends more at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::StatusCode;
use immich_backup_core::backup::{BackupError, Ending};
use immich_backup_core::event::{Event, Monitor, Recorder, Silent};
use immich_backup_core::model::{Class, Sha256};
use immich_backup_core::repository::cloud::{Access, Options};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{Fact, Listed};
use immich_backup_core::repository::store::{Attributes, Begin, Kind, Store, StoreError};
use immich_backup_core::repository::workers::Workers;
use immich_backup_core::repository::{OpenError, Repository, Session, init};
use immich_backup_testbed::gcs::{self, Double};
use immich_backup_testbed::proxy::{Action, Resign, Rule};
use immich_backup_testbed::servers::{self, Azurite, SeaweedFs};
use jiff::Timestamp;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::behind::{Behind, Line};
use support::cloud::{keys, open, options, s3_at};
use support::{World, noise, silent};

fn file(content: &[u8]) -> Attributes {
    Attributes { kind: Kind::File(Class::Original), sha256: Some(Sha256::of(content)), mtime_ns: None, size_bytes: Some(content.len() as u64) }
}

fn answer(code: StatusCode, body: &str) -> Action {
    Action::Status { code, headers: Vec::new(), body: body.to_owned() }
}

async fn names(store: &dyn Store, prefix: &str) -> Result<Vec<String>, StoreError> {
    store.list(prefix, None).map_ok(|found| found.key.to_string()).try_collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_listing_is_not_taken_for_an_empty_one() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let line = Line::to(&Behind::S3(server.bucket().clone()), "listing");
    let world = World::empty();
    world.write("upload/u0/photo.jpg", &noise(1, 300));
    init(line.store(), "test").await.unwrap();
    world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
    let whole = names(line.store().as_ref(), "log/").await.unwrap();
    assert!(whole.len() > 2, "{whole:?}");
    let first_page_only = format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>listing/{0}</NextMarker><Contents><Key>listing/{0}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size></Contents></ListBucketResult>",
        whole[0]
    );
    let strange = [
        Action::OkWithError { error: "InternalError", forwarded: false },
        answer(StatusCode::OK, "<html><body>Please log in</body></html>"),
        // Of a store that knows the first kind of listing only.
        answer(StatusCode::OK, &first_page_only),
    ];
    for action in strange {
        let fired = line.proxy.add(Rule::on("GET").query("list-type=2").times(1).then(action.clone()));
        assert_eq!(names(line.store().as_ref(), "log/").await.unwrap(), whole, "{action:?}");
        assert_eq!(fired.count(), 1);
        line.proxy.clear_rules();
        line.proxy.add(Rule::on("GET").query("list-type=2").then(action.clone()));
        for state in ["state", "fresh"] {
            let (repository, folder) = world.open(line.store(), state).await.unwrap();
            let opened = Session::open_for_reading(repository, folder, &Silent).await;
            assert!(opened.as_ref().is_err_and(|error| error.to_string().contains("could not list")), "{state}, {action:?}: {opened:?}");
        }
        line.proxy.clear_rules();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_200_that_says_nothing_of_an_object_has_stored_none() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let line = Line::to(&Behind::S3(server.bucket().clone()), "portal");
    let store = line.store();
    for content in [Bytes::from(noise(2, 300)), Bytes::from(noise(3, 20 << 20))] {
        let key = Key::parse(&format!("library/{}", content.len())).unwrap();
        line.proxy.add(Rule::on("PUT").without_query("partNumber").then(answer(StatusCode::OK, "<html>Please log in</html>")));
        line.proxy.add(Rule::on("POST").query("uploadId").then(answer(StatusCode::OK, "\n\n")));
        let mut upload = store.create_streamed(&key, &file(&content)).await.unwrap();
        upload.write(content.clone()).await.unwrap();
        let finished = upload.finish(&Sha256::of(&content)).await;
        assert!(matches!(finished, Err(StoreError::Unanswered { .. })), "{finished:?}");
        assert!(store.head(&key).await.unwrap().is_none());
        line.proxy.clear_rules();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_refuses_to_be_asked_for_checksums_is_used_without() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let line = Line::to(&Behind::S3(server.bucket().clone()), "b2");
    // As Backblaze B2: 400 to each of them, and 501 to conditions.
    for name in ["x-amz-checksum-mode", "x-amz-checksum-sha256", "x-amz-checksum-algorithm"] {
        let body = format!("<Error><Code>InvalidArgument</Code><Message>Unsupported header '{name}' received for this API call.</Message></Error>");
        line.proxy.add(Rule::any().header(name).then(answer(StatusCode::BAD_REQUEST, &body)));
    }
    line.proxy.add(Rule::any().header("if-none-match").then(Action::s3_error(StatusCode::NOT_IMPLEMENTED, "NotImplemented")));
    let world = World::empty();
    world.write("upload/u0/photo.jpg", &noise(4, 300));
    world.write("upload/u0/film.mov", &noise(5, 20 << 20));
    init(line.store(), "test").await.unwrap();
    for _ in 0..2 {
        let report = world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
        assert_eq!(report.ending, Ending::Snapshot);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_comes_from_the_container_that_is_written_to_whatever_the_environment_says() {
    let server = Azurite::start().unwrap();
    let (container, other) = (server.container(), server.another_container("other").unwrap());
    let variables = [("AZURE_STORAGE_ACCOUNT_KEY", Azurite::KEY), ("AZURE_CONTAINER_NAME", &other.name), ("AZURE_STORAGE_USE_EMULATOR", "true")];
    let azure = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let url = format!("az://{}/p?account={}&endpoint={}", container.name, Azurite::ACCOUNT, container.endpoint);
    let store = open(&url, options(Access { azure, ..Access::default() }));
    let made = init(Arc::clone(&store), "test").await.unwrap();
    assert_eq!(Repository::open(store).await.unwrap().id, made.id);
    assert!(other.blobs().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_forgot_what_it_had_is_begun_again() {
    let behind = Behind::Gcs(Arc::new(Double::start(gcs::Options::default())));
    let line = Line::to(&behind, "forgot");
    let world = World::empty();
    world.write("upload/u0/film.mov", &noise(6, 40 << 20));
    init(line.store(), "test").await.unwrap();
    line.proxy.add(Rule::on("PUT").query("upload_id").nth(2).then(answer(StatusCode::PERMANENT_REDIRECT, "")));
    let report = world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
    assert_eq!(report.ending, Ending::Snapshot);
    behind.assert_nothing_was_replaced("forgot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_is_read_wrong_each_time_begins_no_log_and_replaces_nothing() {
    let server = SeaweedFs::start(servers::Options { versioning: true, ..Default::default() }).unwrap();
    let behind = Behind::S3(server.bucket().clone());
    for has_log in [false, true] {
        for keeps_conditions in [true, false] {
            let prefix = format!("misread-{has_log}-{keeps_conditions}");
            let line = Line::to(&behind, &prefix);
            let world = World::empty();
            world.write("upload/u0/photo.jpg", &noise(9, 300));
            let repository = init(behind.direct(&prefix), "test").await.unwrap();
            if has_log {
                world.back_up_with(behind.direct(&prefix), "state", &silent(), |_| {}).await.unwrap();
            }
            let keys = behind.keys(&prefix);
            // A bit of who made it: what is read still is an identity, of this very repository.
            let offset = repository.identity.windows(4).position(|window| window == b"test").unwrap();
            let wrong = line.proxy.add(Rule::on("GET").key("format.json").then(Action::CorruptResponse { offset: offset as u64 }));
            if !keeps_conditions {
                line.proxy.add(Rule::on("PUT").then(Action::ignore_conditions(Some(Resign::S3(server.bucket().credentials.clone())))));
            }
            let error = world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap_err();
            assert!(matches!(error, BackupError::Open(OpenError::UnsteadyIdentity { .. })), "{prefix}: {error:?}");
            assert!(wrong.count() > 0);
            // Nothing was written, and nothing written over: where the store would have taken it, too.
            assert_eq!(behind.keys(&prefix), keys, "{prefix}");
            behind.assert_nothing_was_replaced(&prefix);
            assert_eq!(server.bucket().get(&format!("{prefix}/format.json")).unwrap(), repository.identity, "{prefix}");
            line.proxy.clear_rules();
            if keeps_conditions && !has_log {
                // Once only, a second look decides: of the store's checksum before anything is written, and of the bytes by who has looked.
                let other = Action::AnswerHeader { name: "x-amz-checksum-sha256", value: "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" };
                let wrong = line.proxy.add(Rule::on("HEAD").key("format.json").times(1).then(other));
                world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
                assert_eq!(wrong.count(), 1);
                let late = line.proxy.add(Rule::on("HEAD").key("format.json").times(1).then(answer(StatusCode::NOT_FOUND, "")));
                world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
                assert_eq!(late.count(), 1);
                let (repository, state) = world.open(line.store(), "looks").await.unwrap();
                let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
                let wrong = line.proxy.add(Rule::on("GET").key("format.json").times(1).then(Action::CorruptResponse { offset: offset as u64 }));
                let listed = Listed { at: Timestamp::now(), sequence: 1, objects: 1, damaged: 0 };
                session.note(&[Fact::Listed(listed)], &Silent).await.unwrap();
                assert_eq!(wrong.count(), 1);
            }
            world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
            behind.assert_whole(&prefix, &world).await;
        }
    }
}

/// What no object's `ETag` is.
const WRONG: Action = Action::AnswerHeader { name: "etag", value: "\"00112233445566778899aabbccddeeff\"" };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_etag_costs_time_and_nothing_else() {
    let server = SeaweedFs::start(servers::Options { versioning: true, ..Default::default() }).unwrap();
    let behind = Behind::S3(server.bucket().clone());
    for (number, (method, query)) in [("PUT", "partNumber"), ("PUT", ""), ("POST", "uploadId"), ("HEAD", ""), ("GET", "")].into_iter().enumerate() {
        let prefix = format!("etag-{number}");
        let line = Line::to(&behind, &prefix);
        let world = World::empty();
        world.write("upload/u0/film.mov", &noise(8, 40 << 20));
        world.write("upload/u0/photo.jpg", &noise(9, 300));
        init(line.store(), "test").await.unwrap();
        // The answer to one create is lost, so that it is looked at what is there; some stores say no more of it than an `ETag`.
        line.proxy.add(Rule::on("PUT").key("photo.jpg").times(1).then(Action::ResetAfter));
        let rule = if query.is_empty() { Rule::on(method) } else { Rule::on(method).query(query) };
        // Two of the first answers, and not of the parts only: an upload is begun again twice.
        let wrong = line.proxy.add(rule.times(2).then(WRONG));
        let report = world.back_up_with(line.store(), "state", &silent(), |_| {}).await.unwrap();
        assert_eq!((&report.ending, report.counts.unread), (&Ending::Snapshot, 0), "{method} {query}");
        assert!(wrong.count() > 0, "{method} {query}: nothing was asked");
        behind.assert_whole(&prefix, &world).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_comes_in_crumbs_is_given_up_and_one_that_comes_in_pieces_is_read() {
    let line = Line::to(&Behind::Gcs(Arc::new(Double::start(gcs::Options::default()))), "crumbs");
    let store = line.store();
    let content = noise(7, 320 << 10);
    let key = Key::parse("library/upload/u0/film.mov").unwrap();
    store.create(&key, Bytes::from(content.clone()), &file(&content)).await.unwrap();
    let read = async |store: &dyn Store| {
        let pieces: Vec<Bytes> = store.get(&key, None).await?.try_collect().await?;
        Ok::<_, StoreError>(pieces.concat())
    };
    // Each answer is cut after these bytes. So many requests are asked for, with so many retries told, and it ends well or not.
    for (after_bytes, requests, retries, is_read) in [
        // Crumbs: to go on for each of them would take some 780 requests, and a film ten thousands.
        (420, 6, vec![1, 2, 3, 4, 5], false),
        // Enough of it, and the next time counts as the first again.
        (64 << 10, 5, vec![1, 1, 1, 1], true),
        // A little less makes up for nothing, and the object is read before the retries are used up.
        (60_000, 6, vec![1, 2, 3, 4, 5], true),
    ] {
        line.proxy.clear_rules();
        let before = line.retries("film").len();
        let cut = line.proxy.add(Rule::on("GET").then(Action::TruncateResponse { after_bytes }));
        match read(&*store).await {
            Ok(bytes) => assert!(is_read && bytes == content, "{after_bytes}"),
            Err(error) => assert!(!is_read && matches!(error, StoreError::Unreachable { .. }), "{after_bytes}: {error:?}"),
        }
        assert_eq!(cut.count(), requests, "{after_bytes}");
        let told: Vec<_> = line.retries("film").split_off(before).into_iter().map(|(retry, _)| retry).collect();
        assert_eq!(told, retries, "{after_bytes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_list_of_uploads_keeps_no_run_from_beginning() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("uploads.ndjson");
    std::fs::write(&journal, b"{\"ended\":\"x\"}\n\xff\xfe\x00rest of a sector\n").unwrap();
    let (store, identity) = (s3_at(server.bucket(), "journal", ""), Bytes::from_static(b"{}"));
    for what in [Begin::Repository, Begin::Writing { leftovers: Some(&journal) }] {
        store.begin(&identity, what).await.unwrap();
    }
}

/// An upload at home, all of it a sixtieth: a second instead of a minute after which what stands still is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thin_line_gets_everything_through_however_many_files_are_sent_at_once() {
    const BYTES_PER_SECOND: u64 = 800_000;
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let bucket = server.bucket();
    let world = World::empty();
    for number in 0..64 {
        world.write(&format!("upload/u{number}/photo.jpg"), &noise(number, 100_000));
    }
    init(s3_at(bucket, "thin", ""), "test").await.unwrap();
    let line = immich_backup_testbed::line::Line::start(&bucket.endpoint, BYTES_PER_SECOND).unwrap();
    let told = Arc::new(Recorder::default());
    let thin = Options { idle: Duration::from_secs(1), monitor: Arc::clone(&told) as Arc<dyn Monitor>, ..options(keys(&bucket.credentials)) };
    let store = open(&format!("s3://{}/thin?endpoint={}", bucket.name, line.endpoint()), thin);
    let report = world.back_up_with(store, "state", &silent(), |plan| plan.workers = Workers::Exactly(NonZeroUsize::new(64).unwrap())).await.unwrap();
    assert_eq!((&report.ending, report.counts.sent.files, report.counts.unread), (&Ending::Snapshot, 64, 0));
    let again = told.events().iter().filter(|event| matches!(event, Event::Retrying { .. })).count();
    assert!(again <= 4, "{again} requests were given up");
}

/// Others take a run for dead that says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_the_log_waits_for_no_content() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let line = Line::to(&Behind::S3(server.bucket().clone()), "stuck");
    let store = line.store();
    init(Arc::clone(&store), "test").await.unwrap();
    let stuck = line.proxy.add(Rule::on("PUT").key("library/").then(Action::HangBefore));
    let content = Bytes::from(noise(1, 300));
    let create = |number: usize| {
        let (store, content) = (Arc::clone(&store), content.clone());
        tokio::spawn(async move { store.create(&Key::parse(&format!("library/{number}")).unwrap(), content.clone(), &file(&content)).await })
    };
    let sending: Vec<_> = (0..16).map(create).collect();
    while stuck.count() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let entry = Attributes { kind: Kind::Log, ..file(&content) };
    let written = tokio::time::timeout(Duration::from_secs(2), store.create(&Key::parse("log/0000000001").unwrap(), content.clone(), &entry)).await;
    assert!(matches!(written, Ok(Ok(_))), "{written:?}");
    assert!(stuck.count() < 16, "there was no lane left");
    sending.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_long_for_answers_sends_more_at_once() {
    const AWAY: Duration = Duration::from_millis(40);
    let line = Line::to(&Behind::Gcs(Arc::new(Double::start(gcs::Options::default()))), "far");
    let world = World::empty();
    for number in 0..60 {
        world.write(&format!("upload/u{number}/photo.jpg"), &noise(number, 300));
    }
    assert_eq!(line.store().capabilities().round_trip, None, "nothing was asked yet");
    init(line.store(), "test").await.unwrap();
    let most = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let counted = Arc::clone(&most);
    let waits = move || {
        counted.1.fetch_max(counted.0.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(AWAY);
        counted.0.fetch_sub(1, Ordering::SeqCst);
    };
    line.proxy.add(Rule::any().doing(waits).then(Action::Pass));
    let store = line.store();
    assert!(store.head(&Key::identity()).await.unwrap().is_some());
    assert!(store.capabilities().round_trip.unwrap() >= AWAY, "{:?}", store.capabilities());
    assert_eq!((Workers::ByDistance.count(&*store), Workers::ByDistance.local()), (64, 4));
    world.back_up_with(store, "state", &silent(), |plan| plan.workers = Workers::ByDistance).await.unwrap();
    let most = most.1.load(Ordering::SeqCst);
    assert!(most > 16, "{most} requests at once");
}
