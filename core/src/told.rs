//! An error and its causes in one text, for reports, warnings and the log.

/// The error's message, and those of its causes, with `: ` between.
#[must_use]
pub fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
