use towline_engine::core::Reject;
use towline_engine::ids::NodeId;
use towline_engine::message::Message;
use towline_engine::status::{GroupStatus, Role};

use super::{History, Sim, Violation};

/// Faults by hand, and a look at things.
impl Sim {
    /// A power loss.
    pub fn crash(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|n| n.group.is_some()) {
            node.crash();
            self.crashes += 1;
            self.net.lose_all_to(id);
            self.tell_lost();
        }
    }

    /// Starts a node from what is durable.
    ///
    /// # Errors
    /// What is durable does not fit together.
    pub fn restart(&mut self, id: NodeId) -> Result<(), Violation> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.start(id, &self.members, &self.options, &mut self.history, &mut self.rng)
            .map_err(|detail| self.violation(detail))
    }

    /// From now on nothing gets from `from` to `to`.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.net.cut(from, to);
    }

    /// From now on nothing gets to or from a node.
    pub fn isolate(&mut self, id: NodeId) {
        for other in self.ids() {
            self.net.cut(id, other);
            self.net.cut(other, id);
        }
    }

    /// Undoes every cut.
    pub fn heal(&mut self) {
        self.net.heal();
    }

    /// Whether writes of a node wait for ever instead of becoming durable.
    pub fn hold_writes(&mut self, id: NodeId, hold: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.hold_writes = hold;
        }
    }

    /// Makes every write of a node durable now, held or not.
    ///
    /// # Errors
    /// A violation.
    pub fn complete_writes(&mut self, id: NodeId) -> Result<(), Violation> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(newest) = node.disk.newest_pending() else { return Ok(()) };
        let pending = node.disk.pending();
        node.disk.sync(pending).map_err(|detail| self.violation(detail))?;
        self.with(id, |group, fx| group.written(newest, fx))?;
        Ok(())
    }

    /// Whether the state machine of a node stands still.
    pub fn hold_applies(&mut self, id: NodeId, hold: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.hold_applies = hold;
        }
    }

    /// What clients did and saw.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The members, in order.
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Whether a node runs.
    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| n.group.is_some())
    }

    /// What a node says of itself; `None` if it is down.
    pub fn status(&self, id: NodeId) -> Option<GroupStatus> {
        Some(self.nodes.get(&id)?.group.as_ref()?.status())
    }

    /// The leader of the highest term that knows itself as one.
    pub fn leader(&self) -> Option<NodeId> {
        let statuses = self.nodes.keys().filter_map(|&id| self.status(id));
        statuses.filter(|s| s.state.role == Role::Leader).max_by_key(|s| s.state.term).map(|s| s.node)
    }

    /// How far a node's state machine has come.
    pub fn applied(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(0, |n| n.machine.through.index)
    }

    /// The last index that is durable on a node, and the term there.
    pub fn durable(&self, id: NodeId) -> (u64, u64) {
        self.nodes.get(&id).map_or((0, 0), |n| (n.disk.last_index(), n.disk.term(n.disk.last_index())))
    }

    /// How many writes of a node are not durable.
    pub fn writes_pending(&self, id: NodeId) -> usize {
        self.nodes.get(&id).map_or(0, |n| n.disk.pending())
    }

    /// Messages under way.
    pub fn in_flight(&self) -> Vec<Message> {
        self.net.in_flight().cloned().collect()
    }

    /// Whether nothing gets from `from` to `to`.
    pub fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.net.is_cut(from, to)
    }

    /// How often messages were refused for a reason.
    pub fn rejected(&self, reject: Reject) -> u64 {
        self.rejects.get(&reject).copied().unwrap_or_default()
    }

    /// How many crashes there were.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }
}
