//! Named places at which a test build stops dead, as it would where the power fails or the process is killed. In any other build there is nothing of them.
//!
//! `crash_point!("a name")` is such a place. With the feature `crash-points`, which no program has that is made for use, it calls what a test has
//! installed by [`install`]; without it, it is nothing at all. `core/tests/crash_points.rs` dies at each of them, and finds those that it does not know.

/// A place at which a test may let the process end.
macro_rules! crash_point {
    ($name:literal) => {
        #[cfg(feature = "crash-points")]
        $crate::crash::reached($name);
    };
}

pub(crate) use crash_point;

#[cfg(feature = "crash-points")]
static HOOK: std::sync::OnceLock<fn(&'static str)> = std::sync::OnceLock::new();

/// From now on `hook` is called at each place, with its name. The first one that is installed stays.
#[cfg(feature = "crash-points")]
pub fn install(hook: fn(&'static str)) {
    HOOK.get_or_init(|| hook);
}

/// A run has come to the place of this name.
#[cfg(feature = "crash-points")]
pub(crate) fn reached(name: &'static str) {
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
}
