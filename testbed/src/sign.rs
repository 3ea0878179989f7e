//! Requests with a signature, as S3 and Azure want them.

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::http::HeaderName;
use hyper::{HeaderMap, Method, Request, Uri};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::wire::WireError;

/// Region in the signatures; none of the servers minds.
pub const REGION: &str = "us-east-1";

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const UNRESERVED_OR_SLASH: &AsciiSet = &UNRESERVED.remove(b'/');
const CONTENT_SHA256: &str = "x-amz-content-sha256";
const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// An access key of S3 and its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Identifier of the key.
    pub access_key: String,
    /// What signs.
    pub secret_key: String,
}

impl Credentials {
    /// Access key and secret.
    pub fn new(access_key: &str, secret_key: &str) -> Self {
        Self { access_key: access_key.to_string(), secret_key: secret_key.to_string() }
    }
}

/// A key as it stands in a path: all but `/` and the unreserved characters is percent-encoded.
pub(crate) fn encoded(key: &str) -> String {
    utf8_percent_encode(key, UNRESERVED_OR_SLASH).to_string()
}

/// Names and values as a query, encoded; nothing for no pairs.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{}={}", utf8_percent_encode(name, UNRESERVED), utf8_percent_encode(value, UNRESERVED))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// A request to S3, signed with its body's SHA-256.
pub(crate) fn s3(method: Method, uri: &str, headers: &HeaderMap, body: Bytes, by: &Credentials) -> Result<Request<Bytes>, WireError> {
    let mut request = unsigned(method, uri.parse()?, headers, body.clone());
    authorize_s3(&mut request, None, by)?;
    Ok(request.map(|_| body))
}

/// Signs a request anew whose body is not at hand, with the body's hash that the old signature names.
pub(crate) fn s3_again(method: Method, uri: Uri, headers: &HeaderMap, by: &Credentials) -> Result<HeaderMap, WireError> {
    let named = headers.get(CONTENT_SHA256).and_then(|value| value.to_str().ok()).map(ToString::to_string);
    let named = named.ok_or_else(|| WireError::Request("the request names no hash of its body".into()))?;
    let mut request = unsigned(method, uri, headers, Bytes::new());
    for gone in ["authorization", "x-amz-security-token"] {
        request.headers_mut().remove(gone);
    }
    authorize_s3(&mut request, Some(&named), by)?;
    Ok(std::mem::take(request.headers_mut()))
}

fn authorize_s3(request: &mut HttpRequest, named: Option<&str>, by: &Credentials) -> Result<(), WireError> {
    let credential = AwsCredential { key_id: by.access_key.clone(), secret_key: by.secret_key.clone(), token: None };
    let authorizer = AwsAuthorizer::new(&credential, "s3", REGION);
    match named {
        None => authorizer.try_authorize(request, None)?,
        Some(UNSIGNED) => authorizer.with_sign_payload(false).try_authorize(request, None)?,
        Some(named) => {
            // The signatures of a streamed body's pieces hang on the one of its head.
            let digest = hex::decode(named).map_err(|_| WireError::Request(format!("a body of kind `{named}` cannot be signed again").into()))?;
            authorizer.try_authorize(request, Some(&digest))?;
        }
    }
    Ok(())
}

/// Signs a request to Azure anew.
pub(crate) fn azure_again(method: Method, uri: Uri, headers: &HeaderMap, account: &str, key: &str) -> Result<HeaderMap, WireError> {
    let mut request = unsigned(method, uri, headers, Bytes::new());
    for gone in ["authorization", "date", "x-ms-date"] {
        request.headers_mut().remove(gone);
    }
    authorize_azure(&mut request, account, key)?;
    Ok(std::mem::take(request.headers_mut()))
}

fn authorize_azure(request: &mut HttpRequest, account: &str, key: &str) -> Result<(), WireError> {
    let key = AzureAccessKey::try_new(key).map_err(|error| WireError::Request(Box::new(error)))?;
    AzureAuthorizer::new(&AzureCredential::AccessKey(key), account).try_authorize(request)?;
    Ok(())
}

/// A request to Azure, signed with the account's key.
pub(crate) fn azure(method: Method, uri: &str, headers: &HeaderMap, body: Bytes, account: &str, key: &str) -> Result<Request<Bytes>, WireError> {
    let mut request = unsigned(method, uri.parse()?, headers, body.clone());
    if !body.is_empty() {
        request.headers_mut().insert("content-length", HeaderValue::from(body.len()));
    }
    authorize_azure(&mut request, account, key)?;
    Ok(request.map(|_| body))
}

fn unsigned(method: Method, uri: Uri, headers: &HeaderMap, body: Bytes) -> HttpRequest {
    let mut request = Request::new(HttpRequestBody::from(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers.clone();
    request
}

/// Headers from names and values.
pub(crate) fn headers(pairs: &[(&str, &str)]) -> Result<HeaderMap, WireError> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::try_from(*name).map_err(hyper::http::Error::from)?;
        headers.insert(name, HeaderValue::try_from(*value).map_err(hyper::http::Error::from)?);
    }
    Ok(headers)
}
