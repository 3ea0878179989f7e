//! The running containers: Docker's API, Compose projects as it describes them, and the Immich among them.

pub mod address;
pub mod compose;
pub mod copies;
pub mod discover;
pub mod engine;
pub mod own;
pub mod project;
pub mod redact;
pub mod variables;
mod yaml;
