//! What listing a repository costs without a verification around it: every object's name and size, with the code that verifications use.
//! `bench/compare` compares `verify` with it.
//!
//! `bare-list URL`, with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the environment for an object store.
#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use futures_util::TryStreamExt as _;
use immich_backup_core::repository::cloud::{Access, CloudStore, Options};
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::key;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::store::Store;
use object_store::StaticCredentialProvider;
use object_store::aws::AwsCredential;
use std::error::Error;
use std::sync::Arc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let url = std::env::args().nth(1).ok_or("usage: bare-list URL")?;
    let store: Box<dyn Store> = match Place::parse(&url)? {
        Place::Directory(path) => Box::new(DirectoryStore::new(&path)),
        place => {
            let credential = AwsCredential { key_id: std::env::var("AWS_ACCESS_KEY_ID")?, secret_key: std::env::var("AWS_SECRET_ACCESS_KEY")?, token: None };
            let access = Access { aws: Some(Arc::new(StaticCredentialProvider::new(credential))), ..Access::default() };
            Box::new(CloudStore::open(&place, Options { access, ..Options::default() })?)
        }
    };
    let (mut objects, mut bytes) = (0_u64, 0_u64);
    for prefix in key::CONTENT {
        let mut listing = store.list(prefix, None);
        while let Some(object) = listing.try_next().await? {
            objects += 1;
            bytes += object.size_bytes;
        }
    }
    println!("{objects} objects, {bytes} bytes");
    Ok(())
}
