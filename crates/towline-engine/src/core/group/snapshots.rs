//! The snapshots of a group: a leader sends them, a follower installs them, and each node makes its own.

use std::collections::BTreeMap;

use super::{Apply, AttemptEffect, Effects, GroupCore};
use crate::core::attempts::RetryPolicy;
use crate::core::inbound;
use crate::ids::NodeId;
use crate::log_store::{ConfRecord, GroupWrite, Install};
use crate::message::{LogId, LostEntries, Message, MessageKind};
use crate::reporter::{Report, SnapshotAttempt, SnapshotFailure, UnreachableCause};
use crate::snapshot_store::SnapshotMeta;
use crate::status::{PeerProgress, PeerStatus};
use crate::transport::{NackCause, SnapshotOffer, SnapshotRefusal};

/// Ticks from a failure to make a snapshot to the next try. Doubles with each failure, because every try may fill the disk.
const RETAKE_TICKS: u64 = 100;

/// The longest wait after failures.
const RETAKE_TICKS_MAX: u64 = 6_400;

/// The part of a [`GroupSetup`](super::GroupSetup) for snapshots.
pub struct SnapshotSetup {
    /// The newest durable snapshot of the group.
    pub available: Option<SnapshotMeta>,
    /// When snapshots are made and sent.
    pub policy: SnapshotPolicy,
    /// The seed for the jitter of retries.
    pub seed: u64,
}

/// When a group makes and sends snapshots, and how much of the log it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// The group makes a snapshot after this number of entries applied since the last one.
    pub every_entries: u64,
    /// The same in bytes of entries.
    pub every_bytes: u64,
    /// Entries kept before the newest snapshot, for followers that lag a little.
    pub trailing_entries: u64,
    /// The same in bytes of entries. The group keeps the smaller number of entries.
    pub trailing_bytes: u64,
    /// The most bytes by which a transfer may delay the truncation of the log. Past it the transfer fails.
    pub pin_bytes_max: u64,
    /// The waits between failed attempts.
    pub retry: RetryPolicy,
}

impl Default for SnapshotSetup {
    /// Makes no snapshots: for groups that are driven by hand.
    fn default() -> Self {
        let policy = SnapshotPolicy {
            every_entries: u64::MAX,
            every_bytes: u64::MAX,
            trailing_entries: 0,
            trailing_bytes: u64::MAX,
            pin_bytes_max: u64::MAX,
            retry: RetryPolicy { wait_ticks_min: 1, wait_ticks_max: 1 },
        };
        Self { available: None, policy, seed: 0 }
    }
}

/// A snapshot that the driver must send. The driver owes a report of the outcome.
#[derive(Debug)]
pub struct SnapshotSend {
    /// The attempt.
    pub attempt: SnapshotAttempt,
    /// Raft's message, without the body.
    pub message: Message,
    /// The snapshot.
    pub meta: SnapshotMeta,
}

/// The answer to an offer that is not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferVerdict {
    /// Receive the snapshot, then call [`GroupCore::receive`].
    Wanted,
    /// This node has committed everything in the snapshot. Raft has acknowledged it.
    Have {
        /// The commit index.
        commit: u64,
    },
}

pub(super) struct Snapshots {
    policy: SnapshotPolicy,
    /// The membership at the last log position given to the state machine.
    pub(super) conf: ConfRecord,
    /// The snapshot that Raft accepted and the state machine has not restored yet.
    installing: Option<SnapshotMeta>,
    /// The next write records the end of an install.
    pub(super) installed: bool,
    /// The snapshot being made and the last one made: its index, and [`GroupLog::bytes_appended`](crate::core::GroupLog).
    taking: Option<(u64, u64)>,
    taken: (u64, u64),
    /// The wait after failures to make a snapshot, and the tick at which it ends.
    retake_ticks: u64,
    retake_at: u64,
    /// Snapshots and the state machine allow to truncate the log up to this index.
    compact_target: u64,
    /// The log store wants space.
    force_compaction: bool,
    /// The set of snapshots in use has changed.
    retain: bool,
    /// How Raft sends to each peer, and since which tick.
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

    pub(super) fn installing_at(&self) -> Option<u64> {
        self.installing.as_ref().map(|meta| meta.head.at.index)
    }
}

