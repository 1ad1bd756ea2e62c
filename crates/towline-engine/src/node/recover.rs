//! From what is stored to a group that can run. Blocking.

use super::StartError;
use super::snapshots::policy;
use super::target::{Cause, Target, restore};
use crate::config::ValidConfig;
use crate::core::{GroupCore, GroupLog, GroupSetup, ReplicaSetup, SnapshotSetup};
use crate::ids::{GroupId, NodeId};
use crate::log_store::{ConfRecord, LogReadError, LogStore, Recovered};
use crate::message::{Entry, EntryKind, HardState, LogId};
use crate::snapshot_store::{SnapshotMeta, SnapshotStore};

/// Payload bytes read at once while the log is read at start.
const READ_BYTES_MAX: usize = 4 << 20;

/// What a start has to know.
pub(crate) struct Recovery<'a> {
    pub(crate) store: &'a dyn LogStore,
    pub(crate) snapshots: &'a dyn SnapshotStore,
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    pub(crate) config: &'a ValidConfig,
    /// Ticks without a vote: zero for a group that was just bootstrapped.
    pub(crate) quiet_ticks: u64,
    pub(crate) origin: [u8; 16],
}

/// A group that can run.
pub(crate) struct Start<W, R> {
    pub(crate) group: GroupCore<W, R>,
    pub(crate) conf: ConfRecord,
    /// A snapshot that was being installed is installed now: to be recorded before the group runs.
    pub(crate) installed: bool,
}

