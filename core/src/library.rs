//! What Immich keeps on disk: where things lie, what belongs to a backup, how it is walked and read.

pub mod layout;
pub mod read;
pub mod scope;
pub mod tree;
pub mod walk;
