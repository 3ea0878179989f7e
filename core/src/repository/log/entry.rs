//! One log entry as bytes: a zstd frame of NDJSON, and a skippable frame with the SHA-256 of the bytes before it.

use super::FORMAT;
use super::fact::Fact;
use super::read::Head;
use crate::budget::{LOG_ENTRY_BYTES_MAX, LOG_ENTRY_FACTS_MAX};
use crate::model::{RunId, Sha256, WriterId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead as _, Read as _, Write as _};

/// The first line of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The repository's format.
    pub format: u32,
    /// The epoch that it belongs to: 0 until the log is first repaired.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u32,
    /// The entry's number; the first is 1. Numbers go on from epoch to epoch.
    pub sequence: u64,
    /// SHA-256 of the entry before as stored; for entry 1, of `format.json`.
    pub previous_sha256: Sha256,
    /// The run that speaks; absent where no run does (`verify`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// When, by the writer's clock.
    pub written_at: Timestamp,
    /// The state folder that writes.
    pub writer: WriterId,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// An entry, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its first line.
    pub header: Header,
    /// The other lines.
    pub facts: Vec<Fact>,
    /// SHA-256 of the entry as stored.
    pub sha256: Sha256,
}

/// Why bytes are no entry.
#[derive(Debug, thiserror::Error)]
pub enum DamagedEntry {
    /// The bytes are not those that were written.
    #[error("its bytes do not have the SHA-256 that ends it")]
    Checksum,
    /// The checksum is not there: cut off, or never an entry.
    #[error("it does not end in a checksum; it was cut off, or is no log entry")]
    Truncated,
    /// Not zstd, or too much of it.
    #[error("it cannot be decompressed")]
    Compression(#[source] io::Error),
    /// A line is not what it should be.
    #[error("its line {line} cannot be understood")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by a newer program.
    #[error("it has format {found}, and this program knows format {FORMAT} only; use the newer program that wrote it")]
    Format {
        /// The format found.
        found: u32,
    },
    /// The disk does not give its bytes, or there are more of them than any entry has.
    #[error("it cannot be read")]
    Unreadable(#[source] Box<crate::repository::store::StoreError>),
    /// Nothing in it.
    #[error("it is empty")]
    Empty,
    /// More than is ever written: it would fill the memory of whoever reads it.
    #[error("it comes to more than {} MiB or {LOG_ENTRY_FACTS_MAX} facts, which this program never writes", LOG_ENTRY_BYTES_MAX >> 20)]
    TooLarge,
}

/// A zstd skippable frame: readers of zstd pass over it, so `zstd -d` gives the lines alone. (RFC 8878, 3.1.2.)
const TRAILER_START: [u8; 8] = [0x5D, 0x2A, 0x4D, 0x18, 32, 0, 0, 0];
const TRAILER_BYTES: usize = TRAILER_START.len() + 32;
const COMPRESSION_LEVEL: i32 = 6;

/// The bytes of an entry.
///
/// # Errors
/// It would be larger than [`Entry::decode`] takes, or have more facts.
pub fn encode(header: &Header, facts: &[Fact]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
    let mut plain = 1_024_u64;
    serde_json::to_writer(&mut encoder, header)?;
    encoder.write_all(b"\n")?;
    for fact in facts {
        let line = serde_json::to_vec(fact)?;
        plain = plain.saturating_add(line.len() as u64 + 1);
        encoder.write_all(&line)?;
        encoder.write_all(b"\n")?;
    }
    let mut bytes = encoder.finish()?;
    if plain > LOG_ENTRY_BYTES_MAX || bytes.len() as u64 > LOG_ENTRY_BYTES_MAX / 2 || facts.len() > LOG_ENTRY_FACTS_MAX {
        return Err(io::Error::other("a log entry of that size could not be read again; is a label or a pattern enormous?"));
    }
    let checksum = Sha256::of(&bytes);
    bytes.extend_from_slice(&TRAILER_START);
    bytes.extend_from_slice(&checksum.0);
    Ok(bytes)
}

impl Entry {
    /// The head of a log that ends with it.
    #[must_use]
    pub fn head(&self) -> Head {
        Head { epoch: self.header.epoch, sequence: self.header.sequence, sha256: self.sha256 }
    }

    /// Reads an entry. Any flipped bit, any cut is found.
    ///
    /// # Errors
    /// See [`DamagedEntry`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DamagedEntry> {
        let (frame, trailer) = bytes.split_last_chunk::<TRAILER_BYTES>().ok_or(DamagedEntry::Truncated)?;
        let (start, checksum) = trailer.split_at(TRAILER_START.len());
        if Sha256::of(frame).0 != checksum {
            return Err(if start == TRAILER_START { DamagedEntry::Checksum } else { DamagedEntry::Truncated });
        }
        if start != TRAILER_START {
            return Err(DamagedEntry::Checksum);
        }
        let mut lines = io::BufReader::new(zstd::Decoder::new(frame).map_err(DamagedEntry::Compression)?.take(LOG_ENTRY_BYTES_MAX + 1));
        let mut header = None;
        let mut facts = Vec::new();
        let (mut bytes_read, mut line) = (0_u64, String::new());
        for number in 0.. {
            line.clear();
            let count = lines.read_line(&mut line).map_err(DamagedEntry::Compression)?;
            bytes_read = bytes_read.saturating_add(count as u64);
            if bytes_read > LOG_ENTRY_BYTES_MAX || facts.len() > LOG_ENTRY_FACTS_MAX {
                return Err(DamagedEntry::TooLarge);
            }
            if count == 0 {
                break;
            }
            let wrong = |source| DamagedEntry::Line { line: number + 1, source };
            if header.is_none() {
                let format: Format = serde_json::from_str(&line).map_err(wrong)?;
                if format.format != FORMAT {
                    return Err(DamagedEntry::Format { found: format.format });
                }
                header = Some(serde_json::from_str(&line).map_err(wrong)?);
            } else {
                facts.push(serde_json::from_str(&line).map_err(wrong)?);
            }
        }
        let header = header.ok_or(DamagedEntry::Empty)?;
        Ok(Self { header, facts, sha256: Sha256::of(bytes) })
    }
}

/// Read before anything else: a newer format may have another header.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[cfg(test)]
mod tests {
    use super::super::fact::{PathFact, Sound};
    use super::*;
    use crate::model::{FilePath, RootPath};

