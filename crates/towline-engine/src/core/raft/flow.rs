//! Appends under way to each peer, bounded by what the peer acknowledges in time.
//!
//! Raft bounds the messages under way and not the time that they take: its window of 64 messages of 256 KiB takes half a
//! minute at 4 Mbit/s, and each heartbeat's answer lets one more go. So a [`Window`] of each peer says how many messages
//! raft may send, and raft's own window is set to that. What is not sent needs no queue and is never sent twice.

use std::collections::{BTreeMap, VecDeque};

use raft::{ProgressState, ProgressTracker};

use super::ReplicaSetup;
use crate::flow::Window;
use crate::message::{Message, MessageKind};

/// Messages of one peer that are remembered; beyond it the last two count as one.
const SENT_MAX: usize = 1_024;

/// A probe of more than this part of `append_bytes_max` is not repeated at each heartbeat: 16 KiB take one at 1 Mbit/s.
const LARGE_PART: u64 = 16;

/// How often the time between two messages beyond a window grows, to four times as much: at 1 Mbit/s two of them leave
/// before the first acknowledgement can have come. At most 32 heartbeat intervals: that is how long a peer waits for entries
/// whose link is well again.
const EXTRA_MAX: u32 = 2;

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
    /// In ticks: when a peer that acknowledges nothing, and never did so late, is sent a message beyond its window.
    patience: u64,
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
    /// When the last acknowledgement came, or the first message was sent after a pause, or one was allowed beyond the window.
    moved_at: u64,
    /// How long the last acknowledgement took.
    delay: u64,
    /// Messages allowed beyond the window since then.
    extra: u32,
    /// One more of them may go.
    allow_extra: bool,
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
            patience: (setup.heartbeat_ticks as u64).saturating_mul(2),
            ticks: 0,
            term: 0,
            peers: BTreeMap::new(),
        }
    }

    /// Counts `ticks` that have passed. A peer that acknowledged nothing for two heartbeats, and for twice as long as it took before,
    /// is sent one message beyond its window, less and less often. What is under way, or its answer, may be lost, and
    /// without another message neither side would notice.
    pub(super) fn pass(&mut self, ticks: u64, prs: &mut ProgressTracker) {
        self.ticks = self.ticks.saturating_add(ticks);
        for (peer, flow) in &mut self.peers {
            let patience =
                self.patience.saturating_mul(1 << (2 * flow.extra)).max(flow.delay.saturating_mul(2));
            let held_back = flow.window.room() == 0 || flow.sent.len() >= self.inflight_max;
            let held_back = held_back || (!flow.sent.is_empty() && is_probed(prs, *peer));
            if held_back && self.ticks.saturating_sub(flow.moved_at) > patience {
                flow.moved_at = self.ticks;
                flow.extra = (flow.extra + 1).min(EXTRA_MAX);
                flow.allow_extra = true;
                if let Some(progress) = prs.get_mut(*peer) {
                    progress.ins.set_cap(1);
                }
            }
        }
    }

    /// Raft leads in `term`: a leader of another term knows nothing of what its peers drain.
    pub(super) fn lead(&mut self, term: u64) {
        if self.term != term {
            self.term = term;
            self.peers.clear();
        }
    }

    /// A message is about to leave raft; `false`: it is not to. Raft sends its probe again with each answer to a heartbeat,
    /// though the first one, of up to `append_bytes_max`, may take seconds over a slow link.
    pub(super) fn send(&mut self, message: &Message, prs: &ProgressTracker) -> bool {
        let (Some(last), MessageKind::Append) = (message.entries.last(), message.kind) else { return true };
        let (bytes, now, peer) = (message.payload_bytes() as u64, self.ticks, message.to.as_u64());
        let large = self.append_bytes_max / LARGE_PART;
        let flow = self.flow(peer);
        let takes_long = bytes > large;
        if takes_long && is_probed(prs, peer) && !flow.sent.is_empty() && !flow.allow_extra {
            return false;
        }
        if flow.sent.is_empty() {
            flow.moved_at = now;
        }
        flow.allow_extra = false;
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
        let (floor, delay_max, moved_at) = (self.append_bytes_max, self.delay_max, self.ticks);
        self.peers.entry(peer).or_insert_with(|| {
            let window = Window::new(floor, max, delay_max);
            let sent = VecDeque::new();
            Flow { window, sent, total: 0, moved_at, delay: 0, extra: 0, allow_extra: false }
        })
    }

    /// A peer has everything up to `index`. Must be called before raft sees it, which may send more at once.
    pub(super) fn acked(&mut self, peer: u64, index: u64, prs: &mut ProgressTracker) {
        let now = self.ticks;
        let Some(flow) = self.peers.get_mut(&peer) else { return };
        let mut acked = None;
        while flow.sent.front().is_some_and(|sent| sent.last <= index) {
            acked = flow.sent.pop_front();
        }
        let Some(Sent { total, at, .. }) = acked else { return };
        flow.window.acked(total, now);
        (flow.moved_at, flow.delay, flow.extra) = (now, now.saturating_sub(at), 0);
        let messages = self.allowed(peer);
        if let Some(progress) = prs.get_mut(peer) {
            // What raft has sent since it was last allowed counts.
            progress.ins.set_cap(messages);
        }
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

    /// Messages that raft may send to a peer before it is asked again.
    fn allowed(&self, peer: u64) -> usize {
        let flow = self.peers.get(&peer);
        let room = flow.map_or(self.append_bytes_max, |flow| flow.window.room());
        let by_bytes = usize::try_from(room.div_ceil(self.append_bytes_max.max(1))).unwrap_or(usize::MAX);
        let messages = by_bytes.min(self.inflight_max.saturating_sub(flow.map_or(0, |flow| flow.sent.len())));
        messages.max(flow.map_or(0, |flow| usize::from(flow.allow_extra)))
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
