//! Attempts to send snapshots: who may be sent one now, which attempt is the live one, and when to try again.
//!
//! Whether an attempt is live is known here and nowhere else. It is live from the moment Raft was given a snapshot until
//! Raft was told how that ended, or forgot it; there is never more than one a peer. What others keep follows from the
//! effects of the group: the mailbox takes a report while an attempt is armed, and a transfer holds its ticket.
//!
//! Raft asks for a snapshot inside its own steps, at every heartbeat response while it gets none, so every answer here is
//! O(log peers). Time is a number of ticks.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{GroupId, NodeId};
use crate::reporter::{SnapshotAttempt, SnapshotFailure, SnapshotStatus};
use crate::snapshot_store::{ContentId, SnapshotMeta};
use crate::status::{AttemptOutcome, AttemptStatus, LastAttempt};

/// After a refusal that does not pass by itself the wait is this many times longer than after another failure.
const LASTING_REFUSAL_FACTOR: u64 = 16;

/// How often the wait doubles at most.
const DOUBLINGS_MAX: u32 = 16;

/// What a node may still begin to send, counted for all its groups. The driver lends it to a group for each input
/// ([`GroupCore::lend`](super::GroupCore::lend)) and takes back what the group left.
///
/// A group takes a slot when Raft is given a snapshot. It gives the slot back only if the snapshot never leaves. From the
/// moment it leaves, the driver counts the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendBudget {
    /// Transfers that may begin now.
    pub slots: usize,
    /// Attempts so far. They number the attempts of all groups and of all their runs, so that a late report never names
    /// another attempt.
    pub attempts: u64,
}

/// Why an attempt ends without a report to Raft: Raft has forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoidCause {
    /// Raft forgets what it sent when its leadership ends.
    LeadershipOver,
    /// Raft forgets a peer that is removed.
    NotMember,
}

impl fmt::Display for VoidCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeadershipOver => "the leadership it belonged to is over",
            Self::NotMember => "the peer is no member any more",
        })
    }
}

/// How failed attempts are repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The least wait after a failure, in ticks: one heartbeat.
    pub wait_ticks_min: u64,
    /// The longest, in ticks.
    pub wait_ticks_max: u64,
}

/// Everything about attempts of one group.
#[derive(Debug)]
pub(super) struct Attempts {
    group: GroupId,
    policy: RetryPolicy,
    /// What is left of the last loan.
    pub(super) budget: SendBudget,
    rng: fastrand::Rng,
    now: u64,
    available: Option<SnapshotMeta>,
    /// Raft wanted a snapshot, and there is none that would do.
    missing: bool,
    peers: BTreeMap<NodeId, PeerAttempts>,
}

#[derive(Debug, Default)]
struct PeerAttempts {
    live: Option<Live>,
    kept: Option<Kept>,
    /// Raft asked and was told to wait.
    wanted: bool,
    /// The newest snapshot would not do: to ask again is of use when there is another.
    unfit: bool,
    not_before: u64,
    failures: u32,
    last: Option<LastAttempt>,
}

#[derive(Debug)]
struct Live {
    number: u64,
    /// The leader's term; zero until the message has left.
    term: u64,
    meta: SnapshotMeta,
    /// Bytes the log had grown to when it began.
    log_bytes: u64,
}

/// What stays of the last attempt when it has ended: the log behind its snapshot, which the peer needs next, and its file if
/// the peer may have a part of that.
#[derive(Debug)]
struct Kept {
    meta: SnapshotMeta,
    /// The next attempt offers the same again.
    resume: bool,
    /// As of the attempt.
    log_bytes: u64,
    /// What the peer has of the log.
    matched: u64,
    /// When it is kept for nobody, unless the peer gives a sign of life.
    until: u64,
}

impl Attempts {
    pub(super) fn new(
        group: GroupId,
        policy: RetryPolicy,
        available: Option<SnapshotMeta>,
        seed: u64,
    ) -> Self {
        let rng = fastrand::Rng::with_seed(seed);
        let (budget, peers) = (SendBudget { slots: 0, attempts: 0 }, BTreeMap::new());
        Self { group, policy, budget, rng, now: 0, available, missing: false, peers }
    }

