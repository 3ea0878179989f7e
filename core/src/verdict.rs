//! What the proof says of the things that a dump names: the words, and the tallies that a snapshot keeps.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What is known of one asset, or of one file that no asset names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Bytes are stored whose SHA-1 is the one that Immich recorded.
    Proven,
    /// Bytes are stored, but Immich has no checksum of the content (external libraries).
    Unprovable,
    /// It lies in an external library that is not part of the backup, or at a place that belongs to no root.
    Outside,
    /// Immich itself says that the file is gone: a row of an external library that is marked as offline, and nothing is there.
    Offline,
    /// Bytes are stored for its path, and their SHA-1 is another than Immich recorded; the right ones are stored nowhere.
    Mismatched,
    /// Nothing is there for its path, and its content stands nowhere.
    Missing,
    /// A file that no row of the dump names.
    Untracked,
}

/// What a row of the dump names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Thing {
    /// An asset's original file: photo, video, the video part of a motion photo.
    Asset,
    /// The `.xmp` beside an asset.
    Sidecar,
    /// A user's profile picture.
    Profile,
    /// What Immich can make again: thumbnails, previews, transcoded videos, faces.
    Derived,
}

/// How many things that have no checksum are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Named by the dump, and stored.
    pub present: u64,
    /// Named by the dump, and not stored.
    pub missing: u64,
}

impl Presence {
    /// Counts one more.
    pub fn count(&mut self, present: bool) {
        if present {
            self.present += 1;
        } else {
            self.missing += 1;
        }
    }
}

/// One thing that is worth naming.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVerdict {
    /// What is known of it.
    pub verdict: Verdict,
    /// What it is; absent for a file that no row names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thing: Option<Thing>,
    /// As people see it: `upload/…`, `external/<name>/…`, or the path as the dump has it, where that belongs to no root.
    pub path: String,
    /// The asset, for assets and their sidecars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asset: Option<Uuid>,
    /// Whether the repository has the right content all the same, though it does not stand in the snapshot (archived, or an earlier version).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
}

/// How many of the proven and unprovable assets were looked at in one way, and how long ago the one that was looked at longest ago.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Age {
    /// Assets that were looked at so.
    pub assets: u64,
    /// When the oldest of these looks was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<Timestamp>,
}

impl Age {
    /// Counts one more asset, last looked at at this time.
    pub fn add(&mut self, at: Timestamp) {
        self.assets += 1;
        self.oldest = Some(self.oldest.map_or(at, |oldest| oldest.min(at)));
    }
}

/// How it is known that the bytes are there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ages {
    /// Recorded: the store took them, and verified them as they arrived.
    pub recorded: Age,
    /// Seen: the object was in a listing, with its size.
    pub listed: Age,
    /// Read back: every byte was compared.
    pub read: Age,
}

/// The result of a proof. `assets` is the sum of the six verdicts that speak of assets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Rows of the asset table.
    pub assets: u64,
    /// See [`Verdict::Proven`].
    pub proven: u64,
    /// Of these, assets whose bytes stand at another path than the dump says: moved since, and found by their SHA-1.
    #[serde(default)]
    pub moved: u64,
    /// See [`Verdict::Unprovable`].
    pub unprovable: u64,
    /// See [`Verdict::Outside`].
    pub outside: u64,
    /// See [`Verdict::Offline`].
    #[serde(default)]
    pub offline: u64,
    /// See [`Verdict::Mismatched`].
    pub mismatched: u64,
    /// See [`Verdict::Missing`].
    pub missing: u64,
    /// Files that no row names; Immich's markers do not count.
    pub untracked: u64,
    /// Sidecars and profile pictures: Immich has no checksum of them.
    pub companions: Presence,
    /// What Immich can make again.
    pub derived: Presence,
    /// How it is known, and since when.
    pub ages: Ages,
    /// The first of each kind that is not well: at most [`crate::budget::PROOF_NAMED_MAX`] of each verdict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub named: Vec<NamedVerdict>,
}

impl Proof {
    /// Whether everything is there that the dump names and that Immich could not make again, and is what Immich recorded.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_complete_inside() && self.outside == 0
    }

    /// Whether that is so of all that lies in the roots of the backup; what lies outside is left out on purpose.
    #[must_use]
    pub fn is_complete_inside(&self) -> bool {
        self.mismatched == 0 && self.missing == 0 && self.companions.missing == 0
    }

    /// What leads every report: `proven 93 of 93, 4 external`. The second number is that of the assets that should be proven: those that are neither external
    /// nor known to Immich as gone. What is wrong follows: `proven 91 of 93, 1 mismatched, 1 missing, 4 external`.
    #[must_use]
    pub fn headline(&self) -> String {
        let provable = self.proven + self.mismatched + self.missing;
        let counts = [
            (self.mismatched, "mismatched"),
            (self.missing, "missing"),
            (self.companions.missing, if self.companions.missing == 1 { "sidecar or picture missing" } else { "sidecars or pictures missing" }),
            (self.unprovable, "external"),
            (self.outside, "outside"),
            (self.offline, "offline"),
        ];
        let mut text = if self.assets == 0 { "no assets".to_owned() } else { format!("proven {} of {provable}", self.proven) };
        for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
            text.push_str(&format!(", {count} {what}"));
        }
        text
    }
}
