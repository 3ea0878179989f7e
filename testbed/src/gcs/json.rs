//! The JSON API: `/storage/v1/b/BUCKET/o/OBJECT`, and its uploads under `/upload`.
//!
//! <https://cloud.google.com/storage/docs/json_api/v1>

use super::Shared;
use super::auth::Caller;
use super::content::Sink;
use super::http::{Call, Response, decode_path, json, split_path, status};
use super::refusal::Refusal;
use super::resumable;
use super::store::{Conditions, Declared, Description, Draft, Listing, Marker, ObjectInfo, STANDARD_HEADERS, check_name};
use super::xml::{LIST_MAX, download, iso_date};
use bytes::{Buf, BytesMut};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use memchr::memmem;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

/// The resource that comes with an upload: names and custom metadata are small.
pub(super) const RESOURCE_BYTES_MAX: usize = 256 * 1024;

/// Answers what is not an upload. `rest` is what follows `/storage/v1/b/`.
pub(super) fn answer(shared: &Shared, call: &Call, rest: &str) -> Response {
    route(shared, call, rest).unwrap_or_else(Refusal::into_json)
}

fn route(shared: &Shared, call: &Call, rest: &str) -> Result<Response, Refusal> {
    let caller = shared.caller(call)?;
    let (bucket, rest) = split_path(rest)?;
    if bucket != shared.bucket {
        return Err(Refusal::no_such_bucket());
    }
    match (&call.method, rest) {
        (&Method::GET, "") => get_bucket(shared, &caller),
        (&Method::GET, "o") => list(shared, call, &caller),
        _ => {
            // An object's name is one part of the path: its slashes must be encoded.
            // https://cloud.google.com/storage/docs/request-endpoints#encoding
            let key = rest.strip_prefix("o/").filter(|key| !key.contains('/')).ok_or_else(not_found)?;
            object(shared, call, &caller, &decode_path(key)?)
        }
    }
}

fn not_found() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "NoSuchKey", "notFound", "Not Found")
}

