//! An object that is sent in parts (S3, Azure): several at once, put together by one request that refuses what exists.

use super::super::checksum::{Checksum, Comparison};
use super::super::store::{Created, StoreError, Upload};
use super::answer::Fault;
use super::provider::{About, Part, Put, Seen};
use super::{Inner, NAME_BYTES_MAX, parts_in_flight};
use crate::event::Event;
use crate::model::Sha256;
use crate::task::joined;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use sha2::Digest as _;
use std::io;
use std::sync::Arc;
use tokio::task::JoinSet;

/// An object on its way.
pub(super) struct PartsUpload {
    inner: Arc<Inner>,
    path: String,
    about: About,
    part_bytes: usize,
    /// What the store calls this upload, once a part was full.
    id: Option<String>,
    /// The part that is being filled.
    pieces: Vec<Bytes>,
    filled: usize,
    hasher: sha2::Sha256,
    sending: JoinSet<Result<Part, StoreError>>,
    parts: Vec<Part>,
    next: usize,
    size_bytes: u64,
}

impl PartsUpload {
    pub(super) fn new(inner: Arc<Inner>, path: String, about: About, part_bytes: usize) -> Self {
        let about = About { part_bytes: Some(part_bytes as u64), ..about };
        Self {
            inner,
            path,
            about,
            part_bytes,
            id: None,
            pieces: Vec::new(),
            filled: 0,
            hasher: sha2::Sha256::new(),
            sending: JoinSet::new(),
            parts: Vec::new(),
            next: 1,
            size_bytes: 0,
        }
    }

    async fn id(&mut self) -> Result<String, StoreError> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let (inner, path, about) = (&self.inner, &self.path, &self.about);
        let mut retries = inner.retries("begin to store", path);
        let id = loop {
            match inner.provider.begin_parts(path, about).await {
                Ok(id) => break id,
                Err(Fault::Unknown(problem)) if inner.without_checksums(&problem) => {}
                Err(fault) => retries.after(fault).await?,
            }
        };
        if let Some(journal) = inner.journal() {
            journal.begun(path, &id);
        }
        self.id = Some(id.clone());
        Ok(id)
    }

    /// Sends the part that is filled.
    async fn send(&mut self) -> Result<(), StoreError> {
        let id = self.id().await?;
        while self.sending.len() >= parts_in_flight(self.part_bytes) {
            self.wait().await?;
        }
        let (pieces, hasher) = (std::mem::take(&mut self.pieces), std::mem::take(&mut self.hasher));
        let (inner, path, number) = (Arc::clone(&self.inner), self.path.clone(), self.next);
        self.next += 1;
        self.filled = 0;
        self.sending.spawn(async move {
            let sha256 = Sha256(hasher.finalize().into());
            let sent = inner.patiently("store a part of", &path, || inner.provider.put_part(&path, &id, number, &pieces, sha256)).await;
            sent.map_err(|error| lost(error, &path))
        });
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), StoreError> {
        if let Some(sent) = self.sending.join_next().await {
            self.parts.push(joined(sent)?);
        }
        Ok(())
    }

    /// Whether the object is there, and is this one.
    async fn look(&self, checksum: Checksum, sha256: Sha256) -> Result<Option<bool>, StoreError> {
        let compare = |seen: Seen| if seen.checksum == Some(checksum) { Comparison::Same } else { Comparison::Unknown };
        self.inner.holds(&self.path, self.size_bytes, compare, sha256).await
    }

    async fn complete(&self, id: &str, sha256: Sha256) -> Result<Created, StoreError> {
        let (inner, path) = (&self.inner, &self.path);
        let hashes: Vec<u8> = self.parts.iter().flat_map(|part| part.sha256.0).collect();
        let checksum = Checksum::Sha256OfParts { sha256: Sha256::of(&hashes), part_bytes: self.part_bytes as u64 };
        // Where the store does not look, we do; and some (Ceph until late in 2025) keep conditions for all but this.
        if inner.head(path).await?.is_some() {
            return Ok(Created::Exists);
        }
        let mut retries = inner.retries("complete", path);
        let mut about = self.about.clone();
        loop {
            let fault = match inner.provider.complete(path, id, &self.parts, &about).await {
                // It was looked just now, and one request more does not make the object of another writer.
                Err(Fault::Unknown(problem)) if about.create_only => {
                    let message = format!("{} knows no condition where parts are put together ({problem}); it is looked before instead", inner.url);
                    inner.options.monitor.emit(Event::Warned { message });
                    about.create_only = false;
                    continue;
                }
                Ok(Put::New) => return Ok(Created::New),
                Ok(Put::Unnameable) => return Ok(Created::Unnameable),
                Ok(Put::Exists) if !retries.perhaps_done => {
                    return Ok(if inner.head(path).await?.is_some() { Created::Exists } else { Created::Unnameable });
                }
                Ok(Put::Exists) => return self.after_look(checksum, sha256, Created::Unnameable).await,
                Ok(Put::Perhaps(error)) => match self.look(checksum, sha256).await? {
                    Some(ours) => return Ok(if ours && retries.perhaps_done { Created::New } else { Created::Exists }),
                    None => return Err(error),
                },
                // Parts that are not there any more were put together by an attempt whose answer was lost.
                Err(Fault::Final(error @ (StoreError::NotFound { .. } | StoreError::UploadLost { .. } | StoreError::Io { .. }))) if retries.perhaps_done => {
                    return match self.look(checksum, sha256).await? {
                        Some(ours) => Ok(if ours { Created::New } else { Created::Exists }),
                        None => Err(lost(error, path)),
                    };
                }
                // All that it says was the store's own: where the store does not understand it, it was garbled on its way.
                Err(Fault::Final(StoreError::Io { source, .. })) => Fault::Passing { problem: source.to_string(), wait: None, perhaps_done: false },
                Err(Fault::Final(error)) => return Err(lost(error, path)),
                Err(fault) => fault,
            };
            retries.after(fault).await?;
            if retries.perhaps_done
                && let Some(ours) = self.look(checksum, sha256).await?
            {
                return Ok(if ours { Created::New } else { Created::Exists });
            }
        }
    }

    async fn after_look(&self, checksum: Checksum, sha256: Sha256, nothing: Created) -> Result<Created, StoreError> {
        Ok(match self.look(checksum, sha256).await? {
            Some(true) => Created::New,
            Some(false) => Created::Exists,
            None => nothing,
        })
    }
}

