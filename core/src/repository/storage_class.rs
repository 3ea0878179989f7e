//! Storage classes: which ones originals may go to.
//!
//! Names as the providers write them:
//! [S3](https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html),
//! [R2](https://developers.cloudflare.com/r2/buckets/storage-classes/),
//! [Google](https://cloud.google.com/storage/docs/storage-classes),
//! [Azure](https://learn.microsoft.com/azure/storage/blobs/access-tiers-overview).

use super::place::Place;
use super::vendor::Vendor;
use std::borrow::Cow;
use std::fmt;

/// A storage class of one provider whose objects can be read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageClass(Cow<'static, str>);

/// Why a text names no class that originals may go to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageClassError {
    /// What is in it cannot be read at once.
    #[error("what is in the storage class `{class}` has to be thawed before it can be read, and this version cannot thaw")]
    Archived {
        /// The class.
        class: &'static str,
        /// The cheapest one that can be read at once.
        instead: &'static str,
    },
    /// No such class there.
    #[error("{store} has no storage class `{class}`")]
    Unknown {
        /// What was given.
        class: String,
        /// The provider.
        store: &'static str,
        /// Those it has.
        known: &'static [&'static str],
    },
    /// Only object stores have classes.
    #[error("a directory has no storage classes")]
    Directory,
}

impl StorageClassError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Archived { instead, .. } => format!("take {instead}: it is cold, and readable at once"),
            Self::Unknown { known: [], .. } => "a class is letters, digits, `_` and `-`; ask whoever runs the store for its name".to_owned(),
            Self::Unknown { known, .. } => format!("take one of {}", known.join(", ")),
            Self::Directory => "leave --storage-class out".to_owned(),
        }
    }
}

const AMAZON: &[&str] = &["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"];
const CLOUDFLARE: &[&str] = &["STANDARD", "STANDARD_IA"];
const ONLY_STANDARD: &[&str] = &["STANDARD"];
const GOOGLE: &[&str] = &["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"];
const AZURE: &[&str] = &["Hot", "Cool", "Cold"];

/// Classes to be thawed, and what to take instead.
const AMAZON_ARCHIVED: &[(&str, &str)] = &[("GLACIER", "GLACIER_IR"), ("DEEP_ARCHIVE", "GLACIER_IR")];
const OTHER_ARCHIVED: &[(&str, &str)] = &[("GLACIER", "another class"), ("DEEP_ARCHIVE", "another class")];
const AZURE_ARCHIVED: &[(&str, &str)] = &[("Archive", "Cold")];

/// A class that the admin of a store made up goes into a header as it is.
const NAME_BYTES_MAX: usize = 64;

impl StorageClass {
    /// The classes that a provider has and that can be read at once, its own default first; empty where its admin names them.
    #[must_use]
    pub fn known(vendor: Vendor) -> &'static [&'static str] {
        match vendor {
            Vendor::Amazon => AMAZON,
            Vendor::Cloudflare => CLOUDFLARE,
            Vendor::Backblaze | Vendor::Wasabi | Vendor::Hetzner => ONLY_STANDARD,
            Vendor::Google => GOOGLE,
            Vendor::Azure => AZURE,
            Vendor::Directory | Vendor::OtherS3 => &[],
        }
    }

    /// The class of `place` that `text` names, however it is capitalised.
    ///
    /// # Errors
    /// There is none, or what is in it has to be thawed before it can be read.
    pub fn parse(place: &Place, text: &str) -> Result<Self, StorageClassError> {
        let vendor = Vendor::of(place);
        let archived = match vendor {
            Vendor::Directory => return Err(StorageClassError::Directory),
            Vendor::Amazon => AMAZON_ARCHIVED,
            Vendor::Azure => AZURE_ARCHIVED,
            Vendor::Backblaze | Vendor::Wasabi | Vendor::Cloudflare | Vendor::Hetzner | Vendor::OtherS3 => OTHER_ARCHIVED,
            Vendor::Google => &[],
        };
        let text = text.trim();
        if let Some(&(class, instead)) = archived.iter().find(|(class, _)| class.eq_ignore_ascii_case(text)) {
            return Err(StorageClassError::Archived { class, instead });
        }
        let known = Self::known(vendor);
        if let Some(class) = known.iter().find(|class| class.eq_ignore_ascii_case(text)) {
            return Ok(Self(Cow::Borrowed(class)));
        }
        let made_up = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if vendor == Vendor::OtherS3 && made_up {
            return Ok(Self(Cow::Owned(text.to_owned())));
        }
        Err(StorageClassError::Unknown { class: text.escape_debug().to_string(), store: vendor.name(), known })
    }

    /// The name that goes into the request.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What to know before using it.
    #[must_use]
    pub fn note(&self) -> Option<&'static str> {
        match self.as_str() {
            "INTELLIGENT_TIERING" => Some("leave its archive tiers off: what they hold has to be thawed before it can be read"),
            "ONEZONE_IA" => Some("objects of this class are kept in one data centre, and are lost with it"),
            _ => None,
        }
    }
}

