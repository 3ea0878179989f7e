//! Telling the statements of a dump apart, as `psql` of version 14 and later does: it is what decides where a backslash is a command.
//!
//! Where versions of `psql` differ, or where it would take more to be sure, the text is refused; `pg_dump` writes nothing of that kind.

use super::token::{continues_name, starts_name};
use super::{FilterError, shown};

/// The longest statement; rows are none. The longest that Immich has is a few KiB.
const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// The longest line of a command to `psql`, and what is kept of a comment.
const LINE_BYTES_MAX: usize = 1_024;

/// What was found in the text.
#[derive(Debug, PartialEq, Eq)]
pub enum Lexed {
    /// Nothing yet.
    More,
    /// Ends of lines between statements.
    Blank {
        /// How many.
        newlines: usize,
    },
    /// A comment between statements, without its hyphens.
    Comment {
        /// What it says; the beginning of it, where it is long.
        text: Vec<u8>,
        /// Ends of lines that go with it.
        newlines: usize,
    },
    /// A line that begins with a backslash, between statements.
    Command {
        /// Which line.
        line: u64,
        /// All of it.
        text: Vec<u8>,
    },
    /// A statement with its semicolon.
    Statement {
        /// The line in which it begins.
        line: u64,
        /// All of it.
        text: Vec<u8>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Outside of everything below.
    Plain,
    /// A name, key word or number; its beginning is in `word`.
    Word,
    /// After a dollar that may begin a quote.
    Tag(Vec<u8>),
    /// In single quotes.
    Single { escapes: bool, escaped: bool },
    /// In double quotes.
    Double,
    /// Between dollars: the delimiter, and how much of it was just seen.
    Dollars { delimiter: Vec<u8>, seen: usize },
    /// After two hyphens.
    LineComment,
    /// In so many comments, and the byte before.
    BlockComment { depth: u32, before: u8 },
    /// In a line that begins with a backslash.
    Command,
    /// After the semicolon of a `COPY`: the line has to end here.
    RowsNext,
}

/// Reads text outside of rows.
#[derive(Debug)]
pub struct Lexer {
    state: State,
    line: u64,
    /// The statement, from its first token on.
    statement: Vec<u8>,
    statement_line: u64,
    /// The line of a command, or the beginning of a comment between statements.
    other: Vec<u8>,
    /// The last byte in [`State::Plain`]; zero after anything else.
    before: u8,
    /// Nothing was on this line yet.
    line_start: bool,
    word: Vec<u8>,
    parentheses: u32,
    /// The text before, but for blanks and comments, was one with escapes in single quotes, and whether its line has ended since.
    after_escapes: Option<bool>,
    /// An `E` that belongs to the quote to come.
    after_e: bool,
    /// Of the names at the beginning of the statement, the first letters, as far as they make up `CREATE OR REPLACE FUNCTION`.
    beginning: [u8; 4],
    names: usize,
    /// `BEGIN ATOMIC … END` around.
    blocks: u32,
}

impl Default for Lexer {
    fn default() -> Self {
        Self {
            state: State::Plain,
            line: 1,
            statement: Vec::new(),
            statement_line: 1,
            other: Vec::new(),
            before: 0,
            line_start: true,
            word: Vec::new(),
            parentheses: 0,
            after_escapes: None,
            after_e: false,
            beginning: [0; 4],
            names: 0,
            blocks: 0,
        }
    }
}

/// The longest tag between dollars; PostgreSQL's own programs write short ones.
const TAG_BYTES_MAX: usize = 64;

/// Enough of a word to know it.
const WORD_BYTES_MAX: usize = 16;

impl Lexer {
    /// The number of the line that is being read, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Counts a line that others read.
    pub fn count_line(&mut self) {
        self.line += 1;
        self.line_start = true;
    }

    /// The statement just found is followed by rows, from the next line on.
    pub fn expect_rows(&mut self) {
        self.state = State::RowsNext;
    }

    /// Whether the line of a `COPY` is still to end.
    pub fn is_before_rows(&self) -> bool {
        self.state == State::RowsNext
    }

    /// Whether nothing is open.
    pub fn is_between(&self) -> bool {
        self.statement.is_empty() && self.state == State::Plain
    }

    /// A comment between statements that ends with the text.
    pub fn last_comment(&mut self) -> Option<Vec<u8>> {
        (self.state == State::LineComment && self.statement.is_empty()).then(|| std::mem::take(&mut self.other))
    }

    fn unclear<T>(&self, what: &'static str) -> Result<T, FilterError> {
        Err(FilterError::Unclear { line: self.line, what })
    }

