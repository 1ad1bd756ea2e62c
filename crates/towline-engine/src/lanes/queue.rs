//! The state that a lane's senders and its worker share: the queue and the state of the link.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::deps::{LaneCounter, LaneSettings};
use super::policy::{AppendQueue, ControlQueue, DropReason, Pushed};
use crate::ids::NodeId;
use crate::message::{Batch, Envelope, Lane};
use crate::reporter::{Reporter, Scope, UnreachableCause};

/// Counts milliseconds since the lanes were created: the time of [`policy`](super::policy).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(crate) fn now_ms(self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The queue of one lane to one peer.
pub(crate) struct LaneQueue {
    pub(crate) peer: NodeId,
    pub(crate) lane: Lane,
    pub(crate) counter: Arc<dyn LaneCounter>,
    pub(crate) reporter: Arc<dyn Reporter>,
    clock: Clock,
    state: Mutex<LaneState>,
    /// Notified when the queue is no longer empty.
    filled: Notify,
    /// Notified when the peer connects to this node.
    peer_connected: Notify,
}

struct LaneState {
    line: Line,
    phase: Phase,
    /// Whether the current link has got a batch. If so, the end of the link may lose messages.
    used: bool,
    /// Whether Raft knows that the peer is not reachable on this lane: an incident is reported once.
    reported: bool,
}

enum Line {
    Control(ControlQueue),
    Append(AppendQueue),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Up,
    /// The lane opens no further link, and drops messages for this reason.
    Ended(DropReason),
}

/// The outcome of a push, as far as the sender must act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushOutcome {
    /// The message is queued. The sender wakes the worker if `wake`.
    Queued { wake: bool },
    /// The message was dropped and counted. The sender reports a dropped append to Raft.
    Dropped(UnreachableCause),
    /// The message was dropped and counted. There is nothing to report.
    Gone,
}

impl LaneQueue {
    pub(crate) fn new(
        peer: NodeId,
        lane: Lane,
        settings: &LaneSettings,
        counter: Arc<dyn LaneCounter>,
        reporter: Arc<dyn Reporter>,
        clock: Clock,
    ) -> Self {
        let line = match lane {
            Lane::Control => Line::Control(ControlQueue::new(settings.reads_max)),
            Lane::Append => {
                Line::Append(AppendQueue::new(settings.append_messages_max, settings.append_bytes_max))
            }
        };
        let state = Mutex::new(LaneState { line, phase: Phase::Down, used: false, reported: false });
        let (filled, peer_connected) = (Notify::new(), Notify::new());
        Self { peer, lane, counter, reporter, clock, state, filled, peer_connected }
    }

    // Every intermediate state is valid, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that the peer connected to this node, which ends the worker's pause between attempts.
    pub(crate) fn notify_peer_connected(&self) {
        self.peer_connected.notify_one();
    }

    /// Waits until the peer connects to this node. Returns at once if it connected since the last call.
    pub(crate) async fn peer_connected(&self) {
        self.peer_connected.notified().await;
    }

    /// Queues or drops a message, and counts a drop. The sender wakes the worker and reports drops once for each burst.
    pub(crate) fn push(&self, envelope: Envelope, now_ms: u64) -> PushOutcome {
        let mut state = self.lock();
        let LaneState { line, phase, .. } = &mut *state;
        match (line, *phase) {
            (_, Phase::Ended(reason)) => {
                self.counter.dropped(reason, 1);
                // The lane was replaced by one for another address. This message was still lost here.
                if reason == DropReason::LinkDown {
                    PushOutcome::Dropped(UnreachableCause::LinkLost)
                } else {
                    PushOutcome::Gone
                }
            }
            (Line::Append(_), Phase::Down) => {
                self.counter.dropped(DropReason::LinkDown, 1);
                PushOutcome::Dropped(UnreachableCause::LinkLost)
            }
            (Line::Append(queue), Phase::Up) => {
                let wake = queue.is_empty();
                if queue.push(envelope, now_ms) {
                    return PushOutcome::Queued { wake };
                }
                self.counter.dropped(DropReason::QueueFull, 1);
                PushOutcome::Dropped(UnreachableCause::QueueFull)
            }
            (Line::Control(queue), Phase::Down | Phase::Up) => {
                let wake = queue.is_empty();
                match queue.push(envelope, now_ms) {
                    Pushed::Queued => return PushOutcome::Queued { wake },
                    Pushed::Superseded => self.counter.dropped(DropReason::Superseded, 1),
                    Pushed::ReadsFull => self.counter.dropped(DropReason::QueueFull, 1),
                }
                PushOutcome::Gone
            }
        }
    }