impl Recovery<'_> {
    /// Brings the state machine up to the commit index that is stored, and makes the group.
    ///
    /// # Errors
    /// [`StartError`] if nothing is stored, or what is stored does not fit together or to the state machine.
    pub(crate) fn run<W, R>(&self, target: &mut dyn Target) -> Result<Start<W, R>, StartError> {
        let group = self.group;
        let recovered = self.store.recover(group).map_err(|error| StartError::log(group, error))?;
        let conf = recovered.conf.clone().ok_or(StartError::NothingStored { group })?;
        let durable = self.restore(&recovered, target)?;
        let hard_state = self.check(&recovered, &conf, durable)?;
        let applied = self.replay(target, durable, hard_state.commit, conf.index)?;
        let tail = self.read(applied.index + 1, recovered.last_index + 1)?;
        let terms = self.terms(recovered.truncated.index + 1, recovered.last_index)?;
        let config = self.config;
        let cache_bytes = config.log_cache_bytes_max.as_usize();
        let ticks = |time| config.ticks(time) as usize;
        let log =
            GroupLog::new(recovered.truncated, terms, recovered.last_index, tail, applied.index, cache_bytes);
        let replica = ReplicaSetup {
            node: self.node,
            group,
            log,
            hard_state,
            conf_state: conf.conf_state.clone(),
            heartbeat_ticks: ticks(config.heartbeat_interval),
            election_ticks: ticks(config.election_timeout_min)..ticks(config.election_timeout_max),
            election_ticks_min: ticks(config.election_timeout_min),
            append_bytes_max: config.append_bytes_max.as_u64(),
            append_inflight_max: config.append_inflight_max,
            commit_broadcast: config.commit_broadcast,
            uncommitted_bytes_max: config.unapplied_bytes_max.as_u64(),
            committed_bytes_max: config.committed_bytes_max.as_u64(),
        };
        let setup = GroupSetup {
            replica,
            origin: self.origin,
            quiet_ticks: self.quiet_ticks,
            read_timeout_ticks: config.ticks(config.read_timeout),
            read_retry_ticks: config.ticks(config.heartbeat_interval),
            unapplied_bytes_max: config.unapplied_bytes_max.as_usize(),
            conf: conf.clone(),
            snapshots: SnapshotSetup {
                available: self.available(&recovered),
                policy: policy(config),
                seed: fastrand::u64(..),
            },
        };
        let group = GroupCore::new(setup).map_err(|cause| self.mismatch(cause))?;
        Ok(Start { group, conf, installed: recovered.installing.is_some() })
    }

    /// What may be sent to others. If that cannot be found out it is as good as none: the next one takes its place.
    fn available(&self, stored: &Recovered) -> Option<SnapshotMeta> {
        let newest = self.newest(stored);
        newest.inspect_err(|error| tracing::warn!(group = %self.group, %error, "no snapshot")).unwrap_or(None)
    }

    /// The newest snapshot that the log vouches for. The others are of no use here and go with the next removal.
    fn newest(&self, stored: &Recovered) -> Result<Option<SnapshotMeta>, StartError> {
        let complete = self.snapshots.complete(self.group);
        for meta in complete.map_err(|source| StartError::Snapshots { group: self.group, source })? {
            if self.vouched_for(stored, meta.head.at)? {
                return Ok(Some(meta));
            }
            let (index, content) = (meta.head.at.index, meta.content);
            tracing::info!(group = %self.group, index, %content, "a snapshot file does not go with the log");
        }
        Ok(None)
    }

    /// Whether the log has this very entry, or begins right after it. What a snapshot covers was committed, so then it is
    /// of the history that the log goes on with. A file that was received and not installed need not be: it may lie
    /// beyond the end of the log, or beside a tail that was never committed.
    fn vouched_for(&self, stored: &Recovered, at: LogId) -> Result<bool, StartError> {
        if !(stored.truncated.index..=stored.last_index).contains(&at.index) {
            return Ok(false);
        }
        let term = self.store.term(self.group, at.index).map_err(|error| self.unread(error))?;
        Ok(term == at.term)
    }

    /// Restores a state machine that the log cannot go on from, and says where it stands then. Such a machine is behind
    /// the first entry of the log (its installation was interrupted, it is volatile, or its files were lost), or it is of
    /// another history.
    fn restore(&self, stored: &Recovered, target: &mut dyn Target) -> Result<LogId, StartError> {
        let durable = target.durable().map_err(|source| self.failed(source))?;
        let truncated = stored.truncated;
        let Some(why) = self.disagreement(stored, durable)? else { return Ok(durable) };
        let meta = self.newest(stored)?.ok_or_else(|| {
            let remedy = match truncated.index {
                0 => "remove the files of the state machine: the log is whole and is applied again",
                _ => "replace this node by one with an empty directory",
            };
            self.mismatch(format!("{why}, and there is no snapshot to restore; {remedy}"))
        })?;
        if durable.index >= truncated.index {
            let (group, snapshot) = (self.group, meta.head.at.index);
            tracing::warn!(%group, why, snapshot, "the state machine does not go with the log and is restored");
        }
        restore(self.snapshots, target, &meta).map_err(|source| self.failed(source))?;
        Ok(meta.head.at)
    }

    /// Why the log cannot go on from where the state machine is, if a snapshot can help.
    ///
    /// It cannot help a machine that is past what the log knows as committed. Then the log may have lost entries that
    /// this node acknowledged, and the votes with them: [`check`](Self::check) refuses.
    fn disagreement(&self, stored: &Recovered, durable: LogId) -> Result<Option<String>, StartError> {
        let truncated = stored.truncated;
        if durable.index < truncated.index {
            let (at, begins) = (durable.index, truncated.index);
            return Ok(Some(format!("the state machine is at {at}, the log begins after {begins}")));
        }
        let committed = stored.hard_state.unwrap_or_default().commit.max(truncated.index);
        if durable.index == 0 || durable.index > committed.min(stored.last_index) {
            return Ok(None);
        }
        let term = self.store.term(self.group, durable.index).map_err(|error| self.unread(error))?;
        Ok((term != durable.term).then(|| other_history(durable, term)))
    }

    /// Everything raft would panic on later, or that would lose acknowledged commands without a word.
    fn check(&self, stored: &Recovered, conf: &ConfRecord, durable: LogId) -> Result<HardState, StartError> {
        let mut hard_state = stored.hard_state.unwrap_or_default();
        // What is applied was committed; the commit index is only written along with other things.
        hard_state.commit = hard_state.commit.max(durable.index).max(stored.truncated.index);
        let last = stored.last_index;
        if durable.index > last {
            return Err(self.mismatch(format!(
                "the state machine is at {}, past the end of the log, {last}: entries that this node acknowledged are lost; \
                 replace this node by one with an empty directory",
                durable.index
            )));
        }
        if hard_state.commit > last {
            return Err(self
                .mismatch(format!("entry {} is committed, but the log ends at {last}", hard_state.commit)));
        }
        if durable.index < stored.truncated.index {
            return Err(self.mismatch(format!(
                "the state machine is at {}, but the log begins after {}",
                durable.index, stored.truncated.index
            )));
        }
        if durable.index > 0 {
            let term = self.store.term(self.group, durable.index).map_err(|error| self.unread(error))?;
            if term != durable.term {
                return Err(self.mismatch(other_history(durable, term)));
            }
        }
        if !conf.conf_state.contains(self.node) {
            return Err(self.mismatch(format!("node {} is no member", self.node)));
        }
        Ok(hard_state)
    }

    /// Applies what is known to be committed, in pieces, so that it need not be in memory at once. Stops before a change
    /// of membership that is not stored yet: that one goes through raft.
    fn replay(
        &self,
        target: &mut dyn Target,
        from: LogId,
        commit: u64,
        conf_index: u64,
    ) -> Result<LogId, StartError> {
        let mut at = from;
        while at.index < commit {
            let mut entries = Vec::new();
            self.store
                .entries(self.group, at.index + 1..commit + 1, READ_BYTES_MAX, &mut entries)
                .map_err(|error| self.unread(error))?;
            let open = entries.iter().position(|e| e.kind != EntryKind::Normal && e.index > conf_index);
            entries.truncate(open.unwrap_or(entries.len()));
            let Some(last) = entries.last() else { break };
            let through = LogId { index: last.index, term: last.term };
            target.apply(&entries, Vec::new(), through).map_err(|source| self.failed(source))?;
            at = through;
            if open.is_some() {
                break;
            }
        }
        Ok(at)
    }

    fn read(&self, low: u64, high: u64) -> Result<Vec<Entry>, StartError> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let next = entries.last().map_or(low, |e| e.index + 1);
            if next >= high {
                return Ok(entries);
            }
            let before = entries.len();
            self.store
                .entries(self.group, next..high, READ_BYTES_MAX, &mut entries)
                .map_err(|error| self.unread(error))?;
            if entries.len() == before {
                return Err(self.mismatch(format!("entry {next} is missing")));
            }
        }
    }

    /// The terms of the log as runs. Terms only rise, so the end of a run is found by halving.
    fn terms(&self, first: u64, last: u64) -> Result<Vec<(u64, u64)>, StartError> {
        let term = |index| self.store.term(self.group, index).map_err(|error| self.unread(error));
        let (mut runs, mut start) = (Vec::new(), first);
        while start <= last {
            let of_run = term(start)?;
            let (mut in_run, mut after) = (start, last + 1);
            while after - in_run > 1 {
                let middle = in_run + (after - in_run) / 2;
                if term(middle)? == of_run { in_run = middle } else { after = middle }
            }
            runs.push((start, of_run));
            start = after;
        }
        Ok(runs)
    }

    fn mismatch(&self, detail: String) -> StartError {
        StartError::Mismatch { group: self.group, detail }
    }

    fn unread(&self, error: LogReadError) -> StartError {
        StartError::log(self.group, error)
    }

    fn failed(&self, source: Cause) -> StartError {
        StartError::StateMachine { group: self.group, source }
    }
}

fn other_history(durable: LogId, term: u64) -> String {
    format!(
        "the state machine is at entry {} of term {}, but the log has term {term} there: they are of different histories",
        durable.index, durable.term
    )
}
