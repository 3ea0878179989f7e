//! The bucket: live objects in the order of their names, and what each name ever held.

use super::auth::Caller;
use super::content::{Checksums, Content};
use super::http::{Call, Query};
use super::refusal::Refusal;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use hyper::StatusCode;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// An object name's length in UTF-8: <https://cloud.google.com/storage/docs/objects#naming>.
const NAME_BYTES_MAX: usize = 1024;

/// All custom metadata of an object, names and values: <https://cloud.google.com/storage/quotas#objects>.
const METADATA_BYTES_MAX: usize = 8 * 1024;

/// <https://cloud.google.com/storage/docs/storage-classes>, without the legacy ones.
const STORAGE_CLASSES: [&str; 4] = ["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];

/// Headers that become metadata, and what the JSON API calls them.
pub(super) const STANDARD_HEADERS: [(&str, &str); 4] = [
    ("cache-control", "cacheControl"),
    ("content-disposition", "contentDisposition"),
    ("content-encoding", "contentEncoding"),
    ("content-language", "contentLanguage"),
];

/// What a request says of the object it makes.
#[derive(Clone, Debug)]
pub struct Description {
    /// The media type, `application/octet-stream` where none was given.
    pub content_type: String,
    /// One of `STANDARD`, `NEARLINE`, `COLDLINE` and `ARCHIVE`; the bucket's default is `STANDARD`.
    pub storage_class: String,
    /// Custom metadata.
    pub metadata: BTreeMap<String, String>,
    /// Cache-Control and its like, under the JSON API's names (`cacheControl`).
    pub standard: BTreeMap<&'static str, String>,
}

impl Default for Description {
    fn default() -> Self {
        Self { content_type: "application/octet-stream".into(), storage_class: "STANDARD".into(), metadata: BTreeMap::new(), standard: BTreeMap::new() }
    }
}

impl Description {
    /// Whether class and metadata are possible.
    pub(super) fn check(self) -> Result<Self, Refusal> {
        if !STORAGE_CLASSES.contains(&self.storage_class.as_str()) {
            let message = format!("The storage class you specified is not valid: {}", self.storage_class);
            return Err(Refusal::bad_request("InvalidStorageClass", message));
        }
        if self.metadata.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > METADATA_BYTES_MAX {
            return Err(Refusal::bad_request("MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size."));
        }
        Ok(self)
    }
}

/// An object, or one that was.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// The name within the bucket.
    pub key: String,
    /// Microseconds since 1970, and larger than every one before.
    pub generation: u64,
    /// Changes of metadata; there is no request for one here, so it stays 1.
    pub metageneration: u64,
    /// The content's length.
    pub size_bytes: u64,
    /// Checksums of what was uploaded.
    pub checksums: Checksums,
    /// The number of parts it was assembled from, if it was.
    pub parts: Option<u32>,
    /// When it was made.
    pub created: Timestamp,
    /// Class, media type, metadata.
    pub description: Description,
}

impl ObjectInfo {
    /// Returns the XML API's `ETag`: the MD5 in hexadecimal, quoted. An object without one gets a tag that cannot be taken for one.
    ///
    /// <https://cloud.google.com/storage/docs/metadata#etags>
    pub(super) fn xml_etag(&self) -> String {
        match self.checksums.md5 {
            Some(md5) => format!("\"{}\"", hex::encode(md5)),
            None => format!("\"-{}\"", self.json_etag()),
        }
    }

    pub(super) fn json_etag(&self) -> String {
        BASE64_STANDARD.encode([self.generation.to_le_bytes(), self.metageneration.to_le_bytes()].concat())
    }
}

struct Object {
    info: ObjectInfo,
    content: Arc<Content>,
}

/// An object that is about to be.
pub(super) struct Draft {
    pub(super) key: String,
    pub(super) description: Description,
    pub(super) content: Content,
    pub(super) checksums: Checksums,
    pub(super) parts: Option<u32>,
}

/// Conditions on generation and metageneration.
///
/// <https://cloud.google.com/storage/docs/request-preconditions>
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Conditions {
    generation: Option<u64>,
    not_generation: Option<u64>,
    metageneration: Option<u64>,
    not_metageneration: Option<u64>,
}

