use serde::{Deserialize, Serialize};
use sha1::Digest as _;
use std::fmt;

macro_rules! digest {
    ($name:ident, $length:literal, $hasher:ty, $counter:ident) => {
        #[doc = concat!("A ", stringify!($name), " digest of ", $length, " bytes; written in lower-case hex.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl $name {
            /// The digest of `bytes`.
            #[must_use]
            pub fn of(bytes: &[u8]) -> Self {
                let mut hasher = <$hasher>::default();
                sha1::Digest::update(&mut hasher, bytes);
                Self(hasher.finalize().into())
            }

            /// The digest held in `bytes`; `None` where the length is wrong.
            #[must_use]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&hex::encode(self.0))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                let mut bytes = [0; $length];
                hex::decode_to_slice(text.as_bytes(), &mut bytes).map_err(serde::de::Error::custom)?;
                Ok(Self(bytes))
            }
        }

        #[doc = concat!("Computes the ", stringify!($name), " digest and the size of what passes through it, where nothing else is asked for.")]
        #[derive(Debug, Default, Clone)]
        pub struct $counter {
            hasher: $hasher,
            size_bytes: u64,
        }

        impl $counter {
            /// Takes the next bytes.
            pub fn update(&mut self, bytes: &[u8]) {
                sha1::Digest::update(&mut self.hasher, bytes);
                self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
            }

            /// The digest of what has been seen, and how many bytes that was.
            #[must_use]
            pub fn finish(self) -> ($name, u64) {
                ($name(self.hasher.finalize().into()), self.size_bytes)
            }
        }
    };
}

digest!(Sha256, 32, sha2::Sha256, Sha256Counter);
digest!(Sha1, 20, sha1::Sha1, Sha1Counter);

/// Both digests of the same bytes: ours (SHA-256) and the one Immich records (SHA-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digests {
    /// What names content in the repository.
    pub sha256: Sha256,
    /// What Immich records for an asset.
    pub sha1: Sha1,
}

/// What SHA-256 and SHA-1 both work on at a time.
const BLOCK_BYTES: usize = 64;

/// Computes both digests and the size of what passes through it: for what comes from the library. What comes back from a store is compared by one of them
/// ([`Sha256Counter`], [`Sha1Counter`]), which takes less time.
#[derive(Debug, Default, Clone)]
pub struct Hasher {
    sha256: sha2::Sha256,
    sha1: sha1::Sha1,
    size_bytes: u64,
}

impl Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        // Block by block: a digest waits for its own block before, and meanwhile the processor works on the other one's. See docs/benchmarks.md.
        for block in bytes.chunks(BLOCK_BYTES) {
            self.sha256.update(block);
            self.sha1.update(block);
        }
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
    }

    /// What has been seen.
    #[must_use]
    pub fn finish(self) -> Content {
        let digests = Digests { sha256: Sha256(self.sha256.finalize().into()), sha1: Sha1(self.sha1.finalize().into()) };
        Content { digests, size_bytes: self.size_bytes }
    }
}

/// Which bytes: their digests and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// SHA-256 and SHA-1.
    pub digests: Digests,
    /// How many bytes.
    pub size_bytes: u64,
}

/// What the file system says about a regular file, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileTimes {
    /// How many bytes.
    pub size_bytes: u64,
    /// Time of the last change of content, in ns since 1970 (saturating at the years 1677 and 2262). Programs may set it.
    pub mtime_ns: i64,
    /// Time of the last change of anything, in ns since 1970. Programs cannot set it.
    pub ctime_ns: i64,
    /// Permission bits (`0o7777`).
    pub mode: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_digests_are_right_however_the_bytes_come() {
        let bytes: Vec<u8> = (0..1_000_u32).map(|n| u8::try_from(n * n % 251).unwrap()).collect();
        for piece in [1, 63, 64, 65, 128, 129, 999, 1_000] {
            for length in [0, 1, 55, 56, 63, 64, 65, 127, 128, 1_000] {
                let mut hasher = Hasher::default();
                bytes.get(..length).unwrap().chunks(piece).for_each(|piece| hasher.update(piece));
                let Content { digests, size_bytes } = hasher.finish();
                let whole = bytes.get(..length).unwrap();
                assert_eq!((digests.sha256, digests.sha1, size_bytes), (Sha256::of(whole), Sha1::of(whole), length as u64), "{length} bytes by {piece}");
            }
        }
        // FIPS 180-2, appendices A and B.
        let mut hasher = Hasher::default();
        hasher.update(b"abc");
        let Digests { sha256, sha1 } = hasher.finish().digests;
        assert_eq!(sha1.to_string(), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(sha256.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
