//! The running containers: Docker's API, and a Compose project as it describes it; stopping its services and starting them again.

pub mod engine;
pub mod project;
pub mod services;
