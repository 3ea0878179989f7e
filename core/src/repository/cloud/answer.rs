//! What a store answered, and what that means for a request.

use super::super::store::StoreError;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use std::io;
use std::time::Duration;

/// Longest part of a store's own words that is passed on.
const WORDS_MAX: usize = 300;
/// A store that wants us to wait longer than this is not waited for so long.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Of what is short: writes, and refusals.
    pub(super) body: Bytes,
    /// The store's own name for what is wrong.
    pub(super) code: Option<String>,
    message: Option<String>,
}

/// Why there was no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It never got there.
    #[error("{0}")]
    Unsent(String),
    /// It may have got there.
    #[error("{0}")]
    Lost(String),
    /// Given up after so many seconds; it may have got there.
    #[error("nothing moved for {0} s")]
    StoodStill(u64),
    /// There are no credentials to sign it with.
    #[error("no credentials: {0}")]
    Credentials(String),
}

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another attempt would end the same.
    Final(StoreError),
    /// Another attempt may succeed.
    Passing {
        /// What was wrong.
        problem: String,
        /// What the store asked for.
        wait: Option<Duration>,
        /// Whether it may have happened nonetheless.
        perhaps_done: bool,
    },
    /// The store does not know a part of the request (501).
    Unknown(String),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Final(error)
    }
}

impl Answer {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        let (code, message) = if body.is_empty() { (None, None) } else { words(&String::from_utf8_lossy(&body)) };
        // Azure says it to a HEAD as well.
        let code = code.or_else(|| text(&headers, "x-ms-error-code").map(str::to_owned));
        Self { status, headers, body, code, message }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// The size of the object of which this answer has a part.
    pub(super) fn object_bytes(&self) -> Option<u64> {
        match self.header("content-range") {
            Some(range) => range.rsplit_once('/')?.1.parse().ok(),
            None => self.header("content-length")?.parse().ok(),
        }
    }

    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Success by its status, and no error in its body: S3 answers some writes with 200 and says only then that they failed.
    pub(super) fn is_success(&self) -> bool {
        self.status.is_success() && self.code.is_none()
    }

    /// The store's words, shortened and without control characters: they are foreign.
    pub(super) fn words(&self) -> String {
        let code = self.code.as_deref().unwrap_or_default();
        let message = self.message.as_deref().unwrap_or_default();
        let mut text = format!("{} {code}", self.status.as_u16());
        if let Some(region) = self.header("x-amz-bucket-region").filter(|_| self.status.is_redirection() || self.status == StatusCode::BAD_REQUEST) {
            text = format!("{text} (the bucket is in the region {region}: say ?region={region})");
        }
        if !message.is_empty() {
            text = format!("{}: {message}", text.trim_end());
        }
        let text: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        text.chars().take(WORDS_MAX).collect()
    }

    fn retry_after(&self) -> Option<Duration> {
        let text = self.header("retry-after")?;
        let seconds = match text.trim().parse::<u64>() {
            Ok(seconds) => seconds,
            // Or a date, as HTTP has them.
            Err(_) => {
                let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
                u64::try_from(at.duration_since(jiff::Timestamp::now()).as_secs()).unwrap_or(0)
            }
        };
        Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
    }

