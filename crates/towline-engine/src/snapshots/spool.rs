//! The file a snapshot is received into.

use std::io;

use super::keeper::{Keeper, Pin};
use crate::cause::chain;
use crate::snapshot_store::{
    ContentHasher, SnapshotMeta, SnapshotStore, SnapshotStoreError, SnapshotWriter, Trailer,
};
use crate::transport::SnapshotRefusal;

/// Bytes of a file that are looked at together.
const CHECK_BYTES: usize = 256 << 10;

/// Where the bytes go.
pub(super) struct Spool {
    pub(super) file: SpoolFile,
    /// To be kept until Raft has it: the file may be whole, but no group knows of it.
    pub(super) pin: Pin,
}

pub(super) enum SpoolFile {
    Open(Box<dyn SnapshotWriter>),
    /// It is here, whole and sound, from an attempt that Raft did not take or a process that died before it could.
    Complete,
}

impl Spool {
    /// Blocks; if a large part of the snapshot is here already, for long. Meanwhile `goes_on` is told how many bytes were
    /// read again, and says whether to go on.
    pub(super) fn open(
        store: &dyn SnapshotStore,
        keeper: &Keeper,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Self, SnapshotStoreError> {
        // Before it is looked for: what is found then stays.
        let pin = keeper.pin(meta.head.group, meta.content);
        let whole = match store.find(meta.head.group, meta.content) {
            Ok(Some(here)) if here == *meta => check(store, meta, goes_on).map(|()| true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        };
        let whole = match whole {
            Ok(whole) => whole,
            Err(stopped @ SnapshotStoreError::Stopped { .. }) => return Err(stopped),
            // Raft would write down that it is being installed, and forget the log, before anybody read it.
            Err(error) => {
                let (group, index, cause) = (meta.head.group, meta.head.at.index, chain(&error));
                tracing::warn!(%group, index, cause, "a snapshot file is not usable; it is received anew");
                false
            }
        };
        let file = match whole {
            true => SpoolFile::Complete,
            // In its place, if there is one.
            false => SpoolFile::Open(store.receive_while(meta, goes_on)?),
        };
        Ok(Self { file, pin })
    }

    /// Bytes of the body that need not be sent.
    pub(super) fn offset(&self, meta: &SnapshotMeta) -> u64 {
        match &self.file {
            SpoolFile::Open(writer) => writer.verified(),
            SpoolFile::Complete => meta.length,
        }
    }

    /// Removes what is not what it should be.
    pub(super) fn discard(self) {
        if let SpoolFile::Open(writer) = self.file {
            writer.discard();
        }
    }
}

/// Reads a whole file and compares it with what it should be.
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

/// What the sender is told of a store that fails.
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
