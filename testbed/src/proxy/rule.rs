//! Which requests are to fail, and how.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hyper::StatusCode;

use super::log::Seen;
use crate::sign::Credentials;

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Action {
    /// Passed on as it is: keeps it from the rules that follow.
    Pass,
    /// The connection is reset as soon as the head of the request is there; the server sees nothing.
    Refuse,
    /// The connection is reset once this much of the body was read; the server sees nothing.
    ResetBefore {
        /// How much is read first.
        after_bytes: u64,
    },
    /// The server does what it was asked to, and its answer is lost: the connection is reset.
    ResetAfter,
    /// The whole request is read and never answered; the server sees nothing.
    HangBefore,
    /// The server does what it was asked to, and its answer never comes.
    HangAfter,
    /// The proxy answers; the server sees nothing.
    Status {
        /// Of the answer.
        code: StatusCode,
        /// Names and values.
        headers: Vec<(&'static str, String)>,
        /// Of the answer.
        body: String,
    },
    /// The answer is 200 with an error in its body, as of an S3 that fails after it has sent the head.
    OkWithError {
        /// The error's code, such as `InternalError`.
        error: &'static str,
        /// Whether the server does what it was asked to.
        forwarded: bool,
    },
    /// One bit of the request's body is turned on its way.
    CorruptRequest {
        /// Which byte.
        offset: u64,
    },
    /// One bit of the answer's body is turned on its way.
    CorruptResponse {
        /// Which byte.
        offset: u64,
    },
    /// The connection is reset after so much of the answer's body.
    TruncateResponse {
        /// How much comes.
        after_bytes: u64,
    },
    /// The server's answer, but with another value of one of its headers.
    AnswerHeader {
        /// The header's name, in small letters.
        name: &'static str,
        /// What it says instead.
        value: &'static str,
    },
    /// The server does not see these headers.
    StripHeaders {
        /// Their names.
        names: Vec<&'static str>,
        /// Signs what is left, where headers are part of the signature.
        resign: Option<Resign>,
    },
    /// The request's body goes through at this pace.
    Slow {
        /// The pace; what the system buffers comes on top.
        bytes_per_second: u64,
    },
}

/// How a request is signed anew, once the proxy has changed what its signature covers.
#[derive(Debug, Clone)]
pub enum Resign {
    /// For S3, by this one; the body's hash is the one that the old signature names, so that a body streamed in signed pieces cannot be had.
    S3(Credentials),
    /// For the account of Azurite.
    Azurite,
}

impl Action {
    /// An answer without a body.
    pub fn status(code: StatusCode) -> Self {
        Self::Status { code, headers: Vec::new(), body: String::new() }
    }

    /// An answer with an error as S3 words it.
    pub fn s3_error(code: StatusCode, error: &str) -> Self {
        Self::Status { code, headers: vec![("content-type", "application/xml".to_string())], body: s3_error_body(error) }
    }

    /// 503 that says when to come back.
    pub fn slow_down(retry_after_seconds: u64) -> Self {
        let headers = vec![("content-type", "application/xml".to_string()), ("retry-after", retry_after_seconds.to_string())];
        Self::Status { code: StatusCode::SERVICE_UNAVAILABLE, headers, body: s3_error_body("SlowDown") }
    }

    /// Makes of the server one that knows no conditions, so that a create overwrites.
    ///
    /// `resign` is needed where signatures cover conditions: on S3, and on Azure with the account's key.
    pub fn ignore_conditions(resign: Option<Resign>) -> Self {
        Self::StripHeaders { names: vec!["if-none-match", "if-match", "x-goog-if-generation-match"], resign }
    }
}

/// An error as S3 and Azure word it.
pub(super) fn s3_error_body(error: &str) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{error}</Code><Message>{error}, says the proxy of a test</Message></Error>")
}

/// Which requests, which of them, and what becomes of these.
///
/// Made with [`Rule::any`] or [`Rule::on`]; without more it takes every such request.
#[derive(Clone)]
pub struct Rule {
    method: Option<String>,
    prefix: Option<String>,
    parts: Vec<String>,
    with: Vec<String>,
    without: Vec<String>,
    headers: Vec<String>,
    skip: u64,
    times: u64,
    hook: Option<Arc<dyn Fn() + Send + Sync>>,
    pub(super) action: Action,
}

