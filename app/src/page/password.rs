//! The one password of the page: kept as an argon2id hash, compared a few at a time.

use crate::config::{Settings, UsageError};
use crate::metrics::regular;
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Argon2, Params};
use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// A file with a password has no more.
const FILE_BYTES_MAX: u64 = 4 << 10;
/// A password that people choose is no shorter.
const CHARACTERS_MIN: usize = 8;
/// What somebody may send as a password.
pub const BYTES_MAX: usize = 1 << 10;
/// A hash that takes more memory to compare is refused.
const MEMORY_KIB_MAX: u32 = 64 << 10;
/// A hash that takes more passes is refused.
const PASSES_MAX: u32 = 16;
/// Comparisons at once: each takes 19 MiB and a processor.
const COMPARED_AT_ONCE: usize = 1;
/// How long one waits for those before it.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// What comparing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// It is the password.
    Right,
    /// It is not.
    Wrong,
    /// Too many are being compared.
    Busy,
}

/// The password, as its hash.
#[derive(Clone)]
pub struct Password {
    hash: Arc<str>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Password {
    /// The password of `--page-password-file`; `None` where none is set.
    ///
    /// # Errors
    /// The file cannot be read, or what it holds is no good.
    pub fn of(settings: &Settings) -> Result<Option<Self>, UsageError> {
        let Some(path) = settings.text("page-password-file").filter(|path| !path.is_empty()) else { return Ok(None) };
        let mut text = String::new();
        regular::open(Path::new(path))
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|error| UsageError(format!("cannot read --page-password-file `{path}`: {error}")))?;
        // Nothing of what it holds is told.
        let password = if text.len() as u64 > FILE_BYTES_MAX { Err("it is too long".to_owned()) } else { Self::new(text.trim_end_matches(['\r', '\n'])) };
        password.map(Some).map_err(|problem| UsageError(format!("--page-password-file `{path}`: {problem}")))
    }

    /// The password `text`, or the one that `text` is an argon2id hash of.
    ///
    /// # Errors
    /// Why it is no good, in words that do not tell it.
    pub fn new(text: &str) -> Result<Self, String> {
        let hash = if text.starts_with("$argon2") { checked(text)? } else { hashed(text)? };
        Ok(Self { hash: hash.into(), turns: Arc::new(Semaphore::new(COMPARED_AT_ONCE)) })
    }

    /// Whether `attempt` is the password.
    pub async fn compare(&self, attempt: String) -> Compared {
        let Ok(Ok(turn)) = tokio::time::timeout(TURN_WITHIN, Arc::clone(&self.turns).acquire_owned()).await else { return Compared::Busy };
        let hash = Arc::clone(&self.hash);
        let compared = tokio::task::spawn_blocking(move || {
            // Its turn is over when it is done, whether or not somebody still waits for it.
            let _turn = turn;
            PasswordHash::new(&hash).is_ok_and(|hash| Argon2::default().verify_password(attempt.as_bytes(), &hash).is_ok())
        });
        match compared.await {
            Ok(true) => Compared::Right,
            Ok(false) => Compared::Wrong,
            Err(_) => Compared::Busy,
        }
    }
}

fn hashed(text: &str) -> Result<String, String> {
    if text.chars().count() < CHARACTERS_MIN {
        return Err(format!("a password has {CHARACTERS_MIN} characters at least"));
    }
    if text.len() > BYTES_MAX || text.chars().any(char::is_control) {
        return Err("a password is one line of 1,024 bytes at most".to_owned());
    }
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|error| format!("no random numbers: {error}"))?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| error.to_string())?;
    Argon2::default().hash_password(text.as_bytes(), &salt).map(|hash| hash.to_string()).map_err(|error| error.to_string())
}

fn checked(text: &str) -> Result<String, String> {
    let not_one = |_| "it begins like a hash, and is none that can be understood: write it as `argon2 -id -e` does".to_owned();
    let hash = PasswordHash::new(text).map_err(not_one)?;
    if hash.algorithm.as_str() != "argon2id" || hash.hash.is_none() || hash.salt.is_none() {
        return Err("a hash is one of argon2id, as `argon2 -id -e` writes it".to_owned());
    }
    let params = Params::try_from(&hash).map_err(not_one)?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > PASSES_MAX {
        return Err("the hash takes more than 64 MiB, 16 passes or 16 lanes: make it with less".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `Tr0ub4dor&3`, with little memory.
    const HASH: &str = "$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQxMjM0NTY3OA$";

    #[tokio::test]
    async fn a_password_is_known_by_itself_and_by_its_hash_and_neither_is_told() {
        let plain = Password::new("correct horse").unwrap();
        assert_eq!(plain.compare("correct horse".to_owned()).await, Compared::Right);
        for wrong in ["", "correct horse ", "Correct horse", "correct horse\0"] {
            assert_eq!(plain.compare(wrong.to_owned()).await, Compared::Wrong, "{wrong:?}");
        }
        let hashed = Password::new(&plain.hash).unwrap();
        assert_eq!(hashed.compare("correct horse".to_owned()).await, Compared::Right);
        assert_eq!(hashed.compare(plain.hash.to_string()).await, Compared::Wrong, "its hash is no password");
        assert!(plain.hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "what OWASP asks for at least");
        assert_eq!(format!("{plain:?}"), "Password(…)");
    }

    #[test]
    fn what_is_no_password_is_refused_in_words_that_do_not_tell_it() {
        let huge = "$argon2id$v=19$m=4194304,t=3,p=4$c29tZXNhbHQxMjM0NTY3OA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        let other = "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHQxMjM0NTY3OA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        for bad in ["", "seven77", "two\nlines of text", HASH, huge, other, "$argon2id$nonsense"] {
            let problem = Password::new(bad).unwrap_err();
            assert!(bad.is_empty() || !problem.contains(bad), "{problem}");
        }
    }
}