impl Conditions {
    pub(super) fn of_query(query: &Query) -> Result<Self, Refusal> {
        Ok(Self {
            generation: query.number("ifGenerationMatch")?,
            not_generation: query.number("ifGenerationNotMatch")?,
            metageneration: query.number("ifMetagenerationMatch")?,
            not_metageneration: query.number("ifMetagenerationNotMatch")?,
        })
    }

    pub(super) fn of_headers(call: &Call) -> Result<Self, Refusal> {
        let number = |name: &str| {
            let parse = |value: &str| value.parse().map_err(|_| Refusal::invalid_argument(format!("Invalid value for {name}: {value}")));
            call.header(name).map(parse).transpose()
        };
        Ok(Self { generation: number("x-goog-if-generation-match")?, metageneration: number("x-goog-if-metageneration-match")?, ..Self::default() })
    }

    /// Generation 0 stands for "no live object".
    fn check(&self, live: Option<&ObjectInfo>) -> Result<(), Refusal> {
        let generation = live.map_or(0, |object| object.generation);
        let metageneration = live.map_or(0, |object| object.metageneration);
        if self.generation.is_some_and(|wanted| wanted != generation) {
            return Err(Refusal::precondition("x-goog-if-generation-match"));
        }
        if self.metageneration.is_some_and(|wanted| wanted != metageneration) {
            return Err(Refusal::precondition("x-goog-if-metageneration-match"));
        }
        if self.not_generation == Some(generation) || self.not_metageneration == Some(metageneration) {
            return Err(Refusal::precondition("ifGenerationNotMatch"));
        }
        Ok(())
    }

    /// Like `check`, for a read: that the object is the one already known is no failure there.
    pub(super) fn check_read(&self, live: &ObjectInfo) -> Result<(), Refusal> {
        if self.not_generation == Some(live.generation) || self.not_metageneration == Some(live.metageneration) {
            return Err(Refusal::new(StatusCode::NOT_MODIFIED, "NotModified", "notModified", "Not modified"));
        }
        self.check(Some(live))
    }
}

#[derive(Default)]
pub(super) struct Store {
    objects: BTreeMap<String, Object>,
    history: HashMap<String, Vec<ObjectInfo>>,
    last_generation: u64,
}

impl Store {
    /// Whether `caller` may write `key` now. Rights are looked at first: one that may not overwrite learns that, and not whether its
    /// condition held.
    ///
    /// <https://cloud.google.com/storage/docs/access-control/iam-json>: inserting takes `storage.objects.create`, and
    /// `storage.objects.delete` where an object of that name exists.
    pub(super) fn may_write(&self, key: &str, caller: &Caller, conditions: &Conditions) -> Result<(), Refusal> {
        if !caller.permissions.create {
            return Err(Refusal::forbidden(&caller.email, "objects.create"));
        }
        let live = self.objects.get(key).map(|object| &object.info);
        if live.is_some() && !caller.permissions.delete {
            return Err(Refusal::forbidden(&caller.email, "objects.delete"));
        }
        conditions.check(live)
    }

    /// Makes the object, if `caller` still may.
    pub(super) fn write(&mut self, draft: Draft, caller: &Caller, conditions: &Conditions) -> Result<ObjectInfo, Refusal> {
        self.may_write(&draft.key, caller, conditions)?;
        Ok(self.put(draft))
    }

    pub(super) fn put(&mut self, draft: Draft) -> ObjectInfo {
        let created = Timestamp::now();
        self.last_generation = u64::try_from(created.as_microsecond()).unwrap_or_default().max(self.last_generation + 1);
        let info = ObjectInfo {
            key: draft.key.clone(),
            generation: self.last_generation,
            metageneration: 1,
            size_bytes: draft.content.size_bytes(),
            checksums: draft.checksums,
            parts: draft.parts,
            created,
            description: draft.description,
        };
        self.history.entry(draft.key.clone()).or_default().push(info.clone());
        self.objects.insert(draft.key, Object { info: info.clone(), content: Arc::new(draft.content) });
        info
    }

    pub(super) fn get(&self, key: &str) -> Option<(ObjectInfo, Arc<Content>)> {
        self.objects.get(key).map(|object| (object.info.clone(), Arc::clone(&object.content)))
    }

