//! What we keep: objects in a store, the log that says what they are, and the manifest made from it.

pub mod checksum;
pub mod cloud;
pub mod directory;
pub mod fetch;
pub mod key;
mod later_copy;
pub mod log;
pub mod manifest;
mod open;
pub mod place;
pub mod state;
pub mod storage_class;
pub mod store;
pub mod vendor;
pub mod workers;

pub use open::{InitError, OpenError, Repository, Session, Until, init, open_store, without_links};
pub use state::ScratchFile;
