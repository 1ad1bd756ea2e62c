//! Recovers a group from the stores. Blocks.

use super::apply::{AnyMachine, MachineFailure, restore};
use super::inbox::ShardGroup;
use super::snapshots::policy;
use super::{NodeInner, StartError};
use crate::core::{GroupCore, GroupLog, GroupSetup, ReplicaSetup, SnapshotSetup, StallPolicy};
use crate::ids::GroupId;
use crate::log_store::{ConfRecord, LogReadError, Recovered};
use crate::message::{Entry, EntryKind, HardState, LogId};
use crate::snapshot_store::SnapshotMeta;

/// The remedy where files are missing. An empty directory does not help: peers would refuse its new incarnation.
const UNRECOVERABLE: &str = "put the missing files back, but no older copy of them; if they are lost, keep this node \
                             stopped, because this version cannot replace a member";

/// Payload bytes of one read of the log.
const READ_BYTES_MAX: usize = 4 << 20;

/// The inputs of a recovery.
pub(crate) struct Recovery<'a> {
    pub(super) node: &'a NodeInner,
    pub(crate) group: GroupId,
    /// Ticks in which the group gives no vote. Zero for a group that was just bootstrapped.
    pub(crate) quiet_ticks: u64,
    pub(crate) origin: [u8; 16],
}

/// A group that can run.
pub(crate) struct RecoveredGroup {
    pub(crate) group: ShardGroup,
    pub(crate) conf: ConfRecord,
    /// Whether an interrupted install was completed. The log must record this before the group runs.
    pub(crate) installed: bool,
}

