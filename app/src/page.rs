//! The page: whether the backup is safe, what happened when, what runs, and what is in it. It shows, and changes nothing but who is logged in.
//!
//! Everything is made here, in one process, from the local manifest and what the daemon knows; no view asks the store for anything. See docs/page.md.

mod assets;
mod chart;
mod client;
mod folder;
mod layout;
mod limiter;
mod live;
mod login;
mod now;
mod overview;
mod password;
mod routes;
mod sessions;
mod setup;
mod snapshot;
mod source;
mod timeline;
mod verdict;
mod words;

pub use live::Live;
pub use routes::{guarded, routes};
pub use setup::{Page, REFRESHED_EVERY, of_settings};
pub use source::{Place, Reading};

#[cfg(test)]
mod tests;
