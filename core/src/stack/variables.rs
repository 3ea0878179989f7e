//! Compose's variables: what `${…}` stands for, and what an `.env` file says.
//!
//! The rules are Compose's own ("Interpolation" and "Environment file" in its specification; compose-go's packages `template` and `dotenv`), which
//! no reader of `.env` files for other programs keeps to: values with blanks in them, `${X:-default}`, names without a value.

use std::collections::BTreeMap;
use std::ops::Range;

/// How deep `${A:-${B:-…}}` may go.
const DEPTH_MAX: usize = 16;

/// The longest value: Linux starts no program with a longer one. A variable may double the one before it, line by line.
const VALUE_BYTES_MAX: usize = 128 << 10;

/// What the values of a file may come to.
const VALUES_BYTES_MAX: usize = 16 << 20;

/// Names and values.
pub type Variables = BTreeMap<String, String>;

/// Why a text with variables, or a file of them, says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// `${X:?…}`, and X has no value.
    #[error("the variable `{0}` has to have a value, and has none")]
    Required(String),
    /// A `$` that nothing comes of.
    #[error("a `$` is followed by what is no variable (a plain one is written `$$`)")]
    Malformed,
    /// A quoted value without an end.
    #[error("the value of `{0}` has no end")]
    Unterminated(String),
    /// Values that name others which name others.
    #[error("the values of variables make up a text that is longer than any program may have")]
    TooLong,
    /// A line that is no assignment.
    #[error("line {0} is no assignment")]
    Line(usize),
}

fn is_name_start(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_'
}

fn is_name(character: char) -> bool {
    is_name_start(character) || character.is_ascii_digit()
}

/// `text` with its variables replaced by their values. A variable without one is nothing.
///
/// # Errors
/// See [`VariableError`].
pub fn expanded(text: &str, variables: &Variables) -> Result<String, VariableError> {
    expand(text, variables, 0)
}

fn expand(text: &str, variables: &Variables, depth: usize) -> Result<String, VariableError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        if out.len() > VALUE_BYTES_MAX {
            return Err(VariableError::TooLong);
        }
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(braced) = after.strip_prefix('{') {
            let end = closing(braced).ok_or(VariableError::Malformed)?;
            let (inner, after) = (braced.get(..end).unwrap_or_default(), braced.get(end + 1..).unwrap_or_default());
            out.push_str(&substituted(inner, variables, depth)?);
            rest = after;
        } else if after.starts_with(is_name_start) {
            let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            out.push_str(variables.get(name).map_or("", String::as_str));
            rest = after;
        } else {
            return Err(VariableError::Malformed);
        }
    }
    out.push_str(rest);
    if out.len() > VALUE_BYTES_MAX { Err(VariableError::TooLong) } else { Ok(out) }
}

/// Where the brace that was opened before `text` is closed.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut dollar) = (0, false);
    for (index, character) in text.char_indices() {
        match character {
            '{' if dollar => depth += 1,
            '}' if depth == 0 => return Some(index),
            '}' => depth -= 1,
            _ => {}
        }
        dollar = character == '$';
    }
    None
}

/// What stands between the braces of `${…}`: a name, and what to do where it has no value.
fn substituted(inner: &str, variables: &Variables, depth: usize) -> Result<String, VariableError> {
    if depth >= DEPTH_MAX || !inner.starts_with(is_name_start) {
        return Err(VariableError::Malformed);
    }
    let (name, operation) = inner.split_at(inner.find(|c| !is_name(c)).unwrap_or(inner.len()));
    let value = variables.get(name);
    let full = value.filter(|value| !value.is_empty());
    let operations = [":-", ":?", ":+", "-", "?", "+"];
    let chosen = operations.into_iter().find_map(|sign| Some((sign, operation.strip_prefix(sign)?)));
    let or_else = |found: Option<&String>, word: &str| found.map_or_else(|| expand(word, variables, depth + 1), |value| Ok(value.clone()));
    let required = |found: Option<&String>| found.cloned().ok_or_else(|| VariableError::Required(name.to_owned()));
    let instead = |found: Option<&String>, word: &str| found.map_or_else(|| Ok(String::new()), |_| expand(word, variables, depth + 1));
    match chosen {
        None if operation.is_empty() => Ok(value.cloned().unwrap_or_default()),
        Some((":-", word)) => or_else(full, word),
        Some(("-", word)) => or_else(value, word),
        Some((":?", _)) => required(full),
        Some(("?", _)) => required(value),
        Some((":+", word)) => instead(full, word),
        Some(("+", word)) => instead(value, word),
        _ => Err(VariableError::Malformed),
    }
}

/// Names of the variables that `text` mentions, also of those that only a shell in the container replaces (`$$NAME`).
pub(super) fn mentioned(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        rest = after;
        let name = after.strip_prefix('{').unwrap_or(after);
        let name = name.get(..name.find(|c| !is_name(c)).unwrap_or(name.len())).unwrap_or_default();
        names.extend(Some(name).filter(|name| !name.is_empty()));
    }
    names
}

