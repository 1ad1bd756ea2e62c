//! The decisions of the lanes, as pure data structures. Time (milliseconds since some start) and randomness are arguments.
//! Without the feature `driver` the lanes consist of this module alone.

mod append;
mod backoff;
mod conflate;
mod control;

#[allow(unused_imports)] // the core uses some of it, the workers another part
pub(crate) use {
    append::AppendQueue,
    backoff::Backoff,
    conflate::ConflatingQueue,
    control::{ControlQueue, Pushed, keep_round},
};

use crate::message::{Batch, Envelope};

/// The cost of a message beside its payload, in the bounds of queues and batches: its fixed fields. Raft's own bound
/// already includes the overhead of each entry.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// The cost of a message in the bounds of queues and batches.
pub(crate) fn cost(envelope: &Envelope) -> usize {
    envelope.message.payload_bytes().saturating_add(MESSAGE_OVERHEAD_BYTES)
}

/// The contents of a queue, and the age of its oldest message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Depth {
    /// Messages.
    pub(crate) messages: usize,
    /// Their [`cost`].
    pub(crate) bytes: usize,
    /// Milliseconds.
    pub(crate) age_ms: u64,
}

/// Why a message was not sent, or was probably lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DropReason {
    /// The queue was at its bound.
    QueueFull,
    /// A newer message of the same kind and group replaced it.
    Superseded,
    /// There was no link, or the link ended while the message waited or was being dispatched.
    LinkDown,
    /// The link refused the batch, or the transport panicked over it.
    DispatchFailed,
    /// The link did not accept the batch in time.
    DispatchTimeout,
    /// There is no such peer, or no transport for its address.
    UnknownPeer,
    /// The lanes are shut down.
    Shutdown,
}

/// A batch under construction: takes messages while they fit. The first one always fits, even if larger than the bound.
struct BatchBuilder {
    batch: Batch,
    bytes: usize,
    bytes_max: usize,
}

impl BatchBuilder {
    fn new(bytes_max: usize) -> Self {
        Self { batch: Batch::default(), bytes: 0, bytes_max }
    }

    fn fits(&self, envelope: &Envelope) -> bool {
        self.batch.envelopes.is_empty() || self.bytes.saturating_add(cost(envelope)) <= self.bytes_max
    }

    fn push(&mut self, envelope: Envelope) {
        self.bytes = self.bytes.saturating_add(cost(&envelope));
        self.batch.envelopes.push(envelope);
    }
}

#[cfg(test)]
mod tests;
