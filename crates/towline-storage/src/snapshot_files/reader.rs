//! Reads the body of a complete file, chunk by chunk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use towline_engine::snapshot_store::SnapshotMeta;

use super::Shared;
use super::layout::{self, CHUNK_BYTES, Header, SUM_BYTES, Unreadable};

/// Keeps its file until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) store: Arc<Shared>,
    pub(super) meta: SnapshotMeta,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.store.unpin(self.meta.head.group, self.meta.content);
    }
}

pub(super) struct FileReader {
    file: File,
    /// The number of the next chunk.
    next: u64,
    /// Bytes of the body behind the chunk that is held.
    left: u64,
    /// A checked chunk, its checksum in front; empty at first.
    chunk: Vec<u8>,
    /// What of it was read.
    taken: usize,
    /// Bytes of the next chunk that nobody asked for.
    skip: usize,
    broken: bool,
    pin: Pin,
}

impl FileReader {
    pub(super) fn open(mut file: File, pin: Pin, offset: u64) -> Result<Self, Unreadable> {
        let meta = &pin.meta;
        let (header, body_at) = Header::read(&mut file)?;
        if header.head != meta.head {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let left = meta.length.checked_sub(offset).ok_or(io::ErrorKind::InvalidInput);
        let left = left.map_err(io::Error::from)?;
        let next = offset / CHUNK_BYTES;
        let skip = offset % CHUNK_BYTES;
        file.seek(SeekFrom::Start(body_at.saturating_add(layout::chunk_at(next))))?;
        Ok(Self {
            file,
            next,
            left: if left == 0 { 0 } else { left + skip },
            chunk: Vec::new(),
            taken: 0,
            skip: usize::try_from(skip).unwrap_or(0),
            broken: false,
            pin,
        })
    }

    fn load(&mut self) -> io::Result<()> {
        let bytes = usize::try_from(self.left.min(CHUNK_BYTES)).map_err(io::Error::other)?;
        self.chunk.resize(SUM_BYTES + bytes, 0);
        let got = layout::read_full(&mut self.file, &mut self.chunk)?;
        if got < self.chunk.len() || !layout::chunk_holds(self.next, &self.chunk) {
            let detail = format!("chunk {} of snapshot {} is damaged", self.next, self.pin.meta.content);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        self.left -= bytes as u64;
        self.next += 1;
        self.taken = SUM_BYTES + std::mem::take(&mut self.skip);
        Ok(())
    }
}

impl Read for FileReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.broken {
            // What comes behind the damage is not what was asked for.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an earlier read failed"));
        }
        if self.taken >= self.chunk.len() && self.left > 0 && !out.is_empty() {
            self.load().inspect_err(|_| self.broken = true)?;
        }
        let ready = self.chunk.get(self.taken..).unwrap_or_default();
        let count = ready.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        Ok(count)
    }
}
