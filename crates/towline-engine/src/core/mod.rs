//! The core: one Raft group as a pure state machine.
//!
//! The core uses no clock, thread, lock, atomic, waker, socket, runtime, file or random number. Time is a number of ticks.
//! Seeds, identity and send slots are arguments. All outputs are effects, which the driver carries out.
//!
//! The raft crate is an exception: it draws election timeouts itself, from a given range. The simulator gives it a range of
//! one value, which makes a group deterministic.

mod attempts;
mod explain;
mod founding;
mod group;
mod inbound;
mod log;
mod proposals;
mod raft;
mod reads;
mod stall;
mod terms;

pub use self::attempts::{RetryPolicy, SendBudget, VoidCause};
pub use self::explain::WaitNotice;
pub use self::founding::Objection;
pub use self::group::{
    Apply, AttemptEffect, Effects, GroupCore, GroupSetup, OfferVerdict, SnapshotPolicy, SnapshotSend,
    SnapshotSetup, Unreadable,
};
pub use self::inbound::Reject;
pub use self::log::GroupLog;
pub use self::raft::{Fetch, ReplicaSetup};
pub use self::stall::{DiskRoom, StallNotice, StallPolicy};
