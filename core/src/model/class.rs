use serde::{Deserialize, Serialize};

/// Whether Immich could make a file again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Immich cannot make it again: what an asset row names, its sidecar, a profile image, anything unknown.
    Original,
    /// Immich can make it again: thumbnails, transcoded videos.
    Derived,
    /// The `.immich` file that tells a mounted folder from an empty mount point.
    Marker,
}

impl Class {
    /// All classes, in the order in which they are shown.
    pub const ALL: [Self; 3] = [Self::Original, Self::Derived, Self::Marker];

    /// The name used in the log, the manifest and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Derived => "derived",
            Self::Marker => "marker",
        }
    }
}
