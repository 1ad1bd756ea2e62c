//! One Raft group as a pure state machine: inputs are method calls, outputs are [`Effects`].
//!
//! It uses no clock (a tick is an input), no thread, no socket and no runtime. Its driver must
//! * pass each [`Effects::write`] to the log in order, and call [`GroupCore::written`] once it is durable;
//! * pass [`Effects::apply`] to the state machine in order, and call [`GroupCore::applied`];
//! * send [`Effects::messages`]; a message that waits for a write comes out of `written`;
//! * carry out [`Effects::attempts`], [lend](GroupCore::lend) the group its send slots, pass
//!   [every report](GroupCore::take_report) to it, and call the [watchdog](GroupCore::watch) at each tick.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

mod effects;
mod explain;
mod snapshots;
mod stalls;

pub use self::effects::{Apply, AttemptEffect, Effects, Unreadable};
use self::snapshots::Snapshots;
pub use self::snapshots::{OfferVerdict, SnapshotPolicy, SnapshotSend, SnapshotSetup};
use super::attempts::{Attempts, SendBudget};
use super::explain::{Patience, Waits};
use super::founding::{Founding, Objection};
use super::inbound::{self, Reject};
use super::proposals::Proposals;
use super::raft::{ReadyParts, Replica, ReplicaSetup};
use super::reads::{PeerRounds, Reads};
use super::stall::{DiskRoom, StallPolicy, Stalls};
use super::terms::{Rise, TermRises};
use crate::errors::{LeaderHint, ProposeError, ReadError, TransferLeaderError, UncertainCause};
use crate::ids::{GroupId, NodeId};
use crate::log_store::{ConfRecord, GroupWrite};
use crate::message::{Entry, EntryKind, HardState, LogId, LostEntries, Message, MessageKind};
use crate::snapshot_store::SnapshotMeta;
use crate::status::{GroupState, GroupStatus};
use crate::transport::NackCause;

/// The most entries that the target of a transfer may lack: proposals stand still while it catches up.
const TRANSFER_LAG_MAX: u64 = 4_096;

/// The settings and the recovered state of a group.
pub struct GroupSetup {
    /// The part for Raft.
    pub replica: ReplicaSetup,
    /// Unique to this run of the node: makes read rounds unique in the cluster.
    pub origin: [u8; 16],
    /// Ticks after a restart in which the group gives no vote: one shortest election timeout, zero for a new group.
    pub quiet_ticks: u64,
    /// Ticks until an unconfirmed read fails.
    pub read_timeout_ticks: u64,
    /// Ticks after which unconfirmed reads get another round. An answer to an earlier round still counts.
    pub read_retry_ticks: u64,
    /// The bound of unapplied entries in bytes. At the bound the group refuses proposals and appends.
    pub unapplied_bytes_max: usize,
    /// The ticks without progress after which a leader hands over.
    pub stall: StallPolicy,
    /// The membership, its log position, and the addresses of the members.
    pub conf: ConfRecord,
    /// The part for snapshots.
    pub snapshots: SnapshotSetup,
    /// How long a founder that objects to the first leader counts after it last said so, and how long the first leader waits
    /// for a founder that is silent.
    pub founding_memory_ticks: u64,
}

/// One Raft group. `W` is the waiter of a proposal and `R` that of a read. The group only carries them.
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
    /// The last durable write.
    written: u64,
    /// The term as of the last durable write.
    durable_term: u64,
    /// The hard state as of the last write, and as of the last ready.
    hard_state_made: HardState,
    hard_state_ready: HardState,
    term_rises: TermRises,
    /// The last log position given to the state machine.
    applying: LogId,
    ticks: u64,
    quiet_ticks: u64,
    read_timeout_ticks: u64,
    read_retry_ticks: u64,
    unapplied_bytes_max: usize,
    snapshots: Snapshots,
    founding: Founding,
    stalls: Stalls,
    /// The wait before leadership may move again for the state machine's sake.
    apply_retry_ticks: u64,
    /// What each peer last said of its state machine, to the leader of this term.
    peers_applied: BTreeMap<NodeId, u64>,
    /// The peers whose disks are low, each with the term in which it said so to this leader.
    peers_low: BTreeMap<NodeId, u64>,
    /// What each peer lost, by its own word to the leader of this term.
    peers_lost: BTreeMap<NodeId, LostEntries>,
    /// The proof that this node lost entries. It then takes no message and sends none: its vote could elect a leader that
    /// lacks committed entries.
    lost: Option<LostEntries>,
    /// The tick since which the disk of this node is low.
    low_since: Option<u64>,
    disk_room: DiskRoom,
    waits: Waits,
}

