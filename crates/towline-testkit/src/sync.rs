//! Locks that a panicked test does not poison.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks although a holder may have panicked: its message must not hide behind a second panic.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits while a condition holds.
pub(crate) fn wait_while<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    changed.wait_while(guard, condition).unwrap_or_else(PoisonError::into_inner)
}

/// Waits until a condition holds; `false` if it did not before the deadline.
pub(crate) fn wait_until<T>(
    changed: &Condvar,
    mutex: &Mutex<T>,
    deadline: Duration,
    mut condition: impl FnMut(&T) -> bool,
) -> bool {
    let waited = changed.wait_timeout_while(lock(mutex), deadline, |state| !condition(state));
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}
