//! Appends under way to each peer, bounded by what the peer acknowledges in time.
//!
//! Raft bounds the messages under way and not the time that they take: its window of 64 messages of 256 KiB takes half a
//! minute at 4 Mbit/s, and each heartbeat's answer lets one more go. So a [`Window`] of each peer says how many messages
//! raft may send, and raft's own window is set to that. What is not sent needs no queue and is never sent twice.
//!
//! What is under way, or its acknowledgement, may be lost without a report. So a peer that answers a heartbeat while raft may
//! not send to it gets a [question](Flows::questions): an append without entries behind those under way. Its answer says
//! whether they arrived, and costs a slow link next to nothing.

use std::collections::{BTreeMap, VecDeque};

use raft::{ProgressState, ProgressTracker};

use super::ReplicaSetup;
use crate::flow::Window;
use crate::message::{Message, MessageKind};

/// Messages of one peer that are remembered; beyond it the last two count as one.
const SENT_MAX: usize = 1_024;

fn is_probed(prs: &ProgressTracker, peer: u64) -> bool {
    prs.get(peer).is_some_and(|progress| progress.state == ProgressState::Probe)
}

/// The windows of a leader.
#[derive(Debug)]
pub(super) struct Flows {
    append_bytes_max: u64,
    inflight_max: usize,
    /// In ticks: how long an acknowledgement should take at most.
    delay_max: u64,
    /// In ticks: a peer is asked again after this time, or twice what its last acknowledgement took.
    pause: u64,
    ticks: u64,
    /// The term these windows are of.
    term: u64,
    peers: BTreeMap<u64, Flow>,
}

#[derive(Debug)]
struct Flow {
    window: Window,
    /// Messages under way.
    sent: VecDeque<Sent>,
    total: u64,
    /// How long the last acknowledgement took.
    delay: u64,
    /// The peer has answered a heartbeat since the last append or question.
    is_heard: bool,
    /// The index and the tick of the last question, if no append was sent after it.
    asked: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Sent {
    /// Its last entry.
    last: u64,
    /// Bytes sent since the start, with this.
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
        }
    }

    /// Counts `ticks` that have passed.
    pub(super) fn pass(&mut self, ticks: u64) {
        self.ticks = self.ticks.saturating_add(ticks);
    }

    /// Raft leads in `term`: a leader of another term knows nothing of what its peers drain.
    pub(super) fn lead(&mut self, term: u64) {
        if self.term != term {
            self.term = term;
            self.peers.clear();
        }
    }

    /// A message is about to leave raft; `false`: it must not. Raft sends its probe again with each answer to a heartbeat,
    /// though the first one, of up to `append_bytes_max`, may take seconds over a slow link.
    pub(super) fn send(&mut self, message: &Message, prs: &ProgressTracker) -> bool {
        let (Some(last), MessageKind::Append) = (message.entries.last(), message.kind) else { return true };
        let (bytes, now, peer) = (message.payload_bytes() as u64, self.ticks, message.to.as_u64());
        let flow = self.flow(peer);
        if is_probed(prs, peer) && !flow.sent.is_empty() {
            return false;
        }
        (flow.is_heard, flow.asked) = (false, None);
        flow.window.sent(bytes, now);
        flow.total = flow.total.saturating_add(bytes);
        if flow.sent.len() >= SENT_MAX {
            flow.sent.pop_back();
        }
        flow.sent.push_back(Sent { last: last.index, total: flow.total, at: now });
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

    /// A peer has everything up to `index`. Must be called before raft sees it, which may send more at once.
    ///
    /// `true`: what was under way is lost. The peer has taken a question behind it, and does not have it.
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
        let Some(Sent { total, at, .. }) = acked else { return false };
        flow.window.acked(total, now);
        flow.delay = now.saturating_sub(at);
        let messages = self.allowed(peer);
        if let Some(progress) = prs.get_mut(peer) {
            // What raft has sent since it was last allowed counts.
            progress.ins.set_cap(messages);
        }
        false
    }

    /// What is under way to a peer is lost, or refused.
    pub(super) fn forget(&mut self, peer: u64, prs: &mut ProgressTracker) {
        if self.peers.remove(&peer).is_some()
            && let Some(progress) = prs.get_mut(peer)
        {
            progress.ins.reset();
            progress.ins.set_cap(self.allowed(peer));
        }
    }

    /// A peer has answered a heartbeat: its link works.
    pub(super) fn heard(&mut self, peer: u64) {
        if let Some(flow) = self.peers.get_mut(&peer) {
            flow.is_heard = true;
        }
    }

    /// Peers to be asked now, with the last index before what raft sends next: each answered a heartbeat while raft could not
    /// send to it. Called when all that raft sent has left, so that a question comes after it.
    pub(super) fn questions(&mut self, prs: &ProgressTracker) -> Vec<(u64, u64)> {
        let mut questions = Vec::new();
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

    /// Messages that raft may send to a peer before it is asked again.
    fn allowed(&self, peer: u64) -> usize {
        let flow = self.peers.get(&peer);
        let room = flow.map_or(self.append_bytes_max, |flow| flow.window.room());
        let by_bytes = usize::try_from(room.div_ceil(self.append_bytes_max.max(1))).unwrap_or(usize::MAX);
        by_bytes.min(self.inflight_max.saturating_sub(flow.map_or(0, |flow| flow.sent.len())))
    }

    /// Lets raft send to each peer as much as has room. Called when what it sent before is accounted for.
    pub(super) fn allow(&mut self, prs: &mut ProgressTracker) {
        for (&peer, progress) in prs.iter_mut() {
            // Raft counts only what it sends from here on.
            progress.ins.reset();
            progress.ins.set_cap(self.allowed(peer));
        }
    }
}