    /// Reads until something is found. Returns how much was read.
    pub fn scan(&mut self, text: &[u8]) -> Result<(usize, Lexed), FilterError> {
        for (index, &byte) in text.iter().enumerate() {
            let line = self.line;
            let found = self.take(byte)?;
            if byte == b'\n' {
                self.line = line + 1;
                self.line_start = true;
            } else if !matches!(byte, b' ' | b'\t') {
                self.line_start = false;
            }
            if self.statement.len() > STATEMENT_BYTES_MAX {
                return Err(FilterError::Unclear { line: self.statement_line, what: "a statement that is longer than any of Immich's" });
            }
            if let Some(found) = found {
                return Ok((index + 1, found));
            }
        }
        Ok((text.len(), Lexed::More))
    }

    fn take(&mut self, byte: u8) -> Result<Option<Lexed>, FilterError> {
        if self.state == State::Word {
            if continues_name(byte) {
                self.before = byte;
                if self.word.len() <= WORD_BYTES_MAX {
                    self.word.push(byte);
                }
                self.statement.push(byte);
                let number = self.word.first().is_some_and(|first| !starts_name(*first));
                return if number && byte == b'$' { self.unclear("a dollar behind a number") } else { Ok(None) };
            }
            self.end_word(byte)?;
        }
        match &mut self.state {
            State::Plain | State::Word => self.plain(byte),
            State::Tag(tag) => {
                self.statement.push(byte);
                if byte == b'$' {
                    let mut delimiter = vec![b'$'];
                    delimiter.append(tag);
                    delimiter.push(b'$');
                    self.state = State::Dollars { delimiter, seen: 0 };
                } else if tag.is_empty() && byte.is_ascii_digit() {
                    self.word = vec![b'$', byte];
                    self.state = State::Word;
                } else if (starts_name(byte) || (!tag.is_empty() && byte.is_ascii_digit())) && tag.len() < TAG_BYTES_MAX {
                    tag.push(byte);
                } else {
                    return self.unclear("a dollar that begins nothing");
                }
                Ok(None)
            }
            State::Single { escapes, escaped } => {
                self.statement.push(byte);
                if *escaped {
                    *escaped = false;
                } else if *escapes && byte == b'\\' {
                    *escaped = true;
                } else if byte == b'\'' {
                    // A doubled quote comes back here at once: for what is open it is all the same.
                    self.after_escapes = escapes.then_some(false);
                    self.state = State::Plain;
                    self.before = 0;
                }
                Ok(None)
            }
            State::Double => {
                self.statement.push(byte);
                if byte == b'"' {
                    self.state = State::Plain;
                    self.before = 0;
                }
                Ok(None)
            }
            State::Dollars { delimiter, seen } => {
                self.statement.push(byte);
                if delimiter.get(*seen) == Some(&byte) {
                    *seen += 1;
                } else {
                    // A tag has no dollar inside, so only this byte can begin it again.
                    *seen = usize::from(byte == b'$');
                }
                if *seen == delimiter.len() {
                    self.state = State::Plain;
                    self.before = 0;
                }
                Ok(None)
            }
            State::LineComment => Ok(self.line_comment(byte)),
            State::BlockComment { depth, before } => {
                match (*before, byte) {
                    (b'/', b'*') => (*depth, *before) = (depth.saturating_add(1), 0),
                    (b'*', b'/') => (*depth, *before) = (depth.saturating_sub(1), 0),
                    _ => *before = byte,
                }
                if *depth == 0 {
                    self.state = State::Plain;
                    self.before = b' ';
                }
                let outside = self.statement.is_empty();
                if !outside {
                    self.statement.push(byte);
                }
                Ok((outside && byte == b'\n').then_some(Lexed::Blank { newlines: 1 }))
            }
            State::Command => {
                if byte == b'\n' {
                    self.state = State::Plain;
                    let text = std::mem::take(&mut self.other);
                    return Ok(Some(Lexed::Command { line: self.line, text }));
                }
                self.other.push(byte);
                // Another one on the same line, or a quote to run a program by.
                let command = self.other.get(1..).is_some_and(|rest| rest.contains(&b'\\')) || byte == b'`' || byte == b'\r';
                if command || self.other.len() > LINE_BYTES_MAX {
                    return Err(FilterError::Command { line: self.line, command: shown(&self.other) });
                }
                Ok(None)
            }
            State::RowsNext => {
                self.state = State::Plain;
                if byte == b'\n' { Ok(Some(Lexed::Blank { newlines: 1 })) } else { self.unclear("something behind a COPY") }
            }
        }
    }

