//! Scratch.
#![allow(warnings, clippy::all, clippy::pedantic, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

mod support;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use immich_backup_core::event::{Event, Recorder, Silent};
use immich_backup_core::model::{Class, Sha256};
use immich_backup_core::repository::cloud::{Access, GcsCredentials};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::store::{Attributes, Created, Kind, Store, StoreError, read_all};
use immich_backup_core::repository::{Repository, Session, init};
use immich_backup_testbed::gcs::{self, Double};
use immich_backup_testbed::proxy::{Action, Proxy, Rule};
use immich_backup_testbed::servers::{self, Azurite, SeaweedFs};
use std::sync::{Arc, LazyLock};
use support::behind::{Behind, Line};
use support::cloud::{azure_at, open, options, s3_at};
use support::{World, noise};

static WEED: LazyLock<SeaweedFs> = LazyLock::new(|| SeaweedFs::start(servers::Options::default()).unwrap());

fn file(sha: &[u8]) -> Attributes {
    Attributes { kind: Kind::File(Class::Original), sha256: Some(Sha256::of(sha)), mtime_ns: None, size_bytes: Some(sha.len() as u64) }
}

async fn names(store: &dyn Store, prefix: &str) -> Result<Vec<String>, StoreError> {
    store.list(prefix, None).map_ok(|found| found.key.to_string()).try_collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azure_container_of_environment() {
    let server = Azurite::start().unwrap();
    let other = server.another_container("other").unwrap();
    let container = server.container();
    let azure = vec![("AZURE_STORAGE_ACCOUNT_KEY".to_owned(), Azurite::KEY.to_owned()), ("AZURE_CONTAINER_NAME".to_owned(), other.name.clone())];
    let access = Access { azure, ..Access::default() };
    let store = open(&format!("az://{}/p?account={}&endpoint={}", container.name, Azurite::ACCOUNT, container.endpoint), options(access));
    let made = init(store.clone(), "test").await;
    eprintln!("init: {made:?}");
    eprintln!("in container: {:?}, in other: {:?}", container.blobs().unwrap(), other.blobs().unwrap());
    eprintln!("open: {:?}", Repository::open(store).await.map(|r| r.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listing_200_with_error() {
    let behind = Behind::S3(WEED.bucket().clone());
    let world = World::empty();
    for n in 0..5 { world.write(&format!("upload/u/{n}.jpg"), &noise(n, 300)); }
    let line = Line::to(&behind, "list200");
    init(line.store(), "test").await.unwrap();
    back_up(&world, line.store()).await.unwrap();
    eprintln!("before: {:?}", names(line.store().as_ref(), "log/").await.unwrap());
    line.proxy.add(Rule::on("GET").query("list-type=2").times(1).then(Action::OkWithError { error: "InternalError", forwarded: false }));
    eprintln!("200 error: {:?}", names(line.store().as_ref(), "log/").await);
    line.proxy.clear_rules();
    line.proxy.add(Rule::on("GET").query("list-type=2").times(1).then(Action::Status { code: StatusCode::OK, headers: vec![("content-type", "text/html".into())], body: "<html><body>Please log in</body></html>".into() }));
    eprintln!("200 html: {:?}", names(line.store().as_ref(), "log/").await);
    line.proxy.clear_rules();
    line.proxy.add(Rule::on("GET").query("list-type=2").times(2).then(Action::OkWithError { error: "InternalError", forwarded: false }));
    let (repository, state) = world.open(line.store(), "state").await.unwrap();
    eprintln!("known machine: {:?}", Session::open_for_reading(repository, state, &Silent).await.map(|s| s.manifest.head()));
    line.proxy.clear_rules();
    line.proxy.add(Rule::on("GET").query("list-type=2").then(Action::OkWithError { error: "InternalError", forwarded: false }));
    let (repository, state) = world.open(line.store(), "fresh").await.unwrap();
    eprintln!("fresh machine: {:?}", Session::open_for_reading(repository, state, &Silent).await.map(|s| s.manifest.head()));
    line.proxy.clear_rules();
    // V1 only: truncated, no token.
    let body = "<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>true</IsTruncated><NextMarker>list200/log/0000000001.ndjson.zst</NextMarker><Contents><Key>list200/log/0000000001.ndjson.zst</Key><LastModified>2024-01-01T00:00:00Z</LastModified><Size>3</Size></Contents></ListBucketResult>";
    line.proxy.add(Rule::on("GET").query("list-type=2").then(Action::Status { code: StatusCode::OK, headers: vec![], body: body.into() }));
    eprintln!("v1: {:?}", names(line.store().as_ref(), "log/").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b2_refuses_checksum_mode() {
    let behind = Behind::S3(WEED.bucket().clone());
    let line = Line::to(&behind, "b2");
    let body = "<Error><Code>InvalidArgument</Code><Message>Unsupported header 'x-amz-checksum-mode' received for this API call.</Message></Error>";
    line.proxy.add(Rule::any().header("x-amz-checksum-mode").then(Action::Status { code: StatusCode::BAD_REQUEST, headers: vec![], body: body.into() }));
    let body = "<Error><Code>InvalidArgument</Code><Message>Unsupported header 'x-amz-checksum-sha256' received for this API call.</Message></Error>";
    line.proxy.add(Rule::any().header("x-amz-checksum-sha256").then(Action::Status { code: StatusCode::BAD_REQUEST, headers: vec![], body: body.into() }));
    let body = "<Error><Code>InvalidArgument</Code><Message>Unsupported header 'x-amz-checksum-algorithm' received for this API call.</Message></Error>";
    line.proxy.add(Rule::any().header("x-amz-checksum-algorithm").then(Action::Status { code: StatusCode::BAD_REQUEST, headers: vec![], body: body.into() }));
    let line_store = line.store();
    eprintln!("init: {:?}", init(line_store.clone(), "test").await.map(|r| r.id));
    let plain = behind.direct("b2");
    let made = init(plain, "test").await;
    eprintln!("open: {:?}", Repository::open(line.store()).await.map(|r| r.id));
    let world = World::empty();
    world.write("upload/u/small.jpg", &noise(1, 300));
    world.write("upload/u/large.mov", &noise(2, 20 << 20));
    eprintln!("backup: {:?}", back_up(&world, line.store()).await.map(|r| r.ending));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_200_of_somebody_else() {
    let behind = Behind::S3(WEED.bucket().clone());
    let line = Line::to(&behind, "two");
    let store = line.store();
    line.proxy.add(Rule::on("PUT").key("library/a").then(Action::Status { code: StatusCode::OK, headers: vec![("content-type", "text/html".into())], body: "<html>hello</html>".into() }));
    let key = Key::parse("library/a").unwrap();
    eprintln!("put: {:?}; there: {:?}", store.create(&key, Bytes::from_static(b"x"), &file(b"x")).await, store.head(&key).await);
    line.proxy.clear_rules();
    line.proxy.add(Rule::on("POST").query("uploadId").then(Action::Status { code: StatusCode::OK, headers: vec![], body: "\n\n\n".into() }));
    let key = Key::parse("library/big").unwrap();
    let content = Bytes::from(noise(3, 20 << 20));
    let mut upload = store.create_streamed(&key, &file(&content)).await.unwrap();
    upload.write(content.clone()).await.unwrap();
    eprintln!("complete: {:?}; there: {:?}", upload.finish(&Sha256::of(&content)).await, store.head(&key).await);
    line.proxy.clear_rules();
    line.proxy.add(Rule::on("POST").query("uploadId").then(Action::s3_error(StatusCode::NOT_IMPLEMENTED, "NotImplemented")));
    let key = Key::parse("library/big2").unwrap();
    let mut upload = store.create_streamed(&key, &file(&content)).await.unwrap();
    upload.write(content.clone()).await.unwrap();
    eprintln!("complete 501: {:?}; there: {:?}", upload.finish(&Sha256::of(&content)).await, store.head(&key).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_501_in_passing() {
    let behind = Behind::S3(WEED.bucket().clone());
    let line = Line::to(&behind, "flip");
    init(line.store(), "test").await.unwrap();
    line.proxy.add(Rule::on("PUT").key("format.json").times(1).then(Action::status(StatusCode::NOT_IMPLEMENTED)));
    let world = World::empty();
    world.write("upload/u/small.jpg", &noise(1, 300));
    eprintln!("backup: {:?}", back_up(&world, line.store()).await.map(|r| r.ending));
    eprintln!("keys: {:?}, versions {:?}", behind.keys("flip"), WEED.bucket().versions().unwrap().iter().filter(|(k, _)| k.starts_with("flip")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gcs_token_blip_and_308() {
    let double = Arc::new(Double::start(gcs::Options { token_lifetime: std::time::Duration::from_secs(3600), ..gcs::Options::default() }));
    let proxy = Proxy::start(double.url()).unwrap();
    let key = double.key_json("owner").replace(&format!("{}/token", double.url()), &format!("{}/token", proxy.endpoint()));
    eprintln!("{}", &key[key.find("token_uri").unwrap()..][..60]);
    let access = Access { gcs: GcsCredentials::Key(key), ..Access::default() };
    let store = open(&format!("gs://{}/p?endpoint={}", double.bucket(), double.url()), options(access));
    proxy.add(Rule::on("POST").times(1).then(Action::status(StatusCode::SERVICE_UNAVAILABLE)));
    let k = Key::parse("library/a").unwrap();
    eprintln!("create with one 503 of the token endpoint: {:?}", store.create(&k, Bytes::from_static(b"x"), &file(b"x")).await);
    eprintln!("again: {:?}", store.create(&k, Bytes::from_static(b"x"), &file(b"x")).await);

    let behind = Behind::Gcs(double);
    let line = Line::to(&behind, "f308");
    let world = World::empty();
    world.write("upload/u/large.mov", &noise(2, 40 << 20));
    init(line.store(), "test").await.unwrap();
    line.proxy.add(Rule::on("PUT").query("upload_id").nth(2).then(Action::Status { code: StatusCode::PERMANENT_REDIRECT, headers: vec![], body: String::new() }));
    match back_up(&world, line.store()).await { Ok(r) => eprintln!("308 without range: {:?}", r.ending), Err(e) => eprintln!("308 without range: {e:?}") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn journal_garbage() {
    let store = s3_at(WEED.bucket(), "journal", "");
    let identity = Bytes::from_static(b"{}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("uploads.ndjson");
    std::fs::write(&file, b"{\"ended\":\"x\"}\n\xff\xfe\x00garbage").unwrap();
    eprintln!("{:?}", store.begin(&identity, Some(&file)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_delete() {
    let behind = Behind::S3(WEED.bucket().clone());
    let line = Line::to(&behind, "del");
    line.proxy.add(Rule::on("DELETE").query("versionId").then(Action::s3_error(StatusCode::FORBIDDEN, "AccessDenied")));
    let store = line.store();
    let k = Key::parse("library/a").unwrap();
    store.create(&k, Bytes::from_static(b"x"), &file(b"x")).await.unwrap();
    eprintln!("may_delete {:?}", store.may_delete().await);
    eprintln!("delete {:?} -> {:?}", store.delete(&k).await, store.head(&k).await);
}

async fn back_up(world: &World, store: Arc<dyn Store>) -> Result<immich_backup_core::backup::Report, immich_backup_core::backup::BackupError> {
    let mut session = world.writing(store, "state").await?;
    let monitor: Arc<dyn immich_backup_core::event::Monitor> = Arc::new(Silent);
    Box::pin(immich_backup_core::backup::run(&mut session, &world.plan(), &monitor, &tokio_util::sync::CancellationToken::new())).await
}
