//! One member of a group: the raft crate behind plain types. No other module of the engine uses types of that crate.

mod convert;
mod failed_reads;
mod flow;
mod logger;
mod storage;

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};
use raft::{ProgressState, RawNode, ReadOnlyOption, StateRole};

use self::flow::Flows;
pub use self::storage::Fetch;
use self::storage::LogView;
use super::attempts::Attempts;
use super::log::GroupLog;
use crate::ids::{GroupId, NodeId};
use crate::message::{ConfState, Entry, HardState, LogId, Message, MessageKind};
use crate::reporter::{SnapshotAttempt, SnapshotStatus};
use crate::status::{PeerProgress, PeerStatus, Role};

/// The settings and the recovered state of one replica.
pub struct ReplicaSetup {
    /// This node.
    pub node: NodeId,
    /// The group.
    pub group: GroupId,
    /// The recovered log.
    pub log: GroupLog,
    /// The recovered term, vote and commit index. The commit index is not below the applied index.
    pub hard_state: HardState,
    /// The recovered membership.
    pub conf_state: ConfState,
    /// Ticks between two heartbeats of a leader.
    pub heartbeat_ticks: usize,
    /// The range of election timeouts, end exclusive. A range of one value makes them deterministic.
    pub election_ticks: std::ops::Range<usize>,
    /// The shortest election timeout; the lease of a leader.
    pub election_ticks_min: usize,
    /// The most bytes of one append message.
    pub append_bytes_max: u64,
    /// The most append messages under way to one peer.
    pub append_inflight_max: usize,
    /// See [`Config`](crate::config::Config).
    pub commit_broadcast: bool,
    /// The most bytes of uncommitted entries on a leader.
    pub uncommitted_bytes_max: u64,
    /// The most bytes of committed entries in one ready.
    pub committed_bytes_max: u64,
}

/// One member of one group: the raft crate's node behind plain types.
pub(crate) struct Replica {
    raw: RawNode<LogView>,
    /// The active peers at raft's last check for a quorum, which resets raft's own flags.
    heard: Vec<u64>,
    flows: Flows,
    /// Ticks since a leader's last heartbeats, with those that raft did not count.
    since_beat: usize,
}

/// The raft crate's `Ready` in plain types.
#[derive(Debug, Default)]
pub(crate) struct ReadyParts {
    /// Dense, from 1.
    pub(crate) number: u64,
    /// Entries to make durable.
    pub(crate) entries: Vec<Entry>,
    /// Term, vote and commit index as of this ready. The entries and snapshots up to this ready reach this commit index; a
    /// write with them must not contain a higher one.
    pub(crate) hard_state: HardState,
    /// `false`: nothing needs the disk, except perhaps a commit index that a later write can contain.
    pub(crate) must_write: bool,
    /// Entries to apply.
    pub(crate) committed: Vec<Entry>,
    /// A leader's messages: they may leave before the write is durable.
    pub(crate) messages: Vec<Message>,
    /// Messages that must wait for the write.
    pub(crate) messages_after_write: Vec<Message>,
    /// Confirmed read rounds with their index.
    pub(crate) reads: Vec<(Vec<u8>, u64)>,
    /// The log position of a received snapshot, which replaces the whole log.
    pub(crate) install: Option<LogId>,
}

