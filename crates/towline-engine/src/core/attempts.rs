//! Attempts to send snapshots: which peer may get one now, which attempt is live, and when the next one may begin.
//!
//! Only this module knows whether an attempt is live. It becomes live when Raft gets the snapshot. It ends when Raft gets
//! the outcome, or forgets the peer. A peer has at most one live attempt. The mailbox and the transfers follow the effects
//! of the group: the mailbox takes reports of an armed attempt, and a transfer holds its ticket.
//!
//! Raft asks for a snapshot inside its own steps, again at every heartbeat response. So every answer here is O(log peers).
//! Time is a number of ticks.

use std::collections::BTreeMap;
use std::fmt;

use crate::ids::{GroupId, NodeId};
use crate::reporter::{SnapshotAttempt, SnapshotFailure, SnapshotStatus};
use crate::snapshot_store::{ContentId, SnapshotMeta};
use crate::status::{AttemptOutcome, AttemptStatus, LastAttempt};

/// After a lasting refusal the wait is this many times longer than after another failure.
const LASTING_REFUSAL_FACTOR: u64 = 16;

/// The wait doubles at most this often.
const DOUBLINGS_MAX: u32 = 16;

/// The send slots that a node has free, over all its groups. The driver lends them to a group for each input
/// ([`GroupCore::lend`](super::GroupCore::lend)) and takes back what the group left.
///
/// A group takes a slot when Raft gets a snapshot. It gives the slot back only if the snapshot never leaves. Once the
/// snapshot has left, the driver counts the transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendBudget {
    /// Transfers that may begin now.
    pub slots: usize,
    /// Attempts so far, over all groups and runs. They number the attempts, so a late report never names another one.
    pub attempts: u64,
}

/// Why an attempt ends without a report to Raft: Raft itself has forgotten the attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VoidCause {
    /// The leadership ended, and with it Raft's record of what it sent.
    LeadershipOver,
    /// The peer was removed.
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

/// The waits between failed attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The shortest wait after a failure, in ticks: one heartbeat interval.
    pub wait_ticks_min: u64,
    /// The longest wait, in ticks.
    pub wait_ticks_max: u64,
}

/// The attempts of one group.
#[derive(Debug)]
pub(super) struct Attempts {
    group: GroupId,
    policy: RetryPolicy,
    /// The rest of the last loan.
    pub(super) budget: SendBudget,
    rng: fastrand::Rng,
    now: u64,
    available: Option<SnapshotMeta>,
    /// Raft wanted a snapshot, and none fits.
    missing: bool,
    peers: BTreeMap<NodeId, PeerAttempts>,
}

#[derive(Debug, Default)]
struct PeerAttempts {
    live: Option<Live>,
    kept: Option<Kept>,
    /// Raft asked and got no snapshot.
    wanted: bool,
    /// The newest snapshot does not fit. Raft need not ask again before there is another.
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
    /// [`GroupLog::bytes_appended`](super::GroupLog) when the attempt began.
    log_bytes: u64,
}

/// What stays of an ended attempt: the log behind its snapshot, and its file if the peer may have a part of it.
#[derive(Debug)]
struct Kept {
    meta: SnapshotMeta,
    /// Whether the next attempt offers the same snapshot again.
    resume: bool,
    /// See [`Live::log_bytes`].
    log_bytes: u64,
    /// The index up to which the peer has the log.
    matched: u64,
    /// The tick at which this expires if the peer gives no sign of life.
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

