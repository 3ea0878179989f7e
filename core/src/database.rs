//! What Immich keeps in PostgreSQL: dumping it, reading what a dump names, and loading it.

pub mod filter;
pub mod location;