    /// Attempts that took a slot and whose message has not left.
    pub(super) fn unsent(&self) -> usize {
        self.live().filter(|(_, live)| live.term == 0).count()
    }

    /// Ticks so far.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Raft wants to send `to` a snapshot, and its log begins after `truncated`. `Some`: the attempt is live from here on.
    pub(super) fn admit(&mut self, to: NodeId, truncated: u64, log_bytes: u64) -> Option<&SnapshotMeta> {
        let fits =
            |meta: &&SnapshotMeta| meta.head.at.index >= truncated && meta.head.conf_state.contains(to);
        let peer = self.peers.entry(to).or_default();
        peer.wanted = true;
        if let Some(kept) = &mut peer.kept {
            // Raft asks for those that answer its heartbeats.
            kept.until = self.now.saturating_add(self.policy.wait_ticks_max);
        }
        let kept = peer.kept.as_ref().filter(|kept| kept.resume && fits(&&kept.meta));
        let (meta, log_bytes) = match kept {
            Some(kept) => (kept.meta.clone(), kept.log_bytes),
            None => {
                let Some(meta) = self.available.as_ref().filter(fits) else {
                    (self.missing, peer.unfit) = (true, true);
                    return None;
                };
                (meta.clone(), log_bytes)
            }
        };
        if peer.live.is_some() || self.now < peer.not_before || self.budget.slots == 0 {
            return None;
        }
        self.budget.slots -= 1;
        self.budget.attempts += 1;
        peer.wanted = false;
        peer.kept = None;
        let live = peer.live.insert(Live { number: self.budget.attempts, term: 0, meta, log_bytes });
        Some(&live.meta)
    }

    /// The message Raft made of an admitted snapshot is about to leave: which attempt it is, and what it sends. `None` if
    /// the attempt was voided meanwhile.
    pub(super) fn emit(
        &mut self,
        to: NodeId,
        term: u64,
        index: u64,
    ) -> Option<(SnapshotAttempt, SnapshotMeta)> {
        let group = self.group;
        let unsent = |live: &&mut Live| live.term == 0 && live.meta.head.at.index == index;
        let live = self.peers.get_mut(&to)?.live.as_mut().filter(unsent)?;
        live.term = term;
        Some((live.attempt(group, to), live.meta.clone()))
    }

    /// An attempt ended. `false`: it is not the live one, and nothing changed.
    pub(super) fn settle(
        &mut self,
        attempt: SnapshotAttempt,
        status: SnapshotStatus,
        heartbeat: u64,
    ) -> bool {
        let group = self.group;
        let Some(peer) = self.peers.get_mut(&attempt.peer) else { return false };
        if peer.live.as_ref().map(|live| live.attempt(group, attempt.peer)) != Some(attempt) {
            return false;
        }
        let Some(Live { meta, log_bytes, .. }) = peer.live.take() else { return false };
        if status == SnapshotStatus::Failure(SnapshotFailure::Storage)
            && self.available.as_ref().is_some_and(|available| available.content == meta.content)
        {
            // It would fail the next attempt too. The log that it stands for may be gone, so another one is needed.
            self.available = None;
            self.missing = true;
        }
        let resume = match status {
            SnapshotStatus::Finish => Some(false),
            SnapshotStatus::Failure(cause) => leaves_a_part(cause).then_some(true),
        };
        let until = self.now.saturating_add(self.policy.wait_ticks_max);
        peer.kept = resume.map(|resume| Kept { meta, resume, log_bytes, matched: 0, until });
        let wait = match status {
            SnapshotStatus::Finish => {
                peer.failures = 0;
                heartbeat
            }
            SnapshotStatus::Failure(cause) => {
                peer.failures = peer.failures.saturating_add(1);
                let wait = self.policy.wait(peer.failures, cause);
                // Jittered upwards, so that the least wait stays the least.
                wait + self.rng.u64(0..=wait / 4)
            }
        };
        peer.not_before = self.now.saturating_add(wait);
        peer.wanted = true;
        peer.last = Some(LastAttempt { number: attempt.number, outcome: AttemptOutcome::from(status) });
        true
    }

