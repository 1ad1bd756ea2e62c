use std::collections::VecDeque;

use towline_engine::core::{
    Apply, DiskRoom, Effects, Fetch, GroupCore, GroupLog, GroupSetup, ReplicaSetup, SnapshotSetup,
};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::ConfRecord;
use towline_engine::message::{ConfState, HardState, LogId, Message};

use super::SimOptions;
use super::disk::SimDisk;
use super::history::History;

pub(super) type SimGroup = GroupCore<u64, u64>;
pub(super) type CoreEffects = Effects<u64, u64>;

/// One node, with its durable and its volatile state.
#[derive(Default)]
pub(super) struct SimNode {
    pub(super) disk: SimDisk,
    pub(super) machine: SimMachine,
    /// The number of starts.
    pub(super) generation: u64,
    /// `None` while the node is down.
    pub(super) group: Option<Box<SimGroup>>,
    pub(super) inbox: SimInbox,
    /// When the running sync ends, and how many writes it covers.
    pub(super) syncing: Option<(u64, usize)>,
    pub(super) hold_writes: bool,
    pub(super) hold_applies: bool,
    pub(super) disk_room: DiskRoom,
}

/// Tasks of the other threads of a node; lost in a crash.
#[derive(Default)]
pub(super) struct SimInbox {
    pub(super) applies: VecDeque<Apply<u64>>,
    pub(super) fetches: Vec<Fetch>,
    pub(super) unreachable: Vec<NodeId>,
    pub(super) messages: Vec<Message>,
}

/// The state machine: a list. Its length is enough, because [`History`] checks every entry.
#[derive(Default)]
pub(super) struct SimMachine {
    pub(super) through: LogId,
    pub(super) durable: LogId,
}

impl SimNode {
    /// Drops the volatile state.
    pub(super) fn crash(&mut self) {
        self.group = None;
        self.inbox = SimInbox::default();
        self.disk.crash();
        self.syncing = None;
        self.machine.through = self.machine.durable;
    }

    /// Starts like the engine: checks the stored state, applies committed entries, creates the group.
    pub(super) fn start(
        &mut self,
        id: NodeId,
        members: &ConfState,
        options: &SimOptions,
        history: &mut History,
        rng: &mut fastrand::Rng,
    ) -> Result<(), String> {
        self.generation += 1;
        let (durable, last) = (self.machine.durable, self.disk.last_index());
        let stored = self.disk.hard_state;
        let hard_state = HardState { commit: stored.commit.max(durable.index), ..stored };
        if durable.index > last || hard_state.commit > last {
            return Err(format!(
                "node {id} restarts applied through {} and committed through {}, but its log ends at {last}",
                durable.index, hard_state.commit
            ));
        }
        if self.disk.term(durable.index) != durable.term {
            return Err(format!("node {id} applied {durable:?}, which is not in its log"));
        }
        for entry in self.disk.range(durable.index + 1, hard_state.commit + 1) {
            history.applied(id, &entry)?;
            self.machine.through = LogId { index: entry.index, term: entry.term };
        }
        let applied = self.machine.through.index;
        let (terms, tail) = (self.disk.terms(), self.disk.range(applied + 1, last + 1));
        let log = GroupLog::new(LogId::NONE, terms, last, tail, applied, options.cache_bytes_max);
        let timeout = rng.usize(options.election_ticks.clone());
        let replica = ReplicaSetup {
            node: id,
            group: GroupId::DEFAULT,
            log,
            hard_state,
            conf_state: members.clone(),
            heartbeat_ticks: options.heartbeat_ticks,
            // A range of one value, because the raft crate draws from a source without a seed.
            election_ticks: timeout..timeout + 1,
            election_ticks_min: options.election_ticks.start,
            append_bytes_max: options.append_bytes_max,
            append_inflight_max: options.append_inflight_max,
            commit_broadcast: true,
            uncommitted_bytes_max: options.unapplied_bytes_max as u64,
            committed_bytes_max: options.committed_bytes_max,
        };
        let quiet = options.quiet_after_restart && self.generation > 1;
        let mut origin = [0; 16];
        let name = id.as_u64().to_be_bytes().into_iter().chain(self.generation.to_be_bytes());
        origin.iter_mut().zip(name).for_each(|(place, byte)| *place = byte);
        let setup = GroupSetup {
            replica,
            origin,
            quiet_ticks: if quiet { options.election_ticks.start as u64 } else { 0 },
            read_timeout_ticks: options.read_timeout_ticks,
            read_retry_ticks: options.heartbeat_ticks as u64,
            unapplied_bytes_max: options.unapplied_bytes_max,
            stall: options.stall,
            founding_memory_ticks: 80,
            conf: ConfRecord { conf_state: members.clone(), ..ConfRecord::default() },
            snapshots: SnapshotSetup::default(),
        };
        let mut group = GroupCore::new(setup)?;
        group.set_disk_room(self.disk_room);
        self.group = Some(Box::new(group));
        Ok(())
    }

    /// Runs the oldest `count` tasks of the state machine and answers their waiters.
    pub(super) fn apply(&mut self, id: NodeId, count: usize, history: &mut History) -> Result<(), String> {
        for task in self.inbox.applies.drain(..count.min(self.inbox.applies.len())) {
            match task {
                Apply::Entries { entries, waiters, through } => {
                    let mut waiters = waiters.into_iter();
                    for entry in &entries {
                        if entry.index != self.machine.through.index + 1 {
                            return Err(format!(
                                "node {id} applies {} after {}",
                                entry.index, self.machine.through.index
                            ));
                        }
                        history.applied(id, entry)?;
                        self.machine.through = LogId { index: entry.index, term: entry.term };
                        if !entry.data.is_empty()
                            && let Some(command) = waiters.next().flatten()
                        {
                            history.acked(command, entry.index)?;
                        }
                    }
                    if self.machine.through != through {
                        return Err(format!("node {id} applied another log position than {through:?}"));
                    }
                }
                Apply::Restore(_) | Apply::Snapshot { .. } => {
                    return Err("this simulator makes no snapshots".into());
                }
            }
        }
        Ok(())
    }
}
