//! How often a password may be tried: each address waits longer after each failure, and all strangers together have so many attempts: those of the internet, and
//! those of the networks around, which nobody from outside can use up.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An address may fail so often before it has to wait.
const FREE_FAILURES: u32 = 3;
/// The first wait; it doubles with each failure.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// The longest.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Failures of an address are forgotten when there were none for so long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3_600);
/// Addresses that are remembered; with one more, the one that was seen longest ago is not.
const ADDRESSES_MAX: usize = 4_096;
/// Attempts of all who have never logged in, at once ...
const STRANGERS_MAX: u32 = 30;
/// ... and how often there is one more.
const STRANGER_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
struct Seen {
    failures: u32,
    last: Instant,
    /// Whether the right password ever came from there.
    is_friend: bool,
}

impl Seen {
    /// When the next attempt may be.
    fn next(&self) -> Instant {
        match self.failures.checked_sub(FREE_FAILURES) {
            None => self.last,
            Some(doublings) => self.last + FIRST_WAIT.saturating_mul(1 << doublings.min(20)).min(WAIT_MAX),
        }
    }
}

#[derive(Debug)]
struct State {
    addresses: HashMap<IpAddr, Seen>,
    far: Bucket,
    near: Bucket,
}

/// Attempts that strangers have together.
#[derive(Debug)]
struct Bucket {
    left: u32,
    refilled: Instant,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { left: STRANGERS_MAX, refilled: now }
    }

    /// Takes one, if there is any.
    fn take(&mut self, now: Instant) -> bool {
        let more = now.saturating_duration_since(self.refilled).as_secs() / STRANGER_EVERY.as_secs();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        // What is left of a span counts for the next one.
        self.refilled = self.refilled.checked_add(STRANGER_EVERY.saturating_mul(more)).unwrap_or(now);
        self.left = STRANGERS_MAX.min(self.left.saturating_add(more));
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Counts attempts.
#[derive(Debug)]
pub struct Limiter(Mutex<State>);

impl Limiter {
    /// One that has seen nobody.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(State { addresses: HashMap::new(), far: Bucket::new(now), near: Bucket::new(now) }))
    }

    /// Takes an attempt of `address`.
    ///
    /// # Errors
    /// It has to wait for so long first.
    pub fn begin(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let address = group(address);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = state.addresses.get(&address).copied().unwrap_or(Seen { failures: 0, last: now, is_friend: false });
        if now.saturating_duration_since(seen.last) >= FORGOTTEN_AFTER {
            // A friend stays one.
            seen.failures = 0;
        }
        if let Some(wait) = seen.next().checked_duration_since(now).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        if !seen.is_friend {
            let bucket = if is_near(address) { &mut state.near } else { &mut state.far };
            if !bucket.take(now) {
                return Err(STRANGER_EVERY);
            }
        }
        // It has failed until it is known that it has not: several at once are several.
        (seen.failures, seen.last) = (seen.failures.saturating_add(1), now);
        state.keep(address, seen);
        Ok(())
    }

    /// The attempt of `address` had the right password.
    pub fn succeeded(&self, address: IpAddr, now: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.keep(group(address), Seen { failures: 0, last: now, is_friend: true });
    }

    /// The attempt of `address` was not looked at.
    pub fn withdrawn(&self, address: IpAddr) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = state.addresses.get_mut(&group(address)) {
            seen.failures = seen.failures.saturating_sub(1);
        }
    }
}

impl State {
    fn keep(&mut self, address: IpAddr, seen: Seen) {
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&address) {
            // Friends go last: whoever comes from many addresses must not make them strangers.
            let oldest = self.addresses.iter().min_by_key(|(_, seen)| (seen.is_friend, seen.last)).map(|(address, _)| *address);
            oldest.and_then(|address| self.addresses.remove(&address));
        }
        self.addresses.insert(address, seen);
    }
}

/// Whether the address is of this machine or of a network around it: no route of the internet leads there.
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.to_bits() >> 64 == 0 || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

