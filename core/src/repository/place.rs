//! The URL of a repository: which store, and where in it.

use super::key::Key;
use std::fmt;
use std::path::{Path, PathBuf};
use url::Url;

/// Where a repository is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A directory: a path, or `file:///path`.
    Directory(PathBuf),
    /// `s3://bucket/prefix?endpoint=…&region=…`
    S3(S3Place),
    /// `gs://bucket/prefix?endpoint=…`
    Gcs(GcsPlace),
    /// `az://container/prefix?account=…&endpoint=…`
    Azure(AzurePlace),
}

/// Where a repository is in a bucket of S3, or of a store that speaks S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// What all keys begin with: empty, or segments without a `/` at either end.
    pub prefix: String,
    /// Where the store is, as `https://host:port`; Amazon's own where it is not said.
    pub endpoint: Option<String>,
    /// The region; where it is not said, that of the environment or the profile.
    pub region: Option<String>,
    /// `style=virtual|path`: the bucket in the host's name, or in the path. Where it is not said: in the host's name at Amazon, in the path elsewhere.
    pub virtual_hosted: Option<bool>,
    /// `checksum=off`: the store refuses `x-amz-checksum-sha256`. Content is then verified by MD5, and by its signature.
    pub checksum: bool,
    /// `payload=unsigned`: the store wants `UNSIGNED-PAYLOAD`.
    pub signed_payload: bool,
    /// `metadata=off`: the store refuses user metadata.
    pub metadata: bool,
}

/// Where a repository is in a bucket of Google Cloud Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcsPlace {
    /// The bucket.
    pub bucket: String,
    /// As [`S3Place::prefix`].
    pub prefix: String,
    /// Where the store is; Google's own where it is not said.
    pub endpoint: Option<String>,
}

/// Where a repository is in a container of Azure Blob Storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AzurePlace {
    /// The container.
    pub container: String,
    /// As [`S3Place::prefix`].
    pub prefix: String,
    /// The storage account; where it is not said, that of the environment (`AZURE_STORAGE_ACCOUNT_NAME`).
    pub account: Option<String>,
    /// Where the store is; `https://<account>.blob.core.windows.net` where it is not said.
    pub endpoint: Option<String>,
}

/// Why a text names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// No such kind of store.
    #[error("cannot use `{url}` as repository: it is no path, and begins with none of s3://, gs://, az:// and file:///")]
    UnknownKind {
        /// The URL, without secrets.
        url: String,
    },
    /// It cannot be understood.
    #[error("cannot use `{url}` as repository: {problem}")]
    Malformed {
        /// The URL, without secrets.
        url: String,
        /// What is wrong.
        problem: String,
    },
}

/// The URL as it may be shown: it may carry credentials before an `@` or after a `?`.
#[must_use]
pub fn without_secrets(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => url.to_owned(),
    }
}

impl Place {
    /// Understands a repository's URL or path.
    ///
    /// # Errors
    /// It names no place that this program can use.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let unknown = || PlaceError::UnknownKind { url: without_secrets(text) };
        // One spelling for one place, whatever slashes it is written with.
        let directory = |path: &str| Self::Directory(Path::new(path).components().collect());
        match text.split_once("://") {
            None if !text.is_empty() => Ok(directory(text)),
            Some(("file", path)) if path.starts_with('/') => Ok(directory(path)),
            Some((scheme @ ("s3" | "gs" | "az"), _)) => {
                Self::in_store(scheme, text).map_err(|problem| PlaceError::Malformed { url: without_secrets(text), problem })
            }
            _ => Err(unknown()),
        }
    }

    fn in_store(scheme: &str, text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|error| error.to_string())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials do not belong into the URL; docs/stores.md says where they are taken from".to_owned());
        }
        if url.port().is_some() || url.fragment().is_some() {
            return Err(format!("write it as {scheme}://bucket/prefix; a server of your own goes into ?endpoint="));
        }
        let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or("it names no bucket")?.to_owned();
        let prefix = percent_encoding::percent_decode_str(url.path()).decode_utf8().map_err(|_| "its prefix is not UTF-8")?;
        let prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            Key::parse(&prefix).map_err(|_| format!("its prefix `{}` has an empty, `.` or `..` segment, or control characters", prefix.escape_debug()))?;
        }
        let mut options = Options::read(&url)?;
        let place = match scheme {
            "s3" => Self::S3(S3Place {
                bucket,
                prefix,
                endpoint: options.endpoint()?,
                region: options.take("region"),
                virtual_hosted: options.choice("style", "virtual", "path")?,
                checksum: options.choice("checksum", "on", "off")?.unwrap_or(true),
                signed_payload: options.choice("payload", "signed", "unsigned")?.unwrap_or(true),
                metadata: options.choice("metadata", "on", "off")?.unwrap_or(true),
            }),
            "gs" => Self::Gcs(GcsPlace { bucket, prefix, endpoint: options.endpoint()? }),
            _ => Self::Azure(AzurePlace { container: bucket, prefix, account: options.take("account"), endpoint: options.endpoint()? }),
        };
        options.finish()?;
        Ok(place)
    }
}

/// The address of a server, in one spelling and without credentials.
///
/// # Errors
/// It is none; in words that do not repeat it.
pub fn endpoint(text: &str) -> Result<String, String> {
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let url = Url::parse(&text).map_err(|error| format!("its endpoint: {error}"))?;
    let plain = matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty() && url.password().is_none() && url.query().is_none();
    if plain { Ok(url.as_str().trim_end_matches('/').to_owned()) } else { Err("its endpoint has to look like https://host:port".to_owned()) }
}

