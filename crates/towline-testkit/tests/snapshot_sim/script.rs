//! Simulators whose only faults are scripted.

use std::time::Duration;

use towline_engine::explain::Wait;
use towline_engine::ids::NodeId;
use towline_engine::message::Message;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{GroupStatus, PeerStatus};

use super::{Faults, LEARNER, Sabotage, SnapshotSim, Up};

/// The scripted faults.
#[derive(Default)]
pub(crate) struct Script {
    /// Which messages are lost.
    pub(crate) lost: Option<fn(&Message) -> bool>,
    /// Transfers stand still.
    pub(crate) held: bool,
    /// The number of answers of receivers to lose.
    pub(crate) lose_answers: usize,
    /// The number of offers to report as finished although nothing moved.
    pub(crate) lie: usize,
    /// The number of transfers to break midway.
    pub(crate) break_midway: usize,
    /// Receivers refuse a snapshot that they have.
    pub(crate) have_is_failure: bool,
    /// Receivers take only snapshots in which they are voters.
    pub(crate) voters_alone: bool,
    /// State machines do not begin to restore a snapshot.
    pub(crate) restores_hang: bool,
    /// The next receiver of a snapshot is closed in the turn that takes it.
    pub(crate) close_as_it_receives: bool,
}

impl SnapshotSim {
    /// Three nodes with a follower that is down and needs a snapshot. Returns the leader and the follower.
    pub(crate) fn left_behind(sabotage: Sabotage, watchdog: bool) -> (Self, NodeId, NodeId) {
        let sim = Self::new(0, Faults { watchdog, sabotage, ..Faults::snapshots_only() }.healed());
        sim.leave_behind(|id, leader| id != leader)
    }

    /// The same with node 4: a learner for seed 1, a voter of the outgoing half of a joint configuration for seed 2.
    pub(crate) fn fourth_left_behind(seed: u64) -> (Self, NodeId, NodeId) {
        let sim = Self::new(seed, Faults::snapshots_only().healed());
        sim.leave_behind(|id, _| id.as_u64() == LEARNER)
    }

    fn leave_behind(mut self, whom: impl Fn(NodeId, NodeId) -> bool) -> (Self, NodeId, NodeId) {
        let sim = &mut self;
        sim.ticks(60);
        let leader = sim.leader().expect("a leader");
        let behind = sim.ids().into_iter().find(|&id| whom(id, leader)).unwrap();
        assert_ne!(behind, leader);
        sim.crash(behind);
        sim.load(40);
        let status = sim.status(leader);
        assert!(sim.peer(leader, behind).matched + 1 < status.first_index, "{status:?}");
        (self, leader, behind)
    }

    /// Three nodes, one of which led alone. Its last two entries are uncommitted, and the others compacted their logs past them.
    /// Returns that node, connected again.
    pub(crate) fn diverged() -> (Self, NodeId) {
        let mut sim = Self::new(0, Faults::snapshots_only().healed());
        sim.ticks(60);
        let alone = sim.leader().expect("a leader");
        sim.load(3);
        for other in sim.ids() {
            sim.cut.extend([(alone, other), (other, alone)]);
        }
        sim.load(2);
        sim.ticks(80);
        let leader = sim.leader().expect("another leader");
        assert_ne!(leader, alone);
        sim.load(40);
        let tail = sim.nodes[&alone].disk.last_index();
        let status = sim.status(leader);
        assert!(sim.status(alone).state.commit + 2 <= tail && tail < status.first_index, "{status:?}");
        sim.cut.clear();
        (sim, alone)
    }

    /// Whether the state machine of a node is about to restore a snapshot.
    pub(crate) fn is_installing(&self, id: NodeId) -> bool {
        self.nodes[&id].up.as_ref().is_some_and(Up::restores)
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.nodes[&id].up.is_some()
    }

    /// Runs `count` ticks, and delivers all messages between them.
    pub(crate) fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.ids().into_iter().for_each(|id| self.turn_with(id, true));
            self.settle();
        }
    }

    /// Proposes `count` commands, each applied by all running nodes.
    pub(crate) fn load(&mut self, count: usize) {
        for _ in 0..count {
            self.propose();
            self.settle();
        }
    }

    pub(crate) fn force_compaction(&mut self, id: NodeId) {
        self.with(id, |group, _| group.force_compaction());
    }

    pub(crate) fn status(&self, id: NodeId) -> GroupStatus {
        self.nodes[&id].up.as_ref().expect("it is up").group.status()
    }

    /// What the group of a node waits for; nothing if the node is down.
    pub(crate) fn explain(&self, id: NodeId) -> Vec<Wait> {
        let up = self.nodes[&id].up.as_ref();
        up.map(|up| up.group.explain(Duration::from_millis(1))).unwrap_or_default()
    }

    pub(crate) fn peer(&self, leader: NodeId, id: NodeId) -> PeerStatus {
        self.status(leader).peers.into_iter().find(|peer| peer.id == id).expect("a member")
    }

    pub(crate) fn is_level(&self, id: NodeId) -> bool {
        self.nodes[&id].disk.machine.index == self.log.len() as u64
    }

    /// Reports the held transfer as failed for its pin, runs `meanwhile`, and completes the transfer.
    pub(crate) fn lose_the_pin(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        let mut transfer = self.transfers.pop().expect("a transfer");
        let send = transfer.send.take().unwrap();
        let (sender, to) = (transfer.key.0, transfer.key.2.peer);
        send.ticket.fail(SnapshotFailure::PinTooLarge);
        meanwhile(self);
        self.nodes.get_mut(&to).unwrap().disk.add(send.meta.clone());
        assert!(self.hand_over(sender, to, send.message, send.meta));
    }
}