    /// Whether Raft has wanted no snapshot for any peer.
    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Ticks so far.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Answers Raft, which wants to send a snapshot to `to`. Its log begins after `truncated`. `Some` begins a live attempt.
    pub(super) fn admit(&mut self, to: NodeId, truncated: u64, log_bytes: u64) -> Option<&SnapshotMeta> {
        let fits =
            |meta: &&SnapshotMeta| meta.head.at.index >= truncated && meta.head.conf_state.contains(to);
        let peer = self.peers.entry(to).or_default();
        peer.wanted = true;
        if let Some(kept) = &mut peer.kept {
            // Raft asks only for peers that answer its heartbeats.
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

    /// Records that the message of an admitted snapshot leaves. `None`: the attempt was voided meanwhile.
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

    /// Ends an attempt. `false`: it is not live, and nothing changed.
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
            // The file would fail the next attempt too, and the log before its index may be gone.
            (self.available, self.missing) = (None, true);
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
                // The jitter only adds: no wait is shorter than the shortest.
                wait + self.rng.u64(0..=wait / 4)
            }
        };
        peer.not_before = self.now.saturating_add(wait);
        peer.wanted = true;
        peer.last = Some(LastAttempt { number: attempt.number, outcome: AttemptOutcome::from(status) });
        true
    }

    /// Ends every attempt of another term than the leader's `term` (`None`: this node does not lead), or to a peer that is no
    /// member. An attempt whose message has not left has the term zero.
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
            // Waits end with the leadership: each new leader starts without them.
            self.peers.values_mut().for_each(|peer| {
                (peer.wanted, peer.failures, peer.not_before) = (false, 0, 0);
            });
        }
        voided
    }

    /// Whether a file or a part of the log is kept for any peer.
    pub(super) fn keeps_any(&self) -> bool {
        self.peers.values().any(|peer| peer.kept.is_some())
    }

    /// The live attempts during which the log grew by more than `bytes_max`.
    pub(super) fn overdue(&self, log_bytes: u64, bytes_max: u64) -> Vec<SnapshotAttempt> {
        self.live()
            .filter(|(_, live)| live.term != 0 && log_bytes - live.log_bytes > bytes_max)
            .map(|(id, l)| l.attempt(self.group, id))
            .collect()
    }

    /// Drops what is kept for peers that need it no longer, and returns these peers. A peer needs nothing once it has the log
    /// up to `target`. Otherwise the group keeps the log until it grew by `bytes_max`, or until the peer was silent for the
    /// longest wait between attempts.
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

    /// Drops what is kept for ended attempts.
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

    /// The index behind which the log must stay, for live attempts and for peers that continue after a snapshot.
    pub(super) fn pinned(&self) -> Option<u64> {
        let live = self.live().map(|(_, live)| live.meta.head.at.index);
        let kept = self.kept().map(|kept| kept.meta.head.at.index.max(kept.matched));
        live.chain(kept).min()
    }

    /// The snapshots in use: the newest one, those being sent, and those to be sent again.
    pub(super) fn contents(&self) -> impl Iterator<Item = ContentId> {
        let sent = self.live().map(|(_, live)| live.meta.content);
        let again = self.kept().filter(|kept| kept.resume).map(|kept| kept.meta.content);
        self.available.iter().map(|meta| meta.content).chain(sent).chain(again)
    }

    /// Records a durable snapshot, if it is newer than the available one.
    pub(super) fn make_available(&mut self, meta: SnapshotMeta) {
        if self.available.as_ref().is_none_or(|old| old.head.at.index <= meta.head.at.index) {
            (self.available, self.missing) = (Some(meta), false);
            self.peers.values_mut().for_each(|peer| peer.unfit = false);
        }
    }

    pub(super) fn available(&self) -> Option<&SnapshotMeta> {
        self.available.as_ref()
    }

    /// Whether Raft wanted a snapshot that does not exist, since the last one was made.
    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    /// Counts a tick. `true`: a peer that had to wait can get its snapshot now; a ping makes Raft ask again.
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
                // `admit` sets this again if it still refuses.
                peer.wanted = false;
                due = true;
            }
        }
        due
    }

    /// The live attempt, the last one, and the ticks to wait, for the status.
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

/// Whether the receiver may have a part of the file, from which the next attempt could resume.
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
        let is_lasting = cause == SnapshotFailure::Refused { lasting: true };
        let first = self.wait_ticks_min.saturating_mul(if is_lasting { LASTING_REFUSAL_FACTOR } else { 1 });
        let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(DOUBLINGS_MAX));
        doubled.min(self.wait_ticks_max).max(self.wait_ticks_min)
    }
}

#[cfg(test)]
mod tests;
