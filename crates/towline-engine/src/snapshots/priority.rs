//! The lower priority of threads that move snapshots.

/// On a busy processor such a thread gets about a third of another's share. Heartbeats and appends go first, and a transfer
/// still progresses.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// Lowers the priority of this thread and of those that it starts. Does nothing on systems other than Linux.
pub(crate) fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = renice() {
        tracing::debug!(%error, "the priority of a thread could not be lowered");
    }
}

/// Counts from the process, because this thread inherits a priority that may be lowered already.
#[cfg(target_os = "linux")]
fn renice() -> rustix::io::Result<()> {
    use rustix::process::{getpid, getpriority_process, setpriority_process};
    let process = getpriority_process(Some(getpid()))?;
    setpriority_process(None, process.saturating_add(NICENESS).min(19))
}
