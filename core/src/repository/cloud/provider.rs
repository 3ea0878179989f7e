//! What the three kinds of store have in common, as single attempts. Retries, looks and the order of things are in the files beside.

use super::super::checksum::Checksum;
use super::super::store::StoreError;
use super::answer::{Answer, Fault};
use super::wire::{Line, Request};
use crate::model::Sha256;
use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use std::fmt;

/// What goes along with an object, in the store's words.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    /// Its storage class, where it is not the usual one.
    pub(super) class: Option<String>,
    /// SHA-256 of the content, where it is known beforehand.
    pub(super) sha256: Option<Sha256>,
    pub(super) mtime_ns: Option<i64>,
    /// Size of its parts, where it comes in parts.
    pub(super) part_bytes: Option<u64>,
    /// To be created only where there is nothing.
    pub(super) create_only: bool,
    /// Whether it waits for a lane ([`super::lanes`]).
    pub(super) in_lane: bool,
}

/// How one attempt to create an object was answered.
#[derive(Debug)]
pub(super) enum Put {
    New,
    /// There is something.
    Exists,
    /// Refused, and it may be because there is something: a look tells.
    Perhaps(StoreError),
    /// The store has no such names.
    Unnameable,
}

/// What a store says of an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) size_bytes: u64,
    pub(super) checksum: Option<Checksum>,
    /// CRC32C of all bytes, where the store says that as well.
    pub(super) crc32c: Option<u32>,
}

/// One part of an object, on its way or there.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) number: usize,
    pub(super) sha256: Sha256,
    /// What the store calls it.
    pub(super) tag: String,
}

/// How an object is streamed to a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Streaming {
    /// In parts, several at once.
    Parts,
    /// In one session, piece after piece.
    Session,
}

/// A store's way of saying things.
#[async_trait]
pub(super) trait Provider: Send + Sync {
    fn line(&self) -> &Line;
    /// Whether a listing can begin after a key.
    fn lists_after(&self) -> bool {
        true
    }
    fn streaming(&self) -> Streaming;
    fn url(&self, path: &str) -> String;

    async fn send(&self, request: Request, action: &'static str, path: &str) -> Result<Answer, Fault> {
        self.line().wire.send(request).await.map_err(|error| error.fault(action, path))
    }

    async fn ask_head(&self, path: &str) -> Result<Answer, Fault> {
        self.send(Request::new(Method::HEAD, self.url(path)), "look at", path).await
    }

    /// Creates an object in one request.
    async fn put(&self, path: &str, content: &Bytes, about: &About) -> Result<Put, Fault>;

    /// What a HEAD says.
    fn seen(&self, answer: &Answer) -> Option<Checksum>;

    /// Likewise, its CRC32C.
    fn crc32c(&self, _: &Answer) -> Option<u32> {
        None
    }

    /// Whether a refusal may mean that there is something already.
    fn perhaps_exists(&self, answer: &Answer) -> bool {
        answer.status == http::StatusCode::FORBIDDEN
    }

    /// From now on without what the store does not know: true where there was something to leave out.
    fn without_checksums(&self) -> bool {
        false
    }

    /// Begins an object of several parts, and gives what it is called. This and what goes on from it, where [`Streaming::Parts`].
    async fn begin_parts(&self, path: &str, _: &About) -> Result<String, Fault> {
        Err(unstreamed("parts", path))
    }

    async fn put_part(&self, path: &str, _id: &str, _number: usize, _content: &[Bytes], _: Sha256) -> Result<Part, Fault> {
        Err(unstreamed("parts", path))
    }

    async fn complete(&self, path: &str, _id: &str, _: &[Part], _: &About) -> Result<Put, Fault> {
        Err(unstreamed("parts", path))
    }

    /// Ends an upload that is not wanted any more; `NotFound` where it is over already. Where there is nothing to end, it ends by itself.
    async fn abort(&self, _path: &str, _id: &str) -> Result<(), Fault> {
        Ok(())
    }

    /// Begins a session, and gives its URL, where [`Streaming::Session`].
    async fn begin_session(&self, path: &str, _: &About) -> Result<Result<String, Put>, Fault> {
        Err(unstreamed("sessions", path))
    }

    async fn head(&self, path: &str) -> Result<Option<Seen>, Fault> {
        let answer = self.ask_head(path).await?;
        if answer.is_success() {
            let size_bytes = answer.header("content-length").and_then(|text| text.parse().ok());
            return match size_bytes {
                Some(size_bytes) => Ok(Some(Seen { size_bytes, checksum: self.seen(&answer), crc32c: self.crc32c(&answer) })),
                None => Err(Fault::Passing { problem: "the store does not say how large it is".to_owned(), wait: None, perhaps_done: false }),
            };
        }
        match answer.fault("look at", path) {
            Fault::Final(StoreError::NotFound { .. }) => Ok(None),
            fault => Err(fault),
        }
    }

