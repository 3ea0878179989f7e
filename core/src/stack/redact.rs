//! Copies of configuration without its secrets: everything that is no secret stays as it is, byte for byte.
//!
//! Secret is the value of a name that says so (see [`is_secret`]) wherever a name has a value: in files of variables, in YAML, in commands, in
//! comments; what stands before the host in a URL; the value of a variable that is used as a secret; and what was found to be one, wherever it stands
//! again. A file that is not understood has no copy without secrets.

mod learn;

use super::variables::{self, VariableError};
use super::yaml::{self, Node};
use regex::{Captures, Regex};
use saphyr::{ScalarStyle, ScanError, YamlData};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::LazyLock;

/// What stands in place of a secret.
pub const MARK: &str = "<redacted by immich-backup>";

/// A name that has one of these in it names a secret, whatever its case.
const WORDS: [&str; 11] = ["PASS", "PWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "PRIVATE", "AUTH", "DSN", "WEBHOOK", "SIGNATURE"];

/// Programs whose `-a` is a password.
const WITH_PASSWORD_OPTION: [&str; 2] = ["redis-cli", "valkey-cli"];

/// Options whose value is `NAME:PASSWORD`, as curl and wget have them.
const USER_OPTIONS: [&str; 4] = ["-u", "--user", "--proxy-user", "-U"];

/// Keys of Compose that list names of secrets, and have none themselves.
const LISTS_OF_NAMES: [&str; 2] = ["secrets", "configs"];

/// Parts of a Compose file whose keys are what people called something: a service `keycloak` is no secret.
const NAMED_PARTS: [&str; 3] = ["services", "networks", "volumes"];

/// Tags that say of what kind a value is, to YAML and to Compose. Another one may be a password that begins so.
const TAGS: [&str; 8] = ["!!str", "!!int", "!!float", "!!bool", "!!null", "!!binary", "!reset", "!override"];

/// A secret that is shorter may stand in any word.
const SWEPT_LENGTH_MIN: usize = 8;

/// Whether a value of this name is a secret.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// What a name ends in whose value says where a secret lies, and is none.
const ENDS_OF_PLACES: [&str; 4] = ["FILE", "PATH", "DIR", "LOCATION"];

/// Whether the variables in a value of this name may hold a secret: those of `DB_PASSWORD_FILE=${UPLOAD_LOCATION}/password` do not.
#[must_use]
pub fn takes_secrets(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    is_secret(&name) && !ENDS_OF_PLACES.iter().any(|end| name.ends_with(end))
}

/// The password, where what follows an option is a name and a password, and not the numbers of a user and a group.
fn password_of<'a>(option: &str, value: &'a str) -> Option<&'a str> {
    let is_number = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let (name, password) = value.split_once(':').filter(|_| USER_OPTIONS.contains(&option))?;
    Some(password).filter(|_| !(password.is_empty() || is_number(name) && is_number(password)))
}

fn has_password(option: &str, value: &str) -> bool {
    password_of(option, value).is_some_and(|password| !is_reference(password))
}

/// Whether this option of a command that has `whole` in it is a password, though its name does not say so.
fn is_secret_option(name: &str, whole: &str) -> bool {
    name.eq_ignore_ascii_case("sig") || (name == "-a" && WITH_PASSWORD_OPTION.iter().any(|program| whole.contains(program)))
}

/// Whether the next word of a command is a secret after those that came `earlier`.
fn asks_for_secret(earlier: &[&str], next: &str, is_secret: impl Fn(&str) -> bool) -> bool {
    let last = earlier.last().copied().unwrap_or_default();
    let asks_for_one = last.starts_with('-') && !last.contains('=') && is_secret(last) && !next.starts_with('-');
    asks_for_one || (last == "-a" && earlier.iter().any(|word| WITH_PASSWORD_OPTION.iter().any(|program| word.ends_with(program))))
}

/// The name of an option, without what stood before it.
fn bare(name: &str) -> &str {
    name.trim_start_matches([' ', '\t', '\n', '"', '\'', '[', ','])
}

