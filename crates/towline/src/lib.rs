//! towline.

#[cfg(feature = "codec")]
pub mod codec;

pub use towline_engine::message::{Entry, EntryKind};
pub use towline_engine::snapshot_store::SnapshotMeta;
pub use towline_engine::state_machine::{Applied, ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
