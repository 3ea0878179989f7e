//! Whose store a place is in: classes, prices and rights differ by that.

use super::place::{Place, S3Place};
use url::Url;

/// Who keeps the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// Nobody but oneself.
    Directory,
    /// Amazon S3.
    Amazon,
    /// Backblaze B2.
    Backblaze,
    /// Wasabi.
    Wasabi,
    /// Cloudflare R2.
    Cloudflare,
    /// Hetzner Object Storage.
    Hetzner,
    /// Any other store that speaks S3: a server of one's own, or a provider that is not known by its host's name.
    OtherS3,
    /// Google Cloud Storage.
    Google,
    /// Azure Blob Storage.
    Azure,
}

/// How the hosts of endpoints end.
const HOSTS: [(&str, Vendor); 6] = [
    ("amazonaws.com", Vendor::Amazon),
    ("amazonaws.com.cn", Vendor::Amazon),
    ("backblazeb2.com", Vendor::Backblaze),
    ("wasabisys.com", Vendor::Wasabi),
    ("r2.cloudflarestorage.com", Vendor::Cloudflare),
    ("your-objectstorage.com", Vendor::Hetzner),
];

impl Vendor {
    /// The provider of a place, told by its kind and its endpoint's host.
    #[must_use]
    pub fn of(place: &Place) -> Self {
        match place {
            Place::Directory(_) => Self::Directory,
            Place::S3(place) => Self::of_s3(place),
            Place::Gcs(_) => Self::Google,
            Place::Azure(_) => Self::Azure,
        }
    }

    fn of_s3(place: &S3Place) -> Self {
        let Some(endpoint) = &place.endpoint else { return Self::Amazon };
        let host = Url::parse(endpoint).ok().and_then(|url| url.host_str().map(str::to_ascii_lowercase)).unwrap_or_default();
        let ends = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        HOSTS.iter().find(|(domain, _)| ends(domain)).map_or(Self::OtherS3, |(_, provider)| *provider)
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Directory => "a directory",
            Self::Amazon => "Amazon S3",
            Self::Backblaze => "Backblaze B2",
            Self::Wasabi => "Wasabi",
            Self::Cloudflare => "Cloudflare R2",
            Self::Hetzner => "Hetzner Object Storage",
            Self::OtherS3 => "this S3 store",
            Self::Google => "Google Cloud Storage",
            Self::Azure => "Azure Blob Storage",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_known_by_its_host_and_not_by_what_looks_like_it() {
        for (text, expected) in [
            ("/mnt/backup", Vendor::Directory),
            ("s3://b", Vendor::Amazon),
            ("s3://b?endpoint=https://s3.eu-central-1.amazonaws.com", Vendor::Amazon),
            ("s3://b?endpoint=https://s3.cn-north-1.amazonaws.com.cn", Vendor::Amazon),
            ("s3://b?endpoint=https://s3.eu-central-003.backblazeb2.com", Vendor::Backblaze),
            ("s3://b?endpoint=s3.eu-central-1.wasabisys.com", Vendor::Wasabi),
            ("s3://b?endpoint=https://0123abcd.eu.r2.cloudflarestorage.com", Vendor::Cloudflare),
            ("s3://b?endpoint=https://fsn1.your-objectstorage.com", Vendor::Hetzner),
            ("s3://b?endpoint=https://notamazonaws.com", Vendor::OtherS3),
            ("s3://b?endpoint=https://amazonaws.com.example.org", Vendor::OtherS3),
            ("s3://b?endpoint=http://127.0.0.1:9000", Vendor::OtherS3),
            ("gs://b", Vendor::Google),
            ("az://c/p?account=a", Vendor::Azure),
        ] {
            assert_eq!(Vendor::of(&Place::parse(text).unwrap()), expected, "{text}");
        }
    }
}
