//! Paths as the log, the manifest, keys and the screen write them: one canonical text for each sequence of bytes.
//!
//! A path keeps its bytes but for these, which are percent-encoded (`%` and two upper-case hex digits a byte):
//! `%` itself, `\` (Azure takes it for `/`), control characters, U+FFFE and U+FFFF (XML listings cannot carry them), bytes that
//! are not UTF-8, and a dot at the end of a segment (Azure drops it; `.` and `..` fall under it). Decoding accepts the
//! canonical text only, so the map is one to one, and what came from a store cannot smuggle in another spelling.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Why a text is not a path below a root.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPath {
    /// Nothing between two slashes, at the start or at the end.
    #[error("the path `{0}` has an empty segment")]
    Empty(String),
    /// `.`, `..` or NUL, also when encoded.
    #[error("the path `{0}` would lead outside")]
    Outside(String),
    /// Not what encoding its bytes gives.
    #[error("the path `{0}` is not in canonical form")]
    NotCanonical(String),
    /// Not a name for an external library.
    #[error("`{0}` is no name for an external library: 1 to 64 letters, digits, `.`, `_` or `-`, beginning and ending with a letter or digit")]
    ExternalName(String),
}

fn must_encode(character: char) -> bool {
    character == '%' || character == '\\' || character.is_control() || matches!(character, '\u{FFFE}' | '\u{FFFF}')
}

fn push_encoded(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push('%');
        text.push_str(&hex::encode_upper([*byte]));
    }
}

/// The canonical text of one path segment (no `/` inside). Borrows where nothing has to be encoded.
#[must_use]
pub fn encode_segment(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.ends_with('.')
        && !text.chars().any(must_encode)
    {
        return Cow::Borrowed(text);
    }
    let (body, last_dot) = match bytes.split_last() {
        Some((b'.', body)) => (body, true),
        _ => (bytes, false),
    };
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in body.utf8_chunks() {
        for character in chunk.valid().chars() {
            if must_encode(character) {
                push_encoded(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(character);
            }
        }
        push_encoded(&mut text, chunk.invalid());
    }
    if last_dot {
        text.push_str("%2E");
    }
    Cow::Owned(text)
}

/// The bytes that `text` stands for, without asking whether it is canonical. `None` at a malformed `%`.
#[must_use]
pub fn decode_text(text: &str) -> Option<Cow<'_, [u8]>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text.as_bytes()));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'%' {
            let (digits, tail) = rest.split_first_chunk::<2>()?;
            let mut byte = [0];
            hex::decode_to_slice(digits, &mut byte).ok()?;
            bytes.push(byte[0]);
            rest = tail;
        } else {
            bytes.push(first);
        }
    }
    Some(Cow::Owned(bytes))
}

/// A path below a root, in canonical text: never empty, absolute, or leading outside.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RootPath(String);

