//! Resumable uploads.
//!
//! - <https://cloud.google.com/storage/docs/resumable-uploads>
//! - <https://cloud.google.com/storage/docs/performing-resumable-uploads>

use super::Shared;
use super::auth::{Caller, random_hex};
use super::content::Sink;
use super::http::{Call, Headers, Response, empty, json, plain, respond};
use super::json::{Announcement, RESOURCE_BYTES_MAX, announcement, resource};
use super::refusal::Refusal;
use super::store::{Conditions, Declared, Draft, ObjectInfo};
use bytes::BytesMut;
use hyper::ext::ReasonPhrase;
use hyper::header::{LOCATION, RANGE};
use hyper::{Method, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is kept of an upload that is not complete is a multiple of this, and every chunk but the last has to hold as much.
const CHUNK_BYTES: u64 = 256 * 1024;

/// An upload that was begun.
pub(super) struct Session {
    pub(super) key: String,
    announced: Announcement,
    /// Who began it: a session has the rights of its beginner.
    caller: Caller,
    conditions: Conditions,
    length: Option<u64>,
    /// What has been kept; gone once the session has come to its end.
    sink: Option<Sink>,
    pub(super) end: Option<End>,
    /// The number of requests that brought bytes; an older one that still sends is not listened to any more.
    requests: u64,
}

/// How a session ended.
#[derive(Clone)]
pub(super) enum End {
    Stored(Box<ObjectInfo>),
    Cancelled,
    Expired,
    Refused(Refusal),
}

impl Session {
    fn kept_bytes(&self) -> u64 {
        self.sink.as_ref().map_or(0, Sink::size_bytes)
    }

    /// Ends the session from outside.
    pub(super) fn expire(&mut self) {
        if self.end.is_none() {
            self.end = Some(End::Expired);
            self.sink = None;
        }
    }
}

pub(super) type Handle = Arc<Mutex<Session>>;

pub(super) fn lock(session: &Handle) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins a session. Rights and conditions are looked at here, and once more when the object is made.
pub(super) async fn start(shared: &Shared, call: &mut Call, caller: Caller) -> Result<Response, Refusal> {
    let body = call.body.read(RESOURCE_BYTES_MAX).await?;
    let announced = announcement(call, &body, call.header("x-upload-content-type"))?;
    let length = match call.header("x-upload-content-length") {
        Some(text) => Some(text.parse().map_err(|_| Refusal::invalid_argument("Invalid X-Upload-Content-Length"))?),
        None => None,
    };
    let conditions = Conditions::of_query(&call.query)?;
    shared.store().may_write(&announced.key, &caller, &conditions)?;
    let id = random_hex(48)?;
    let name = utf8_percent_encode(&announced.key, NON_ALPHANUMERIC);
    let location = format!("{}/upload/storage/v1/b/{}/o?uploadType=resumable&name={name}&upload_id={id}", call.base_url(&shared.url), shared.bucket);
    let session = Session { key: announced.key.clone(), announced, caller, conditions, length, sink: Some(Sink::new()), end: None, requests: 0 };
    shared.sessions().insert(id.clone(), Arc::new(Mutex::new(session)));
    let fill = |headers: &mut Headers| {
        headers.insert(LOCATION, &location);
        headers.named("x-guploader-uploadid", &id);
    };
    Ok(respond(StatusCode::OK, fill, empty()))
}

/// What a `Content-Range` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// No such header: the body is the whole object.
    Whole,
    /// `bytes */*` or `bytes */TOTAL`: how far is it?
    Status { total: Option<u64> },
    /// `bytes FIRST-LAST/*` or `bytes FIRST-LAST/TOTAL`.
    Chunk { first: u64, last: u64, total: Option<u64> },
}