    /// Returns an object to whoever may read it. That a name has no object is only told to those who could find out by listing: the
    /// reference leaves it open, the service is known to answer 403.
    pub(super) fn read(&self, bucket: &str, key: &str, generation: Option<u64>, caller: &Caller) -> Result<(ObjectInfo, Arc<Content>), Refusal> {
        if !caller.permissions.get {
            return Err(Refusal::forbidden(&caller.email, "objects.get"));
        }
        match self.get(key).filter(|(info, _)| generation.is_none_or(|wanted| wanted == info.generation)) {
            Some(found) => Ok(found),
            None if caller.permissions.list => Err(Refusal::no_such_key(bucket, key)),
            None => Err(Refusal::forbidden(&caller.email, "objects.list")),
        }
    }

    pub(super) fn delete(&mut self, bucket: &str, key: &str, generation: Option<u64>, caller: &Caller, conditions: &Conditions) -> Result<(), Refusal> {
        if !caller.permissions.delete {
            return Err(Refusal::forbidden(&caller.email, "objects.delete"));
        }
        let live = self.objects.get(key).map(|object| &object.info).filter(|info| generation.is_none_or(|wanted| wanted == info.generation));
        let live = live.ok_or_else(|| Refusal::no_such_key(bucket, key))?;
        conditions.check(Some(live))?;
        self.objects.remove(key);
        Ok(())
    }

    /// Takes an object away, whoever asks.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.objects.remove(key).is_some()
    }

    /// Puts other bytes in the place of an object's, which still calls itself the same.
    pub(super) fn swap(&mut self, key: &str, content: Content) -> bool {
        let Some(object) = self.objects.get_mut(key) else { return false };
        object.info.size_bytes = content.size_bytes();
        object.content = Arc::new(content);
        true
    }

    pub(super) fn history(&self, key: &str) -> &[ObjectInfo] {
        self.history.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn keys(&self) -> Vec<String> {
        self.objects.keys().cloned().collect()
    }

    pub(super) fn list(&self, listing: &Listing<'_>) -> Page {
        let mut page = Page::default();
        let mut last = None;
        // The highest of the lower ends counts.
        let floor = listing.floor.max(listing.prefix);
        let mut from = Bound::Included(floor.to_owned());
        if let Some(above) = listing.above.filter(|above| *above >= floor) {
            from = Bound::Excluded(above.to_owned());
        }
        let end = match &listing.after {
            Some(Marker::Key(key)) => Some(Bound::Excluded(key.clone())),
            Some(Marker::Prefix(prefix)) => Some(Bound::Included(past(prefix))),
            None => None,
        };
        if let (Some(Bound::Included(next) | Bound::Excluded(next)), Bound::Included(least) | Bound::Excluded(least)) = (&end, &from)
            && next >= least
        {
            from = end.unwrap_or(Bound::Unbounded);
        }
        'names: loop {
            for (key, object) in self.objects.range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded)) {
                let Some(rest) = key.strip_prefix(listing.prefix) else { break 'names };
                if listing.ceiling.is_some_and(|ceiling| key.as_str() >= ceiling) {
                    break 'names;
                }
                if page.objects.len() + page.prefixes.len() == listing.max {
                    page.next = last;
                    break 'names;
                }
                let common = listing.delimiter.filter(|delimiter| !delimiter.is_empty()).and_then(|delimiter| {
                    let (head, _) = rest.split_once(delimiter)?;
                    Some(format!("{}{head}{delimiter}", listing.prefix))
                });
                if let Some(common) = common {
                    // All names below it are one entry; the next look-up begins behind them.
                    from = Bound::Included(past(&common));
                    last = Some(Marker::Prefix(common.clone()));
                    page.prefixes.push(common);
                    continue 'names;
                }
                last = Some(Marker::Key(key.clone()));
                page.objects.push(object.info.clone());
            }
            break;
        }
        page
    }
}

/// Returns a name behind all that begin with `prefix`. (None of them goes on with the last of all characters.)
fn past(prefix: &str) -> String {
    format!("{prefix}{}", char::MAX)
}

/// What to list. Names come in the order of their UTF-8 bytes: <https://cloud.google.com/storage/docs/listing-objects>.
#[derive(Default)]
pub(super) struct Listing<'a> {
    pub(super) prefix: &'a str,
    pub(super) delimiter: Option<&'a str>,
    /// Where the page before ended.
    pub(super) after: Option<Marker>,
    /// Names above this one (`start-after`).
    pub(super) above: Option<&'a str>,
    /// This name and those above (`startOffset`).
    pub(super) floor: &'a str,
    /// Names below this one (`endOffset`).
    pub(super) ceiling: Option<&'a str>,
    pub(super) max: usize,
}

