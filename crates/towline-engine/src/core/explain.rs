//! Since when a group waits for what, in ticks: at most one cause for this node, and one for each peer of a leader.
//!
//! [`GroupCore`](super::GroupCore) names the causes, once per heartbeat interval. [`Waits`] keeps their beginnings, and decides
//! which are old enough to show and to log.

use std::collections::BTreeMap;

use towline_metrics::labels::WaitKind;

use crate::ids::NodeId;
use crate::transport::NackCause;

/// A wait that has lasted longer than the shortest election timeout, or its end. For the operator's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaitNotice {
    /// The peer that the wait is about; `None` for this node.
    pub peer: Option<NodeId>,
    /// The cause.
    pub kind: WaitKind,
    /// The ticks since it began.
    pub ticks: u64,
    /// Whether it has ended.
    pub ended: bool,
}

/// Times that decide when waiting becomes a cause, in ticks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Causes are looked for this often: the heartbeat interval.
    pub(super) beat: u64,
    /// What takes no longer than this is no cause: half of the shortest election timeout. Healthy groups under load stay below.
    pub(super) short: u64,
    /// What takes longer than this is logged: the shortest election timeout.
    pub(super) long: u64,
    /// Without a leader, a voter counts as heard of for this long: two of the longest election timeouts. Candidates ask each
    /// voter at least that often.
    pub(super) votes: u64,
}

/// Whether an index keeps up with another one that grows all the time, such as the commit index with the end of the log.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lag {
    /// The index to reach, and the tick at which it was set.
    target: u64,
    set_at: u64,
    since: u64,
}

impl Lag {
    pub(super) fn new(now: u64) -> Self {
        Self { target: 0, set_at: now, since: now }
    }

    /// Compares `at` with `end`. Returns the tick since which `at` lags, if that is longer than `short` ago.
    pub(super) fn see(&mut self, at: u64, end: u64, now: u64, short: u64) -> Option<u64> {
        if at >= self.target {
            // An index that needs long for each target is behind all the while.
            let behind = at < end && now.saturating_sub(self.set_at) > short;
            let since = if behind { self.since } else { now };
            *self = Self { target: end, set_at: now, since };
        }
        (at < self.target && now.saturating_sub(self.since) > short).then_some(self.since)
    }
}

/// A cause and the tick of its beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    pub(super) kind: WaitKind,
    pub(super) since: u64,
    /// Whether it was logged.
    told: bool,
}

/// What the group knows of a peer.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeerFacts {
    /// The tick of its last message; while this node leads, of its last answer.
    pub(super) heard: Option<u64>,
    /// The tick of the last refusal between it and this node, and the cause that it gave for the messages of the group.
    pub(super) refused: Option<(u64, Option<NackCause>)>,
    pub(super) log: Lag,
    pub(super) apply: Lag,
}

impl PeerFacts {
    pub(super) fn new(now: u64) -> Self {
        Self { heard: None, refused: None, log: Lag::new(now), apply: Lag::new(now) }
    }
}

#[derive(Debug)]
pub(super) struct Waits {
    pub(super) patience: Patience,
    node: Option<Standing>,
    peers: BTreeMap<NodeId, Standing>,
    pub(super) facts: BTreeMap<NodeId, PeerFacts>,
    /// The term in which this node leads, and the tick at which that was seen first.
    leads: Option<(u64, u64)>,
    /// The tick since which no leader is known, and whether this node has campaigned since.
    pub(super) leaderless: Option<(u64, bool)>,
    pub(super) commit: Lag,
    pub(super) apply: Lag,
    /// The causes that the gauges show.
    shown: Vec<WaitKind>,
}