impl Said {
    fn parse(header: Option<&str>) -> Option<Self> {
        let Some(text) = header else { return Some(Self::Whole) };
        let (range, total) = text.trim().strip_prefix("bytes")?.trim_start_matches(['=', ' ']).split_once('/')?;
        let total = if total == "*" { None } else { Some(total.parse().ok()?) };
        if range == "*" {
            return Some(Self::Status { total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && total.is_none_or(|total| last < total)).then_some(Self::Chunk { first, last, total })
    }
}

/// Answers a request to a session's address.
pub(super) async fn session(shared: &Shared, call: &mut Call, id: &str) -> Response {
    let Some(session) = shared.sessions().get(id).map(Arc::clone) else {
        // https://cloud.google.com/storage/docs/resumable-uploads#session-uris: begin anew.
        return Refusal::no_such_upload().into_json();
    };
    if call.method == Method::DELETE {
        return cancel(&session);
    }
    if !matches!(call.method, Method::PUT | Method::POST) {
        return Refusal::not_implemented(call.method.as_str()).into_json();
    }
    if let Some(end) = lock(&session).end.clone() {
        return ended(shared, end);
    }
    let Some(said) = Said::parse(call.header("content-range")) else {
        return plain(StatusCode::BAD_REQUEST, "Invalid request.  The Content-Range header could not be parsed.".into());
    };
    let request = {
        let mut session = lock(&session);
        // Asking how far it is does not disturb who still sends.
        if !matches!(said, Said::Status { .. }) {
            session.requests += 1;
        }
        session.requests
    };
    let declared = match Declared::of_headers(call) {
        Ok(declared) => declared,
        Err(refusal) => return refusal.into_json(),
    };
    match take(shared, call, &session, said, request).await {
        Taken::Complete => finish(shared, &session, &declared),
        Taken::Incomplete => incomplete(call, &session),
        Taken::Answered(response) => *response,
    }
}

enum Taken {
    /// Every byte is there.
    Complete,
    Incomplete,
    Answered(Box<Response>),
}

impl Taken {
    fn refused(status: StatusCode, text: String) -> Self {
        Self::Answered(Box::new(plain(status, text)))
    }
}

/// Keeps of a request's body what the session does not have yet.
async fn take(shared: &Shared, call: &mut Call, session: &Handle, said: Said, request: u64) -> Taken {
    let (first, expected, total) = match said {
        Said::Status { total } => (None, Some(0), total),
        Said::Whole => (Some(0), call.body.announced(), call.body.announced()),
        Said::Chunk { first, last, total } => (Some(first), Some(last - first + 1), total),
    };
    let (kept, total) = {
        let mut session = lock(session);
        if let (Some(total), Some(length)) = (total, session.length)
            && total != length
        {
            return Taken::refused(
                StatusCode::BAD_REQUEST,
                format!("Invalid request.  The size of the object was given as {length} bytes before, and now as {total}."),
            );
        }
        session.length = session.length.or(total);
        (session.kept_bytes(), session.length)
    };
    if total.is_some_and(|total| total < kept) {
        return Taken::refused(
            StatusCode::BAD_REQUEST,
            format!("Invalid request.  {kept} bytes were uploaded already, which is more than the object is to have."),
        );
    }
    let Some(first) = first else {
        // Complete is what a request says to be, even if it brings nothing.
        return if said == (Said::Status { total: Some(kept) }) { Taken::Complete } else { Taken::Incomplete };
    };
    if first > kept {
        let text = format!(
            "Invalid request.  According to the Content-Range header, the upload offset is {first} byte(s), which exceeds already uploaded size of {kept} byte(s)."
        );
        return Taken::refused(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    let end = expected.map(|expected| first + expected);
    // A body without a length is the rest of the object.
    let last = match (end, total) {
        (Some(end), Some(total)) => end == total,
        (Some(_), None) => false,
        (None, _) => true,
    };
    if let Some(expected) = expected.filter(|expected| !last && *expected < CHUNK_BYTES) {
        let text = format!(
            "Invalid request.  The number of bytes uploaded is required to be equal or greater than {CHUNK_BYTES}, except for the final request (it's recommended to be the exact multiple of {CHUNK_BYTES}).  The received request contained {expected} bytes, which does not meet this requirement."
        );
        return Taken::refused(StatusCode::BAD_REQUEST, text);
    }
    if call.body.announced().zip(expected).is_some_and(|(announced, expected)| announced != expected) {
        return length_mismatch(call.body.announced().unwrap_or_default(), first, expected.unwrap_or_default());
    }

    // Bytes it has already are passed over: https://cloud.google.com/storage/docs/resumable-uploads#resent-data
    let mut known = kept - first;
    let mut received = 0;
    let mut waiting = BytesMut::new();
    while let Some(mut bytes) = call.body.chunk().await {
        received += bytes.len() as u64;
        if expected.is_some_and(|expected| received > expected) {
            return length_mismatch(received, first, expected.unwrap_or_default());
        }
        let passed = known.min(bytes.len() as u64);
        known -= passed;
        drop(bytes.split_to(usize::try_from(passed).unwrap_or(usize::MAX)));
        waiting.extend_from_slice(&bytes);
        let whole = waiting.len() as u64 / CHUNK_BYTES * CHUNK_BYTES;
        if whole > 0 {
            let ready = waiting.split_to(usize::try_from(whole).unwrap_or(usize::MAX));
            if let Err(answered) = keep(shared, session, &ready, request) {
                return answered;
            }
        }
    }
    // What came of a request that broke off stays, in multiples of a chunk.
    if call.body.is_broken() {
        return Taken::Incomplete;
    }
    if let Some(expected) = expected.filter(|expected| *expected != received) {
        return length_mismatch(received, first, expected);
    }
    if !last {
        return Taken::Incomplete;
    }
    match keep(shared, session, &waiting, request) {
        Ok(()) => Taken::Complete,
        Err(answered) => answered,
    }
}

fn length_mismatch(received: u64, first: u64, expected: u64) -> Taken {
    let end = (first + expected).saturating_sub(1);
    let text = format!(
        "Invalid request.  There were {received} byte(s) in the request body.  There should have been {expected} byte(s) (starting at offset {first} and ending at offset {end}) according to the Content-Range header."
    );
    Taken::refused(StatusCode::BAD_REQUEST, text)
}

/// Adds to what a session has, if the request that brings it is the latest.
fn keep(shared: &Shared, session: &Handle, bytes: &[u8], request: u64) -> Result<(), Taken> {
    let mut session = lock(session);
    if let Some(end) = session.end.clone() {
        return Err(Taken::Answered(Box::new(ended(shared, end))));
    }
    if session.requests != request {
        return Err(Taken::refused(StatusCode::SERVICE_UNAVAILABLE, "A newer request goes on with this upload.".into()));
    }
    let Some(sink) = session.sink.as_mut() else { return Ok(()) };
    sink.write(&shared.folder, bytes).map_err(|error| Taken::Answered(Box::new(Refusal::internal(&error).into_json())))
}

/// Makes the object, if it is what was announced and may still be.
fn finish(shared: &Shared, session: &Handle, declared: &Declared) -> Response {
    let mut session = lock(session);
    if let Some(end) = session.end.clone() {
        return ended(shared, end);
    }
    let Some(sink) = session.sink.take() else { return Refusal::no_such_upload().into_json() };
    let made = sink.finish().map_err(Refusal::from).and_then(|(content, checksums)| {
        declared.clone().or(&session.announced.declared).check(&checksums)?;
        let draft = Draft { key: session.key.clone(), description: session.announced.description.clone(), content, checksums, parts: None };
        shared.store().write(draft, &session.caller, &session.conditions)
    });
    let end = match made {
        Ok(info) => End::Stored(Box::new(info)),
        Err(refusal) => End::Refused(refusal),
    };
    session.end = Some(end.clone());
    drop(session);
    ended(shared, end)
}

/// A session that has ended answers the same again.
fn ended(shared: &Shared, end: End) -> Response {
    match end {
        End::Stored(info) => json(StatusCode::OK, &resource(shared, &info)),
        End::Refused(refusal) => refusal.into_json(),
        End::Cancelled => client_closed(),
        End::Expired => Refusal::new(StatusCode::GONE, "NoSuchUpload", "uploadExpired", "The upload session has expired.").into_json(),
    }
}

/// <https://cloud.google.com/storage/docs/performing-resumable-uploads#cancel-upload>
fn cancel(session: &Handle) -> Response {
    let mut session = lock(session);
    if session.end.is_none() {
        session.end = Some(End::Cancelled);
        session.sink = None;
    }
    client_closed()
}

fn client_closed() -> Response {
    let status = StatusCode::from_u16(499).unwrap_or(StatusCode::GONE);
    let mut response = super::http::status(status);
    response.extensions_mut().insert(ReasonPhrase::from_static(b"Client Closed Request"));
    response
}

/// Says how much is kept; nothing is said of nothing.
///
/// <https://cloud.google.com/storage/docs/performing-resumable-uploads#status-check>
fn incomplete(call: &Call, session: &Handle) -> Response {
    let kept = lock(session).kept_bytes();
    // Some clients take 308 for a redirection and ask for another: they see it in a header.
    let hidden = call.header("x-guploader-no-308") == Some("yes");
    let fill = |headers: &mut Headers| {
        if kept > 0 {
            headers.insert(RANGE, format!("bytes=0-{}", kept - 1));
        }
        if hidden {
            headers.named("x-http-status-code-override", "308");
        }
    };
    let mut response = respond(if hidden { StatusCode::OK } else { StatusCode::PERMANENT_REDIRECT }, fill, empty());
    if !hidden {
        response.extensions_mut().insert(ReasonPhrase::from_static(b"Resume Incomplete"));
    }
    response
}
