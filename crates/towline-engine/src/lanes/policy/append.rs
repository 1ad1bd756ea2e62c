//! The queue of an append lane.

use std::collections::VecDeque;

use super::{BatchBuilder, Depth, cost};
use crate::message::{Batch, Envelope};

/// Queues appends and their answers in order, bounded in messages and in bytes.
///
/// An empty queue accepts a message larger than the bound in bytes, which raft would otherwise resend without end.
#[derive(Debug)]
pub(crate) struct AppendQueue {
    line: VecDeque<(Envelope, u64)>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

impl AppendQueue {
    /// Creates an empty queue.
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { line: VecDeque::new(), bytes: 0, messages_max, bytes_max }
    }

    /// Appends a message. `false`: the queue is full.
    pub(crate) fn push(&mut self, envelope: Envelope, now_ms: u64) -> bool {
        let bytes = self.bytes.saturating_add(cost(&envelope));
        let fits = self.line.len() < self.messages_max && bytes <= self.bytes_max;
        if !fits && !self.line.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.line.push_back((envelope, now_ms));
        true
    }

    /// Takes the messages that fit in `bytes_max`, and at least one. `None` if the queue is empty.
    pub(crate) fn take_batch(&mut self, bytes_max: usize) -> Option<Batch> {
        let mut builder = BatchBuilder::new(bytes_max);
        while self.line.front().is_some_and(|(envelope, _)| builder.fits(envelope))
            && let Some((envelope, _)) = self.line.pop_front()
        {
            builder.push(envelope);
        }
        self.bytes = self.bytes.saturating_sub(builder.bytes);
        (!builder.batch.envelopes.is_empty()).then_some(builder.batch)
    }

    /// Clears the queue. Returns the number of dropped messages.
    pub(crate) fn clear(&mut self) -> usize {
        self.bytes = 0;
        self.line.drain(..).count()
    }

    /// The depth of the queue.
    pub(crate) fn depth(&self, now_ms: u64) -> Depth {
        let oldest = self.line.front().map(|(_, at_ms)| *at_ms);
        Depth {
            messages: self.line.len(),
            bytes: self.bytes,
            age_ms: oldest.map_or(0, |at_ms| now_ms.saturating_sub(at_ms)),
        }
    }

    /// Whether the queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}
