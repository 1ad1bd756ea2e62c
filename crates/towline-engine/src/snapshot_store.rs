//! Snapshot files: durable before they are offered, verified before they are restored.

use std::fmt;
use std::io;

use bytes::{Buf, Bytes};
use twox_hash::XxHash3_128;

use crate::ids::{GroupId, Incarnation};
use crate::message::{ConfState, MemberTable};
use crate::state_machine::Applied;

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

/// What is known of a snapshot before a byte of it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The group.
    pub group: GroupId,
    /// The last place in the log it covers.
    pub at: Applied,
    /// The membership at that index.
    pub conf_state: ConfState,
    /// Addresses and incarnations of those members: a joiner learns its peers from here.
    pub members: MemberTable,
}

/// What a complete snapshot is, apart from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// Place and membership.
    pub head: SnapshotHead,
    /// Length of the body in bytes.
    pub length: u64,
    /// Names the bytes.
    pub content: ContentId,
}

/// Computes a [`ContentId`]: XXH3 of 128 bits, seed 0, over the head in a fixed form, then the body.
///
/// It finds damage, and tells one snapshot from another; it does not resist somebody who makes bytes for a digest. Who
/// can send a snapshot can replace the state anyway, and is authenticated; a digest that resists (BLAKE3) took a fifth of
/// a second a GiB, an eighth of all that a transfer costs both sides.
#[derive(Clone)]
pub struct ContentHasher {
    hasher: XxHash3_128,
    length: u64,
}

/// Says what the digest is of, and in which form; another form needs another text.
const CONTENT_CONTEXT: &[u8] = b"towline snapshot 1\0";

impl ContentHasher {
    /// Starts with the head.
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
        Self { hasher, length: 0 }
    }

    /// Goes on with the next bytes of the body.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.write(bytes);
        self.length += bytes.len() as u64;
    }

    /// Bytes of the body so far.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Length and digest of what went in.
    pub fn finish(&self) -> Trailer {
        Trailer { length: self.length, content: ContentId(self.hasher.finish_128().to_be_bytes()) }
    }
}

impl fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContentHasher").field("length", &self.length).finish_non_exhaustive()
    }
}

/// Bytes that a store reads again at most before it tells of it, and asks whether to go on.
pub const REREAD_BYTES_MAX: u64 = 1024 * 1024;

/// Where snapshot files are kept. A file is durable before it is offered to anybody. Blocking; knows no runtime; any
/// thread may call.
///
/// The conformance suite in `towline-testkit` holds every sentence here.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The complete snapshots of a group, that with the highest index first; of those, that with the highest term. There
    /// are as many as [`retain`](Self::retain) was asked to keep, and those that came since. Not each of them need be of
    /// the history that the log goes on with: one may have been received and then not installed.
    ///
    /// A file that is damaged is left out, so that it hides no other; [`find`](Self::find) names it. Only headers and
    /// lengths are looked at, not every byte.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError>;

    /// The first of [`complete`](Self::complete).
    ///
    /// # Errors
    /// As for `complete`.
    fn latest(&self, group: GroupId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(self.complete(group)?.into_iter().next())
    }

    /// A complete snapshot by its content, such as one that a peer offers again.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if it is damaged, with the name of the file. Only headers and lengths are looked
    /// at.
    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError>;

    /// Starts a file for a snapshot of this node's own state. Nothing is visible to [`complete`](Self::complete) before
    /// [`SnapshotWriter::commit`].
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`], such as a full disk; [`SnapshotStoreError::NoRoom`].
    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError>;

    /// Starts, or goes on with, a file for a snapshot that a peer sends. If a broken transfer of the same content left a
    /// prefix behind, its checksums are checked again and [`SnapshotWriter::verified`] says where to go on. One writer a
    /// content at a time.
    ///
    /// To read much again takes long. Meanwhile `goes_on` is told how many bytes of the body hold so far, at least once
    /// for each [`REREAD_BYTES_MAX`]. If it says no, the store stops there; what was left stays as it is for a later call.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Busy`] while another writer of the same content is open; [`SnapshotStoreError::Stopped`];
    /// [`SnapshotStoreError::Io`]; [`SnapshotStoreError::NoRoom`] if it is known not to fit, before a byte of it comes.
    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError>;

    /// The same, however long it takes.
    ///
    /// # Errors
    /// As for [`receive_while`](Self::receive_while).
    fn receive(&self, meta: &SnapshotMeta) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        self.receive_while(meta, &mut |_| true)
    }

    /// Reads the body of a complete snapshot from `offset` on. The file stays, whatever [`retain`](Self::retain) says,
    /// until the reader is dropped.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Missing`] if there is no such snapshot.
    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError>;

    /// Removes every file of the group, complete or left behind by a broken transfer, that is not in `keep`, not open
    /// for reading and not being written. A file that is open goes when its last reader is dropped.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Io`].
    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError>;
}