/// Patterns that are written here; a test compiles each.
fn pattern(text: &str) -> Option<Regex> {
    Regex::new(text).ok()
}

/// How a value is quoted within a text that may be quoted itself: `"…"`, `\"…\"`, `''…''`, `'…'`.
const QUOTED: &str = r#"\\+"(?:[^"\\\n]|\\+[^"\\\n])*\\+"|\\+'(?:[^'\\\n]|\\+[^'\\\n])*\\+'|"[^"\n]*"|''[^'\s][^'\n]*''|'[^'\n]*'"#;

/// A quote without its fellow, which hides nothing either.
const LONE: &str = r#"(?:\\+["'])?"#;

/// `NAME=value` in a command: the value up to a blank, or as it is quoted.
static ASSIGNED: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(&format!(r#"(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\\*["']?[ \t]*=[ \t]*(?P<value>{QUOTED}|{LONE}[^\s"']+)"#)));

/// `NAME: value` in a text: up to the end of its line or of its quotes.
static HEADER: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(&format!(r#"(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\\*["']?[ \t]*:[ \t]+(?P<value>{QUOTED}|{LONE}[^\r\n"']+)"#)));

/// `NAME=value` or `NAME: value` in a comment, up to the first character of a value that goes to the end of its line: nobody says how values are quoted
/// there. Blanks alone are no value: they may be those before the value of an assignment, which is taken out by itself.
static COMMENTED: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)["']?[ \t]*(?:=[^\S\r\n]*|:[^\S\r\n]+)(?P<line>\S)"#));

/// `--name value`, `--name=value`, also on the next line. What begins like an option is none's value: it would hide the one that comes after (`-f -u anna:secret`).
static OPTION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let option = r#"(?P<name>(?:^|[\s"'\[,])--?[A-Za-z0-9][A-Za-z0-9_.-]*)(?P<sign>(?:[ \t]|\\\r?\n)+|=)"#;
    pattern(&format!(r#"{option}(?P<value>{QUOTED}|{LONE}[^\s"'-][^\s"']*)"#))
});

/// What may be looked at again and again, because values lie in values: from there on each is taken for a secret. Files of Compose are a few KiB, with little
/// of that.
const LOOKED_AT_BYTES_MAX: usize = 16 << 20;

/// Where to look in a value that is no secret as a whole, and in a comment.
static IN_VALUES: [&LazyLock<Option<Regex>>; 5] = [&USER, &QUERY, &ASSIGNED, &HEADER, &OPTION];
static IN_COMMENTS: [&LazyLock<Option<Regex>>; 4] = [&USER, &QUERY, &COMMENTED, &OPTION];

/// What each of these patterns finds is called so.
const SECRET_PARTS: [&str; 3] = ["user", "value", "line"];

/// What stands before the host in a URL.
static USER: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r#"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^\s"'/@:]*:[^\s"]*|[^\s"'/@]*)@"#));

/// `name=value` in what a URL asks for: `sig` is the signature in those that Azure gives out.
static QUERY: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r#"[?&](?P<name>[A-Za-z_][A-Za-z0-9_.-]*)=(?P<value>[^&\s"'\#]+)"#));

/// `${NAME:-default}`.
static DEFAULT: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"^(?P<begin>\$\{[A-Za-z_][A-Za-z0-9_]*:?[-+])[^{}$]*\}$"));

/// A variable, and nothing that could hold a secret.
static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"^(?:\$[A-Za-z_][A-Za-z0-9_]*|\$\{[A-Za-z_][A-Za-z0-9_]*(?::?-|:?\+|:?\?[^{}$]*)?\})$"));

/// An anchor or a tag before a value.
static BEFORE_VALUE: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"^(?:[&!]\S*\s+)+"));

