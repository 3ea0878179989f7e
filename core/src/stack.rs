//! The running containers: Docker's API, Compose projects as it describes them, and the Immich among them; stopping services and starting them again.

pub mod address;
pub mod answer;
pub mod compose;
pub mod copies;
pub mod discover;
pub mod engine;
pub mod own;
pub mod project;
pub mod ready;
pub mod redact;
pub mod services;
pub mod variables;
mod yaml;
