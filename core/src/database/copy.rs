//! The text format of `COPY`: how rows, columns and values stand in a dump. See PostgreSQL's manual, `COPY`, "Text Format".

use jiff::Timestamp;
use memchr::memchr;
use std::borrow::Cow;
use uuid::Uuid;

/// The columns of a row, still escaped.
#[derive(Debug, Clone)]
pub struct Fields<'a>(Option<&'a [u8]>);

/// The columns of `row`, which has no line end.
#[must_use]
pub fn fields(row: &[u8]) -> Fields<'_> {
    Fields(Some(row))
}

impl<'a> Iterator for Fields<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        match memchr(b'\t', rest) {
            Some(end) => {
                self.0 = rest.get(end + 1..);
                rest.get(..end)
            }
            None => self.0.take(),
        }
    }
}

/// Whether a column, still escaped, is NULL.
#[must_use]
pub fn is_null(field: &[u8]) -> bool {
    field == b"\\N"
}

fn octal(byte: u8) -> Option<u8> {
    matches!(byte, b'0'..=b'7').then(|| byte - b'0')
}

fn hexadecimal(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// The bytes that a column stands for. Borrows where nothing is escaped. NULL has no bytes: ask [`is_null`] first.
#[must_use]
pub fn decode(field: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = memchr(b'\\', field) else { return Cow::Borrowed(field) };
    let mut bytes = Vec::with_capacity(field.len());
    bytes.extend(field.iter().take(first));
    let mut rest = field.get(first..).unwrap_or_default();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let Some((&escaped, tail)) = tail.split_first().filter(|_| byte == b'\\') else {
            bytes.push(byte);
            continue;
        };
        rest = tail;
        let mut number = |digit: fn(u8) -> Option<u8>, base: u8, most: usize, start: u8| {
            let mut value = start;
            for _ in 0..most {
                let Some(next) = rest.first().and_then(|byte| digit(*byte)) else { break };
                value = value.wrapping_mul(base).wrapping_add(next);
                rest = rest.get(1..).unwrap_or_default();
            }
            value
        };
        bytes.push(match escaped {
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 0x0B,
            b'x' if tail.first().is_some_and(|byte| hexadecimal(*byte).is_some()) => number(hexadecimal, 16, 2, 0),
            b'0'..=b'7' => number(octal, 8, 2, escaped - b'0'),
            other => other,
        });
    }
    Cow::Owned(bytes)
}

/// The bytes of a decoded `bytea`: `\x` and hex digits, or PostgreSQL's older form with octal escapes.
#[must_use]
pub fn bytea(value: &[u8]) -> Option<Vec<u8>> {
    if let Some(digits) = value.strip_prefix(b"\\x") {
        return hex::decode(digits).ok();
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            bytes.push(byte);
        } else if let Some(tail) = rest.strip_prefix(b"\\") {
            bytes.push(b'\\');
            rest = tail;
        } else {
            let (digits, tail) = rest.split_first_chunk::<3>()?;
            let [high, middle, low] = digits.map(octal);
            bytes.push(u8::try_from(u16::from(high?) * 64 + u16::from(middle?) * 8 + u16::from(low?)).ok()?);
            rest = tail;
        }
    }
    Some(bytes)
}

/// The texts of a decoded array of one dimension: `{a,"b \"c\"",NULL}`. NULLs are passed over.
#[must_use]
pub fn array(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut rest = value.strip_prefix(b"{")?.strip_suffix(b"}")?;
    let mut items = Vec::new();
    while !rest.is_empty() {
        let mut item = Vec::new();
        let quoted = rest.first() == Some(&b'"');
        if quoted {
            rest = rest.get(1..)?;
        }
        let ended = loop {
            let Some((&byte, tail)) = rest.split_first() else { break !quoted };
            rest = tail;
            match byte {
                b'\\' => {
                    let (&escaped, tail) = rest.split_first()?;
                    item.push(escaped);
                    rest = tail;
                }
                b'"' if quoted => break true,
                b'"' | b'{' | b'}' if !quoted => return None,
                b',' if !quoted => {
                    // Something has to follow it.
                    if rest.is_empty() {
                        return None;
                    }
                    break true;
                }
                _ => item.push(byte),
            }
        };
        if !ended {
            return None;
        }
        if quoted && !rest.is_empty() {
            rest = rest.strip_prefix(b",")?;
            if rest.is_empty() {
                return None;
            }
        }
        if quoted || !item.eq_ignore_ascii_case(b"null") {
            items.push(item);
        }
    }
    Some(items)
}