impl Recovery<'_> {
    /// Brings the state machine up to the stored commit index, and makes the group.
    ///
    /// # Errors
    /// [`StartError`] if nothing is stored, or if log, snapshots and state machine do not match.
    pub(crate) fn run(&self, machine: &mut dyn AnyMachine) -> Result<RecoveredGroup, StartError> {
        let group = self.group;
        let recovered = self.node.store.recover(group).map_err(|error| StartError::log(group, error))?;
        let conf = recovered.conf.clone().ok_or(StartError::NothingStored { group })?;
        let durable = self.restore(&recovered, machine)?;
        let hard_state = self.check(&recovered, &conf, durable)?;
        let applied = self.replay(machine, durable, hard_state.commit, conf.index)?;
        let tail = self.read(applied.index + 1, recovered.last_index + 1)?;
        let terms = self.terms(recovered.truncated.index + 1, recovered.last_index)?;
        let config = &self.node.config;
        let cache_bytes = config.log_cache_bytes_max.as_usize();
        let ticks = |time| config.ticks(time) as usize;
        let log =
            GroupLog::new(recovered.truncated, terms, recovered.last_index, tail, applied.index, cache_bytes);
        let replica = ReplicaSetup {
            node: self.node.id,
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
            // Longer than the waits between two attempts to reach it, or two campaigns.
            founding_memory_ticks: 4 * config.ticks(config.election_timeout_max),
            stall: StallPolicy {
                log_ticks: config.ticks(config.log_stall_timeout()),
                apply_ticks: config.ticks(config.apply_stall_timeout.max(config.election_timeout_max)),
            },
            conf: conf.clone(),
            snapshots: SnapshotSetup {
                available: self.available(&recovered),
                policy: policy(config),
                seed: fastrand::u64(..),
            },
        };
        let group = GroupCore::new(setup).map_err(|cause| self.mismatch(cause))?;
        Ok(RecoveredGroup { group, conf, installed: recovered.installing.is_some() })
    }

    /// The snapshot that may be sent to peers. A failed lookup counts as none: the next snapshot replaces it.
    fn available(&self, stored: &Recovered) -> Option<SnapshotMeta> {
        let newest = self.newest(stored);
        newest.inspect_err(|error| tracing::warn!(group = %self.group, %error, "no snapshot")).unwrap_or(None)
    }

    /// The newest snapshot that matches the log. The next removal takes the others.
    fn newest(&self, stored: &Recovered) -> Result<Option<SnapshotMeta>, StartError> {
        let complete = self.node.snapshots.complete(self.group);
        for meta in complete.map_err(|source| StartError::Snapshots { group: self.group, source })? {
            if self.matches_log(stored, meta.head.at)? {
                return Ok(Some(meta));
            }
            let (index, content) = (meta.head.at.index, meta.content);
            tracing::info!(group = %self.group, index, %content, "a snapshot file does not match the log");
        }
        Ok(None)
    }

    /// Whether the log has the entry at `at`, or begins right after it. A snapshot covers committed entries, so it then
    /// has the same history as the log. A file that was received and not installed may lie beyond the end of the log, or
    /// beside an uncommitted tail.
    fn matches_log(&self, stored: &Recovered, at: LogId) -> Result<bool, StartError> {
        if !(stored.truncated.index..=stored.last_index).contains(&at.index) {
            return Ok(false);
        }
        let term = self.node.store.term(self.group, at.index).map_err(|error| self.unread(error))?;
        Ok(term == at.term)
    }

    /// Restores a state machine that the log cannot continue, and returns its durable position. There are two cases:
    /// * The machine is behind the first entry of the log: an install was interrupted, the machine is volatile, or its files
    ///   were lost.
    /// * The machine has another history.
    fn restore(&self, stored: &Recovered, machine: &mut dyn AnyMachine) -> Result<LogId, StartError> {
        let durable = machine.durable().map_err(|source| self.failed(source))?;
        let truncated = stored.truncated;
        let Some(why) = self.disagreement(stored, durable)? else { return Ok(durable) };
        let meta = self.newest(stored)?.ok_or_else(|| {
            let remedy = match truncated.index {
                0 => "remove the files of the state machine: the log is whole and is applied again",
                _ => UNRECOVERABLE,
            };
            self.mismatch(format!("{why}, and there is no snapshot to restore; {remedy}"))
        })?;
        if durable.index >= truncated.index {
            let (group, snapshot) = (self.group, meta.head.at.index);
            tracing::warn!(%group, why, snapshot, "the state machine does not match the log and is restored");
        }
        restore(&*self.node.snapshots, machine, &meta).map_err(|source| self.failed(source))?;
        Ok(meta.head.at)
    }

    /// Why the log cannot continue the state machine, if a snapshot can help.
    ///
    /// It cannot help a machine that is past the stored commit index: the log may have lost acknowledged entries and
    /// votes. [`check`](Self::check) refuses that start.
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
        let term = self.node.store.term(self.group, durable.index).map_err(|error| self.unread(error))?;
        Ok((term != durable.term).then(|| other_history(durable, term)))
    }

    /// Refuses what raft would panic on later, and what would silently lose acknowledged commands.
    fn check(&self, stored: &Recovered, conf: &ConfRecord, durable: LogId) -> Result<HardState, StartError> {
        let mut hard_state = stored.hard_state.unwrap_or_default();
        // Applied entries were committed; the stored commit index lags behind.
        hard_state.commit = hard_state.commit.max(durable.index).max(stored.truncated.index);
        let last = stored.last_index;
        if durable.index > last {
            return Err(self.mismatch(format!(
                "the state machine is at {}, past the end of the log, {last}: entries that this node acknowledged are lost; \
                 {UNRECOVERABLE}",
                durable.index
            )));
        }
        if hard_state.commit > last {
            return Err(self
                .mismatch(format!("entry {} is committed, but the log ends at {last}", hard_state.commit)));
        }
        if durable.index > 0 {
            let term = self.node.store.term(self.group, durable.index).map_err(|error| self.unread(error))?;
            if term != durable.term {
                return Err(self.mismatch(other_history(durable, term)));
            }
        }
        if !conf.conf_state.contains(self.node.id) {
            return Err(self.mismatch(format!("node {} is no member", self.node.id)));
        }
        Ok(hard_state)
    }

    /// Applies the committed entries, in pieces that fit in memory. Stops before a membership change that is not stored
    /// yet: that one goes through raft.
    fn replay(
        &self,
        machine: &mut dyn AnyMachine,
        from: LogId,
        commit: u64,
        conf_index: u64,
    ) -> Result<LogId, StartError> {
        let mut at = from;
        while at.index < commit {
            let mut entries = Vec::new();
            self.node
                .store
                .entries(self.group, at.index + 1..commit + 1, READ_BYTES_MAX, &mut entries)
                .map_err(|error| self.unread(error))?;
            let open = entries.iter().position(|e| e.kind != EntryKind::Normal && e.index > conf_index);
            entries.truncate(open.unwrap_or(entries.len()));
            let Some(last) = entries.last() else { break };
            let through = LogId { index: last.index, term: last.term };
            machine.apply(&entries, Vec::new(), through).map_err(|source| self.failed(source))?;
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
            self.node
                .store
                .entries(self.group, next..high, READ_BYTES_MAX, &mut entries)
                .map_err(|error| self.unread(error))?;
            if entries.len() == before {
                return Err(self.mismatch(format!("entry {next} is missing")));
            }
        }
    }

    /// The terms of the log as runs. Terms never decrease, so a binary search finds the end of a run.
    fn terms(&self, first: u64, last: u64) -> Result<Vec<(u64, u64)>, StartError> {
        let term = |index| self.node.store.term(self.group, index).map_err(|error| self.unread(error));
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

    fn failed(&self, source: MachineFailure) -> StartError {
        StartError::StateMachine { group: self.group, source }
    }
}

fn other_history(durable: LogId, term: u64) -> String {
    format!(
        "the state machine is at entry {} of term {}, but the log has term {term} there: they are of different histories",
        durable.index, durable.term
    )
}
