//! Bounds the unacknowledged appends to each peer by what the peer acknowledges in time.
//!
//! Raft bounds the number of messages under way, not the time that they take. Its window of 64 messages of 256 KiB takes
//! half a minute at 4 Mbit/s, and each heartbeat response lets raft send one more. So a [`Window`] for each peer bounds the
//! messages that raft may send, by the size of raft's own window. Unsent messages need no queue and are never sent twice.
//!
//! Appends or their acknowledgements may be lost without a report. So a peer that answers a heartbeat while raft may not send
//! to it gets a [question](Flows::questions): an append without entries, behind those under way. The answer shows whether
//! they arrived. A question is small, even for a slow link.

use std::collections::{BTreeMap, VecDeque};

use raft::{ProgressState, ProgressTracker};

use super::ReplicaSetup;
use crate::flow::Window;
use crate::message::{Message, MessageKind};

/// The most messages recorded for one peer; above it the last two count as one.
const SENT_MAX: usize = 1_024;

/// The windows of a leader.
#[derive(Debug)]
pub(super) struct Flows {
    append_bytes_max: u64,
    inflight_max: usize,
    /// The longest time that an acknowledgement should take, in ticks.
    delay_max: u64,
    /// Ticks between two questions to a peer, unless twice the delay of its last acknowledgement is more.
    pause: u64,
    ticks: u64,
    /// The leader's term.
    term: u64,
    peers: BTreeMap<u64, Flow>,
    /// A peer has answered a heartbeat since the last call of `questions`.
    is_any_heard: bool,
}

#[derive(Debug)]
struct Flow {
    window: Window,
    /// Messages under way.
    sent: VecDeque<SentAppend>,
    total: u64,
    /// The delay of the last acknowledgement.
    delay: u64,
    /// The peer has answered a heartbeat since the last append or question.
    is_heard: bool,
    /// The index and the tick of the last question, if no append was sent after it.
    asked: Option<(u64, u64)>,
}

#[derive(Debug)]
struct SentAppend {
    /// The index of its last entry.
    last: u64,
    /// Bytes sent since the start, with this message.
    total: u64,
    at: u64,
}

impl Flows {
    pub(super) fn new(setup: &ReplicaSetup) -> Self {
        Self {
            append_bytes_max: setup.append_bytes_max,
            inflight_max: setup.append_inflight_max,
            delay_max: (setup.election_ticks_min as u64).saturating_mul(2),
            pause: setup.heartbeat_ticks as u64,
            ticks: 0,
            term: 0,
            peers: BTreeMap::new(),
            is_any_heard: false,
        }
    }

    /// Counts `ticks` that have passed.
    pub(super) fn pass(&mut self, ticks: u64) {
        self.ticks = self.ticks.saturating_add(ticks);
    }

    /// Forgets the windows of an earlier term. `true`: the leader of `term` is new.
    pub(super) fn lead(&mut self, term: u64, prs: &mut ProgressTracker) -> bool {
        let is_new = self.term != term;
        if is_new {
            self.term = term;
            self.peers.clear();
            let messages = self.allowed(None);
            prs.iter_mut().for_each(|(_, progress)| progress.ins.set_cap(messages));
        }
        is_new
    }

    /// Records a message that raft sends. `false`: it must not leave. Raft repeats its probe at each heartbeat response,
    /// although the first one, of up to `append_bytes_max`, may take seconds over a slow link.
    ///
    /// A probe to a peer whose disk is low carries one entry: the peer refuses it, unless it has the entry already.
    pub(super) fn send(&mut self, message: &mut Message, prs: &mut ProgressTracker, is_low: bool) -> bool {
        let progress = prs.get_mut(message.to.as_u64());
        let is_probed = progress.as_ref().is_some_and(|progress| progress.state == ProgressState::Probe);
        if is_low && is_probed {
            message.entries.truncate(1);
        }
        let (Some(last), MessageKind::Append) = (message.entries.last(), message.kind) else { return true };
        let (bytes, now, peer) = (message.payload_bytes() as u64, self.ticks, message.to.as_u64());
        let flow = self.flow(peer);
        if is_probed && !flow.sent.is_empty() {
            return false;
        }
        (flow.is_heard, flow.asked) = (false, None);
        flow.window.sent(bytes, now);
        flow.total = flow.total.saturating_add(bytes);
        if flow.sent.len() >= SENT_MAX {
            flow.sent.pop_back();
        }
        flow.sent.push_back(SentAppend { last: last.index, total: flow.total, at: now });
        if let Some(progress) = progress {
            // Raft counts from zero again, and keeps its buffer.
            progress.ins.free_to(u64::MAX);
            progress.ins.set_cap(self.allowed(self.peers.get(&peer)));
        }
        true
    }

