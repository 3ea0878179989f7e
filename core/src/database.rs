//! What Immich keeps in PostgreSQL: dumping it, reading what a dump names, and loading it.

pub mod client;
pub mod cluster;
pub mod compress;
pub mod connection;
pub mod container;
pub mod copy;
pub mod dump;
pub mod error;
pub mod filter;
pub mod import_paths;
pub mod inventory;
pub mod keep;
pub mod load;
pub mod location;
pub mod process;
pub mod raw;
pub mod server;
pub mod stored;
pub mod text;
pub mod version;

pub use client::{Client, Program};
pub use connection::{Connection, Password};
pub use container::ContainerOptions;
pub use error::DatabaseError;
pub use process::{Exited, Process};
pub use server::Server;
