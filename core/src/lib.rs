//! Backs up Immich, proves that the backup is whole, and brings it back.
//!
//! This crate decides everything and shows nothing: it never prints, never reads the environment and never ends
//! the process. What happened goes out as [`event::Event`]s through one [`event::Monitor`].
//!
//! Dependencies point one way: operations ([`backup`], [`verify`], [`restore`], [`drill`], [`find`], [`prune`], [`estimate`],
//! [`repair`]) → [`prove`], [`proof`], [`listing`],
//! [`retention`] → [`library`], [`database`] → [`repository`] → [`model`], [`event`], [`verdict`]. See `ARCHITECTURE.md`.

pub mod backup;
pub mod budget;
#[cfg(feature = "crash-points")]
pub mod crash;
#[cfg(not(feature = "crash-points"))]
mod crash;
pub mod database;
pub mod drill;
mod durable;
pub mod estimate;
pub mod event;
pub mod find;
pub mod library;
pub mod listing;
pub mod model;
pub mod proof;
pub mod prove;
pub mod prune;
pub mod repair;
pub mod repository;
pub mod restore;
pub mod retention;
pub mod stack;
mod target;
mod task;
pub mod told;
pub mod verdict;
pub mod verify;