/// Why a file has no copy without secrets. No secret is in it.
#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    /// It is no YAML.
    #[error("it is no YAML that Compose would take (line {line})")]
    Yaml {
        /// Where it was understood last.
        line: usize,
    },
    /// It is no file of variables.
    #[error(transparent)]
    Variables(#[from] VariableError),
}

impl From<ScanError> for RedactError {
    fn from(error: ScanError) -> Self {
        Self::Yaml { line: error.marker().line() }
    }
}

/// What is known of the secrets of a project, and how many were taken out.
#[derive(Debug, Default)]
pub struct Redactor {
    /// Variables that stand where a secret is expected, though their names do not say so.
    names: BTreeSet<String>,
    /// Secrets that were found.
    values: BTreeSet<String>,
    /// How many were taken out.
    pub count: u64,
}

fn is_reference(text: &str) -> bool {
    REFERENCE.as_ref().is_some_and(|pattern| pattern.is_match(text))
}

fn unquoted(text: &str) -> &str {
    let quote = quote(text);
    text.get(quote.len()..text.len() - quote.len()).unwrap_or(text)
}

/// What stands both before and behind a quoted text: a quote, one that is escaped, or two where they mean one.
fn quote(text: &str) -> &str {
    let bare = text.trim_start_matches('\\');
    let length = match bare.chars().next() {
        Some('\'') if text.len() > 4 && text.starts_with("''") => 2,
        Some('"' | '\'') => text.len() - bare.len() + 1,
        _ => 0,
    };
    let quote = text.get(..length).unwrap_or_default();
    if text.len() >= 2 * length && text.ends_with(quote) { quote } else { "" }
}

/// Long enough, and no plain word that stands elsewhere for something else.
fn is_swept(value: &str) -> bool {
    let kinds = [
        value.chars().any(|c| c.is_lowercase()),
        value.chars().any(|c| c.is_uppercase()),
        value.chars().any(|c| c.is_ascii_digit()),
        value.chars().any(|c| !c.is_alphanumeric()),
    ];
    value.chars().count() >= SWEPT_LENGTH_MIN && kinds.into_iter().filter(|has| *has).count() >= 2
}

impl Redactor {
    /// Whether a value of this name is a secret here.
    fn is_secret(&self, name: &str) -> bool {
        is_secret(name) || self.names.contains(name)
    }

    fn keep(&mut self, value: &str) {
        if !is_reference(unquoted(value.trim())) {
            self.keep_literal(value);
        }
    }

    /// Keeps what looks like `$NAME` and is not, too.
    fn keep_literal(&mut self, value: &str) {
        let value = unquoted(value.trim());
        if is_swept(value) && !value.contains(MARK) {
            self.values.insert(value.to_owned());
        }
    }

    /// A file of variables without its secrets: `NAME="" # <redacted by immich-backup>`.
    ///
    /// # Errors
    /// It is not understood.
    pub fn variables(&mut self, text: &str) -> Result<String, RedactError> {
        let mut edits = Vec::new();
        let mut taken = None;
        for assignment in variables::assignments(text)? {
            let place = assignment.place.clone();
            edits.extend(self.edits_between(text, taken, place.start));
            let raw = assignment.raw(text);
            // Between single quotes, a `$` is one.
            if raw.is_empty() || (assignment.is_expanded() && is_reference(raw)) {
                // Nothing to hide.
            } else if self.is_secret(&assignment.name) {
                self.keep_literal(raw);
                self.count += 1;
                edits.push((place.clone(), format!("\"\" # {MARK}")));
            } else {
                edits.extend(self.edits_within(text, place.clone(), &IN_VALUES));
            }
            taken = Some(place.end);
        }
        edits.extend(self.edits_between(text, taken, text.len()));
        let copy = edited(text, edits);
        // Whoever uses it has to understand it.
        variables::assignments(&copy)?;
        Ok(copy)
    }