    /// Ends a burst: updates the depth, and wakes the worker if `wake`.
    pub(crate) fn settle(&self, wake: bool, now_ms: u64) {
        self.show_depth(&self.lock(), now_ms);
        if wake {
            self.filled.notify_one();
        }
    }

    fn show_depth(&self, state: &LaneState, now_ms: u64) {
        self.counter.depth(match &state.line {
            Line::Control(queue) => queue.depth(now_ms),
            Line::Append(queue) => queue.depth(now_ms),
        });
    }

    /// Takes the next batch for the link.
    pub(crate) fn take(&self, bytes_max: usize) -> Option<Batch> {
        let mut state = self.lock();
        if state.phase != Phase::Up {
            return None;
        }
        let batch = match &mut state.line {
            Line::Control(queue) => queue.take_batch(bytes_max),
            Line::Append(queue) => queue.take_batch(bytes_max),
        }?;
        state.used = true;
        self.show_depth(&state, self.clock.now_ms());
        Some(batch)
    }

    /// Waits until a message was queued. Cancel-safe.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Records a new link. Drops control messages older than `age_max`, which are outdated.
    pub(crate) fn link_up(&self, age_max: Duration) {
        let mut state = self.lock();
        if state.phase != Phase::Down {
            return;
        }
        state.phase = Phase::Up;
        state.used = false;
        state.reported = false;
        let now_ms = self.clock.now_ms();
        if let Line::Control(queue) = &mut state.line {
            let age_max_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
            self.count_dropped(DropReason::LinkDown, queue.expire(now_ms.saturating_sub(age_max_ms)));
        }
        self.show_depth(&state, now_ms);
        self.counter.connected();
    }

    /// Records the end of the link. Control messages stay. Appends are dropped, and reported if messages may be lost.
    pub(crate) fn link_down(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Up {
            state.phase = Phase::Down;
        }
        self.counter.closed();
        let report = self.lose(&mut state, DropReason::LinkDown);
        drop(state);
        self.report(report, UnreachableCause::LinkLost);
    }

    /// Records a failed attempt to connect.
    pub(crate) fn connect_failed(&self) {
        self.counter.connect_failed();
        let mut state = self.lock();
        let report = self.lane == Lane::Append
            && state.phase == Phase::Down
            && !std::mem::replace(&mut state.reported, true);
        drop(state);
        self.report(report, UnreachableCause::ConnectFailed);
    }

    /// Ends the lane for this reason, and drops its queue. Raft gets a report only if the peer stays
    /// ([`DropReason::LinkDown`]: a new lane with another address follows).
    pub(crate) fn end(&self, reason: DropReason) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Ended(_)) {
            return;
        }
        state.phase = Phase::Ended(reason);
        if let Line::Control(queue) = &mut state.line {
            self.count_dropped(reason, queue.clear());
        }
        let report = self.lose(&mut state, reason) && reason == DropReason::LinkDown;
        drop(state);
        self.report(report, UnreachableCause::LinkLost);
    }

    /// The reason for a batch whose dispatch was abandoned.
    pub(crate) fn loss(&self) -> DropReason {
        match self.lock().phase {
            Phase::Ended(reason) => reason,
            Phase::Down | Phase::Up => DropReason::DispatchFailed,
        }
    }

    /// Drops the queued appends. Returns whether to report lost messages to Raft.
    fn lose(&self, state: &mut LaneState, reason: DropReason) -> bool {
        let used = std::mem::take(&mut state.used);
        let waiting = match &mut state.line {
            Line::Control(_) => 0,
            Line::Append(queue) => queue.clear(),
        };
        self.count_dropped(reason, waiting);
        self.show_depth(state, self.clock.now_ms());
        let lost = self.lane == Lane::Append && (used || waiting > 0);
        lost && !std::mem::replace(&mut state.reported, true)
    }

    fn count_dropped(&self, reason: DropReason, messages: usize) {
        if messages > 0 {
            self.counter.dropped(reason, messages);
        }
    }

    // Called without the lock: the task that a report wakes must not wait for a lane.
    fn report(&self, report: bool, cause: UnreachableCause) {
        if report {
            self.reporter.report_unreachable(self.peer, Scope::Node, cause);
        }
    }
}