    /// A carriage return ends a comment for `psql`, so it does here.
    fn line_comment(&mut self, byte: u8) -> Option<Lexed> {
        let outside = self.statement.is_empty();
        if byte == b'\n' || byte == b'\r' {
            self.state = State::Plain;
            self.before = byte;
            if let Some(line_ended) = &mut self.after_escapes {
                *line_ended = true;
            }
        }
        if !outside {
            self.statement.push(byte);
            None
        } else if byte == b'\n' || byte == b'\r' {
            Some(Lexed::Comment { text: std::mem::take(&mut self.other), newlines: usize::from(byte == b'\n') })
        } else {
            if self.other.len() < LINE_BYTES_MAX {
                self.other.push(byte);
            }
            None
        }
    }

    /// A name or key word is over: counts what `psql` counts of it.
    fn end_word(&mut self, next: u8) -> Result<(), FilterError> {
        self.state = State::Plain;
        let word = std::mem::take(&mut self.word);
        let Some(&first) = word.first() else { return Ok(()) };
        if !starts_name(first) {
            // Versions of `psql` do not agree on where `1E'` begins a text with escapes.
            let escapes = word.last().is_some_and(|last| last.eq_ignore_ascii_case(&b'e'));
            return if next == b'\'' && (escapes || word.len() > WORD_BYTES_MAX) { self.unclear("a text right behind a number") } else { Ok(()) };
        }
        if next == b'\'' && word.len() == 1 && b"eEbBxXnN".contains(&first) {
            // What stands before a quote and belongs to it.
            self.after_e = first.eq_ignore_ascii_case(&b'e');
            return Ok(());
        }
        let is = |known: &str| word.eq_ignore_ascii_case(known.as_bytes());
        if let (Some(place), true) = (self.beginning.get_mut(self.names), ["create", "or", "replace", "function", "procedure"].iter().any(|known| is(known))) {
            *place = first.to_ascii_lowercase();
        }
        self.names += 1;
        let makes_routine = matches!(self.beginning, [b'c', b'f' | b'p', ..] | [b'c', b'o', b'r', b'f' | b'p']);
        if makes_routine && self.parentheses == 0 {
            if is("begin") || (is("case") && self.blocks > 0) {
                self.blocks = self.blocks.saturating_add(1);
            } else if is("end") {
                self.blocks = self.blocks.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// A byte outside of everything.
    fn plain(&mut self, byte: u8) -> Result<Option<Lexed>, FilterError> {
        let before = std::mem::replace(&mut self.before, byte);
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0C);
        if let (Some(line_ended), b'\n' | b'\r') = (&mut self.after_escapes, byte) {
            *line_ended = true;
        }
        if self.statement.is_empty() {
            if blank {
                return Ok((byte == b'\n').then_some(Lexed::Blank { newlines: 1 }));
            }
            if byte == b'\\' {
                self.other = vec![byte];
                if !self.line_start {
                    return Err(FilterError::Command { line: self.line, command: shown(b"\\") });
                }
                self.state = State::Command;
                return Ok(None);
            }
            self.statement_line = self.line;
        }
        let opens_comment = matches!((before, byte), (b'-', b'-') | (b'/', b'*'));
        if !blank && !matches!(byte, b'-' | b'/' | b'\'') && !opens_comment {
            self.after_escapes = None;
        }
        self.statement.push(byte);
        match byte {
            _ if opens_comment => {
                self.state = if byte == b'-' { State::LineComment } else { State::BlockComment { depth: 1, before: 0 } };
                if self.statement.len() == 2 {
                    self.statement.clear();
                    self.other.clear();
                }
            }
            b'\\' => return Err(FilterError::Command { line: self.line, command: shown(b"\\") }),
            b'\'' => {
                let escapes = match self.after_escapes.take() {
                    _ if std::mem::take(&mut self.after_e) => true,
                    // Two quotes in a row: the text goes on.
                    Some(false) if before == 0 => true,
                    // A text with escapes may go on in the next line; and whether it does, depends on what is between.
                    Some(_) => return self.unclear("a text behind one with escapes"),
                    None => false,
                };
                self.state = State::Single { escapes, escaped: false };
            }
            b'"' => self.state = State::Double,
            b'$' => self.state = State::Tag(Vec::new()),
            b'(' => self.parentheses = self.parentheses.saturating_add(1),
            b')' => self.parentheses = self.parentheses.saturating_sub(1),
            b';' if self.parentheses == 0 && self.blocks == 0 => return Ok(Some(self.end_statement())),
            _ if starts_name(byte) || byte.is_ascii_digit() => {
                self.word = vec![byte];
                self.state = State::Word;
            }
            _ => {}
        }
        Ok(None)
    }

    fn end_statement(&mut self) -> Lexed {
        self.before = 0;
        self.after_escapes = None;
        self.beginning = [0; 4];
        self.names = 0;
        Lexed::Statement { line: self.statement_line, text: std::mem::take(&mut self.statement) }
    }
}
