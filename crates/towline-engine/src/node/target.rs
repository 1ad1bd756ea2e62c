//! What an apply worker runs: a state machine whose types are hidden, and the work there is for it.

use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use towline_metrics::GroupMetrics;

use super::waiter::{Waiter, contained};
use crate::cause::{chain, panic_text};
use crate::core::Apply;
use crate::errors::{ProposeError, UncertainCause};
use crate::message::{Entry, LogId};
use crate::snapshot_store::{BodyRead, SnapshotMeta, SnapshotStore};
use crate::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

pub(crate) type Task = Apply<Waiter>;

/// Why a group cannot go on.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// A state machine whose types are hidden.
pub(crate) trait Target: Send {
    /// # Errors
    /// As for `apply`.
    fn durable(&self) -> Result<LogId, Cause>;
    /// # Errors
    /// Why the group cannot go on; every waiter is answered either way.
    fn apply(&mut self, entries: &[Entry], waiters: Vec<Option<Waiter>>, through: LogId)
    -> Result<(), Cause>;
    /// # Errors
    /// As for `apply`.
    fn flush(&mut self) -> Result<LogId, Cause>;
    /// Makes durable what is applied, and gives how far that is with a view of the state.
    ///
    /// # Errors
    /// As for `apply`.
    fn snapshot(&mut self) -> Result<(LogId, Box<dyn SnapshotSource>), Cause>;
    /// # Errors
    /// As for `apply`.
    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Cause>;
}

/// The [`Target`] around a user's machine.
pub(crate) struct Machine<S> {
    pub(crate) machine: S,
    pub(crate) metrics: Arc<GroupMetrics>,
}

impl<S: StateMachine> Target for Machine<S> {
    fn durable(&self) -> Result<LogId, Cause> {
        caught("durable", || Ok(self.machine.durable()))
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: Vec<Option<Waiter>>,
        through: LogId,
    ) -> Result<(), Cause> {
        let started = Instant::now();
        let batch = ApplyBatch::new(entries, through);
        let commands = batch.len();
        let mut replies = Replies::with_capacity(commands);
        let result =
            caught("apply", || self.machine.apply(batch, &mut replies)).and_then(|()| match replies.len() {
                given if given == commands => Ok(()),
                given => Err(format!("state machine gave {given} replies to {commands} commands").into()),
            });
        let now = Instant::now();
        self.metrics.apply(now.saturating_duration_since(started), commands as u64);
        match &result {
            Ok(()) => {
                let mut waiters = waiters.into_iter();
                for reply in replies.into_vec() {
                    // The waiter was made by the handle of this group, so it has this group's type.
                    let waiter = waiters.next().flatten();
                    match waiter {
                        Some(waiter) => waiter.answer(reply, now),
                        None => contained(|| drop(reply)),
                    }
                }
            }
            Err(cause) => {
                fail_all(waiters, &chain(&**cause).into());
                replies.into_vec().into_iter().for_each(|reply| contained(|| drop(reply)));
            }
        }
        result
    }

    fn flush(&mut self) -> Result<LogId, Cause> {
        caught("flush", || self.machine.flush())
    }

    fn snapshot(&mut self) -> Result<(LogId, Box<dyn SnapshotSource>), Cause> {
        Ok((self.flush()?, caught("snapshot", || self.machine.snapshot())?))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), Cause> {
        caught("restore", || self.machine.restore(meta, body))?;
        let durable = self.durable()?;
        if durable != LogId::NONE && durable != meta.head.at {
            return Err(
                format!("state machine was restored to {:?} but is at {durable:?}", meta.head.at).into()
            );
        }
        Ok(())
    }
}

/// Calls the state machine. A panic is an error that names the call.
pub(super) fn caught<T>(call: &str, run: impl FnOnce() -> Result<T, Fatal>) -> Result<T, Cause> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let cause = format!("state machine panicked in `{call}`: {}", panic_text(panic.as_ref())).into();
            std::mem::forget(panic); // its drop may panic again
            Err(cause)
        }
    }
}

