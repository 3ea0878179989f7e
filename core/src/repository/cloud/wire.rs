//! Requests on their way: signed, watched for standstill, and their answers kept.
//!
//! What is written goes through [`Wire::send`] from here; what is read is asked for by `object_store`, whose requests pass through here as well
//! ([`Reader`]). So one place signs, one gives up on a store that is silent, and one keeps what it said.

use super::answer::{Answer, NoAnswer};
use super::lanes::{Lanes, Left};
use super::requests::{RequestKind, Requests};
use crate::model::Sha256;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use object_store::ObjectStore;
use object_store::RetryConfig;
use object_store::aws::{AwsAuthorizer, AwsCredentialProvider};
use object_store::azure::{AzureAuthorizer, AzureCredentialProvider};
use object_store::client::{
    ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use object_store::gcp::GcpCredentialProvider;
use object_store::list::PaginatedListStore;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// Making a connection takes no longer than this, or there is nobody.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An unused connection is closed after this time, before most servers do it.
const KEPT_OPEN: Duration = Duration::from_secs(20);
/// A store that puts parts together may be silent for so many times as long.
const LONG: u32 = 5;
/// Bytes of a request are handed on in pieces of this size, so that it shows whether they move.
const PIECE_BYTES: usize = 256 << 10;
/// No answer to a write is larger.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Nor a page of a listing: 5,000 names (Azure) of 1,024 bytes, each of them written as an entity.
const PAGE_BYTES_MAX: usize = 64 << 20;

/// Who says that we are who we are.
pub(super) enum Signer {
    /// AWS Signature 4.
    Aws { credentials: AwsCredentialProvider, region: String, payload: bool },
    /// A bearer token.
    Gcs(GcpCredentialProvider),
    /// Shared key, SAS or bearer token.
    Azure { credentials: AzureCredentialProvider, account: String },
}

/// The way to one store.
pub(super) struct Wire {
    client: reqwest::Client,
    signer: Signer,
    idle: Duration,
    lanes: Lanes,
    requests: Arc<Requests>,
    /// Credentials were had once: where they are not to be had now, it is worth another try.
    known: AtomicBool,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("idle", &self.idle).finish_non_exhaustive()
    }
}

/// A store as it is written to, and as it is read and listed by `object_store`.
pub(super) struct Line {
    pub(super) wire: Arc<Wire>,
    pub(super) objects: Arc<dyn ObjectStore>,
    pub(super) pages: Arc<dyn PaginatedListStore>,
}

impl Line {
    pub(super) fn new(wire: Arc<Wire>, store: impl ObjectStore + PaginatedListStore) -> Self {
        let store = Arc::new(store);
        Self { wire, objects: store.clone(), pages: store }
    }
}

/// A request to be sent.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<Bytes>,
    /// SHA-256 of the body, which signs it.
    pub(super) sha256: Option<Sha256>,
    /// Whether the URL itself is the permission.
    pub(super) presigned: bool,
    /// Whether the store has much to do before it answers, and may be silent for longer.
    pub(super) long: bool,
    /// Whether it waits for a lane: content does, what is small and has to be there in time does not.
    pub(super) in_lane: bool,
}

impl Request {
    pub(super) fn new(method: Method, url: String) -> Self {
        Self { method, url, headers: Vec::new(), body: Vec::new(), sha256: None, presigned: false, long: false, in_lane: false }
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, body: Vec<Bytes>) -> Self {
        self.body = body;
        self
    }
}

tokio::task_local! {
    /// What the store said to the request that `object_store` made last in this task.
    static LAST: Arc<Mutex<Option<Result<Answer, NoAnswer>>>>;
}

/// Runs `reading` and gives what the store said along with what came of it.
pub(super) async fn heard<T>(reading: impl Future<Output = T>) -> (T, Option<Result<Answer, NoAnswer>>) {
    let last = Arc::new(Mutex::new(None));
    let done = LAST.scope(Arc::clone(&last), reading).await;
    let said = last.lock().unwrap_or_else(PoisonError::into_inner).take();
    (done, said)
}

