//! Where statements, literals and comments begin and end in what `pg_dump` writes between `COPY` blocks, a piece at a time.
//!
//! Rules of PostgreSQL's manual, "Lexical Structure", and of psql for what begins with a backslash. Nothing is kept but lines
//! of comments and commands, and a statement that begins with `COPY`; each has a limit.

use memchr::{memchr, memchr2};

/// A `COPY` statement longer than this is not `pg_dump`'s: 1,600 columns of 63 bytes have room.
const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// Of longer comments, only that they are there is known.
const COMMENT_BYTES_MAX: usize = 512;
/// A psql command that is longer is not `pg_dump`'s.
const COMMAND_BYTES_MAX: usize = 4_096;
/// A longer tag between dollar signs is not `pg_dump`'s.
const TAG_BYTES_MAX: usize = 1_024;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A comment on a line of its own, outside of any statement: what follows its `--`, without the line's end.
    Comment(Vec<u8>),
    /// A psql command: the line without its backslash.
    Command(Vec<u8>),
    /// The first byte of a statement.
    Statement,
    /// A whole `COPY` statement and its line's end: rows follow.
    Copy(Vec<u8>),
    /// What makes the rest of the text doubtful.
    Odd(&'static str),
    /// A carriage return where only line ends can be.
    CarriageReturn,
}

#[derive(Debug, Clone)]
enum Mode {
    Plain,
    Dash { at_line_start: bool },
    Slash,
    Comment { kept: bool, text: Vec<u8> },
    Block { depth: u32, previous: u8 },
    Quote { escapes: bool, escaped: bool },
    QuoteEnd { escapes: bool },
    Identifier,
    Tag(Vec<u8>),
    Dollar { tag: Vec<u8>, candidate: Option<Vec<u8>> },
    Command(Vec<u8>),
    AfterCopy,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Statement {
    None,
    /// Its first bytes may become `COPY`.
    Beginning,
    Copy,
    Other,
}

/// How the text stands at its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the start of a line, or in blanks.
    Clean,
    /// In a comment line outside of any statement: what follows its `--` so far.
    Comment(Vec<u8>),
    /// In a psql command.
    Command(Vec<u8>),
    /// After a `COPY` statement, before its line's end.
    Copy(Vec<u8>),
    /// Anywhere else.
    Within,
}

#[derive(Debug, Clone)]
pub(super) struct Lexer {
    mode: Mode,
    statement: Statement,
    gathered: Vec<u8>,
    parentheses: u32,
    at_line_start: bool,
    /// Length and first byte of the word that is being read: `E` before a quote means that backslashes escape.
    word: (usize, u8),
    /// A literal with escapes ended, and nothing but blanks came since: the next one goes on with it.
    continued: bool,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'$' || byte >= 0x80
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0B | 0x0C)
}

impl Lexer {
    pub(super) fn new() -> Self {
        Self { mode: Mode::Plain, statement: Statement::None, gathered: Vec::new(), parentheses: 0, at_line_start: true, word: (0, 0), continued: false }
    }

    /// Reads on. Returns how many bytes of `piece` were read, and what was found; nothing found means that all were.
    pub(super) fn run(&mut self, piece: &[u8]) -> (usize, Option<Token>) {
        let mut read = 0;
        while let Some(rest) = piece.get(read..).filter(|rest| !rest.is_empty()) {
            let (bytes, token) = self.step(rest);
            read += bytes;
            if token.is_some() {
                return (read, token);
            }
        }
        (read, None)
    }

    pub(super) fn end(self) -> End {
        match (self.mode, self.statement) {
            (Mode::Plain, Statement::None) => End::Clean,
            (Mode::Comment { kept: true, text }, _) => End::Comment(text),
            (Mode::Command(text), _) => End::Command(text),
            (Mode::AfterCopy, _) => End::Copy(self.gathered),
            _ => End::Within,
        }
    }