impl Replica {
    /// # Errors
    /// The error of the raft crate, if it rejects the setup.
    pub(crate) fn new(setup: ReplicaSetup, attempts: Attempts) -> Result<Self, String> {
        let config = raft::Config {
            id: setup.node.as_u64(),
            election_tick: setup.election_ticks_min,
            heartbeat_tick: setup.heartbeat_ticks,
            applied: setup.log.applied(),
            max_size_per_msg: setup.append_bytes_max,
            max_inflight_msgs: setup.append_inflight_max,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: setup.election_ticks.start,
            max_election_tick: setup.election_ticks.end,
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: !setup.commit_broadcast,
            // Raft would merge appends past `max_size_per_msg`. The lanes make batches instead.
            batch_append: false,
            priority: 0,
            max_uncommitted_size: setup.uncommitted_bytes_max.max(setup.append_bytes_max),
            // The storage limits them.
            max_committed_size_per_ready: raft::NO_LIMIT,
        };
        let flows = Flows::new(&setup);
        let logger = logger::logger(setup.node, setup.group);
        let view =
            LogView::new(setup.log, setup.hard_state, setup.conf_state, setup.committed_bytes_max, attempts);
        RawNode::new(&config, view, &logger)
            .map(|raw| Self { raw, heard: Vec::new(), flows, since_beat: 0 })
            .map_err(|e| e.to_string())
    }

    pub(crate) fn log(&self) -> &GroupLog {
        &self.raw.store().log
    }

    pub(crate) fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Whether this node leads in `term`.
    pub(crate) fn leads(&self, term: u64) -> bool {
        self.is_leader() && self.term() == term
    }

    pub(crate) fn role(&self) -> Role {
        match self.raw.raft.state {
            StateRole::Follower => Role::Follower,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Leader => Role::Leader,
        }
    }

    pub(crate) fn is_follower(&self) -> bool {
        self.raw.raft.state == StateRole::Follower
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        NodeId::new(self.raw.raft.leader_id)
    }