    fn flow(&mut self, peer: u64) -> &mut Flow {
        let max = self.append_bytes_max.saturating_mul(self.inflight_max as u64);
        let (floor, delay_max) = (self.append_bytes_max, self.delay_max);
        self.peers.entry(peer).or_insert_with(|| {
            let window = Window::new(floor, max, delay_max);
            Flow { window, sent: VecDeque::new(), total: 0, delay: 0, is_heard: false, asked: None }
        })
    }

    /// Records that a peer has the log up to `index`. Call it before raft gets the message, because raft may send more at
    /// once.
    ///
    /// `true`: the messages under way are lost, because the peer answers the question behind them and does not have them.
    pub(super) fn acked(&mut self, peer: u64, index: u64, prs: &mut ProgressTracker) -> bool {
        let now = self.ticks;
        let Some(flow) = self.peers.get_mut(&peer) else { return false };
        let mut acked = None;
        while flow.sent.front().is_some_and(|sent| sent.last <= index) {
            acked = flow.sent.pop_front();
        }
        if flow.asked.is_some_and(|(asked, _)| asked == index) && !flow.sent.is_empty() {
            self.forget(peer, prs);
            return true;
        }
        let Some(SentAppend { total, at, .. }) = acked else { return false };
        flow.window.acked(total, now);
        flow.delay = now.saturating_sub(at);
        let messages = self.allowed(self.peers.get(&peer));
        if let Some(progress) = prs.get_mut(peer) {
            // Raft counts the messages that no ready contains yet.
            progress.ins.set_cap(messages);
        }
        false
    }

    /// Records that the messages under way to a peer are lost or refused.
    pub(super) fn forget(&mut self, peer: u64, prs: &mut ProgressTracker) {
        if self.peers.remove(&peer).is_some()
            && let Some(progress) = prs.get_mut(peer)
        {
            progress.ins.reset();
            progress.ins.set_cap(self.allowed(None));
        }
    }

    /// Records that a peer has answered a heartbeat, so its link works.
    pub(super) fn heard(&mut self, peer: u64) {
        if let Some(flow) = self.peers.get_mut(&peer) {
            flow.is_heard = true;
            self.is_any_heard = true;
        }
    }

    /// Whether a peer has answered a heartbeat since the last call of [`questions`](Self::questions).
    pub(super) fn is_any_heard(&self) -> bool {
        self.is_any_heard
    }

    /// Returns the peers to ask now, each with the index before raft's next entry. These peers answered a heartbeat while raft
    /// could not send to them. Call it when all messages of raft have left: a question comes behind them.
    pub(super) fn questions(&mut self, prs: &ProgressTracker) -> Vec<(u64, u64)> {
        let mut questions = Vec::new();
        self.is_any_heard = false;
        for (&peer, flow) in &mut self.peers {
            if !std::mem::take(&mut flow.is_heard) || flow.sent.is_empty() {
                continue;
            }
            let Some(progress) = prs.get(peer) else { continue };
            let held_back = match progress.state {
                ProgressState::Probe => true,
                ProgressState::Replicate => progress.ins.full(),
                ProgressState::Snapshot => false,
            };
            let pause = self.pause.max(flow.delay.saturating_mul(2));
            let waits = flow.asked.is_some_and(|(_, at)| self.ticks < at.saturating_add(pause));
            if held_back && !waits {
                let index = progress.next_idx.saturating_sub(1);
                flow.asked = Some((index, self.ticks));
                questions.push((peer, index));
            }
        }
        questions
    }

    /// The number of messages that raft may send to a peer now.
    fn allowed(&self, flow: Option<&Flow>) -> usize {
        let room = flow.map_or(self.append_bytes_max, |flow| flow.window.room());
        let by_bytes = usize::try_from(room.div_ceil(self.append_bytes_max.max(1))).unwrap_or(usize::MAX);
        by_bytes.min(self.inflight_max.saturating_sub(flow.map_or(0, |flow| flow.sent.len())))
    }
}
