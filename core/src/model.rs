//! The words of the field: paths, hashes, identifiers, samples, what a file is.

mod class;
mod content;
mod identifier;
mod path;
mod sample;

pub use class::Class;
pub use content::{Content, Digests, FileTimes, Hasher, Sha1, Sha1Counter, Sha256, Sha256Counter};
pub use identifier::{RepositoryId, RunId, WriterId};
pub use path::{ExternalName, FilePath, InvalidPath, Root, RootPath, decode_text, encode_segment};
pub use sample::{InvalidSample, Part, Sample};
