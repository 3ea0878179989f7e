//! Multipart uploads of the XML API. They know no precondition: completing one overwrites what stands there.
//!
//! <https://cloud.google.com/storage/docs/multipart-uploads>

use super::Shared;
use super::auth::{Caller, random_hex};
use super::content::{Checksums, Content, Sink};
use super::http::{Call, Headers, Response, empty, full, respond, status, xml};
use super::refusal::Refusal;
use super::store::{Conditions, Declared, Description, Draft};
use super::xml::{described, written_headers};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, ETAG};
use quick_xml::escape::escape;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// <https://cloud.google.com/storage/quotas>
const PARTS_MAX: u32 = 10_000;

/// The least a part may hold, unless it is the last.
const PART_BYTES_MIN: u64 = 5 * 1024 * 1024;

const COMPLETE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// An upload that was begun and not ended.
pub(super) struct Upload {
    pub(super) key: String,
    description: Description,
    parts: BTreeMap<u32, Part>,
}

#[derive(Clone)]
struct Part {
    etag: String,
    content: Arc<Content>,
}

/// Says so where a client hopes for a condition. The reference lists none for these requests.
fn refuse_conditions(call: &Call) -> Result<(), Refusal> {
    for name in ["x-goog-if-generation-match", "x-goog-if-metageneration-match", "if-match", "if-none-match"] {
        if call.headers.contains_key(name) {
            return Err(Refusal::invalid_argument(format!("{name} is not supported in XML API multipart uploads")));
        }
    }
    Ok(())
}

fn may_create(caller: &Caller) -> Result<(), Refusal> {
    if caller.permissions.create { Ok(()) } else { Err(Refusal::forbidden(&caller.email, "objects.create")) }
}

/// <https://cloud.google.com/storage/docs/xml-api/post-object-multipart>
pub(super) fn initiate(shared: &Shared, call: &Call, caller: &Caller, key: &str) -> Result<Response, Refusal> {
    refuse_conditions(call)?;
    may_create(caller)?;
    let description = described(call)?;
    let id = random_hex(24)?;
    shared.multiparts().insert(id.clone(), Upload { key: key.to_owned(), description, parts: BTreeMap::new() });
    Ok(xml(format!(
        "<?xml version='1.0' encoding='UTF-8'?><InitiateMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Bucket>{}</Bucket><Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
        escape(shared.bucket.as_str()),
        escape(key)
    )))
}

/// <https://cloud.google.com/storage/docs/xml-api/put-object-multipart>
pub(super) async fn put_part(shared: &Shared, call: &mut Call, caller: &Caller, key: &str, id: &str) -> Result<Response, Refusal> {
    refuse_conditions(call)?;
    may_create(caller)?;
    call.needs_length()?;
    let number = call.query.number("partNumber")?.and_then(|number| u32::try_from(number).ok()).filter(|number| (1..=PARTS_MAX).contains(number));
    let number = number.ok_or_else(|| Refusal::invalid_argument(format!("Part number must be an integer between 1 and {PARTS_MAX}, inclusive")))?;
    let declared = Declared::of_headers(call)?;
    if shared.multiparts().get(id).is_none_or(|upload| upload.key != key) {
        return Err(Refusal::no_such_upload());
    }
    let mut sink = Sink::new();
    while let Some(bytes) = call.body.chunk().await {
        sink.write(&shared.folder, &bytes)?;
    }
    if call.body.is_broken() {
        return Err(Refusal::broken());
    }
    let (content, checksums) = sink.finish()?;
    declared.check(&checksums)?;
    let etag = format!("\"{}\"", hex::encode(checksums.md5.unwrap_or_default()));
    let part = Part { etag: etag.clone(), content: Arc::new(content) };
    shared.multiparts().get_mut(id).ok_or_else(Refusal::no_such_upload)?.parts.insert(number, part);
    let fill = |headers: &mut Headers| {
        headers.insert(ETAG, &etag);
        headers.named("x-goog-hash", format!("crc32c={}", checksums.crc32c_base64()));
        headers.named("x-goog-hash", format!("md5={}", checksums.md5_base64().unwrap_or_default()));
    };
    Ok(respond(StatusCode::OK, fill, empty()))
}

#[derive(Deserialize)]
struct CompleteMultipartUpload {
    #[serde(rename = "Part", default)]
    parts: Vec<NamedPart>,
}

