//! Stand-ins for servers that the tests of immich-backup talk to.

pub mod compose;
pub mod docker;
pub mod fixture;
pub mod gcs;
pub mod line;
pub mod postgres;
pub mod proxy;
pub mod servers;

mod sign;
mod wire;