/// Bytes of a body with their checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyPart {
    /// The bytes.
    pub bytes: Bytes,
    /// The crc32c of these bytes and nothing else: what a [`Chunk`](crate::transport::Chunk) carries.
    pub crc32c: u32,
}

/// Reads the body of a complete snapshot, part by part and in order. [`BodyRead`] makes an [`io::Read`] of it.
///
/// A store checks what it reads anyway; a part comes with its checksum so that nobody has to go over the bytes again to
/// send them.
pub trait SnapshotReader: Send {
    /// The next part: at least one byte and at most `bytes_max`, which is taken for one if it is zero. `None` at the end,
    /// and ever after. A store may give less than asked, such as up to where its next checksum begins; each of its parts
    /// is memory of its own that lives as long as somebody holds it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] where a checksum does not hold, after all that comes before the damage. After an
    /// error every call fails.
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>>;
}

/// A [`SnapshotReader`] as an [`io::Read`], for a state machine that restores itself.
pub struct BodyRead {
    reader: Box<dyn SnapshotReader>,
    /// What was not read yet of the last part.
    part: Bytes,
}

/// Bytes that [`BodyRead`] holds at most.
const BODY_READ_BYTES: usize = 256 << 10;

impl BodyRead {
    /// From where the reader is.
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

/// A snapshot file that is being written. `write` takes bytes of the body in order; what it took is in the file at the
/// latest after `flush`. Dropping a writer of [`SnapshotStore::receive`] keeps the verified prefix for a later resume,
/// within the store's bound; dropping one of [`SnapshotStore::create`] removes the file.
pub trait SnapshotWriter: io::Write + Send {
    /// Takes the next bytes of the body if `crc32c` is their checksum. A store that keeps checksums of its own goes over
    /// the bytes once for both.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if it is not: nothing was taken, and the writer is as it was before. Otherwise as
    /// for `write_all`: the writer is of no use any more.
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        if crc32c::crc32c(bytes) != crc32c {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not hold"));
        }
        self.write_all(bytes)
    }

    /// Bytes of the body that a resume would not ask for again.
    fn verified(&self) -> u64;

    /// Checks length and digest against `expected` (there is none for a file of this node's own) without making
    /// anything durable: the part of ending a file that costs no disk write.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if the bytes are not what they should be: drop or discard the writer.
    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError>;

    /// Makes a file that was verified durable (file, rename, directory) and visible.
    ///
    /// # Errors
    /// [`SnapshotStoreError::Corrupt`] if [`verify`](Self::verify) was not called or failed: the file is gone then.
    /// [`SnapshotStoreError::Io`].
    fn commit(self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError>;

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
    /// It would take disk space that is kept for the log. The attempt fails; the node goes on.
    #[error(
        "no room for a snapshot: {wanted_bytes} bytes are wanted, {free_bytes} are free, and {reserve_bytes} of these are kept \
         for the log"
    )]
    NoRoom {
        /// What the file would take next.
        wanted_bytes: u64,
        /// What the file system has.
        free_bytes: u64,
        /// What snapshots leave alone.
        reserve_bytes: u64,
    },
    /// The bytes are not what they should be.
    #[error("snapshot {content} is corrupt: {detail}")]
    Corrupt {
        /// Which snapshot.
        content: ContentId,
        /// What is wrong.
        detail: String,
    },
    /// The same content is being written already.
    #[error("snapshot {content} is being written by somebody else")]
    Busy {
        /// Which snapshot.
        content: ContentId,
    },
    /// It was told to stop before it had read again what is here of the snapshot.
    #[error("snapshot {content} was not read to its end")]
    Stopped {
        /// Which snapshot.
        content: ContentId,
    },
    /// There is no such snapshot.
    #[error("snapshot {content} is not here")]
    Missing {
        /// Which snapshot.
        content: ContentId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> SnapshotHead {
        SnapshotHead {
            group: GroupId::DEFAULT,
            at: Applied { index: 7, term: 2 },
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
        let later = SnapshotHead { at: Applied { index: 8, term: 2 }, ..head() };
        assert_ne!(digest(&head(), &[b"abc"]).content, digest(&later, &[b"abc"]).content);
        assert_eq!(digest(&head(), &[b"abc"]).length, 3);
    }
}