/// One assignment of an `.env` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The name.
    pub name: String,
    /// Where its value stands in the file, with its quotes; empty where there is none.
    pub place: Range<usize>,
    /// How it is quoted, if it is.
    quote: Option<char>,
    /// Whether there is a value at all: a name alone takes that of whoever calls Compose.
    has_value: bool,
}

/// The assignments of an `.env` file, in their order.
///
/// # Errors
/// It is not understood.
pub fn assignments(text: &str) -> Result<Vec<Assignment>, VariableError> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let Some(begin) = rest.find(|c: char| !c.is_whitespace() && c != '\u{feff}') else { return Ok(found) };
        at += begin;
        let rest = text.get(at..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default();
        if line.starts_with('#') {
            at += line.len();
            continue;
        }
        let number = || text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        let exported = line.strip_prefix("export").filter(|after| after.starts_with([' ', '\t'])).map_or(line, str::trim_start);
        let key_at = at + line.len() - exported.len();
        let Some(end) = exported.find(['=', ':']) else {
            let name = exported.split(" #").next().unwrap_or_default().trim();
            if name.is_empty() || !name.chars().all(is_key) {
                return Err(VariableError::Line(number()));
            }
            at += line.len();
            found.push(Assignment { name: name.to_owned(), place: at..at, quote: None, has_value: false });
            continue;
        };
        let name = exported.get(..end).unwrap_or_default().trim_end();
        if name.is_empty() || !name.chars().all(is_key) {
            return Err(VariableError::Line(number()));
        }
        let after = text.get(key_at + end + 1..).unwrap_or_default();
        let blank = after.find(|c: char| !matches!(c, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r' | '\u{85}' | '\u{a0}')).unwrap_or(after.len());
        let value_at = key_at + end + 1 + blank;
        let value = text.get(value_at..).unwrap_or_default();
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let length = match quote {
            Some(quote) => quoted_length(value, quote).ok_or_else(|| VariableError::Unterminated(name.to_owned()))?,
            None => {
                let line = value.split('\n').next().unwrap_or_default();
                let comment = line.find(" #").or_else(|| line.find("\t#")).unwrap_or(line.len());
                line.get(..comment).unwrap_or_default().trim_end().len()
            }
        };
        found.push(Assignment { name: name.to_owned(), place: value_at..value_at + length, quote, has_value: true });
        at = value_at + length;
        // What is left of the line is a comment.
        at += text.get(at..).unwrap_or_default().split('\n').next().map_or(0, str::len);
    }
}

fn is_key(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '.' | '-' | '[' | ']')
}

/// Length of what begins with `quote`, up to the next one that no backslash comes before.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut before = quote;
    for (index, character) in text.char_indices().skip(1) {
        if character == quote && before != '\\' {
            return Some(index + quote.len_utf8());
        }
        before = character;
    }
    None
}

impl Assignment {
    /// Its value as it stands in `text`, without quotes and before anything is replaced in it.
    #[must_use]
    pub fn raw<'a>(&self, text: &'a str) -> &'a str {
        let whole = text.get(self.place.clone()).unwrap_or_default();
        match self.quote {
            Some(_) => whole.get(1..whole.len().saturating_sub(1)).unwrap_or_default(),
            None => whole,
        }
    }

    /// Whether variables in its value are replaced by theirs.
    #[must_use]
    pub fn is_expanded(&self) -> bool {
        self.quote != Some('\'')
    }

    fn value(&self, text: &str, earlier: &Variables) -> Result<String, VariableError> {
        let raw = self.raw(text);
        match self.quote {
            Some('\'') => Ok(raw.to_owned()),
            Some(_) => expand(&unescaped(raw), earlier, 0),
            None => expand(raw, earlier, 0),
        }
    }
}

/// What backslashes mean between double quotes; one before a `$` makes that a plain one.
fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, (character == '\\').then(|| characters.clone().next()).flatten()) {
            ('\\', Some(next)) => {
                characters.next();
                match next {
                    'n' => out.push('\n'),
                    'r' => out.push('\r'),
                    't' => out.push('\t'),
                    '$' => out.push_str("$$"),
                    other => out.push(other),
                }
            }
            _ => out.push(character),
        }
    }
    out
}

