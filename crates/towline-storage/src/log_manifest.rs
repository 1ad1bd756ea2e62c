//! The list of log files: which files must exist, and how much of each is durable. It lies outside the log's directory.
//!
//! A log alone cannot reveal that its newest file is missing or was replaced by an older copy: both look like a shorter
//! log. This file holds the number of each log file and a length that was synced.
//!
//! | when | change | written |
//! | --- | --- | --- |
//! | a new log file is synced with its header | the new file, and the final length of the previous one | before the first record of the new file is acknowledged; on a full disk at a later purge |
//! | a log file will be deleted | the file leaves the list | before the deletion; on a full disk the list is removed instead |
//! | [`checkpoint`](crate::disk::Disk::checkpoint), at each purge and when the log closes | the lengths of the newest files | at once |
//!
//! A crash at any moment leaves a list that names only durable bytes. Two losses stay hidden: records of the newest file
//! that were written after the last checkpoint, and an older copy of log and list together.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use towline_engine::log_store::LogError;

use crate::disk::is_full;
use crate::format::{self, Damage};
use crate::replace::{ReplaceError, parent, replace_file, sync_dir};
use crate::sync::lock;

const MANIFEST_VERSION: u8 = 1;
/// What to do about a damaged list. Without a list, a missing or older newest log file stays hidden.
const REMEDY: &str = "if no log file was lost or replaced, remove this file and start again: the start checks every \
                      record of the log and writes a new file";
const SEQUENCE_DIGITS: usize = 16;

/// One of raft-engine's two sequences of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Queue {
    /// Appended records.
    Append,
    /// Records that a purge moved.
    Rewrite,
}

impl Queue {
    pub(crate) const ALL: [Self; 2] = [Self::Append, Self::Rewrite];

    fn suffix(self) -> &'static str {
        match self {
            Self::Append => ".raftlog",
            Self::Rewrite => ".rewrite",
        }
    }

    pub(crate) fn file_name(self, number: u64) -> String {
        format!("{number:0digits$}{}", self.suffix(), digits = SEQUENCE_DIGITS)
    }

    pub(crate) fn of(path: &Path) -> Option<(Self, u64)> {
        let name = path.file_name()?.to_str()?;
        Self::ALL.into_iter().find_map(|queue| {
            let digits = name.strip_suffix(queue.suffix()).filter(|d| d.len() == SEQUENCE_DIGITS)?;
            Some((queue, digits.parse().ok()?))
        })
    }
}

/// The log files by number, each with its minimum durable length in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LogFiles {
    append: BTreeMap<u64, u64>,
    rewrite: BTreeMap<u64, u64>,
}

impl LogFiles {
    pub(crate) fn of(&self, queue: Queue) -> &BTreeMap<u64, u64> {
        match queue {
            Queue::Append => &self.append,
            Queue::Rewrite => &self.rewrite,
        }
    }

    fn of_mut(&mut self, queue: Queue) -> &mut BTreeMap<u64, u64> {
        match queue {
            Queue::Append => &mut self.append,
            Queue::Rewrite => &mut self.rewrite,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Queue, &u64, &u64)> {
        Queue::ALL
            .into_iter()
            .flat_map(|queue| self.of(queue).iter().map(move |(number, bytes)| (queue, number, bytes)))
    }

    /// Takes the files out that are empty: they lack even a header.
    pub(crate) fn take_without_header(&mut self) -> Vec<(Queue, u64)> {
        let empty = self.iter().filter(|(.., bytes)| **bytes == 0);
        let empty: Vec<_> = empty.map(|(queue, &number, _)| (queue, number)).collect();
        for (queue, number) in &empty {
            self.of_mut(*queue).remove(number);
        }
        empty
    }

    pub(crate) fn insert(&mut self, queue: Queue, number: u64, bytes: u64) {
        self.of_mut(queue).insert(number, bytes);
    }
}

/// The list of log files, in memory and on disk: see the [module](self).
#[derive(Debug)]
pub(crate) struct LogManifest {
    path: PathBuf,
    state: Mutex<ManifestState>,
}

#[derive(Debug)]
struct ManifestState {
    /// The durable bytes now.
    now: LogFiles,
    /// The content of the file.
    stored: LogFiles,
}

impl LogManifest {
    /// Reads the file at `path`. `None` if it does not exist: the directory is new, or of a release without this file.
    pub(crate) fn load(path: &Path) -> Result<Option<LogFiles>, LogError> {
        let framed = match fs::read(path) {
            Ok(framed) => framed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LogError::Io { during: "read of the list of log files", source }),
        };
        let opened = format::open(MANIFEST_VERSION, &framed).and_then(|(_, payload)| format::decode(payload));
        opened.map(Some).map_err(|damage| LogError::Corrupt {
            place: path.display().to_string(),
            detail: match damage {
                Damage::Later { .. } => damage.to_string(),
                _ => format!("{damage}; {REMEDY}"),
            },
        })
    }

    /// The list of a log whose files are `now`, while the file on disk holds `stored`.
    pub(crate) fn new(path: &Path, stored: LogFiles, now: LogFiles) -> Self {
        Self { path: path.into(), state: Mutex::new(ManifestState { now, stored }) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes the durable bytes of a log file. `true` if the file is new: then [`store`](Self::store) must succeed before a
    /// record of that file is acknowledged.
    pub(crate) fn synced(&self, file: &Path, bytes: u64) -> bool {
        let Some((queue, number)) = Queue::of(file) else { return false };
        self.lock().now.of_mut(queue).insert(number, bytes).is_none()
    }

    /// Drops a log file from the list. `true` if [`store`](Self::store) must succeed before the file is deleted.
    pub(crate) fn forget(&self, file: &Path) -> bool {
        let Some((queue, number)) = Queue::of(file) else { return false };
        let mut state = self.lock();
        state.now.of_mut(queue).remove(&number);
        state.stored.of(queue).contains_key(&number)
    }

    /// The number of files of a queue, and their durable bytes.
    pub(crate) fn sum(&self, queue: Queue) -> (u64, u64) {
        let state = self.lock();
        let files = state.now.of(queue);
        (files.len() as u64, files.values().sum())
    }

    /// Whether the file on disk differs from the list in memory.
    pub(crate) fn is_behind(&self) -> bool {
        let state = self.lock();
        state.now != state.stored
    }

    pub(crate) fn store(&self) -> io::Result<()> {
        let mut state = self.lock();
        let payload = format::encode(&state.now).map_err(io::Error::other)?;
        replace_file(&self.path, &format::seal(MANIFEST_VERSION, &payload)).map_err(store_error)?;
        state.stored = state.now.clone();
        Ok(())
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut state = self.lock();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        state.stored = LogFiles::default();
        sync_dir(parent(&self.path))
    }

    fn lock(&self) -> MutexGuard<'_, ManifestState> {
        lock(&self.state)
    }
}

/// After the rename a full disk is a failed sync: it leaves unknown which list is durable.
fn store_error(failed: ReplaceError) -> io::Error {
    match failed.renamed && is_full(&failed.source) {
        true => io::Error::other(format!("{}: {}", failed.during, failed.source)),
        false => failed.source,
    }
}

#[cfg(test)]
mod tests;
