//! The cases, by topic.

pub(super) mod ends;
pub(super) mod handshake;
pub(super) mod lanes;
pub(super) mod pressure;
pub(super) mod slow;
pub(super) mod snapshot_ends;
pub(super) mod snapshots;
pub(super) mod strangers;

// What most cases use, for `use super::*`.
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    CHUNK_BYTES_MAX, ConnectError, Connected, Hello, LinkClosed, OfferAnswer, Peer, ProgressCell, Refusal,
    SnapshotReceipt, SnapshotRefusal, Transfer, TransferError, TransferPhase, TransferProgress, Violation,
};

use super::harness::{ListeningNode, NOT_YET, Opened, TransportCase, chain, heartbeat};
use super::snapshot::TestSnapshot;
use super::{LANE_DELAY_MAX, Path};
use crate::cluster::node_id as node;
use crate::doubles::{InboundLog, LinkLog, OfferReply, SinkScript, append, batch, hello};
