//! What a group does about snapshots: sends them as a leader, takes them as a follower, makes its own, and forgets the log
//! that they stand for.

use std::collections::BTreeMap;

use super::{Apply, AttemptEffect, Effects, GroupCore};
use crate::core::attempts::{Attempts, RetryPolicy};
use crate::core::inbound;
use crate::ids::NodeId;
use crate::log_store::{ConfRecord, GroupWrite, Install};
use crate::message::{LogId, Message, MessageKind};
use crate::reporter::{Report, SnapshotAttempt, SnapshotFailure};
use crate::snapshot_store::SnapshotMeta;
use crate::status::{PeerProgress, PeerStatus};
use crate::transport::{SnapshotOffer, SnapshotRefusal};

/// Ticks until a snapshot of the own state that could not be made is tried again; doubles with each further failure, since
/// every try may fill a disk to its end.
const RETAKE_TICKS: u64 = 100;

/// The longest such wait.
const RETAKE_TICKS_MAX: u64 = 6_400;

/// What a group knows of snapshots when it starts.
pub struct SnapshotSetup {
    /// The newest durable snapshot of the group.
    pub available: Option<SnapshotMeta>,
    /// When, how often, how much.
    pub policy: SnapshotPolicy,
    /// Of the jitter of retries.
    pub seed: u64,
}

/// When snapshots are made and sent, and what of the log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// Entries applied since the last snapshot after which another is made.
    pub every_entries: u64,
    /// The same in bytes of entries.
    pub every_bytes: u64,
    /// Entries kept before the newest snapshot, for followers that lag a little.
    pub trailing_entries: u64,
    /// Bytes the log may grow by while a transfer keeps it from being truncated; past it the transfer fails.
    pub pin_bytes_max: u64,
    /// Of failed attempts.
    pub retry: RetryPolicy,
}

impl Default for SnapshotSetup {
    /// Nothing is ever snapshotted: for groups that are driven by hand.
    fn default() -> Self {
        let policy = SnapshotPolicy {
            every_entries: u64::MAX,
            every_bytes: u64::MAX,
            trailing_entries: 0,
            pin_bytes_max: u64::MAX,
            retry: RetryPolicy { wait_ticks_min: 1, wait_ticks_max: 1 },
        };
        Self { available: None, policy, seed: 0 }
    }
}

/// A snapshot that Raft wants sent. Its driver owes a report on it.
#[derive(Debug)]
pub struct SnapshotSend {
    /// The attempt that it is.
    pub attempt: SnapshotAttempt,
    /// Raft's message, without the body.
    pub message: Message,
    /// What to send.
    pub meta: SnapshotMeta,
}

/// What to do with an offer that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferVerdict {
    /// Take the bytes, then say [`GroupCore::receive`].
    Wanted,
    /// Everything in it is committed here, up to this index and maybe beyond; Raft has acknowledged it.
    Have {
        /// The commit index.
        commit: u64,
    },
}

pub(super) struct Snapshots {
    policy: SnapshotPolicy,
    /// The membership as of what was handed out.
    pub(super) conf: ConfRecord,
    /// A snapshot that Raft took; gone once the state machine has it.
    installing: Option<SnapshotMeta>,
    /// The installed one is to be recorded as such with the next write.
    installed: bool,
    /// Where the order that is under way stands, and the last one that was carried out: an index, and bytes the log had
    /// grown to.
    taking: Option<(u64, u64)>,
    taken: (u64, u64),
    /// The wait after orders that failed, and when it is over.
    retake_ticks: u64,
    retake_at: u64,
    /// The log may be forgotten up to here, as far as snapshots and the state machine are concerned.
    compact_target: u64,
    /// The store wants its space back: keep nothing that is not needed.
    force_compaction: bool,
    /// What is of use has changed: files may go.
    retain: bool,
    progress: BTreeMap<NodeId, (PeerProgress, u64)>,
}

impl Snapshots {
    pub(super) fn new(setup: &SnapshotSetup, conf: ConfRecord, applied: u64) -> Self {
        let at = setup.available.as_ref().map_or(0, |meta| meta.head.at.index);
        Self {
            policy: setup.policy.clone(),
            conf,
            installing: None,
            installed: false,
            taking: None,
            taken: (at.min(applied), 0),
            retake_ticks: RETAKE_TICKS,
            retake_at: 0,
            compact_target: 0,
            force_compaction: false,
            retain: false,
            progress: BTreeMap::new(),
        }
    }

