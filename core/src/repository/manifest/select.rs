//! Which snapshot a person means.

use super::{Manifest, ManifestError, SnapshotRow};
use jiff::Timestamp;
use std::str::FromStr;

/// `latest`, the beginning of an id, or a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest one.
    Latest,
    /// The one whose id begins so.
    Id(String),
    /// The newest one that was taken at that time or before.
    At(Timestamp),
}

impl FromStr for Selector {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "latest" {
            return Ok(Self::Latest);
        }
        // An id may look like a day without hyphens; a day with them is no id.
        let time = if text.contains('-') { local_time(text) } else { None };
        Ok(text.parse().ok().or(time).map_or_else(|| Self::Id(text.to_ascii_lowercase()), Self::At))
    }
}

/// A time of this machine's zone; a day means its end.
fn local_time(text: &str) -> Option<Timestamp> {
    let day = text.parse::<jiff::civil::Date>().ok().filter(|_| !text.contains(':'));
    let time = day.map(|day| day.at(23, 59, 59, 999_999_999)).or_else(|| text.parse().ok())?;
    Some(time.to_zoned(jiff::tz::TimeZone::system()).ok()?.timestamp())
}

/// No snapshot fits.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// There is none at all.
    #[error("there is no snapshot yet")]
    Empty,
    /// None fits.
    #[error("no snapshot fits `{0}`")]
    None(String),
    /// Several fit.
    #[error("`{0}` fits {1} snapshots")]
    Several(String, usize),
    /// The manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl SelectError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Empty => Some("run `immich-backup backup` first"),
            Self::None(_) => Some("`immich-backup snapshots` shows ids and times; a time means the newest snapshot taken by then"),
            Self::Several(..) => Some("give more digits of the id"),
            Self::Manifest(_) => None,
        }
    }
}

impl Manifest {
    /// The snapshot that `selector` means.
    ///
    /// # Errors
    /// None or several fit.
    pub fn select(&self, selector: &Selector) -> Result<SnapshotRow, SelectError> {
        let mut snapshots = self.snapshots()?;
        if snapshots.is_empty() {
            return Err(SelectError::Empty);
        }
        let text = match selector {
            Selector::Latest => "latest".to_owned(),
            Selector::Id(start) => {
                snapshots.retain(|snapshot| {
                    !start.is_empty() && (snapshot.id.to_string().starts_with(start) || snapshot.id.0.simple().to_string().starts_with(start))
                });
                if snapshots.len() > 1 {
                    return Err(SelectError::Several(start.clone(), snapshots.len()));
                }
                start.clone()
            }
            Selector::At(time) => {
                snapshots.retain(|snapshot| snapshot.fact.taken_at <= *time);
                time.to_string()
            }
        };
        snapshots.pop().ok_or(SelectError::None(text))
    }
}