/// Who gives out tokens is asked some times more, and not for long: a run takes many of them, and ends where one is not given.
pub(super) fn for_tokens() -> RetryConfig {
    RetryConfig { max_retries: 4, retry_timeout: Duration::from_secs(30), ..RetryConfig::default() }
}

/// What an answer says of the line. S3 itself gives up on what stands still, and says so.
fn left(answered: &Result<Answer, NoAnswer>) -> Left {
    match answered {
        Err(NoAnswer::StoodStill(_)) => Left::StoodStill,
        Ok(answer) if answer.has_code(&["RequestTimeout"]) => Left::StoodStill,
        // 308: a piece of a session of Google's.
        Ok(answer) if answer.is_success() || matches!(answer.status, StatusCode::PRECONDITION_FAILED | StatusCode::PERMANENT_REDIRECT) => Left::Through,
        // Refused, or a line that is down: how wide it is shows when it is up.
        Ok(_) | Err(_) => Left::Otherwise,
    }
}

impl Wire {
    pub(super) fn new(signer: Signer, idle: Duration, requests: Arc<Requests>) -> Result<Self, reqwest::Error> {
        // Many connections move more than one that is shared: HTTP/1.1.
        let client = reqwest::Client::builder()
            .user_agent("immich-backup")
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(KEPT_OPEN)
            .tcp_nodelay(true)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Self { client, signer, idle, lanes: Lanes::new(idle), requests, known: AtomicBool::new(false) })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn send(&self, request: Request) -> Result<Answer, NoAnswer> {
        let unsent = |error: &dyn fmt::Display| NoAnswer::Unsent(error.to_string());
        let mut built = http::Request::builder().method(request.method).uri(&request.url);
        for (name, value) in &request.headers {
            built = built.header(*name, value);
        }
        let length: usize = request.body.iter().map(Bytes::len).sum();
        let payload: object_store::PutPayload = request.body.into_iter().collect();
        let mut built = built.body(HttpRequestBody::from(payload)).map_err(|error| unsent(&error))?;
        built.headers_mut().insert(http::header::CONTENT_LENGTH, HeaderValue::from(length as u64));
        // Before it is signed: a signature is good for some minutes.
        let mut lane = if request.in_lane { Some(self.lanes.enter().await) } else { None };
        if !request.presigned {
            let empty = Sha256::of(b"");
            let sha256 = request.sha256.or((length == 0).then_some(empty));
            self.sign(&mut built, sha256.as_ref()).await?;
        }
        let idle = if request.long { self.idle * LONG } else { self.idle };
        if let Some(lane) = &mut lane {
            lane.starts();
        }
        let answered = self.exchange(built, idle).await;
        if let Some(lane) = lane {
            lane.leave(length, left(&answered));
        }
        answered
    }

    /// One question, one answer.
    async fn exchange(&self, request: HttpRequest, idle: Duration) -> Result<Answer, NoAnswer> {
        let (parts, body) = self.execute(request, idle).await?.into_parts();
        let text = self.read(body, ANSWER_BYTES_MAX).await?;
        Ok(Answer::new(parts.status, parts.headers, text))
    }

    async fn read(&self, body: reqwest::Body, limit: usize) -> Result<Bytes, NoAnswer> {
        let mut pieces = Watched::new(body, self.idle).into_data_stream();
        let mut content = BytesMut::new();
        while let Some(piece) = pieces.try_next().await.map_err(|error| NoAnswer::Lost(error.to_string()))? {
            content.extend_from_slice(&piece);
            if content.len() > limit {
                return Err(NoAnswer::Lost("the answer does not end".to_owned()));
            }
        }
        Ok(content.freeze())
    }

    async fn sign(&self, request: &mut HttpRequest, sha256: Option<&Sha256>) -> Result<(), NoAnswer> {
        match self.sign_once(request, sha256).await {
            Err(NoAnswer::Credentials(problem)) if self.known.load(Ordering::Relaxed) => Err(NoAnswer::Unsent(format!("no credentials: {problem}"))),
            Ok(()) => {
                self.known.store(true, Ordering::Relaxed);
                Ok(())
            }
            other => other,
        }
    }