fn object(shared: &Shared, call: &Call, caller: &Caller, key: &str) -> Result<Response, Refusal> {
    check_name(key)?;
    let conditions = Conditions::of_query(&call.query)?;
    let generation = call.query.number("generation")?;
    match call.method {
        // https://cloud.google.com/storage/docs/json_api/v1/objects/get
        Method::GET | Method::HEAD => {
            let (info, content) = shared.store().read(&shared.bucket, key, generation, caller)?;
            conditions.check_read(&info)?;
            match call.query.get("alt") {
                Some("media") => download(call, &info, &info.json_etag(), &content),
                _ => Ok(json(StatusCode::OK, &resource(shared, &info))),
            }
        }
        // https://cloud.google.com/storage/docs/json_api/v1/objects/delete
        Method::DELETE => {
            shared.store().delete(&shared.bucket, key, generation, caller, &conditions)?;
            Ok(status(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::not_implemented(call.method.as_str())),
    }
}

/// <https://cloud.google.com/storage/docs/json_api/v1/buckets#resource>
fn get_bucket(shared: &Shared, caller: &Caller) -> Result<Response, Refusal> {
    if !caller.permissions.bucket {
        return Err(Refusal::forbidden(&caller.email, "buckets.get"));
    }
    let bucket = &shared.bucket;
    Ok(json(
        StatusCode::OK,
        &json!({
            "kind": "storage#bucket", "id": bucket, "name": bucket, "selfLink": format!("{}/storage/v1/b/{bucket}", shared.url),
            "projectNumber": "100000000000", "metageneration": "1", "location": "EU", "locationType": "multi-region", "storageClass": "STANDARD",
            "etag": "CAE=", "timeCreated": iso_date(shared.started), "updated": iso_date(shared.started),
            "iamConfiguration": { "uniformBucketLevelAccess": { "enabled": true }, "publicAccessPrevention": "enforced" },
        }),
    ))
}

/// <https://cloud.google.com/storage/docs/json_api/v1/objects/list>
fn list(shared: &Shared, call: &Call, caller: &Caller) -> Result<Response, Refusal> {
    if !caller.permissions.list {
        return Err(Refusal::forbidden(&caller.email, "objects.list"));
    }
    let query = &call.query;
    let listing = Listing {
        prefix: query.get("prefix").unwrap_or_default(),
        delimiter: query.filled("delimiter"),
        after: query.filled("pageToken").map(Marker::parse).transpose()?,
        floor: query.get("startOffset").unwrap_or_default(),
        ceiling: query.filled("endOffset"),
        max: shared.page(query.number("maxResults")?.unwrap_or(LIST_MAX)),
        above: None,
    };
    let page = shared.store().list(&listing);
    let mut answer = Map::new();
    answer.insert("kind".into(), "storage#objects".into());
    // What would be empty is left out.
    if !page.objects.is_empty() {
        answer.insert("items".into(), page.objects.iter().map(|info| resource(shared, info)).collect());
    }
    if !page.prefixes.is_empty() {
        answer.insert("prefixes".into(), page.prefixes.into());
    }
    if let Some(next) = page.next {
        answer.insert("nextPageToken".into(), next.token().into());
    }
    Ok(json(StatusCode::OK, &answer.into()))
}

/// <https://cloud.google.com/storage/docs/json_api/v1/objects#resource>: numbers of 64 bits are strings.
pub(super) fn resource(shared: &Shared, info: &ObjectInfo) -> Value {
    let (bucket, key, created) = (&shared.bucket, &info.key, iso_date(info.created));
    let encoded = utf8_percent_encode(key, NON_ALPHANUMERIC);
    let mut value = json!({
        "kind": "storage#object",
        "id": format!("{bucket}/{key}/{}", info.generation),
        "selfLink": format!("{}/storage/v1/b/{bucket}/o/{encoded}", shared.url),
        "mediaLink": format!("{}/download/storage/v1/b/{bucket}/o/{encoded}?generation={}&alt=media", shared.url, info.generation),
        "name": key,
        "bucket": bucket,
        "generation": info.generation.to_string(),
        "metageneration": info.metageneration.to_string(),
        "contentType": info.description.content_type,
        "storageClass": info.description.storage_class,
        "size": info.size_bytes.to_string(),
        "crc32c": info.checksums.crc32c_base64(),
        "etag": info.json_etag(),
        "timeCreated": created,
        "updated": created,
        "timeStorageClassUpdated": created,
    });
    if let Some(fields) = value.as_object_mut() {
        if let Some(md5) = info.checksums.md5_base64() {
            fields.insert("md5Hash".into(), md5.into());
        }
        if let Some(parts) = info.parts {
            fields.insert("componentCount".into(), parts.into());
        }
        for (field, text) in &info.description.standard {
            fields.insert((*field).into(), text.as_str().into());
        }
        if !info.description.metadata.is_empty() {
            fields.insert("metadata".into(), json!(info.description.metadata));
        }
    }
    value
}

/// Answers an upload. `rest` is what follows `/upload/storage/v1/b/`.
///
/// <https://cloud.google.com/storage/docs/json_api/v1/objects/insert>
pub(super) async fn upload(shared: &Shared, call: &mut Call, rest: &str) -> Response {
    // Whoever has a session's address needs nothing else.
    if let Some(id) = call.query.get("upload_id").map(str::to_owned) {
        return resumable::session(shared, call, &id).await;
    }
    insert(shared, call, rest).await.unwrap_or_else(Refusal::into_json)
}

async fn insert(shared: &Shared, call: &mut Call, rest: &str) -> Result<Response, Refusal> {
    let caller = shared.caller(call)?;
    let (bucket, rest) = split_path(rest)?;
    if bucket != shared.bucket {
        return Err(Refusal::no_such_bucket());
    }
    if call.method != Method::POST || rest != "o" {
        return Err(not_found());
    }
    match call.query.get("uploadType") {
        Some("resumable") => resumable::start(shared, call, caller).await,
        Some("media") => insert_media(shared, call, &caller).await,
        Some("multipart") => insert_multipart(shared, call, &caller).await,
        _ => Err(Refusal::invalid_argument("Upload requests must have an uploadType of media, multipart or resumable.")),
    }
}

/// What a request says of the object it is about to upload.
pub(super) struct Announcement {
    pub(super) key: String,
    pub(super) description: Description,
    pub(super) declared: Declared,
}

/// Reads the resource that comes with an upload. The name may stand in the query instead, and then counts.
pub(super) fn announcement(call: &Call, resource: &[u8], content_type: Option<&str>) -> Result<Announcement, Refusal> {
    let fields = match resource {
        b"" => Map::new(),
        text => serde_json::from_slice(text).map_err(|_| Refusal::bad_request("InvalidArgument", "Parse Error"))?,
    };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Refusal::invalid_argument(format!("Invalid value for: {name}"))),
    };
    let key = call.query.filled("name").map(str::to_owned).map_or_else(|| text("name"), |name| Ok(Some(name)))?;
    let key = key.unwrap_or_default();
    check_name(&key)?;
    let mut description = Description::default();
    if let Some(content_type) = text("contentType")?.or_else(|| content_type.map(str::to_owned)) {
        description.content_type = content_type;
    }
    if let Some(class) = text("storageClass")? {
        description.storage_class = class;
    }
    for (_, field) in STANDARD_HEADERS {
        if let Some(value) = text(field)? {
            description.standard.insert(field, value);
        }
    }
    match fields.get("metadata") {
        None | Some(Value::Null) => (),
        Some(Value::Object(metadata)) => {
            for (name, value) in metadata {
                let value = value.as_str().ok_or_else(|| Refusal::invalid_argument(format!("Invalid value for: metadata.{name}")))?;
                description.metadata.insert(name.clone(), value.to_owned());
            }
        }
        Some(_) => return Err(Refusal::invalid_argument("Invalid value for: metadata")),
    }
    let declared = Declared { crc32c: text("crc32c")?, md5: text("md5Hash")? }.well_formed()?;
    // X-Goog-Hash stands for the same: https://cloud.google.com/storage/docs/data-validation
    let declared = Declared::of_headers(call)?.or(&declared);
    Ok(Announcement { key, description: description.check()?, declared })
}

