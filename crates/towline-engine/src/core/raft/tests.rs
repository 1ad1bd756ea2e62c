//! What tests of the core need from the raft crate.

use super::*;

impl Replica {
    /// Adds or removes a voter, as a change of membership will.
    pub(crate) fn change_member(&mut self, node: NodeId, is_member: bool) {
        let mut change = eraftpb::ConfChange::default();
        change.set_node_id(node.as_u64());
        if !is_member {
            change.set_change_type(eraftpb::ConfChangeType::RemoveNode);
        }
        self.raw.apply_conf_change(&change).unwrap();
    }
}
