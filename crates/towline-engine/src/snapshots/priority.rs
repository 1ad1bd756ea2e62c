//! Threads that move snapshots stand back behind those that move everything else.

/// How much less such a thread counts when there is not enough processor for all: it gets about a third of another's
/// share. Heartbeats and appends go first, and a transfer still gets on.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// Lets others go first, from now on: this thread, and those that it starts. Where the system knows no such thing for
/// single threads, nothing happens.
pub(crate) fn step_back() {
    #[cfg(target_os = "linux")]
    if let Err(error) = behind_the_process() {
        tracing::debug!(%error, "the priority of a thread could not be lowered");
    }
}

/// Counted from the process, and not from this thread: it has what the thread that started it had, which may stand back
/// already.
#[cfg(target_os = "linux")]
fn behind_the_process() -> rustix::io::Result<()> {
    use rustix::process::{getpid, getpriority_process, setpriority_process};
    let process = getpriority_process(Some(getpid()))?;
    setpriority_process(None, process.saturating_add(NICENESS).min(19))
}
