//! The file a snapshot is received into.

use crate::snapshot_store::{SnapshotMeta, SnapshotStore, SnapshotStoreError, SnapshotWriter};
use crate::transport::SnapshotRefusal;

/// Where the bytes go.
pub(super) enum Spool {
    Open(Box<dyn SnapshotWriter>),
    /// The file is here, whole, from an attempt that Raft did not take or a process that died before it could.
    Complete,
}

impl Spool {
    /// Blocks; for a large part of a snapshot that is here already, long.
    pub(super) fn open(store: &dyn SnapshotStore, meta: &SnapshotMeta) -> Result<Self, SnapshotRefusal> {
        match store.find(meta.head.group, meta.content) {
            Ok(Some(here)) if here == *meta => return Ok(Self::Complete),
            Ok(_) => {}
            // Written anew in its place.
            Err(error) => tracing::warn!(%error, "a snapshot file is not usable"),
        }
        store.receive(meta).map(Self::Open).map_err(refusal)
    }

    /// Bytes of the body that need not be sent.
    pub(super) fn offset(&self, meta: &SnapshotMeta) -> u64 {
        match self {
            Self::Open(writer) => writer.verified(),
            Self::Complete => meta.length,
        }
    }
}

/// What the sender is told of a store that fails.
pub(super) fn refusal(error: SnapshotStoreError) -> SnapshotRefusal {
    match error {
        SnapshotStoreError::Corrupt { .. } => SnapshotRefusal::Corrupt { detail: error.to_string() },
        SnapshotStoreError::Busy { .. } => SnapshotRefusal::Busy,
        SnapshotStoreError::Io { during, source } => {
            SnapshotRefusal::Storage { detail: format!("{during}: {source}") }
        }
        SnapshotStoreError::Missing { .. } => SnapshotRefusal::Storage { detail: error.to_string() },
    }
}
