//! One Raft group as a pure state machine: inputs are method calls, outputs are [`Effects`].
//!
//! It knows no clock (a tick is an input), no thread, no socket and no runtime. Whoever drives it must
//! * hand each [`Effects::write`] to the log in order and say [`GroupCore::written`] once it is durable;
//! * hand [`Effects::apply`] to the state machine in order and say [`GroupCore::applied`];
//! * send [`Effects::messages`]; those that must wait for a write come out of `written` itself;
//! * carry [`Effects::attempts`] out, [lend](GroupCore::lend) the group what it may send, [take](GroupCore::take_report) every report
//!   to it, and [watch](GroupCore::watch) at each tick that none is missing.

use std::collections::VecDeque;

use bytes::Bytes;

mod effects;
mod snapshots;

pub use self::effects::{Apply, AttemptEffect, Effects, Unreadable};
use self::snapshots::Snapshots;
pub use self::snapshots::{OfferVerdict, SnapshotPolicy, SnapshotSend, SnapshotSetup};
use super::attempts::SendBudget;
use super::inbound::{self, Reject};
use super::proposals::Proposals;
use super::raft::{ReadyParts, Replica, ReplicaSetup};
use super::reads::{PeerRounds, Reads};
use super::terms::{Rise, TermRises};
use crate::errors::{LeaderHint, ProposeError, ReadError, TransferLeaderError, UncertainCause};
use crate::ids::{GroupId, NodeId};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{Entry, EntryKind, HardState, LogId, Message, MessageKind};
use crate::snapshot_store::SnapshotMeta;
use crate::status::{GroupState, GroupStatus};

/// How far behind the target of a transfer may be, in entries: it has to catch up while proposals stand still.
const TRANSFER_LAG_MAX: u64 = 4_096;

/// What a group is made of.
pub struct GroupSetup {
    /// Raft's part.
    pub replica: ReplicaSetup,
    /// Unique to this node and its run: makes read rounds unique in the cluster.
    pub origin: [u8; 16],
    /// Ticks after a restart during which no vote is given: one shortest election timeout, zero for a new group.
    pub quiet_ticks: u64,
    /// Ticks until a read that cannot be confirmed fails.
    pub read_timeout_ticks: u64,
    /// Ticks after which reads that are not confirmed get another round. An answer to an earlier round still counts.
    pub read_retry_ticks: u64,
    /// Bytes of entries that are not applied: at the bound proposals are busy and appends refused.
    pub unapplied_bytes_max: usize,
    /// Where the membership stands in the log, and the addresses of its members.
    pub conf: ConfRecord,
    /// Snapshots.
    pub snapshots: SnapshotSetup,
}

/// One Raft group. `W` waits for a proposal, `R` for a read; the group only carries them.
pub struct GroupCore<W, R> {
    id: GroupId,
    me: NodeId,
    replica: Replica,
    proposals: Proposals<W>,
    reads: Reads<R>,
    peer_rounds: PeerRounds,
    /// Readies that are not persisted, in order.
    unpersisted: VecDeque<Unpersisted>,
    writes: u64,
    /// The last write that raft was told is durable.
    written: u64,
    /// The term as of the last write that is durable.
    durable_term: u64,
    /// The hard state as of the last write made, and as of the last ready.
    hard_state_made: HardState,
    hard_state_ready: HardState,
    term_rises: TermRises,
    /// Highest index given out to be applied.
    handed: LogId,
    ticks: u64,
    quiet_ticks: u64,
    read_timeout_ticks: u64,
    read_retry_ticks: u64,
    unapplied_bytes_max: usize,
    snapshots: Snapshots,
}

/// A ready that is not persisted: what may happen only afterwards.
struct Unpersisted {
    number: u64,
    /// Persisted as soon as this write is; a ready without one of its own follows the write before it.
    write: u64,
    term: u64,
    messages: Vec<Message>,
    /// To be restored once this is persisted.
    restore: Option<SnapshotMeta>,
}