    /// What an answer that is no success means, where nothing more is known of it.
    pub(super) fn fault(&self, action: &'static str, key: &str) -> Fault {
        let passing = |perhaps_done| Fault::Passing { problem: self.words(), wait: self.retry_after(), perhaps_done };
        let key = key.to_owned();
        let source = io::Error::other(self.words());
        // What reached the store was not what was sent, or not all of it.
        const ON_THE_WAY: &[&str] = &[
            "BadDigest",
            "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
            "InvalidDigest",
            "IncompleteBody",
            "RequestTimeout",
            "Md5Mismatch",
            // Azurite's word for that.
            "InvalidOperation",
            "InvalidChecksum",
        ];
        const FULL: &[&str] = &["QuotaExceeded", "XMinioStorageFull", "StorageFull", "InsufficientStorage", "EntityTooLargeForQuota"];
        const WAIT: &[&str] = &["ConditionalRequestConflict", "OperationAborted", "SlowDown", "InternalError", "ServiceUnavailable", "ServerBusy"];
        // S3 says these with 400: the credentials were good, and are not any more.
        const OVER: &[&str] = &["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "RequestExpired"];
        match self.status.as_u16() {
            _ if self.has_code(OVER) => Fault::Final(StoreError::Denied { action, key, source }),
            _ if self.has_code(FULL) => Fault::Final(StoreError::Full { action, key, source }),
            507 => Fault::Final(StoreError::Full { action, key, source }),
            _ if self.has_code(ON_THE_WAY) => passing(false),
            // Said to be a success, and then not.
            200..300 => passing(true),
            _ if self.has_code(WAIT) => passing(true),
            408 | 425 | 429 => passing(false),
            500 | 502 | 503 | 504 => passing(true),
            501 => Fault::Unknown(self.words()),
            // Some say so of a header they do not know.
            400 if self.words().to_ascii_lowercase().contains("checksum") => Fault::Unknown(self.words()),
            // A part is gone, or has another `ETag` than the store was heard to say.
            400 if self.has_code(&["InvalidPart", "InvalidBlockList"]) => Fault::Final(StoreError::UploadLost { key, source }),
            _ if self.has_code(&["InvalidObjectState", "BlobArchived"]) => Fault::Final(StoreError::Archived { action, key }),
            401 | 403 => Fault::Final(StoreError::Denied { action, key, source }),
            404 if self.has_code(&["NoSuchBucket", "ContainerNotFound"]) => Fault::Final(StoreError::NoBucket { action, key, source }),
            404 => Fault::Final(StoreError::NotFound { key }),
            _ => Fault::Final(StoreError::Io { action, key, source }),
        }
    }
}

impl NoAnswer {
    pub(super) fn fault(self, action: &'static str, key: &str) -> Fault {
        match self {
            Self::Credentials(problem) => {
                Fault::Final(StoreError::Denied { action, key: key.to_owned(), source: io::Error::other(format!("no credentials: {problem}")) })
            }
            Self::Unsent(problem) => Fault::Passing { problem, wait: None, perhaps_done: false },
            lost @ (Self::Lost(_) | Self::StoodStill(_)) => Fault::Passing { problem: lost.to_string(), wait: None, perhaps_done: true },
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The code and the message of an error in XML (S3, GCS, Azure) or JSON (GCS).
fn words(body: &str) -> (Option<String>, Option<String>) {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Xml {
        code: Option<String>,
        message: Option<String>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Json {
        error: JsonError,
    }
    #[derive(serde::Deserialize)]
    struct JsonError {
        message: Option<String>,
        #[serde(default)]
        errors: Vec<JsonReason>,
    }
    #[derive(serde::Deserialize)]
    struct JsonReason {
        reason: Option<String>,
    }
    let body = body.trim_start_matches('\u{feff}').trim_start();
    if body.starts_with('<') && body.contains("<Error") {
        return match quick_xml::de::from_str::<Xml>(body) {
            Ok(error) => (Some(error.code.unwrap_or_else(|| "Error".to_owned())), join(error.message, error.details)),
            Err(_) => (Some("Error".to_owned()), None),
        };
    }
    match serde_json::from_str::<Json>(body) {
        Ok(Json { error }) => (Some(error.errors.into_iter().find_map(|e| e.reason).unwrap_or_else(|| "error".to_owned())), error.message),
        Err(_) => (None, None),
    }
}

fn join(message: Option<String>, details: Option<String>) -> Option<String> {
    match (message, details) {
        (Some(message), Some(details)) => Some(format!("{message} ({details})")),
        (message, details) => message.or(details),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        Answer::new(StatusCode::from_u16(status).unwrap(), map, Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn a_success_with_an_error_in_its_body_is_none() {
        let error = answer(200, &[], "<?xml version=\"1.0\"?>\n\n  <Error><Code>InternalError</Code><Message>We are\nsorry</Message></Error>");
        assert!(!error.is_success());
        assert!(matches!(error.fault("store", "k"), Fault::Passing { perhaps_done: true, .. }));
        assert!(answer(200, &[], "<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>").is_success());
        assert!(!answer(200, &[], "<Error>").is_success());
    }

    #[test]
    fn answers_mean_what_their_codes_say() {
        let xml = "<Error><Code>BadDigest</Code></Error>";
        assert!(matches!(answer(400, &[], xml).fault("store", "k"), Fault::Passing { perhaps_done: false, .. }));
        assert!(matches!(answer(501, &[], "").fault("store", "k"), Fault::Unknown(_)));
        assert!(matches!(answer(403, &[], "").fault("store", "k"), Fault::Final(StoreError::Denied { .. })));
        assert!(matches!(answer(404, &[], "<Error><Code>NoSuchBucket</Code></Error>").fault("store", "k"), Fault::Final(StoreError::NoBucket { .. })));
        let expired = answer(400, &[], "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>");
        assert!(matches!(expired.fault("store", "k"), Fault::Final(StoreError::Denied { .. })));
        let skewed = answer(403, &[], "<Error><Code>RequestTimeTooSkewed</Code></Error>");
        let Fault::Final(error) = skewed.fault("store", "k") else { panic!("not final") };
        assert!(error.hint().is_some_and(|hint| hint.contains("clock")), "{error}");
        assert!(matches!(answer(507, &[], "").fault("store", "k"), Fault::Final(StoreError::Full { .. })));
        let json = r#"{"error":{"code":403,"message":"no storage.objects.delete access","errors":[{"reason":"forbidden"}]}}"#;
        assert_eq!(answer(403, &[], json).code.as_deref(), Some("forbidden"));
    }

    #[test]
    fn a_store_may_say_how_long_to_wait() {
        let wait = |text| match answer(503, &[("retry-after", text)], "").fault("store", "k") {
            Fault::Passing { wait, .. } => wait,
            _ => None,
        };
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("99999"), Some(RETRY_AFTER_MAX));
        assert_eq!(wait("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn foreign_words_cannot_steer_a_terminal() {
        let error = answer(400, &[], "<Error><Code>Bad</Code><Message>\u{1b}[31mred</Message></Error>");
        let Fault::Final(StoreError::Io { source, .. }) = error.fault("store", "k") else { panic!("not final") };
        assert!(!source.to_string().contains('\u{1b}'), "{source}");
    }
}
