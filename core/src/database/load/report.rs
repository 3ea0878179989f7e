//! What `psql` says when it fails, without what the rows hold.

use super::{LoadError, OWN_LINES};

/// The longest message that is passed on.
const MESSAGE_CHARS_MAX: usize = 500;

/// The error that `psql` ended with.
///
/// Only the message itself and the place are taken: details and contexts quote rows, and rows hold e-mail addresses and password hashes.
pub(super) fn error(code: i64, stderr: &str) -> LoadError {
    let line = stderr.lines().find(|line| ["ERROR:", "FATAL:", "PANIC:"].iter().any(|severity| line.contains(severity)));
    let Some(line) = line else {
        let said = stderr.lines().find(|line| line.contains("error:")).or_else(|| stderr.lines().next()).unwrap_or_default();
        return LoadError::Ended { code, said: bounded(said) };
    };
    let number = line.strip_prefix("psql:<stdin>:").and_then(|rest| rest.split(':').next()).and_then(|number| number.parse::<u64>().ok());
    let (_, message) = line.split_once("ERROR:").or_else(|| line.split_once("FATAL:")).or_else(|| line.split_once("PANIC:")).unwrap_or(("", line));
    let copied = stderr.lines().find_map(|line| line.strip_prefix("CONTEXT:  COPY "));
    let table = copied.and_then(|context| context.split(", line ").next()).map(bounded);
    // In a COPY, psql has counted its rows already when the server complains of one of them: the place is where it stopped reading.
    LoadError::Sql { message: bounded(message.trim()), table, line: number.and_then(|number| number.checked_sub(OWN_LINES)).filter(|line| *line > 0) }
}

fn bounded(text: &str) -> String {
    text.chars().take(MESSAGE_CHARS_MAX).collect()
}

/// Whether PostgreSQL did not let this user do something.
pub(super) fn is_of_rights(message: &str) -> bool {
    message.contains("permission denied") || message.contains("must be owner")
}

/// What can be done about a message of PostgreSQL.
pub(super) fn hint(message: &str) -> Option<&'static str> {
    let says = |text: &str| message.contains(text);
    Some(if says("No space left on device") && says("shared memory") {
        "the container's /dev/shm is too small for the indexes: set `shm_size: 128mb` for the database's service, and load again"
    } else if says("No space left on device") {
        "make room on the database's disk, and load again"
    } else if says("lock timeout") {
        "somebody holds a lock on what is to be replaced: stop Immich, and load again"
    } else if says("shared_preload_libraries") {
        "the server has to load the extension when it starts: use Immich's own image of the database, or set shared_preload_libraries"
    } else if is_of_rights(message) {
        "connect as the owner of the database"
    } else {
        return None;
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_its_place_and_nothing_of_the_rows() {
        let said = "psql:<stdin>:1234: ERROR:  duplicate key value violates unique constraint \"UQ_user_email\"\n\
                    DETAIL:  Key (email)=(anna@home.example) already exists.\nCONTEXT:  COPY user, line 2: \"b0e4\tanna@home.example\t$2b$10$hash\"\n";
        let error = error(3, said);
        assert_eq!(
            error.to_string(),
            "the database refused line 1232 of the dump (table `user`): duplicate key value violates unique constraint \"UQ_user_email\""
        );
        assert!(!format!("{error:?}").contains("anna@"));
    }

    #[test]
    fn an_error_of_our_own_lines_is_not_the_dumps() {
        let error = error(3, "psql:<stdin>:2: ERROR:  canceling statement due to lock timeout");
        assert!(matches!(&error, LoadError::Sql { line: None, .. }), "{error}");
        assert!(error.hint().unwrap().contains("stop Immich"));
        let lost = super::error(2, "psql: error: connection to server was lost");
        assert!(matches!(lost, LoadError::Ended { code: 2, .. }));
    }
}