    /// A YAML file without its secrets.
    ///
    /// # Errors
    /// It is not understood.
    pub fn yaml(&mut self, text: &str) -> Result<String, RedactError> {
        let documents = yaml::documents(text)?;
        let mut places: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
        places.push(text.len());
        let mut walk = Walk { text, places, edits: Vec::new(), scalars: Vec::new(), anchors: Vec::new(), aliases: BTreeSet::new() };
        for document in &documents {
            self.walk_file(document, &mut walk);
        }
        let Walk { mut edits, mut scalars, anchors, aliases, .. } = walk;
        for (_, place) in anchors.into_iter().filter(|(name, _)| aliases.contains(name)) {
            let raw = text.get(place.clone()).unwrap_or_default();
            let is_done = edits.iter().any(|(done, _)| *done == place);
            if !is_done && !raw.is_empty() && !is_reference(unquoted(raw)) {
                self.keep(raw);
                self.count += 1;
                edits.push((place, format!("\"{MARK}\"")));
            }
        }
        scalars.sort_by_key(|range| (range.start, range.end));
        // What is no value may be a comment.
        let mut at = 0;
        for scalar in scalars.into_iter().chain(std::iter::once(text.len()..text.len())) {
            if at < scalar.start {
                edits.extend(self.edits_of_comments(text, at..scalar.start));
            }
            at = at.max(scalar.end);
        }
        let copy = edited(text, edits);
        // Whoever uses it has to understand it.
        yaml::documents(&copy)?;
        Ok(copy)
    }

    /// A whole file: what its services, networks and volumes are called says nothing of what is in them.
    fn walk_file(&mut self, document: &Node<'_>, walk: &mut Walk<'_>) {
        for (key, value) in yaml::own_pairs(document) {
            let parts = yaml::own_pairs(value);
            let is_named = yaml::text(key).is_some_and(|key| NAMED_PARTS.contains(&key)) && !parts.is_empty();
            if !is_named {
                self.walk_pair(key, value, walk);
                continue;
            }
            walk.note(key);
            for (name, described) in parts {
                if yaml::own_pairs(described).is_empty() {
                    self.walk_pair(name, described, walk);
                } else {
                    self.walk(name, walk);
                    self.walk(described, walk);
                }
            }
        }
        if yaml::own_pairs(document).is_empty() {
            self.walk(document, walk);
        }
    }

    fn walk_pair(&mut self, key: &Node<'_>, value: &Node<'_>, walk: &mut Walk<'_>) {
        // A key is a name; but `- PASSWORD=a: b`, which was meant as one value, has a part of it in its key.
        self.walk(key, walk);
        let name = yaml::text(key).unwrap_or_default();
        if LISTS_OF_NAMES.contains(&name) {
            self.walk_names(value, walk);
        } else if self.is_secret(name) {
            self.take_all(value, walk);
        } else {
            self.walk(value, walk);
        }
    }

    fn walk(&mut self, node: &Node<'_>, walk: &mut Walk<'_>) {
        let pairs = yaml::own_pairs(node);
        for (key, value) in &pairs {
            self.walk_pair(key, value, walk);
        }
        let mut earlier: Vec<&str> = Vec::new();
        for item in yaml::items(node).unwrap_or_default() {
            let text = yaml::text(item).unwrap_or_default();
            if asks_for_secret(&earlier, text, |name| self.is_secret(name)) || earlier.last().is_some_and(|last| has_password(last, text)) {
                self.take_all(item, walk);
            } else {
                self.walk(item, walk);
            }
            earlier.push(text);
        }
        if pairs.is_empty() && yaml::items(node).is_none() {
            let place = walk.note(node);
            // NAME=VALUE, which may have blanks in it.
            let whole = yaml::text(node).and_then(|text| text.split_once('='));
            match whole {
                Some((name, value)) if !name.contains([' ', '\n']) && self.is_secret(name) => self.take_value(value, place, walk),
                _ => walk.edits.extend(self.edits_within(walk.text, place, &IN_VALUES)),
            }
        }
    }