/// A decoded `boolean`.
#[must_use]
pub fn boolean(value: &[u8]) -> Option<bool> {
    match value {
        b"t" => Some(true),
        b"f" => Some(false),
        _ => None,
    }
}

/// A decoded `uuid`.
#[must_use]
pub fn uuid(value: &[u8]) -> Option<Uuid> {
    Uuid::try_parse_ascii(value).ok()
}

/// A decoded `timestamp with time zone`, as `pg_dump` has it written (ISO, with its offset). `None` also for `infinity`, and years before Christ.
#[must_use]
pub fn timestamp(value: &[u8]) -> Option<Timestamp> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_escape_of_the_manual_is_decoded() {
        for (field, value) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"a\\\\b", b"a\\b"),
            (b"\\b\\f\\n\\r\\t\\v", b"\x08\x0C\n\r\t\x0B"),
            (b"\\101\\7x\\18", b"A\x07x\x018"),
            (b"\\x41\\x4z\\xz", b"A\x04zxz"),
            (b"\\.", b"."),
            (b"\\\\.", b"\\."),
            (b"\\q", b"q"),
            (b"end\\", b"end\\"),
            (b"", b""),
        ] {
            assert_eq!(decode(field).as_ref(), value, "{}", field.escape_ascii());
        }
        assert!(is_null(b"\\N") && !is_null(b"\\\\N") && !is_null(b""));
    }

    #[test]
    fn a_row_has_one_column_more_than_tabs() {
        let split = |row: &'static [u8]| fields(row).collect::<Vec<_>>();
        assert_eq!(split(b"a\t\tb"), [&b"a"[..], b"", b"b"]);
        assert_eq!(split(b"a\\tb\t"), [&b"a\\tb"[..], b""]);
        assert_eq!(split(b""), [&b""[..]]);
    }

    #[test]
    fn bytes_in_both_forms_are_decoded() {
        assert_eq!(bytea(b"\\x00ffA0").unwrap(), [0, 255, 160]);
        assert_eq!(bytea(b"a\\\\\\377").unwrap(), b"a\\\xFF");
        for bad in [&b"\\x0"[..], b"\\xzz", b"\\400", b"\\1"] {
            assert_eq!(bytea(bad), None, "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn arrays_of_paths_are_read() {
        let read = |text: &str| array(text.as_bytes()).map(|items| items.into_iter().map(|item| String::from_utf8(item).unwrap()).collect::<Vec<_>>());
        assert_eq!(read("{}").unwrap(), Vec::<String>::new());
        assert_eq!(read("{/mnt/a,\"/mnt/b c\",NULL,\"NULL\"}").unwrap(), ["/mnt/a", "/mnt/b c", "NULL"]);
        assert_eq!(read(r#"{"a,\"b\"\\",""}"#).unwrap(), ["a,\"b\"\\", ""]);
        for bad in ["", "{", "a", "{\"a}", "{a,}", "{\"a\"b}", "{\"a\",}", "{{a},{b}}"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn times_as_postgresql_writes_them_are_read() {
        for (text, nanoseconds) in [
            ("1970-01-01 00:00:01+00", 1_000_000_000_i128),
            ("1970-01-01 01:00:00.25+01", 250_000_000),
            ("1970-01-01 05:30:00+05:30", 0),
            ("1969-12-31 23:59:59.999999+00", -1_000),
        ] {
            assert_eq!(timestamp(text.as_bytes()).unwrap().as_nanosecond(), nanoseconds, "{text}");
        }
        for odd in ["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "", "yesterday"] {
            assert_eq!(timestamp(odd.as_bytes()), None, "{odd}");
        }
    }
}
