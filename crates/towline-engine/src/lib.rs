//! The core of Towline: Raft groups as pure state machines, and what is around them. A service depends on the facade,
//! `towline`, which re-exports what it needs. This crate is for authors of a transport, a store or another driver.
//!
//! * **Seams**: [`state_machine`], [`transport`], [`log_store`], [`identity`], [`reporter`] and
//!   [`snapshot_store`]. They use plain types only: no type of the raft crate, tonic or protobuf is visible.
//! * **[`core`](mod@crate::core)**: one group as a state machine. Ticks, messages and completions go in,
//!   [`Effects`](crate::core::Effects) come out.
//! * **`node`** (feature `driver`, on by default): the threads, the network workers and the public handles. Without the
//!   feature the crate does not depend on tokio.
//!
//! The crate opens no socket and no file, and knows neither gRPC nor a disk format. This version cannot change the
//! membership of a group.
//!
//! The core, driven by hand. A group of one voter commits an entry when its own write is durable, not before:
//!
//! ```
//! use towline_engine::core::{Apply, Effects, GroupCore, GroupLog, GroupSetup, ReplicaSetup, SnapshotSetup, StallPolicy};
//! use towline_engine::ids::{GroupId, NodeId};
//! use towline_engine::log_store::ConfRecord;
//! use towline_engine::message::{ConfState, HardState};
//! use towline_engine::message::LogId;
//!
//! # fn main() -> Result<(), String> {
//! let node = NodeId::new(1).ok_or("zero")?;
//! let replica = ReplicaSetup {
//!     node,
//!     group: GroupId::DEFAULT,
//!     log: GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, 1 << 20),
//!     hard_state: HardState::default(),
//!     conf_state: ConfState { voters: vec![node], ..ConfState::default() },
//!     heartbeat_ticks: 1,
//!     election_ticks: 10..11, // always 10: deterministic
//!     election_ticks_min: 10,
//!     append_bytes_max: 64 << 10,
//!     append_inflight_max: 16,
//!     commit_broadcast: true,
//!     uncommitted_bytes_max: 1 << 20,
//!     committed_bytes_max: 1 << 20,
//! };
//! let mut group = GroupCore::<&str, ()>::new(GroupSetup {
//!     replica,
//!     origin: [0; 16],
//!     quiet_ticks: 0,
//!     read_timeout_ticks: 500,
//!     read_retry_ticks: 10,
//!     unapplied_bytes_max: 1 << 20,
//!     stall: StallPolicy::default(),
//!     conf: ConfRecord::default(),
//!     founding_memory_ticks: 80,
//!     snapshots: SnapshotSetup::default(),
//! })?;
//! let mut effects = Effects::default();
//!
//! (0..10).for_each(|_| group.tick(&mut effects)); // without a leader the node campaigns, and wins alone
//! group.poll(&mut effects);
//! while let Some((number, _write)) = effects.write.take() {
//!     group.written(number, &mut effects); // a driver passes the write to its log first
//!     group.poll(&mut effects);
//! }
//! effects.apply.clear();
//!
//! group.propose(vec![("add 1".into(), "caller")], &mut effects);
//! group.poll(&mut effects);
//! assert!(effects.apply.is_empty(), "the entry is not durable yet");
//! let (number, _write) = effects.write.take().ok_or("no write")?;
//! group.written(number, &mut effects);
//! group.poll(&mut effects);
//! let Some(Apply::Entries { entries, waiters, .. }) = effects.apply.pop() else { return Err("not committed".into()) };
//! assert_eq!((&entries[0].data[..], waiters[0]), (&b"add 1"[..], Some("caller")));
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

// Unit tests use the doubles of `tests/common` too.
#[cfg(all(test, feature = "driver"))]
extern crate self as towline_engine;

#[cfg(feature = "driver")]
pub(crate) mod cause;
pub mod config;
#[cfg(feature = "core")]
pub mod core;
pub mod errors;
pub mod explain;
#[cfg_attr(not(feature = "driver"), allow(dead_code))]
mod flow;
pub mod identity;
pub mod ids;
// Without the driver only the lane policy is built and tested.
#[cfg_attr(not(feature = "driver"), allow(dead_code, unused_imports))]
pub(crate) mod lanes;
pub mod log_store;
pub mod message;
#[cfg(feature = "driver")]
pub mod node;
pub mod reporter;
pub mod snapshot_store;
#[cfg(feature = "driver")]
pub(crate) mod snapshots;
pub mod state_machine;
pub mod status;
pub mod storage;
#[cfg(test)]
mod subscriber_double;
#[cfg(feature = "driver")]
pub(crate) mod sync;
pub mod transport;
pub mod units;
