//! What the lanes decide: pure data structures. Time is an argument (milliseconds since some start), and so is
//! randomness; without feature `driver` this is all there is of the lanes.

mod append;
mod backoff;
mod conflate;
mod control;

#[allow(unused_imports)] // the core uses some of it, the workers another part
pub(crate) use {
    append::{AppendQueue, Dropped, Full},
    backoff::Backoff,
    conflate::ConflatingQueue,
    control::{ControlQueue, Pushed, keep_round},
};

use crate::message::{Batch, Envelope};

/// What a message costs beside its payload, in the bounds of queues and batches: its fixed fields, in memory and in a
/// frame. A constant on purpose: what an entry costs beside its payload is already part of the size that Raft bounds,
/// and a full window of appends must fit in a lane that was sized for it.
pub(crate) const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// What a message counts for in the bounds of queues and batches.
pub(crate) fn cost(envelope: &Envelope) -> usize {
    envelope.message.payload_bytes().saturating_add(MESSAGE_OVERHEAD_BYTES)
}

/// How much a queue holds, and how long its oldest message has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Depth {
    /// Messages.
    pub(crate) messages: usize,
    /// Their [`cost`].
    pub(crate) bytes: usize,
    /// Milliseconds.
    pub(crate) age_ms: u64,
}

/// Why a message was not sent, or was sent in vain as far as we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DropReason {
    /// The queue was at its bound.
    QueueFull,
    /// A newer message of its kind and group took its place.
    Superseded,
    /// There was no link, or it died while the message waited or was being dispatched.
    LinkDown,
    /// The link refused the batch, or the transport panicked over it.
    DispatchFailed,
    /// The link did not take the batch in time.
    DispatchTimeout,
    /// No such peer, or no transport for its address.
    UnknownPeer,
    /// The lanes are shut down.
    Shutdown,
}

/// A batch under construction: takes messages while they fit. The first always fits, because a message that is larger
/// than a batch may be has to go some day.
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