    /// Ends every attempt that is not of a leader in `term` (`None`: this node does not lead) or whose peer is no member.
    /// Those whose message has not left have the term zero.
    pub(super) fn void_stale(
        &mut self,
        term: Option<u64>,
        is_member: impl Fn(NodeId) -> bool,
    ) -> Vec<(SnapshotAttempt, VoidCause)> {
        let group = self.group;
        let mut voided = Vec::new();
        for (&id, peer) in &mut self.peers {
            let of_term = |live: &Live| term.is_some_and(|term| live.term == 0 || live.term == term);
            peer.kept.take_if(|_| term.is_none() || !is_member(id));
            let Some(live) = peer.live.take_if(|live| !of_term(live) || !is_member(id)) else { continue };
            if live.term == 0 {
                self.budget.slots += 1;
            }
            let cause = if of_term(&live) { VoidCause::NotMember } else { VoidCause::LeadershipOver };
            voided.push((live.attempt(group, id), cause));
            peer.last = Some(LastAttempt { number: live.number, outcome: AttemptOutcome::Void });
        }
        if term.is_none() {
            // Waits belong to the one who leads: the next leader starts afresh, and so does this node if it is that.
            self.peers.values_mut().for_each(|peer| {
                (peer.wanted, peer.failures, peer.not_before) = (false, 0, 0);
            });
        }
        voided
    }

    /// Whether a file or a part of the log is kept for somebody.
    pub(super) fn keeps_any(&self) -> bool {
        self.peers.values().any(|peer| peer.kept.is_some())
    }

    /// Attempts under way during which the log grew by more than `bytes_max`.
    pub(super) fn overdue(&self, log_bytes: u64, bytes_max: u64) -> Vec<SnapshotAttempt> {
        self.live()
            .filter(|(_, live)| live.term != 0 && log_bytes - live.log_bytes > bytes_max)
            .map(|(id, l)| l.attempt(self.group, id))
            .collect()
    }

    /// Compares what is kept with what the peers have by now. A peer that has all of the log that is to be forgotten needs
    /// nothing more; for one that has not the log may grow by `bytes_max`, and not at all once it was silent for the longest
    /// wait between attempts. Gives those for whom nothing is kept any more.
    pub(super) fn follow(
        &mut self,
        target: u64,
        log_bytes: u64,
        bytes_max: u64,
        matched: impl Fn(NodeId) -> u64,
    ) -> Vec<NodeId> {
        let mut over = Vec::new();
        for (&id, peer) in &mut self.peers {
            let Some(kept) = &mut peer.kept else { continue };
            let matched = matched(id);
            if matched != kept.matched {
                (kept.matched, kept.until) = (matched, self.now.saturating_add(self.policy.wait_ticks_max));
            }
            kept.resume &= kept.matched < kept.meta.head.at.index;
            let has_all = !kept.resume && kept.matched >= target;
            if has_all || self.now > kept.until || log_bytes - kept.log_bytes > bytes_max {
                peer.kept = None;
                over.push(id);
            }
        }
        over
    }

    /// Keeps nothing for attempts that have ended.
    pub(super) fn keep_nothing(&mut self) {
        self.peers.values_mut().for_each(|peer| peer.kept = None);
    }

    fn live(&self) -> impl Iterator<Item = (NodeId, &Live)> {
        self.peers.iter().filter_map(|(&id, peer)| Some((id, peer.live.as_ref()?)))
    }

    /// The live attempts whose message has left.
    pub(super) fn live_attempts(&self) -> impl Iterator<Item = SnapshotAttempt> {
        self.live().filter(|(_, live)| live.term != 0).map(|(id, live)| live.attempt(self.group, id))
    }

    fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.peers.values().filter_map(|peer| peer.kept.as_ref())
    }

    /// What comes after this index must stay in the log, for attempts and for peers that go on behind one.
    pub(super) fn pinned(&self) -> Option<u64> {
        let live = self.live().map(|(_, live)| live.meta.head.at.index);
        let kept = self.kept().map(|kept| kept.meta.head.at.index.max(kept.matched));
        live.chain(kept).min()
    }

    /// The contents that are of use: the newest, what is being sent, and what will be sent again.
    pub(super) fn contents(&self) -> impl Iterator<Item = ContentId> {
        let sent = self.live().map(|(_, live)| live.meta.content);
        let again = self.kept().filter(|kept| kept.resume).map(|kept| kept.meta.content);
        self.available.iter().map(|meta| meta.content).chain(sent).chain(again)
    }

    /// A newer snapshot is durable.
    pub(super) fn make_available(&mut self, meta: SnapshotMeta) {
        if self.available.as_ref().is_none_or(|old| old.head.at.index <= meta.head.at.index) {
            self.available = Some(meta);
            self.missing = false;
            self.peers.values_mut().for_each(|peer| peer.unfit = false);
        }
    }

    pub(super) fn available(&self) -> Option<&SnapshotMeta> {
        self.available.as_ref()
    }

    /// Whether Raft asked for a snapshot that does not exist, since the last one was made.
    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    /// A tick passed. `true`: somebody who was told to wait could be served now; ask Raft again by a ping.
    pub(super) fn tick(&mut self) -> bool {
        self.now += 1;
        if self.budget.slots == 0 {
            return false;
        }
        let mut due = false;
        for peer in self.peers.values_mut() {
            let any = (self.available.is_some() && !peer.unfit)
                || peer.kept.as_ref().is_some_and(|kept| kept.resume);
            if any && peer.wanted && peer.live.is_none() && self.now >= peer.not_before {
                // Raft asks again through `admit`, which sets it again if the answer is no.
                peer.wanted = false;
                due = true;
            }
        }
        due
    }

    /// For the status: the live attempt, the last one, and the ticks to wait.
    pub(super) fn status(&self, of: NodeId) -> (Option<AttemptStatus>, Option<LastAttempt>, u64) {
        let Some(peer) = self.peers.get(&of) else { return (None, None, 0) };
        let live = peer.live.as_ref().map(|live| AttemptStatus {
            number: live.number,
            index: live.meta.head.at.index,
            bytes: live.meta.length,
            offset: 0,
            sent: 0,
            acked: 0,
            phase: None,
        });
        (live, peer.last, peer.not_before.saturating_sub(self.now))
    }
}

impl Live {
    fn attempt(&self, group: GroupId, peer: NodeId) -> SnapshotAttempt {
        SnapshotAttempt { group, peer, term: self.term, index: self.meta.head.at.index, number: self.number }
    }
}

/// Whether the receiver may have a part of the file, which the next attempt could go on with.
fn leaves_a_part(cause: SnapshotFailure) -> bool {
    match cause {
        SnapshotFailure::Transfer
        | SnapshotFailure::Timeout
        | SnapshotFailure::Abandoned
        | SnapshotFailure::Lost
        | SnapshotFailure::Refused { lasting: false } => true,
        SnapshotFailure::NoRoute
        | SnapshotFailure::Corrupt
        | SnapshotFailure::Storage
        | SnapshotFailure::PinTooLarge
        | SnapshotFailure::Refused { lasting: true } => false,
    }
}

impl RetryPolicy {
    fn wait(&self, failures: u32, cause: SnapshotFailure) -> u64 {
        let least = match cause {
            SnapshotFailure::Refused { lasting: true } => {
                self.wait_ticks_min.saturating_mul(LASTING_REFUSAL_FACTOR)
            }
            _ => self.wait_ticks_min,
        };
        let doubled = least.saturating_mul(1 << failures.saturating_sub(1).min(DOUBLINGS_MAX));
        doubled.min(self.wait_ticks_max).max(self.wait_ticks_min)
    }
}

#[cfg(test)]
mod tests;