/// An upload without metadata but a name.
///
/// <https://cloud.google.com/storage/docs/uploading-objects>
async fn insert_media(shared: &Shared, call: &mut Call, caller: &Caller) -> Result<Response, Refusal> {
    call.needs_length()?;
    let Announcement { key, description, declared } = announcement(call, b"", call.header(CONTENT_TYPE.as_str()))?;
    let conditions = Conditions::of_query(&call.query)?;
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
    let info = shared.store().write(Draft { key, description, content, checksums, parts: None }, caller, &conditions)?;
    Ok(json(StatusCode::OK, &resource(shared, &info)))
}

/// Metadata and content as two parts of one body.
///
/// <https://cloud.google.com/storage/docs/uploading-objects> (the JSON API's "multipart upload")
async fn insert_multipart(shared: &Shared, call: &mut Call, caller: &Caller) -> Result<Response, Refusal> {
    let malformed = || Refusal::bad_request("MalformedRequest", "Malformed multipart body.");
    let boundary = call.header(CONTENT_TYPE.as_str()).filter(|kind| kind.starts_with("multipart/related")).and_then(|kind| {
        let (_, boundary) = kind.split_once("boundary=")?;
        Some(boundary.split(';').next()?.trim().trim_matches(['"', '\'']).to_owned())
    });
    let delimiter = format!("\r\n--{}", boundary.ok_or_else(malformed)?).into_bytes();
    let mut buffer = BytesMut::from(&b"\r\n"[..]);
    read_past(call, &mut buffer, &delimiter).await?;
    read_past(call, &mut buffer, b"\r\n\r\n").await?;
    let metadata = read_past(call, &mut buffer, &delimiter).await?;
    let head = read_past(call, &mut buffer, b"\r\n\r\n").await?;
    let head = String::from_utf8_lossy(&head);
    let content_type = head.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-type")));
    let content_type = content_type.map(|(_, value)| value.trim());
    let Announcement { key, description, declared } = announcement(call, &metadata, content_type)?;
    let conditions = Conditions::of_query(&call.query)?;
    shared.store().may_write(&key, caller, &conditions)?;

    let finder = memmem::Finder::new(&delimiter);
    let mut sink = Sink::new();
    loop {
        if let Some(end) = finder.find(&buffer) {
            sink.write(&shared.folder, &buffer.split_to(end))?;
            break;
        }
        // What might be the beginning of the delimiter waits.
        let safe = buffer.len().saturating_sub(delimiter.len());
        sink.write(&shared.folder, &buffer.split_to(safe))?;
        buffer.extend_from_slice(&call.body.chunk().await.ok_or_else(malformed)?);
    }
    let (content, checksums) = sink.finish()?;
    declared.check(&checksums)?;
    let info = shared.store().write(Draft { key, description, content, checksums, parts: None }, caller, &conditions)?;
    Ok(json(StatusCode::OK, &resource(shared, &info)))
}

/// Takes everything up to `mark` out of the buffer, which is filled from the body, and the mark with it.
async fn read_past(call: &mut Call, buffer: &mut BytesMut, mark: &[u8]) -> Result<BytesMut, Refusal> {
    loop {
        if let Some(end) = memmem::find(buffer, mark) {
            let before = buffer.split_to(end);
            buffer.advance(mark.len());
            return Ok(before);
        }
        if buffer.len() > RESOURCE_BYTES_MAX {
            return Err(Refusal::bad_request("EntityTooLarge", "The request is too large."));
        }
        let bytes = call.body.chunk().await.ok_or_else(|| Refusal::bad_request("MalformedRequest", "Malformed multipart body."))?;
        buffer.extend_from_slice(&bytes);
    }
}