    /// `secrets:` and `configs:`: what is listed there are names and files, but for a `content`.
    fn walk_names(&mut self, node: &Node<'_>, walk: &mut Walk<'_>) {
        let pairs = yaml::own_pairs(node);
        if pairs.is_empty() {
            self.walk(node, walk);
        }
        for (name, described) in pairs {
            walk.note(name);
            let inner = yaml::own_pairs(described);
            if inner.is_empty() {
                self.walk(described, walk);
            }
            for (key, value) in inner {
                walk.note(key);
                if yaml::text(key) == Some("content") { self.take_all(value, walk) } else { self.walk(value, walk) }
            }
        }
    }

    /// Takes out all that stands below a name that names a secret, keys too: `a: b` without quotes is a mapping, though one value was meant.
    fn take_all(&mut self, node: &Node<'_>, walk: &mut Walk<'_>) {
        if yaml::text(node).is_none() {
            self.take_properties(node, walk);
        }
        for (key, value) in yaml::own_pairs(node) {
            match yaml::text(key) {
                Some(yaml::MERGE) => drop(walk.note(key)),
                // With a number: a mapping has no key twice.
                Some(_) => self.take(key, &format!("{MARK} {}", self.count + 1), walk),
                None => self.take_all(key, walk),
            }
            self.take_all(value, walk);
        }
        match yaml::items(node) {
            Some(items) => items.iter().for_each(|item| self.take_all(item, walk)),
            None if yaml::text(node).is_some() => self.take(node, MARK, walk),
            None => {}
        }
    }

    /// Takes out the whole value, or key; `mark` stands there then.
    fn take(&mut self, node: &Node<'_>, mark: &str, walk: &mut Walk<'_>) {
        self.take_properties(node, walk);
        let place = walk.note(node);
        let value = yaml::text(node).unwrap_or_default();
        let raw = walk.text.get(place.clone()).unwrap_or_default();
        if unquoted(raw).is_empty() || is_reference(value) {
            return;
        }
        if let Some(alias) = raw.strip_prefix('*') {
            // What it stands for is elsewhere, maybe under a name that tells nothing.
            walk.aliases.insert(alias.trim().to_owned());
            return;
        }
        self.keep(value);
        self.count += 1;
        let is_block = matches!(style(node), Some(ScalarStyle::Literal | ScalarStyle::Folded));
        let new = match DEFAULT.as_ref().and_then(|pattern| pattern.captures(value)) {
            Some(found) => format!("\"{}{mark}}}\"", found.name("begin").map_or("", |begin| begin.as_str())),
            None if is_block => {
                let end = raw.trim_end_matches(['\n', '\r', ' ']).len();
                format!("{mark}{}", raw.get(end..).unwrap_or_default())
            }
            None => format!("\"{mark}\""),
        };
        walk.edits.push((place, new));
    }

    /// Takes out what stands before a secret and may be the beginning of it: `!` and `&` have a meaning where a value begins.
    fn take_properties(&mut self, node: &Node<'_>, walk: &mut Walk<'_>) {
        let (text, start) = (walk.text, walk.at(node.span.start.index()));
        let raw = text.get(start..walk.at(node.span.end.index())).unwrap_or_default();
        let before = BEFORE_VALUE.as_ref().and_then(|pattern| pattern.find(raw)).map_or("", |found| found.as_str());
        let mut end = 0;
        for word in before.split_whitespace() {
            let at = before.get(end..).and_then(|rest| rest.find(word)).map_or(end, |skipped| end + skipped);
            end = at + word.len();
            // An anchor is a name where something refers to it.
            let is_used = word.strip_prefix('&').is_some_and(|name| text.contains(&format!("*{name}")));
            if !is_used && !TAGS.contains(&word) {
                self.count += 1;
                walk.edits.push((start + at..start + end, String::new()));
            }
        }
    }

