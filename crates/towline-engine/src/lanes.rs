//! The sending side: what stands between Raft and a thin [`Transport`](crate::transport::Transport).
//!
//! Every peer has two lanes, each with its own queue, worker and link, so that a heartbeat never waits behind an
//! append. [`policy`] holds what can be decided without a clock or a thread: queues, conflation, batches, backoff. The
//! rest (feature `driver`) moves bytes: it connects, dispatches, notices dead links and tells the truth about them to the
//! [`Reporter`](crate::reporter::Reporter).
//!
//! Invariants:
//! * [`Lanes::send`] never blocks on the network and never grows a queue past its bound.
//! * A message that is not handed to a link is counted, with the reason.
//! * A lost append is reported to Raft; a lost control message never is, because the next tick repeats it.
//! * One dead link is one report, whatever number of calls found it dead.

pub(crate) mod policy;

#[cfg(feature = "driver")]
mod counter;
#[cfg(feature = "driver")]
mod handle;
#[cfg(feature = "driver")]
mod link;
#[cfg(feature = "driver")]
mod queue;
#[cfg(feature = "driver")]
mod settings;
#[cfg(feature = "driver")]
mod worker;

#[cfg(feature = "driver")]
#[allow(unused_imports)] // until the node uses them
pub(crate) use {
    counter::{LaneCounter, LaneCounters},
    handle::{Lanes, LanesDeps},
    link::PeerGate,
    settings::LaneSettings,
};

#[cfg(test)]
#[cfg(feature = "driver")]
mod tests;
