//! The XML API: `/BUCKET/OBJECT`.

use super::Shared;
use super::auth::Caller;
use super::content::{Content, Sink};
use super::http::{Call, Headers, Response, empty, respond, status, xml};
use super::multipart;
use super::refusal::Refusal;
use super::store::{Conditions, Declared, Description, Draft, Listing, Marker, ObjectInfo, STANDARD_HEADERS, check_name};
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use jiff::fmt::rfc2822::{DateTimeParser, DateTimePrinter};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use quick_xml::escape::escape;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;

/// Entries of a page, whatever is asked: <https://cloud.google.com/storage/docs/xml-api/get-bucket-list>.
pub(super) const LIST_MAX: u64 = 1000;

/// What `encoding-type=url` leaves as it is.
const KEY_SAFE: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

pub(super) async fn answer(shared: &Shared, call: &mut Call) -> Response {
    match route(shared, call).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_xml(),
    }
}

async fn route(shared: &Shared, call: &mut Call) -> Result<Response, Refusal> {
    let caller = shared.caller(call)?;
    let path = call.path.trim_start_matches('/').to_owned();
    // Only the first slash parts bucket and object: a name may hold more of them, encoded or not.
    let (bucket, key) = super::http::split_path(&path)?;
    let key = super::http::decode_path(key)?;
    if bucket != shared.bucket {
        return Err(Refusal::no_such_bucket());
    }
    if key.is_empty() {
        return match call.method {
            Method::GET => list(shared, call, &caller),
            Method::HEAD if caller.permissions.bucket => Ok(status(StatusCode::OK)),
            Method::HEAD => Err(Refusal::forbidden(&caller.email, "buckets.get")),
            _ => Err(Refusal::not_implemented("requests on buckets")),
        };
    }
    check_name(&key)?;
    let part = call.query.get("uploadId").map(str::to_owned);
    match (&call.method, part) {
        (&Method::PUT, Some(id)) => multipart::put_part(shared, call, &caller, &key, &id).await,
        (&Method::POST, Some(id)) => multipart::complete(shared, call, &caller, &key, &id).await,
        (&Method::DELETE, Some(id)) => multipart::abort(shared, &caller, &key, &id),
        (_, Some(_)) => Err(Refusal::not_implemented("uploadId")),
        (&Method::POST, None) if call.query.get("uploads").is_some() => multipart::initiate(shared, call, &caller, &key),
        (&Method::PUT, None) => put(shared, call, &caller, key).await,
        (&Method::GET | &Method::HEAD, None) => get(shared, call, &caller, &key),
        (&Method::DELETE, None) => {
            let conditions = Conditions::of_headers(call)?;
            shared.store().delete(&shared.bucket, &key, call.query.number("generation")?, &caller, &conditions)?;
            Ok(status(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::not_implemented(call.method.as_str())),
    }
}

/// What the headers of an upload say of the object.
pub(super) fn described(call: &Call) -> Result<Description, Refusal> {
    let mut description = Description::default();
    if let Some(content_type) = call.header(CONTENT_TYPE.as_str()) {
        content_type.clone_into(&mut description.content_type);
    }
    if let Some(class) = call.header("x-goog-storage-class") {
        class.clone_into(&mut description.storage_class);
    }
    for (header, field) in STANDARD_HEADERS {
        if let Some(value) = call.header(header) {
            description.standard.insert(field, value.to_owned());
        }
    }
    for (name, value) in &call.headers {
        if let Some(name) = name.as_str().strip_prefix("x-goog-meta-") {
            description.metadata.insert(name.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned());
        }
    }
    description.check()
}

/// An upload in one request.
///
/// <https://cloud.google.com/storage/docs/xml-api/put-object-upload>
async fn put(shared: &Shared, call: &mut Call, caller: &Caller, key: String) -> Result<Response, Refusal> {
    if call.headers.contains_key("x-goog-copy-source") {
        return Err(Refusal::not_implemented("x-goog-copy-source"));
    }
    call.needs_length()?;
    let description = described(call)?;
    let declared = Declared::of_headers(call)?;
    let conditions = Conditions::of_headers(call)?;
    shared.store().may_write(&key, caller, &conditions)?;
    let mut sink = Sink::new();
    while let Some(bytes) = call.body.chunk().await {
        sink.write(&shared.folder, &bytes)?;
    }
    if call.body.is_broken() {
        return Err(Refusal::broken());
    }
    let (content, checksums) = sink.finish()?;
    declared.check(&checksums)?;
    // Somebody else may have been faster meanwhile.
    let info = shared.store().write(Draft { key, description, content, checksums, parts: None }, caller, &conditions)?;
    let fill = |headers: &mut Headers| {
        headers.insert(ETAG, info.xml_etag());
        written_headers(&info, headers);
    };
    Ok(respond(StatusCode::OK, fill, empty()))
}

/// What an answer to an upload has in common with one to a download.
pub(super) fn written_headers(info: &ObjectInfo, headers: &mut Headers) {
    headers.named("x-goog-generation", info.generation.to_string());
    headers.named("x-goog-metageneration", info.metageneration.to_string());
    // One header for each sum, as the service does; a list in one header means the same.
    headers.named("x-goog-hash", format!("crc32c={}", info.checksums.crc32c_base64()));
    if let Some(md5) = info.checksums.md5_base64() {
        headers.named("x-goog-hash", format!("md5={md5}"));
    }
    headers.named("x-goog-stored-content-encoding", info.description.standard.get("contentEncoding").map_or("identity", String::as_str));
    headers.named("x-goog-stored-content-length", info.size_bytes.to_string());
}

/// Describes an object, to both APIs: a download is one.
pub(super) fn object_headers(info: &ObjectInfo, etag: &str, headers: &mut Headers) {
    written_headers(info, headers);
    headers.insert(ETAG, etag);
    headers.insert(LAST_MODIFIED, http_date(info.created));
    headers.insert(CONTENT_TYPE, &info.description.content_type);
    headers.insert(ACCEPT_RANGES, "bytes");
    headers.named("x-goog-storage-class", &info.description.storage_class);
    if let Some(parts) = info.parts {
        headers.named("x-goog-component-count", parts.to_string());
    }
    for (name, value) in &info.description.metadata {
        headers.named(&format!("x-goog-meta-{name}"), value);
    }
    for (header, field) in STANDARD_HEADERS {
        if let Some(value) = info.description.standard.get(field) {
            headers.named(header, value);
        }
    }
}

/// <https://cloud.google.com/storage/docs/xml-api/get-object-download>
fn get(shared: &Shared, call: &Call, caller: &Caller, key: &str) -> Result<Response, Refusal> {
    let (info, content) = shared.store().read(&shared.bucket, key, call.query.number("generation")?, caller)?;
    Conditions::of_headers(call)?.check_read(&info)?;
    let etag = info.xml_etag();
    if !holds(call, &info, &etag)? {
        return Ok(respond(StatusCode::NOT_MODIFIED, |headers| headers.insert(ETAG, &etag), empty()));
    }
    download(call, &info, &etag, &content)
}

/// Whether the conditions of plain HTTP let a read go on; `false` means that what the reader has is what there is.
///
/// <https://cloud.google.com/storage/docs/request-preconditions>
fn holds(call: &Call, info: &ObjectInfo, etag: &str) -> Result<bool, Refusal> {
    let listed = |tags: &str| tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag);
    let since = |name: &str| call.header(name).and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
    let modified_s = info.created.as_second();
    if call.header(IF_MATCH.as_str()).is_some_and(|tags| !listed(tags)) {
        return Err(Refusal::precondition("If-Match"));
    }
    if since(IF_UNMODIFIED_SINCE.as_str()).is_some_and(|date| modified_s > date.as_second()) {
        return Err(Refusal::precondition("If-Unmodified-Since"));
    }
    if let Some(tags) = call.header(IF_NONE_MATCH.as_str()) {
        return Ok(!listed(tags));
    }
    Ok(since(IF_MODIFIED_SINCE.as_str()).is_none_or(|date| modified_s > date.as_second()))
}

/// Answers with an object's bytes, or with those a `Range` asks for.
pub(super) fn download(call: &Call, info: &ObjectInfo, etag: &str, content: &Content) -> Result<Response, Refusal> {
    let size = info.size_bytes;
    let range = match call.header(RANGE.as_str()).and_then(|text| parse_range(text, size)) {
        Some(Some(range)) if call.method == Method::GET => Some(range),
        Some(None) if call.method == Method::GET => {
            let message = "The requested range cannot be satisfied.";
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", "requestedRangeNotSatisfiable", message);
            let mut response = refusal.into_xml();
            if let Ok(value) = format!("bytes */{size}").parse() {
                response.headers_mut().insert(CONTENT_RANGE, value);
            }
            return Ok(response);
        }
        _ => None,
    };
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let wanted = range.clone().unwrap_or(0..size);
    let body = if call.method == Method::HEAD { empty() } else { content.body(wanted.clone())? };
    let fill = |headers: &mut Headers| {
        object_headers(info, etag, headers);
        headers.insert(CONTENT_LENGTH, (wanted.end - wanted.start).to_string());
        if let Some(range) = &range {
            headers.insert(CONTENT_RANGE, format!("bytes {}-{}/{size}", range.start, range.end - 1));
        }
    };
    Ok(respond(status, fill, body))
}

/// Returns nothing for what is no single range of bytes, which is then ignored, and `Some(None)` for one outside of the object.
fn parse_range(text: &str, size: u64) -> Option<Option<Range<u64>>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        let length: u64 = last.parse().ok()?;
        size.saturating_sub(length)..size
    } else {
        let first: u64 = first.parse().ok()?;
        let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
        first..end
    };
    Some((range.start < range.end).then_some(range))
}

