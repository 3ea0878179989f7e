//! What storing files costs without a backup around it: reads each file, hashes it, and creates its object with the code that backups use. No log, no
//! manifest, no look at what is known. `bench/compare` compares backups with it.
//!
//! `bare-puts URL FOLDER WORKERS`, with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` in the environment.
#![allow(clippy::print_stdout, reason = "it is a program of its own")]

use bytes::Bytes;
use immich_backup_core::budget::{CHUNK_BYTES, ONE_SHOT_BYTES_MAX};
use immich_backup_core::model::{Class, FilePath, Hasher, RootPath, Sha256};
use immich_backup_core::repository::cloud::{Access, CloudStore, Options};
use immich_backup_core::repository::key;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::store::{Attributes, Created, Kind, Store, StoreError};
use object_store::StaticCredentialProvider;
use object_store::aws::AwsCredential;
use std::error::Error;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [url, folder, workers] = arguments.as_slice() else { return Err("usage: bare-puts URL FOLDER WORKERS".into()) };
    let credential = AwsCredential { key_id: std::env::var("AWS_ACCESS_KEY_ID")?, secret_key: std::env::var("AWS_SECRET_ACCESS_KEY")?, token: None };
    let access = Access { aws: Some(Arc::new(StaticCredentialProvider::new(credential))), ..Access::default() };
    let store = Arc::new(CloudStore::open(&Place::parse(url)?, Options { access, ..Options::default() })?);
    let (folder, workers) = (PathBuf::from(folder), workers.parse::<usize>()?);
    let mut files = files(&folder)?.into_iter();
    let mut storing = JoinSet::new();
    let mut count = 0;
    loop {
        while storing.len() < workers {
            let Some(path) = files.next() else { break };
            storing.spawn(put(Arc::clone(&store), folder.clone(), path));
        }
        let Some(stored) = storing.join_next().await else { break };
        stored??;
        count += 1;
    }
    println!("{count} objects");
    Ok(())
}

fn files(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { found.extend(files(&entry.path())?) } else { found.push(entry.path()) }
    }
    Ok(found)
}

async fn put(store: Arc<CloudStore>, folder: PathBuf, path: PathBuf) -> Outcome<()> {
    let name = path.strip_prefix(&folder)?.to_str().ok_or("a name that is not UTF-8")?;
    let key = key::home(&FilePath::library(RootPath::parse(name)?)).ok_or("a name that is too long")?;
    let size = path.metadata()?.len();
    let mut attributes = Attributes { kind: Kind::File(Class::Original), sha256: None, mtime_ns: Some(0), size_bytes: Some(size) };
    let created = if size <= ONE_SHOT_BYTES_MAX {
        let content = tokio::task::spawn_blocking(move || std::fs::read(path)).await??;
        attributes.sha256 = Some(Sha256::of(&content));
        store.create(&key, Bytes::from(content), &attributes).await?
    } else {
        let mut upload = store.create_streamed(&key, &attributes).await?;
        let (sender, mut pieces) = tokio::sync::mpsc::channel::<Bytes>(2);
        let reader = tokio::task::spawn_blocking(move || {
            let (mut file, mut hasher) = (std::fs::File::open(path)?, Hasher::default());
            loop {
                let mut piece = vec![0; CHUNK_BYTES];
                let count = file.read(&mut piece)?;
                piece.truncate(count);
                hasher.update(&piece);
                if count == 0 || sender.blocking_send(Bytes::from(piece)).is_err() {
                    return Ok::<_, std::io::Error>(hasher.finish().digests.sha256);
                }
            }
        });
        while let Some(piece) = pieces.recv().await {
            upload.write(piece).await?;
        }
        upload.finish(&reader.await??).await?
    };
    if created == Created::New { Ok(()) } else { Err(Box::new(StoreError::NotFound { key: format!("free name for {key}") })) }
}
