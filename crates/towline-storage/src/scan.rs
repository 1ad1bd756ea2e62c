//! Checks every record of the log before raft-engine opens it.
//!
//! raft-engine checks too little. It cuts the last file at the first unreadable record, even if acknowledged records
//! follow. It forgets all files before a missing one. It checks the payload of the last record only.
//!
//! This scan reads everything once, at open. Damage is an error with file and offset. One exception: in the last file, with
//! no whole record behind the damage, it can only be a write that a crash interrupted. That holds because
//! [`RaftLog`](crate::RaftLog) never has two unsynced records in one file. Damage to the very last record looks the same,
//! so it is cut off too.
//!
//! The [list of log files](crate::log_manifest) reveals files that are missing at either end, and files that are too short.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use towline_engine::log_store::LogError;

use crate::log_manifest::{LogFiles, Queue};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// Magic, version, alignment.
pub(crate) const FILE_HEADER_BYTES: usize = MAGIC.len() + 8 + 8;
const FILE_VERSION: u64 = 2;
const RECORD_HEADER_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;

/// Checks all files against their checksums and against `expected`, the list of log files. Returns the files with the length
/// of the sound part of each.
pub(crate) fn verify(dir: &Path, expected: &LogFiles) -> Result<LogFiles, LogError> {
    let mut found = LogFiles::default();
    for queue in Queue::ALL {
        let files = list(dir, queue)?;
        let expected = expected.of(queue);
        if let Some((&number, bytes)) = expected.iter().find(|(number, _)| !files.contains_key(number)) {
            return Err(LogError::Corrupt {
                place: dir.join(queue.file_name(number)).display().to_string(),
                detail: format!("the file is missing; {bytes} bytes of it were durable"),
            });
        }
        let last = files.keys().next_back().copied();
        let mut previous: Option<u64> = None;
        for (&sequence, path) in &files {
            if let Some(before) = previous.filter(|&p| p + 1 != sequence) {
                return Err(LogError::Corrupt {
                    place: path.display().to_string(),
                    detail: format!("files {} to {} before it are missing", before + 1, sequence - 1),
                });
            }
            previous = Some(sequence);
            let bytes = fs::read(path).map_err(|e| failed("read of a log file", e))?;
            let corrupt = |offset: u64, detail: String| LogError::Corrupt {
                place: format!("{} at offset {offset}", path.display()),
                detail,
            };
            let sound = check_file(&bytes, sequence, Some(sequence) == last)
                .map_err(|damaged| corrupt(damaged.offset as u64, damaged.detail.into()))?
                as u64;
            let durable = expected.get(&sequence).copied().unwrap_or_default();
            if sound < durable {
                return Err(corrupt(
                    sound,
                    format!("the file ends here, but {durable} bytes of it were durable"),
                ));
            }
            found.insert(queue, sequence, sound);
        }
    }
    Ok(found)
}

fn list(dir: &Path, queue: Queue) -> Result<BTreeMap<u64, PathBuf>, LogError> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).map_err(|e| failed("listing of the log directory", e))? {
        let path = entry.map_err(|e| failed("listing of the log directory", e))?.path();
        if let Some((_, sequence)) = Queue::of(&path).filter(|(of, _)| *of == queue) {
            files.insert(sequence, path);
        }
    }
    Ok(files)
}

fn failed(during: &'static str, source: io::Error) -> LogError {
    LogError::Io { during, source }
}

/// The first damaged position of a file.
#[derive(Debug, PartialEq, Eq)]
struct Damaged {
    offset: usize,
    detail: &'static str,
}

/// Returns the length of the sound part.
fn check_file(bytes: &[u8], sequence: u64, last: bool) -> Result<usize, Damaged> {
    let torn = match check_file_header(bytes) {
        Err(detail) => Some(Damaged { offset: 0, detail }),
        Ok(()) => {
            let mut offset = FILE_HEADER_BYTES;
            loop {
                let rest = bytes.get(offset..).unwrap_or_default();
                if rest.is_empty() {
                    break None;
                }
                match record_len(rest, sequence) {
                    Ok(len) => offset += len,
                    Err(detail) => break Some(Damaged { offset, detail }),
                }
            }
        }
    };
    let Some(found) = torn else { return Ok(bytes.len()) };
    let rest = bytes.get(found.offset..).unwrap_or_default();
    // Zeros only: allocated ahead and never written.
    let unwritten = rest.iter().all(|&b| b == 0);
    if !last || (!unwritten && record_follows(rest, sequence)) {
        return Err(found);
    }
    if !unwritten {
        tracing::warn!(
            sequence,
            offset = found.offset,
            "an interrupted write at the end of the log is cut off"
        );
    }
    Ok(found.offset)
}

#[cfg(test)]
pub(crate) fn file_header() -> Vec<u8> {
    [MAGIC, &FILE_VERSION.to_be_bytes(), &[0; 8]].concat()
}

fn check_file_header(bytes: &[u8]) -> Result<(), &'static str> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("the file header is damaged")?;
    match (word(rest, 0), word(rest, 8)) {
        (Some(FILE_VERSION), Some(0)) => Ok(()),
        _ => Err("the file header has another version"),
    }
}

/// Whether a whole record starts anywhere after the first byte.
fn record_follows(rest: &[u8], sequence: u64) -> bool {
    (1..rest.len()).any(|at| record_len(rest.get(at..).unwrap_or_default(), sequence).is_ok())
}

/// Returns the length of the record at the start of `bytes`, if all its checksums match.
///
/// ```text
/// length << 8 | compression: u64 BE | offset of the items: u64 BE
/// payload | crc32: u32 LE                        (absent if there is no entry)
/// items | crc32 ^ low half of the file's sequence number: u32 LE
/// ```
fn record_len(bytes: &[u8], sequence: u64) -> Result<usize, &'static str> {
    const HEADER: &str = "a record header is damaged";
    let (Some(length), Some(items)) = (word(bytes, 0), word(bytes, 8)) else { return Err(HEADER) };
    let compression = length & 0xff;
    let (Ok(length), Ok(items)) = (usize::try_from(length >> 8), usize::try_from(items)) else {
        return Err(HEADER);
    };
    if compression > 1 || items < RECORD_HEADER_BYTES || length <= items.saturating_add(CHECKSUM_BYTES) {
        return Err(HEADER);
    }
    let record = bytes.get(..length).ok_or("a record is longer than the file")?;
    let (Some(payload), Some(items)) = (record.get(RECORD_HEADER_BYTES..items), record.get(items..)) else {
        return Err(HEADER);
    };
    if !checksum_matches(items, sequence as u32) {
        return Err("the checksum of a record does not match");
    }
    if !payload.is_empty() && !checksum_matches(payload, 0) {
        return Err("the checksum of a record's payload does not match");
    }
    Ok(length)
}

fn checksum_matches(bytes: &[u8], signature: u32) -> bool {
    bytes
        .split_last_chunk::<CHECKSUM_BYTES>()
        .is_some_and(|(body, stored)| crc32fast::hash(body) == u32::from_le_bytes(*stored) ^ signature)
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_be_bytes(*b))
}