/// Who has one address of IPv6 has 2^64 of them.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn whoever_fails_waits_longer_each_time_and_whoever_did_not_is_let_in_at_once() {
        let start = Instant::now();
        let limiter = Limiter::new(start);
        let (thief, owner) = (at("192.0.2.1"), at("192.0.2.2"));
        let (mut now, mut taken) = (start, 0);
        // 10,000 attempts, ten a second.
        for _ in 0..10_000 {
            taken += u32::from(limiter.begin(thief, now).is_ok());
            now += Duration::from_millis(100);
        }
        assert!((8..=14).contains(&taken), "{taken} of 10,000 in 1,000 s");
        assert_eq!(limiter.begin(owner, now), Ok(()));
        limiter.succeeded(owner, now);
        assert_eq!(limiter.begin(owner, now), Ok(()), "no wait after a success");
        assert!(limiter.begin(thief, now).unwrap_err() <= WAIT_MAX);
        assert_eq!(limiter.begin(thief, now + FORGOTTEN_AFTER), Ok(()));
    }

    #[test]
    fn many_addresses_together_have_few_attempts_and_an_address_that_was_right_before_is_none_of_them() {
        let start = Instant::now();
        let limiter = Limiter::new(start);
        let owner = at("198.51.100.7");
        assert_eq!(limiter.begin(owner, start), Ok(()));
        limiter.succeeded(owner, start);
        let mut taken = 0;
        for number in 0..10_000_u32 {
            let now = start + Duration::from_millis(u64::from(number));
            taken += u32::from(limiter.begin(IpAddr::from((0x0B00_0000 + number).to_be_bytes()), now).is_ok());
        }
        assert!(taken <= STRANGERS_MAX + 6, "{taken}");
        assert_eq!(limiter.begin(owner, start + Duration::from_secs(10)), Ok(()));
        assert!(limiter.0.lock().unwrap().addresses.len() <= ADDRESSES_MAX);
        // Whoever is near has attempts of their own, which are as few.
        let near = (0..100_u8).filter(|last| limiter.begin(IpAddr::from([192, 168, 0, *last]), start + Duration::from_secs(10)).is_ok()).count();
        assert_eq!(near, STRANGERS_MAX as usize);
        // A stranger who has the right password is let in as soon as there is room.
        let later = start + Duration::from_secs(12) + STRANGER_EVERY;
        assert_eq!(limiter.begin(at("203.0.113.9"), later), Ok(()));
    }

    #[test]
    fn what_a_friend_mistyped_is_forgotten_after_an_hour_and_the_friend_is_not() {
        let start = Instant::now();
        let (limiter, owner) = (Limiter::new(start), at("198.51.100.7"));
        assert_eq!(limiter.begin(owner, start), Ok(()));
        limiter.succeeded(owner, start);
        // Two mistakes a month, as long as somebody lives.
        let mut now = start;
        for _ in 0..100 {
            now += FORGOTTEN_AFTER * 360;
            assert_eq!((limiter.begin(owner, now), limiter.begin(owner, now)), (Ok(()), Ok(())));
        }
        // Strangers have used up what they have: a friend needs none of it.
        now += FORGOTTEN_AFTER;
        for number in 0..100_u8 {
            limiter.begin(IpAddr::from([203, 0, 113, number]), now).ok();
        }
        assert!(limiter.begin(at("203.0.113.200"), now).is_err());
        assert_eq!(limiter.begin(owner, now), Ok(()));
    }

    #[test]
    fn attempts_come_back_at_their_pace_however_often_one_asks() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let taken = (0..1_000_u64).filter(|tenths| bucket.take(start + Duration::from_millis(tenths * 100))).count();
        assert_eq!(taken, STRANGERS_MAX as usize + 49, "one every two seconds, in 99.9");
        assert!(is_near(at("127.0.0.1")) && is_near(at("172.18.0.1")) && is_near(at("fd00::1")) && is_near(group(at("::1"))) && is_near(at("fe80::1")));
        assert!(!is_near(at("192.0.2.1")) && !is_near(at("2001:db8::1")));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_one_of_ipv4_is_what_it_is_however_it_is_written() {
        assert_eq!(group(at("2001:db8:1:2:3:4:5:6")), group(at("2001:db8:1:2:ffff::1")));
        assert_ne!(group(at("2001:db8:1:2::1")), group(at("2001:db8:1:3::1")));
        assert_eq!(group(at("::ffff:192.0.2.1")), at("192.0.2.1"));
    }

    #[test]
    fn attempts_at_once_count_as_failures_until_it_is_known_that_they_are_not() {
        let now = Instant::now();
        let limiter = Limiter::new(now);
        let all = (0..10).filter(|_| limiter.begin(at("192.0.2.1"), now).is_ok()).count();
        assert_eq!(all, FREE_FAILURES as usize);
        limiter.withdrawn(at("192.0.2.1"));
        assert_eq!(limiter.begin(at("192.0.2.1"), now), Ok(()));
    }
}
