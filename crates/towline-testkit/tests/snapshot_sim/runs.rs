//! How nodes start, crash and shut down.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use towline_engine::core::{
    GroupCore, GroupLog, GroupSetup, ReplicaSetup, RetryPolicy, SnapshotPolicy, SnapshotSetup, StallPolicy,
};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::ConfRecord;
use towline_engine::message::{HardState, LogId};
use towline_engine::reporter::Mailbox;

use super::reports::LossyReporter;
use super::{Arrow, Faults, HEARTBEAT, SnapshotSim, Up, note_applied};

/// Steps of an orderly shutdown, at whose start a leader transfers its leadership.
const SHUTDOWN_STEPS: usize = 40;

impl SnapshotSim {
    /// Starts as the engine does: finishes an install, restores a state machine behind the log, and applies the rest.
    pub(crate) fn start(&mut self, id: NodeId) {
        self.runs += 1;
        let run = self.runs;
        let node = self.nodes.get_mut(&id).unwrap();
        let disk = &mut node.disk;
        let available = disk.available();
        if self.volatile {
            disk.machine = LogId::NONE;
        }
        if disk.machine.index < disk.truncated.index {
            let file = available.as_ref().unwrap_or_else(|| panic!("node {id} lost its state"));
            disk.machine = file.head.at;
        }
        disk.installing = None;
        let commit = disk.hard_state.commit.max(disk.machine.index).max(disk.truncated.index);
        assert!(commit <= disk.last_index(), "node {id}: {commit} past {}", disk.last_index());
        for entry in disk.range(disk.machine.index + 1, commit + 1) {
            note_applied(&mut self.log, &entry);
            disk.machine = LogId { index: entry.index, term: entry.term };
        }
        let applied = disk.machine.index;
        let log = GroupLog::new(
            disk.truncated,
            disk.terms(),
            disk.last_index(),
            disk.range(applied + 1, disk.last_index() + 1),
            applied,
            4 << 10,
        );
        let hard_state = HardState { commit, ..disk.hard_state };
        let timeout = self.rng.usize(10..20);
        let snapshots = SnapshotSetup { available, policy: self.policy(), seed: self.seed ^ run };
        let mut origin = [0; 16];
        origin[..8].copy_from_slice(&run.to_be_bytes());
        let group = GroupCore::new(GroupSetup {
            replica: ReplicaSetup {
                node: id,
                group: GroupId::DEFAULT,
                log,
                hard_state,
                conf_state: self.conf.clone(),
                heartbeat_ticks: HEARTBEAT,
                election_ticks: timeout..timeout + 1,
                election_ticks_min: 10,
                append_bytes_max: 1 << 10,
                append_inflight_max: 8,
                commit_broadcast: true,
                uncommitted_bytes_max: 64 << 10,
                committed_bytes_max: 4 << 10,
            },
            origin,
            quiet_ticks: if run > self.nodes.len() as u64 { 10 } else { 0 },
            read_timeout_ticks: 60,
            read_retry_ticks: HEARTBEAT as u64,
            stall: StallPolicy { log_ticks: 10, apply_ticks: 50 },
            unapplied_bytes_max: 64 << 10,
            founding_memory_ticks: 80,
            conf: ConfRecord { conf_state: self.conf.clone(), ..ConfRecord::default() },
            snapshots,
        });
        let group = group.unwrap_or_else(|error| panic!("node {id} does not start: {error}"));
        let mailbox = Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(())));
        let Faults { sabotage, lose_reports, .. } = self.faults;
        let reporter = Arc::new(LossyReporter::new(mailbox.clone(), sabotage, lose_reports, self.seed ^ run));
        let (writes, applies) = (VecDeque::new(), VecDeque::new());
        let up = Up { group, mailbox, reporter, run, writes, applies };
        self.nodes.get_mut(&id).unwrap().up = Some(up);
    }

    fn policy(&self) -> SnapshotPolicy {
        SnapshotPolicy {
            every_entries: 8,
            every_bytes: u64::MAX,
            trailing_entries: 2,
            trailing_bytes: u64::MAX,
            // The limit on pins would also end an attempt with a leaked ticket.
            pin_bytes_max: if self.faults.watchdog { 8 << 10 } else { u64::MAX },
            retry: RetryPolicy { wait_ticks_min: HEARTBEAT as u64, wait_ticks_max: 40 },
        }
    }

    pub(crate) fn crash(&mut self, id: NodeId) {
        let Some(up) = self.nodes.get_mut(&id).unwrap().up.take() else { return };
        self.crashes += 1;
        self.run_ended(id, up);
    }

    pub(super) fn crash_at(&mut self, id: NodeId, arrow: Arrow) {
        *self.arrows.entry(arrow).or_default() += 1;
        self.crash(id);
    }

    /// Drops the transfers and messages of a node.
    fn run_ended(&mut self, id: NodeId, up: Up) {
        self.reports.run_ended((id, up.run));
        self.transfers.retain(|t| t.key.0 != id);
        self.messages.retain(|m| m.to != id);
        let mut late = Vec::new();
        up.mailbox.drain(&mut late);
        self.leaving.take_if(|(leaving, _)| *leaving == id);
    }

    /// Begins an orderly shutdown, as [`Node::shutdown`](towline_engine::node::Node::shutdown) does: a leader transfers leadership.
    pub(super) fn begin_shutdown(&mut self, id: NodeId) {
        if self.leaving.is_some() || self.nodes[&id].up.is_none() {
            return;
        }
        self.leaving = Some((id, SHUTDOWN_STEPS));
        let successor = self.conf.voters.iter().copied().find(|&voter| voter != id);
        self.with(id, |group, _| successor.map(|successor| group.transfer(successor)));
    }

    /// Advances the shutdown and closes the node at its last step.
    pub(super) fn go_on_with_shutdown(&mut self) {
        let Some((id, left)) = &mut self.leaving else { return };
        let id = *id;
        *left -= 1;
        if *left == 0 {
            self.close(id);
        }
    }

    /// Closes the group between two polls, as the shard does. Pending writes are completed.
    pub(super) fn close(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(mut up) = node.up.take() else { return };
        for attempt in up.group.live_attempts() {
            up.mailbox.disarm(attempt.group, attempt.peer);
        }
        up.writes.drain(..).for_each(|(_, write)| node.disk.write(write));
        if let Some(hard_state) = up.group.unwritten_hard_state() {
            node.disk.hard_state = hard_state;
        }
        up.mailbox.close();
        self.shutdowns += 1;
        self.run_ended(id, up);
    }
}
