//! An object that is sent in one resumable session (Google): piece after piece, from where the store has it, with the condition said at its start.

use super::super::checksum::Comparison;
use super::super::store::{Created, StoreError, Upload};
use super::answer::{Answer, Fault};
use super::gcs::crc32c_of;
use super::provider::{About, Put, Seen, from_base64};
use super::wire::Request;
use super::{Inner, NAME_BYTES_MAX};
use crate::budget::SESSION_PIECE_BYTES;
use crate::model::Sha256;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::Method;
use serde::Deserialize;
use std::io;
use std::sync::Arc;

/// An object on its way.
pub(super) struct SessionUpload {
    inner: Arc<Inner>,
    path: String,
    about: About,
    session: Option<String>,
    /// What waits to be sent.
    pieces: Vec<Bytes>,
    filled: usize,
    /// How many bytes the store has.
    stored: u64,
    crc: crc_fast::Digest,
    /// The store refused, or has no such name: what comes is not sent.
    refused: Option<Created>,
}

/// The object as the store describes it when the last byte is there.
#[derive(Deserialize)]
struct Resource {
    size: String,
    crc32c: Option<String>,
}

/// How far a session is.
enum Progress {
    /// The store has so many bytes, and waits for more.
    Stored(u64),
    /// The object is there.
    Done(Resource),
    /// There was one already.
    Refused(Created),
}

impl SessionUpload {
    pub(super) fn new(inner: Arc<Inner>, path: String, about: About) -> Self {
        let crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        Self { inner, path, about, session: None, pieces: Vec::new(), filled: 0, stored: 0, crc, refused: None }
    }

    async fn begin(&mut self) -> Result<Option<String>, StoreError> {
        if let Some(session) = &self.session {
            return Ok(Some(session.clone()));
        }
        let (inner, path, about) = (&self.inner, &self.path, &self.about);
        match inner.patiently("begin to store", path, || inner.provider.begin_session(path, about)).await? {
            Ok(session) => {
                self.session = Some(session.clone());
                Ok(Some(session))
            }
            Err(Put::Perhaps(error)) => match inner.head(path).await? {
                Some(_) => {
                    self.refused = Some(Created::Exists);
                    Ok(None)
                }
                None => Err(error),
            },
            Err(Put::Unnameable) => {
                self.refused = Some(Created::Unnameable);
                Ok(None)
            }
            Err(Put::Exists | Put::New) => {
                self.refused = Some(Created::Exists);
                Ok(None)
            }
        }
    }

    /// Sends what waits; with `total`, it is the end.
    async fn send(&mut self, total: Option<u64>) -> Result<Option<Resource>, StoreError> {
        let Some(session) = self.begin().await? else { return Ok(None) };
        let (inner, path) = (Arc::clone(&self.inner), self.path.clone());
        let begins = self.stored;
        let ends = begins + self.filled as u64;
        let mut retries = inner.retries("store", &path);
        loop {
            let skipped = usize::try_from(self.stored - begins).unwrap_or(usize::MAX);
            let rest = after(&self.pieces, skipped);
            let fault = match self.put(&session, rest, ends, total).await {
                Ok(Progress::Done(resource)) => return Ok(Some(resource)),
                Ok(Progress::Refused(created)) => {
                    self.refused = Some(created);
                    return Ok(None);
                }
                Ok(Progress::Stored(stored)) if stored == ends && total.is_none() => {
                    self.stored = stored;
                    self.pieces.clear();
                    self.filled = 0;
                    return Ok(None);
                }
                Ok(Progress::Stored(stored)) if stored > self.stored && stored <= ends => {
                    // A part of it: on from there, at once.
                    self.stored = stored;
                    continue;
                }
                Ok(Progress::Stored(stored)) => {
                    let problem = format!("the store has {stored} bytes of it, and {} were sent", self.stored);
                    if stored < begins || stored > ends {
                        return Err(StoreError::UploadLost { key: path.clone(), source: io::Error::other(problem) });
                    }
                    Fault::Passing { problem, wait: None, perhaps_done: false }
                }
                Err(fault) => fault,
            };
            retries.after(fault).await?;
            match inner.patiently("ask for the upload of", &path, || self.ask(&session, total)).await? {
                Progress::Stored(stored) if (begins..=ends).contains(&stored) => self.stored = stored,
                Progress::Stored(_) => {
                    return Err(StoreError::UploadLost { key: path.clone(), source: io::Error::other("the store forgot what it had of it") });
                }
                Progress::Done(resource) => return Ok(Some(resource)),
                Progress::Refused(created) => {
                    self.refused = Some(created);
                    return Ok(None);
                }
            }
        }
    }