/// What a ready that is not persisted holds back.
struct Unpersisted {
    number: u64,
    /// The ready is persisted once this write is durable. A ready without a write follows the write before it.
    write: u64,
    term: u64,
    messages: Vec<Message>,
    restore: Option<SnapshotMeta>,
}

impl<W, R> GroupCore<W, R> {
    /// Creates a group from its recovered state.
    ///
    /// # Errors
    /// The error of the raft crate, if it rejects the setup.
    pub fn new(setup: GroupSetup) -> Result<Self, String> {
        let (id, me, hard_state) = (setup.replica.group, setup.replica.node, setup.replica.hard_state);
        let applied = setup.replica.log.applied();
        let applying = LogId { index: applied, term: setup.replica.log.term(applied).unwrap_or_default() };
        let SnapshotSetup { available, policy, seed } = &setup.snapshots;
        let attempts = Attempts::new(id, policy.retry.clone(), available.clone(), *seed);
        // A transfer that fails takes an election timeout.
        let apply_retry_ticks = setup.stall.apply_ticks.max(2 * setup.replica.election_ticks.end as u64);
        let election = &setup.replica.election_ticks;
        let patience = Patience {
            beat: (setup.replica.heartbeat_ticks as u64).max(1),
            short: setup.replica.election_ticks_min as u64 / 2,
            long: setup.replica.election_ticks_min as u64,
            votes: 2 * election.end as u64,
        };
        Ok(Self {
            id,
            me,
            founding: Founding::new(setup.conf.founding, setup.founding_memory_ticks),
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
            applying,
            ticks: 0,
            quiet_ticks: setup.quiet_ticks,
            read_timeout_ticks: setup.read_timeout_ticks,
            read_retry_ticks: setup.read_retry_ticks,
            unapplied_bytes_max: setup.unapplied_bytes_max,
            stalls: Stalls::new(setup.stall),
            apply_retry_ticks,
            peers_applied: BTreeMap::new(),
            peers_low: BTreeMap::new(),
            peers_lost: BTreeMap::new(),
            lost: None,
            low_since: None,
            disk_room: DiskRoom::Enough,
            waits: Waits::new(patience),
        })
    }

    /// Lends the group the node's free send slots. Without a loan a group sends no snapshots.
    pub fn lend(&mut self, budget: SendBudget) {
        self.replica.attempts().budget = budget;
    }

    /// The rest of the last loan.
    pub fn budget(&self) -> SendBudget {
        self.replica.attempts().budget
    }

    /// Skips ticks that the driver missed because it was busy. Replaying them would end an election timeout at once. Only a
    /// leader counts them, towards its next heartbeats.
    pub fn skip_ticks(&mut self, ticks: u64) {
        self.replica.skip_ticks(ticks);
    }

    /// Sets the room on the disk of this node. Initially there is enough.
    pub fn set_disk_room(&mut self, room: DiskRoom) {
        self.disk_room = room;
        self.low_since = (room != DiskRoom::Enough).then(|| self.low_since.unwrap_or(self.ticks));
    }

    /// Counts one tick of the clock.
    pub fn tick(&mut self, fx: &mut Effects<W, R>) {
        self.ticks += 1;
        if self.lost.is_some() {
            return;
        }
        self.quiet_ticks = self.quiet_ticks.saturating_sub(1);
        // A sole voter wins its election inside the step that starts it. Raft then asserts that the whole log is persisted.
        let alone = !self.replica.is_leader() && self.replica.is_sole_voter();
        let may_win = !alone || (self.unpersisted.is_empty() && self.replica.is_log_persisted());
        // Raft panics if it campaigns over a snapshot that is not applied. And a node whose log is late must not lead: the
        // vote of its next campaign is the write that proves its disk.
        if self.snapshots.installing() || (self.replica.is_follower() && self.stalls.is_log_late(self.ticks))
        {
            self.replica.tick_without_campaign();
        } else if may_win {
            self.replica.tick();
        }
        if self.replica.attempts().tick() {
            self.replica.ping();
        }
        self.move_leadership(fx);
        self.look_for_waits(fx);
        if !self.reads.is_empty() {
            self.fail_late_reads(fx);
        }
    }