impl<W, R> GroupCore<W, R> {
    /// Passes a report to Raft. `false`: the report is stale and changed nothing, because this node does not lead, or the
    /// peer is no member, or the attempt is not live.
    pub fn take_report(&mut self, report: Report) -> bool {
        match report {
            Report::Unreachable { peer, cause, .. } => {
                if !self.replica.is_leader() || !self.replica.is_member(peer) {
                    return false;
                }
                match cause {
                    UnreachableCause::Nack(cause) => self.note_nack(peer, cause),
                    UnreachableCause::EntriesLost(lost) => {
                        self.note_nack(peer, NackCause::EntriesLost(lost));
                    }
                    _ => {}
                }
                self.replica.report_unreachable(peer);
            }
            Report::Snapshot { attempt, status } => {
                // Raft has forgotten the snapshots of an earlier leadership. The next turn voids the attempt.
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

    /// Notes that a peer says it lost entries. `true`: this node leads, and did not know it.
    pub fn note_lost(&mut self, peer: NodeId, lost: LostEntries) -> bool {
        self.replica.is_leader()
            && self.replica.is_member(peer)
            && self.peers_lost.insert(peer, lost) != Some(lost)
    }

    /// The live attempts whose message has left.
    pub fn live_attempts(&self) -> Vec<SnapshotAttempt> {
        self.replica.attempts().live_attempts().collect()
    }

    /// Attempts that took a slot of the [loan](Self::lend) and whose message has not left.
    pub fn unsent_attempts(&self) -> usize {
        self.replica.attempts().unsent()
    }

    /// The watchdog: fails orphaned attempts. The shard calls it at each tick.
    ///
    /// No type can prevent a leaked ticket or a lost report, and each would latch the peer. An attempt is
    /// [lost](SnapshotFailure::Lost) if `is_owed` is false: no transfer holds its ticket, and the mailbox has no outcome.
    pub fn watch(&self, is_owed: impl Fn(&SnapshotAttempt) -> bool, fx: &mut Effects<W, R>) {
        // Without a leadership the next poll voids them.
        if self.replica.is_leader() {
            let attempts = self.replica.attempts();
            let lost = attempts.live_attempts().filter(|attempt| !is_owed(attempt));
            let cause = SnapshotFailure::Lost;
            fx.attempts.extend(lost.map(|attempt| AttemptEffect::Settle { attempt, cause }));
        }
    }

    /// Answers an offer, before any payload byte moves.
    ///
    /// # Errors
    /// [`SnapshotRefusal`] with its cause.
    pub fn offer(&mut self, from: NodeId, offer: &SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal> {
        self.check_whole()?;
        inbound::check_snapshot(
            &self.replica,
            self.me,
            self.founding.hash,
            from,
            &offer.message,
            &offer.meta,
        )?;
        let at = offer.meta.head.at;
        let here = self.replica.commit() >= at.index || self.replica.log_term(at.index) == Some(at.term);
        if here {
            // Raft acknowledges the snapshot to the leader, which would otherwise offer it again and again.
            self.replica.step(offer.message.clone());
            let commit = self.replica.commit();
            if commit >= at.index {
                return Ok(OfferVerdict::Have { commit });
            }
        }
        if self.snapshots.installing() { Err(SnapshotRefusal::Busy) } else { Ok(OfferVerdict::Wanted) }
    }

    /// Passes a durable, verified snapshot to Raft. Returns the commit index.
    ///
    /// # Errors
    /// [`SnapshotRefusal`] if Raft did not accept the snapshot.
    pub fn receive(
        &mut self,
        from: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> Result<u64, SnapshotRefusal> {
        self.check_whole()?;
        inbound::check_snapshot(&self.replica, self.me, self.founding.hash, from, &message, &meta)?;
        if self.snapshots.installing() {
            return Err(SnapshotRefusal::Busy);
        }
        let index = meta.head.at.index;
        self.replica.step(message);
        // Raft returns `Ok` for a snapshot that it ignores.
        if self.replica.unstable_snapshot() == Some(index) {
            self.snapshots.installing = Some(meta);
        } else if self.replica.commit() < index {
            return Err(SnapshotRefusal::NotTaken {
                detail: format!("the receiver is at term {}", self.replica.term()),
            });
        }
        Ok(self.replica.commit())
    }

    /// A snapshot would hide that this node lost entries, and perhaps votes.
    fn check_whole(&self) -> Result<(), SnapshotRefusal> {
        self.lost.map_or(Ok(()), |lost| Err(SnapshotRefusal::NotTaken { detail: lost.to_string() }))
    }

    /// Takes the result of [`Apply::Snapshot`], if it succeeded: the snapshot, and what the state machine had durable before.
    pub fn snapshot_made(&mut self, made: Option<(SnapshotMeta, LogId)>) {
        let ordered = self.snapshots.taking.take();
        let Some((meta, durable)) = made else {
            let wait = self.snapshots.retake_ticks;
            self.snapshots.retake_at = self.ticks + wait;
            self.snapshots.retake_ticks = (2 * wait).min(RETAKE_TICKS_MAX);
            return;
        };
        // A snapshot installed meanwhile may be newer.
        self.snapshots.taken = self.snapshots.taken.max(ordered.unwrap_or_default());
        self.snapshots.retake_ticks = RETAKE_TICKS;
        let trailing =
            if self.snapshots.force_compaction { 0 } else { self.snapshots.policy.trailing_entries };
        self.snapshots.force_compaction = false;
        // A volatile state machine restarts from this file.
        let restartable = if durable == LogId::NONE { meta.head.at.index } else { durable.index };
        let at = meta.head.at.index;
        let start = self.replica.log().start_of_last(self.snapshots.policy.trailing_bytes, at);
        let target = at.saturating_sub(trailing).max(start).min(restartable);
        self.snapshots.compact_target = self.snapshots.compact_target.max(target);
        self.make_available(meta);
    }

    /// Frees log space: makes a snapshot soon, and keeps no trailing entries and nothing for ended attempts.
    pub fn force_compaction(&mut self) {
        self.snapshots.force_compaction = true;
        self.snapshots.retain = true;
        self.replica.attempts().keep_nothing();
    }

    fn make_available(&mut self, meta: SnapshotMeta) {
        self.replica.attempts().make_available(meta);
        self.snapshots.retain = true;
    }

    /// Ends the install under way, if `applied` has reached its snapshot.
    pub(super) fn note_installed(&mut self, applied: u64) {
        if let Some(meta) = self.snapshots.installing.take_if(|meta| meta.head.at.index <= applied) {
            self.snapshots.installed = true;
            self.snapshots.taken = (meta.head.at.index, self.replica.log().bytes_appended());
            self.make_available(meta);
        }
    }

    /// Adds a received snapshot to the write that contains the new hard state and membership.
    pub(super) fn write_install(&mut self, at: LogId, write: &mut GroupWrite) -> Option<SnapshotMeta> {
        let meta = self.snapshots.installing.clone().filter(|meta| meta.head.at == at)?;
        let own = self.founding.hash;
        let conf = ConfRecord {
            conf_state: meta.head.conf_state.clone(),
            index: at.index,
            members: meta.head.members.clone(),
            founding: if own.is_stated() { own } else { meta.head.founding },
        };
        self.founding.hash = conf.founding;
        self.snapshots.conf = conf.clone();
        let install = Some(Install { at, installing: meta.content });
        write.append(GroupWrite { install, conf: Some(conf), ..GroupWrite::new(self.id) });
        Some(meta)
    }

    /// Sends messages. A snapshot among them becomes a live attempt.
    pub(super) fn send(&mut self, messages: Vec<Message>, fx: &mut Effects<W, R>) {
        for mut message in messages {
            match message.kind {
                MessageKind::HeartbeatResponse => {
                    message.applied = self.replica.log().applied();
                    message.disk_low = self.low_since.is_some();
                }
                MessageKind::Append
                | MessageKind::RequestVote
                | MessageKind::RequestVoteResponse
                | MessageKind::RequestPreVote
                | MessageKind::RequestPreVoteResponse => {
                    message.founding = self.founding.hash;
                }
                MessageKind::Heartbeat => {
                    message.founding = self.founding.hash;
                    if self.replica.leads(message.term) {
                        message.acked = self.replica.matched(message.to);
                    }
                }
                _ => {}
            }
            if message.kind != MessageKind::Snapshot {
                fx.messages.push(message);
                continue;
            }
            let index = message.snapshot.as_ref().map_or(0, |record| record.index);
            // `None`: the leadership that wanted the snapshot is over.
            let emitted = self.replica.attempts().emit(message.to, message.term, index);
            if let Some((attempt, meta)) = emitted {
                fx.attempts.push(AttemptEffect::Arm(Box::new(SnapshotSend { attempt, message, meta })));
            }
        }
    }

    /// Ends attempts whose leadership is over, before any of their messages can leave.
    pub(super) fn void_stale_attempts(&mut self, fx: &mut Effects<W, R>) {
        if self.replica.attempts().is_empty() {
            return;
        }
        let term = self.replica.is_leader().then(|| self.replica.term());
        let kept = self.replica.attempts().keeps_any();
        let voided = self.replica.attempts().void_stale(term, |peer| self.replica.is_member(peer));
        // A file kept for another attempt goes with the leadership. No later event would remove it.
        self.snapshots.retain |= kept && !self.replica.attempts().keeps_any();
        self.snapshots.retain |= !voided.is_empty();
        let left = voided.into_iter().filter(|(attempt, _)| attempt.term != 0);
        fx.attempts.extend(left.map(|(attempt, cause)| AttemptEffect::Disarm { attempt, cause }));
    }

    /// Makes snapshots, truncates the log and drops files, as the readies of the turn require.
    pub(super) fn finish_turn(&mut self, fx: &mut Effects<W, R>) {
        self.note_progress();
        self.bound_pins(fx);
        self.order_snapshot(fx);
        self.compact(fx);
        self.retain_snapshots(fx);
    }

    /// Notes the tick at which a peer's progress state changes.
    fn note_progress(&mut self) {
        if !self.replica.is_leader() {
            // Clearing an empty map is not free, and each group runs this in each turn.
            if !self.snapshots.progress.is_empty() {
                self.snapshots.progress.clear();
            }
            return;
        }
        let now = self.ticks;
        for (peer, progress) in self.replica.progress() {
            let seen = self.snapshots.progress.entry(peer).or_insert((progress, now));
            if seen.0 != progress {
                *seen = (progress, now);
            }
        }
    }

    fn bound_pins(&mut self, fx: &mut Effects<W, R>) {
        if self.replica.attempts().is_empty() {
            return;
        }
        let (bytes, most) = (self.replica.log().bytes_appended(), self.snapshots.policy.pin_bytes_max);
        let overdue = self.replica.attempts().overdue(bytes, most);
        let cause = SnapshotFailure::PinTooLarge;
        fx.attempts.extend(overdue.into_iter().map(|attempt| AttemptEffect::Settle { attempt, cause }));
        let (replica, target) = (&self.replica, self.snapshots.compact_target);
        let over = replica.attempts().follow(target, bytes, most, |peer| replica.matched(peer));
        self.snapshots.retain |= !over.is_empty();
        for peer in over {
            tracing::debug!(group = %self.id, %peer, "log kept for an ended attempt released");
        }
    }

    fn order_snapshot(&mut self, fx: &mut Effects<W, R>) {
        let snapshots = &self.snapshots;
        if snapshots.taking.is_some() || snapshots.installing() || self.ticks < snapshots.retake_at {
            return;
        }
        let (index, bytes) = snapshots.taken;
        let new_entries = self.applying.index.saturating_sub(index);
        let log_bytes = self.replica.log().bytes_appended();
        let asked = self.replica.attempts().is_missing() || snapshots.force_compaction;
        let due = new_entries >= snapshots.policy.every_entries
            || log_bytes - bytes >= snapshots.policy.every_bytes;
        // Without new entries another snapshot would equal the available one.
        let another =
            new_entries > 0 || (self.replica.attempts().available().is_none() && self.applying.index > 0);
        if !another || !(due || asked) {
            return;
        }
        let conf = snapshots.conf.clone();
        self.snapshots.taking = Some((self.applying.index, log_bytes));
        let bytes_expected =
            self.replica.attempts().available().map_or(log_bytes - bytes, |meta| meta.length);
        // The state may have shrunk: after each failure the expectation halves.
        let bytes_expected = bytes_expected * RETAKE_TICKS / self.snapshots.retake_ticks.max(RETAKE_TICKS);
        fx.apply.push(Apply::Snapshot { conf, at: self.applying, bytes_expected });
    }

    fn compact(&mut self, fx: &mut Effects<W, R>) {
        let (first, applied) = (self.replica.log().first_index(), self.replica.log().applied());
        if self.snapshots.compact_target < first || self.snapshots.installing() {
            return;
        }
        let pinned = self.replica.attempts().pinned().unwrap_or(u64::MAX);
        let through = self.snapshots.compact_target.min(pinned).min(applied);
        if through >= first {
            self.replica.compact(through);
            fx.compact = Some(through);
        }
    }

    /// Lets the store remove snapshots that are not in use. A transfer opens its file only after the peer accepted the offer,
    /// so a snapshot being sent stays in use until its attempt ends.
    fn retain_snapshots(&mut self, fx: &mut Effects<W, R>) {
        if !self.snapshots.retain {
            return;
        }
        // The content id of a snapshot being made is not known yet, and its file may exist already. The last snapshot stays
        // until there is another: a volatile state machine restarts from it.
        let another = self.snapshots.taking.is_none() && self.replica.attempts().available().is_some();
        if another {
            self.snapshots.retain = false;
            let installing = self.snapshots.installing.as_ref().map(|meta| meta.content);
            fx.retain = Some(self.replica.attempts().contents().chain(installing).collect());
        }
    }

    /// The status of each peer, with its attempts.
    pub(super) fn peers_with_attempts(&self) -> Vec<PeerStatus> {
        let mut peers = self.peers();
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