/// What stands after the `?`.
struct Options(Vec<(String, String)>);

impl Options {
    fn read(url: &Url) -> Result<Self, String> {
        let mut options: Vec<(String, String)> = Vec::new();
        for (name, value) in url.query_pairs() {
            if options.iter().any(|(other, _)| *other == name) {
                return Err(format!("it says `{name}` twice"));
            }
            options.push((name.into_owned(), value.into_owned()));
        }
        Ok(Self(options))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.remove(at).1).filter(|value| !value.is_empty())
    }

    /// One of two words: true for the first.
    fn choice(&mut self, name: &str, yes: &str, no: &str) -> Result<Option<bool>, String> {
        match self.take(name).as_deref() {
            None => Ok(None),
            Some(word) if word == yes => Ok(Some(true)),
            Some(word) if word == no => Ok(Some(false)),
            Some(_) => Err(format!("`{name}` is {yes} or {no}")),
        }
    }

    fn endpoint(&mut self) -> Result<Option<String>, String> {
        self.take("endpoint").map(|text| endpoint(&text)).transpose()
    }

    /// What is left has a name that is unknown; its value may be a secret, and is not repeated.
    fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(format!("`{}` is none of its options; docs/stores.md has them all", name.escape_debug())),
        }
    }
}

/// The one spelling of the place, without secrets: `Place::parse` takes it again.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket, prefix) = match self {
            Self::Directory(path) => return write!(f, "{}", path.display()),
            Self::S3(place) => ("s3", &place.bucket, &place.prefix),
            Self::Gcs(place) => ("gs", &place.bucket, &place.prefix),
            Self::Azure(place) => ("az", &place.container, &place.prefix),
        };
        // `%` and what ends a path have to be written so that they are read as themselves.
        const KEPT: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%').add(b'?').add(b'#').add(b' ');
        write!(f, "{scheme}://{bucket}")?;
        if !prefix.is_empty() {
            write!(f, "/{}", percent_encoding::utf8_percent_encode(prefix, KEPT))?;
        }
        let mut separator = '?';
        for (name, value) in self.options() {
            const VALUE: &percent_encoding::AsciiSet = &KEPT.add(b'&').add(b'+');
            write!(f, "{separator}{name}={}", percent_encoding::utf8_percent_encode(&value, VALUE))?;
            separator = '&';
        }
        Ok(())
    }
}

impl Place {
    /// What is not as it is by default.
    fn options(&self) -> Vec<(&'static str, String)> {
        let named = |name: &'static str, value: &Option<String>| value.clone().map(|value| (name, value));
        let set = |name: &'static str, said: bool, value: &str| said.then(|| (name, value.to_owned()));
        let options = match self {
            Self::Directory(_) => Vec::new(),
            Self::S3(place) => vec![
                named("endpoint", &place.endpoint),
                named("region", &place.region),
                place.virtual_hosted.map(|yes| ("style", if yes { "virtual" } else { "path" }.to_owned())),
                set("checksum", !place.checksum, "off"),
                set("payload", !place.signed_payload, "unsigned"),
                set("metadata", !place.metadata, "off"),
            ],
            Self::Gcs(place) => vec![named("endpoint", &place.endpoint)],
            Self::Azure(place) => vec![named("account", &place.account), named("endpoint", &place.endpoint)],
        };
        options.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let place = Place::parse(text).unwrap();
        assert_eq!(Place::parse(&place.to_string()).unwrap(), place, "{place}");
        place.to_string()
    }

    #[test]
    fn a_place_has_one_spelling() {
        for (text, expected) in [
            ("/mnt//backup/", "/mnt/backup"),
            ("file:///mnt/backup/", "/mnt/backup"),
            ("s3://bucket", "s3://bucket"),
            ("s3://Bucket_1//a/b//", "s3://Bucket_1/a/b"),
            ("s3://b/a%20b/%C3%A9?region=eu-central-1", "s3://b/a%20b/%C3%A9?region=eu-central-1"),
            ("s3://b/p?region=r&endpoint=s3.example.com", "s3://b/p?endpoint=https://s3.example.com&region=r"),
            ("s3://b?endpoint=http://127.0.0.1:9000/&style=path", "s3://b?endpoint=http://127.0.0.1:9000&style=path"),
            ("s3://b?checksum=off&payload=unsigned&metadata=on", "s3://b?checksum=off&payload=unsigned"),
            ("gs://b/immich", "gs://b/immich"),
            ("az://c/immich?account=me", "az://c/immich?account=me"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_secrets_are_not() {
        for (text, expected) in [
            ("", "no path"),
            ("ftp://host/x", "begins with none of"),
            ("file://relative", "begins with none of"),
            ("s3:///prefix", "no bucket"),
            ("s3://b/a//../c", ""),
            ("s3://b/a//c", "empty"),
            ("s3://key:HIDDEN@b/p", "credentials do not belong"),
            ("s3://b/p?secret_access_key=HIDDEN", "`secret_access_key` is none"),
            ("s3://b/p?region=a&region=b", "`region` twice"),
            ("s3://b:9000/p", "?endpoint="),
            ("s3://b?style=HIDDEN", "virtual or path"),
            ("s3://b?endpoint=https://u:HIDDEN@h", "has to look like"),
        ] {
            match Place::parse(text) {
                Ok(place) => assert!(expected.is_empty(), "{text} was taken as {place}"),
                Err(error) => assert!(error.to_string().contains(expected) && !error.to_string().contains("HIDDEN"), "{text}: {error}"),
            }
        }
    }
}
