//! Hooks in a running node: a recorder that runs code on the shard's thread, and a reporter that loses reports.

use std::sync::{Arc, Condvar, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use tokio::sync::watch;
use towline_metrics::SharedRecorder;

use super::common::DEADLINE;
use crate::ids::NodeId;
use crate::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotFailure, SnapshotStatus, UnreachableCause};
use crate::sync::lock;

/// The shard sets this gauge of a group at every tick, where a panic is contained.
const SET_AT_TICKS: &str = "towline_group_commit_index";

/// The shard increments this counter after every turn with work, where a panic is not contained.
const COUNTED_AFTER_TURNS: &str = "towline_shard_turns_total";

type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// Code that the shard's thread runs once.
#[derive(Clone, Default)]
pub(super) struct ShardHooks {
    at_tick: Hook,
    after_turn: Hook,
}

impl ShardHooks {
    /// Runs `act` at the next tick of a group, where a panic is contained.
    pub(super) fn at_tick(&self, act: impl FnOnce() + Send + 'static) {
        *lock(&self.at_tick) = Some(Box::new(act));
    }

    /// Runs `act` after the next turn with work, where a panic is not contained.
    pub(super) fn after_turn(&self, act: impl FnOnce() + Send + 'static) {
        *lock(&self.after_turn) = Some(Box::new(act));
    }
}

/// A recorder that runs the hooks.
pub(super) struct HookedRecorder {
    pub(super) inner: SharedRecorder,
    pub(super) hooks: ShardHooks,
}

/// A counter or gauge that runs a hook first.
struct Hooked<H> {
    inner: H,
    hook: Hook,
}

impl<H> Hooked<H> {
    fn run(&self) -> &H {
        let act = lock(&self.hook).take();
        if let Some(act) = act {
            act();
        }
        &self.inner
    }
}

impl GaugeFn for Hooked<Gauge> {
    fn increment(&self, value: f64) {
        self.run().increment(value);
    }

    fn decrement(&self, value: f64) {
        self.run().decrement(value);
    }

    fn set(&self, value: f64) {
        self.run().set(value);
    }
}

impl CounterFn for Hooked<Counter> {
    fn increment(&self, value: u64) {
        self.run().increment(value);
    }

    fn absolute(&self, value: u64) {
        self.run().absolute(value);
    }
}

impl Recorder for HookedRecorder {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        let inner = self.inner.register_counter(key, metadata);
        match key.name() {
            COUNTED_AFTER_TURNS => {
                Counter::from_arc(Arc::new(Hooked { inner, hook: self.hooks.after_turn.clone() }))
            }
            _ => inner,
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let inner = self.inner.register_gauge(key, metadata);
        match key.name() {
            SET_AT_TICKS => Gauge::from_arc(Arc::new(Hooked { inner, hook: self.hooks.at_tick.clone() })),
            _ => inner,
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.inner.register_histogram(key, metadata)
    }
}

/// Holds the shard's thread in a tick until it is dropped.
pub(super) struct HeldShard(Arc<ShardGate>);

#[derive(Default)]
struct ShardGate {
    /// Whether a thread is in it, and whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl ShardGate {
    fn pass(&self) {
        let mut state = lock(&self.state);
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open));
    }
}

impl HeldShard {
    /// Waits for the next tick, and holds the shard in it.
    pub(super) fn new(hooks: &ShardHooks) -> Self {
        let gate = Arc::new(ShardGate::default());
        let held = gate.clone();
        hooks.at_tick(move || held.pass());
        let state = lock(&gate.state);
        let (state, late) = gate.changed.wait_timeout_while(state, DEADLINE, |(held, _)| !*held).unwrap();
        assert!(!late.timed_out(), "the shard makes no tick");
        drop(state);
        Self(gate)
    }
}

impl Drop for HeldShard {
    fn drop(&mut self) {
        lock(&self.0.state).1 = true;
        self.0.changed.notify_all();
    }
}

/// Wraps the node's reporter, and loses the snapshot reports that [`Losses`] selects.
pub(super) struct LossyReporter {
    pub(super) inner: Arc<dyn Reporter>,
    pub(super) losses: Losses,
}

#[derive(Clone)]
pub(super) struct Losses {
    state: Arc<Mutex<(LossRule, Vec<LostReport>)>>,
    /// Heartbeats to peers that are behind.
    beats: watch::Receiver<u64>,
}

/// The snapshot reports to lose.
enum LossRule {
    /// The next reports of tickets, by number, as if the tickets were leaked.
    OfTickets(u64),
    /// All, also those of the watchdog.
    All,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct LostReport {
    pub(super) attempt: SnapshotAttempt,
    beats_before: u64,
    /// Heartbeats to peers that are behind, from the loss to the report of the watchdog.
    pub(super) beats: Option<u64>,
}

impl Losses {
    /// Nothing is lost.
    pub(super) fn none(beats: watch::Receiver<u64>) -> Self {
        Self { state: Arc::new(Mutex::new((LossRule::OfTickets(0), Vec::new()))), beats }
    }

    pub(super) fn next_of_tickets(&self, count: u64) {
        lock(&self.state).0 = LossRule::OfTickets(count);
    }

    pub(super) fn all(&self) {
        lock(&self.state).0 = LossRule::All;
    }

    pub(super) fn so_far(&self) -> Vec<LostReport> {
        lock(&self.state).1.clone()
    }

    /// Whether to lose this report.
    fn hit(&self, attempt: SnapshotAttempt, status: SnapshotStatus) -> bool {
        let (lose, losses) = &mut *lock(&self.state);
        let beats = *self.beats.borrow();
        let of_watchdog = status == SnapshotStatus::Failure(SnapshotFailure::Lost);
        match lose {
            LossRule::OfTickets(_) if of_watchdog => {
                let of_attempt = losses.iter_mut().filter(|loss| loss.attempt == attempt);
                of_attempt.for_each(|loss| loss.beats = Some(beats - loss.beats_before));
                return false;
            }
            LossRule::OfTickets(0) => return false,
            LossRule::OfTickets(left) => *left -= 1,
            LossRule::All if of_watchdog => return true,
            LossRule::All => {}
        }
        losses.push(LostReport { attempt, beats_before: beats, beats: None });
        true
    }
}

impl Reporter for LossyReporter {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.inner.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        if !self.losses.hit(attempt, status) {
            self.inner.report_snapshot(attempt, status);
        }
    }
}
