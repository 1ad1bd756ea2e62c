//! Compactions and purges: what removes entries from the log, and files from its directory.

use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use raft_engine::Command;
use towline_engine::ids::GroupId;
use towline_engine::log_store::LogError;
use towline_engine::message::LogId;

use super::{RaftEngine, RaftLog, Span, write};
use crate::purges::clears_append_queue;
use crate::reader::{JobOutcome, gone};
use crate::record;
use crate::sync::lock;

/// The interval at which a purge is asked whether it waits for room.
const PURGE_POLL: Duration = Duration::from_millis(20);

/// The outcome of a purge, and whether it looked at the append queue.
pub(super) type Purged = raft_engine::Result<(bool, Vec<u64>)>;

impl RaftLog {
    /// Compacts under the lock `writing`.
    pub(super) fn compact_locked(&self, group: GroupId, through: u64) -> Result<(), LogError> {
        self.healthy()?;
        // Do not create an unknown group.
        let Some(span) = self.span(group) else { return Ok(()) };
        if through <= span.truncated.index {
            return Ok(());
        }
        let next = through
            .checked_add(1)
            .ok_or_else(|| LogError::Invalid { group, detail: "no index can follow 2^64 - 1".into() })?;
        // The term of a position past the end is unknown; the term of the last entry stands in for it.
        let known = through.min(span.last);
        let term = match known == span.truncated.index {
            true => span.truncated.term,
            false => self.stored_term(group, known)?,
        };
        let truncated = LogId { index: through, term };
        // Synced, because `scan` relies on at most one unsynced record.
        let written = self.commit("compaction", |out| {
            if through >= span.last {
                return self.forget(group, truncated, out);
            }
            out.add_command(group.as_u64(), Command::Compact { index: next });
            out.put(group.as_u64(), record::TRUNCATED_KEY.to_vec(), record::encode_truncated(truncated))
                .map_err(|e| LogError::Invalid { group, detail: e.to_string() })
        })?;
        if written {
            write(&self.spans).insert(group, Span { truncated, last: span.last.max(through) });
        } else {
            // Waiting here would keep purges of other files waiting.
            let mut put_off = lock(&self.put_off);
            let latest = put_off.entry(group).or_default();
            *latest = through.max(*latest);
        }
        Ok(())
    }

    /// Repeats the compactions that found no room. The fault of one group stops no other one.
    fn compact_put_off(&self) -> Result<(), LogError> {
        let groups: Vec<_> = lock(&self.put_off).keys().copied().collect();
        for group in groups {
            // Locked first: a removal of the group ends its compaction.
            let _writing = lock(&self.writing);
            let Some(through) = lock(&self.put_off).remove(&group) else { continue };
            match self.compact_locked(group, through) {
                Err(error @ (LogError::Poisoned { .. } | LogError::Io { .. })) => return Err(error),
                Err(error) => {
                    tracing::error!(%group, through, %error, "a compaction that was put off failed");
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Waits for a purge, but not while the purge waits for room: `None`.
    fn await_purge(&self, purging: JobOutcome<Purged>) -> Option<Result<Purged, String>> {
        loop {
            match purging.recv_timeout(PURGE_POLL) {
                Ok(outcome) => return Some(outcome),
                Err(RecvTimeoutError::Disconnected) => return Some(Err(gone())),
                Err(RecvTimeoutError::Timeout) if self.disk.purge_waits() => {
                    *lock(&self.purging) = Some(purging);
                    return None;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// See [`NamedGroups::hold`].
    fn held_purge(&self) -> Option<Vec<GroupId>> {
        let (files, bytes) = self.disk.append_queue();
        let free = self.disk.free_bytes(&self.dir).unwrap_or(u64::MAX);
        let free = if clears_append_queue(files, &self.config) { free } else { u64::MAX };
        let truncated = |group| self.span(group).map(|span| span.truncated.index);
        lock(&self.named).hold(free, bytes, self.reserve_bytes, truncated)
    }

    /// See [`LogStore::purge`](towline_engine::log_store::LogStore::purge).
    pub(super) fn purge_files(&self) -> Result<Vec<GroupId>, LogError> {
        self.healthy()?;
        if self.purge_lost.load(Ordering::Relaxed) {
            tracing::error!("log files are no longer removed: a purge was interrupted; restart this node");
            return Ok(Vec::new());
        }
        self.compact_put_off()?;
        let purging = lock(&self.purging).take();
        if purging.is_none()
            && let Some(groups) = self.held_purge()
        {
            return Ok(groups);
        }
        let (disk, config) = (self.disk.clone(), self.config.clone());
        let purge = move |engine: &RaftEngine| {
            let looked = clears_append_queue(disk.append_queue().0, &config);
            engine.purge_expired_files().map(|groups| (looked, groups))
        };
        let purging = purging.map_or_else(|| self.reader.begin(purge), Ok);
        let outcome = match purging.map(|purging| self.await_purge(purging)) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(Vec::new()),
            Err(gone) => Err(gone),
        };
        // The purge may have begun a file without a write to it.
        self.disk.purged();
        // The records are as after a crash in the middle of a purge. Only a later purge could remove too much.
        if let Err(panic) = &outcome
            && !self.disk.failed()
        {
            if !self.disk.lost_descriptors(panic) {
                tracing::error!(panic, "a purge of the log panicked");
            }
            self.purge_lost.store(true, Ordering::Relaxed);
            return Ok(Vec::new());
        }
        let (looked, groups) = self.judge(outcome, "purge")?;
        let groups: Vec<_> = groups.into_iter().map(GroupId::new).collect();
        if looked {
            lock(&self.named).note(&groups, |group| self.span(group).map(|s| (s.truncated.index, s.last)));
        }
        {
            // Locked, so that no unsynced write is under way.
            let _writing = lock(&self.writing);
            self.judge(Ok(self.disk.checkpoint().map_err(raft_engine::Error::Io)), "checkpoint")?;
        }
        Ok(groups)
    }
}