    pub(crate) fn commit(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// Whether raft knows that its whole log is durable.
    pub(crate) fn is_log_persisted(&self) -> bool {
        self.raw.raft.raft_log.persisted == self.last_index()
    }

    /// The index of the last entry, written or not.
    pub(crate) fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// Whether this leader has committed in its term. Before that it cannot confirm reads.
    pub(crate) fn committed_in_term(&self) -> bool {
        self.raw.raft.commit_to_current_term()
    }

    pub(crate) fn transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    pub(crate) fn transfer_target(&self) -> Option<NodeId> {
        self.raw.raft.lead_transferee.and_then(NodeId::new)
    }

    /// Whether this node is the only voter. It then wins an election inside a single step.
    pub(crate) fn is_sole_voter(&self) -> bool {
        self.raw.raft.prs().is_singleton() && self.raw.raft.promotable()
    }

    pub(crate) fn is_member(&self, node: NodeId) -> bool {
        self.raw.raft.prs().get(node.as_u64()).is_some()
    }

    pub(crate) fn is_voter(&self, node: NodeId) -> bool {
        self.raw.raft.prs().conf().voters().contains(node.as_u64())
    }

    /// Whether the voters that `fit` are a quorum.
    pub(crate) fn is_quorum(&self, fit: impl Fn(NodeId) -> bool) -> bool {
        let prs = self.raw.raft.prs();
        let fitting = prs.iter().map(|(&id, _)| id).filter(|&id| NodeId::new(id).is_some_and(&fit));
        prs.has_quorum(&fitting.collect())
    }

    pub(crate) fn tick(&mut self) {
        let raft = &self.raw.raft;
        if self.is_leader() && raft.election_elapsed + 1 >= raft.election_timeout() {
            // In this tick raft checks for a quorum, and resets the flags of active peers.
            let active = raft.prs().iter().filter(|(_, progress)| progress.recent_active);
            self.heard = active.map(|(&id, _)| id).collect();
        }
        self.flows.pass(1);
        self.raw.tick();
        if !self.is_leader() {
            self.heard.clear();
        }
        self.send_due_heartbeats();
    }

    /// Counts a tick that starts no campaign. The lease of a silent leader, in which raft drops requests for votes, still ends.
    pub(crate) fn tick_without_campaign(&mut self) {
        let raft = &mut self.raw.raft;
        if raft.state != StateRole::Leader && raft.election_elapsed < raft.election_timeout() {
            raft.election_elapsed += 1;
        }
    }

    /// Counts missed ticks without passing them to raft.
    pub(crate) fn skip_ticks(&mut self, ticks: u64) {
        self.since_beat = self.since_beat.saturating_add(usize::try_from(ticks).unwrap_or(usize::MAX));
        self.flows.pass(ticks);
    }

    /// Sends heartbeats that are due by the clock. Raft, which did not count skipped ticks, sends its own later.
    fn send_due_heartbeats(&mut self) {
        self.since_beat = self.since_beat.saturating_add(1);
        if !self.is_leader() || self.raw.raft.heartbeat_elapsed() == 0 {
            self.since_beat = 0;
        } else if self.since_beat >= self.raw.raft.heartbeat_timeout() {
            self.since_beat = 0;
            self.ping();
        }
    }

    /// Passes a message to raft. It must have passed the inbound checks, because raft panics on some that have not.
    pub(crate) fn step(&mut self, message: Message) {
        let from = message.from.as_u64();
        let answers_leader = message.term == self.term() && self.is_leader();
        let mut is_lost = false;
        match (message.kind, message.reject) {
            (MessageKind::AppendResponse, true) if answers_leader => {
                self.flows.forget(from, self.raw.raft.mut_prs());
            }
            (MessageKind::AppendResponse, false) if answers_leader => {
                is_lost = self.flows.acked(from, message.index, self.raw.raft.mut_prs());
            }
            (MessageKind::HeartbeatResponse, _) if answers_leader => self.heard(from),
            _ => {}
        }
        if let Err(error) = self.raw.step(convert::message_to_raft(message)) {
            tracing::debug!(%error, "raft ignored a message");
        }
        if is_lost
            && self.is_leader()
            && let Some(progress) = self.raw.raft.mut_prs().get_mut(from)
            && progress.state == ProgressState::Probe
        {
            // Raft knew the acknowledged index, and would wait for another heartbeat response.
            progress.resume();
            self.raw.raft.send_append(from);
        }
        // After a stale reject raft may send entries that the peer has, or a snapshot that no acknowledgement ends.
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(from)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
    }

    /// Records that a peer has answered a heartbeat.
    fn heard(&mut self, peer: u64) {
        let first = self.log().first_index();
        if self.raw.raft.prs().get(peer).is_some_and(|progress| progress.next_idx < first) {
            // The peer needs a snapshot, which raft sends as soon as its window has room.
            self.flows.forget(peer, self.raw.raft.mut_prs());
        } else {
            self.flows.heard(peer);
        }
    }

    /// The index of an accepted snapshot that no ready contains yet.
    pub(crate) fn unstable_snapshot(&self) -> Option<u64> {
        self.raw.raft.raft_log.unstable_snapshot().as_ref().map(|s| s.get_metadata().index)
    }

    /// Sends a heartbeat to every peer. Raft sends more to those that answer.
    pub(crate) fn ping(&mut self) {
        self.raw.ping();
    }

    /// How raft sends to each of its peers.
    pub(crate) fn progress(&self) -> impl Iterator<Item = (NodeId, PeerProgress)> {
        let me = self.raw.raft.id;
        let peer = move |(&id, p): (&u64, &raft::Progress)| {
            Some((NodeId::new(id).filter(|_| id != me)?, progress_of(p)))
        };
        self.raw.raft.prs().iter().filter_map(peer)
    }

    /// The highest index up to which a peer is known to have the log.
    pub(crate) fn matched(&self, peer: NodeId) -> u64 {
        self.raw.raft.prs().get(peer.as_u64()).map_or(0, |progress| progress.matched)
    }

    /// The term of an entry, written or not.
    pub(crate) fn log_term(&self, index: u64) -> Option<u64> {
        self.raw.raft.raft_log.term(index).ok().filter(|&term| term != 0)
    }

    /// The attempts to send snapshots, which raft's storage uses too.
    pub(crate) fn attempts(&self) -> std::cell::RefMut<'_, Attempts> {
        self.raw.store().attempts.borrow_mut()
    }