impl<W, R> GroupCore<W, R> {
    /// # Errors
    /// The raft crate's own words, if it does not accept the setup.
    pub fn new(setup: GroupSetup) -> Result<Self, String> {
        let (id, me, hard_state) = (setup.replica.group, setup.replica.node, setup.replica.hard_state);
        let applied = setup.replica.log.applied();
        let handed = LogId { index: applied, term: setup.replica.log.term(applied).unwrap_or_default() };
        let attempts = setup.snapshots.attempts(id);
        Ok(Self {
            id,
            me,
            snapshots: Snapshots::new(&setup.snapshots, setup.conf, applied),
            replica: Replica::new(setup.replica, attempts)?,
            proposals: Proposals::new(),
            reads: Reads::new(setup.origin),
            peer_rounds: PeerRounds::default(),
            unpersisted: VecDeque::new(),
            writes: 0,
            written: 0,
            durable_term: hard_state.term,
            hard_state_made: hard_state,
            hard_state_ready: hard_state,
            term_rises: TermRises::default(),
            handed,
            ticks: 0,
            quiet_ticks: setup.quiet_ticks,
            read_timeout_ticks: setup.read_timeout_ticks,
            read_retry_ticks: setup.read_retry_ticks,
            unapplied_bytes_max: setup.unapplied_bytes_max,
        })
    }

    /// What the node may begin to send from now on. Without a loan a group sends no snapshots.
    pub fn lend(&mut self, budget: SendBudget) {
        self.replica.lend(budget);
    }

    /// What is left of the last loan.
    pub fn budget(&self) -> SendBudget {
        self.replica.budget()
    }

    /// So many ticks were due before the next one, and nobody could call [`tick`](Self::tick). They are not replayed: an
    /// election would time out in one go. Only a leader counts them, towards its next heartbeats.
    pub fn skip_ticks(&mut self, ticks: u64) {
        self.replica.skip_ticks(ticks);
    }

    /// One tick of the clock has passed.
    pub fn tick(&mut self, fx: &mut Effects<W, R>) {
        self.ticks += 1;
        self.quiet_ticks = self.quiet_ticks.saturating_sub(1);
        // A sole voter wins its election inside the step that starts it, and raft then insists that its whole log is
        // persisted.
        let persisted = self.unpersisted.is_empty() && self.replica.is_log_persisted();
        let alone = self.replica.is_sole_voter() && !self.replica.is_leader();
        if self.snapshots.installing() {
            // Raft panics if it campaigns over a snapshot that is not applied.
            self.replica.tick_without_campaign();
        } else if !alone || persisted {
            self.replica.tick();
        }
        if self.replica.attempts().tick() {
            self.replica.ping();
        }
        let applied = self.replica.log().applied();
        for (reader, index) in self.reads.take_unapplied(self.ticks) {
            fx.unread.push((reader, ReadError::NotApplied { index, applied, call: None }));
        }
        for reader in self.reads.take_unconfirmed(self.ticks) {
            let error =
                if self.replica.leader().is_none() { ReadError::NoLeader } else { ReadError::Timeout };
            fx.unread.push((reader, error));
        }
    }

    /// A message that the connection of `from` brought.
    ///
    /// # Errors
    /// [`Reject`]: raft did not see it, nothing changed.
    pub fn step(&mut self, from: NodeId, message: Message) -> Result<(), Reject> {
        inbound::check(&self.replica, self.me, from, &message)?;
        self.check_rise(from, message.term)?;
        match message.kind {
            MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::TimeoutNow
                if self.quiet_ticks > 0 =>
            {
                return Err(Reject::Quiet);
            }
            MessageKind::TimeoutNow if self.snapshots.installing() => return Err(Reject::Installing),
            MessageKind::ReadIndex if !self.is_new_round(from, &message) => {
                return Err(Reject::RepeatedRound);
            }
            MessageKind::TimeoutNow if self.replica.is_sole_voter() => return Err(Reject::KindNotAllowed),
            // Only what is committed is sure to leave memory by itself: a log full of uncommitted entries must still
            // take the entry that commits them.
            MessageKind::Append
                if !message.entries.is_empty()
                    && self.replica.log().unapplied_bytes() >= self.unapplied_bytes_max
                    && self.handed.index > self.replica.log().applied() =>
            {
                return Err(Reject::Full);
            }
            _ => self.replica.step(message),
        }
        Ok(())
    }

