//! Work that blocks, from code that must not.

/// Runs `work` on a thread for blocking work. A panic in it goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// The value of a task that nobody cancelled. A panic in it goes on here.
pub(crate) fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> T {
    ended.unwrap_or_else(|failed| std::panic::resume_unwind(failed.try_into_panic().unwrap_or_else(|_| Box::new("the runtime is shutting down"))))
}
