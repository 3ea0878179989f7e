//! The log: numbered entries, each written once, that say what the repository holds. It is the truth; all else is made from it.

mod append;
mod entry;
mod fact;
mod read;

pub use append::{Appended, Author, append};
pub use entry::{DamagedEntry, Entry, Header, encode};
pub use fact::{
    Beside, Claimed, Counts, Damaged, DrillOutcome, Drilled, DumpFact, Ended, Fact, Listed, ManifestCopy, Outcome, PathFact, Pruned, Read, RunStarted,
    ShardDone, SnapshotFact, Sound, SourceRoot, Start, StoredFact, Subject, Tally, Totals, Unread,
};
pub use read::{Head, Heads, LogError, entry_after, listed_entries, listed_until, read_entry};

/// The format of repository that this program writes and reads.
pub const FORMAT: u32 = 1;
