//! What a lane's senders and its worker share: the queue, and whether there is a link.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::counter::LaneCounter;
use super::policy::{AppendQueue, ControlQueue, DropReason, Pushed};
use super::settings::LaneSettings;
use crate::ids::NodeId;
use crate::message::{Batch, Envelope, Lane};
use crate::reporter::{Reporter, Scope, UnreachableCause};

/// Milliseconds since the lanes were made: the policy's notion of time.
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

/// One lane to one peer, as its senders see it.
pub(crate) struct LaneQueue {
    pub(crate) peer: NodeId,
    pub(crate) lane: Lane,
    pub(crate) counter: Arc<dyn LaneCounter>,
    pub(crate) reporter: Arc<dyn Reporter>,
    clock: Clock,
    state: Mutex<State>,
    /// There is something to dispatch.
    filled: Notify,
    /// The peer called this node, so it is there.
    called: Notify,
}

struct State {
    line: Line,
    phase: Phase,
    /// Whether a batch was handed to the present link: then its death may have lost something.
    used: bool,
    /// Whether Raft knows that the peer is not reachable on this lane: an incident is told once.
    told: bool,
}

enum Line {
    Control(ControlQueue),
    Append(AppendQueue),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Down,
    Up,
    /// No more links: whatever comes is dropped for this reason.
    Ended(DropReason),
}

