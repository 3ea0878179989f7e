//! What every store promises, kept by real servers (SeaweedFS, s3s-fs, Azurite), by the double of Google Cloud Storage, and, where their URLs are
//! given, by real buckets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stderr, reason = "it says which promise is looked at, and what is skipped")]

mod support;

use immich_backup_core::repository::store::Store;
use immich_backup_testbed::gcs::{self, Double};
use immich_backup_testbed::servers::{self, Azurite, S3sFs, SeaweedFs};
use std::sync::Arc;
use support::cloud::{access_of_environment, azure_at, gcs_at, open, s3_at};
use support::promises::{self, each_promise};

/// Runs every promise, each on a place of its own.
macro_rules! keeps {
    ($make:expr; $($promise:ident)*) => {
        $(
            eprintln!("{}", stringify!($promise));
            let store: Arc<dyn Store> = $make(stringify!($promise)).await;
            promises::$promise(store).await;
        )*
    };
}

macro_rules! keeps_all {
    ($make:expr) => {
        each_promise!(keeps, $make);
        eprintln!("a_listing_of_many_pages_shows_each_object_once");
        promises::a_listing_of_many_pages_shows_each_object_once($make("pages").await, 2_300).await;
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweedfs_keeps_all_promises() {
    let server = SeaweedFs::start(servers::Options::default()).unwrap();
    let make = async |name: &str| s3_at(server.bucket(), name, "");
    keeps_all!(make);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn azurite_keeps_all_promises() {
    let server = Azurite::start().unwrap();
    let make = async |name: &str| azure_at(server.container(), name);
    keeps_all!(make);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn google_cloud_storage_keeps_all_promises() {
    let double = Double::start(gcs::Options::default());
    let make = async |name: &str| gcs_at(&double, "owner", name);
    keeps_all!(make);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3s_fs_which_compares_the_signed_hash_of_each_body_keeps_the_promises_to_one_writer() {
    let server = S3sFs::start().unwrap();
    let make = async |name: &str| s3_at(server.bucket(), name, "");
    // It looks and then writes: of several creates at once more than one may win. And it is a directory behind, whose folders are objects to it.
    keeps! { make;
        writing_begins_only_behind_the_identity_that_is_there
        what_exists_is_never_changed
        a_streamed_object_is_not_to_be_seen_before_it_is_finished
        a_dropped_upload_never_was
        an_upload_without_pieces_is_an_empty_object
        bytes_come_back_whole_and_by_range
        a_look_says_name_and_size
        an_object_may_be_empty
        a_barrier_covers_what_was_created_and_what_was_found
        a_create_that_is_given_up_leaves_all_or_nothing
        a_large_object_comes_in_parts_and_is_whole
    }
}

/// Below a place of its own in a bucket that somebody gave for tests. What is left there is theirs to remove.
async fn a_real_bucket_keeps_all_promises(variable: &str) {
    let Ok(url) = std::env::var(variable) else {
        eprintln!("SKIPPED: {variable} names no bucket (a URL as of a repository; credentials from the environment)");
        return;
    };
    let (base, options) = url.split_once('?').map_or((url.as_str(), String::new()), |(base, options)| (base, format!("?{options}")));
    let run = uuid::Uuid::new_v4().simple();
    let make = async |name: &str| open(&format!("{}/{run}/{name}{options}", base.trim_end_matches('/')), support::cloud::options(access_of_environment()));
    keeps_all!(make);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_bucket_of_s3_keeps_all_promises_where_one_is_given() {
    a_real_bucket_keeps_all_promises("IMMICH_BACKUP_TEST_S3").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_bucket_of_google_keeps_all_promises_where_one_is_given() {
    a_real_bucket_keeps_all_promises("IMMICH_BACKUP_TEST_GCS").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_container_of_azure_keeps_all_promises_where_one_is_given() {
    a_real_bucket_keeps_all_promises("IMMICH_BACKUP_TEST_AZURE").await;
}