/// An upload that the store does not know any more has to begin again: a rule of the bucket, or somebody, has ended it.
fn lost(error: StoreError, path: &str) -> StoreError {
    match error {
        StoreError::NotFound { .. } => StoreError::UploadLost { key: path.to_owned(), source: io::Error::other("the store does not know it any more") },
        other => other,
    }
}

/// Ends an upload that is not wanted any more.
async fn give_up(inner: &Inner, path: &str, id: &str) {
    let ended = inner.patiently("end the upload of", path, || inner.provider.abort(path, id)).await;
    if let (Ok(()) | Err(StoreError::NotFound { .. }), Some(journal)) = (ended, inner.journal()) {
        journal.ended(id);
    }
}

#[async_trait]
impl Upload for PartsUpload {
    async fn write(&mut self, mut piece: Bytes) -> Result<(), StoreError> {
        self.size_bytes += piece.len() as u64;
        while !piece.is_empty() {
            let now = piece.split_to(piece.len().min(self.part_bytes - self.filled));
            self.hasher.update(&now);
            self.filled += now.len();
            self.pieces.push(now);
            if self.filled == self.part_bytes {
                self.send().await?;
            }
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, sha256: &Sha256) -> Result<Created, StoreError> {
        if self.path.len() > NAME_BYTES_MAX {
            return Ok(Created::Unnameable);
        }
        if self.next == 1 {
            // It never filled a part: one request does.
            let mut content = BytesMut::with_capacity(self.filled);
            for piece in std::mem::take(&mut self.pieces) {
                content.extend_from_slice(&piece);
            }
            let about = About { sha256: Some(*sha256), part_bytes: None, ..self.about.clone() };
            return self.inner.create(&self.path, &content.freeze(), &about).await;
        }
        if self.filled > 0 {
            self.send().await?;
        }
        while !self.sending.is_empty() {
            self.wait().await?;
        }
        self.parts.sort_unstable_by_key(|part| part.number);
        let Some(id) = self.id.clone() else {
            let source = io::Error::other("its upload was never begun");
            return Err(StoreError::Io { action: "complete", key: self.path.clone(), source });
        };
        let created = self.complete(&id, *sha256).await?;
        match (created, self.inner.journal()) {
            (Created::New, Some(journal)) => journal.ended(&id),
            (Created::New, None) => {}
            _ => give_up(&self.inner, &self.path, &id).await,
        }
        self.id = None;
        Ok(created)
    }
}

impl Drop for PartsUpload {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (inner, path) = (Arc::clone(&self.inner), std::mem::take(&mut self.path));
            self.sending.abort_all();
            runtime.spawn(async move { give_up(&inner, &path, &id).await });
        }
    }
}