    /// Reads at least one byte of `rest`, which has one, or changes the mode.
    fn step(&mut self, rest: &[u8]) -> (usize, Option<Token>) {
        let Some(&byte) = rest.first() else { return (0, None) };
        match &mut self.mode {
            Mode::Plain => self.plain(byte),
            Mode::Dash { at_line_start } => {
                if byte == b'-' {
                    let kept = *at_line_start && self.statement == Statement::None;
                    self.mode = Mode::Comment { kept, text: Vec::new() };
                    return (1, self.not_in_copy());
                }
                self.mode = Mode::Plain;
                (0, self.began(b'-'))
            }
            Mode::Slash => {
                if byte == b'*' {
                    self.mode = Mode::Block { depth: 1, previous: 0 };
                    return (1, self.not_in_copy());
                }
                self.mode = Mode::Plain;
                (0, self.began(b'/'))
            }
            Mode::Comment { kept, text } => {
                let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                let room = COMMENT_BYTES_MAX.saturating_sub(text.len());
                text.extend(rest.iter().take(length.min(room)));
                match rest.get(length) {
                    None => (length, None),
                    Some(b'\n') => {
                        let token = kept.then(|| Token::Comment(std::mem::take(text)));
                        self.mode = Mode::Plain;
                        self.at_line_start = true;
                        (length + 1, token)
                    }
                    Some(_) => (length, Some(Token::CarriageReturn)),
                }
            }
            Mode::Block { depth, previous } => {
                match (*previous, byte) {
                    (b'*', b'/') => {
                        *depth -= 1;
                        *previous = 0;
                    }
                    (b'/', b'*') => {
                        *depth = depth.saturating_add(1);
                        *previous = 0;
                    }
                    _ => *previous = byte,
                }
                if *depth == 0 {
                    self.mode = Mode::Plain;
                    self.at_line_start = false;
                }
                (1, None)
            }
            Mode::Quote { escapes, escaped } => {
                if *escaped {
                    *escaped = false;
                    return (1, None);
                }
                let found = if *escapes { memchr2(b'\'', b'\\', rest) } else { memchr(b'\'', rest) };
                let Some(length) = found else { return (rest.len(), None) };
                if rest.get(length) == Some(&b'\\') {
                    *escaped = true;
                } else {
                    self.mode = Mode::QuoteEnd { escapes: *escapes };
                }
                (length + 1, None)
            }
            Mode::QuoteEnd { escapes } => {
                let escapes = *escapes;
                if byte == b'\'' {
                    self.mode = Mode::Quote { escapes, escaped: false };
                    return (1, None);
                }
                self.mode = Mode::Plain;
                self.continued = escapes;
                (0, None)
            }
            Mode::Identifier => {
                let length = memchr(b'"', rest).map_or(rest.len(), |found| found + 1);
                if length < rest.len() || rest.last() == Some(&b'"') {
                    self.mode = Mode::Plain;
                }
                let token = rest.get(..length).and_then(|bytes| self.gather(bytes));
                (length, token)
            }
            Mode::Tag(tag) => {
                let fits = if tag.is_empty() { is_word(byte) && !byte.is_ascii_digit() } else { is_word(byte) };
                if byte == b'$' {
                    let tag = std::mem::take(tag);
                    self.mode = Mode::Dollar { tag, candidate: None };
                    return (1, self.not_in_copy());
                }
                if fits && tag.len() < TAG_BYTES_MAX {
                    tag.push(byte);
                    return (1, None);
                }
                if fits {
                    return (0, Some(Token::Odd("a dollar quote of such length")));
                }
                // A parameter (`$1`), or a lone dollar sign.
                let token = self.gather(b"$");
                self.word = (2, b'$');
                self.mode = Mode::Plain;
                (0, token)
            }
            Mode::Dollar { tag, candidate } => {
                let Some(found) = candidate else {
                    let Some(length) = memchr(b'$', rest) else { return (rest.len(), None) };
                    *candidate = Some(Vec::new());
                    return (length + 1, None);
                };
                if byte == b'$' {
                    if found == tag {
                        self.mode = Mode::Plain;
                        self.word = (0, 0);
                    } else {
                        // This one may begin the closing tag.
                        found.clear();
                    }
                } else if found.len() < tag.len() {
                    found.push(byte);
                } else {
                    *candidate = None;
                }
                (1, None)
            }
            Mode::Command(text) => {
                let length = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                if text.len() + length > COMMAND_BYTES_MAX {
                    return (0, Some(Token::Odd("a psql command of such length")));
                }
                text.extend(rest.iter().take(length));
                match rest.get(length) {
                    None => (length, None),
                    Some(b'\n') => {
                        let text = std::mem::take(text);
                        self.mode = Mode::Plain;
                        self.at_line_start = true;
                        (length + 1, Some(Token::Command(text)))
                    }
                    Some(_) => (length, Some(Token::CarriageReturn)),
                }
            }
            Mode::AfterCopy => match byte {
                b'\n' => {
                    *self = Self { gathered: std::mem::take(&mut self.gathered), ..Self::new() };
                    (1, Some(Token::Copy(std::mem::take(&mut self.gathered))))
                }
                b'\r' => (0, Some(Token::CarriageReturn)),
                _ => (0, Some(Token::Odd("more in the line of a COPY statement"))),
            },
        }
    }