impl RootPath {
    /// The path of these raw bytes.
    ///
    /// # Errors
    /// Empty segments, `.`, `..` and NUL are refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidPath> {
        let mut text = String::with_capacity(bytes.len());
        for segment in bytes.split(|byte| *byte == b'/') {
            if !text.is_empty() {
                text.push('/');
            }
            let encoded = encode_segment(segment);
            if segment.is_empty() {
                return Err(InvalidPath::Empty(String::from_utf8_lossy(bytes).into_owned()));
            }
            if matches!(segment, b"." | b"..") || segment.contains(&0) {
                return Err(InvalidPath::Outside(encoded.into_owned()));
            }
            text.push_str(&encoded);
        }
        Ok(Self(text))
    }

    /// The path that `text` is the canonical text of.
    ///
    /// # Errors
    /// Anything that [`Self::from_bytes`] could not have written.
    pub fn parse(text: &str) -> Result<Self, InvalidPath> {
        let bytes = decode_text(text).ok_or_else(|| InvalidPath::NotCanonical(text.to_owned()))?;
        let path = Self::from_bytes(&bytes)?;
        if path.0 == text { Ok(path) } else { Err(InvalidPath::NotCanonical(text.to_owned())) }
    }

    /// The path of the file `name` (canonical text) in `folder` (canonical text, empty for the root).
    #[must_use]
    pub fn in_folder(folder: &str, name: &str) -> Self {
        debug_assert!(!name.contains('/') && !name.is_empty());
        if folder.is_empty() { Self(name.to_owned()) } else { Self(format!("{folder}/{name}")) }
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Folder (empty for the root) and name, both canonical text.
    #[must_use]
    pub fn split(&self) -> (&str, &str) {
        self.0.rsplit_once('/').unwrap_or(("", &self.0))
    }

    /// The path relative to `folder`; `None` where it does not lie below that.
    #[must_use]
    pub fn below(&self, folder: &Self) -> Option<Self> {
        self.0.strip_prefix(&folder.0)?.strip_prefix('/').map(|rest| Self(rest.to_owned()))
    }

    /// The path as the file system knows it, relative to the root.
    #[must_use]
    pub fn to_path(&self) -> PathBuf {
        // Canonical text always decodes; were it not so, the text itself is a harmless relative path.
        let bytes = decode_text(&self.0).map_or_else(|| self.0.as_bytes().to_vec(), Cow::into_owned);
        PathBuf::from(OsString::from_vec(bytes))
    }
}

impl TryFrom<String> for RootPath {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<RootPath> for String {
    fn from(path: RootPath) -> Self {
        path.0
    }
}

impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name under which an external library is kept: `[A-Za-z0-9._-]`, at most 64, no dot at either end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExternalName(String);

impl ExternalName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExternalName {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let good = text.len() <= 64 && text.chars().all(inner) && edge(text.chars().next()) && edge(text.chars().last());
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidPath::ExternalName(encode_segment(text.as_bytes()).into_owned())) }
    }
}

impl TryFrom<String> for ExternalName {
    type Error = InvalidPath;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ExternalName> for String {
    fn from(name: ExternalName) -> Self {
        name.0
    }
}

impl fmt::Display for ExternalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a path is relative to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Root {
    /// Immich's media location.
    Library,
    /// An external library beside it.
    External(ExternalName),
    /// What lays the stack: its Compose file, its `.env`.
    Config,
    /// PostgreSQL's folder, as files; only ever read while PostgreSQL is stopped. The dump does not need it.
    Postgres,
}

/// How the manifest names the roots that are no libraries: `%` begins no name of an external library.
const CONFIG: &str = "%config";
/// See [`CONFIG`].
const POSTGRES: &str = "%postgres";

impl Root {
    /// How the manifest writes it: the name of the external library, empty for the media location, `%config`, `%postgres`.
    #[must_use]
    pub fn name_in_manifest(&self) -> &str {
        match self {
            Self::Library => "",
            Self::External(name) => name.as_str(),
            Self::Config => CONFIG,
            Self::Postgres => POSTGRES,
        }
    }

    /// The inverse of [`Self::name_in_manifest`].
    ///
    /// # Errors
    /// A text that is no external library's name.
    pub fn from_name_in_manifest(text: &str) -> Result<Self, InvalidPath> {
        match text {
            "" => Ok(Self::Library),
            CONFIG => Ok(Self::Config),
            POSTGRES => Ok(Self::Postgres),
            name => name.parse().map(Self::External),
        }
    }

    /// Whether Immich keeps its files there: the media location and external libraries. All else is beside them, and nothing of it is proven.
    #[must_use]
    pub fn is_of_immich(&self) -> bool {
        matches!(self, Self::Library | Self::External(_))
    }
}

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library => f.write_str("the library"),
            Self::External(name) => write!(f, "the external library `{name}`"),
            Self::Config => f.write_str("the stack's configuration"),
            Self::Postgres => f.write_str("PostgreSQL's folder"),
        }
    }
}

/// A file of one of the roots.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FilePath {
    /// What the path is relative to.
    pub root: Root,
    /// The path below it.
    pub path: RootPath,
}

