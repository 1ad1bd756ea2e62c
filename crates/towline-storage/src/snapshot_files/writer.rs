//! Writes one snapshot file.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use towline_engine::snapshot_store::{
    ContentHasher, ContentId, SnapshotMeta, SnapshotStoreError, SnapshotWriter, Trailer,
};

use super::dir::{SnapshotDir, failed};
use super::layout::{self, Header, SNAPSHOT_CHUNK_BYTES, SUM_BYTES};
use super::sums;

/// Bytes written before a sync starts, beside which writing continues. Frequent syncs keep the last one short, and the syncs
/// of the log wait for less.
pub(super) const SYNC_BYTES: u64 = 32 * 1024 * 1024;

/// Bytes written during a sync before writing waits for it. A sync takes from a few to a hundred milliseconds; without this
/// room, writing stood still a fifth of the time. A power loss costs a transfer at most twice as much.
pub(super) const BEHIND_SYNC_BYTES_MAX: u64 = 96 * 1024 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Open,
    Checked(Trailer),
    /// The bytes do not match the offer, or the caller discarded them.
    Refused,
    /// The disk failed. Nothing is kept for a resume: after a failed sync the kernel may show bytes that are not on the
    /// disk, and a full disk needs the room.
    Failed,
    /// The partial file was not read to its end. It stays as it is.
    Unread,
    Committed,
}

pub(super) enum Resumed {
    GoesOn,
    /// It has another header.
    Foreign,
    /// The caller stopped reading it.
    Stopped,
}

pub(super) struct FileWriter {
    dir: Arc<SnapshotDir>,
    header: Header,
    path: PathBuf,
    file: File,
    /// Covers all chunks before the current one.
    hasher: ContentHasher,
    /// The bytes of the current chunk so far.
    chunk: Vec<u8>,
    number: u64,
    body_at: u64,
    /// Bytes of the body that are in the file under a checksum.
    in_file: u64,
    unsynced: u64,
    /// At most one.
    syncing: Option<JoinHandle<io::Result<()>>>,
    condition: Condition,
}

impl FileWriter {
    /// Takes over an empty or partial file, and the claim on its name.
    pub(super) fn new(dir: Arc<SnapshotDir>, header: Header, path: PathBuf, file: File) -> Self {
        Self {
            hasher: ContentHasher::new(&header.head),
            dir,
            header,
            path,
            file,
            chunk: Vec::new(),
            number: 0,
            body_at: 0,
            in_file: 0,
            unsynced: 0,
            syncing: None,
            condition: Condition::Open,
        }
    }

    pub(super) fn start(&mut self) -> Result<(), SnapshotStoreError> {
        let header = self.header.encode();
        let header = header.map_err(|e| failed("encoding of the header", io::Error::other(e)));
        let header = header.inspect_err(|_| self.condition = Condition::Failed)?;
        self.write_at(0, [&header]).map_err(|e| failed("write of the header", e))?;
        self.body_at = header.len() as u64;
        Ok(())
    }

    /// Resumes a partial file as far as its header and checksums match, and cuts off the rest. Calls `goes_on` after each
    /// chunk.
    pub(super) fn resume(&mut self, goes_on: &mut dyn FnMut(u64) -> bool) -> io::Result<Resumed> {
        self.body_at = match Header::read(&mut self.file) {
            Ok((header, body_at)) if header == self.header => body_at,
            _ => return Ok(Resumed::Foreign),
        };
        // Also if an error or a panic ends the reading.
        self.condition = Condition::Unread;
        let mut stored = Vec::new();
        loop {
            let room = self.room();
            if room == 0 {
                break;
            }
            stored.resize(SUM_BYTES + room, 0);
            let got = layout::read_full(&mut self.file, &mut stored)?;
            stored.truncate(got);
            if got <= SUM_BYTES || !layout::chunk_holds(self.number, &stored) {
                break;
            }
            let bytes = stored.get(SUM_BYTES..).unwrap_or_default();
            if bytes.len() < room {
                // A short chunk is the last one and will be filled.
                self.chunk.extend_from_slice(bytes);
                break;
            }
            self.hasher.update(bytes);
            self.number += 1;
            if !goes_on(self.hasher.length()) {
                return Ok(Resumed::Stopped);
            }
        }
        self.in_file = self.taken();
        let held = if self.chunk.is_empty() { 0 } else { (SUM_BYTES + self.chunk.len()) as u64 };
        let end = self.chunk_at() + held;
        if self.file.metadata()?.len() != end {
            self.dir.ops.truncate(&self.file, &self.path, end)?;
        }
        self.condition = Condition::Open;
        Ok(Resumed::GoesOn)
    }