/// What became of a message that was pushed, as far as its sender has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It waits for the worker, which is to be woken if `wake`.
    Queued { wake: bool },
    /// It was dropped and counted. For an append, Raft is to hear of it.
    Dropped(UnreachableCause),
    /// It was dropped and counted, and that is all.
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
        let state = Mutex::new(State { line, phase: Phase::Down, used: false, told: false });
        let (filled, called) = (Notify::new(), Notify::new());
        Self { peer, lane, counter, reporter, clock, state, filled, called }
    }

    // Every state between two statements below is a valid one, so a poisoned lock is no reason to stop sending.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer called this node: a worker that pauses before its next attempt to connect need not.
    pub(crate) fn peer_called(&self) {
        self.called.notify_one();
    }

    /// Waits for a call of the peer, or returns at once if there was one since this was asked last.
    pub(crate) async fn called(&self) {
        self.called.notified().await;
    }

    /// Queues or drops a message, and counts a drop. Wakes nobody and reports nothing: the sender does, once a burst.
    pub(crate) fn push(&self, envelope: Envelope, now_ms: u64) -> Sent {
        let mut state = self.lock();
        let State { line, phase, .. } = &mut *state;
        match (line, *phase) {
            (_, Phase::Ended(reason)) => {
                self.counter.dropped(reason, 1);
                // After a restart the new lane's incident is not ours to tell, but this message was lost here.
                if reason == DropReason::LinkDown {
                    Sent::Dropped(UnreachableCause::LinkLost)
                } else {
                    Sent::Gone
                }
            }
            (Line::Append(_), Phase::Down) => {
                self.counter.dropped(DropReason::LinkDown, 1);
                Sent::Dropped(UnreachableCause::LinkLost)
            }
            (Line::Append(queue), Phase::Up) => {
                let wake = queue.is_empty();
                match queue.push(envelope, now_ms) {
                    Ok(()) => Sent::Queued { wake },
                    Err(_) => {
                        self.counter.dropped(DropReason::QueueFull, 1);
                        Sent::Dropped(UnreachableCause::QueueFull)
                    }
                }
            }
            (Line::Control(queue), Phase::Down | Phase::Up) => {
                let wake = queue.is_empty();
                match queue.push(envelope, now_ms) {
                    Pushed::Queued => return Sent::Queued { wake },
                    Pushed::Superseded => self.counter.dropped(DropReason::Superseded, 1),
                    Pushed::ReadsFull(_) => self.counter.dropped(DropReason::QueueFull, 1),
                }
                Sent::Gone
            }
        }
    }

    /// After a burst: shows the depth, and wakes the worker if `wake`.
    pub(crate) fn settle(&self, wake: bool, now_ms: u64) {
        self.show_depth(&self.lock(), now_ms);
        if wake {
            self.filled.notify_one();
        }
    }

    fn show_depth(&self, state: &State, now_ms: u64) {
        self.counter.depth(match &state.line {
            Line::Control(queue) => queue.depth(now_ms),
            Line::Append(queue) => queue.depth(now_ms),
        });
    }

    /// The next batch for the link, which counts as used from here on.
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

    /// Waits until something was pushed. Cancel-safe.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// A link was made. Control messages older than `age_max` are dropped: they say nothing true any more.
    pub(crate) fn link_up(&self, age_max: Duration) {
        let mut state = self.lock();
        if state.phase != Phase::Down {
            return;
        }
        state.phase = Phase::Up;
        state.used = false;
        state.told = false;
        let now_ms = self.clock.now_ms();
        if let Line::Control(queue) = &mut state.line {
            let age_max_ms = u64::try_from(age_max.as_millis()).unwrap_or(u64::MAX);
            self.count_dropped(DropReason::LinkDown, queue.expire(now_ms.saturating_sub(age_max_ms)));
        }
        self.show_depth(&state, now_ms);
        self.counter.connected();
    }

    /// The link is gone. The control queue stays and goes on conflating; appends are dropped, and Raft hears of it if
    /// the link had lost anything.
    pub(crate) fn link_down(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Up {
            state.phase = Phase::Down;
        }
        self.counter.closed();
        let tell = self.lose(&mut state, DropReason::LinkDown);
        drop(state);
        self.tell(tell, UnreachableCause::LinkLost);
    }

    /// No link could be made.
    pub(crate) fn connect_failed(&self) {
        self.counter.connect_failed();
        let mut state = self.lock();
        let tell = self.lane == Lane::Append
            && state.phase == Phase::Down
            && !std::mem::replace(&mut state.told, true);
        drop(state);
        self.tell(tell, UnreachableCause::ConnectFailed);
    }

    /// Nothing is sent any more, for this reason; what waits is dropped. Raft hears of it only when the peer stays
    /// ([`DropReason::LinkDown`]: the lane is made anew for another address).
    pub(crate) fn end(&self, reason: DropReason) {
        let mut state = self.lock();
        if matches!(state.phase, Phase::Ended(_)) {
            return;
        }
        state.phase = Phase::Ended(reason);
        if let Line::Control(queue) = &mut state.line {
            self.count_dropped(reason, queue.clear());
        }
        let tell = self.lose(&mut state, reason) && reason == DropReason::LinkDown;
        drop(state);
        self.tell(tell, UnreachableCause::LinkLost);
    }

    /// The reason for which a batch is lost whose dispatch did not end.
    pub(crate) fn loss(&self) -> DropReason {
        match self.lock().phase {
            Phase::Ended(reason) => reason,
            Phase::Down | Phase::Up => DropReason::DispatchFailed,
        }
    }

    /// Gives up what was handed to the link and the appends that wait for it; says whether Raft has to hear of it.
    fn lose(&self, state: &mut State, reason: DropReason) -> bool {
        let used = std::mem::take(&mut state.used);
        let waiting = match &mut state.line {
            Line::Control(_) => 0,
            Line::Append(queue) => queue.drop_all().messages,
        };
        self.count_dropped(reason, waiting);
        self.show_depth(state, self.clock.now_ms());
        let lost = self.lane == Lane::Append && (used || waiting > 0);
        lost && !std::mem::replace(&mut state.told, true)
    }

    fn count_dropped(&self, reason: DropReason, messages: usize) {
        if messages > 0 {
            self.counter.dropped(reason, messages);
        }
    }

    // Without the lock: what a reporter wakes must not wait for a lane.
    fn tell(&self, tell: bool, cause: UnreachableCause) {
        if tell {
            self.reporter.report_unreachable(self.peer, Scope::Node, cause);
        }
    }
}