impl fmt::Display for StorageClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(place: &str, text: &str) -> Result<String, StorageClassError> {
        StorageClass::parse(&Place::parse(place).unwrap(), text).map(|class| class.to_string())
    }

    #[test]
    fn a_class_is_written_as_its_provider_writes_it() {
        for (place, text, expected) in [
            ("s3://b", "glacier_ir", "GLACIER_IR"),
            ("s3://b", " Standard_IA ", "STANDARD_IA"),
            ("s3://b?endpoint=https://x.r2.cloudflarestorage.com", "standard_ia", "STANDARD_IA"),
            ("gs://b", "archive", "ARCHIVE"),
            ("az://c?account=a", "COLD", "Cold"),
            ("s3://b?endpoint=http://ceph:7480", "Slow-disks_2", "Slow-disks_2"),
        ] {
            assert_eq!(parse(place, text).as_deref(), Ok(expected), "{place} {text}");
        }
    }

    #[test]
    fn what_has_to_be_thawed_is_refused_with_a_remedy() {
        for (place, text, instead) in [
            ("s3://b", "Glacier", "GLACIER_IR"),
            ("s3://b", "DEEP_ARCHIVE", "GLACIER_IR"),
            ("az://c?account=a", "archive", "Cold"),
            ("s3://b?endpoint=http://ceph:7480", "GLACIER", "another class"),
        ] {
            let error = parse(place, text).unwrap_err();
            assert!(matches!(error, StorageClassError::Archived { .. }), "{place} {text}: {error}");
            assert!(error.hint().contains(instead), "{}", error.hint());
        }
    }

    #[test]
    fn what_is_unknown_is_refused_with_those_there_are() {
        for (place, text, hint) in [
            ("s3://b", "COLDLINE", "STANDARD_IA"),
            ("s3://b?endpoint=https://s3.eu-central-003.backblazeb2.com", "STANDARD_IA", "STANDARD"),
            ("gs://b", "cool", "NEARLINE"),
            ("az://c?account=a", "", "Hot, Cool, Cold"),
            ("s3://b?endpoint=http://ceph:7480", "a b", "letters"),
            ("s3://b?endpoint=http://ceph:7480", "", "letters"),
            ("/mnt/backup", "STANDARD", "leave --storage-class out"),
        ] {
            let error = parse(place, text).unwrap_err();
            assert!(error.hint().contains(hint), "{place} {text}: {error}: {}", error.hint());
        }
    }

    #[test]
    fn a_class_with_a_catch_says_so() {
        let place = Place::parse("s3://b").unwrap();
        let note = |class| StorageClass::parse(&place, class).unwrap().note();
        assert!(note("INTELLIGENT_TIERING").is_some() && note("ONEZONE_IA").is_some() && note("GLACIER_IR").is_none());
    }
}
