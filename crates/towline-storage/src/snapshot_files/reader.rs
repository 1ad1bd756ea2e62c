//! Reads the body of a complete file. A caller with enough room gets several whole chunks from one system call; otherwise one
//! chunk is split into smaller parts.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Seek, SeekFrom};
use std::sync::Arc;

use bytes::Bytes;
use towline_engine::snapshot_store::{BodyPart, SnapshotMeta, SnapshotReader};

use super::buffers::{Buffer, Buffers};
use super::dir::SnapshotDir;
use super::layout::{self, CHUNK_BYTES, Header, SNAPSHOT_CHUNK_BYTES, SUM_BYTES, Unreadable};
use super::sums;

/// Chunks read in one system call.
const CHUNKS_MAX: usize = 4;

/// Keeps its file until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) dir: Arc<SnapshotDir>,
    pub(super) meta: SnapshotMeta,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.dir.unpin(&self.meta);
    }
}

pub(super) struct FileReader {
    file: File,
    buffers: Buffers,
    /// The number of the next chunk.
    next: u64,
    /// Bytes of the body from the next chunk on.
    left: u64,
    /// Bytes of the next chunk before the requested offset.
    skip: usize,
    /// The rest of a checked chunk that is returned in parts.
    held: Bytes,
    state: ReadState,
    pin: Pin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadState {
    Good,
    /// The chunk with this number is damaged. All bytes before it were returned.
    Damaged(u64),
    /// An earlier call returned the error.
    Broken,
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
            buffers: Buffers::default(),
            next,
            left: if left == 0 { 0 } else { left + skip },
            skip: usize::try_from(skip).unwrap_or(0),
            held: Bytes::new(),
            state: ReadState::Good,
            pin,
        })
    }

    /// Reads up to `bytes` bytes: whole chunks, of which the last chunk of the file may be shorter.
    fn load(&mut self, bytes: usize) -> io::Result<BodyPart> {
        let mut buffer = self.buffers.take(bytes);
        let mut found = [[0; SUM_BYTES]; CHUNKS_MAX];
        let got = read_chunks(&mut self.file, &mut found, &mut buffer)?;
        let (mut good, mut sum, mut read) = (0, 0, got);
        for (found, chunk) in found.iter().zip(buffer.as_ref().chunks(SNAPSHOT_CHUNK_BYTES)) {
            let own = crc32c::crc32c(chunk);
            let whole = read.checked_sub(SUM_BYTES + chunk.len());
            let Some(rest) = whole.filter(|_| sums::stored(self.next, own, chunk.len()) == *found) else {
                self.state = ReadState::Damaged(self.next);
                break;
            };
            read = rest;
            sum = if good == 0 { own } else { sums::join(sum, own, chunk.len()) };
            good += chunk.len();
            self.next += 1;
        }
        self.left -= good as u64;
        Ok(BodyPart { bytes: buffer.share(good), crc32c: sum })
    }

    fn part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        if let ReadState::Damaged(chunk) = self.state {
            let detail = format!("chunk {chunk} of snapshot {} is damaged", self.pin.meta.content);
            return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
        }
        if self.held.is_empty() {
            if self.left == 0 {
                return Ok(None);
            }
            let left = usize::try_from(self.left).unwrap_or(usize::MAX);
            let many = if bytes_max >= left { left } else { bytes_max - bytes_max % SNAPSHOT_CHUNK_BYTES };
            if self.skip == 0 && many > 0 {
                let part = self.load(many.min(CHUNKS_MAX * SNAPSHOT_CHUNK_BYTES))?;
                return if part.bytes.is_empty() { self.part(bytes_max) } else { Ok(Some(part)) };
            }
            self.held = self.load(left.min(SNAPSHOT_CHUNK_BYTES))?.bytes;
            if self.held.is_empty() {
                return self.part(bytes_max);
            }
            let skip = std::mem::take(&mut self.skip);
            drop(self.held.split_to(skip.min(self.held.len())));
        }
        let bytes = self.held.split_to(bytes_max.min(self.held.len()));
        Ok(Some(BodyPart { crc32c: crc32c::crc32c(&bytes), bytes }))
    }
}

impl SnapshotReader for FileReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        if self.state == ReadState::Broken {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an earlier read failed"));
        }
        self.part(bytes_max.max(1)).inspect_err(|_| self.state = ReadState::Broken)
    }
}

/// Reads chunks and their checksums, up to the end of the file. Returns the number of bytes.
fn read_chunks(
    file: &mut File,
    sums: &mut [[u8; SUM_BYTES]; CHUNKS_MAX],
    chunks: &mut Buffer,
) -> io::Result<usize> {
    let chunks = chunks.as_mut().chunks_mut(SNAPSHOT_CHUNK_BYTES);
    let mut slices: Vec<_> = sums
        .iter_mut()
        .zip(chunks)
        .flat_map(|(sum, chunk)| [IoSliceMut::new(sum), IoSliceMut::new(chunk)])
        .collect();
    let (mut left, mut full) = (slices.as_mut_slice(), 0);
    while !left.is_empty() {
        match file.read_vectored(left) {
            Ok(0) => break,
            Ok(got) => {
                full += got;
                IoSliceMut::advance_slices(&mut left, got);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(full)
}
