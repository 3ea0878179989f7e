//! Requests taken apart, answers put together.

use super::refusal::Refusal;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, StatusCode};
use percent_encoding::percent_decode_str;
use std::io;
use std::time::Duration;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Response = hyper::Response<Body>;

/// What is read of a body nobody wants, so that the sender gets to see the answer.
const DRAINED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long it is read.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);

/// A request.
pub(super) struct Call {
    pub(super) method: Method,
    /// As sent, still encoded.
    pub(super) path: String,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) body: Upload,
}

impl Call {
    pub(super) fn new(request: hyper::Request<Incoming>) -> Self {
        let (parts, incoming) = request.into_parts();
        let announced = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            body: Upload { incoming, announced, received_bytes: 0, broken: false },
            headers: parts.headers,
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the address this request was sent to, which a proxy may have.
    ///
    /// Some client leaves out the port; there is no server at such an address.
    pub(super) fn base_url(&self, own: &str) -> String {
        match self.headers.get(HOST).and_then(|host| host.to_str().ok()) {
            Some(host) if host.contains(':') => format!("http://{host}"),
            _ => own.to_owned(),
        }
    }

    /// A body must say how long it is, or that it will say where it ends.
    pub(super) fn needs_length(&self) -> Result<(), Refusal> {
        if self.headers.contains_key(CONTENT_LENGTH) || self.headers.contains_key(TRANSFER_ENCODING) {
            return Ok(());
        }
        let message = "You must provide the Content-Length HTTP header.";
        Err(Refusal::new(StatusCode::LENGTH_REQUIRED, "MissingContentLength", "required", message))
    }

    /// Reads what is left of a body, so that a refusal is not lost in a reset connection.
    pub(super) async fn drain(&mut self) {
        // Whoever asked first and was refused sends nothing.
        if self.headers.contains_key(EXPECT) && self.body.received_bytes == 0 {
            return;
        }
        let reading = async { while self.body.received_bytes < DRAINED_BYTES_MAX && self.body.chunk().await.is_some() {} };
        // Whoever still sends after that has lost the answer, as with any server.
        drop(tokio::time::timeout(DRAIN_TIME_MAX, reading).await);
    }
}

/// The parameters of a query, decoded.
#[derive(Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    /// The parameters of a form.
    pub(super) fn form(body: &[u8]) -> Self {
        Self::parse(&String::from_utf8_lossy(body))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Like `get`, but an empty value counts as none.
    pub(super) fn filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.parse().map_err(|_| Refusal::invalid_argument(format!("Invalid value for `{name}`: '{value}'")))?;
        Ok(Some(number))
    }
}

/// The body of a request.
pub(super) struct Upload {
    incoming: Incoming,
    announced: Option<u64>,
    received_bytes: u64,
    broken: bool,
}

impl Upload {
    /// Returns the next bytes; none at the end, which may have come too early: see [`Upload::is_broken`].
    pub(super) async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            match self.incoming.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.received_bytes += bytes.len() as u64;
                        return Some(bytes);
                    }
                }
                Some(Err(_)) => {
                    self.broken = true;
                    return None;
                }
                None => {
                    self.broken |= self.announced.is_some_and(|announced| self.received_bytes < announced);
                    return None;
                }
            }
        }
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    pub(super) fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Reads a body that has no business being large.
    pub(super) async fn read(&mut self, bytes_max: usize) -> Result<Vec<u8>, Refusal> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.chunk().await {
            if whole.len() + bytes.len() > bytes_max {
                return Err(Refusal::bad_request("EntityTooLarge", "The request is too large."));
            }
            whole.extend_from_slice(&bytes);
        }
        if self.broken { Err(Refusal::broken()) } else { Ok(whole) }
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Returns an answer with the headers that `fill` inserts.
pub(super) fn respond<T>(status: StatusCode, fill: impl FnOnce(&mut Headers) -> T, body: Body) -> Response {
    let mut headers = Headers(HeaderMap::new());
    fill(&mut headers);
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers.0;
    response
}

pub(super) fn status(status: StatusCode) -> Response {
    respond(status, |_| (), empty())
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    respond(status, |headers| headers.insert(CONTENT_TYPE, "application/json; charset=UTF-8"), full(value.to_string()))
}

pub(super) fn xml(text: String) -> Response {
    respond(StatusCode::OK, |headers| headers.insert(CONTENT_TYPE, "application/xml; charset=UTF-8"), full(text))
}

/// What the upload server says when it is not asked in terms of either API.
pub(super) fn plain(status: StatusCode, text: String) -> Response {
    respond(status, |headers| headers.insert(CONTENT_TYPE, "text/plain; charset=utf-8"), full(text))
}

/// Headers of an answer. What cannot be a header is left out, as it could not have come in.
pub(super) struct Headers(HeaderMap);

impl Headers {
    pub(super) fn insert(&mut self, name: HeaderName, value: impl AsRef<[u8]>) {
        if let Ok(value) = HeaderValue::from_bytes(value.as_ref()) {
            self.0.append(name, value);
        }
    }

    pub(super) fn named(&mut self, name: &str, value: impl AsRef<[u8]>) {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            self.insert(name, value);
        }
    }
}

/// Takes the first part of a path off, decoded: `b%2Fc/d` becomes `b/c` and `d`.
pub(super) fn split_path(path: &str) -> Result<(String, &str), Refusal> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    Ok((decode_path(first)?, rest))
}

pub(super) fn decode_path(path: &str) -> Result<String, Refusal> {
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_| Refusal::bad_request("InvalidURI", "Couldn't parse the specified URI."))?;
    Ok(decoded.into_owned())
}