    async fn put(&self, session: &str, rest: Vec<Bytes>, ends: u64, total: Option<u64>) -> Result<Progress, Fault> {
        let total_text = total.map_or_else(|| "*".to_owned(), |total| total.to_string());
        let range = if self.stored == ends { format!("bytes */{total_text}") } else { format!("bytes {}-{}/{total_text}", self.stored, ends - 1) };
        let mut request = Request::new(Method::PUT, session.to_owned()).header("content-range", range).body(rest);
        request.presigned = true;
        request.in_lane = self.stored < ends;
        if total.is_some() {
            request.long = true;
            request = request.header("x-goog-hash", format!("crc32c={}", crc32c_of(self.crc.finalize())));
        }
        self.progress(&self.inner.provider.send(request, "store", &self.path).await?)
    }

    /// Asks how far the session is.
    async fn ask(&self, session: &str, total: Option<u64>) -> Result<Progress, Fault> {
        let range = total.map_or_else(|| "bytes */*".to_owned(), |total| format!("bytes */{total}"));
        let mut request = Request::new(Method::PUT, session.to_owned()).header("content-range", range);
        request.presigned = true;
        self.progress(&self.inner.provider.send(request, "ask for the upload of", &self.path).await?)
    }

    fn progress(&self, answer: &Answer) -> Result<Progress, Fault> {
        match answer.status.as_u16() {
            308 => {
                let stored = answer.header("range").and_then(|range| range.rsplit_once('-')).and_then(|(_, last)| last.parse::<u64>().ok());
                Ok(Progress::Stored(stored.map_or(0, |last| last.saturating_add(1))))
            }
            200 | 201 if answer.is_success() => match serde_json::from_slice(&answer.body) {
                Ok(resource) => Ok(Progress::Done(resource)),
                Err(error) => Err(Fault::Passing { problem: format!("the store's answer cannot be understood: {error}"), wait: None, perhaps_done: true }),
            },
            412 => Ok(Progress::Refused(Created::Exists)),
            // It is over: expired, cancelled, or the bytes that arrived are not those that were sent.
            400 | 404 | 410 | 499 => Err(StoreError::UploadLost { key: self.path.clone(), source: io::Error::other(answer.words()) }.into()),
            _ => Err(answer.fault("store", &self.path)),
        }
    }

    fn is_this(&self, resource: &Resource, size_bytes: u64) -> bool {
        let crc = resource.crc32c.as_deref().and_then(from_base64::<4>).map(u32::from_be_bytes);
        resource.size == size_bytes.to_string() && crc.is_some_and(|crc| u64::from(crc) == self.crc.finalize())
    }
}

/// The bytes of `pieces` from `skipped` on.
fn after(pieces: &[Bytes], mut skipped: usize) -> Vec<Bytes> {
    let mut rest = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let cut = skipped.min(piece.len());
        skipped -= cut;
        if cut < piece.len() {
            rest.push(piece.slice(cut..));
        }
    }
    rest
}

#[async_trait]
impl Upload for SessionUpload {
    async fn write(&mut self, mut piece: Bytes) -> Result<(), StoreError> {
        self.crc.update(&piece);
        while !piece.is_empty() && self.refused.is_none() {
            // The last byte is told from the others only when it is known that there are more.
            if self.filled == SESSION_PIECE_BYTES {
                self.send(None).await?;
                continue;
            }
            let now = piece.split_to(piece.len().min(SESSION_PIECE_BYTES - self.filled));
            self.filled += now.len();
            self.pieces.push(now);
        }
        Ok(())
    }

    async fn finish(mut self: Box<Self>, sha256: &Sha256) -> Result<Created, StoreError> {
        if self.path.len() > NAME_BYTES_MAX {
            return Ok(Created::Unnameable);
        }
        if self.session.is_none() && self.refused.is_none() {
            // It fits one request.
            let mut content = BytesMut::with_capacity(self.filled);
            for piece in std::mem::take(&mut self.pieces) {
                content.extend_from_slice(&piece);
            }
            let about = About { sha256: Some(*sha256), ..self.about.clone() };
            return self.inner.create(&self.path, &content.freeze(), &about).await;
        }
        let total = self.stored + self.filled as u64;
        let ended = if self.refused.is_none() { self.send(Some(total)).await } else { Ok(None) };
        let crc32c = u32::try_from(self.crc.finalize()).ok();
        match (ended, self.refused) {
            (Ok(Some(resource)), _) if self.is_this(&resource, total) => Ok(Created::New),
            (Ok(Some(_)), _) => {
                let source = io::Error::other("the store holds other bytes than were sent; they are not used");
                Err(StoreError::Io { action: "store", key: self.path.clone(), source })
            }
            (Ok(None), refused) => Ok(refused.unwrap_or(Created::Exists)),
            // The session is over, and what became of it was not heard.
            (Err(error @ (StoreError::UploadLost { .. } | StoreError::Unanswered { .. })), _) => {
                let compare = |seen: Seen| if seen.crc32c.is_some() && seen.crc32c == crc32c { Comparison::Same } else { Comparison::Unknown };
                match self.inner.holds(&self.path, total, compare, *sha256).await? {
                    Some(true) => Ok(Created::New),
                    Some(false) => Ok(Created::Exists),
                    None => Err(error),
                }
            }
            (Err(error), _) => Err(error),
        }
    }
}
