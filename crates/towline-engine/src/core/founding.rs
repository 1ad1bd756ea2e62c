//! What keeps a group that never committed from electing its first leader: two lists of founders must not both get one.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{FoundingHash, NodeId};

/// Why a founder keeps a group that never committed from electing a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Objection {
    /// It founded the group with another list.
    OtherList,
    /// It refuses the connections of this node, and may hold the group: this data directory is not the one that it met, or
    /// it did not list all of its groups.
    Refusal,
}

/// The founding hash of this replica, and what the other founders said about it. At most three entries for each founder.
#[derive(Debug)]
pub(super) struct Founding {
    pub(super) hash: FoundingHash,
    /// The founders that showed the same hash.
    agreed: BTreeSet<NodeId>,
    /// The tick at which each objection was last heard.
    objections: BTreeMap<(NodeId, Objection), u64>,
    /// The ticks after which a silent founder no longer counts.
    memory_ticks: u64,
}

impl Founding {
    pub(super) fn new(hash: FoundingHash, memory_ticks: u64) -> Self {
        Self { hash, agreed: BTreeSet::new(), objections: BTreeMap::new(), memory_ticks }
    }

    pub(super) fn objects(&mut self, founder: NodeId, objection: Objection, now: u64) {
        self.objections.insert((founder, objection), now);
    }

    /// Records that a founder showed the same hash.
    pub(super) fn agrees(&mut self, founder: NodeId) {
        self.agreed.insert(founder);
        self.objections.remove(&(founder, Objection::OtherList));
    }

    /// The objections that were heard lately, and the ticks since.
    pub(super) fn objections(&self, now: u64) -> impl Iterator<Item = (NodeId, Objection, u64)> + '_ {
        let ages = move |(&(founder, objection), at): (&(NodeId, Objection), &u64)| {
            (founder, objection, now.saturating_sub(*at))
        };
        self.objections.iter().map(ages).filter(|(.., age)| *age <= self.memory_ticks)
    }

    /// Whether one of `founders` has not shown its list, and this node has not waited long enough for it.
    pub(super) fn awaits(&self, mut founders: impl Iterator<Item = NodeId>, now: u64) -> bool {
        self.hash.is_stated() && now <= self.memory_ticks && founders.any(|f| !self.agreed.contains(&f))
    }
}