    /// Reports lost messages to raft, which probes the peer and streams again once it answers.
    pub(crate) fn report_unreachable(&mut self, peer: NodeId) {
        self.flows.forget(peer.as_u64(), self.raw.raft.mut_prs());
        self.raw.report_unreachable(peer.as_u64());
    }

    /// Ends the live attempt and reports its outcome to raft. `false`: the attempt is not live, and nothing changed.
    pub(crate) fn settle(
        &mut self,
        attempt: SnapshotAttempt,
        status: SnapshotStatus,
        heartbeat: u64,
    ) -> bool {
        let settled = self.attempts().settle(attempt, status, heartbeat);
        if settled {
            // Messages from before the snapshot do not count for the window behind it.
            self.flows.forget(attempt.peer.as_u64(), self.raw.raft.mut_prs());
            let status = match status {
                SnapshotStatus::Finish => raft::SnapshotStatus::Finish,
                SnapshotStatus::Failure(_) => raft::SnapshotStatus::Failure,
            };
            self.raw.report_snapshot(attempt.peer.as_u64(), status);
        }
        settled
    }

    /// Removes the log up to `through`, which is applied.
    pub(crate) fn compact(&mut self, through: u64) {
        self.raw.mut_store().compact(through);
    }

    /// Appends commands as one proposal, in order, after the [`last_index`](Self::last_index). Raft broadcasts them together.
    /// `false`: raft refused all of them, because a transfer is under way or too much is uncommitted.
    pub(crate) fn propose(&mut self, commands: Vec<Bytes>) -> bool {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = self.raw.raft.id;
        let entry = |data| eraftpb::Entry { data, ..Default::default() };
        message.entries = commands.into_iter().map(entry).collect::<Vec<_>>().into();
        self.raw.raft.step(message).is_ok()
    }

    pub(crate) fn read_index(&mut self, context: Vec<u8>) {
        self.raw.read_index(context);
    }

    /// Ends the leadership of this node; raft does the same when it has not heard of a quorum.
    pub(crate) fn step_down(&mut self) {
        let term = self.term();
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.heard.clear();
    }

    pub(crate) fn transfer_leader(&mut self, to: NodeId) {
        self.raw.transfer_leader(to.as_u64());
    }

    /// Takes raft's next ready. Raft can read its entries at once, and takes them for durable after
    /// [`on_persist_ready`](Self::on_persist_ready). `is_low` says whose disks are low.
    pub(crate) fn ready(&mut self, is_low: impl Fn(NodeId) -> bool) -> Option<ReadyParts> {
        if !self.raw.has_ready() {
            return None;
        }
        let mut ready = self.raw.ready();
        if self.is_leader() {
            let raft = &mut self.raw.raft;
            self.flows.lead(raft.term, raft.mut_prs());
        }
        let install = match ready.snapshot().get_metadata() {
            meta if meta.index == 0 => None,
            meta => Some(LogId { index: meta.index, term: meta.term }),
        };
        let parts = ReadyParts {
            number: ready.number(),
            entries: convert::entries_from_raft(ready.take_entries()),
            hard_state: convert::hard_state_from_raft(&self.raw.raft.hard_state()),
            must_write: ready.must_sync() || install.is_some(),
            committed: convert::entries_from_raft(ready.take_committed_entries()),
            messages: self.sendable(ready.take_messages(), &is_low),
            messages_after_write: self.sendable(ready.take_persisted_messages(), &is_low),
            reads: ready.take_read_states().into_iter().map(|r| (r.request_ctx, r.index)).collect(),
            install,
        };
        if let Some(at) = install {
            self.raw.mut_store().log.install(at);
        }
        self.raw.mut_store().log.append(&parts.entries);
        self.raw.advance_append_async(ready);
        Some(parts)
    }