#[derive(Deserialize)]
struct NamedPart {
    #[serde(rename = "PartNumber")]
    number: u32,
    #[serde(rename = "ETag")]
    etag: String,
}

/// <https://cloud.google.com/storage/docs/xml-api/post-object-complete>
pub(super) async fn complete(shared: &Shared, call: &mut Call, caller: &Caller, key: &str, id: &str) -> Result<Response, Refusal> {
    refuse_conditions(call)?;
    let body = call.body.read(COMPLETE_BYTES_MAX).await?;
    let malformed = || Refusal::bad_request("MalformedCompleteMultipartUploadRequest", "The XML you provided was not well-formed.");
    let wanted: CompleteMultipartUpload = quick_xml::de::from_str(std::str::from_utf8(&body).map_err(|_| malformed())?).map_err(|_| malformed())?;
    if wanted.parts.is_empty() {
        return Err(malformed());
    }
    let conditions = Conditions::default();
    shared.store().may_write(key, caller, &conditions)?;
    let (description, parts) = {
        let uploads = shared.multiparts();
        let upload = uploads.get(id).filter(|upload| upload.key == key).ok_or_else(Refusal::no_such_upload)?;
        (upload.description.clone(), chosen(upload, &wanted.parts)?)
    };
    let count = u32::try_from(parts.len()).unwrap_or(PARTS_MAX);
    let folder = Arc::clone(&shared.folder);
    let join = move || -> std::io::Result<(Content, Checksums)> {
        let mut sink = Sink::new();
        for part in &parts {
            part.content.copy(|block| sink.write(&folder, block))?;
        }
        sink.finish()
    };
    let (content, checksums) = tokio::task::spawn_blocking(join).await.map_err(std::io::Error::other)??;
    // What was assembled has no MD5.
    let checksums = Checksums { md5: None, ..checksums };
    let draft = Draft { key: key.to_owned(), description, content, checksums, parts: Some(count) };
    let info = shared.store().write(draft, caller, &conditions)?;
    shared.multiparts().remove(id);
    let text = format!(
        "<?xml version='1.0' encoding='UTF-8'?><CompleteMultipartUploadResult xmlns='http://s3.amazonaws.com/doc/2006-03-01/'><Location>{}</Location><Bucket>{}</Bucket><Key>{}</Key><ETag>{}</ETag></CompleteMultipartUploadResult>",
        escape(format!("{}/{}/{key}", shared.url, shared.bucket)),
        escape(shared.bucket.as_str()),
        escape(key),
        escape(info.xml_etag())
    );
    let fill = |headers: &mut Headers| {
        headers.insert(CONTENT_TYPE, "application/xml; charset=UTF-8");
        written_headers(&info, headers);
    };
    Ok(respond(StatusCode::OK, fill, full(text)))
}

/// Returns the parts that are to be the object, if they may be.
fn chosen(upload: &Upload, wanted: &[NamedPart]) -> Result<Vec<Part>, Refusal> {
    if !wanted.is_sorted_by(|one, next| one.number < next.number) {
        return Err(Refusal::bad_request("InvalidPartOrder", "The list of parts was not in ascending order."));
    }
    let mut parts = Vec::new();
    for (index, named) in wanted.iter().enumerate() {
        let part = upload.parts.get(&named.number).filter(|part| part.etag.trim_matches('"') == named.etag.trim_matches('"'));
        let part = part.ok_or_else(|| Refusal::bad_request("InvalidPart", "One or more of the specified parts could not be found."))?;
        if index + 1 < wanted.len() && part.content.size_bytes() < PART_BYTES_MIN {
            return Err(Refusal::bad_request("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed object size."));
        }
        parts.push(part.clone());
    }
    Ok(parts)
}

/// <https://cloud.google.com/storage/docs/xml-api/delete-multipart>
pub(super) fn abort(shared: &Shared, caller: &Caller, key: &str, id: &str) -> Result<Response, Refusal> {
    may_create(caller)?;
    let mut uploads = shared.multiparts();
    if uploads.get(id).is_none_or(|upload| upload.key != key) {
        return Err(Refusal::no_such_upload());
    }
    uploads.remove(id);
    Ok(status(StatusCode::NO_CONTENT))
}