impl Rule {
    /// Requests of any method.
    pub fn any() -> Self {
        Self {
            method: None,
            prefix: None,
            parts: Vec::new(),
            with: Vec::new(),
            without: Vec::new(),
            headers: Vec::new(),
            skip: 0,
            times: u64::MAX,
            hook: None,
            action: Action::Pass,
        }
    }

    /// Requests of this method.
    pub fn on(method: &str) -> Self {
        Self { method: Some(method.to_ascii_uppercase()), ..Self::any() }
    }

    /// Only if the decoded path begins so; bucket and account are part of it.
    pub fn path_prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_string());
        self
    }

    /// Only if this stands in the decoded path, or in the parameter `name`, where JSON requests to Google have the key.
    pub fn key(mut self, part: &str) -> Self {
        self.parts.push(part.to_string());
        self
    }

    /// Only with this parameter: `uploads`, or with its value, `comp=block`.
    pub fn query(mut self, parameter: &str) -> Self {
        self.with.push(parameter.to_string());
        self
    }

    /// Only without this parameter.
    pub fn without_query(mut self, parameter: &str) -> Self {
        self.without.push(parameter.to_string());
        self
    }

    /// Only with this header.
    pub fn header(mut self, name: &str) -> Self {
        self.headers.push(name.to_ascii_lowercase());
        self
    }

    /// Fires for the `nth` such request alone; 1 is the first.
    pub fn nth(mut self, nth: u64) -> Self {
        self.skip = nth.saturating_sub(1);
        self.times = 1;
        self
    }

    /// Lets the first `skip` such requests be.
    pub fn after(mut self, skip: u64) -> Self {
        self.skip = skip;
        self
    }

    /// Fires at most so often.
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// Calls `hook` each time it fires, before anything else happens; for what others do meanwhile.
    pub fn doing(mut self, hook: impl Fn() + Send + Sync + 'static) -> Self {
        self.hook = Some(Arc::new(hook));
        self
    }

    /// What becomes of the request; without this it is passed on.
    pub fn then(mut self, action: Action) -> Self {
        self.action = action;
        self
    }

    fn fits(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && self.prefix.as_ref().is_none_or(|prefix| seen.path.starts_with(prefix.as_str()))
            && self.parts.iter().all(|part| seen.path.contains(part.as_str()) || seen.parameter("name").is_some_and(|name| name.contains(part.as_str())))
            && self.with.iter().all(|parameter| seen.has(parameter))
            && !self.without.iter().any(|parameter| seen.has(parameter))
            && self.headers.iter().all(|name| seen.headers.contains_key(name.as_str()))
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Rule").field("method", &self.method).field("parts", &self.parts).field("action", &self.action).finish_non_exhaustive()
    }
}

/// A rule in use.
pub(super) struct Armed {
    rule: Rule,
    fitting: AtomicU64,
    fired: AtomicU64,
}

impl Armed {
    pub(super) fn new(rule: Rule) -> Self {
        Self { rule, fitting: AtomicU64::new(0), fired: AtomicU64::new(0) }
    }

    /// The rule, if it fires for this request; counts it.
    pub(super) fn fires(&self, seen: &Seen) -> bool {
        if !self.rule.fits(seen) {
            return false;
        }
        let before = self.fitting.fetch_add(1, Ordering::SeqCst);
        let fires = before >= self.rule.skip && before - self.rule.skip < self.rule.times;
        if fires {
            self.fired.fetch_add(1, Ordering::SeqCst);
        }
        fires
    }

    pub(super) fn action(&self) -> &Action {
        &self.rule.action
    }

    pub(super) fn hook(&self) -> Option<Arc<dyn Fn() + Send + Sync>> {
        self.rule.hook.clone()
    }
}

/// Counts how often a rule fired.
pub struct Fired(pub(super) Arc<Armed>);

impl Fired {
    /// How often it fired so far.
    pub fn count(&self) -> u64 {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// Whether it has fired within this time; blocks the thread.
    pub fn within(&self, time: Duration) -> bool {
        let began = Instant::now();
        while self.count() == 0 && began.elapsed() < time {
            thread::sleep(Duration::from_millis(2));
        }
        self.count() > 0
    }
}
