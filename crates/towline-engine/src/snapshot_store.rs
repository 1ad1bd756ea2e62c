//! The seam of snapshot files: durable before they are offered, verified before they are restored.

use std::fmt;
use std::io;

use bytes::{Buf, Bytes};
use twox_hash::XxHash3_128;

use crate::ids::{FoundingHash, GroupId, Incarnation};
use crate::message::{ConfState, LogId, MemberTable};

/// Names a snapshot's bytes: a digest over header and body. Equal ids mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentId(pub [u8; 16]);

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

/// The description of a snapshot that is known before its body is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The group.
    pub group: GroupId,
    /// The last log position that the snapshot covers.
    pub at: LogId,
    /// The membership at that index.
    pub conf_state: ConfState,
    /// Addresses and incarnations of these members. A joining node learns its peers from here.
    pub members: MemberTable,
    /// The list of founders of the group. A joining node inherits it.
    pub founding: FoundingHash,
}

/// The description of a complete snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Log position and membership.
    pub head: SnapshotHead,
    /// Length of the body in bytes.
    pub length: u64,
    /// The id of head and body.
    pub content: ContentId,
}

/// Computes a [`ContentId`]: XXH3 of 128 bits, seed 0, over the head in a fixed form, then the body.
///
/// The digest finds damage and tells snapshots apart. It is not cryptographic, because a sender of snapshots is
/// authenticated and can replace the state anyway. BLAKE3 took 0.2 s for a GiB, an eighth of the total cost of a transfer.
#[derive(Clone)]
pub struct ContentHasher {
    hasher: XxHash3_128,
    length: u64,
}

/// Names the format of the digest's input. A change of the format needs another text.
const CONTENT_CONTEXT: &[u8] = b"towline snapshot 2\0";

impl ContentHasher {
    /// Starts a digest with the head.
    pub fn new(head: &SnapshotHead) -> Self {
        let mut hasher = XxHash3_128::new();
        hasher.write(CONTENT_CONTEXT);
        let mut number = |n: u64| {
            hasher.write(&n.to_be_bytes());
        };
        [head.group.as_u64(), head.at.index, head.at.term].into_iter().for_each(&mut number);
        let conf = &head.conf_state;
        for ids in [&conf.voters, &conf.learners, &conf.voters_outgoing, &conf.learners_next] {
            number(ids.len() as u64);
            ids.iter().for_each(|id| number(id.as_u64()));
        }
        number(conf.auto_leave.into());
        number(head.members.len() as u64);
        for (id, member) in &head.members {
            let address = member.address.as_str();
            hasher.write(&id.as_u64().to_be_bytes());
            hasher.write(&(address.len() as u64).to_be_bytes());
            hasher.write(address.as_bytes());
            hasher.write(&member.incarnation.map_or(0, Incarnation::as_u64).to_be_bytes());
        }
        hasher.write(&head.founding.as_u64().to_be_bytes());
        Self { hasher, length: 0 }
    }

    /// Adds the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
        self.length += bytes.len() as u64;
    }

    /// Bytes of the body so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Returns the length of the body and the digest.
    pub fn finish(&self) -> Trailer {
        Trailer { length: self.length, content: ContentId(self.hasher.finish_128().to_be_bytes()) }
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentHasher").field("length", &self.length).finish_non_exhaustive()
    }
}

/// While a store verifies a partial file, it calls `goes_on` at least once for each of this many bytes.
pub const REREAD_BYTES_MAX: u64 = 1024 * 1024;