    fn fail_late_reads(&mut self, fx: &mut Effects<W, R>) {
        let applied = self.replica.log().applied();
        for (reader, index) in self.reads.take_unapplied(self.ticks) {
            let error = match self.low_since {
                Some(_) if self.replica.last_index() < index => ReadError::DiskFull,
                _ => ReadError::NotApplied { index, applied, call: None },
            };
            fx.unread.push((reader, error));
        }
        for reader in self.reads.take_unconfirmed(self.ticks) {
            let error = match self.replica.leader() {
                None if self.low_since.is_some() => ReadError::DiskFull,
                None => ReadError::NoLeader,
                Some(_)
                    if self.replica.is_leader() && !self.replica.committed_in_term() && self.is_full() =>
                {
                    ReadError::DiskFull
                }
                Some(_) => ReadError::Timeout,
            };
            fx.unread.push((reader, error));
        }
    }

    /// Passes a message from the connection of `from` to raft.
    ///
    /// # Errors
    /// [`Reject`]: raft did not get the message, and nothing changed. Of a message refused with [`Reject::DiskFull`] raft got
    /// everything but the entries.
    pub fn step(&mut self, from: NodeId, mut message: Message) -> Result<(), Reject> {
        if let Some(lost) = self.lost {
            return Err(Reject::EntriesLost(lost));
        }
        let checked = inbound::check(&self.replica, self.me, from, &message);
        if let Err(reject @ Reject::EntriesLost(lost)) = checked {
            // The word of a stranger proves nothing.
            self.check_founding(from, &message)?;
            self.check_rise(from, message.term)?;
            self.lost = Some(lost);
            return Err(reject);
        }
        checked?;
        self.check_founding(from, &message)?;
        self.check_rise(from, message.term)?;
        self.note_answer(&message);
        self.note_heard(from, message.kind);
        let is_refused = self.low_since.is_some() && self.cut_commands(&mut message);
        match message.kind {
            MessageKind::RequestVote | MessageKind::RequestPreVote | MessageKind::TimeoutNow
                if self.quiet_ticks > 0 =>
            {
                return Err(Reject::Quiet);
            }
            MessageKind::TimeoutNow if self.snapshots.installing() => return Err(Reject::Installing),
            MessageKind::TimeoutNow if self.stalls.is_log_late(self.ticks) => return Err(Reject::Stalled),
            MessageKind::ReadIndex if !self.is_new_round(from, &message) => {
                return Err(Reject::RepeatedRound);
            }
            MessageKind::TimeoutNow if self.replica.is_sole_voter() => return Err(Reject::KindNotAllowed),
            // A log full of uncommitted entries must still accept the append that commits them.
            MessageKind::Append
                if !message.entries.is_empty()
                    && self.replica.log().unapplied_bytes() >= self.unapplied_bytes_max
                    && self.applying.index > self.replica.log().applied() =>
            {
                return Err(Reject::Full);
            }
            _ => self.replica.step(message),
        }
        if is_refused { Err(Reject::DiskFull) } else { Ok(()) }
    }

    /// Refuses a peer that founded the group with another list: neither its term nor its vote may count here. A group that
    /// never committed also withholds its own votes while such a founder is heard, and counts no vote until each founder has
    /// shown its list or the wait for it has ended.
    fn check_founding(&mut self, from: NodeId, message: &Message) -> Result<(), Reject> {
        use MessageKind as Kind;
        if self.founding.hash.contradicts(message.founding) {
            self.note_objection(from, Objection::OtherList);
            return Err(Reject::FoundedDifferently);
        }
        if message.founding.is_stated() && self.replica.is_member(from) {
            self.founding.agrees(from);
        }
        if self.replica.commit() > 0 {
            return Ok(());
        }
        let withheld = match message.kind {
            Kind::RequestVoteResponse => self.is_disputed() || self.awaits_founders(),
            Kind::RequestPreVoteResponse | Kind::TimeoutNow => self.is_disputed(),
            // The first commit would end the dispute in favour of this list. A node that knows of a commit may go on.
            Kind::RequestVote | Kind::RequestPreVote | Kind::Append => {
                message.commit == 0 && self.is_disputed()
            }
            _ => false,
        };
        if withheld { Err(Reject::Withheld) } else { Ok(()) }
    }