    /// Takes the value out of `NAME=VALUE`, which stands at `place` in some style.
    fn take_value(&mut self, value: &str, place: Range<usize>, walk: &mut Walk<'_>) {
        if value.is_empty() || is_reference(value) {
            return;
        }
        self.keep(value);
        self.count += 1;
        let raw = walk.text.get(place.clone()).unwrap_or_default();
        let name = raw.split_once('=').map_or(raw, |(name, _)| name);
        let close = name.chars().next().filter(|c| matches!(c, '"' | '\'')).map_or_else(String::new, String::from);
        let new = match DEFAULT.as_ref().and_then(|pattern| pattern.captures(value)) {
            Some(found) => format!("{}{MARK}}}", found.name("begin").map_or("", |begin| begin.as_str())),
            None => MARK.to_owned(),
        };
        walk.edits.push((place, format!("{name}={new}{close}")));
    }

    /// Edits of what stands between two values of a file of variables: what is left of the line behind a value is a comment, whatever it begins with;
    /// then come names, and comments behind a `#`.
    fn edits_between(&mut self, text: &str, value_end: Option<usize>, next: usize) -> Vec<Edit> {
        let Some(begin) = value_end else { return self.edits_of_comments(text, 0..next) };
        let line_end = text.get(begin..next).and_then(|between| between.find('\n')).map_or(next, |length| begin + length);
        let mut edits = self.edits_within(text, begin..line_end, &IN_COMMENTS);
        edits.extend(self.edits_of_comments(text, line_end..next));
        edits
    }

    /// Edits of the comments in this part of a file, in which each `#` begins one.
    fn edits_of_comments(&mut self, text: &str, part: Range<usize>) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut at = part.start;
        for line in text.get(part).unwrap_or_default().split_inclusive('\n') {
            if let Some(sign) = line.find('#') {
                edits.extend(self.edits_within(text, at + sign..at + line.len(), &IN_COMMENTS));
            }
            at += line.len();
        }
        edits
    }

    /// Edits of what looks like a secret in this part of the text: assignments, options of commands, URLs.
    fn edits_within(&mut self, text: &str, part: Range<usize>, patterns: &[&LazyLock<Option<Regex>>]) -> Vec<Edit> {
        let Some(whole) = text.get(part.clone()) else { return Vec::new() };
        let mut edits: Vec<Edit> = Vec::new();
        let mut found = Vec::new();
        for pattern in patterns.iter().filter_map(|pattern| pattern.as_ref()) {
            let (mut at, mut line_end, mut looked_at) = (0, 0, 0_usize);
            while let Some(captures) = pattern.captures_at(whole, at) {
                let Some(mut place) = SECRET_PARTS.into_iter().find_map(|name| captures.name(name)).map(|found| found.range()) else { break };
                if captures.name("line").is_some() {
                    if place.start >= line_end {
                        let rest = whole.get(place.start..).unwrap_or_default();
                        line_end = place.start + rest.find(['\r', '\n']).unwrap_or(rest.len());
                    }
                    place.end = line_end;
                } else if whole.get(place.end..).is_some_and(|rest| rest.starts_with(['"', '\''])) {
                    // They belong to the quote, which ends what the value stands in.
                    place.end = place.start + whole.get(place.clone()).unwrap_or_default().trim_end_matches('\\').len();
                }
                if place.is_empty() {
                    at = captures.get_match().end();
                    continue;
                }
                looked_at = looked_at.saturating_add(captures.get_match().len());
                if looked_at > LOOKED_AT_BYTES_MAX || self.is_taken(&captures, whole.get(place.clone()).unwrap_or_default(), whole) {
                    at = place.end;
                    found.push(place);
                } else {
                    // A value that is no secret may have one in it: `# before: PASSWORD=…`, `-c "server --password …"`.
                    at = place.start;
                }
            }
        }
        found.sort_by_key(|place| (place.start, std::cmp::Reverse(place.end)));
        for place in found {
            let raw = whole.get(place.clone()).unwrap_or_default();
            let place = part.start + place.start..part.start + place.end;
            if let Some((last, _)) = edits.last_mut()
                && last.end > place.start
            {
                last.end = last.end.max(place.end);
                continue;
            }
            self.keep(raw);
            self.count += 1;
            let quote = quote(raw);
            edits.push((place, format!("{quote}{MARK}{quote}")));
        }
        edits
    }

    /// Whether `value`, which was found in `whole`, is a secret.
    fn is_taken(&self, captures: &Captures<'_>, value: &str, whole: &str) -> bool {
        if captures.name("user").is_some() {
            // `${USER}:${PASSWORD}@` tells nobody anything.
            let secret = learn::password_before_host(value);
            return !secret.is_empty() && !is_reference(secret);
        }
        let (name, value) = (captures.name("name").map_or("", |found| found.as_str()), unquoted(value));
        let name = bare(name);
        let is_option = name.starts_with('-') && value.starts_with('-');
        (self.is_secret(name) || is_secret_option(name, whole) || has_password(name, value))
            // Blanks before a value that was taken out as a whole.
            && !value.trim().is_empty()
            && !is_reference(value)
            && !is_option
            && !value.contains(MARK)
    }

    /// `text` without the secrets that were found anywhere.
    #[must_use]
    pub fn swept(&mut self, text: &str) -> String {
        let mut out = text.to_owned();
        // The longest first: one may be a part of another.
        let mut values: Vec<_> = self.values.iter().collect();
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in values {
            let times = out.matches(value.as_str()).count();
            if times > 0 {
                self.count += times as u64;
                out = out.replace(value.as_str(), MARK);
            }
        }
        out
    }
}

