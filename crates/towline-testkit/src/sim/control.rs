use std::time::Duration;

use towline_engine::core::{DiskRoom, Reject};
use towline_engine::explain::Wait;
use towline_engine::ids::NodeId;
use towline_engine::message::Message;
use towline_engine::status::{GroupStatus, Role};

use super::{History, Sim, SimViolation};

/// Manual faults, and observers.
impl Sim {
    /// Crashes a node, as in a power loss.
    pub fn crash(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|n| n.group.is_some()) {
            node.crash();
            self.crashes += 1;
            self.net.lose_all_to(id);
            self.report_lost();
        }
    }

    /// Starts a node from its durable state.
    pub fn restart(&mut self, id: NodeId) -> Result<(), SimViolation> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.start(id, &self.members, &self.options, &mut self.history, &mut self.rng)
            .map_err(|detail| self.violation(detail))
    }

    /// Cuts the network from `from` to `to`.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        self.net.cut(from, to);
    }

    /// Cuts the network to and from a node.
    pub fn isolate(&mut self, id: NodeId) {
        for other in self.ids() {
            self.net.cut(id, other);
            self.net.cut(other, id);
        }
    }

    /// Reverts every cut.
    pub fn heal(&mut self) {
        self.net.heal();
    }

    /// Sets whether writes of a node stay pending instead of becoming durable.
    pub fn hold_writes(&mut self, id: NodeId, hold: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.hold_writes = hold;
        }
    }

    /// Makes every pending write of a node durable, also held ones.
    pub fn complete_writes(&mut self, id: NodeId) -> Result<(), SimViolation> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let Some(newest) = node.disk.newest_pending() else { return Ok(()) };
        let pending = node.disk.pending();
        node.disk.sync(pending).map_err(|detail| self.violation(detail))?;
        self.with(id, |group, fx| group.written(newest, fx))?;
        Ok(())
    }

    /// Sets whether the state machine of a node is blocked.
    pub fn hold_applies(&mut self, id: NodeId, hold: bool) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.hold_applies = hold;
        }
    }

    /// Sets the room on the disk of a node. While it is low, the node must write only commands of earlier terms; while it is
    /// short, none.
    pub fn set_disk_room(&mut self, id: NodeId, room: DiskRoom) -> Result<(), SimViolation> {
        // What the node has accepted before is written.
        self.with(id, |group, fx| {
            group.poll(fx);
            group.set_disk_room(room);
        })?;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk_room = room;
        }
        Ok(())
    }

    /// Appends with entries that were sent from `from` to `to`, and their payload bytes.
    pub fn appends_sent(&self, from: NodeId, to: NodeId) -> (u64, u64) {
        self.net.appends_sent(from, to)
    }

    /// The calls of all clients.
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

    /// The status of a node; `None` if it is down.
    pub fn status(&self, id: NodeId) -> Option<GroupStatus> {
        Some(self.nodes.get(&id)?.group.as_ref()?.status())
    }

    /// What the group of a node waits for, with ages in milliseconds of one a tick. Nothing if the node is down.
    pub fn explain(&self, id: NodeId) -> Vec<Wait> {
        let group = self.nodes.get(&id).and_then(|n| n.group.as_ref());
        group.map(|group| group.explain(Duration::from_millis(1))).unwrap_or_default()
    }

    /// The node that leads in the highest term, by its own status.
    pub fn leader(&self) -> Option<NodeId> {
        let statuses = self.nodes.keys().filter_map(|&id| self.status(id));
        statuses.filter(|s| s.state.role == Role::Leader).max_by_key(|s| s.state.term).map(|s| s.node)
    }

    /// The applied index of a node.
    pub fn applied(&self, id: NodeId) -> u64 {
        self.nodes.get(&id).map_or(0, |n| n.machine.through.index)
    }

    /// The last durable index of a node, and its term.
    pub fn durable(&self, id: NodeId) -> (u64, u64) {
        self.nodes.get(&id).map_or((0, 0), |n| (n.disk.last_index(), n.disk.term(n.disk.last_index())))
    }

    /// The messages in flight.
    pub fn in_flight(&self) -> Vec<Message> {
        self.net.in_flight().cloned().collect()
    }

    /// The number of messages refused with a cause.
    pub fn rejected(&self, reject: Reject) -> u64 {
        self.rejects.get(&reject).copied().unwrap_or_default()
    }

    /// The number of crashes.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }
}