    /// Converts the messages of a ready. A leader leaves out those that must not leave yet.
    fn sendable(&mut self, messages: Vec<eraftpb::Message>, is_low: impl Fn(NodeId) -> bool) -> Vec<Message> {
        let leads = self.is_leader();
        let mut plain = Vec::with_capacity(messages.len());
        for mut message in messages.into_iter().filter_map(convert::message_from_raft) {
            let is_low = is_low(message.to);
            if !leads || self.flows.send(&mut message, self.raw.raft.mut_prs(), is_low) {
                plain.push(message);
            }
        }
        plain
    }

    /// Appends without entries for [`Flows::questions`].
    pub(crate) fn questions(&mut self) -> Vec<Message> {
        if !self.is_leader() || !self.flows.is_any_heard() {
            return Vec::new();
        }
        let raft = &self.raw.raft;
        let question = |(peer, index): (u64, u64)| -> Option<Message> {
            // Raft returns term zero for an index outside of its log.
            let log_term = raft.raft_log.term(index).ok().filter(|term| *term != 0 || index == 0)?;
            let append = Message::new(MessageKind::Append, NodeId::new(raft.id)?, NodeId::new(peer)?);
            Some(Message { term: raft.term, index, log_term, commit: raft.raft_log.committed, ..append })
        };
        self.flows.questions(raft.prs()).into_iter().filter_map(question).collect()
    }

    /// Records that everything up to this ready is durable. Call it before the messages of the ready leave.
    pub(crate) fn on_persist_ready(&mut self, number: u64) {
        self.raw.on_persist_ready(number);
    }

    /// Records that the state machine has applied everything up to `index`.
    pub(crate) fn applied_to(&mut self, index: u64) {
        self.raw.advance_apply_to(index);
        self.raw.mut_store().log.applied_to(index);
    }

    /// Takes the ranges that raft wants from the log store.
    pub(crate) fn take_fetches(&mut self) -> Vec<Fetch> {
        self.raw.mut_store().take_wanted()
    }

    /// Takes the entries of a fetch.
    pub(crate) fn fetched(&mut self, low: u64, entries: Vec<Entry>) {
        for context in self.raw.mut_store().fetched(low, entries) {
            self.raw.on_entries_fetched(context);
        }
        self.raw.mut_store().forget_arrived();
    }

    /// Records a failed fetch. `true`: the log counts as compacted there from now on, so peers get a snapshot.
    pub(crate) fn not_fetched(&mut self, low: u64) -> bool {
        let (callers, is_new) = self.raw.mut_store().not_fetched(low);
        for context in callers {
            self.raw.on_entries_fetched(context);
        }
        is_new
    }

    /// The status of each peer, without its attempts.
    pub(crate) fn peers(&self) -> Vec<PeerStatus> {
        let me = self.raw.raft.id;
        let peer = |(&id, p): (&u64, &raft::Progress)| {
            Some(PeerStatus {
                id: NodeId::new(id).filter(|_| id != me)?,
                progress: progress_of(p),
                matched: p.matched,
                applied: 0,
                disk_low: false,
                lost: None,
                next: p.next_idx,
                recent_active: p.recent_active || self.heard.contains(&id),
                pending_snapshot: p.pending_snapshot,
                progress_age_ticks: 0,
                attempt: None,
                last_attempt: None,
                backoff_ticks: 0,
            })
        };
        let mut peers: Vec<_> = self.raw.raft.prs().iter().filter_map(peer).collect();
        peers.sort_by_key(|p| p.id);
        peers
    }
}

fn progress_of(progress: &raft::Progress) -> PeerProgress {
    match progress.state {
        ProgressState::Probe => PeerProgress::Probe,
        ProgressState::Replicate => PeerProgress::Replicate,
        ProgressState::Snapshot => PeerProgress::Snapshot,
    }
}

#[cfg(test)]
mod tests;