/// What is replaced, and by what.
type Edit = (Range<usize>, String);

struct Walk<'a> {
    text: &'a str,
    /// Where each character begins; the parser counts in characters.
    places: Vec<usize>,
    edits: Vec<Edit>,
    /// Places of all scalars: what is there is no comment.
    scalars: Vec<Range<usize>>,
    /// Names of anchors, and the value that each is for.
    anchors: Vec<(String, Range<usize>)>,
    /// Anchors that are used as secrets.
    aliases: BTreeSet<String>,
}

impl Walk<'_> {
    /// Where the character of this number begins.
    fn at(&self, index: usize) -> usize {
        self.places.get(index).copied().unwrap_or(self.text.len())
    }

    /// Where the scalar stands, without an anchor or a tag before it.
    fn note(&mut self, node: &Node<'_>) -> Range<usize> {
        let (start, end) = (self.at(node.span.start.index()), self.at(node.span.end.index()));
        if yaml::text(node).is_none() {
            return start..start;
        }
        let raw = self.text.get(start..end).unwrap_or_default();
        let before = BEFORE_VALUE.as_ref().and_then(|pattern| pattern.find(raw)).map_or(0, |found| found.end());
        // The parser counts a comment behind a quoted value as a part of it.
        let length = raw.get(before..).and_then(quoted_length).unwrap_or(raw.len() - before);
        let place = start + before..start + before + length;
        self.scalars.push(start..place.end);
        let named = raw.get(..before).unwrap_or_default().split_whitespace().filter_map(|word| word.strip_prefix('&'));
        self.anchors.extend(named.map(|name| (name.to_owned(), place.clone())));
        place
    }
}

/// Length of a value that begins with a quote, up to the one that ends it.
fn quoted_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        match (character, quote) {
            ('\\', '"') => drop(characters.next()),
            ('\'', '\'') if characters.peek().is_some_and(|(_, next)| *next == '\'') => drop(characters.next()),
            (character, quote) if character == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

fn style(node: &Node<'_>) -> Option<ScalarStyle> {
    match &node.data {
        YamlData::Representation(_, style, _) => Some(*style),
        YamlData::Tagged(_, inner) => style(inner),
        _ => None,
    }
}

fn edited(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(place, _)| (place.start, place.end));
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for (place, new) in edits {
        // The same value by two ways: a mapping that others bring in.
        if place.start < at {
            continue;
        }
        out.push_str(text.get(at..place.start).unwrap_or_default());
        out.push_str(&new);
        at = place.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests;