    /// See [`PeerRounds`]. The inbound checks have passed: the message has one entry, and its sender is a member.
    fn is_new_round(&mut self, from: NodeId, message: &Message) -> bool {
        message.entries.first().is_some_and(|entry| self.peer_rounds.note(from, &entry.data))
    }

    /// See [`TermRises`].
    fn check_rise(&mut self, from: NodeId, theirs: u64) -> Result<(), Reject> {
        match self.term_rises.judge(self.replica.term(), theirs, self.ticks) {
            Rise::Take => return Ok(()),
            Rise::Refuse => {}
            // A message of this kind has no effect but by its term, and none at all from somebody who is no member.
            Rise::StepTo(term) => self
                .replica
                .step(Message { term, ..Message::new(MessageKind::HeartbeatResponse, from, self.me) }),
        }
        Err(Reject::TermJump)
    }

    /// Appends commands if this node leads. They are proposed together, in order; whoever waits for one that is
    /// refused is told through the effects.
    pub fn propose(&mut self, proposals: Vec<(Bytes, W)>, fx: &mut Effects<W, R>) {
        if proposals.is_empty() {
            return;
        }
        if !self.replica.is_leader() {
            let hint = self.replica.leader().map(LeaderHint::from);
            let refused = |(_, w)| (w, ProposeError::NotLeader { hint: hint.clone() });
            fx.refused.extend(proposals.into_iter().map(refused));
            return;
        }
        self.give_up_lost(fx);
        let mut room = self.unapplied_bytes_max.saturating_sub(self.unapplied_bytes());
        if self.replica.transferring() {
            room = 0;
        }
        let (mut commands, mut waiters) =
            (Vec::with_capacity(proposals.len()), Vec::with_capacity(proposals.len()));
        for (command, waiter) in proposals {
            if room == 0 {
                fx.refused.push((waiter, ProposeError::Busy));
                continue;
            }
            room = room.saturating_sub(command.len());
            commands.push(command);
            waiters.push(waiter);
        }
        if commands.is_empty() {
            return;
        }
        let first_index = self.replica.last_index() + 1;
        match self.replica.propose(commands) {
            Ok(()) => self.proposals.appended(self.replica.term(), first_index, waiters),
            Err(_) => fx.refused.extend(waiters.into_iter().map(|w| (w, ProposeError::Busy))),
        }
    }

    /// A read that must see every command acknowledged before now.
    pub fn read(&mut self, reader: R) {
        self.reads.add(reader, self.ticks.saturating_add(self.read_timeout_ticks));
    }

    /// Reads that are not answered yet.
    pub fn reads_waiting(&self) -> usize {
        self.reads.len()
    }

    /// Starts to hand leadership over.
    ///
    /// # Errors
    /// [`TransferLeaderError`] if that cannot go well; raft itself would say nothing.
    pub fn transfer(&mut self, target: NodeId) -> Result<(), TransferLeaderError> {
        if !self.replica.is_leader() {
            return Err(TransferLeaderError::NotLeader { hint: self.replica.leader().map(LeaderHint::from) });
        }
        if target == self.me || !self.replica.is_voter(target) {
            return Err(TransferLeaderError::NotVoter { target });
        }
        if self.replica.transferring() {
            return Err(TransferLeaderError::Busy);
        }
        let peer = self.replica.peers().into_iter().find(|p| p.id == target);
        let lag = peer.as_ref().map_or(u64::MAX, |p| self.replica.last_index().saturating_sub(p.matched));
        if !peer.is_some_and(|p| p.recent_active && p.pending_snapshot == 0) || lag > TRANSFER_LAG_MAX {
            return Err(TransferLeaderError::NotReady {
                target,
                detail: format!("it is {lag} entries behind or silent"),
            });
        }
        self.replica.transfer_leader(target);
        Ok(())
    }

    /// Whether a transfer that [`transfer`](Self::transfer) began is under way. Raft ends it when the target takes over, and
    /// gives it up after the shortest election timeout.
    pub fn is_transferring(&self) -> bool {
        self.replica.transferring()
    }