/// Adds what an `.env` file says to `variables`; later assignments see earlier ones.
///
/// # Errors
/// It is not understood, a variable that has to have a value has none, or values are too long.
pub fn read(text: &str, variables: &mut Variables) -> Result<(), VariableError> {
    let mut bytes = 0_usize;
    for assignment in assignments(text)? {
        if assignment.has_value {
            let value = assignment.value(text, variables)?;
            bytes = bytes.saturating_add(value.len());
            if bytes > VALUES_BYTES_MAX {
                return Err(VariableError::TooLong);
            }
            variables.insert(assignment.name, value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Variables {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_are_replaced_as_compose_does_it() {
        let known = variables(&[("A", "a"), ("EMPTY", ""), ("_x9", "y")]);
        let cases = [
            ("plain", "plain"),
            ("$A-${A}b$_x9", "a-aby"),
            ("$$A costs 5$$", "$A costs 5$"),
            ("${NONE}${EMPTY}|$NONE", "|"),
            ("${NONE:-d} ${NONE-d} ${EMPTY:-d} ${EMPTY-d}", "d d d "),
            ("${NONE:-${A}/x}:/data", "a/x:/data"),
            ("${NONE:-${OTHER:-./library}}", "./library"),
            ("${A:+set} ${EMPTY:+set}|${EMPTY+set}${NONE+set}", "set |set"),
            ("${A:?say A} ${EMPTY?}", "a "),
            ("${A:-has-a-dash?}", "a"),
            ("${NONE:-}", ""),
            ("${NONE:-a:b-c?d}", "a:b-c?d"),
            ("}{", "}{"),
        ];
        for (text, expected) in cases {
            assert_eq!(expanded(text, &known).unwrap(), expected, "{text}");
        }
        assert_eq!(expanded("${EMPTY:?needed}", &known), Err(VariableError::Required("EMPTY".to_owned())));
        assert_eq!(expanded("${NONE?needed}", &known), Err(VariableError::Required("NONE".to_owned())));
        for text in ["${A", "$", "${}", "$1", "${A!x}", "a$-b"] {
            assert_eq!(expanded(text, &known), Err(VariableError::Malformed), "{text}");
        }
        let deep = "${N:-".repeat(40) + &"}".repeat(40);
        assert_eq!(expanded(&deep, &known), Err(VariableError::Malformed));
        assert_eq!(mentioned("${A:-x} $B $$C ${D}"), ["A", "B", "C", "D"]);
    }

    #[test]
    fn a_file_of_variables_is_read_as_compose_reads_it() {
        let text = concat!(
            "\u{feff}# The location where your uploaded files are stored\n",
            "UPLOAD_LOCATION=./library\r\n",
            "export TZ = Europe/Berlin   # where we are\n",
            "WITH_BLANKS=two words and a#hash\n",
            "SINGLE='raw $TZ \\n # no comment' # a comment\n",
            "DOUBLE=\"first\\nsecond $TZ \\\"said\\\" \\$5\"\n",
            "LINES='one\ntwo'\n",
            "EMPTY=\n",
            "COLON: value\n",
            "INHERITED\n",
            "REST=${UPLOAD_LOCATION}/x:${NONE:-d}\n",
            "   INDENTED=yes\n",
            "LAST=end",
        );
        let mut found = Variables::new();
        read(text, &mut found).unwrap();
        let expected = variables(&[
            ("UPLOAD_LOCATION", "./library"),
            ("TZ", "Europe/Berlin"),
            ("WITH_BLANKS", "two words and a#hash"),
            ("SINGLE", "raw $TZ \\n # no comment"),
            ("DOUBLE", "first\nsecond Europe/Berlin \"said\" $5"),
            ("LINES", "one\ntwo"),
            ("EMPTY", ""),
            ("COLON", "value"),
            ("REST", "./library/x:d"),
            ("INDENTED", "yes"),
            ("LAST", "end"),
        ]);
        assert_eq!(found, expected);
    }

    #[test]
    fn values_that_double_line_by_line_do_not_fill_the_memory() {
        let lines = |count: usize, line: &dyn Fn(usize) -> String| (1..count).fold("A0=xxxxxxxx\n".to_owned(), |text, number| text + &line(number) + "\n");
        let doubled = lines(60, &|number| format!("A{number}=$A{0}${{A{0}}}", number - 1));
        assert_eq!(read(&doubled, &mut Variables::new()), Err(VariableError::TooLong));
        // Within `${…}` too, where nothing has been written yet.
        let inside = lines(60, &|number| format!("A{number}=${{N:-$A{0}$A{0}}}", number - 1));
        assert_eq!(read(&inside, &mut Variables::new()), Err(VariableError::TooLong));
        let long = format!("A={}\n", "x".repeat(VALUE_BYTES_MAX));
        let many = (0..VALUES_BYTES_MAX / VALUE_BYTES_MAX).fold(long.clone(), |text, number| format!("{text}B{number}=$A\n"));
        assert_eq!(read(&many, &mut Variables::new()), Err(VariableError::TooLong));
        assert_eq!(read(&(long + "B=$A\n"), &mut Variables::new()), Ok(()));
    }

    #[test]
    fn what_is_no_assignment_is_named_by_its_line() {
        let wrong = |text: &str| read(text, &mut Variables::new()).unwrap_err();
        assert_eq!(wrong("A=1\nthis is not one\n"), VariableError::Line(2));
        assert_eq!(wrong("A=1\n\n=x\n"), VariableError::Line(3));
        assert_eq!(wrong("A='no end\nB=2\n"), VariableError::Unterminated("A".to_owned()));
        assert_eq!(wrong("A=${B:?}"), VariableError::Required("B".to_owned()));
    }
}
