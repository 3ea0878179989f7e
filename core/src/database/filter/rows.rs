//! The rows of a dump: they pass as they are, whatever is in them.

use super::{Filter, FilterError, MAINTENANCE_KEY, Section, newlines};
use memchr::memchr;

/// Rows of a table, as they pass.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) table: String,
    count: u64,
    /// Where in its line the next byte is.
    place: InLine,
    /// The beginning of the line, of the one table in which that matters.
    start: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InLine {
    Start,
    Backslash,
    BackslashDot,
    Middle,
}

impl Rows {
    /// None of `table` yet. `is_watched`: its first column is the key of Immich's settings.
    pub(super) fn of(table: String, is_watched: bool) -> Self {
        Self { table, count: 0, place: InLine::Start, start: is_watched.then(Vec::new) }
    }
}

impl Filter {
    /// Rows pass as they are, up to the line that ends them.
    pub(super) fn feed_rows<'a>(&mut self, text: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], FilterError> {
        let Some(mut rows) = self.rows.take() else { return Ok(text) };
        let keep = self.section == Section::Taken;
        let mut position = 0;
        let mut ended = false;
        while let (Some(byte), false) = (text.get(position).copied(), ended) {
            if rows.place == InLine::Middle {
                let rest = text.get(position..).unwrap_or_default();
                let line = memchr(b'\n', rest);
                let end = line.unwrap_or(rest.len());
                if let Some(start) = &mut rows.start {
                    let room = (MAINTENANCE_KEY.len() + 1).saturating_sub(start.len()).min(end);
                    start.extend_from_slice(rest.get(..room).unwrap_or_default());
                }
                position += end;
                if line.is_some() {
                    position += 1;
                    rows.count += 1;
                    rows.place = InLine::Start;
                    self.lexer.count_line();
                    if let Some(start) = &mut rows.start {
                        if start.strip_suffix(b"\t") == Some(MAINTENANCE_KEY.as_bytes()) && keep {
                            self.found.maintenance_rows += 1;
                        }
                        start.clear();
                    }
                }
                continue;
            }
            match (rows.place, byte) {
                (InLine::Start, b'\\') => rows.place = InLine::Backslash,
                (InLine::Backslash, b'.') => rows.place = InLine::BackslashDot,
                (InLine::BackslashDot, b'\n') => {
                    self.lexer.count_line();
                    ended = true;
                }
                (InLine::BackslashDot, b'\r') => {
                    return Err(FilterError::Unclear { line: self.lexer.line(), what: "line ends that PostgreSQL did not write" });
                }
                _ => {
                    // Looked at again as part of the line; an empty line is a row of an empty text.
                    rows.place = InLine::Middle;
                    continue;
                }
            }
            position += 1;
        }
        let (passed, rest) = text.split_at(position);
        if keep {
            out.extend_from_slice(passed);
        } else {
            let newlines = newlines(passed);
            out.resize(out.len().saturating_add(newlines), b'\n');
        }
        if !ended {
            self.rows = Some(rows);
        } else if keep {
            self.count(self.lexer.line(), rows.table, rows.count)?;
        }
        Ok(rest)
    }
}