    /// Starts over in a file that cannot be resumed.
    pub(super) fn restart(&mut self) -> Result<(), SnapshotStoreError> {
        let emptied = self.dir.ops.truncate(&self.file, &self.path, 0);
        emptied.inspect_err(|_| self.condition = Condition::Failed).map_err(|e| failed("truncation", e))?;
        self.condition = Condition::Open;
        self.hasher = ContentHasher::new(&self.header.head);
        self.number = 0;
        self.in_file = 0;
        self.chunk.clear();
        self.start()
    }

    fn taken(&self) -> u64 {
        self.hasher.length() + self.chunk.len() as u64
    }

    /// The bytes that the current chunk still takes. The last chunk of an offered body ends with the body.
    fn room(&self) -> usize {
        let room = SNAPSHOT_CHUNK_BYTES.saturating_sub(self.chunk.len());
        match self.header.offered {
            None => room,
            Some(_) => usize::try_from(self.left()).map_or(room, |left| room.min(left)),
        }
    }

    /// Bytes of an offered body that are missing. The length of a snapshot that this node makes is unknown.
    fn left(&self) -> u64 {
        self.header.offered.map_or(u64::MAX, |offered| offered.length.saturating_sub(self.taken()))
    }

    fn chunk_at(&self) -> u64 {
        self.body_at.saturating_add(layout::chunk_at(self.number))
    }

    /// Writes to the file. An error fails the writer.
    fn write_at<const N: usize>(&mut self, at: u64, parts: [&[u8]; N]) -> io::Result<()> {
        let written = self.dir.ops.write_at(&mut self.file, &self.path, at, parts);
        written.inspect_err(|_| self.condition = Condition::Failed)
    }

    /// Writes the current chunk, whole or in part.
    fn write_chunk(&mut self, bytes: &[u8], sum: [u8; SUM_BYTES]) -> io::Result<()> {
        self.write_at(self.chunk_at(), [&sum, bytes])?;
        self.in_file = self.hasher.length() + bytes.len() as u64;
        Ok(())
    }

    /// Writes the bytes that are not in the file yet.
    fn write_rest(&mut self) -> io::Result<()> {
        if self.in_file == self.taken() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        let written = self.write_chunk(&chunk, layout::chunk_sum(self.number, &chunk));
        self.chunk = chunk;
        written
    }

    /// Writes a whole chunk.
    fn write_whole(&mut self, bytes: &[u8], sum: [u8; SUM_BYTES]) -> io::Result<()> {
        self.write_chunk(bytes, sum)?;
        self.hasher.update(bytes);
        self.number += 1;
        self.sync_when_due(bytes.len() as u64)
    }

    fn sync_when_due(&mut self, bytes: u64) -> io::Result<()> {
        self.unsynced += bytes;
        let under_way = self.syncing.as_ref().is_some_and(|syncing| !syncing.is_finished());
        if self.unsynced < if under_way { BEHIND_SYNC_BYTES_MAX } else { SYNC_BYTES } {
            return Ok(());
        }
        self.unsynced = 0;
        self.end_sync()?;
        // Checks the room up to the next check.
        let room = self.dir.room_for(self.left().min(BEHIND_SYNC_BYTES_MAX));
        let room = room.map_err(|e| io::Error::new(io::ErrorKind::StorageFull, e));
        room.inspect_err(|_| self.condition = Condition::Failed)?;
        let started = self.start_sync();
        started.inspect_err(|_| self.condition = Condition::Failed)
    }

    fn start_sync(&mut self) -> io::Result<()> {
        let (file, ops, path) = (self.file.try_clone()?, self.dir.ops.clone(), self.path.clone());
        let thread = thread::Builder::new().name("towline-snap-sync".into());
        self.syncing = Some(thread.spawn(move || ops.sync_data(&file, &path))?);
        Ok(())
    }

    fn end_sync(&mut self) -> io::Result<()> {
        let Some(syncing) = self.syncing.take() else { return Ok(()) };
        let synced = syncing.join().unwrap_or_else(|_| Err(io::Error::other("a sync panicked")));
        synced.inspect_err(|_| self.condition = Condition::Failed)
    }

    fn trailer(&self) -> Trailer {
        let mut hasher = self.hasher.clone();
        hasher.update(&self.chunk);
        hasher.finish()
    }

    fn usable(&self) -> io::Result<()> {
        match self.condition {
            Condition::Open | Condition::Checked(_) => Ok(()),
            _ => Err(io::Error::other("an earlier operation on this snapshot file failed")),
        }
    }

    fn refuse(&mut self, content: ContentId, detail: String) -> SnapshotStoreError {
        self.condition = Condition::Refused;
        SnapshotStoreError::Corrupt { content, detail }
    }