#[derive(Default)]
pub(super) struct Page {
    pub(super) objects: Vec<ObjectInfo>,
    pub(super) prefixes: Vec<String>,
    /// The last entry, if there are more.
    pub(super) next: Option<Marker>,
}

/// The last entry of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    Key(String),
    Prefix(String),
}

impl Marker {
    /// Tokens are opaque, so this one looks like nothing.
    pub(super) fn token(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(match self {
            Self::Key(key) => format!("k{key}"),
            Self::Prefix(prefix) => format!("p{prefix}"),
        })
    }

    pub(super) fn parse(token: &str) -> Result<Self, Refusal> {
        let bad = || Refusal::invalid_argument("Invalid page token");
        let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?).map_err(|_| bad())?;
        match (text.strip_prefix('k'), text.strip_prefix('p')) {
            (Some(key), _) => Ok(Self::Key(key.to_owned())),
            (_, Some(prefix)) => Ok(Self::Prefix(prefix.to_owned())),
            _ => Err(bad()),
        }
    }
}

/// Whether an object may be called `key`: <https://cloud.google.com/storage/docs/objects#naming>.
pub(super) fn check_name(key: &str) -> Result<(), Refusal> {
    if key.is_empty() {
        return Err(Refusal::bad_request("InvalidObjectName", "Required parameter: name"));
    }
    if key.len() > NAME_BYTES_MAX {
        return Err(Refusal::bad_request(
            "KeyTooLong",
            format!("The maximum object length is {NAME_BYTES_MAX} bytes, but got a name with {} bytes.", key.len()),
        ));
    }
    if key.contains(['\r', '\n']) || matches!(key, "." | "..") || key.starts_with(".well-known/acme-challenge/") {
        return Err(Refusal::bad_request("InvalidObjectName", format!("Disallowed object name: {key:?}")));
    }
    Ok(())
}

/// Checksums a sender gave of what it sends.
#[derive(Clone, Debug, Default)]
pub(super) struct Declared {
    pub(super) crc32c: Option<String>,
    pub(super) md5: Option<String>,
}

impl Declared {
    /// Reads `x-goog-hash`, which may stand more than once and may hold several sums, and `Content-MD5`.
    ///
    /// <https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash>
    pub(super) fn of_headers(call: &Call) -> Result<Self, Refusal> {
        let mut declared = Self { crc32c: None, md5: call.header("content-md5").map(str::to_owned) };
        for header in call.headers.get_all("x-goog-hash") {
            let text = header.to_str().map_err(|_| Refusal::invalid_digest(""))?;
            for sum in text.split(',').map(str::trim).filter(|sum| !sum.is_empty()) {
                match sum.split_once('=') {
                    Some(("crc32c", value)) => declared.crc32c = Some(value.to_owned()),
                    Some(("md5", value)) => declared.md5 = Some(value.to_owned()),
                    _ => return Err(Refusal::invalid_digest(sum)),
                }
            }
        }
        declared.well_formed()
    }

    /// Whether each sum has the form and length of one.
    pub(super) fn well_formed(self) -> Result<Self, Refusal> {
        for (sum, length) in [(&self.crc32c, 4), (&self.md5, 16)] {
            if let Some(text) = sum
                && BASE64_STANDARD.decode(text).map(|sum| sum.len()) != Ok(length)
            {
                return Err(Refusal::invalid_digest(text));
            }
        }
        Ok(self)
    }

    /// What the last request says counts more than what the first said.
    pub(super) fn or(self, earlier: &Self) -> Self {
        Self { crc32c: self.crc32c.or_else(|| earlier.crc32c.clone()), md5: self.md5.or_else(|| earlier.md5.clone()) }
    }

    pub(super) fn check(&self, computed: &Checksums) -> Result<(), Refusal> {
        let crc32c = computed.crc32c_base64();
        if let Some(given) = self.crc32c.as_ref().filter(|given| **given != crc32c) {
            return Err(Refusal::bad_crc32c(given, &crc32c));
        }
        let md5 = computed.md5_base64().unwrap_or_default();
        if let Some(given) = self.md5.as_ref().filter(|given| **given != md5) {
            return Err(Refusal::bad_md5(given, &md5));
        }
        Ok(())
    }
}
