//! The queue of an append lane.

use std::collections::{BTreeSet, VecDeque};

use super::{BatchBuilder, Depth, cost};
use crate::ids::GroupId;
use crate::message::{Batch, Envelope};

/// The queue is full. Contains the message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) Envelope);

/// The contents of a cleared queue.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Dropped {
    /// Messages.
    pub(crate) messages: usize,
    /// Their groups.
    pub(crate) groups: BTreeSet<GroupId>,
}

/// Queues appends and their answers in order, bounded in messages and in bytes.
///
/// An empty queue accepts a message larger than the bound in bytes. Raft would resend a refused one without end, and its
/// peer would make no progress.
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

    /// Appends a message.
    ///
    /// # Errors
    /// [`Full`] at either bound.
    // By value: a box would allocate just when the queue is overloaded.
    #[allow(clippy::result_large_err)]
    pub(crate) fn push(&mut self, envelope: Envelope, now_ms: u64) -> Result<(), Full> {
        let bytes = self.bytes.saturating_add(cost(&envelope));
        let fits = self.line.len() < self.messages_max && bytes <= self.bytes_max;
        if !fits && !self.line.is_empty() {
            return Err(Full(envelope));
        }
        self.bytes = bytes;
        self.line.push_back((envelope, now_ms));
        Ok(())
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

    /// Clears the queue. Returns its contents.
    pub(crate) fn drop_all(&mut self) -> Dropped {
        self.bytes = 0;
        let messages = self.line.len();
        Dropped { messages, groups: self.line.drain(..).map(|(envelope, _)| envelope.group).collect() }
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
