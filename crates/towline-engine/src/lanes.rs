//! The lanes: the sending side between Raft and a [`Transport`](crate::transport::Transport).
//!
//! Every peer has two lanes. Each lane has its own queue, worker and link, so that a heartbeat never waits behind an
//! append. [`policy`] holds the decisions that need no clock and no thread: queues, conflation, batches and backoff. The
//! rest (feature `driver`) moves bytes: it connects, dispatches, detects dead links, and reports them to the
//! [`Reporter`](crate::reporter::Reporter).
//!
//! Invariants:
//! * [`Lanes::send_many`] never blocks on the network and never grows a queue past its bound.
//! * A message that no link accepted is counted, with the reason.
//! * A lost append is reported to Raft. A lost control message is not: the next tick repeats it.
//! * One dead link gives one report, even if several calls detect it.

pub(crate) mod policy;

#[cfg(feature = "driver")]
mod deps;
#[cfg(feature = "driver")]
mod handle;
#[cfg(feature = "driver")]
mod queue;
#[cfg(feature = "driver")]
mod worker;

#[cfg(feature = "driver")]
pub(crate) use {
    deps::{LaneCounter, LaneCounters, LaneSettings, LanesDeps, PeerGate},
    handle::Lanes,
};

#[cfg(test)]
#[cfg(feature = "driver")]
mod tests;
