//! The bytes of a snapshot file.
//!
//! ```text
//! header   "towlsnap" | length of the frame: u32 | frame { head, offered trailer }
//! chunks   crc32c: u32 | CHUNK_BYTES of the body, the last one shorter
//! trailer  frame { length: u64 | content: 16 bytes }
//! ```
//!
//! Numbers are little endian. Frames are those of [`format`], with their upgrade policy. A chunk's checksum covers its number
//! (from 0, u64) and its bytes, so it also reveals a misplaced chunk. An empty body has no chunk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use towline_engine::ids::{FoundingHash, GroupId};
use towline_engine::message::{ConfState, LogId, MemberTable};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};

use crate::format::{self, Damage, VALUE_BYTES_MAX};

/// Bytes of a snapshot's body under one checksum. A writer holds this much in memory, and a torn write costs a resumed
/// transfer at most this much. Part of the file format.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;

pub(super) const CHUNK_BYTES: u64 = SNAPSHOT_CHUNK_BYTES as u64;
/// Bytes of the checksum in front of a chunk.
pub(super) const SUM_BYTES: usize = 4;
const MAGIC: &[u8; 8] = b"towlsnap";
const HEADER_VERSION: u8 = 2;
const TRAILER_VERSION: u8 = 1;
/// Bytes of a frame's version and checksum.
const FRAME_BYTES: usize = 5;
const HEADER_FRAME_BYTES_MAX: usize = VALUE_BYTES_MAX + FRAME_BYTES;
const CONTENT_BYTES: usize = size_of::<ContentId>();
const TRAILER_BYTES: usize = size_of::<u64>() + CONTENT_BYTES + FRAME_BYTES;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) head: SnapshotHead,
    /// The trailer that a peer offered. None for a snapshot that this node makes.
    pub(super) offered: Option<Trailer>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Damage(#[from] Damage),
}

type HeaderValue =
    ((u64, u64, u64), ConfState, MemberTable, FoundingHash, Option<(u64, [u8; CONTENT_BYTES])>);

impl Header {
    pub(super) fn encode(&self) -> Result<Vec<u8>, Damage> {
        let head = &self.head;
        let place = (head.group.as_u64(), head.at.index, head.at.term);
        let offered = self.offered.map(|t| (t.length, t.content.0));
        let frame = format::seal(
            HEADER_VERSION,
            &format::encode(&(place, &head.conf_state, &head.members, head.founding, offered))?,
        );
        let length = u32::try_from(frame.len()).map_err(|_| content("the header is too long"))?;
        Ok([MAGIC.as_slice(), &length.to_le_bytes(), &frame].concat())
    }

    /// Reads a header. Returns it with the offset of the body.
    pub(super) fn read(from: &mut impl Read) -> Result<(Self, u64), Unreadable> {
        let mut fixed = [0; MAGIC.len() + size_of::<u32>()];
        let got = read_full(from, &mut fixed)?;
        let (magic, length) = match fixed.split_first_chunk::<8>() {
            Some((magic, rest)) if got == fixed.len() => (magic, rest),
            _ => return Err(Damage::Short { bytes: got }.into()),
        };
        if magic != MAGIC {
            return Err(content("it does not begin with `towlsnap`").into());
        }
        let length = number(length);
        if length > HEADER_FRAME_BYTES_MAX as u64 {
            return Err(content("the length of its header is too long").into());
        }
        // Grows with the bytes read, not with the claimed length.
        let mut frame = Vec::new();
        let got = from.take(length).read_to_end(&mut frame)?;
        if (got as u64) < length {
            return Err(Damage::Short { bytes: fixed.len() + got }.into());
        }
        let payload = format::open_only(HEADER_VERSION, &frame)?;
        let ((group, index, term), conf_state, members, founding, offered): HeaderValue =
            format::decode(payload)?;
        let head = SnapshotHead {
            founding,
            group: GroupId::new(group),
            at: LogId { index, term },
            conf_state,
            members,
        };
        let offered = offered.map(|(length, id)| Trailer { length, content: ContentId(id) });
        Ok((Self { head, offered }, (fixed.len() + got) as u64))
    }
}

pub(super) fn encode_trailer(trailer: &Trailer) -> Vec<u8> {
    format::seal(TRAILER_VERSION, &[&trailer.length.to_le_bytes()[..], &trailer.content.0].concat())
}

pub(super) fn decode_trailer(frame: &[u8]) -> Result<Trailer, Damage> {
    let (_, payload) = format::open(TRAILER_VERSION, frame)?;
    let short = || Damage::Short { bytes: frame.len() };
    let (length, id) = payload.split_first_chunk::<8>().ok_or_else(short)?;
    let id = id.try_into().map_err(|_| short())?;
    Ok(Trailer { length: u64::from_le_bytes(*length), content: ContentId(id) })
}

/// Reads header, trailer and length of a complete file, not its body.
pub(super) fn read_meta(path: &Path) -> Result<SnapshotMeta, Unreadable> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let (header, body_at) = Header::read(&mut file)?;
    let trailer_at = bytes
        .checked_sub(TRAILER_BYTES as u64)
        .filter(|&at| at >= body_at)
        .ok_or_else(|| Damage::Short { bytes: usize::try_from(bytes).unwrap_or(usize::MAX) })?;
    file.seek(SeekFrom::Start(trailer_at))?;
    let mut frame = [0; TRAILER_BYTES];
    let got = read_full(&mut file, &mut frame)?;
    let trailer = decode_trailer(frame.get(..got).unwrap_or_default())?;
    if stored_bytes(trailer.length) != Some(trailer_at - body_at) {
        return Err(content("its length does not match its trailer").into());
    }
    if header.offered.is_some_and(|offered| offered != trailer) {
        return Err(content("its trailer differs from the offer in its header").into());
    }
    Ok(SnapshotMeta { head: header.head, length: trailer.length, content: trailer.content })
}

/// Bytes of a body with its checksums.
pub(super) fn stored_bytes(body: u64) -> Option<u64> {
    body.div_ceil(CHUNK_BYTES).checked_mul(SUM_BYTES as u64)?.checked_add(body)
}

/// The offset of a chunk from the first one.
pub(super) fn chunk_at(chunk: u64) -> u64 {
    chunk.saturating_mul(CHUNK_BYTES + SUM_BYTES as u64)
}

pub(super) fn chunk_sum(number: u64, bytes: &[u8]) -> [u8; SUM_BYTES] {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes).to_le_bytes()
}

/// Whether the checksum in front of a stored chunk matches its bytes and its number.
pub(super) fn chunk_holds(number: u64, stored: &[u8]) -> bool {
    stored.split_first_chunk::<SUM_BYTES>().is_some_and(|(sum, bytes)| *sum == chunk_sum(number, bytes))
}

/// Reads until `out` is full or the file ends. Returns the number of bytes.
pub(super) fn read_full(from: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut full = 0;
    while let Some(rest) = out.get_mut(full..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(got) => full += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(full)
}

fn number(little_endian: &[u8]) -> u64 {
    little_endian.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

fn content(detail: &str) -> Damage {
    Damage::Content { detail: detail.into() }
}

#[cfg(test)]
mod tests;
