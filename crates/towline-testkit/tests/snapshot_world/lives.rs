//! How nodes start, and how their lives end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use towline_engine::core::{
    GroupCore, GroupLog, GroupSetup, ReplicaSetup, RetryPolicy, SnapshotPolicy, SnapshotSetup,
};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::ConfRecord;
use towline_engine::message::{HardState, LogId};
use towline_engine::reporter::Mailbox;

use super::books::Lossy;
use super::{Arrow, Faults, HEARTBEAT, Up, World, note_applied};

/// Steps between the beginning of an orderly shutdown, with which a leader hands over, and its end.
const SHUTDOWN_STEPS: usize = 40;

impl World {
    /// Starts as the engine does: finishes an install, restores a machine behind the log, replays the rest.
    pub(super) fn start(&mut self, id: NodeId) {
        self.lives += 1;
        let life = self.lives;
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
        let snapshots = SnapshotSetup { available, policy: self.policy(), seed: self.seed ^ life };
        let mut origin = [0; 16];
        origin[..8].copy_from_slice(&life.to_be_bytes());
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
            quiet_ticks: if life > self.nodes.len() as u64 { 10 } else { 0 },
            read_timeout_ticks: 60,
            read_retry_ticks: HEARTBEAT as u64,
            unapplied_bytes_max: 64 << 10,
            conf: ConfRecord { conf_state: self.conf.clone(), ..ConfRecord::default() },
            snapshots,
        });
        let group = group.unwrap_or_else(|error| panic!("node {id} does not start: {error}"));
        let mailbox = Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(())));
        let Faults { plant, lose_reports, .. } = self.faults;
        let reporter = Arc::new(Lossy::new(mailbox.clone(), plant, lose_reports, self.seed ^ life));
        let (writes, applies) = (VecDeque::new(), VecDeque::new());
        let up = Up { group, mailbox, reporter, life, writes, applies };
        self.nodes.get_mut(&id).unwrap().up = Some(up);
    }

    fn policy(&self) -> SnapshotPolicy {
        SnapshotPolicy {
            every_entries: 8,
            every_bytes: u64::MAX,
            trailing_entries: 2,
            // The limit on pins would find a leaked ticket too, as soon as the log has grown enough.
            pin_bytes_max: if self.faults.watchdog { 8 << 10 } else { u64::MAX },
            retry: RetryPolicy { wait_ticks_min: HEARTBEAT as u64, wait_ticks_max: 40 },
        }
    }

    pub(super) fn crash(&mut self, id: NodeId) {
        let Some(up) = self.nodes.get_mut(&id).unwrap().up.take() else { return };
        self.crashes += 1;
        self.life_is_over(id, up);
    }

    pub(super) fn crash_at(&mut self, id: NodeId, arrow: Arrow) {
        *self.arrows.entry(arrow).or_default() += 1;
        self.crash(id);
    }

    /// What it sends dies with it; what it receives dies on its way.
    fn life_is_over(&mut self, id: NodeId, up: Up) {
        self.books.life_is_over((id, up.life));
        self.transfers.retain(|t| t.key.0 != id);
        self.messages.retain(|m| m.to != id);
        let mut late = Vec::new();
        up.mailbox.drain(&mut late);
        self.leaving.take_if(|(leaving, _)| *leaving == id);
    }

    /// Begins an orderly shutdown, as [`Node::shutdown`](towline_engine::node::Node::shutdown) does it: a leader hands over.
    pub(super) fn begin_shutdown(&mut self, id: NodeId) {
        if self.leaving.is_some() || self.nodes[&id].up.is_none() {
            return;
        }
        self.leaving = Some((id, SHUTDOWN_STEPS));
        let successor = self.conf.voters.iter().copied().find(|&voter| voter != id);
        self.with(id, |group, _| successor.map(|successor| group.transfer(successor)));
    }

    /// Ends one when its time has come. Everything ordered by then is written, and nothing else happens.
    pub(super) fn go_on_with_shutdown(&mut self) {
        let Some((id, left)) = &mut self.leaving else { return };
        let id = *id;
        *left -= 1;
        if *left == 0 {
            self.close(id);
        }
    }

    /// As the shard closes a group: between two polls.
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
        self.life_is_over(id, up);
    }
}
