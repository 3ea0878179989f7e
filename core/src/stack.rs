//! The running containers: Docker's API, and a Compose project as it describes it.

pub mod engine;
pub mod project;
