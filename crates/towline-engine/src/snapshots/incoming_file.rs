//! The file that receives a snapshot.

use std::io;

use super::worker::{Pin, SnapshotWorker};
use crate::cause::chain;
use crate::snapshot_store::{
    ContentHasher, SnapshotMeta, SnapshotStore, SnapshotStoreError, SnapshotWriter, Trailer,
};
use crate::transport::SnapshotRefusal;

/// Bytes of one read while a file is verified.
const CHECK_BYTES: usize = 256 << 10;

/// A file that receives a snapshot, and the pin that keeps it.
pub(super) struct IncomingFile {
    pub(super) file: IncomingState,
    /// Keeps the file until Raft has the snapshot: a complete file belongs to no group yet.
    pub(super) pin: Pin,
}

pub(super) enum IncomingState {
    Open(Box<dyn SnapshotWriter>),
    /// The complete file is here, from an attempt that Raft refused or that a crash interrupted.
    Complete,
}

impl IncomingFile {
    /// Opens the file. Blocks for long if a large part of the snapshot is here already. Meanwhile `goes_on` gets the number
    /// of verified bytes and returns whether to continue.
    pub(super) fn open(
        store: &dyn SnapshotStore,
        worker: &SnapshotWorker,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Self, SnapshotStoreError> {
        // The pin comes first, so that a file found afterwards stays.
        let pin = worker.pin(meta.head.group, meta.content);
        let checked = match store.find(meta.head.group, meta.content) {
            Ok(Some(here)) if here == *meta => check(store, meta, goes_on).map(|()| true),
            found => found.map(|_| false),
        };
        let file = match checked {
            Ok(true) => IncomingState::Complete,
            Err(stopped @ SnapshotStoreError::Stopped { .. }) => return Err(stopped),
            missing => {
                // A damaged file must not be used: Raft would drop the log before the file is read.
                if let Err(error) = missing {
                    let (group, index, cause) = (meta.head.group, meta.head.at.index, chain(&error));
                    tracing::warn!(%group, index, cause, "a snapshot file is not usable; it is received anew");
                }
                IncomingState::Open(store.receive_while(meta, goes_on)?)
            }
        };
        Ok(Self { file, pin })
    }

    /// The number of body bytes that are here already.
    pub(super) fn offset(&self, meta: &SnapshotMeta) -> u64 {
        match &self.file {
            IncomingState::Open(writer) => writer.verified(),
            IncomingState::Complete => meta.length,
        }
    }

    /// Removes a file with wrong contents.
    pub(super) fn discard(self) {
        if let IncomingState::Open(writer) = self.file {
            writer.discard();
        }
    }
}

/// Reads a whole file and verifies its digest.
fn check(
    store: &dyn SnapshotStore,
    meta: &SnapshotMeta,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<(), SnapshotStoreError> {
    let content = meta.content;
    let unread = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => SnapshotStoreError::Corrupt { content, detail: source.to_string() },
        _ => SnapshotStoreError::Io { during: "reading", source },
    };
    let mut body = store.open(meta, 0)?;
    let mut hasher = ContentHasher::new(&meta.head);
    while let Some(part) = body.next_part(CHECK_BYTES).map_err(unread)? {
        hasher.update(&part.bytes);
        if !goes_on(hasher.length()) {
            return Err(SnapshotStoreError::Stopped { content });
        }
    }
    let (found, expected) = (hasher.finish(), Trailer { length: meta.length, content });
    if found == expected {
        return Ok(());
    }
    Err(SnapshotStoreError::Corrupt { content, detail: format!("it is {found:?}") })
}

/// The refusal for the sender when the store fails.
pub(super) fn refusal(error: SnapshotStoreError) -> SnapshotRefusal {
    match error {
        SnapshotStoreError::Corrupt { .. } => SnapshotRefusal::Corrupt { detail: error.to_string() },
        SnapshotStoreError::Busy { .. } => SnapshotRefusal::Busy,
        SnapshotStoreError::Stopped { .. } => SnapshotRefusal::NotTaken { detail: error.to_string() },
        SnapshotStoreError::Io { .. }
        | SnapshotStoreError::Missing { .. }
        | SnapshotStoreError::NoRoom { .. } => SnapshotRefusal::Storage { detail: chain(&error) },
    }
}