    /// Whether a founder objects to the first leader. The node goes on to ask for pre-votes: the answers show when the
    /// objection is gone.
    fn is_disputed(&self) -> bool {
        self.founding.objections(self.ticks).next().is_some()
    }

    /// Whether a founder that may be late has not shown its list. Requests for pre-votes ask for it; the answers carry it.
    fn awaits_founders(&self) -> bool {
        self.founding.awaits(self.replica.progress().map(|(founder, _)| founder), self.ticks)
    }

    /// Records that a founder objects to the first leader of the group, as the founder itself said. Nodes that are no member
    /// here do not count.
    pub fn note_objection(&mut self, founder: NodeId, objection: Objection) {
        if !self.replica.is_member(founder) {
            return;
        }
        self.founding.objects(founder, objection, self.ticks);
        if objection == Objection::OtherList {
            self.note_nack(founder, NackCause::FoundedDifferently);
        }
        // Elected before the founder was heard.
        if self.replica.is_leader() && self.replica.commit() == 0 {
            self.replica.step_down();
        }
    }

    /// The members that founded the group with another list, and the ticks since each last said so.
    pub fn other_founders(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let all = self.founding.objections(self.ticks);
        all.filter(|(_, objection, _)| *objection == Objection::OtherList).map(|(by, _, age)| (by, age))
    }

    /// See [`PeerRounds`]. The inbound checks ensured that the message has one entry and comes from a member.
    fn is_new_round(&mut self, from: NodeId, message: &Message) -> bool {
        message.entries.first().is_some_and(|entry| self.peer_rounds.note(from, &entry.data))
    }

    /// See [`TermRises`].
    fn check_rise(&mut self, from: NodeId, theirs: u64) -> Result<(), Reject> {
        match self.term_rises.judge(self.replica.term(), theirs, self.ticks) {
            Rise::Take => return Ok(()),
            Rise::Refuse => {}
            // Raft takes nothing but the term from this message. If the sender is no member, raft ignores the term too.
            Rise::StepTo(term) => self
                .replica
                .step(Message { term, ..Message::new(MessageKind::HeartbeatResponse, from, self.me) }),
        }
        Err(Reject::TermJump)
    }

    /// Appends commands together, in order, if this node leads. The effects contain the waiters of refused commands.
    pub fn propose(&mut self, proposals: Vec<(Bytes, W)>, fx: &mut Effects<W, R>) {
        if !self.replica.is_leader() {
            let hint = self.replica.leader().map(LeaderHint::from);
            let refused = |(_, w)| (w, ProposeError::NotLeader { hint: hint.clone() });
            fx.refused.extend(proposals.into_iter().map(refused));
            return;
        }
        self.fail_lost_proposals(fx);
        if self.is_full() {
            let low: std::sync::Arc<[NodeId]> = self.low_voters().into();
            let refused = |(_, w)| (w, ProposeError::DiskFull { low: low.clone() });
            fx.refused.extend(proposals.into_iter().map(refused));
            return;
        }
        let mut room = match self.replica.transferring() {
            true => 0,
            false => self.unapplied_bytes_max.saturating_sub(self.unapplied_bytes()),
        };
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
        if self.replica.propose(commands) {
            self.proposals.appended(self.replica.term(), first_index, waiters);
        } else {
            fx.refused.extend(waiters.into_iter().map(|w| (w, ProposeError::Busy)));
        }
    }

    /// Queues a read that must see every command acknowledged before now.
    pub fn read(&mut self, reader: R) {
        self.reads.add(reader, self.ticks.saturating_add(self.read_timeout_ticks));
    }

