//! What stores compute over the bytes that they hold, and the same computed here.

use crate::model::Sha256;
use md5::Digest as _;

/// A checksum that a store computed itself over all bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256 of all bytes.
    Sha256(Sha256),
    /// SHA-256 over the SHA-256 of each part, as S3 has it for what came in parts.
    Sha256OfParts {
        /// The checksum.
        sha256: Sha256,
        /// Size of every part but the last.
        part_bytes: u64,
    },
    /// MD5 of all bytes.
    Md5([u8; 16]),
    /// MD5 of all bytes, most likely: an `ETag` of S3 looks the same where it is something else (encryption by a key of one's own). Equal means
    /// equal; different means nothing.
    PerhapsMd5([u8; 16]),
    /// CRC32C of all bytes.
    Crc32c(u32),
}

/// What a comparison says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// The same bytes.
    Same,
    /// Other bytes.
    Different,
    /// It cannot tell.
    Unknown,
}

/// Computes the same kind of checksum as another one, over bytes at hand.
#[derive(Debug)]
pub struct Counter {
    wanted: Checksum,
    state: State,
}

#[derive(Debug)]
enum State {
    Sha256(sha2::Sha256),
    Parts { whole: sha2::Sha256, part: sha2::Sha256, in_part: u64, part_bytes: u64 },
    Md5(md5::Md5),
    Crc32c(crc_fast::Digest),
}

impl Checksum {
    /// Computes this kind of checksum.
    #[must_use]
    pub fn counter(self) -> Counter {
        let state = match self {
            Self::Sha256(_) => State::Sha256(sha2::Sha256::default()),
            Self::Sha256OfParts { part_bytes, .. } => {
                State::Parts { whole: sha2::Sha256::default(), part: sha2::Sha256::default(), in_part: 0, part_bytes: part_bytes.max(1) }
            }
            Self::Md5(_) | Self::PerhapsMd5(_) => State::Md5(md5::Md5::default()),
            Self::Crc32c(_) => State::Crc32c(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi)),
        };
        Counter { wanted: self, state }
    }

    /// Whether it is that of `bytes`.
    #[must_use]
    pub fn compare(self, bytes: &[u8]) -> Comparison {
        let mut counter = self.counter();
        counter.update(bytes);
        counter.finish()
    }
}

impl Counter {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Md5(hasher) => hasher.update(bytes),
            State::Crc32c(digest) => digest.update(bytes),
            State::Parts { whole, part, in_part, part_bytes } => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let room = usize::try_from(*part_bytes - *in_part).unwrap_or(usize::MAX);
                    let (now, later) = rest.split_at(room.min(rest.len()));
                    part.update(now);
                    *in_part += now.len() as u64;
                    if *in_part == *part_bytes {
                        whole.update(std::mem::take(part).finalize());
                        *in_part = 0;
                    }
                    rest = later;
                }
            }
        }
    }

    /// Compares what has been seen with what the store computed.
    #[must_use]
    pub fn finish(self) -> Comparison {
        let (same, conclusive) = match (self.state, self.wanted) {
            (State::Sha256(hasher), Checksum::Sha256(wanted)) => (Sha256(hasher.finalize().into()) == wanted, true),
            (State::Parts { mut whole, part, in_part, .. }, Checksum::Sha256OfParts { sha256, .. }) => {
                if in_part > 0 {
                    whole.update(part.finalize());
                }
                // Cut into other parts than was thought, the same bytes have another checksum.
                (Sha256(whole.finalize().into()) == sha256, false)
            }
            (State::Md5(hasher), Checksum::Md5(wanted)) => (hasher.finalize().as_slice() == wanted, true),
            (State::Md5(hasher), Checksum::PerhapsMd5(wanted)) => (hasher.finalize().as_slice() == wanted, false),
            (State::Crc32c(digest), Checksum::Crc32c(wanted)) => (digest.finalize() == u64::from(wanted), true),
            _ => (false, false),
        };
        match (same, conclusive) {
            (true, _) => Comparison::Same,
            (false, true) => Comparison::Different,
            (false, false) => Comparison::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NINE: &[u8] = b"123456789";

    #[test]
    fn checksums_are_those_of_the_standards() {
        // Check values of RFC 1321's and RFC 3720's algorithms over "123456789".
        assert_eq!(Checksum::Crc32c(0xE306_9283).compare(NINE), Comparison::Same);
        let md5 = hex::decode("25f9e794323b453885f5181f1b624d0b").unwrap().try_into().unwrap();
        assert_eq!(Checksum::Md5(md5).compare(NINE), Comparison::Same);
        assert_eq!(Checksum::Md5(md5).compare(b"other"), Comparison::Different);
        assert_eq!(Checksum::PerhapsMd5(md5).compare(b"other"), Comparison::Unknown);
        assert_eq!(Checksum::Sha256(Sha256::of(NINE)).compare(NINE), Comparison::Same);
    }

    #[test]
    fn an_object_of_parts_is_compared_part_by_part() {
        let parts: [&[u8]; 3] = [b"1234", b"5678", b"9"];
        let hashes: Vec<u8> = parts.iter().flat_map(|part| Sha256::of(part).0).collect();
        let checksum = Checksum::Sha256OfParts { sha256: Sha256::of(&hashes), part_bytes: 4 };
        assert_eq!(checksum.compare(NINE), Comparison::Same);
        assert_eq!(checksum.compare(b"123456780"), Comparison::Unknown);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_come(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200, part_bytes in 1_u64..60) {
            let hashes: Vec<u8> = bytes.chunks(usize::try_from(part_bytes).unwrap()).flat_map(|part| Sha256::of(part).0).collect();
            let mut counter = Checksum::Sha256OfParts { sha256: Sha256::of(&hashes), part_bytes }.counter();
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            counter.update(first);
            counter.update(second);
            prop_assert_eq!(counter.finish(), Comparison::Same);
        }
    }
}