    pub(super) fn installing(&self) -> bool {
        self.installing.is_some()
    }
}

impl SnapshotSetup {
    pub(super) fn attempts(&self, group: crate::ids::GroupId) -> Attempts {
        let retry = self.policy.retry.clone();
        Attempts::new(group, retry, self.available.clone(), self.seed)
    }
}

impl<W, R> GroupCore<W, R> {
    /// Carries a report to Raft if this node leads, and a snapshot's if it is of the live attempt. `false`: it was stale, and
    /// nothing changed.
    pub fn take_report(&mut self, report: Report) -> bool {
        match report {
            Report::Unreachable { peer, .. } => {
                // Only a leader streams to anybody.
                if !self.replica.is_leader() || !self.replica.is_member(peer) {
                    return false;
                }
                self.replica.report_unreachable(peer);
            }
            Report::Snapshot { attempt, status } => {
                // Raft knows nothing of a snapshot of an earlier leadership; the next turn voids the attempt.
                if !self.replica.is_leader() || self.replica.term() != attempt.term {
                    return false;
                }
                let heartbeat = self.snapshots.policy.retry.wait_ticks_min;
                if !self.replica.settle(attempt, status, heartbeat) {
                    return false;
                }
                self.snapshots.retain = true;
            }
        }
        true
    }

    /// The live attempts whose message has left.
    pub fn live_attempts(&self) -> Vec<SnapshotAttempt> {
        self.replica.attempts().live_attempts().collect()
    }

    /// Attempts that took a slot of the [loan](Self::lend) and whose message has not left.
    pub fn unsent_attempts(&self) -> usize {
        self.replica.attempts().unsent()
    }

    /// The watchdog; the shard calls it at each tick. A ticket can be leaked, which no type can prevent, and a report can be
    /// lost. Raft and the next attempt to that peer would then wait for ever. The watchdog settles an attempt as
    /// [lost](SnapshotFailure::Lost) if `is_owed` is false: no transfer holds its ticket, and no outcome waits in the mailbox.
    pub fn watch(&self, is_owed: impl Fn(&SnapshotAttempt) -> bool, fx: &mut Effects<W, R>) {
        // Without a leadership the next poll voids them.
        if self.replica.is_leader() {
            let attempts = self.replica.attempts();
            let lost = attempts.live_attempts().filter(|attempt| !is_owed(attempt));
            let cause = SnapshotFailure::Lost;
            fx.attempts.extend(lost.map(|attempt| AttemptEffect::Settle { attempt, cause }));
        }
    }

