//! The members that founded the group with another list of founders.

use std::collections::BTreeMap;

use crate::ids::{FoundingHash, NodeId};

/// The founding hash of this replica, and the members that showed another one. At most one entry for each member.
#[derive(Debug)]
pub(super) struct Founding {
    pub(super) hash: FoundingHash,
    /// The tick at which each of these members last showed another hash.
    others: BTreeMap<NodeId, u64>,
    /// The ticks after which a silent member no longer counts.
    memory_ticks: u64,
}

impl Founding {
    pub(super) fn new(hash: FoundingHash, memory_ticks: u64) -> Self {
        Self { hash, others: BTreeMap::new(), memory_ticks }
    }

    /// Records that a member showed another hash.
    pub(super) fn differs(&mut self, member: NodeId, now: u64) {
        self.others.insert(member, now);
    }

    /// Records that a member showed the same hash.
    pub(super) fn agrees(&mut self, member: NodeId) {
        self.others.remove(&member);
    }

    /// The members that showed another hash lately, and the ticks since.
    pub(super) fn others(&self, now: u64) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let ages = self.others.iter().map(move |(member, at)| (*member, now.saturating_sub(*at)));
        ages.filter(|(_, age)| *age <= self.memory_ticks)
    }
}