/// Answers every waiter of entries that were committed and not applied here.
pub(super) fn fail_all(waiters: impl IntoIterator<Item = Option<Waiter>>, cause: &Arc<str>) {
    for waiter in waiters.into_iter().flatten() {
        waiter.fail(ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
    }
}

/// Replaces the state by a snapshot that is on disk.
///
/// # Errors
/// Why the group cannot go on.
pub(crate) fn restore(
    store: &dyn SnapshotStore,
    target: &mut dyn Target,
    meta: &SnapshotMeta,
) -> Result<(), Cause> {
    // The state machine's panics are caught where it is called; these are the store's.
    match catch_unwind(AssertUnwindSafe(|| restore_from(store, target, meta))) {
        Ok(result) => result,
        Err(panic) => {
            let cause = format!("the snapshot store panicked: {}", panic_text(panic.as_ref())).into();
            std::mem::forget(panic); // its drop may panic again
            Err(cause)
        }
    }
}

fn restore_from(
    store: &dyn SnapshotStore,
    target: &mut dyn Target,
    meta: &SnapshotMeta,
) -> Result<(), Cause> {
    let started = Instant::now();
    let mut body = BodyRead::new(store.open(meta, 0).map_err(|error| Unread(error.into()))?);
    target.restore(meta, &mut body)?;
    // A body that the machine did not read to its end may be another's.
    let rest = io::copy(&mut body, &mut io::sink()).map_err(|error| Unread(error.into()))?;
    if rest > 0 {
        return Err(format!("state machine left {rest} of {} bytes of the snapshot", meta.length).into());
    }
    let (group, index) = (meta.head.group, meta.head.at.index);
    let seconds = started.elapsed().as_secs_f64();
    tracing::info!(%group, index, bytes = meta.length, seconds, "state restored from a snapshot");
    Ok(())
}

/// The snapshot for restoring the state machine could not be read.
#[derive(Debug, thiserror::Error)]
#[error("snapshot to restore")]
struct Unread(#[source] Cause);

/// Answers everybody in tasks that will not be done.
pub(crate) fn fail_tasks(tasks: Vec<Task>, cause: &Arc<str>) {
    for task in tasks {
        match task {
            Apply::Entries { waiters, .. } => fail_all(waiters, cause),
            // Nobody waits for these.
            Apply::Restore(_) | Apply::Snapshot { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use towline_metrics::NodeMetrics;

    use super::*;

    struct Panics(bool);

    impl Drop for Panics {
        fn drop(&mut self) {
            assert!(!self.0, "an answer is dropped");
        }
    }

    /// Gives an answer that panics when it is dropped to each command, and one too many if told to.
    struct Generous(bool);

    impl StateMachine for Generous {
        type Response = Panics;
        type View = ();

        fn view(&self) {}

        fn durable(&self) -> LogId {
            LogId::NONE
        }

        fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Panics>) -> Result<(), Fatal> {
            (0..batch.len() + usize::from(self.0)).for_each(|_| replies.push(Panics(true)));
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
            Err(Fatal::new("no snapshots"))
        }

        fn restore(&mut self, _meta: &SnapshotMeta, _body: &mut dyn io::Read) -> Result<(), Fatal> {
            Err(Fatal::new("no snapshots"))
        }
    }

    /// On a follower, and at a start, nobody waits for the answers.
    #[test]
    fn answers_nobody_waits_for_are_let_go_one_by_one() {
        let entry = |index| Entry { index, term: 1, data: "x".into(), ..Entry::default() };
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        for too_many in [false, true] {
            let mut machine = Machine { machine: Generous(too_many), metrics: metrics.clone() };
            let through = LogId { index: 2, term: 1 };
            let applied = machine.apply(&[entry(1), entry(2)], vec![None, None], through);
            assert_eq!(applied.is_err(), too_many);
        }
    }
}