    /// Decides on an offer before a byte of it moves.
    ///
    /// # Errors
    /// [`SnapshotRefusal`] by its cause.
    pub fn offer(&mut self, from: NodeId, offer: &SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal> {
        inbound::check_snapshot(&self.replica, self.me, from, &offer.message, &offer.meta)?;
        let at = offer.meta.head.at;
        let here = self.replica.commit() >= at.index || self.replica.log_term(at.index) == Some(at.term);
        if here {
            // Raft answers the leader itself, which otherwise would offer the snapshot again and again.
            self.replica.step(offer.message.clone());
            let commit = self.replica.commit();
            if commit >= at.index {
                return Ok(OfferVerdict::Have { commit });
            }
        }
        if self.snapshots.installing() { Err(SnapshotRefusal::Busy) } else { Ok(OfferVerdict::Wanted) }
    }

    /// A snapshot is here, durable and verified: gives it to Raft and looks whether Raft took it. Answers with the commit
    /// index.
    ///
    /// # Errors
    /// [`SnapshotRefusal`], if it did not.
    pub fn receive(
        &mut self,
        from: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> Result<u64, SnapshotRefusal> {
        inbound::check_snapshot(&self.replica, self.me, from, &message, &meta)?;
        if self.snapshots.installing() {
            return Err(SnapshotRefusal::Busy);
        }
        let index = meta.head.at.index;
        self.replica.step(message);
        // Raft says Ok to a snapshot it ignores.
        if self.replica.unstable_snapshot() == Some(index) {
            self.snapshots.installing = Some(meta);
        } else if self.replica.commit() < index {
            return Err(SnapshotRefusal::NotTaken {
                detail: format!("it stands at term {}", self.replica.term()),
            });
        }
        Ok(self.replica.commit())
    }

    /// The snapshot ordered by [`Apply::Snapshot`] was made, or could not be. `durable` is what the state machine said
    /// before: the log up to there is not needed to restart it.
    pub fn snapshot_made(&mut self, made: Option<(SnapshotMeta, LogId)>) {
        let ordered = self.snapshots.taking.take();
        let Some((meta, durable)) = made else {
            let wait = self.snapshots.retake_ticks;
            self.snapshots.retake_at = self.ticks + wait;
            self.snapshots.retake_ticks = (2 * wait).min(RETAKE_TICKS_MAX);
            return;
        };
        // A received one that was installed meanwhile may stand further.
        self.snapshots.taken = self.snapshots.taken.max(ordered.unwrap_or_default());
        self.snapshots.retake_ticks = RETAKE_TICKS;
        let trailing =
            if self.snapshots.force_compaction { 0 } else { self.snapshots.policy.trailing_entries };
        self.snapshots.force_compaction = false;
        // A volatile machine is restarted from this very file.
        let restartable = if durable == LogId::NONE { meta.head.at.index } else { durable.index };
        let target = meta.head.at.index.saturating_sub(trailing).min(restartable);
        self.snapshots.compact_target = self.snapshots.compact_target.max(target);
        self.make_available(meta);
    }

    /// The log store keeps too much space for this group: makes a snapshot soon and then keeps no trailing entries, nor
    /// anything for attempts that have ended.
    pub fn force_compaction(&mut self) {
        self.snapshots.force_compaction = true;
        self.snapshots.retain = true;
        self.replica.attempts().keep_nothing();
    }

    fn make_available(&mut self, meta: SnapshotMeta) {
        self.replica.attempts().make_available(meta);
        self.snapshots.retain = true;
    }

    /// A snapshot that was received was installed, if that is what was applied.
    pub(super) fn note_installed(&mut self, applied: u64) {
        if let Some(meta) = self.snapshots.installing.take_if(|meta| meta.head.at.index <= applied) {
            self.snapshots.installed = true;
            self.snapshots.taken = (meta.head.at.index, self.replica.log().bytes_appended());
            self.make_available(meta);
        }
    }

    /// A ready carries the received snapshot: it goes into one write with the new hard state and membership.
    pub(super) fn write_install(&mut self, at: LogId, write: &mut GroupWrite) -> Option<SnapshotMeta> {
        let meta = self.snapshots.installing.clone().filter(|meta| meta.head.at == at)?;
        let conf = ConfRecord {
            conf_state: meta.head.conf_state.clone(),
            index: at.index,
            members: meta.head.members.clone(),
        };
        self.snapshots.conf = conf.clone();
        let mut later = GroupWrite::new(self.id);
        later.install = Some(Install { at, installing: meta.content });
        later.conf = Some(conf);
        write.append(later);
        Some(meta)
    }

    /// The note that nothing is being installed any more, if it is due.
    pub(super) fn take_installed(&mut self) -> bool {
        std::mem::take(&mut self.snapshots.installed)
    }

    /// Messages leave; a snapshot among them becomes an obligation.
    pub(super) fn send(&mut self, messages: Vec<Message>, fx: &mut Effects<W, R>) {
        for message in messages {
            if message.kind != MessageKind::Snapshot {
                fx.messages.push(message);
                continue;
            }
            let index = message.snapshot.as_ref().map_or(0, |record| record.index);
            // Nothing: the leadership that wanted it is over.
            let emitted = self.replica.attempts().emit(message.to, message.term, index);
            if let Some((attempt, meta)) = emitted {
                fx.attempts.push(AttemptEffect::Arm(Box::new(SnapshotSend { attempt, message, meta })));
            }
        }
    }

    /// Ends attempts whose leadership is over, before anything of them can leave.
    pub(super) fn void_stale_attempts(&mut self, fx: &mut Effects<W, R>) {
        let term = self.replica.is_leader().then(|| self.replica.term());
        let kept = self.replica.attempts().keeps_any();
        let voided = self.replica.attempts().void_stale(term, |peer| self.replica.is_member(peer));
        // What was kept for another try goes with the leadership, or nobody would ever remove its file.
        self.snapshots.retain |= kept && !self.replica.attempts().keeps_any();
        self.snapshots.retain |= !voided.is_empty();
        let left = voided.into_iter().filter(|(attempt, _)| attempt.term != 0);
        fx.attempts.extend(left.map(|(attempt, cause)| AttemptEffect::Disarm { attempt, cause }));
    }

    /// After the turn's readies: what the log and the peers need.
    pub(super) fn keep_house(&mut self, fx: &mut Effects<W, R>) {
        self.follow_progress();
        self.limit_pins(fx);
        self.order_snapshot(fx);
        self.compact(fx);
        self.forget_files(fx);
    }

    /// Since when Raft sends to each peer as it does.
    fn follow_progress(&mut self) {
        if !self.replica.is_leader() {
            return self.snapshots.progress.clear();
        }
        let now = self.ticks;
        for (peer, progress) in self.replica.progress() {
            let seen = self.snapshots.progress.entry(peer).or_insert((progress, now));
            if seen.0 != progress {
                *seen = (progress, now);
            }
        }
    }

    fn limit_pins(&mut self, fx: &mut Effects<W, R>) {
        let (bytes, most) = (self.replica.log().bytes_appended(), self.snapshots.policy.pin_bytes_max);
        let overdue = self.replica.attempts().overdue(bytes, most);
        let cause = SnapshotFailure::PinTooLarge;
        fx.attempts.extend(overdue.into_iter().map(|attempt| AttemptEffect::Settle { attempt, cause }));
        let (replica, target) = (&self.replica, self.snapshots.compact_target);
        let over = replica.attempts().follow(target, bytes, most, |peer| replica.matched(peer));
        self.snapshots.retain |= !over.is_empty();
        for peer in over {
            tracing::debug!(group = %self.id, %peer, "nothing more is kept behind its last snapshot");
        }
    }

    fn order_snapshot(&mut self, fx: &mut Effects<W, R>) {
        let snapshots = &self.snapshots;
        if snapshots.taking.is_some() || snapshots.installing() || self.ticks < snapshots.retake_at {
            return;
        }
        let (index, bytes) = snapshots.taken;
        let new_entries = self.handed.index.saturating_sub(index);
        let log_bytes = self.replica.log().bytes_appended();
        let asked = self.replica.attempts().is_missing() || snapshots.force_compaction;
        let due = new_entries >= snapshots.policy.every_entries
            || log_bytes - bytes >= snapshots.policy.every_bytes;
        // Without new entries it would be the one there is, unless that could not be read.
        let another =
            new_entries > 0 || (self.replica.attempts().available().is_none() && self.handed.index > 0);
        if !another || !(due || asked) {
            return;
        }
        let conf = snapshots.conf.clone();
        self.snapshots.taking = Some((self.handed.index, log_bytes));
        fx.apply.push(Apply::Snapshot { conf, at: self.handed });
    }

    fn compact(&mut self, fx: &mut Effects<W, R>) {
        let pinned = self.replica.attempts().pinned().unwrap_or(u64::MAX);
        let through = self.snapshots.compact_target.min(pinned).min(self.replica.log().applied());
        if through >= self.replica.log().first_index() && !self.snapshots.installing() {
            self.replica.compact(through);
            fx.compact = Some(through);
        }
    }

    /// A transfer opens its file only when the offer was accepted, so what is being sent must be kept until it has ended.
    fn forget_files(&mut self, fx: &mut Effects<W, R>) {
        // One that is being made may be there already, and is not known by its content yet.
        // And the last one stays until there is another: a volatile machine is restarted from it, if it can be read at all.
        let another = self.snapshots.taking.is_none() && self.replica.attempts().available().is_some();
        if another && std::mem::take(&mut self.snapshots.retain) {
            let installing = self.snapshots.installing.as_ref().map(|meta| meta.content);
            fx.retain = Some(self.replica.attempts().contents().chain(installing).collect());
        }
    }

    /// Adds what is known of attempts to what Raft knows of its peers.
    pub(super) fn peers_with_attempts(&self) -> Vec<PeerStatus> {
        let mut peers = self.replica.peers();
        for peer in &mut peers {
            let since = self.snapshots.progress.get(&peer.id).map_or(self.ticks, |&(_, since)| since);
            peer.progress_age_ticks = self.ticks - since;
            (peer.attempt, peer.last_attempt, peer.backoff_ticks) = self.replica.attempts().status(peer.id);
        }
        peers
    }
}

#[cfg(test)]
mod tests;
