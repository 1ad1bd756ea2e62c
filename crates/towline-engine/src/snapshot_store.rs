//! Snapshot files.

use std::fmt;
use std::io;

use crate::ids::GroupId;
use crate::message::{ConfState, MemberTable};

/// Names a snapshot's bytes: a digest over header and body. Equal ids mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(pub [u8; 32]);

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What a snapshot is, apart from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The group.
    pub group: GroupId,
    /// The last index it covers.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// The membership at that index.
    pub conf_state: ConfState,
    /// Addresses and incarnations of those members: a joiner learns its peers from here.
    pub members: MemberTable,
    /// Length of the body in bytes.
    pub length: u64,
    /// Names the bytes.
    pub content: ContentId,
}

/// Where snapshot files are kept. A file is durable before it is offered to anybody. Blocking; knows no runtime.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The newest complete snapshot of a group.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] names the file.
    fn latest(&self, group: GroupId) -> Result<Option<SnapshotMeta>, SnapshotStoreError>;

    /// Starts a file. Nothing is visible to [`latest`](Self::latest) before [`SnapshotWriter::commit`].
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`], such as a full disk.
    fn create(&self, meta: &SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError>;

    /// Goes on with a file that a broken transfer left behind, if its content is the same and a verified prefix is
    /// there; checksums of that prefix are checked again.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn resume(&self, meta: &SnapshotMeta) -> Result<Option<Box<dyn SnapshotWriter>>, SnapshotStoreError>;

    /// Reads a complete snapshot from `offset` on. The file stays, whatever [`retain`](Self::retain) says, until the
    /// reader is dropped.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Missing`] if there is no such snapshot.
    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn io::Read + Send>, SnapshotStoreError>;

    /// Removes every file of the group that is not in `keep`, not open and not being written.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError>;
}

/// A snapshot file that is being written. Dropping it keeps the verified prefix for a later
/// [`resume`](SnapshotStore::resume), within the store's bound.
pub trait SnapshotWriter: io::Write + Send {
    /// Bytes of the body that are written and whose checksums were verified.
    fn verified(&self) -> u64;

    /// Checks length and digest, makes the file durable (file, rename, directory) and visible.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if the bytes are not what `trailer` says: the file is gone then.
    fn commit(self: Box<Self>, trailer: &Trailer) -> Result<(), SnapshotStoreError>;

    /// Removes the file.
    fn discard(self: Box<Self>);
}

/// Ends a snapshot: what must have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Length of the body in bytes.
    pub length: u64,
    /// The digest.
    pub content: ContentId,
}

/// A snapshot file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotStoreError {
    /// The disk failed or is full. The attempt fails; the node goes on.
    #[error("snapshot file: {during} failed")]
    Io {
        /// What was being done.
        during: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not what they should be.
    #[error("snapshot {content} is corrupt: {detail}")]
    Corrupt {
        /// Which snapshot.
        content: ContentId,
        /// What is wrong.
        detail: String,
    },
    /// There is no such snapshot.
    #[error("snapshot {content} is not here")]
    Missing {
        /// Which snapshot.
        content: ContentId,
    },
}