    /// Everything up to write `number` is durable.
    pub fn written(&mut self, number: u64, fx: &mut Effects<W, R>) {
        debug_assert!(number <= self.writes, "write {number} was never made");
        self.written = self.written.max(number);
        self.release(fx);
    }

    /// Tells raft what is persisted and lets go what waited for it, strictly in this order: a response to a message
    /// that left too early would find raft in a state it does not expect.
    fn release(&mut self, fx: &mut Effects<W, R>) {
        while self.unpersisted.front().is_some_and(|u| u.write <= self.written) {
            let Some(ready) = self.unpersisted.pop_front() else { break };
            self.replica.on_persist_ready(ready.number);
            self.durable_term = self.durable_term.max(ready.term);
            self.send(ready.messages, fx);
            if let Some(meta) = ready.restore {
                self.handed = meta.head.at;
                fx.apply.push(Apply::Restore(meta));
            }
        }
    }

    /// The state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: u64) {
        if index > self.replica.log().applied() {
            self.replica.applied_to(index);
            self.note_installed(index);
        }
    }

    /// The entries of a fetch came back, at least one, or could not be read, for this reason.
    pub fn fetched(&mut self, low: u64, entries: Result<Vec<Entry>, String>, fx: &mut Effects<W, R>) {
        let cause = match entries {
            Ok(entries) if !entries.is_empty() => return self.replica.fetched(low, entries),
            Ok(_) => "the log store gave no entry".into(),
            Err(cause) => cause,
        };
        if self.replica.not_fetched(low) {
            fx.unreadable.push(Unreadable { index: low, cause });
        }
    }

    /// Collects what raft wants done after any number of inputs. Call it once a turn.
    pub fn poll(&mut self, fx: &mut Effects<W, R>) {
        self.start_read_round();
        self.void_stale_attempts(fx);
        let mut write = GroupWrite::new(self.id);
        if self.take_installed() {
            self.writes += 1;
            write.installed = true;
        }
        // After a fatal ready nothing more is written: later entries could leave a gap in the log.
        while fx.fatal.is_none()
            && let Some(ready) = self.replica.ready()
        {
            self.take_ready(ready, &mut write, fx);
            // Readies that needed no write are persisted with the write before them, which may be long durable.
            self.release(fx);
        }
        if !write.is_empty() {
            fx.write = Some((self.writes, write));
        }
        fx.messages.append(&mut self.replica.questions());
        self.keep_house(fx);
        self.give_up_lost(fx);
        // A read keeps its deadline until the state machine has come to its index.
        fx.readable.append(&mut self.reads.take_confirmed(self.replica.log().applied()));
        fx.fetches.append(&mut self.replica.take_fetches());
    }

    fn start_read_round(&mut self) {
        // A leader drops rounds without a word until it has committed in its term, and so does raft without a leader.
        let can_confirm = match self.replica.is_leader() {
            true => self.replica.committed_in_term(),
            false => self.replica.leader().is_some(),
        };
        if can_confirm && let Some(context) = self.reads.start_round(self.ticks, self.read_retry_ticks) {
            self.replica.read_index(context);
        }
    }

    fn take_ready(&mut self, mut ready: ReadyParts, write: &mut GroupWrite, fx: &mut Effects<W, R>) {
        self.hard_state_ready = ready.hard_state;
        for (context, index) in ready.reads {
            self.reads.confirm(&context, index);
        }
        let mut restore = None;
        // `must_write` is false when at most the commit index moved: it goes with the next write, and a restart that
        // knows an older one finds the newer by asking the leader.
        if ready.must_write {
            if write.is_empty() {
                self.writes += 1;
            }
            if let Some(at) = ready.install {
                restore = self.write_install(at, write);
                if restore.is_none() {
                    // Without the snapshot its commit index would cover entries of the old log.
                    fx.fatal = Some(format!("raft installs a snapshot at {} that nobody brought", at.index));
                    return;
                }
            }
            self.hard_state_made = ready.hard_state;
            write.hard_state = Some(ready.hard_state);
            let mut later = GroupWrite::new(self.id);
            later.entries = std::mem::take(&mut ready.entries);
            write.append(later);
        }
        // The first messages of a leader that voted for itself alone could leave before its term is durable; after a
        // crash it would use the same term again, with other entries.
        let hold = self.replica.term() > self.durable_term;
        let (now, after) = if hold { (Vec::new(), ready.messages) } else { (ready.messages, Vec::new()) };
        self.send(now, fx);
        let messages = after.into_iter().chain(ready.messages_after_write).collect();
        let term = self.replica.term();
        let write = self.writes;
        self.unpersisted.push_back(Unpersisted { number: ready.number, write, term, messages, restore });
        self.hand_out(ready.committed, fx);
    }

    fn hand_out(&mut self, entries: Vec<Entry>, fx: &mut Effects<W, R>) {
        let Some(last) = entries.last() else { return };
        if let Some(change) = entries.iter().find(|e| e.kind != EntryKind::Normal) {
            // Applying what is not understood, or skipping it, would split the membership for ever.
            fx.fatal = Some(format!(
                "entry {} changes the membership, which this version cannot apply",
                change.index
            ));
            return;
        }
        self.handed = LogId { index: last.index, term: last.term };
        let matched = self.proposals.committed(&entries);
        let hint = self.replica.leader().map(LeaderHint::from);
        let refused = |w| (w, ProposeError::Superseded { hint: hint.clone() });
        fx.refused.extend(matched.superseded.into_iter().map(refused));
        fx.apply.push(Apply::Entries { entries, waiters: matched.waiters, through: self.handed });
    }

    /// Nobody waits on for an entry of a leadership that is over: it may be committed by the next leader, or not.
    fn give_up_lost(&mut self, fx: &mut Effects<W, R>) {
        if !self.replica.is_leader() || self.proposals.is_of_other_term(self.replica.term()) {
            let lost = |w| (w, ProposeError::Uncertain { cause: UncertainCause::LostLeadership });
            fx.refused.extend(self.proposals.take_all().map(lost));
        }
    }

    /// Takes everybody who waits; the group will not be driven any more.
    pub fn dissolve(&mut self, cause: &std::sync::Arc<str>, fx: &mut Effects<W, R>) {
        let lost = |w| (w, ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
        fx.refused.extend(self.proposals.take_all().map(lost));
        let stopped = |r| (r, ReadError::Stopped { cause: cause.clone() });
        fx.unread.extend(self.reads.take_all().into_iter().map(stopped));
    }

    /// The hard state of the last ready, if it moved past what was last written: a clean shutdown writes the commit index too.
    ///
    /// Raft's own commit index may be ahead of it. It then counts entries or a snapshot that came in since the last ready
    /// and are in no write, while the stored log may end earlier or hold other entries at these indices.
    pub fn unwritten_hard_state(&self) -> Option<HardState> {
        (self.hard_state_ready != self.hard_state_made).then_some(self.hard_state_ready)
    }

    /// Bytes of entries that are not applied, with those raft has not given out to be written.
    fn unapplied_bytes(&self) -> usize {
        self.replica.log().unapplied_bytes()
    }

    /// The newest state.
    pub fn state(&self) -> GroupState {
        GroupState {
            role: self.replica.role(),
            leader: self.replica.leader(),
            term: self.replica.term(),
            commit: self.replica.commit(),
            applied: self.replica.log().applied(),
            down: None,
        }
    }

    /// The index of the last entry, written or not.
    pub fn last_index(&self) -> u64 {
        self.replica.last_index()
    }

    /// A closer look.
    pub fn status(&self) -> GroupStatus {
        let snapshot_index = self.replica.attempts().available().map_or(0, |meta| meta.head.at.index);
        GroupStatus {
            group: self.id,
            node: self.me,
            state: self.state(),
            first_index: self.replica.log().first_index(),
            last_index: self.replica.last_index(),
            unapplied_bytes: self.unapplied_bytes(),
            snapshot_index,
            peers: if self.replica.is_leader() { self.peers_with_attempts() } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests;
