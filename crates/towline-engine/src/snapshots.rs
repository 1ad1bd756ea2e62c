//! Moving snapshots: sending them, receiving them, and keeping their files.
//!
//! Who may be sent one, and when, is decided in the core (`core::attempts`) before Raft commits to it. Here the bytes move.
//! Every way out of a transfer records its payload bytes and logs one line, on both sides, so that the totals of sender
//! and receiver can be compared: if they differ the wire lost something, if they are equal the format is wrong.

mod incoming_file;
mod pace;
mod priority;
mod receive;
mod receive_slots;
mod send;
mod storing;
mod transfer_record;
mod worker;

use std::time::Duration;

pub(crate) use self::priority::step_back;
pub(crate) use self::receive::{Receives, ReceivesDeps, SnapshotGroups};
pub(crate) use self::send::{Sends, SendsDeps};
pub(crate) use self::worker::{Made, Making, SnapshotWorker};
use crate::config::ValidConfig;

/// The bounds and times of transfers. See [`Config`](crate::config::Config) for each.
#[derive(Debug, Clone)]
pub(crate) struct TransferSettings {
    pub(crate) chunk_bytes: usize,
    pub(crate) bytes_max: u64,
    pub(crate) receives_max: usize,
    pub(crate) bytes_per_second: u64,
    pub(crate) offer_timeout: Duration,
    pub(crate) progress_timeout: Duration,
    pub(crate) phase_timeout: Duration,
}

impl From<&ValidConfig> for TransferSettings {
    fn from(config: &ValidConfig) -> Self {
        Self {
            chunk_bytes: config.snapshot_chunk_bytes.as_usize(),
            bytes_max: config.snapshot_bytes_max.as_u64(),
            receives_max: config.snapshot_receives_max,
            bytes_per_second: config.snapshot_bytes_per_second.as_u64(),
            offer_timeout: config.snapshot_offer_timeout,
            progress_timeout: config.snapshot_progress_timeout,
            phase_timeout: config.snapshot_phase_timeout,
        }
    }
}
