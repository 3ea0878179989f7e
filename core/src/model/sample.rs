use super::Sha256;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How much to look at: `200` (at least so many), `5%`, or `1/7`.
///
/// A sample is always one part of several of the same size, and successive samples take successive parts: seven runs of `1/7`
/// have looked at everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// At least this many, and less than twice as many.
    Count(u64),
    /// One of this many parts.
    OneOf(u64),
}

/// One part of a whole that was cut in `of` parts by hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// How many parts there are; at least 1.
    pub of: u64,
    /// Which one this is, from 0.
    pub part: u64,
}

impl Part {
    /// Everything.
    pub const ALL: Self = Self { of: 1, part: 0 };

    /// Whether the thing called `name` belongs to this part.
    #[must_use]
    pub fn has(self, name: &str) -> bool {
        self.of <= 1 || Self::at(self.of, Self::position(name)) == self
    }

    /// Where the thing called `name` lies in the whole: the first 8 bytes of its SHA-256, big-endian.
    #[must_use]
    pub fn position(name: &str) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = Sha256::of(name.as_bytes()).0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// The one of `of` parts in which everything at `position` lies: the position modulo `of`.
    #[must_use]
    pub fn at(of: u64, position: u64) -> Self {
        Self { of, part: position.checked_rem(of).unwrap_or(0) }
    }
}

impl Sample {
    /// How many parts `total` things are cut into.
    #[must_use]
    pub fn parts(self, total: u64) -> u64 {
        match self {
            Self::Count(count) => power_of_two_within(total / count.max(1)),
            Self::OneOf(of) => of.max(1),
        }
    }
}

/// The largest power of two that is not above `number`; 1 for 0. The number of parts stays the same until the whole has doubled.
fn power_of_two_within(number: u64) -> u64 {
    1 << number.max(1).ilog2()
}

/// A text that is no sample.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no sample; write a count (`200`), a share (`5%`) or a part (`1/7`)")]
pub struct InvalidSample(pub String);

impl FromStr for Sample {
    type Err = InvalidSample;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidSample(text.to_owned());
        let positive = |digits: &str| digits.parse::<u64>().ok().filter(|number| *number > 0).ok_or_else(invalid);
        if let Some(share) = text.strip_suffix('%') {
            let share: f64 = share.parse().map_err(|_| invalid())?;
            if !(share > 0.0 && share <= 100.0) {
                return Err(invalid());
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number, and `as` saturates")]
            Ok(Self::OneOf(((100.0 / share).round() as u64).max(1)))
        } else if let Some((one, of)) = text.split_once('/') {
            if one == "1" { positive(of).map(Self::OneOf) } else { Err(invalid()) }
        } else {
            positive(text).map(Self::Count)
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::OneOf(of) => write!(f, "1/{of}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_count_a_share_or_a_part() {
        assert_eq!("200".parse(), Ok(Sample::Count(200)));
        assert_eq!("5%".parse(), Ok(Sample::OneOf(20)));
        assert_eq!("100%".parse(), Ok(Sample::OneOf(1)));
        assert_eq!("1/7".parse(), Ok(Sample::OneOf(7)));
        for bad in ["", "0", "-1", "0%", "101%", "2/7", "1/0", "x", "1/", "%", "NaN%"] {
            assert!(bad.parse::<Sample>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn the_parts_together_are_everything_once() {
        for of in [1, 2, 7, 20] {
            for name in (0..500).map(|n| format!("library/{n}")) {
                assert_eq!((0..of).filter(|part| Part { of, part: *part }.has(&name)).count(), 1);
            }
        }
        assert_eq!([1_000, 1_599, 1_600, 399].map(|total| Sample::Count(200).parts(total)), [4, 4, 8, 1]);
        assert_eq!(Sample::Count(200).parts(0), 1);
    }
}