/// As people see it: `upload/…` in the media location, `external/<name>/…`, `config/…`, `postgres/…` elsewhere.
impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.root {
            Root::Library => self.path.fmt(f),
            Root::External(name) => write!(f, "external/{name}/{}", self.path),
            Root::Config => write!(f, "config/{}", self.path),
            Root::Postgres => write!(f, "postgres/{}", self.path),
        }
    }
}

impl Serialize for FilePath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for FilePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_text(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl FilePath {
    /// The file that is shown as `text`. A folder `external` or `config` of the media location is shown like another root, and read as one:
    /// what comes of it is for the eye, and never opened.
    ///
    /// # Errors
    /// As [`RootPath::from_bytes`].
    pub fn from_text(text: &str) -> Result<Self, InvalidPath> {
        let outside = text.strip_prefix("external/").and_then(|rest| rest.split_once('/')).and_then(|(name, path)| Some((name.parse().ok()?, path)));
        let (root, path) = match outside {
            Some((name, path)) => (Root::External(name), path),
            None => [("config/", Root::Config), ("postgres/", Root::Postgres)]
                .into_iter()
                .find_map(|(prefix, root)| Some((root, text.strip_prefix(prefix)?)))
                .unwrap_or((Root::Library, text)),
        };
        Ok(Self { root, path: path.to_owned().try_into()? })
    }

    /// A file of the media location.
    #[must_use]
    pub fn library(path: RootPath) -> Self {
        Self { root: Root::Library, path }
    }
}

impl RootPath {
    /// The path of `relative`, as a walk found it.
    ///
    /// # Errors
    /// As [`Self::from_bytes`].
    pub fn from_path(relative: &Path) -> Result<Self, InvalidPath> {
        Self::from_bytes(relative.as_os_str().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn odd_names_have_the_documented_text() {
        for (bytes, text) in [
            (&b"a b'\xF0\x9F\x93\xB7#~.jpg"[..], "a b'📷#~.jpg"),
            (b"100%.jpg", "100%25.jpg"),
            (b"%0A\n", "%250A%0A"),
            (b"\xFFx", "%FFx"),
            (b"end.", "end%2E"),
            (b"back\\slash", "back%5Cslash"),
            ("c1\u{85}".as_bytes(), "c1%C2%85"),
        ] {
            assert_eq!(encode_segment(bytes), text);
        }
    }

    #[test]
    fn what_leads_outside_is_refused_in_every_spelling() {
        for text in [
            "",
            "/etc/passwd",
            "a//b",
            "a/",
            "..",
            "../x",
            "a/../../x",
            "%2E%2E/x",
            ".%2E/x",
            "a/%2E",
            "a%00b",
            "a%2Fb",
            "%2e%2e/x",
            "a%zz",
            "a%2",
            "a%41",
            "a\nb",
            "x.",
        ] {
            assert!(RootPath::parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn names_of_external_libraries_are_plain() {
        assert!("nas-photos_2.old".parse::<ExternalName>().is_ok());
        for bad in ["", ".", "..", "a/b", "-a", "a.", "ü", "a b", "%41"] {
            assert!(bad.parse::<ExternalName>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn text_and_bytes_are_one_to_one(segments in prop::collection::vec(prop::collection::vec(any::<u8>().prop_filter("separator", |b| *b != b'/' && *b != 0), 1..12), 1..5)) {
            prop_assume!(segments.iter().all(|s| s != b"." && s != b".."));
            let bytes = segments.join(&b'/');
            let path = RootPath::from_bytes(&bytes).unwrap();
            prop_assert_eq!(path.to_path().into_os_string().into_vec(), bytes);
            prop_assert_eq!(RootPath::parse(path.as_str()).unwrap(), path);
        }

        #[test]
        fn no_text_parses_to_the_bytes_of_another(text in "[a%.2E0F/\\\\é]{0,12}") {
            if let Ok(path) = RootPath::parse(&text) {
                let again = RootPath::from_path(&path.to_path()).unwrap();
                prop_assert_eq!(again.as_str(), text);
            }
        }
    }
}
