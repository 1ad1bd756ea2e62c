//! The queue of an append lane.

use std::collections::{BTreeSet, VecDeque};

use super::{BatchBuilder, Depth, cost};
use crate::ids::GroupId;
use crate::message::{Batch, Envelope};

/// The queue is at its bound: here is the message back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) Envelope);

/// What was in a queue that was emptied.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Dropped {
    /// Messages.
    pub(crate) messages: usize,
    /// Their groups.
    pub(crate) groups: BTreeSet<GroupId>,
}

/// Appends and their answers that wait for a link, in order; bounded in messages and in bytes.
///
/// A single message larger than the bound in bytes is taken when it is alone. Raft would send it again and again, so
/// to refuse it for ever would cut its peer off.
#[derive(Debug)]
pub(crate) struct AppendQueue {
    line: VecDeque<(Envelope, u64)>,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

impl AppendQueue {
    /// An empty queue.
    pub(crate) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self { line: VecDeque::new(), bytes: 0, messages_max, bytes_max }
    }

    /// Puts a message at the end.
    ///
    /// # Errors
    /// [`Full`] at either bound.
    // By value: a box would allocate exactly when the queue is overloaded.
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

    /// Takes what fits in `bytes_max`, or one message that does not; `None` if there is nothing.
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

    /// Empties the queue and says what was in it.
    pub(crate) fn drop_all(&mut self) -> Dropped {
        self.bytes = 0;
        let messages = self.line.len();
        Dropped { messages, groups: self.line.drain(..).map(|(envelope, _)| envelope.group).collect() }
    }

    /// How much waits.
    pub(crate) fn depth(&self, now_ms: u64) -> Depth {
        let oldest = self.line.front().map(|(_, at_ms)| *at_ms);
        Depth {
            messages: self.line.len(),
            bytes: self.bytes,
            age_ms: oldest.map_or(0, |at_ms| now_ms.saturating_sub(at_ms)),
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.line.is_empty()
    }
}
