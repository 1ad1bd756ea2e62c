//! Shows other threads which state machine call an apply worker is in.

use std::sync::Mutex;
use std::time::Instant;

use crate::ids::GroupId;
use crate::sync::lock;

/// The present call of one apply worker.
#[derive(Debug, Default)]
pub(crate) struct CallWatch(Mutex<Option<Call>>);

/// A state machine call that has not returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) group: GroupId,
    pub(crate) method: &'static str,
    pub(crate) since: Instant,
}

impl CallWatch {
    /// Runs a call, which must not panic.
    pub(super) fn run<T>(&self, group: GroupId, method: &'static str, call: impl FnOnce() -> T) -> T {
        *lock(&self.0) = Some(Call { group, method, since: Instant::now() });
        let result = call();
        *lock(&self.0) = None;
        result
    }

    pub(crate) fn now(&self) -> Option<Call> {
        *lock(&self.0)
    }
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { group, method, since } = self;
        write!(
            f,
            "the state machine of group {group} has been in `{method}` for {:.1} s",
            since.elapsed().as_secs_f64()
        )
    }
}
