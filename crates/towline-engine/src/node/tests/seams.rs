//! What tests place in the seams of a node: a recorder that acts on the shard's thread, and a reporter that loses reports.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use tokio::sync::watch;
use towline_metrics::SharedRecorder;

use super::common::DEADLINE;
use crate::ids::NodeId;
use crate::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotFailure, SnapshotStatus, UnreachableCause};

/// The shard sets it for a group at every tick, in a place where a panic is contained.
const SET_AT_TICKS: &str = "towline_group_commit_index";

/// The shard counts it after every turn with work, in a place where nothing contains a panic.
const COUNTED_AFTER_TURNS: &str = "towline_shard_turns_total";

type Act = Box<dyn FnOnce() + Send>;

/// What the thread of the shard is to do, once.
#[derive(Clone, Default)]
pub(super) struct Acts {
    at_tick: Arc<Mutex<Option<Act>>>,
    after_turn: Arc<Mutex<Option<Act>>>,
}

impl Acts {
    /// At its next tick of a group, where a panic is contained.
    pub(super) fn at_tick(&self, act: impl FnOnce() + Send + 'static) {
        *lock(&self.at_tick) = Some(Box::new(act));
    }

    /// After its next turn with work, where nothing contains a panic.
    pub(super) fn after_turn(&self, act: impl FnOnce() + Send + 'static) {
        *lock(&self.after_turn) = Some(Box::new(act));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes everything on to a recorder, and acts.
pub(super) struct ActingRecorder {
    pub(super) inner: SharedRecorder,
    pub(super) acts: Acts,
}

/// A handle whose use acts first.
struct Acting<H> {
    inner: H,
    act: Arc<Mutex<Option<Act>>>,
}

impl<H> Acting<H> {
    fn act(&self) -> &H {
        let act = lock(&self.act).take();
        if let Some(act) = act {
            act();
        }
        &self.inner
    }
}

impl GaugeFn for Acting<Gauge> {
    fn increment(&self, value: f64) {
        self.act().increment(value);
    }

    fn decrement(&self, value: f64) {
        self.act().decrement(value);
    }

    fn set(&self, value: f64) {
        self.act().set(value);
    }
}

impl CounterFn for Acting<Counter> {
    fn increment(&self, value: u64) {
        self.act().increment(value);
    }

    fn absolute(&self, value: u64) {
        self.act().absolute(value);
    }
}

impl Recorder for ActingRecorder {
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
                Counter::from_arc(Arc::new(Acting { inner, act: self.acts.after_turn.clone() }))
            }
            _ => inner,
        }
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        let inner = self.inner.register_gauge(key, metadata);
        match key.name() {
            SET_AT_TICKS => Gauge::from_arc(Arc::new(Acting { inner, act: self.acts.at_tick.clone() })),
            _ => inner,
        }
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.inner.register_histogram(key, metadata)
    }
}

/// Holds the shard's thread, in a tick, until it is dropped.
pub(super) struct Held(Arc<Gate>);

#[derive(Default)]
struct Gate {
    /// Whether a thread is in it, and whether it is open.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = lock(&self.state);
        state.0 = true;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(_, open)| !*open));
    }
}

impl Held {
    /// From its next tick on.
    pub(super) fn shard(acts: &Acts) -> Self {
        let gate = Arc::new(Gate::default());
        let held = gate.clone();
        acts.at_tick(move || held.pass());
        let state = lock(&gate.state);
        let (state, late) = gate.changed.wait_timeout_while(state, DEADLINE, |(held, _)| !*held).unwrap();
        assert!(!late.timed_out(), "the shard came to no tick");
        drop(state);
        Self(gate)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        lock(&self.0.state).1 = true;
        self.0.changed.notify_all();
    }
}

/// Stands in front of the node's own reporter, and loses the reports about snapshots that [`Losses`] says.
pub(super) struct Lossy {
    pub(super) inner: Arc<dyn Reporter>,
    pub(super) losses: Losses,
}

#[derive(Clone)]
pub(super) struct Losses {
    state: Arc<Mutex<(Lose, Vec<Loss>)>>,
    /// Heartbeats to peers that are behind.
    beats: watch::Receiver<u64>,
}

/// Which reports about snapshots are lost.
enum Lose {
    /// This number of those that tickets make, as if the tickets were leaked.
    OfTickets(u64),
    /// Every one, also those of the watchdog.
    All,
}

/// A report that was lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub(super) attempt: SnapshotAttempt,
    beats_before: u64,
    /// Heartbeats to peers that are behind until the watchdog reported in its place.
    pub(super) beats: Option<u64>,
}

impl Losses {
    /// Nothing is lost.
    pub(super) fn none(beats: watch::Receiver<u64>) -> Self {
        Self { state: Arc::new(Mutex::new((Lose::OfTickets(0), Vec::new()))), beats }
    }

    pub(super) fn next_of_tickets(&self, count: u64) {
        lock(&self.state).0 = Lose::OfTickets(count);
    }

    pub(super) fn all(&self) {
        lock(&self.state).0 = Lose::All;
    }

    pub(super) fn so_far(&self) -> Vec<Loss> {
        lock(&self.state).1.clone()
    }

    /// Whether this report is lost.
    fn hit(&self, attempt: SnapshotAttempt, status: SnapshotStatus) -> bool {
        let (lose, losses) = &mut *lock(&self.state);
        let beats = *self.beats.borrow();
        let of_watchdog = status == SnapshotStatus::Failure(SnapshotFailure::Lost);
        match lose {
            Lose::OfTickets(_) if of_watchdog => {
                let of_attempt = losses.iter_mut().filter(|loss| loss.attempt == attempt);
                of_attempt.for_each(|loss| loss.beats = Some(beats - loss.beats_before));
                return false;
            }
            Lose::OfTickets(0) => return false,
            Lose::OfTickets(left) => *left -= 1,
            Lose::All if of_watchdog => return true,
            Lose::All => {}
        }
        losses.push(Loss { attempt, beats_before: beats, beats: None });
        true
    }
}

impl Reporter for Lossy {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.inner.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        if !self.losses.hit(attempt, status) {
            self.inner.report_snapshot(attempt, status);
        }
    }
}
