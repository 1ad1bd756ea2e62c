//! The queue of a control lane.

use std::collections::VecDeque;

use super::{BatchBuilder, ConflatingQueue, Depth, cost};
use crate::ids::GroupId;
use crate::message::{Batch, Envelope, Message, MessageKind};

/// Saves the read round of a heartbeat, or of a heartbeat's answer, that a newer one supersedes.
///
/// The context of a heartbeat names the newest read barrier that waits for a quorum, and raft 0.7 confirms with it
/// every barrier before it (`ReadOnly::advance`), so a newer context may replace an older one. A newer heartbeat
/// *without* a context (the leader has none pending, or the driver asked for a plain one) must not erase the round that
/// was to travel: an older context then moves into the newer message. That is sound both ways:
///
/// * A heartbeat: of the same term, so of the same leader. The answer to the newer message is given later than the
///   round began, and says what the answer to the older one would have said: at that time no newer term was known.
///   A lease that counts from when the round was sent only gets shorter by it, never longer.
/// * An answer: the follower did answer the round in this term. That it answers again in the same term takes nothing back.
///
/// In another term the round is void: a leader forgets its barriers when its term ends. It is not carried over.
///
/// What conflation can cost: rounds of which each reaches another minority are confirmed by none. As raft puts the
/// newest pending context in every heartbeat, the first one that reaches a quorum confirms them all.
pub(crate) fn keep_round(older: &Message, newer: &mut Message) {
    let beats = matches!(newer.kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse);
    if beats && older.kind == newer.kind && older.term == newer.term && newer.context.is_empty() {
        newer.context = older.context.clone();
    }
}

/// What became of a message that was pushed.
// By value: a box would allocate exactly when the queue is overloaded.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits.
    Queued,
    /// It waits in the place of an older one, which is gone.
    Superseded,
    /// Too many messages of read barriers wait: this one was not taken.
    ReadsFull(Envelope),
}

/// Control messages that wait for a link: one slot per (group, kind), and a short line for the messages of read
/// barriers. Those are never conflated: one heartbeat's answer can release several of them to the same peer at once.
#[derive(Debug)]
pub(crate) struct ControlQueue {
    slots: ConflatingQueue<(GroupId, MessageKind), (Envelope, u64)>,
    reads: VecDeque<(Envelope, u64)>,
    reads_max: usize,
    bytes: usize,
}

impl ControlQueue {
    /// An empty queue that holds at most `reads_max` messages of read barriers.
    pub(crate) fn new(reads_max: usize) -> Self {
        Self { slots: ConflatingQueue::default(), reads: VecDeque::new(), reads_max, bytes: 0 }
    }

    /// Puts a message in.
    pub(crate) fn push(&mut self, envelope: Envelope, now_ms: u64) -> Pushed {
        let kind = envelope.message.kind;
        if matches!(kind, MessageKind::ReadIndex | MessageKind::ReadIndexResponse) {
            if self.reads.len() >= self.reads_max {
                return Pushed::ReadsFull(envelope);
            }
            self.bytes += cost(&envelope);
            self.reads.push_back((envelope, now_ms));
            return Pushed::Queued;
        }
        let key = (envelope.group, kind);
        let mut bytes = cost(&envelope);
        let merge = |(older, _): &(Envelope, u64), (newer, _): &mut (Envelope, u64)| {
            keep_round(&older.message, &mut newer.message);
            bytes = cost(newer);
        };
        let superseded = self.slots.push_with(key, (envelope, now_ms), merge);
        self.bytes += bytes;
        match superseded {
            None => Pushed::Queued,
            Some((older, _)) => {
                self.bytes -= cost(&older);
                Pushed::Superseded
            }
        }
    }

    /// Takes what fits in `bytes_max`, or one message that does not; `None` if there is nothing.
    ///
    /// The slots go first, because an election hangs on them; but one read goes with every batch, so that a node with
    /// very many groups serves reads too.
    pub(crate) fn take_batch(&mut self, bytes_max: usize) -> Option<Batch> {
        let reserved = self.reads.front().map_or(0, |(envelope, _)| cost(envelope));
        let mut builder = BatchBuilder::new(bytes_max.saturating_sub(reserved));
        while self.slots.front().is_some_and(|(envelope, _)| builder.fits(envelope))
            && let Some((envelope, _)) = self.slots.pop()
        {
            builder.push(envelope);
        }
        builder.bytes_max = bytes_max;
        while self.reads.front().is_some_and(|(envelope, _)| builder.fits(envelope))
            && let Some((envelope, _)) = self.reads.pop_front()
        {
            builder.push(envelope);
        }
        self.bytes -= builder.bytes;
        (!builder.batch.envelopes.is_empty()).then_some(builder.batch)
    }

    /// Drops what was pushed before `since_ms`; gives back how many. Called when a link comes back: what a peer missed
    /// for an election timeout says nothing true any more.
    pub(crate) fn expire(&mut self, since_ms: u64) -> usize {
        let before = self.reads.len();
        self.reads.retain(|(_, at_ms)| *at_ms >= since_ms);
        let expired = before - self.reads.len() + self.slots.retain(|(_, at_ms)| *at_ms >= since_ms);
        self.bytes = self.slots.iter().chain(&self.reads).map(|(envelope, _)| cost(envelope)).sum();
        expired
    }

    /// Drops everything; gives back how many.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.slots.len() + self.reads.len();
        self.slots = ConflatingQueue::default();
        self.reads.clear();
        self.bytes = 0;
        dropped
    }

    /// How much waits. The age is that of what is next: a slot is as old as its newest value.
    pub(crate) fn depth(&self, now_ms: u64) -> Depth {
        let next = [self.slots.front(), self.reads.front()].into_iter().flatten().map(|(_, at_ms)| *at_ms);
        Depth {
            messages: self.slots.len() + self.reads.len(),
            bytes: self.bytes,
            age_ms: next.min().map_or(0, |at_ms| now_ms.saturating_sub(at_ms)),
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.reads.is_empty()
    }
}
