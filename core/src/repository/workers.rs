//! How many files a run has in hand at once.

use super::store::Store;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

/// What a disk, or a store beside this machine, is kept busy by.
const NEAR: usize = 4;

/// More than these gain nothing that was measured; with 64 the memory that a run takes is known (docs/reliability.md).
pub const WORKERS_MAX: usize = 64;

/// More than these nobody can ask for.
const ASKED_MAX: usize = 256;

/// A worker waits for at least one round trip for each file. In such a time another one could read, hash and send a small file that was all of a
/// millisecond's work; and a line that is far takes several round trips until a file of some hundred KiB is through.
const FOR_EACH: Duration = Duration::from_micros(500);

/// How many files a run has in hand at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// So many.
    Exactly(NonZeroUsize),
    /// Few on a disk, many where the store answers late.
    ByDistance,
}

/// Neither `auto` nor a number from 1 to 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("say `auto`, or a number from 1 to {ASKED_MAX}")]
pub struct InvalidWorkers;

impl FromStr for Workers {
    type Err = InvalidWorkers;

    fn from_str(text: &str) -> Result<Self, InvalidWorkers> {
        if text == "auto" {
            return Ok(Self::ByDistance);
        }
        text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= ASKED_MAX).map(Self::Exactly).ok_or(InvalidWorkers)
    }
}

impl Workers {
    /// How many there are for `store`, as far as it is known by now.
    #[must_use]
    pub fn count(self, store: &dyn Store) -> usize {
        self.at(store.capabilities().round_trip)
    }

    fn at(self, round_trip: Option<Duration>) -> usize {
        match self {
            Self::Exactly(count) => count.get(),
            Self::ByDistance => {
                let more = round_trip.unwrap_or_default().as_micros() / FOR_EACH.as_micros();
                usize::try_from(more).unwrap_or(WORKERS_MAX).saturating_add(NEAR).min(WORKERS_MAX)
            }
        }
    }

    /// How many there are for what is done on this machine alone.
    #[must_use]
    pub fn local(self) -> usize {
        match self {
            Self::Exactly(count) => count.get(),
            Self::ByDistance => NEAR,
        }
    }

    /// The most there can be.
    #[must_use]
    pub fn max(self) -> usize {
        match self {
            Self::Exactly(count) => count.get(),
            Self::ByDistance => WORKERS_MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_number_and_auto_depends_on_the_distance() {
        for text in ["0", "257", "-1", "", "many", "Auto"] {
            assert_eq!(text.parse::<Workers>(), Err(InvalidWorkers), "{text}");
        }
        for (text, round_trip_ms, count, local, max) in [
            ("7", Some(500), 7, 7, 7),
            ("256", None, 256, 256, 256),
            ("auto", None, 4, 4, 64),
            ("auto", Some(0), 4, 4, 64),
            ("auto", Some(1), 6, 4, 64),
            ("auto", Some(20), 44, 4, 64),
            ("auto", Some(u64::MAX), 64, 4, 64),
        ] {
            let workers: Workers = text.parse().unwrap();
            assert_eq!(
                (workers.at(round_trip_ms.map(Duration::from_millis)), workers.local(), workers.max()),
                (count, local, max),
                "{text}, {round_trip_ms:?}"
            );
        }
    }
}