/// Both versions of listing; without `list-type` it is the first.
///
/// <https://cloud.google.com/storage/docs/xml-api/get-bucket-list>
fn list(shared: &Shared, call: &Call, caller: &Caller) -> Result<Response, Refusal> {
    let query = &call.query;
    for other in ["uploads", "versions", "acl", "cors", "lifecycle", "location", "logging", "storageClass", "versioning"] {
        if query.get(other).is_some() {
            return Err(Refusal::not_implemented(other));
        }
    }
    if !caller.permissions.list {
        return Err(Refusal::forbidden(&caller.email, "objects.list"));
    }
    let second = match query.get("list-type") {
        None => false,
        Some("2") => true,
        Some(_) => return Err(Refusal::invalid_argument("Invalid list-type")),
    };
    let encode = match query.filled("encoding-type") {
        None => false,
        Some("url") => true,
        Some(_) => return Err(Refusal::invalid_argument("Invalid encoding-type")),
    };
    let max_keys = query.number("max-keys")?.unwrap_or(LIST_MAX).min(LIST_MAX);
    let token = query.filled("continuation-token").filter(|_| second);
    let above = if second { query.filled("start-after") } else { query.filled("marker") };
    let delimiter = query.filled("delimiter");
    let after = match above {
        // A marker that is a common prefix stands for all names below it.
        Some(marker) if !second && delimiter.is_some_and(|delimiter| marker.ends_with(delimiter)) => Some(Marker::Prefix(marker.to_owned())),
        _ => token.map(Marker::parse).transpose()?,
    };
    let listing = Listing { prefix: query.get("prefix").unwrap_or_default(), delimiter, after, above, max: shared.page(max_keys), ..Listing::default() };
    let page = shared.store().list(&listing);

    let name = |text: &str| -> String {
        let text = if encode { utf8_percent_encode(text, &KEY_SAFE).to_string() } else { text.to_owned() };
        escape(text.as_str()).into_owned()
    };
    let mut out = String::from("<?xml version='1.0' encoding='UTF-8'?><ListBucketResult xmlns='http://doc.s3.amazonaws.com/2006-03-01'>");
    let mut element = |tag: &str, text: Cow<'_, str>| {
        write!(out, "<{tag}>{text}</{tag}>").unwrap_or_default();
    };
    element("Name", escape(shared.bucket.as_str()));
    element("Prefix", name(listing.prefix).into());
    if let Some(delimiter) = listing.delimiter {
        element("Delimiter", name(delimiter).into());
    }
    if encode {
        element("EncodingType", "url".into());
    }
    element("MaxKeys", max_keys.to_string().into());
    if second {
        element("KeyCount", (page.objects.len() + page.prefixes.len()).to_string().into());
        if let Some(token) = token {
            element("ContinuationToken", escape(token));
        }
        if let Some(above) = above {
            element("StartAfter", name(above).into());
        }
    } else {
        element("Marker", name(above.unwrap_or_default()).into());
    }
    element("IsTruncated", page.next.is_some().to_string().into());
    match &page.next {
        Some(next) if second => element("NextContinuationToken", escape(next.token().as_str()).into_owned().into()),
        Some(Marker::Key(last) | Marker::Prefix(last)) => element("NextMarker", name(last).into()),
        None => (),
    }
    for info in &page.objects {
        let entry = format!(
            "<Key>{}</Key><Generation>{}</Generation><MetaGeneration>{}</MetaGeneration><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>",
            name(&info.key),
            info.generation,
            info.metageneration,
            iso_date(info.created),
            escape(info.xml_etag().as_str()),
            info.size_bytes
        );
        element("Contents", entry.into());
    }
    for prefix in &page.prefixes {
        element("CommonPrefixes", format!("<Prefix>{}</Prefix>", name(prefix)).into());
    }
    out.push_str("</ListBucketResult>");
    Ok(xml(out))
}

pub(super) fn http_date(time: Timestamp) -> String {
    DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default()
}

/// The form of listings and of the JSON API, to the millisecond.
pub(super) fn iso_date(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}