    fn plain(&mut self, byte: u8) -> (usize, Option<Token>) {
        let at_line_start = std::mem::replace(&mut self.at_line_start, byte == b'\n');
        let continued = self.continued && (is_blank(byte) || byte == b'\'');
        self.continued = continued;
        let word = self.word;
        self.word = match word {
            _ if !is_word(byte) => (0, 0),
            (0, _) => (1, byte),
            (length, first) => (length.saturating_add(1), first),
        };
        match byte {
            b'\r' => (0, Some(Token::CarriageReturn)),
            b'-' => {
                self.mode = Mode::Dash { at_line_start };
                (1, None)
            }
            b'/' => {
                self.mode = Mode::Slash;
                (1, None)
            }
            b'\\' => {
                if !at_line_start || self.statement != Statement::None {
                    return (0, Some(Token::Odd("a backslash within a statement")));
                }
                self.mode = Mode::Command(Vec::new());
                (1, None)
            }
            b'\'' => {
                let escapes = continued || (word.0 == 1 && matches!(word.1, b'e' | b'E'));
                self.mode = Mode::Quote { escapes, escaped: false };
                (1, self.not_in_copy())
            }
            b'"' => {
                self.mode = Mode::Identifier;
                (1, self.began(byte))
            }
            b'$' if word.0 == 0 => {
                self.mode = Mode::Tag(Vec::new());
                self.word = (0, 0);
                (1, self.mark())
            }
            b';' if self.parentheses == 0 => {
                let token = self.began(byte);
                if token.is_none() && self.statement == Statement::Copy {
                    self.mode = Mode::AfterCopy;
                } else {
                    self.statement = Statement::None;
                    self.gathered.clear();
                }
                (1, token)
            }
            _ if is_blank(byte) && self.statement == Statement::None => (1, None),
            _ => {
                match byte {
                    b'(' => self.parentheses = self.parentheses.saturating_add(1),
                    b')' => self.parentheses = self.parentheses.saturating_sub(1),
                    _ => {}
                }
                (1, self.began(byte))
            }
        }
    }

    /// A statement begins here, if none has.
    fn mark(&mut self) -> Option<Token> {
        (self.statement == Statement::None).then(|| {
            self.statement = Statement::Beginning;
            self.gathered.clear();
            Token::Statement
        })
    }

    fn began(&mut self, byte: u8) -> Option<Token> {
        let token = self.mark();
        self.gather(&[byte]).or(token)
    }

    /// A literal or a comment begins: `COPY` of `pg_dump` has none.
    fn not_in_copy(&mut self) -> Option<Token> {
        let copy = self.statement == Statement::Copy || (self.statement == Statement::Beginning && self.gathered.eq_ignore_ascii_case(b"copy"));
        if copy {
            return Some(Token::Odd("a COPY statement that does not read from its own lines"));
        }
        let literal = !matches!(self.mode, Mode::Comment { .. } | Mode::Block { .. });
        let token = if literal { self.mark() } else { None };
        if self.statement == Statement::Beginning {
            self.statement = Statement::Other;
        }
        token
    }

    fn gather(&mut self, bytes: &[u8]) -> Option<Token> {
        if !matches!(self.statement, Statement::Beginning | Statement::Copy) {
            return None;
        }
        for byte in bytes {
            if self.statement == Statement::Beginning {
                let word_ended = self.gathered.len() == 4 && self.gathered.eq_ignore_ascii_case(b"copy") && !is_word(*byte);
                let may_become = b"copy".get(self.gathered.len()).is_some_and(|wanted| wanted.eq_ignore_ascii_case(byte));
                if word_ended {
                    self.statement = Statement::Copy;
                } else if !may_become {
                    self.statement = Statement::Other;
                    self.gathered.clear();
                    return None;
                }
            }
            if self.gathered.len() >= STATEMENT_BYTES_MAX {
                return Some(Token::Odd("a COPY statement of such length"));
            }
            self.gathered.push(*byte);
        }
        None
    }
}