    /// The number of pending reads.
    pub fn reads_waiting(&self) -> usize {
        self.reads.len()
    }

    /// Starts a transfer of leadership.
    ///
    /// # Errors
    /// [`TransferLeaderError`] if the transfer could not succeed; raft itself would give no error.
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

    /// The target of the transfer that is under way. Raft ends it when the target takes over, or after the shortest election
    /// timeout.
    pub fn transfer_target(&self) -> Option<NodeId> {
        self.replica.transfer_target()
    }

    /// Records that all writes up to `number` are durable.
    pub fn written(&mut self, number: u64, fx: &mut Effects<W, R>) {
        debug_assert!(number <= self.writes, "write {number} was never made");
        self.written = self.written.max(number);
        self.stalls.written(number);
        self.release(fx);
    }

    /// Reports persisted readies to raft, then releases what waited for them. Raft does not expect a response before that.
    fn release(&mut self, fx: &mut Effects<W, R>) {
        if self.lost.is_some() {
            return;
        }
        while self.unpersisted.front().is_some_and(|u| u.write <= self.written) {
            let Some(ready) = self.unpersisted.pop_front() else { break };
            self.replica.on_persist_ready(ready.number);
            self.durable_term = self.durable_term.max(ready.term);
            self.send(ready.messages, fx);
            if let Some(meta) = ready.restore {
                self.applying = meta.head.at;
                self.stalls.handed(meta.head.at.index, self.ticks);
                fx.apply.push(Apply::Restore(meta));
            }
        }
    }

    /// Records that the state machine has applied everything up to `index`.
    pub fn applied(&mut self, index: u64) {
        if index > self.replica.log().applied() {
            self.replica.applied_to(index);
            self.stalls.applied(index, self.ticks);
            self.note_installed(index);
        }
    }

    /// Takes the result of a fetch: at least one entry, or the error text of the read.
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

    /// Collects the effects of all inputs since the last call. The driver calls it once a turn.
    pub fn poll(&mut self, fx: &mut Effects<W, R>) {
        fx.lost = self.lost;
        if fx.lost.is_some() {
            return;
        }
        self.start_read_round();
        self.void_stale_attempts(fx);
        let mut write = GroupWrite::new(self.id);
        if std::mem::take(&mut self.snapshots.installed) {
            self.writes += 1;
            write.installed = true;
        }
        // After a fatal ready the group writes nothing more: later entries could leave a gap in the log.
        while fx.fatal.is_none()
            && let Some(ready) = self.next_ready()
        {
            self.take_ready(ready, &mut write, fx);
            // A ready without a write follows the write before it, which may be durable already.
            self.release(fx);
        }
        if !write.is_empty() {
            self.stalls.write_made(self.writes, self.replica.last_index(), self.ticks);
            fx.write = Some((self.writes, write));
        }
        let questions = self.replica.questions();
        if !questions.is_empty() {
            self.send(questions, fx);
        }
        self.finish_turn(fx);
        self.fail_lost_proposals(fx);
        if !self.reads.is_empty() {
            fx.readable.append(&mut self.reads.take_confirmed(self.replica.log().applied()));
        }
        let (term, low) = (self.replica.term(), &self.peers_low);
        fx.fetches.append(&mut self.replica.take_fetches(|peer| low.get(&peer) == Some(&term)));
    }

    fn next_ready(&mut self) -> Option<ReadyParts> {
        let (term, low) = (self.replica.term(), &self.peers_low);
        self.replica.ready(|peer| low.get(&peer) == Some(&term))
    }

