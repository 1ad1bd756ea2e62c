//! Which log files there must be, and how much of each is durable. Kept outside of the log's directory.
//!
//! A log cannot tell by itself that its newest file is missing, or that an older copy of it took its place: both look
//! like a log that ends earlier. This file can. It holds, for each log file, its number and a length that was synced.
//!
//! | when | what is recorded | written |
//! | --- | --- | --- |
//! | a new log file is synced with its header | the new file; the final length of the one before | before the first record of the new file is acknowledged |
//! | a log file is about to be deleted | nothing about that file any more | before the deletion; on a full disk the list is removed instead |
//! | [`checkpoint`](LogManifest::checkpoint), at each purge and when the log is closed | the length of the newest files | then |
//!
//! So a crash at any moment leaves a manifest that asks for no more than what is durable. What it cannot find: a newest
//! file that lost records which were written after the last checkpoint, and an older copy of log and manifest together.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use towline_engine::log_store::LogError;

use crate::format::{self, Damage};
use crate::replace::replace_file;

const MANIFEST_VERSION: u8 = 1;
/// What to do about a damaged list. Without it, nothing notices that the newest log file is missing or an older copy.
const REMEDY: &str = "if no log file was lost or exchanged, remove this file and start again: the start checks every \
                      record of the log and writes the file anew";
const SEQUENCE_DIGITS: usize = 16;

/// One of raft-engine's two sequences of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Queue {
    /// What is appended.
    Append,
    /// What a purge moved.
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

    /// The name of the file with this number.
    pub(crate) fn file_name(self, number: u64) -> String {
        format!("{number:0digits$}{}", self.suffix(), digits = SEQUENCE_DIGITS)
    }

    /// The queue and the number of a log file, by its name.
    pub(crate) fn of(path: &Path) -> Option<(Self, u64)> {
        let name = path.file_name()?.to_str()?;
        Self::ALL.into_iter().find_map(|queue| {
            let digits = name.strip_suffix(queue.suffix()).filter(|d| d.len() == SEQUENCE_DIGITS)?;
            Some((queue, digits.parse().ok()?))
        })
    }
}

/// The log files by number, each with a length in bytes that is durable at least.
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

    /// The files that hold nothing, not even a header.
    pub(crate) fn without_header(&self) -> Vec<(Queue, u64)> {
        self.iter().filter(|(.., bytes)| **bytes == 0).map(|(queue, &number, _)| (queue, number)).collect()
    }

    pub(crate) fn insert(&mut self, queue: Queue, number: u64, bytes: u64) {
        self.of_mut(queue).insert(number, bytes);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LogManifest {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What is durable now.
    now: LogFiles,
    /// What the file says.
    stored: LogFiles,
}

impl LogManifest {
    /// What the file at `path` says; `None` if there is none: a new directory, or one of before this file existed.
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

    /// Of a log whose files are `now`, while the file says `stored`.
    pub(crate) fn new(path: &Path, stored: LogFiles, now: LogFiles) -> Self {
        Self { path: path.into(), state: Mutex::new(State { now, stored }) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes how many bytes of a log file are durable. `true` if the file is new: then the manifest must be
    /// [stored](Self::store) before anything in it is acknowledged.
    pub(crate) fn synced(&self, file: &Path, bytes: u64) -> bool {
        let Some((queue, number)) = Queue::of(file) else { return false };
        self.lock().now.of_mut(queue).insert(number, bytes).is_none()
    }

    /// A log file is about to be deleted. `true` if the manifest must be [stored](Self::store) before.
    pub(crate) fn forget(&self, file: &Path) -> bool {
        let Some((queue, number)) = Queue::of(file) else { return false };
        let mut state = self.lock();
        state.now.of_mut(queue).remove(&number);
        state.stored.of(queue).contains_key(&number)
    }

    /// Whether the file says less than it could.
    pub(crate) fn is_behind(&self) -> bool {
        let state = self.lock();
        state.now != state.stored
    }

    /// Makes the file say what is durable now.
    pub(crate) fn store(&self) -> io::Result<()> {
        let mut state = self.lock();
        let payload = format::encode(&state.now).map_err(io::Error::other)?;
        replace_file(&self.path, &format::seal(MANIFEST_VERSION, &payload))
            .map_err(|failed| failed.source)?;
        state.stored = state.now.clone();
        Ok(())
    }

    /// Removes the file, which asks for nothing then.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let mut state = self.lock();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        state.stored = LogFiles::default();
        sync_dir(self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all())
}

#[cfg(test)]
mod tests;
