//! Snapshot transfers: sending, receiving, and making and removing files.
//!
//! The core (`core::attempts`) decides which peer gets a snapshot, and when. This module moves the bytes. On every exit of
//! a transfer both sides record the payload bytes and log one line. If a transfer fails and the byte totals differ, the
//! connection lost bytes. If they are equal and the receiver says `corrupt`, the content is wrong.

#[cfg(test)]
pub(crate) mod fixture;
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

pub(crate) use self::priority::lower_priority;
pub(crate) use self::receive::{Receives, ReceivesDeps, SnapshotGroups};
pub(crate) use self::send::{Sends, SendsDeps};
pub(crate) use self::worker::{Made, Making, NotMade, SnapshotWorker, check_room};
use crate::config::ValidConfig;

/// The bounds and timeouts of transfers. [`Config`](crate::config::Config) explains each.
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
