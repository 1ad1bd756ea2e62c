//! What it takes to test an engine, a transport, a log or a state machine of Towline.
//!
//! * [`log`]: a [`LogStore`](towline_engine::log_store::LogStore) in memory that can crash, fail and be held between
//!   write and fsync.
//! * [`snapshots`]: a [`SnapshotStore`](towline_engine::snapshot_store::SnapshotStore) in memory that can crash, and a
//!   double around any that fails, panics or waits on request.
//! * [`sim`]: a cluster of cores in one thread, where every delay, loss and crash comes from a seed.
//! * [`mem`]: a [`Transport`](towline_engine::transport::Transport) in memory whose network breaks on request.
//! * [`doubles`]: the engine's side of a transport, which records what the transport does.
//! * [`fault`]: a layer over any transport that drops, delays, duplicates, corrupts and cuts.
//! * [`proxy`]: TCP and UDP proxies that do the same to the bytes of a real one.
//! * [`list`]: a state machine that remembers everything and fails on request.
//! * [`cluster`]: nodes on all of these, started, killed and asked in a line each.
//! * [`suites`]: what every implementation of a seam must do, as tests that run against yours.
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
//! It is for tests: its suites panic where an assertion fails.

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