    /// Asks for an object to be removed that is not there, to see whether that is permitted.
    async fn try_delete(&self, path: &str) -> Result<(), Fault> {
        self.delete(path).await
    }

    async fn delete(&self, path: &str) -> Result<(), Fault> {
        let answer = self.send(Request::new(Method::DELETE, self.url(path)), "delete", path).await?;
        if answer.is_success() {
            return Ok(());
        }
        match answer.fault("delete", path) {
            Fault::Final(StoreError::NotFound { .. }) => Ok(()),
            fault => Err(fault),
        }
    }
}

/// A store was asked for what [`Provider::streaming`] says it has not.
fn unstreamed(what: &str, path: &str) -> Fault {
    StoreError::Io { action: "store", key: path.to_owned(), source: std::io::Error::other(format!("this store has no {what}")) }.into()
}

/// What the answer to an attempt to create something means.
pub(super) fn created(provider: &dyn Provider, answer: &Answer, action: &'static str, path: &str) -> Result<Put, Fault> {
    const COMPLETED: &[u8] = b"CompleteMultipartUploadResult";
    const UNNAMEABLE: &[&str] = &["KeyTooLongError", "InvalidObjectName", "XMinioInvalidObjectName", "InvalidResourceName", "InvalidUri"];
    const EXISTS: &[&str] = &["BlobAlreadyExists", "PreconditionFailed", "ConditionNotMet", "conditionNotMet", "AlreadyExists"];
    if answer.is_success() {
        // What stands between may answer anything with 200: a store says what it calls the object that it took.
        let is_said = answer.header("etag").is_some() || answer.body.windows(COMPLETED.len()).any(|words| words == COMPLETED);
        let nothing_said = || Fault::Passing { problem: "the answer does not say what was stored".to_owned(), wait: None, perhaps_done: true };
        return if is_said { Ok(Put::New) } else { Err(nothing_said()) };
    }
    match answer.status.as_u16() {
        304 | 412 => Ok(Put::Exists),
        409 if answer.has_code(EXISTS) => Ok(Put::Exists),
        // Azure's words for a SAS that may create and not replace.
        _ if answer.has_code(&["UnauthorizedBlobOverwrite"]) => Ok(Put::Exists),
        _ if answer.has_code(UNNAMEABLE) => Ok(Put::Unnameable),
        _ => match answer.fault(action, path) {
            Fault::Final(error) if provider.perhaps_exists(answer) || answer.status == http::StatusCode::CONFLICT => Ok(Put::Perhaps(error)),
            fault => Err(fault),
        },
    }
}

/// The time as rclone writes it for S3: seconds since 1970 with nine digits behind the point.
pub(super) fn seconds(mtime_ns: i64) -> String {
    let sign = if mtime_ns < 0 { "-" } else { "" };
    let ns = mtime_ns.unsigned_abs();
    format!("{sign}{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

/// The time as rclone writes it for GCS and Azure.
pub(super) fn rfc3339(mtime_ns: i64) -> Option<String> {
    jiff::Timestamp::from_nanosecond(i128::from(mtime_ns)).ok().map(|time| time.to_string())
}

/// A path as it stands in a URL.
pub(super) fn encoded(path: &str) -> impl fmt::Display + '_ {
    const KEPT: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');
    percent_encoding::utf8_percent_encode(path, KEPT)
}

/// A value as it stands behind the `?` of a URL.
pub(super) fn query(value: &str) -> impl fmt::Display + '_ {
    const KEPT: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(value, KEPT)
}

pub(super) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(super) fn from_base64<const N: usize>(text: &str) -> Option<[u8; N]> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()?.try_into().ok()
}

/// MD5 of pieces, as HTTP writes it.
pub(super) fn md5_of<'a>(pieces: impl IntoIterator<Item = &'a Bytes>) -> String {
    use md5::Digest as _;
    let mut hasher = md5::Md5::new();
    for piece in pieces {
        hasher.update(piece);
    }
    base64(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_that_rclone_reads() {
        assert_eq!(seconds(1_234_567_890_123_456_789), "1234567890.123456789");
        assert_eq!(seconds(-1_500_000_000), "-1.500000000");
        assert_eq!(seconds(5), "0.000000005");
        assert_eq!(rfc3339(1_234_567_890_123_456_789).unwrap(), "2009-02-13T23:31:30.123456789Z");
    }

    #[test]
    fn a_path_is_written_so_that_a_signature_holds() {
        assert_eq!(encoded("library/a b+ü%2F~.jpg").to_string(), "library/a%20b%2B%C3%BC%252F~.jpg");
        assert_eq!(query("a/b&c").to_string(), "a%2Fb%26c");
    }
}