    fn entry() -> Vec<u8> {
        let header = Header {
            format: FORMAT,
            epoch: 0,
            sequence: 7,
            previous_sha256: Sha256::of(b"6"),
            run: Some(RunId::random()),
            written_at: "2026-01-15T03:00:00Z".parse().unwrap(),
            writer: WriterId::random(),
        };
        let gone = PathFact::new(&FilePath::library(RootPath::parse("upload/a%0Ab.jpg").unwrap()));
        encode(&header, &[Fact::Archived(gone), Fact::Sound(Sound { key: "library/x".to_owned() })]).unwrap()
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes = entry();
        assert_eq!(Entry::decode(&bytes).unwrap().facts.len(), 2);
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(Entry::decode(&damaged).is_err(), "bit {bit} of byte {position}");
            }
            assert!(Entry::decode(&bytes[..position]).is_err(), "cut at {position}");
        }
    }

    #[test]
    fn what_was_cut_and_what_was_changed_are_told_apart() {
        let bytes = entry();
        let changed = |position: usize| {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            Entry::decode(&damaged)
        };
        let trailer = bytes.len() - TRAILER_BYTES;
        for position in [0, trailer - 1, trailer, bytes.len() - 1] {
            assert!(matches!(changed(position), Err(DamagedEntry::Checksum)), "byte {position}");
        }
        for length in [0, 1, TRAILER_BYTES, trailer, bytes.len() - 1] {
            assert!(matches!(Entry::decode(&bytes[..length]), Err(DamagedEntry::Truncated)), "{length} bytes");
        }
    }

    #[test]
    fn a_log_that_was_never_repaired_names_no_epoch() {
        let header = Entry::decode(&entry()).unwrap().header;
        let first_line = |epoch| {
            let bytes = encode(&Header { epoch, ..header.clone() }, &[]).unwrap();
            assert_eq!(Entry::decode(&bytes).unwrap().header.epoch, epoch);
            String::from_utf8(zstd::decode_all(&bytes[..bytes.len() - TRAILER_BYTES]).unwrap()).unwrap()
        };
        assert!(!first_line(0).contains("epoch"), "{}", first_line(0));
        assert!(first_line(3).contains("\"epoch\":3"), "{}", first_line(3));
    }

    /// Facts that together take `bytes`, each in its line.
    fn filling(bytes: u64, is_compressible: bool) -> Vec<Fact> {
        let fact = |host: String| -> Fact {
            serde_json::from_value(serde_json::json!({ "fact": "run_started", "at": "2026-01-15T03:00:00Z", "host": host, "roots": [] })).unwrap()
        };
        let empty = serde_json::to_vec(&fact(String::new())).unwrap().len() as u64 + 1;
        let length = usize::try_from(bytes - empty).unwrap();
        let mut state = 88_172_645_463_325_252_u64;
        let mut letter = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"[usize::try_from(state >> 58).unwrap()])
        };
        let host = if is_compressible { "x".repeat(length) } else { (0..length).map(|_| letter()).collect() };
        vec![fact(host)]
    }

    #[test]
    fn whatever_is_written_can_be_read_again_and_what_could_not_is_refused() {
        let header = Entry::decode(&entry()).unwrap().header;
        let comes_back = |facts: &[Fact]| Entry::decode(&encode(&header, facts).unwrap()).unwrap().facts == facts;
        // The header has its share of the limit, whatever is in it.
        let room = LOG_ENTRY_BYTES_MAX - 1_024;
        assert!(comes_back(&filling(room, true)));
        assert!(encode(&header, &filling(room + 1, true)).is_err());
        // Letters of 64 kinds take three quarters of what they are; half of the limit is for what is compressed.
        assert!(comes_back(&filling(room / 2, false)));
        assert!(encode(&header, &filling(room / 4 * 3, false)).is_err());
        let many = |count| vec![filling(200, true).remove(0); count];
        assert!(comes_back(&many(LOG_ENTRY_FACTS_MAX)));
        assert!(encode(&header, &many(LOG_ENTRY_FACTS_MAX + 1)).is_err());
    }

    fn hand_made(lines: &str) -> Vec<u8> {
        let mut bytes = zstd::encode_all(lines.as_bytes(), 3).unwrap();
        let checksum = Sha256::of(&bytes);
        bytes.extend_from_slice(&TRAILER_START);
        bytes.extend_from_slice(&checksum.0);
        bytes
    }

    #[test]
    fn a_fact_of_the_future_is_passed_over_and_a_format_of_the_future_is_refused() {
        let zero = "0".repeat(64);
        let header = format!(
            r#"{{"format":1,"sequence":1,"previous_sha256":"{zero}","written_at":"2026-01-15T03:00:00Z","writer":"6fa459ea-ee8a-3ca4-894e-db77e160355e","new":1}}"#
        );
        let future_fact = format!("{header}\n{{\"fact\":\"teleported\",\"to\":[1,2]}}\n");
        assert_eq!(Entry::decode(&hand_made(&future_fact)).unwrap().facts, [Fact::Unknown]);
        let error = Entry::decode(&hand_made("{\"format\":2,\"all\":\"else differs\"}\n")).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    #[test]
    fn a_path_that_leads_outside_is_no_fact() {
        let lines = hand_made(&format!(
            "{}\n{}\n",
            r#"{"format":1,"sequence":1,"previous_sha256":"0000000000000000000000000000000000000000000000000000000000000000","written_at":"2026-01-15T03:00:00Z","writer":"6fa459ea-ee8a-3ca4-894e-db77e160355e"}"#,
            r#"{"fact":"archived","path":"../../etc/passwd"}"#
        ));
        assert!(matches!(Entry::decode(&lines), Err(DamagedEntry::Line { line: 2, .. })));
    }
}
