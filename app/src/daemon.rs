//! Jobs on a schedule: what runs, in processes of their own, and who is told of it.
//!
//! [`feed`] is the one place where it is known that a job began, what it said, and how it ended; the log ([`log`]) and the status ([`board`], served by
//! [`http`]) read it, and whatever else wants to know adds itself to it.

pub mod board;
pub mod child;
pub mod feed;
pub mod guard;
pub mod http;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod notify;
pub mod turn;
