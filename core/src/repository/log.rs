//! The log: numbered entries, each written once, that say what the repository holds. It is the truth; all else is made from it.

mod append;
mod chain;
mod entry;
mod fact;
mod read;
mod walk;

pub use append::{Appended, Author, append, create};
pub use chain::{Chain, Listing, Opening, chain_after, chain_until, opening, openings};
pub use entry::{DamagedEntry, Entry, Header, encode};
pub use fact::{
    Beside, Claimed, Counts, Damaged, DrillOutcome, Drilled, DumpFact, Ended, EpochFact, Fact, Listed, ManifestCopy, Outcome, PathFact, Pruned, Read, Rejected,
    Relocated, RunStarted, ShardDone, SnapshotFact, Sound, SourceRoot, Start, StoredFact, Subject, Tally, Totals, Unread,
};
pub use read::{Head, Heads, LogError, entry_after, read_entry};
pub use walk::Walk;

/// The format of repository that this program writes and reads.
pub const FORMAT: u32 = 1;
