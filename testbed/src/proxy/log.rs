//! What went through the proxy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use hyper::{HeaderMap, StatusCode};
use percent_encoding::percent_decode_str;

use super::locked;

/// What the server had to do with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Upstream {
    /// It saw nothing of it.
    Unasked,
    /// It was asked, and has not answered yet, or its connection broke.
    Asked,
    /// It answered so.
    Answered(StatusCode),
}

/// A request, and what became of it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its method, in capitals.
    pub method: String,
    /// Its path, decoded.
    pub path: String,
    /// Its query as it came, without `?`.
    pub query: String,
    /// Its headers as they came.
    pub headers: HeaderMap,
    /// How much of its body was read.
    pub bytes_in: u64,
    /// The status that went to the client; nothing if it got none.
    pub answered: Option<StatusCode>,
    /// What the server had to do with it.
    pub upstream: Upstream,
}

impl Record {
    /// Whether it has this parameter: `uploads`, or with its value, `comp=block`.
    pub fn has(&self, parameter: &str) -> bool {
        has(&self.query, parameter)
    }

    /// Whether the server was asked.
    pub fn was_forwarded(&self) -> bool {
        self.upstream != Upstream::Unasked
    }
}

/// A request's head.
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
}

impl Seen {
    pub(super) fn new(parts: &hyper::http::request::Parts) -> Self {
        Self {
            method: parts.method.as_str().to_ascii_uppercase(),
            path: percent_decode_str(parts.uri.path()).decode_utf8_lossy().into_owned(),
            query: parts.uri.query().unwrap_or_default().to_string(),
            headers: parts.headers.clone(),
        }
    }

    pub(super) fn has(&self, parameter: &str) -> bool {
        has(&self.query, parameter)
    }

    pub(super) fn parameter_names(&self) -> impl Iterator<Item = &str> {
        parameters(&self.query).map(|(name, _)| name)
    }

    /// The decoded value of a parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        parameters(&self.query).find(|(found, _)| *found == name).map(|(_, value)| percent_decode_str(value).decode_utf8_lossy().into_owned())
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn has(query: &str, parameter: &str) -> bool {
    match parameter.split_once('=') {
        Some(wanted) => parameters(query).any(|found| found == wanted),
        None => parameters(query).any(|(name, _)| name == parameter),
    }
}

/// All requests, in the order of their arrival.
#[derive(Default)]
pub(super) struct Log(Mutex<Vec<Arc<Open>>>);

/// A request that may not be over yet.
pub(super) struct Open {
    record: Mutex<Record>,
    bytes_in: Arc<AtomicU64>,
}

impl Log {
    pub(super) fn open(&self, seen: &Seen) -> Arc<Open> {
        let record = Record {
            method: seen.method.clone(),
            path: seen.path.clone(),
            query: seen.query.clone(),
            headers: seen.headers.clone(),
            bytes_in: 0,
            answered: None,
            upstream: Upstream::Unasked,
        };
        let open = Arc::new(Open { record: Mutex::new(record), bytes_in: Arc::default() });
        locked(&self.0).push(Arc::clone(&open));
        open
    }

    pub(super) fn records(&self) -> Vec<Record> {
        let bytes_of = |open: &Arc<Open>| Record { bytes_in: open.bytes_in.load(Ordering::SeqCst), ..locked(&open.record).clone() };
        locked(&self.0).iter().map(bytes_of).collect()
    }

    pub(super) fn clear(&self) {
        locked(&self.0).clear();
    }
}

impl Open {
    pub(super) fn answered(&self, status: StatusCode) {
        locked(&self.record).answered = Some(status);
    }

    pub(super) fn upstream(&self, upstream: Upstream) {
        locked(&self.record).upstream = upstream;
    }

    pub(super) fn bytes_in(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes_in)
    }
}

#[cfg(test)]
mod tests {
    use super::has;

    #[test]
    fn parameters_are_compared_whole() {
        assert!(has("comp=block&blockid=x", "comp=block"));
        assert!(!has("comp=blocklist", "comp=block"));
        assert!(has("uploads", "uploads") && has("uploads=", "uploads"));
        assert!(!has("uploadId=1", "uploads") && !has("", "uploads"));
    }
}
