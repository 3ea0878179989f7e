//! What Immich keeps in PostgreSQL: dumping it, reading what a dump names, and loading it.

pub mod compress;
pub mod copy;
pub mod inventory;
pub mod location;
pub mod stored;
pub mod text;
