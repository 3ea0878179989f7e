use serde::{Serialize, Serializer};
use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// Bytes in the GB of all price lists, taken as decimal. Where a provider bills GiB the bill is up to 7 % lower.
pub const GB: u64 = 1_000_000_000;

/// An amount of money in billionths of the currency's unit, so that sums are exact. Shown, and given to programs, in cents.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Money(u128);

impl Money {
    /// What `count` requests cost at `price` millionths a thousand.
    #[must_use]
    pub fn of_requests(count: u64, price: u32) -> Self {
        Self(u128::from(count) * u128::from(price))
    }

    /// What `bytes` cost at `price` millionths a GB.
    #[must_use]
    pub fn of_bytes(bytes: u64, price: u32) -> Self {
        Self(u128::from(bytes) * u128::from(price) * 1_000 / u128::from(GB))
    }

    /// So many times this.
    #[must_use]
    pub fn times(self, count: u32) -> Self {
        Self(self.0 * u128::from(count))
    }

    /// Rounded to whole cents.
    #[must_use]
    pub fn cents(self) -> u64 {
        u64::try_from((self.0 + 5_000_000) / 10_000_000).unwrap_or(u64::MAX)
    }
}

impl Add for Money {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl Sum for Money {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cents = self.cents();
        write!(f, "{}.{:02}", cents / 100, cents % 100)
    }
}

impl Serialize for Money {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.cents())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_exact_until_it_is_shown() {
        // 0.0004 for a thousand requests.
        assert_eq!(Money::of_requests(1_000_000, 400).to_string(), "0.40");
        assert_eq!(Money::of_requests(12, 400).to_string(), "0.00");
        assert_eq!((0..1_000).map(|_| Money::of_requests(12, 400)).sum::<Money>(), Money::of_requests(12_000, 400));
        // 0.023 for a GB and month.
        assert_eq!(Money::of_bytes(1_500 * GB, 23_000).times(12).to_string(), "414.00");
        assert_eq!(Money(4_999_999).cents(), 0);
        assert_eq!(Money(5_000_000).cents(), 1);
    }
}
