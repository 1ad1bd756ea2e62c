//! Log lines about members that founded a group with another list: one line for each such node, not for each group.

use std::collections::BTreeMap;
use std::time::Instant;

use super::refusals::Spaced;
use crate::ids::{GroupId, NodeId};

/// A line that is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FounderLine {
    pub(super) peer: NodeId,
    /// The first of the groups, and their number.
    pub(super) group: GroupId,
    pub(super) groups: usize,
}

/// The lines about each member. At most one entry for each peer of the node.
#[derive(Default)]
pub(super) struct FounderLines {
    peers: BTreeMap<NodeId, Spaced>,
}

impl FounderLines {
    /// The lines that are due. `found`: each group with its members that founded it with another list.
    pub(super) fn due(
        &mut self,
        found: impl Iterator<Item = (GroupId, NodeId)>,
        now: Instant,
    ) -> Vec<FounderLine> {
        let mut lines = BTreeMap::new();
        for (group, peer) in found {
            lines.entry(peer).or_insert(FounderLine { peer, group, groups: 0 }).groups += 1;
        }
        let mut is_due = |line: &FounderLine| match self.peers.get_mut(&line.peer) {
            Some(lines) => lines.is_due(now),
            None => self.peers.insert(line.peer, Spaced::new(now)).is_none(),
        };
        lines.into_values().filter(|line| is_due(line)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_thousand_groups_with_one_such_member_give_one_line_with_their_number() {
        let (mut lines, start) = (FounderLines::default(), Instant::now());
        let peer = NodeId::new(3).unwrap();
        let found = |groups: usize| (7..7 + groups as u64).map(move |group| (GroupId::new(group), peer));
        let line = |groups| [FounderLine { peer, group: GroupId::new(7), groups }];
        assert_eq!(lines.due(found(1_024), start), line(1_024));
        assert_eq!(lines.due(found(1_024), start + Duration::from_secs(1)), []);
        assert_eq!(lines.due(found(2), start + Duration::from_secs(6)), line(2));
        assert_eq!(lines.due(found(0), start + Duration::from_secs(60)), []);
    }
}