    async fn sign_once(&self, request: &mut HttpRequest, sha256: Option<&Sha256>) -> Result<(), NoAnswer> {
        let failed = |error: object_store::Error| NoAnswer::Credentials(describe(&error));
        match &self.signer {
            Signer::Aws { credentials, region, payload } => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                let digest = sha256.map(|sha256| sha256.0.as_slice());
                AwsAuthorizer::new(&credential, "s3", region).with_sign_payload(*payload).try_authorize(request, digest).map_err(failed)
            }
            Signer::Gcs(credentials) => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                let bearer = HeaderValue::from_str(&format!("Bearer {}", credential.bearer));
                let mut bearer = bearer.map_err(|_| NoAnswer::Credentials("the token is none".to_owned()))?;
                bearer.set_sensitive(true);
                request.headers_mut().insert(http::header::AUTHORIZATION, bearer);
                Ok(())
            }
            Signer::Azure { credentials, account } => {
                let credential = credentials.get_credential().await.map_err(failed)?;
                AzureAuthorizer::new(&credential, account).try_authorize(request).map_err(failed)
            }
        }
    }

    /// Sends what is signed, and gives up where nothing moves for too long.
    async fn execute(&self, request: HttpRequest, idle: Duration) -> Result<http::Response<reqwest::Body>, NoAnswer> {
        let (parts, body) = request.into_parts();
        self.requests.note(RequestKind::of(&parts.method, parts.uri.query()));
        let url = parts.uri.to_string().parse().map_err(|_| NoAnswer::Unsent("its address is none".to_owned()))?;
        let mut sending = reqwest::Request::new(parts.method, url);
        *sending.headers_mut() = parts.headers;
        let moved = Arc::new(Moved::default());
        *sending.body_mut() = Some(if body.content_length() <= PIECE_BYTES {
            let whole = body.collect().await.map_err(|error| NoAnswer::Unsent(error.to_string()))?;
            whole.to_bytes().into()
        } else {
            reqwest::Body::wrap_stream(in_pieces(body, Arc::clone(&moved)))
        });
        tokio::select! {
            answered = self.client.execute(sending) => answered.map(Into::into).map_err(|error| no_answer(&error)),
            () = moved.stopped(idle) => Err(NoAnswer::StoodStill(idle.as_secs())),
        }
    }
}

/// The body of an answer; an error where it stops coming.
struct Watched {
    body: reqwest::Body,
    idle: Duration,
    silent: Pin<Box<tokio::time::Sleep>>,
}

impl Watched {
    fn new(body: reqwest::Body, idle: Duration) -> Self {
        Self { body, idle, silent: Box::pin(tokio::time::sleep(idle)) }
    }
}

impl Body for Watched {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            let again = tokio::time::Instant::now() + self.idle;
            self.silent.as_mut().reset(again);
            return Poll::Ready(frame.map(|frame| frame.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error.without_url()))));
        }
        if self.silent.as_mut().poll(context).is_ready() {
            let error = io::Error::new(io::ErrorKind::TimedOut, format!("nothing came for {} s", self.idle.as_secs()));
            return Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Timeout, error))));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// When something moved last.
struct Moved {
    begun: Instant,
    at_ms: AtomicU64,
}

impl Default for Moved {
    fn default() -> Self {
        Self { begun: Instant::now(), at_ms: AtomicU64::new(0) }
    }
}

impl Moved {
    fn age(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn note(&self) {
        self.at_ms.store(self.age(), Ordering::Relaxed);
    }

    /// Ends once nothing has moved for so long.
    async fn stopped(&self, idle: Duration) {
        loop {
            let still = Duration::from_millis(self.age().saturating_sub(self.at_ms.load(Ordering::Relaxed)));
            let Some(rest) = idle.checked_sub(still).filter(|rest| !rest.is_zero()) else { return };
            tokio::time::sleep(rest).await;
        }
    }
}

fn in_pieces(body: HttpRequestBody, moved: Arc<Moved>) -> impl Stream<Item = Result<Bytes, HttpError>> {
    body.into_data_stream().map_ok(|whole| futures_util::stream::iter(pieces_of(whole).map(Ok))).try_flatten().inspect(move |_| moved.note())
}

fn pieces_of(mut whole: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || (!whole.is_empty()).then(|| whole.split_to(whole.len().min(PIECE_BYTES))))
}