impl Waits {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            patience,
            node: None,
            peers: BTreeMap::new(),
            facts: BTreeMap::new(),
            leads: None,
            leaderless: None,
            commit: Lag::default(),
            apply: Lag::default(),
            shown: Vec::new(),
        }
    }

    /// Records the term in which this node leads, if it does. A new leader knows nothing of its peers' progress. Returns the
    /// tick at which the leadership began.
    pub(super) fn lead(&mut self, term: Option<u64>, now: u64, notices: &mut Vec<WaitNotice>) -> u64 {
        if let Some((leads, since)) = self.leads
            && term == Some(leads)
        {
            return since;
        }
        self.leads = term.map(|term| (term, now));
        self.commit = Lag::new(now);
        for facts in self.facts.values_mut() {
            *facts = PeerFacts { heard: facts.heard, ..PeerFacts::new(now) };
        }
        for (peer, standing) in std::mem::take(&mut self.peers) {
            standing.end(Some(peer), now, notices);
        }
        now
    }

    /// Whether a peer has sent the leader of `term` nothing for the shortest election timeout. A slow answer is no silence.
    pub(super) fn is_silent(&self, peer: NodeId, term: u64, now: u64) -> bool {
        let began = self.leads.filter(|&(leads, _)| leads == term).map_or(now, |(_, since)| since);
        let heard = self.facts.get(&peer).and_then(|facts| facts.heard);
        now.saturating_sub(heard.map_or(began, |heard| heard.max(began))) > self.patience.long
    }

    /// Records what this node waits for. `logged`: another line of the log tells it.
    pub(super) fn stand(
        &mut self,
        found: Option<(WaitKind, u64)>,
        logged: bool,
        now: u64,
        notices: &mut Vec<WaitNotice>,
    ) {
        change(&mut self.node, None, found, logged, (self.patience.long, now), notices);
    }

    /// Records what a peer waits for.
    pub(super) fn stand_peer(
        &mut self,
        peer: NodeId,
        found: Option<(WaitKind, u64)>,
        now: u64,
        notices: &mut Vec<WaitNotice>,
    ) {
        // Each attempt to send a snapshot has its own line.
        let logged = matches!(found, Some((WaitKind::Snapshot | WaitKind::Backoff, _)));
        let mut slot = self.peers.remove(&peer);
        change(&mut slot, Some(peer), found, logged, (self.patience.long, now), notices);
        if let Some(standing) = slot {
            self.peers.insert(peer, standing);
        }
    }

    /// Whether a peer may have a cause.
    pub(super) fn any_peer(&self) -> bool {
        !self.peers.is_empty()
    }

    /// What lasts longer than `short`: first of this node, then of its peers.
    pub(super) fn present(&self, now: u64) -> impl Iterator<Item = (Option<NodeId>, Standing)> {
        let peers = self.peers.iter().map(|(&peer, &standing)| (Some(peer), standing));
        let all = self.node.map(|standing| (None, standing)).into_iter().chain(peers);
        all.filter(move |(_, standing)| now.saturating_sub(standing.since) > self.patience.short)
    }

    /// The present causes, if they differ from those of the last call.
    pub(super) fn changed(&mut self, now: u64) -> Option<Vec<WaitKind>> {
        // The first comparison allocates nothing, and is all that an idle group needs.
        if self.node.is_none() && self.peers.is_empty() && self.shown.is_empty() {
            return None;
        }
        let kinds: Vec<_> = self.present(now).map(|(_, standing)| standing.kind).collect();
        if kinds == self.shown {
            return None;
        }
        self.shown.clone_from(&kinds);
        Some(kinds)
    }
}

impl Standing {
    fn end(self, peer: Option<NodeId>, now: u64, notices: &mut Vec<WaitNotice>) {
        if self.told {
            let ticks = now.saturating_sub(self.since);
            notices.push(WaitNotice { peer, kind: self.kind, ticks, ended: true });
        }
    }
}

/// Replaces a standing cause by the one found now. A cause that stays keeps its beginning.
fn change(
    slot: &mut Option<Standing>,
    peer: Option<NodeId>,
    found: Option<(WaitKind, u64)>,
    logged: bool,
    (long, now): (u64, u64),
    notices: &mut Vec<WaitNotice>,
) {
    if let Some(old) = slot.take_if(|old| found.is_none_or(|(kind, _)| kind != old.kind)) {
        old.end(peer, now, notices);
    }
    let Some((kind, since)) = found else { return };
    let standing = slot.get_or_insert(Standing { kind, since, told: false });
    let ticks = now.saturating_sub(standing.since);
    if !standing.told && !logged && ticks > long {
        standing.told = true;
        notices.push(WaitNotice { peer, kind, ticks, ended: false });
    }
}
