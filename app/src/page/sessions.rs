//! Who is logged in: random tokens, of which only the hashes are kept, for a bounded time.

use immich_backup_core::model::Sha256;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A session that nobody uses ends after so long.
pub const IDLE_MAX: Duration = Duration::from_secs(12 * 3_600);
/// A session ends after so long in any case.
pub const LENGTH_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Sessions at once; with one more, the one that was used longest ago ends.
pub const SESSIONS_MAX: usize = 64;
/// A token in hexadecimal: 256 bits.
const TOKEN_CHARACTERS: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Session {
    began: Instant,
    used: Instant,
}

impl Session {
    fn is_alive(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) < LENGTH_MAX && now.saturating_duration_since(self.used) < IDLE_MAX
    }
}

/// All sessions. They end with the process.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

impl Sessions {
    /// Begins a session, and says by which token it is known; `None` where the system has no random numbers.
    #[must_use]
    pub fn begin(&self, now: Instant) -> Option<String> {
        let mut random = [0; TOKEN_CHARACTERS / 2];
        getrandom::fill(&mut random).ok()?;
        let token = Sha256(random).to_string();
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|_, session| session.is_alive(now));
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.used).map(|(hash, _)| *hash)
        {
            sessions.remove(&oldest);
        }
        sessions.insert(hash(&token), Session { began: now, used: now });
        Some(token)
    }

    /// Whether `token` is of a session that is not over; that one counts as used.
    #[must_use]
    pub fn knows(&self, token: &str, now: Instant) -> bool {
        if token.len() != TOKEN_CHARACTERS {
            return false;
        }
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = hash(token);
        match sessions.get_mut(&hash) {
            Some(session) if session.is_alive(now) => {
                session.used = now;
                true
            }
            _ => {
                sessions.remove(&hash);
                false
            }
        }
    }

    /// Whether the session of `token` is not over; that does not count as using it.
    #[must_use]
    pub fn lasts(&self, token: &str, now: Instant) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&hash(token)).is_some_and(|session| session.is_alive(now))
    }

    /// Ends the session of `token`.
    pub fn end(&self, token: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&hash(token));
    }
}

/// What is compared is a hash: how long that takes tells nothing of the token.
fn hash(token: &str) -> [u8; 32] {
    Sha256::of(token.as_bytes()).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_lasts_while_it_is_used_and_no_longer_than_a_week() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let token = sessions.begin(start).unwrap();
        assert!(sessions.knows(&token, start + IDLE_MAX - Duration::from_secs(1)));
        assert!(sessions.knows(&token, start + IDLE_MAX + IDLE_MAX / 2));
        assert!(!sessions.knows(&token, start + IDLE_MAX * 3), "idle");
        assert!(!sessions.knows(&token, start), "over is over");
        let token = sessions.begin(start).unwrap();
        let mut now = start;
        while now + IDLE_MAX / 2 < start + LENGTH_MAX {
            now += IDLE_MAX / 2;
            assert!(sessions.knows(&token, now));
        }
        assert!(!sessions.knows(&token, start + LENGTH_MAX), "used all the time");
    }

    #[test]
    fn a_token_that_was_made_up_or_changed_or_ended_is_unknown_and_none_is_kept() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let token = sessions.begin(now).unwrap();
        assert_eq!(token.len(), TOKEN_CHARACTERS);
        let mut changed = token.clone();
        changed.replace_range(..1, if token.starts_with('0') { "1" } else { "0" });
        for other in ["", "0", &changed, &token.to_uppercase().replace(|c: char| c.is_ascii_digit(), "A"), &format!("{token}0"), &"0".repeat(64)] {
            assert!(!sessions.knows(other, now), "{other}");
        }
        assert!(!format!("{sessions:?}").contains(&token));
        assert!(sessions.knows(&token, now));
        sessions.end(&token);
        assert!(!sessions.knows(&token, now));
    }

    #[test]
    fn there_are_never_more_than_a_few_and_the_one_in_use_stays() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        let mine = sessions.begin(start).unwrap();
        for number in 1..1_000 {
            let now = start + Duration::from_secs(number);
            assert!(sessions.begin(now).is_some() && sessions.knows(&mine, now));
        }
        assert_eq!(sessions.0.lock().unwrap().len(), SESSIONS_MAX);
    }
}
