//! The core: one Raft group as a pure state machine.
//!
//! What is absent here, and stays absent: clocks, threads, locks, atomics, wakers, sockets, runtimes, files, random numbers.
//! Time is the number of ticks; randomness, identity and the budget of transfers are arguments; everything that happens is
//! an effect the driver carries out.
//!
//! One exception is not ours to remove: the raft crate draws election timeouts itself, from the range it is given. A
//! range of one value makes a group deterministic, which is how the simulator runs it.

mod attempts;
mod group;
mod inbound;
mod log;
mod proposals;
mod raft;
mod reads;
mod terms;

pub use self::attempts::{RetryPolicy, SendBudget, VoidCause};
pub use self::group::{
    Apply, AttemptEffect, Effects, GroupCore, GroupSetup, OfferVerdict, SnapshotPolicy, SnapshotSend,
    SnapshotSetup, Unreadable,
};
pub use self::inbound::Reject;
pub use self::log::GroupLog;
#[cfg(test)]
pub(crate) use self::raft::UNREADABLE_PAUSE_TICKS;
pub use self::raft::{Fetch, ReplicaSetup};
