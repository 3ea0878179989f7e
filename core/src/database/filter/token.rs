//! The words of one whole statement.

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A key word or a name without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// A text in single quotes or between dollars.
    Text,
    /// A number or a parameter.
    Number,
    /// Any other byte.
    Sign(u8),
}

/// One token, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub text: &'a [u8],
    /// Where it begins.
    pub start: usize,
}

impl Token<'_> {
    /// Whether it is this key word (in lower case).
    pub fn is(&self, word: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(word.as_bytes())
    }

    /// Whether it is this sign.
    pub fn is_sign(&self, sign: u8) -> bool {
        self.kind == Kind::Sign(sign)
    }

    /// Where it ends.
    pub fn end(&self) -> usize {
        self.start + self.text.len()
    }

    /// The name that it is, as the database has it.
    pub fn name(&self) -> Option<String> {
        match self.kind {
            Kind::Word => Some(String::from_utf8_lossy(self.text).to_lowercase()),
            Kind::Quoted => {
                let inner = self.text.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
                Some(String::from_utf8_lossy(inner).replace("\"\"", "\""))
            }
            _ => None,
        }
    }
}

/// Whether a name may begin with `byte`.
pub fn starts_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// Whether `byte` may stand in a name.
pub fn continues_name(byte: u8) -> bool {
    starts_name(byte) || byte.is_ascii_digit() || byte == b'$'
}

/// How many bytes at the beginning of `text` satisfy `wanted`.
fn while_true(text: &[u8], wanted: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|byte| !wanted(*byte)).unwrap_or(text.len())
}

/// The length of a text in quotes: `quote`, anything (doubled quotes belong to it, escaped ones too where `escapes`), `quote`.
fn quoted(text: &[u8], quote: u8, escapes: bool) -> usize {
    let mut position = 1;
    while let Some(byte) = text.get(position) {
        position += 1;
        if escapes && *byte == b'\\' {
            position += 1;
        } else if *byte == quote {
            if text.get(position) != Some(&quote) {
                return position;
            }
            position += 1;
        }
    }
    text.len()
}

fn block_comment(text: &[u8]) -> usize {
    let (mut position, mut depth) = (2, 1_usize);
    while depth > 0 {
        match text.get(position..).map(|rest| (rest.first(), rest.get(1))) {
            Some((Some(b'/'), Some(b'*'))) => (depth, position) = (depth + 1, position + 2),
            Some((Some(b'*'), Some(b'/'))) => (depth, position) = (depth - 1, position + 2),
            Some((Some(_), _)) => position += 1,
            _ => return text.len(),
        }
    }
    position
}

/// The length of a text between dollars at the beginning of `text`.
fn dollars(text: &[u8]) -> Option<usize> {
    let tag = 1 + while_true(text.get(1..)?, |byte| continues_name(byte) && byte != b'$');
    if text.get(tag) != Some(&b'$') || text.get(1).is_some_and(u8::is_ascii_digit) {
        return None;
    }
    let delimiter = text.get(..=tag)?;
    let body = text.get(tag + 1..)?;
    let end = memchr::memmem::find(body, delimiter)?;
    Some(delimiter.len() * 2 + end)
}

/// The tokens of `statement`, which the lexer has found to be whole; comments are none.
pub fn tokens(statement: &[u8]) -> Vec<Token<'_>> {
    let mut found: Vec<Token<'_>> = Vec::new();
    let mut start = 0;
    while let Some(rest) = statement.get(start..)
        && let Some(&first) = rest.first()
    {
        let second = rest.get(1).copied();
        let (kind, length) = match first {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C => (None, 1),
            b'-' if second == Some(b'-') => (None, while_true(rest, |byte| byte != b'\n' && byte != b'\r')),
            b'/' if second == Some(b'*') => (None, block_comment(rest)),
            b'\'' => (Some(Kind::Text), quoted(rest, b'\'', false)),
            b'"' => (Some(Kind::Quoted), quoted(rest, b'"', false)),
            b'e' | b'E' if second == Some(b'\'') => (Some(Kind::Text), 1 + quoted(rest.get(1..).unwrap_or_default(), b'\'', true)),
            b'$' => match dollars(rest) {
                Some(length) => (Some(Kind::Text), length),
                None => (Some(Kind::Number), 1 + while_true(rest.get(1..).unwrap_or_default(), |byte| byte.is_ascii_digit())),
            },
            _ if starts_name(first) => (Some(Kind::Word), while_true(rest, continues_name)),
            _ if first.is_ascii_digit() => (Some(Kind::Number), while_true(rest, |byte| byte.is_ascii_alphanumeric() || byte == b'.')),
            sign => (Some(Kind::Sign(sign)), 1),
        };
        if let (Some(kind), Some(text)) = (kind, rest.get(..length)) {
            found.push(Token { kind, text, start });
        }
        start += length.max(1);
    }
    found
}
