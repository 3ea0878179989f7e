//! Errors as Cloud Storage words them, in the shape of either API.

use super::http::{Response, full};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use quick_xml::escape::escape;
use serde_json::json;

/// Why a request was refused. The two APIs word some refusals differently.
///
/// - XML: <https://cloud.google.com/storage/docs/xml-api/reference-status>
/// - JSON: <https://cloud.google.com/storage/docs/json_api/v1/status-codes>
#[derive(Clone, Debug)]
pub(super) struct Refusal(Box<Words>);

#[derive(Clone, Debug)]
struct Words {
    status: StatusCode,
    /// `Code` of the XML API.
    code: &'static str,
    /// `Message` of the XML API.
    message: String,
    /// `Details` of the XML API.
    details: Option<String>,
    /// `reason` of the JSON API.
    reason: &'static str,
    /// `message` of the JSON API, where it is not that of the XML API.
    json_message: Option<String>,
    /// `location` of the JSON API, in the headers.
    location: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Words { status, code, message: message.into(), details: None, reason, json_message: None, location: None }))
    }

    fn details(mut self, details: impl Into<String>) -> Self {
        self.0.details = Some(details.into());
        self
    }

    fn json(mut self, message: impl Into<String>) -> Self {
        self.0.json_message = Some(message.into());
        self
    }

    fn at(mut self, location: &'static str) -> Self {
        self.0.location = Some(location);
        self
    }

    /// No bearer was sent.
    pub(super) fn anonymous() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "AuthenticationRequired", "required", "Authentication required.").json("Login Required").at("Authorization")
    }

    /// The bearer is unknown, forged or expired.
    pub(super) fn bad_bearer() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "AuthenticationRequired", "authError", "Authentication required.").json("Invalid Credentials").at("Authorization")
    }

    /// `permission` is one of objects (`objects.create`) or buckets (`buckets.get`).
    pub(super) fn forbidden(email: &str, permission: &str) -> Self {
        // Listing is asked of the bucket, everything else of an object.
        let what = if matches!(permission, "objects.list" | "buckets.get") { "bucket" } else { "object" };
        let said = format!(
            "{email} does not have storage.{permission} access to the Google Cloud Storage {what}. Permission 'storage.{permission}' denied on resource (or it may not exist)."
        );
        Self::new(StatusCode::FORBIDDEN, "AccessDenied", "forbidden", "Access denied.").details(said.clone()).json(said)
    }

    pub(super) fn no_such_bucket() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchBucket", "notFound", "The specified bucket does not exist.")
    }

    pub(super) fn no_such_key(bucket: &str, key: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchKey", "notFound", "The specified key does not exist.")
            .details(format!("No such object: {bucket}/{key}"))
            .json(format!("No such object: {bucket}/{key}"))
    }

    pub(super) fn no_such_upload() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NoSuchUpload", "notFound", "The requested upload was not found.")
    }

    pub(super) fn precondition(which: &'static str) -> Self {
        let message = "At least one of the pre-conditions you specified did not hold.";
        Self::new(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", "conditionNotMet", message).details(which).at("If-Match")
    }

    pub(super) fn bad_crc32c(given: &str, computed: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadDigest", "invalid", "The CRC32C you specified did not match what we computed.")
            .details(format!("The CRC32C you specified (\"{given}\") did not match what we computed (\"{computed}\")."))
            .json(format!("Provided CRC32C \"{given}\" doesn't match calculated CRC32C \"{computed}\"."))
    }

    pub(super) fn bad_md5(given: &str, computed: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadDigest", "invalid", "The MD5 you specified in Content-MD5 or x-goog-hash did not match what we computed.")
            .details(format!("The MD5 you specified (\"{given}\") did not match what we computed (\"{computed}\")."))
            .json(format!("Provided MD5 hash \"{given}\" doesn't match calculated MD5 hash \"{computed}\"."))
    }

    /// A checksum that is none: not base64, or not as long as it must be.
    pub(super) fn invalid_digest(given: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidDigest", "invalid", "The Content-MD5 or x-goog-hash you specified was invalid.").details(given)
    }

    pub(super) fn invalid_argument(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(StatusCode::BAD_REQUEST, "InvalidArgument", "invalid", "Invalid argument.").details(message.clone()).json(message)
    }

    pub(super) fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, "invalid", message)
    }

    pub(super) fn not_implemented(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            "NotImplemented",
            "notImplemented",
            "A header or query you provided requested a function that is not implemented.",
        )
        .details(what)
    }

    pub(super) fn internal(error: &std::io::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "internalError", format!("the double failed: {error}"))
    }

    /// The connection ended before the body did; nobody reads this.
    pub(super) fn broken() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "IncompleteBody", "invalid", "The body was shorter than announced.")
    }

    pub(super) fn into_xml(self) -> Response {
        let words = *self.0;
        let details = words.details.map(|details| format!("<Details>{}</Details>", escape(details.as_str()))).unwrap_or_default();
        let text = format!(
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message>{details}</Error>",
            words.code,
            escape(words.message.as_str())
        );
        super::http::respond(words.status, |headers| headers.insert(CONTENT_TYPE, "application/xml; charset=UTF-8"), full(text))
    }

    pub(super) fn into_json(self) -> Response {
        let words = *self.0;
        let message = words.json_message.unwrap_or(words.message);
        let mut error = json!({ "message": message, "domain": "global", "reason": words.reason });
        if let (Some(location), Some(error)) = (words.location, error.as_object_mut()) {
            error.insert("locationType".into(), "header".into());
            error.insert("location".into(), location.into());
        }
        let whole = json!({ "error": { "code": words.status.as_u16(), "message": message, "errors": [error] } });
        super::http::json(words.status, &whole)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::internal(&error)
    }
}
