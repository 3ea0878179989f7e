//! Immich, stopped for a while: what a run asks of whoever stops and starts it.

use async_trait::async_trait;
use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Stops and starts the stack for a run. The run calls [`Self::database_alone`], perhaps [`Self::all_stopped`], and [`Self::up_again`] on every way out: after an
/// error, where it is asked to stop, and before it goes on with what needs no downtime. A panic, and the death of the process, are the implementation's own to
/// look after: dropped, it starts again what it stopped.
#[async_trait]
pub trait Downtime: fmt::Debug + Send + Sync {
    /// Returns once all services but the database are stopped, and the database answers.
    ///
    /// # Errors
    /// Something could not be stopped, or the database does not answer. [`Self::up_again`] is called all the same.
    async fn database_alone(&self) -> Result<(), DowntimeError>;

    /// Returns once the database is stopped too, in an orderly way.
    ///
    /// # Errors
    /// As [`Self::database_alone`].
    async fn all_stopped(&self) -> Result<(), DowntimeError>;

    /// Whether all that was stopped has been down ever since: nobody else has started anything meanwhile.
    ///
    /// # Errors
    /// It cannot be found out.
    async fn still_down(&self) -> Result<bool, DowntimeError>;

    /// Starts again what ran before, and returns once it is healthy. Where nothing is stopped, it returns at once; called again, it tells the same.
    ///
    /// # Errors
    /// Something did not start, or is not healthy. What could be started is.
    async fn up_again(&self) -> Result<Up, DowntimeError>;
}

/// The stack is up again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Up {
    /// From the first stop until everything was up and healthy; zero where nothing was stopped.
    pub downtime: Duration,
}

/// The stack could not be stopped, asked or started.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct DowntimeError {
    /// What was being done, to which service.
    pub what: String,
    /// What the user can do about it.
    pub hint: Option<String>,
    /// Why.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}
