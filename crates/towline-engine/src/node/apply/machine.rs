//! State machines with erased types, and the calls that an apply worker makes.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use towline_metrics::GroupMetrics;

use crate::cause::{catch, chain};
use crate::core::Apply;
use crate::errors::{ProposeError, UncertainCause};
use crate::message::{Entry, LogId};
use crate::node::waiter::{Waiter, contained};
use crate::snapshot_store::{BodyRead, SnapshotMeta, SnapshotStore};
use crate::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

pub(crate) type ApplyTask = Apply<Waiter>;

/// Why a state machine, and with it its group, cannot go on.
pub(crate) type MachineFailure = Box<dyn Error + Send + Sync>;

/// A state machine without its type parameters. Every method fails as [`StateMachine`] does; a panic is an error too.
pub(crate) trait AnyMachine: Send {
    fn durable(&self) -> Result<LogId, MachineFailure>;
    /// Applies entries. Answers every waiter, also on an error.
    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: Vec<Option<Waiter>>,
        through: LogId,
    ) -> Result<(), MachineFailure>;
    fn flush(&mut self) -> Result<LogId, MachineFailure>;
    /// Flushes, and returns the durable log position with a view of the state.
    fn snapshot(&mut self) -> Result<(LogId, Box<dyn SnapshotSource>), MachineFailure>;
    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), MachineFailure>;
}

/// The [`AnyMachine`] around a user's state machine.
pub(crate) struct TypedMachine<S> {
    pub(crate) machine: S,
    pub(crate) metrics: Arc<GroupMetrics>,
}

impl<S: StateMachine> AnyMachine for TypedMachine<S> {
    fn durable(&self) -> Result<LogId, MachineFailure> {
        caught("durable", || Ok(self.machine.durable()))
    }

    fn apply(
        &mut self,
        entries: &[Entry],
        waiters: Vec<Option<Waiter>>,
        through: LogId,
    ) -> Result<(), MachineFailure> {
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

    fn flush(&mut self) -> Result<LogId, MachineFailure> {
        caught("flush", || self.machine.flush())
    }

    fn snapshot(&mut self) -> Result<(LogId, Box<dyn SnapshotSource>), MachineFailure> {
        Ok((self.flush()?, caught("snapshot", || self.machine.snapshot())?))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn io::Read) -> Result<(), MachineFailure> {
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
pub(crate) fn caught<T>(call: &str, run: impl FnOnce() -> Result<T, Fatal>) -> Result<T, MachineFailure> {
    Ok(catch(run).map_err(|panic| format!("state machine panicked in `{call}`: {panic}"))??)
}

/// Fails the waiters of entries that were committed and not applied here.
pub(super) fn fail_all(waiters: impl IntoIterator<Item = Option<Waiter>>, cause: &Arc<str>) {
    for waiter in waiters.into_iter().flatten() {
        waiter.fail(ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
    }
}

/// Replaces the state by a complete snapshot.
///
/// # Errors
/// The store failed or panicked, or the state machine did not take the snapshot.
pub(crate) fn restore(
    store: &dyn SnapshotStore,
    machine: &mut dyn AnyMachine,
    meta: &SnapshotMeta,
) -> Result<(), MachineFailure> {
    // `caught` catches the panics of the state machine; these are the store's.
    catch(|| restore_from(store, machine, meta))
        .unwrap_or_else(|panic| Err(format!("the snapshot store panicked: {panic}").into()))
}

fn restore_from(
    store: &dyn SnapshotStore,
    machine: &mut dyn AnyMachine,
    meta: &SnapshotMeta,
) -> Result<(), MachineFailure> {
    let started = Instant::now();
    let mut body = BodyRead::new(store.open(meta, 0).map_err(|error| Unread(error.into()))?);
    machine.restore(meta, &mut body)?;
    // An unread rest means that the body may be in another format.
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
#[error("the snapshot to restore cannot be read")]
struct Unread(#[source] MachineFailure);

/// Fails the waiters in tasks that will not run.
pub(crate) fn fail_tasks(tasks: Vec<ApplyTask>, cause: &Arc<str>) {
    for task in tasks {
        if let Apply::Entries { waiters, .. } = task {
            fail_all(waiters, cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use towline_metrics::NodeMetrics;

    use super::*;

    struct ReplyPanicsOnDrop;

    impl Drop for ReplyPanicsOnDrop {
        fn drop(&mut self) {
            panic!("a reply is dropped");
        }
    }

    /// Gives a reply to each command, and one too many if the flag is set.
    struct Generous(bool);

    impl StateMachine for Generous {
        type Response = ReplyPanicsOnDrop;
        type View = ();

        fn view(&self) {}

        fn durable(&self) -> LogId {
            LogId::NONE
        }

        fn apply(
            &mut self,
            batch: ApplyBatch<'_>,
            replies: &mut Replies<ReplyPanicsOnDrop>,
        ) -> Result<(), Fatal> {
            (0..batch.len() + usize::from(self.0)).for_each(|_| replies.push(ReplyPanicsOnDrop));
            Ok(())
        }

        fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
            Err(Fatal::new("no snapshots"))
        }

        fn restore(&mut self, _meta: &SnapshotMeta, _body: &mut dyn io::Read) -> Result<(), Fatal> {
            Err(Fatal::new("no snapshots"))
        }
    }

    /// On a follower, and at a start, replies have no waiting caller.
    #[test]
    fn replies_without_a_caller_may_panic_on_drop() {
        let entry = |index| Entry { index, term: 1, data: "x".into(), ..Entry::default() };
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        for too_many in [false, true] {
            let mut machine = TypedMachine { machine: Generous(too_many), metrics: metrics.clone() };
            let through = LogId { index: 2, term: 1 };
            let applied = machine.apply(&[entry(1), entry(2)], vec![None, None], through);
            assert_eq!(applied.is_err(), too_many);
        }
    }
}