fn no_answer(error: &reqwest::Error) -> NoAnswer {
    // The URL may be a permission.
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = if text.is_empty() { error.to_string() } else { format!("{text}: {error}") };
        cause = error.source();
    }
    if text.is_empty() {
        "the connection failed".clone_into(&mut text);
    }
    if error.is_connect() || error.is_builder() { NoAnswer::Unsent(text) } else { NoAnswer::Lost(text) }
}

/// An error of `object_store` with its causes.
pub(super) fn describe(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// `object_store` takes any XML for a page, that of an error for an empty one, and a page without a way to the next one for the last.
fn is_page(page: &[u8]) -> Result<(), NoAnswer> {
    let has = |words: &str| page.windows(words.len()).any(|found| found == words.as_bytes());
    if !has("<ListBucketResult") && !has("<EnumerationResults") {
        return Err(NoAnswer::Lost("what came is no listing".to_owned()));
    }
    if has("<IsTruncated>true</IsTruncated>") && !has("<NextContinuationToken>") {
        return Err(NoAnswer::Lost("there is more to list, and the store does not say how: it does not know ListObjectsV2".to_owned()));
    }
    Ok(())
}

/// What `object_store` sends its requests through.
#[derive(Debug, Clone)]
pub(super) struct Reader(pub(super) Arc<Wire>);

impl HttpConnector for Reader {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Reader {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let wire = &self.0;
        let is_listing = request.uri().query().is_some_and(|query| query.split('&').any(|word| matches!(word, "list-type=2" | "comp=list")));
        let asked = async {
            let empty = Sha256::of(b"");
            let digest = (request.body().content_length() == 0).then_some(&empty);
            wire.sign(&mut request, digest).await?;
            wire.execute(request, wire.idle).await
        };
        let keep = |said| {
            // Nobody listens where `object_store` reads on by itself.
            LAST.try_with(|last| *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(said)).unwrap_or_default();
        };
        let answered = asked.await.inspect_err(|error| keep(Err(error.clone())));
        let (parts, body) = answered.map_err(|error| HttpError::new(HttpErrorKind::Unknown, io::Error::other(error.to_string())))?.into_parts();
        let failed = |error: &NoAnswer| HttpError::new(HttpErrorKind::Interrupted, io::Error::other(error.to_string()));
        if parts.status.is_success() && is_listing {
            let page = wire.read(body, PAGE_BYTES_MAX).await.inspect_err(|error| keep(Err(error.clone()))).map_err(|error| failed(&error))?;
            let answer = Answer::new(parts.status, parts.headers.clone(), page.clone());
            let checked = if answer.is_success() { is_page(&page) } else { Err(NoAnswer::Lost(answer.words())) };
            checked.inspect_err(|error| keep(Err(error.clone()))).map_err(|error| failed(&error))?;
            keep(Ok(Answer::new(parts.status, parts.headers.clone(), Bytes::new())));
            return Ok(http::Response::from_parts(parts, HttpResponseBody::from(page)));
        }
        if parts.status.is_success() {
            keep(Ok(Answer::new(parts.status, parts.headers.clone(), Bytes::new())));
            return Ok(http::Response::from_parts(parts, HttpResponseBody::new(Watched::new(body, wire.idle))));
        }
        let text = wire.read(body, ANSWER_BYTES_MAX).await.map_err(|error| failed(&error))?;
        keep(Ok(Answer::new(parts.status, parts.headers.clone(), text.clone())));
        Ok(http::Response::from_parts(parts, HttpResponseBody::from(text)))
    }
}