/// Stores snapshot files. A file is durable before the engine offers it to a peer. Blocking; knows no runtime. Any thread
/// may call any method.
///
/// The conformance suite in `towline-testkit` tests every sentence here.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Returns the complete snapshots of a group, the highest index first, then the highest term. These are the snapshots that
    /// the last [`retain`](Self::retain) kept, and later ones. Some may not match the local log: a snapshot may have been
    /// received and not installed.
    ///
    /// Damaged files are left out; [`find`](Self::find) reports them. The store checks only headers and lengths here.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError>;

    /// Returns the first of [`complete`](Self::complete).
    ///
    /// # Errors
    /// As for `complete`.
    fn latest(&self, group: GroupId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.complete(group)?.into_iter().next())
    }

    /// Returns a complete snapshot by its content id, for example one that a peer offers again. The store checks only headers
    /// and lengths here.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] names a damaged file.
    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError>;

    /// Starts a file for a snapshot of this node's state. [`complete`](Self::complete) does not return it before
    /// [`SnapshotWriter::commit`].
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`], such as a full disk; [`SnapshotStoreError::NoRoom`].
    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError>;

    /// Checks that a snapshot of this node's state fits, whose body has about `bytes` bytes. The engine calls it before
    /// [`create`](Self::create). A store that cannot tell says yes.
    ///
    /// # Errors
    /// [`SnapshotStoreError::NoRoom`]; [`SnapshotStoreError::Io`] if the free space is unknown, which refuses nothing.
    fn check_room(&self, bytes: u64) -> Result<(), SnapshotStoreError> {
        let _ = bytes;
        Ok(())
    }

    /// Starts or resumes a file for a snapshot that a peer sends. If a broken transfer of the same content left a partial
    /// file, the store verifies its checksums again, and [`SnapshotWriter::verified`] returns the offset to resume from. There
    /// is at most one writer for a content id.
    ///
    /// Verifying a large partial file takes long. Meanwhile the store passes the number of verified bytes to `goes_on`, at
    /// least once for each [`REREAD_BYTES_MAX`]. If `goes_on` returns `false`, the store stops; the partial file stays
    /// unchanged for a later call.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Busy`] while another writer of the same content is open; [`SnapshotStoreError::Stopped`];
    /// [`SnapshotStoreError::Io`]; [`SnapshotStoreError::NoRoom`] if it is known not to fit, before a byte of it comes.
    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError>;

    /// As [`receive_while`](Self::receive_while), without a way to stop.
    ///
    /// # Errors
    /// As for [`receive_while`](Self::receive_while).
    fn receive(&self, meta: &SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.receive_while(meta, &mut |_| true)
    }

    /// Opens the body of a complete snapshot for reading from `offset` on. [`retain`](Self::retain) does not remove the file
    /// before the reader is dropped.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Missing`] if there is no such snapshot.
    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError>;

    /// Removes every complete and partial file of the group that is not in `keep`, not open for reading and not being
    /// written. An open file is removed when its last reader is dropped.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError>;
}

/// A part of a snapshot's body with its checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyPart {
    /// The bytes.
    pub bytes: Bytes,
    /// The crc32c of these bytes alone, as a [`Chunk`](crate::transport::Chunk) carries it.
    pub crc32c: u32,
}

/// Reads the body of a complete snapshot, part by part and in order. [`BodyRead`] converts it to an [`io::Read`].
///
/// The store verifies each part while it reads. Each part carries its checksum, so that sending it needs no second pass
/// over the bytes.
pub trait SnapshotReader: Send {
    /// Returns the next part, of at least one byte and at most `bytes_max` (zero counts as one). Returns `None` at the end
    /// and from then on. A store may return fewer bytes than `bytes_max`, for example up to its next checksum. Each part owns
    /// or shares its memory, which is freed with the last clone of its bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] at a wrong checksum, after all parts before the damage. After an error every call
    /// fails.
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>>;
}

/// A [`SnapshotReader`] as an [`io::Read`], for a state machine that restores itself.
pub struct BodyRead {
    reader: Box<dyn SnapshotReader>,
    /// The unread rest of the last part.
    part: Bytes,
}

/// The most bytes that [`BodyRead`] holds.
const BODY_READ_BYTES: usize = 256 << 10;

impl BodyRead {
    /// Starts at the reader's position.
    pub fn new(reader: Box<dyn SnapshotReader>) -> Self {
        Self { reader, part: Bytes::new() }
    }
}

impl fmt::Debug for BodyRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyRead").field("held", &self.part.len()).finish_non_exhaustive()
    }
}

impl io::Read for BodyRead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.part.is_empty() && !out.is_empty() {
            match self.reader.next_part(BODY_READ_BYTES)? {
                Some(part) => self.part = part.bytes,
                None => return Ok(0),
            }
        }
        let count = self.part.len().min(out.len());
        let (to, _) = out.split_at_mut(count);
        self.part.copy_to_slice(to);
        Ok(count)
    }
}