    fn start_read_round(&mut self) {
        if self.reads.is_empty() {
            return;
        }
        // Raft silently drops a round without a leader, and on a leader that has not committed in its term.
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
        // Without `must_write` at most the commit index moved, which the next write includes.
        if ready.must_write {
            if write.is_empty() {
                self.writes += 1;
            }
            if let Some(at) = ready.install {
                restore = self.write_install(at, write);
                if restore.is_none() {
                    // Without the snapshot, the commit index of the ready would cover entries of the old log.
                    fx.fatal =
                        Some(format!("raft installs a snapshot at {} that was not received", at.index));
                    return;
                }
            }
            self.hard_state_made = ready.hard_state;
            write.hard_state = Some(ready.hard_state);
            let entries = std::mem::take(&mut ready.entries);
            write.append(GroupWrite { entries, ..GroupWrite::new(self.id) });
        }
        // A sole voter leads before its term is durable. After a crash it would use the term again, with other entries.
        let hold = self.replica.term() > self.durable_term;
        let mut messages = ready.messages_after_write;
        match hold {
            true => drop(messages.splice(..0, ready.messages)),
            false => self.send(ready.messages, fx),
        }
        let (number, write, term) = (ready.number, self.writes, self.replica.term());
        self.unpersisted.push_back(Unpersisted { number, write, term, messages, restore });
        self.apply_committed(ready.committed, fx);
    }

    fn apply_committed(&mut self, entries: Vec<Entry>, fx: &mut Effects<W, R>) {
        let Some(last) = entries.last() else { return };
        if let Some(change) = entries.iter().find(|e| e.kind != EntryKind::Normal) {
            // Skipping the change would give the members different memberships for ever.
            let index = change.index;
            fx.fatal = Some(format!("entry {index} changes the membership, which this version cannot apply"));
            return;
        }
        self.applying = LogId { index: last.index, term: last.term };
        self.stalls.handed(last.index, self.ticks);
        let matched = self.proposals.committed(&entries);
        let hint = self.replica.leader().map(LeaderHint::from);
        let refused = |w| (w, ProposeError::Superseded { hint: hint.clone() });
        fx.refused.extend(matched.superseded.into_iter().map(refused));
        fx.apply.push(Apply::Entries { entries, waiters: matched.waiters, through: self.applying });
    }

    /// Fails the waiters of an ended leadership: the next leader may commit their entries, or not.
    fn fail_lost_proposals(&mut self, fx: &mut Effects<W, R>) {
        if !self.replica.is_leader() || self.proposals.is_of_other_term(self.replica.term()) {
            let lost = |w| (w, ProposeError::Uncertain { cause: UncertainCause::LostLeadership });
            fx.refused.extend(self.proposals.take_all().map(lost));
        }
    }

    /// Fails all pending proposals and reads. The driver stops the group.
    pub fn dissolve(&mut self, cause: &std::sync::Arc<str>, fx: &mut Effects<W, R>) {
        let lost = |w| (w, ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
        fx.refused.extend(self.proposals.take_all().map(lost));
        let stopped = |r| (r, ReadError::Stopped { cause: cause.clone() });
        fx.unread.extend(self.reads.take_all().into_iter().map(stopped));
    }

    /// The hard state of the last ready, if no write contains it. A clean shutdown writes it for its commit index.
    ///
    /// Raft's own commit index may cover entries or a snapshot that no write contains. The stored log may differ there.
    pub fn unwritten_hard_state(&self) -> Option<HardState> {
        (self.hard_state_ready != self.hard_state_made).then_some(self.hard_state_ready)
    }

    /// Bytes of unapplied entries, with those that no write contains yet.
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
            refused: None,
        }
    }

    /// The index of the last entry, durable or not.
    pub fn last_index(&self) -> u64 {
        self.replica.last_index()
    }

    /// Ticks since the oldest write that is not durable was made, and since the oldest committed entry that is not applied
    /// was given out.
    pub fn ages(&self) -> (u64, u64) {
        (self.stalls.log_age(self.ticks), self.stalls.apply_age(self.ticks))
    }

    /// The detailed status.
    pub fn status(&self) -> GroupStatus {
        let snapshot_index = self.replica.attempts().available().map_or(0, |meta| meta.head.at.index);
        GroupStatus {
            group: self.id,
            node: self.me,
            state: self.state(),
            first_index: self.replica.log().first_index(),
            last_index: self.replica.last_index(),
            unapplied_bytes: self.unapplied_bytes(),
            write_age_ticks: self.stalls.log_age(self.ticks),
            apply_age_ticks: self.stalls.apply_age(self.ticks),
            disk_low: self.low_since.is_some(),
            snapshot_index,
            refusals: Vec::new(),
            peers: if self.replica.is_leader() { self.peers_with_attempts() } else { Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests;
