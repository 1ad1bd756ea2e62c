//! Worlds in which nothing goes wrong but what a script says.

use towline_engine::ids::NodeId;
use towline_engine::message::Message;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::{GroupStatus, PeerStatus};

use super::{Faults, LEARNER, Plant, Up, World};

/// What a script makes go wrong.
#[derive(Default)]
pub(crate) struct Twists {
    /// Messages that get lost.
    pub(crate) lost: Option<fn(&Message) -> bool>,
    /// Transfers stand still.
    pub(crate) held: bool,
    /// So many answers to snapshots that were taken do not come back.
    pub(crate) lose_answers: usize,
    /// So many offers are answered by a success, though nothing moved.
    pub(crate) lie: usize,
    /// So many transfers break midway.
    pub(crate) break_midway: usize,
    /// What the receiver has already is answered as if it could not be taken.
    pub(crate) have_is_failure: bool,
    /// A receiver takes itself for a member only if it is a voter of the configuration that the snapshot leads to.
    pub(crate) voters_alone: bool,
    /// State machines do not begin to restore a snapshot.
    pub(crate) restores_hang: bool,
    /// The next receiver of a snapshot is closed in the turn in which it takes it.
    pub(crate) close_as_it_receives: bool,
}

impl World {
    /// Three nodes, one of which was away while the log was compacted past what it has. Gives the leader and that node, which
    /// is still down.
    pub(crate) fn left_behind(plant: Plant, watchdog: bool) -> (Self, NodeId, NodeId) {
        let world = Self::new(0, Faults { watchdog, plant, ..Faults::snapshots_only() }.healed());
        world.leave_behind(|id, leader| id != leader)
    }

    /// The same of node 4. With seed 1 it is a learner, with seed 2 a voter of the outgoing half of a joint configuration.
    pub(crate) fn fourth_left_behind(seed: u64) -> (Self, NodeId, NodeId) {
        let world = Self::new(seed, Faults::snapshots_only().healed());
        world.leave_behind(|id, _| id.as_u64() == LEARNER)
    }

    fn leave_behind(mut self, whom: impl Fn(NodeId, NodeId) -> bool) -> (Self, NodeId, NodeId) {
        let world = &mut self;
        world.ticks(60);
        let leader = world.leader().expect("a leader");
        let behind = world.ids().into_iter().find(|&id| whom(id, leader)).unwrap();
        assert_ne!(behind, leader);
        world.crash(behind);
        world.load(40);
        let status = world.status(leader);
        assert!(world.peer(leader, behind).matched + 1 < status.first_index, "{status:?}");
        (self, leader, behind)
    }

    /// Three nodes, one of which led alone for a while: its last two entries were never committed, and the others compacted
    /// their log past them. Gives that node; it hears the others again.
    pub(crate) fn diverged() -> (Self, NodeId) {
        let mut world = Self::new(0, Faults::snapshots_only().healed());
        world.ticks(60);
        let alone = world.leader().expect("a leader");
        world.load(3);
        for other in world.ids() {
            world.cut.extend([(alone, other), (other, alone)]);
        }
        world.load(2);
        world.ticks(80);
        let leader = world.leader().expect("another leader");
        assert_ne!(leader, alone);
        world.load(40);
        let tail = world.nodes[&alone].disk.last_index();
        let status = world.status(leader);
        assert!(world.status(alone).state.commit + 2 <= tail && tail < status.first_index, "{status:?}");
        world.cut.clear();
        (world, alone)
    }

    pub(crate) fn dies(&mut self, id: NodeId) {
        self.crash(id);
    }

    pub(crate) fn leads(&self) -> Option<NodeId> {
        self.leader()
    }

    /// Whether a snapshot waits for the state machine of a node.
    pub(crate) fn is_installing(&self, id: NodeId) -> bool {
        self.nodes[&id].up.as_ref().is_some_and(Up::restores)
    }

    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.nodes[&id].up.is_some()
    }

    /// So many ticks, between which everything that is said arrives.
    pub(crate) fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.ids().into_iter().for_each(|id| self.turn_with(id, true));
            self.settle();
        }
    }

    /// So many commands, each applied by everybody who is up.
    pub(crate) fn load(&mut self, count: usize) {
        for _ in 0..count {
            self.propose();
            self.settle();
        }
    }

    pub(crate) fn comes_back(&mut self, id: NodeId) {
        self.start(id);
    }

    pub(crate) fn keep_nothing(&mut self, id: NodeId) {
        self.with(id, |group, _| group.force_compaction());
    }

    pub(crate) fn status(&self, id: NodeId) -> GroupStatus {
        self.nodes[&id].up.as_ref().expect("it is up").group.status()
    }

    pub(crate) fn peer(&self, leader: NodeId, id: NodeId) -> PeerStatus {
        self.status(leader).peers.into_iter().find(|peer| peer.id == id).expect("a member")
    }

    pub(crate) fn is_level(&self, id: NodeId) -> bool {
        self.nodes[&id].disk.machine.index == self.log.len() as u64
    }

    /// The transfer that stands still is reported as failed for its pin, and reaches its end all the same after `meanwhile`.
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
