//! What the fuzzers call. `entries` and `configuration` are also compiled into the tests `corpus` of `core` and `app`, which replay `fuzz/corpus`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, dead_code, reason = "what must not happen ends the fuzzer")]

pub mod configuration;
pub mod entries;

#[path = "../../app/src/cli.rs"]
mod cli;
#[path = "../../app/src/config.rs"]
mod config;
#[path = "../../app/src/settings.rs"]
mod settings;
