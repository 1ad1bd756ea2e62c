//! Threads that move snapshots stand back behind those that move everything else.

/// How much less such a thread counts when there is not enough processor for all: it gets about a third of another's
/// share. Heartbeats and appends go first, and a transfer still gets on.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// Lets others go first, from now on: this thread, and those that it starts. Where the system knows no such thing for
/// single threads, nothing happens.
pub(crate) fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "the priority of a thread could not be lowered");
    }
}
