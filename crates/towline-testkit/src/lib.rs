//! Tools to test an engine, a transport, a log or a state machine of Towline.
//!
//! * [`log`]: a [`LogStore`](towline_engine::log_store::LogStore) in memory that can crash, fail and block between
//!   write and fsync.
//! * [`snapshots`]: a [`SnapshotStore`](towline_engine::snapshot_store::SnapshotStore) in memory that can crash, and a
//!   wrapper of any store that fails, panics or blocks on request.
//! * [`sim`]: a simulator of a cluster in one thread, with all delays, losses and crashes from a seed.
//! * [`mem`]: a [`Transport`](towline_engine::transport::Transport) in memory whose network fails on request.
//! * [`doubles`]: the engine's side of a transport, which records what the transport does.
//! * [`fault`]: a wrapper of any transport that drops, delays, duplicates, corrupts and cuts.
//! * [`proxy`]: TCP and UDP proxies that delay, lose and corrupt the bytes of a real transport.
//! * [`list`]: a state machine that keeps all commands and fails on request.
//! * [`cluster`]: a cluster in one process, on all of these.
//! * [`suites`]: conformance tests for implementations of the seams.
//!
//! ```
//! use towline_engine::ids::GroupId;
//! use towline_engine::log_store::{GroupWrite, LogBatch, LogStore};
//! use towline_testkit::log::MemLog;
//!
//! let log = MemLog::new();
//! log.fail_append(2, towline_testkit::log::AppendFault::BeforeDurable);
//! let batch = || LogBatch { writes: vec![GroupWrite::new(GroupId::DEFAULT)] };
//! assert!(log.append(&mut batch()).is_ok());
//! assert!(log.append(&mut batch()).is_err());
//! let after_a_power_loss = log.crash();
//! assert!(after_a_power_loss.append(&mut batch()).is_ok());
//! ```
//!
//! The suites panic where an assertion fails.

pub mod cluster;
pub mod doubles;
pub mod fault;
pub mod list;
pub mod log;
pub mod mem;
pub mod proxy;
pub mod sim;
pub mod snapshots;
pub mod suites;
mod sync;