/// Writes a snapshot file. `write` takes the bytes of the body in order; `flush` puts all of them into the file. Dropping a
/// writer of [`SnapshotStore::receive`] keeps the verified prefix for a resume, within the store's bound. Dropping a writer
/// of [`SnapshotStore::create`] removes the file.
pub trait SnapshotWriter: io::Write + Send {
    /// Writes the next bytes of the body if `crc32c` is their checksum. A store with checksums in its files can compute both
    /// in one pass.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the checksum is wrong; the writer is then unchanged. Other errors are those of
    /// `write_all`; the writer is then unusable.
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        if crc32c::crc32c(bytes) != crc32c {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not hold"));
        }
        self.write_all(bytes)
    }

    /// The length of the verified prefix: a resume starts here.
    fn verified(&self) -> u64;

    /// Checks length and digest against `expected` (`None` for a file of this node's own state). This step writes nothing to
    /// the disk and makes nothing durable.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if length or digest differ. Drop or discard the writer then.
    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError>;

    /// Makes a verified file durable (file, rename, directory) and visible.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if [`verify`](Self::verify) was not called or failed; the file is then removed.
    /// [`SnapshotStoreError::Io`].
    fn commit(self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError>;

    /// Removes the file.
    fn discard(self: Box<Self>);
}

/// The end of a snapshot: the length and digest that must match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Length of the body in bytes.
    pub length: u64,
    /// The digest.
    pub content: ContentId,
}

/// Why a snapshot file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotStoreError {
    /// The disk failed or is full. The attempt fails; the node goes on.
    #[error("snapshot file: {during} failed")]
    Io {
        /// The step that failed.
        during: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The file would take disk space that is reserved for the log. The attempt fails; the node goes on.
    #[error(
        "no room for a snapshot: {wanted_bytes} bytes are wanted, {free_bytes} are free, and {reserve_bytes} of these are kept \
         for the log"
    )]
    NoRoom {
        /// The bytes that the file would take next.
        wanted_bytes: u64,
        /// The free bytes of the file system.
        free_bytes: u64,
        /// The reserve for the log, in bytes.
        reserve_bytes: u64,
    },
    /// The file's contents are damaged.
    #[error("snapshot {content} is corrupt: {detail}")]
    Corrupt {
        /// The snapshot's id.
        content: ContentId,
        /// What is wrong.
        detail: String,
    },
    /// Another writer of the same content is open.
    #[error("snapshot {content} has another writer")]
    Busy {
        /// The snapshot's id.
        content: ContentId,
    },
    /// The caller stopped the verification of a partial file.
    #[error("the verification of snapshot {content} was stopped")]
    Stopped {
        /// The snapshot's id.
        content: ContentId,
    },
    /// The store has no such snapshot.
    #[error("there is no snapshot {content}")]
    Missing {
        /// The snapshot's id.
        content: ContentId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> SnapshotHead {
        SnapshotHead {
            founding: Default::default(),
            group: GroupId::DEFAULT,
            at: LogId { index: 7, term: 2 },
            conf_state: ConfState::default(),
            members: MemberTable::new(),
        }
    }

    #[test]
    fn the_digest_is_of_head_and_body_and_does_not_depend_on_how_the_body_was_cut() {
        let digest = |head: &SnapshotHead, parts: &[&[u8]]| {
            let mut hasher = ContentHasher::new(head);
            parts.iter().for_each(|part| hasher.update(part));
            hasher.finish()
        };
        assert_eq!(digest(&head(), &[b"ab", b"c"]), digest(&head(), &[b"abc"]));
        assert_ne!(digest(&head(), &[b"abc"]).content, digest(&head(), &[b"abd"]).content);
        let later = SnapshotHead { at: LogId { index: 8, term: 2 }, ..head() };
        assert_ne!(digest(&head(), &[b"abc"]).content, digest(&later, &[b"abc"]).content);
        assert_eq!(digest(&head(), &[b"abc"]).length, 3);
    }
}