    fn finish(&mut self, trailer: &Trailer) -> Result<(), SnapshotStoreError> {
        self.write_rest().map_err(|e| failed("write of the last chunk", e))?;
        let end = layout::stored_bytes(trailer.length).and_then(|bytes| bytes.checked_add(self.body_at));
        let end = end.ok_or_else(|| failed("write of the trailer", io::ErrorKind::FileTooLarge.into()))?;
        self.write_at(end, [&layout::encode_trailer(trailer)])
            .map_err(|e| failed("write of the trailer", e))?;
        let synced = self.dir.ops.sync(&self.file, &self.path);
        synced.inspect_err(|_| self.condition = Condition::Failed).map_err(|e| failed("sync", e))
    }
}

impl Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.usable()?;
        let room = self.room();
        if room == 0 && !bytes.is_empty() {
            self.condition = Condition::Refused;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the body is longer than the offer"));
        }
        let Some(taken) = bytes.get(..room.min(bytes.len())).filter(|taken| !taken.is_empty()) else {
            return Ok(0);
        };
        self.condition = Condition::Open;
        if self.chunk.is_empty() && taken.len() == room {
            // A whole chunk is written without a copy.
            self.write_whole(taken, layout::chunk_sum(self.number, taken))?;
            return Ok(taken.len());
        }
        self.chunk.extend_from_slice(taken);
        if self.room() == 0 {
            let chunk = std::mem::take(&mut self.chunk);
            let written = self.write_whole(&chunk, layout::chunk_sum(self.number, &chunk));
            self.chunk = chunk;
            self.chunk.clear();
            written?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.usable()?;
        self.write_rest()
    }
}

impl SnapshotWriter for FileWriter {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        self.usable()?;
        // Aligned whole chunks are written without a copy, with sums from this one pass.
        let aligned = if self.chunk.is_empty() { bytes } else { &[] };
        let whole = aligned.chunks_exact(SNAPSHOT_CHUNK_BYTES).map(|chunk| (chunk, crc32c::crc32c(chunk)));
        let whole: Vec<_> = whole.collect();
        let rest = bytes.get(whole.len() * SNAPSHOT_CHUNK_BYTES..).unwrap_or_default();
        let joined = whole.iter().copied().map(|(_, sum)| sum);
        let joined = joined.reduce(|before, sum| sums::join(before, sum, SNAPSHOT_CHUNK_BYTES));
        if crc32c::crc32c_append(joined.unwrap_or(0), rest) != crc32c {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
        }
        for (chunk, sum) in whole {
            if self.room() < chunk.len() {
                self.write_all(chunk)?; // fails: the body is too long
                continue;
            }
            self.condition = Condition::Open;
            self.write_whole(chunk, sums::stored(self.number, sum, chunk.len()))?;
        }
        self.write_all(rest)
    }

    fn verified(&self) -> u64 {
        self.in_file
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        self.usable().map_err(|e| failed("verification", e))?;
        self.end_sync().map_err(|e| failed("sync", e))?;
        let found = self.trailer();
        for expected in self.header.offered.iter().chain(expected).copied().collect::<Vec<_>>() {
            if found.length != expected.length {
                let detail = format!("{} bytes arrived, {} were offered", found.length, expected.length);
                return Err(self.refuse(expected.content, detail));
            }
            if found.content != expected.content {
                return Err(self.refuse(expected.content, format!("its digest is {}", found.content)));
            }
        }
        self.condition = Condition::Checked(found);
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        let Condition::Checked(trailer) = self.condition else {
            let content = self.header.offered.unwrap_or_else(|| self.trailer()).content;
            return Err(self.refuse(content, "it was not verified before the commit".into()));
        };
        self.finish(&trailer)?;
        let head = self.header.head.clone();
        let meta = SnapshotMeta { head, length: trailer.length, content: trailer.content };
        let published = self.dir.publish(&self.path, &meta, self.header.offered.is_some());
        published.inspect_err(|_| self.condition = Condition::Failed)?;
        self.condition = Condition::Committed;
        Ok(meta)
    }

    fn discard(mut self: Box<Self>) {
        self.condition = Condition::Refused;
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if self.condition == Condition::Committed {
            return;
        }
        // No sync may run when the file is kept or removed.
        let synced = self.end_sync();
        let kept = match self.condition {
            Condition::Unread => self.header.offered,
            _ => self.header.offered.filter(|_| {
                self.usable().is_ok() && synced.is_ok() && self.write_rest().is_ok() && self.in_file > 0
            }),
        };
        let group = self.header.head.group;
        match (kept, self.header.offered) {
            (Some(offered), _) => {
                let bytes = self.file.metadata().map_or(self.in_file, |m| m.len());
                self.dir.leave(group, offered.content, bytes);
            }
            (None, offered) => self.dir.abandon(&self.path, group, offered.map(|o| o.content)),
        }
    }
}
