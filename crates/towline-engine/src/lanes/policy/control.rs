//! The queue of a control lane.

use std::collections::VecDeque;

use super::{BatchBuilder, ConflatingQueue, Depth, cost};
use crate::ids::GroupId;
use crate::message::{Batch, Envelope, Message, MessageKind};

/// Keeps the read round of a heartbeat, or of its response, that a newer message supersedes.
///
/// The context of a heartbeat names the newest pending round. raft 0.7 confirms with it every round before it
/// (`ReadOnly::advance`), so a newer context may replace an older one. If the newer message has no context, the older
/// context moves into it. This is sound in both directions:
///
/// * A heartbeat: the same term means the same leader. The follower answers the newer message after the round began, and
///   confirms the same: it knew no newer term at that time.
/// * A response: the follower did answer the round in this term. A second response in the same term withdraws nothing.
///
/// A round of another term is not kept: a leader drops its rounds when its term ends. If each of several rounds reaches
/// another minority, none is confirmed. The first heartbeat that reaches a quorum then confirms them all, because raft puts
/// the newest pending context into every heartbeat.
pub(crate) fn keep_round(older: &Message, newer: &mut Message) {
    let beats = matches!(newer.kind, MessageKind::Heartbeat | MessageKind::HeartbeatResponse);
    if beats && older.kind == newer.kind && older.term == newer.term && newer.context.is_empty() {
        newer.context = older.context.clone();
    }
}

/// The outcome of a push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The message is queued.
    Queued,
    /// The message is queued and replaced an older one.
    Superseded,
    /// The message is refused: too many read-index messages wait.
    ReadsFull,
}

/// Queues control messages: one slot for each group and kind, and a short queue for read-index messages. The queue never
/// conflates these: one heartbeat's answer can release several of them to the same peer.
#[derive(Debug)]
pub(crate) struct ControlQueue {
    slots: ConflatingQueue<(GroupId, MessageKind), (Envelope, u64)>,
    reads: VecDeque<(Envelope, u64)>,
    reads_max: usize,
    bytes: usize,
}

impl ControlQueue {
    /// Creates an empty queue for at most `reads_max` read-index messages.
    pub(crate) fn new(reads_max: usize) -> Self {
        Self { slots: ConflatingQueue::default(), reads: VecDeque::new(), reads_max, bytes: 0 }
    }

    /// Adds a message.
    pub(crate) fn push(&mut self, envelope: Envelope, now_ms: u64) -> Pushed {
        let kind = envelope.message.kind;
        if matches!(kind, MessageKind::ReadIndex | MessageKind::ReadIndexResponse) {
            if self.reads.len() >= self.reads_max {
                return Pushed::ReadsFull;
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
        let superseded = self.slots.push(key, (envelope, now_ms), merge);
        self.bytes += bytes;
        match superseded {
            None => Pushed::Queued,
            Some((older, _)) => {
                self.bytes -= cost(&older);
                Pushed::Superseded
            }
        }
    }

    /// Takes the messages that fit in `bytes_max`, and at least one. `None` if the queue is empty.
    ///
    /// The slots go first, because elections depend on them. Each batch takes a read too, even with very many groups.
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

    /// Drops the messages pushed before `since_ms`, which are outdated, and returns their number.
    pub(crate) fn expire(&mut self, since_ms: u64) -> usize {
        let before = self.reads.len();
        self.reads.retain(|(_, at_ms)| *at_ms >= since_ms);
        let expired = before - self.reads.len() + self.slots.retain(|(_, at_ms)| *at_ms >= since_ms);
        self.bytes = self.slots.iter().chain(&self.reads).map(|(envelope, _)| cost(envelope)).sum();
        expired
    }

    /// Clears the queue. Returns the number of dropped messages.
    pub(crate) fn clear(&mut self) -> usize {
        let dropped = self.slots.len() + self.reads.len();
        self.slots = ConflatingQueue::default();
        self.reads.clear();
        self.bytes = 0;
        dropped
    }

    /// The depth of the queue. Its age is that of the next message; a slot is as old as its newest value.
    pub(crate) fn depth(&self, now_ms: u64) -> Depth {
        let next = [self.slots.front(), self.reads.front()].into_iter().flatten().map(|(_, at_ms)| *at_ms);
        Depth {
            messages: self.slots.len() + self.reads.len(),
            bytes: self.bytes,
            age_ms: next.min().map_or(0, |at_ms| now_ms.saturating_sub(at_ms)),
        }
    }

    /// Whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.reads.is_empty()
    }
}
