//! The shard: one thread that runs the loop of all groups of a node.
//!
//! The order of a turn matters. First come completions of the log, so that Raft knows what is durable. Then come reports,
//! requests of callers, messages of peers (control before appends), proposals, reads, and the tick. Last come the readies of
//! each group that had input, one write for all groups, and the messages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use towline_metrics::labels::{GroupRole, ReportKind, ReportOutcome, WaitKind};
use towline_metrics::{GroupMetrics, NodeMetrics};

use super::apply::{ApplyTask, ApplyWorker, fail_tasks};
use super::clock::Ticks;
use super::counters::Counters;
use super::founder_lines::{FounderLine, FounderLines};
use super::inbox::{Control, ShardEvent, ShardGroup, ShardInbox, StartGroup, WriteId};
use super::ingress::{Ingress, IngressBatch};
use super::peers::Peers;
use super::reader::LogReader;
use super::stall_lines::log_stall;
use super::wait_lines::WaitLines;
use super::waiter::{Answer, ReadWaiter, Waiter, contained};
use super::writer::LogWriter;
use crate::cause::catch;
use crate::config::ValidConfig;
use crate::core::{Apply, AttemptEffect, DiskRoom, Effects, SendBudget, Unreadable};
use crate::errors::{LeaderHint, ProposeError, ReadError, TransferLeaderError, UncertainCause};
use crate::explain::{Wait, WaitCause};
use crate::ids::{GroupId, NodeId, PeerAddr};
use crate::lanes::Lanes;
use crate::log_store::GroupWrite;
use crate::message::{Envelope, LostEntries};
use crate::reporter::{
    Mailbox, Report, ReportCounter as _, Reporter, SnapshotAttempt, SnapshotFailure, SnapshotStatus,
    SnapshotTicket, UnreachableCause,
};
use crate::snapshots::{Made, NotMade, Sends, SnapshotWorker};
use crate::status::{GroupState, GroupStatus, PeerRefusal, Role};
use crate::sync::lock;

const FOUNDED_DIFFERENTLY: &str = "founded with another list";
const OTHER_LIST: &str = "the two nodes founded the group with different lists of members: compare their lists; if the group \
                          holds no data anywhere, empty the directories of all its nodes and found it again with one list";

type CoreEffects = Effects<Waiter, ReadWaiter>;

/// What the shard needs from the node.
pub(crate) struct ShardDeps {
    pub(crate) node: NodeId,
    pub(crate) config: ValidConfig,
    pub(crate) mailbox: Arc<Mailbox>,
    /// The mailbox, or the caller's reporter in front of it.
    pub(crate) reporter: Arc<dyn Reporter>,
    pub(crate) lanes: Lanes,
    pub(crate) writer: LogWriter,
    pub(crate) reader: LogReader,
    pub(crate) sends: Sends,
    pub(crate) worker: SnapshotWorker,
    pub(crate) peers: Arc<Peers>,
    pub(crate) metrics: NodeMetrics,
    pub(crate) counters: Arc<Counters>,
}

/// A group in service.
pub(super) struct RunningGroup {
    pub(super) generation: u64,
    pub(super) group: ShardGroup,
    pub(super) ingress: Arc<Ingress>,
    pub(super) state: watch::Sender<GroupState>,
    pub(super) apply: ApplyWorker,
    pub(super) metrics: Arc<GroupMetrics>,
    pub(super) transfer: Option<PendingTransfer>,
    /// The addresses of the members, for hints.
    pub(super) addresses: BTreeMap<NodeId, PeerAddr>,
    pub(super) dirty: bool,
    /// The length of a tick.
    pub(super) tick: Duration,
    pub(super) node_peers: Arc<Peers>,
    /// The text for the state about the first member that founded the group with another list.
    pub(super) other_list: Option<(NodeId, Arc<str>)>,
}

/// A leadership transfer whose caller waits.
pub(super) struct PendingTransfer {
    target: NodeId,
    answer: Answer<Result<(), TransferLeaderError>>,
}

struct Shard {
    deps: ShardDeps,
    groups: BTreeMap<GroupId, RunningGroup>,
    /// Lent to each group in turn.
    budget: SendBudget,
    fx: CoreEffects,
    writes: Vec<(WriteId, GroupWrite)>,
    envelopes: Vec<Envelope>,
    wait_lines: WaitLines,
    disk_room: DiskRoom,
    founder_lines: FounderLines,
    stopping: bool,
}

/// Starts the thread.
pub(crate) fn start(inbox: ShardInbox, deps: ShardDeps) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("towline-shard".into()).spawn(move || {
        *lock(&inbox.unpark.thread) = Some(std::thread::current());
        let span = tracing::info_span!("shard", node = deps.node.as_u64());
        let _entered = span.enter();
        let shard = Shard {
            wait_lines: WaitLines::new(deps.config.election_timeout_max),
            budget: SendBudget { slots: deps.config.snapshot_sends_max, attempts: 0 },
            deps,
            groups: BTreeMap::new(),
            fx: Effects::default(),
            writes: Vec::new(),
            envelopes: Vec::new(),
            disk_room: DiskRoom::Enough,
            founder_lines: FounderLines::default(),
            stopping: false,
        };
        shard.run(&inbox);
    })
}

/// On every exit: closes the mailbox and fails pending requests.
impl Drop for Shard {
    fn drop(&mut self) {
        self.deps.mailbox.close();
        if self.groups.is_empty() {
            return;
        }
        // Groups are left only if the thread panicked. A second panic that escaped would end the process.
        let cause: Arc<str> = "the shard of the node panicked".into();
        tracing::error!(%cause, "all groups are quarantined on this node");
        let _ = catch(|| self.go_silent(&cause));
    }
}

impl Shard {
    fn run(mut self, inbox: &ShardInbox) {
        let mut ticks = Ticks::start(self.deps.config.tick, Instant::now());
        let (mut events, mut scheduled, mut reports) = (Vec::new(), Vec::new(), Vec::new());
        while !self.stopping {
            if !inbox.unpark.woken.swap(false, Ordering::AcqRel) {
                let wait = ticks.wait(Instant::now());
                if !wait.is_zero() {
                    std::thread::park_timeout(wait);
                    inbox.unpark.woken.store(false, Ordering::Release);
                }
            }
            let started = Instant::now();
            inbox.sender.take(&mut events);
            let worked = !events.is_empty();
            let control = self.take_events(&mut events);
            self.deps.mailbox.drain(&mut reports);
            reports.drain(..).for_each(|report| self.take_report(report));
            control.into_iter().for_each(|control| self.take_control(control));
            inbox.scheduled.take(&mut scheduled);
            let worked = worked || !scheduled.is_empty();
            scheduled.drain(..).for_each(|group| self.take_ingress(group));
            if let Some(missed) = ticks.take(Instant::now()) {
                self.tick(missed);
            }
            self.poll();
            if worked {
                self.deps.metrics.shard_turn(started.elapsed());
            }
        }
        let cause: Arc<str> = "the node has stopped".into();
        let groups: Vec<_> = self.groups.keys().copied().collect();
        groups.into_iter().for_each(|group| self.retire(group, &cause, GroupRole::Stopped));
    }

    /// Handles completions. Returns the requests of callers, which come later in the turn.
    fn take_events(&mut self, events: &mut Vec<ShardEvent>) -> Vec<Control> {
        let mut control = Vec::new();
        for event in events.drain(..) {
            match event {
                ShardEvent::Written(writes) => {
                    for WriteId { group, generation, number } in writes {
                        self.with(group, Some(generation), |running, fx| running.group.written(number, fx));
                    }
                }
                ShardEvent::LogPoisoned(cause) => {
                    self.go_silent(&format!("the log cannot be written: {cause}").into())
                }
                ShardEvent::Applied { group, generation, index } => {
                    self.with(group, Some(generation), |running, _| running.group.applied(index));
                }
                ShardEvent::ApplyFailed { group, generation, cause } => {
                    if self.groups.get(&group).is_some_and(|running| running.generation == generation) {
                        self.quarantine(group, &cause);
                    }
                }
                ShardEvent::Fetched { group, generation, low, entries } => {
                    self.with(group, Some(generation), |running, fx| running.group.fetched(low, entries, fx));
                }
                ShardEvent::SnapshotMade(Made { group, generation, result }) => {
                    self.with(group, Some(generation), |running, _| {
                        if result == Err(NotMade::NoRoom) {
                            running.metrics.snapshot_without_room();
                        }
                        running.group.snapshot_made(result.ok());
                    });
                }
                ShardEvent::DiskRoom(room) => {
                    self.disk_room = room;
                    let groups: Vec<_> = self.groups.keys().copied().collect();
                    groups.into_iter().for_each(|group| self.set_disk_room(group));
                }
                ShardEvent::Control(asked) => control.push(asked),
            }
        }
        control
    }

    fn take_report(&mut self, report: Report) {
        match report {
            Report::Unreachable { group, peer, cause } => {
                tracing::debug!(%group, %peer, ?cause, "messages were lost");
                if let UnreachableCause::EntriesLost(lost) = cause {
                    self.note_lost(group, peer, lost);
                }
                let outcome = match self.carry_report(group, report) {
                    true => ReportOutcome::Applied,
                    false => ReportOutcome::Stale,
                };
                self.deps.counters.count(peer, ReportKind::Unreachable, outcome, 1);
            }
            Report::Snapshot { attempt: SnapshotAttempt { group, peer, .. }, status } => {
                let outcome = match self.carry_report(group, report) {
                    false => ReportOutcome::Stale,
                    true if status == SnapshotStatus::Failure(SnapshotFailure::Lost) => {
                        tracing::warn!(%group, %peer, "the watchdog reported a snapshot attempt that had no task");
                        ReportOutcome::Synthesized
                    }
                    true => ReportOutcome::Applied,
                };
                self.deps.counters.count(peer, status.kind(), outcome, 1);
            }
        }
    }

    fn note_lost(&mut self, group: GroupId, peer: NodeId, lost: LostEntries) {
        if self.with(group, None, |running, _| running.group.note_lost(peer, lost)) == Some(true) {
            let LostEntries { last_index, acknowledged } = lost;
            tracing::error!(%group, %peer, last_index, acknowledged, "a peer lost synced entries");
        }
    }

    /// Passes a report to the core. Returns whether Raft took it.
    fn carry_report(&mut self, group: GroupId, report: Report) -> bool {
        self.with(group, None, |running, _| running.group.take_report(report)).unwrap_or(false)
    }

    fn take_control(&mut self, control: Control) {
        match control {
            Control::Start(start) => self.start_group(*start),
            Control::Status { group, answer, room } => {
                drop(room);
                if let Some(running) = self.groups.get_mut(&group) {
                    let mut status = running.group.status();
                    status.state.refused = running.refused();
                    status.refusals = running.refusals();
                    for attempt in running.group.live_attempts() {
                        let of_peer = status.peers.iter_mut().find(|peer| peer.id == attempt.peer);
                        if let Some(seen) = of_peer.and_then(|peer| peer.attempt.as_mut()) {
                            self.deps.sends.observe(&attempt, seen);
                        }
                    }
                    answer.send(status);
                }
            }
            Control::Explain { group, answer, room } => {
                drop(room);
                if let Some(running) = self.groups.get(&group) {
                    answer.send(running.explain(&self.deps));
                }
            }
            Control::Transfer { group, target, answer, room } => {
                drop(room);
                self.transfer(group, target, answer);
            }
            Control::Offered { from, offer, answer } => {
                let group = offer.meta.head.group;
                if let Some(result) = self.with(group, None, |running, _| running.group.offer(from, &offer)) {
                    answer.send(result);
                }
            }
            Control::Received { from, received, answer } => {
                let (message, meta) = *received;
                let group = meta.head.group;
                let received =
                    self.with(group, None, |running, _| running.group.receive(from, message, meta));
                if let Some(result) = received {
                    answer.send(result);
                }
            }
            Control::ForceCompaction { group } => {
                self.with(group, None, |running, _| running.group.force_compaction());
            }
            Control::Close { group, generation, cause, write, answer } => {
                let of_generation = |running: &&RunningGroup| {
                    generation.is_none_or(|generation| running.generation == generation)
                };
                let Some(running) = self.groups.get(&group).filter(of_generation) else {
                    return answer.send(None);
                };
                let hard_state = running.group.unwritten_hard_state().filter(|_| write);
                // Queued behind the group's other writes, and before `retire` shows that the group is down. Its next start
                // waits behind this write, so an old hard state never replaces the votes of a new generation.
                let last = hard_state.map(|hard_state| {
                    self.send_writes();
                    let last = GroupWrite { hard_state: Some(hard_state), ..GroupWrite::new(group) };
                    self.deps.writer.queue(Some(last))
                });
                self.retire(group, &cause, GroupRole::Stopped);
                answer.send(last);
            }
            Control::Stop => self.stopping = true,
        }
    }

    fn transfer(
        &mut self,
        group: GroupId,
        target: Option<NodeId>,
        answer: Answer<Result<(), TransferLeaderError>>,
    ) {
        let mut asked = Some(answer);
        let mut result = Err(TransferLeaderError::Stopped { cause: "the group is not running".into() });
        self.with(group, None, |running, _| {
            // Raft may have ended the last transfer in this turn.
            running.settle_transfer();
            let target = target.or_else(|| best_successor(&running.group.status()));
            result = match target {
                Some(target) => running.group.transfer(target),
                None => Err(TransferLeaderError::NotLeader {
                    hint: running.group.state().leader.map(LeaderHint::from),
                }),
            };
            if let Err(TransferLeaderError::NotLeader { hint }) = &mut result {
                running.locate(hint);
            }
            if result.is_ok() {
                running.transfer =
                    target.zip(asked.take()).map(|(target, answer)| PendingTransfer { target, answer });
            }
        });
        if let Some(answer) = asked {
            answer.send(result);
        }
    }

    fn start_group(&mut self, start: StartGroup) {
        let StartGroup { id, running, peers, started } = start;
        peers.into_iter().for_each(|peer| self.deps.mailbox.register(id, peer));
        running.metrics.waiting(&[]);
        self.groups.insert(id, running);
        self.set_disk_room(id);
        started.send(());
        // Elements queued before this turn were scheduled before the group was here.
        self.take_ingress(id);
    }

    fn set_disk_room(&mut self, group: GroupId) {
        let room = self.disk_room;
        self.with(group, None, |running, _| running.group.set_disk_room(room));
    }

    fn take_ingress(&mut self, group: GroupId) {
        let burst_max = self.deps.config.turn_burst_max;
        let counters = self.deps.counters.clone();
        self.with(group, None, |running, fx| {
            let mut taken = IngressBatch::default();
            running.ingress.take(burst_max, &mut taken);
            for (peer, objection) in taken.objections {
                running.group.note_objection(peer, objection);
            }
            for (from, message) in taken.control.into_iter().chain(taken.appends) {
                let kind = message.kind;
                if let Err(reject) = running.group.step(from, message) {
                    tracing::debug!(%group, %from, ?kind, ?reject, "a message was refused");
                    counters.rejected(reject);
                    if let Some(nack) = super::counters::late_nack(group, reject) {
                        counters.nack_later(from, nack);
                    }
                }
            }
            running.group.propose(taken.proposals, fx);
            taken.reads.into_iter().for_each(|reader| running.group.read(reader));
        });
    }

    /// Makes one tick. Missed ticks are skipped: replaying them would end an election timeout at once.
    fn tick(&mut self, missed: u64) {
        if missed > 0 {
            self.deps.metrics.ticks_skipped(missed);
        }
        let (mailbox, sends) = (self.deps.mailbox.clone(), self.deps.sends.clone());
        // In this order, because a task reports before it leaves the list.
        let is_owed = |attempt: &SnapshotAttempt| sends.is_running(attempt) || mailbox.has_outcome(*attempt);
        let unsent: usize = self.groups.values().map(|running| running.group.unsent_attempts()).sum();
        self.budget.slots = self.deps.config.snapshot_sends_max.saturating_sub(unsent + sends.count());
        let refusals = self.deps.refusals();
        let groups: Vec<_> = self.groups.keys().copied().collect();
        for group in groups {
            self.with(group, None, |running, fx| {
                refusals.keys().for_each(|peer| running.group.note_refusal(*peer));
                running.group.skip_ticks(missed);
                running.group.tick(fx);
                running.group.watch(is_owed, fx);
            });
            self.answer_late(group);
        }
        self.log_other_founders();
    }

    /// Logs the members that founded groups with another list.
    fn log_other_founders(&mut self) {
        let of_group = |(group, running): (&GroupId, &RunningGroup)| {
            let group = *group;
            running.group.other_founders().map(move |(peer, _)| (group, peer)).collect::<Vec<_>>()
        };
        let found = self.groups.iter().flat_map(of_group);
        for FounderLine { peer, group, groups } in self.founder_lines.due(found, Instant::now()) {
            let meaning = OTHER_LIST;
            tracing::warn!(%peer, groups, %group, meaning, "a member founded this group with another list: both refuse each other");
        }
    }

    /// Fails the proposals past their deadline, wherever they are.
    fn answer_late(&mut self, group: GroupId) {
        let after = self.deps.config.proposal_timeout;
        let Some(before) = Instant::now().checked_sub(after) else { return };
        let Some(running) = self.groups.get(&group) else { return };
        let late = running.ingress.take_late(before);
        if late.is_empty() {
            return;
        }
        let cause = running.holdup();
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        for proposal in late {
            let cause = UncertainCause::Timeout { after_ms, cause: cause.clone() };
            proposal.fail(ProposeError::Uncertain { cause });
        }
    }

    /// Polls each group that had input, then sends one write for all groups, then the messages.
    fn poll(&mut self) {
        let dirty: Vec<_> = self.groups.iter().filter(|(_, r)| r.dirty).map(|(id, _)| *id).collect();
        for group in dirty {
            self.with(group, None, |running, fx| running.group.poll(fx));
            if let Some(running) = self.groups.get_mut(&group) {
                running.dirty = false;
                running.ingress.set_reads_held(running.group.reads_waiting());
                contained(|| running.publish());
                running.settle_transfer();
            }
        }
        self.send_writes();
        if !self.envelopes.is_empty() {
            self.deps.lanes.send_many(self.envelopes.drain(..));
        }
    }

    fn send_writes(&mut self) {
        if !self.writes.is_empty() {
            self.deps.writer.write(std::mem::take(&mut self.writes));
        }
    }

    /// Runs something on a group and carries out its effects. A panic quarantines this group alone. `None` if there is no
    /// such generation, or it panicked.
    fn with<T>(
        &mut self,
        id: GroupId,
        generation: Option<u64>,
        run: impl FnOnce(&mut RunningGroup, &mut CoreEffects) -> T,
    ) -> Option<T> {
        let running = self.groups.get_mut(&id)?;
        if generation.is_some_and(|generation| running.generation != generation) {
            return None;
        }
        running.dirty = true;
        running.group.lend(self.budget);
        let fx = &mut self.fx;
        match catch(|| run(running, fx)) {
            Ok(result) => {
                self.budget = running.group.budget();
                self.carry_out(id);
                Some(result)
            }
            Err(panic) => {
                let cause: Arc<str> = format!("the group panicked: {panic}").into();
                // Incomplete effects must not get out, such as a write without its messages.
                abandon(std::mem::take(&mut self.fx), &cause);
                self.quarantine(id, &cause);
                None
            }
        }
    }

    fn carry_out(&mut self, id: GroupId) {
        let Some(running) = self.groups.get(&id) else { return };
        let fx = &mut self.fx;
        self.envelopes.extend(fx.messages.drain(..).map(|message| Envelope { group: id, message }));
        if let Some((number, write)) = fx.write.take() {
            self.writes.push((WriteId { group: id, generation: running.generation, number }, write));
        }
        if !fx.apply.is_empty() {
            let tasks = std::mem::take(&mut fx.apply);
            note_commit_times(&tasks, &running.metrics);
            running.apply.apply(id, running.generation, tasks);
        }
        fx.readable.drain(..).for_each(ReadWaiter::answer);
        for (waiter, mut error) in fx.refused.drain(..) {
            if let ProposeError::NotLeader { hint } | ProposeError::Superseded { hint } = &mut error {
                running.locate(hint);
            }
            waiter.fail(error);
        }
        for (reader, error) in fx.unread.drain(..) {
            reader.fail(running.explained(error));
        }
        for fetch in fx.fetches.drain(..) {
            self.deps.reader.fetch(id, running.generation, fetch);
        }
        for Unreadable { index, cause } in fx.unreadable.drain(..) {
            running.metrics.unreadable();
            tracing::warn!(group = %id, index, cause, "a part of the log cannot be read: peers that need it get a snapshot");
        }
        fx.notices.drain(..).for_each(|notice| log_stall(id, notice, self.deps.config.tick));
        if !fx.waits.is_empty() {
            let waits = running.explain(&self.deps);
            for notice in fx.waits.drain(..) {
                let wait =
                    waits.iter().find(|wait| (wait.peer, wait.cause.kind()) == (notice.peer, notice.kind));
                self.wait_lines.log(id, notice, wait.filter(|_| !notice.ended), running.tick);
            }
        }
        if let Some(kinds) = fx.waiting.take() {
            running.metrics.waiting(&kinds);
        }
        fx.attempts.drain(..).for_each(|effect| self.deps.carry_out(effect));
        if let Some(through) = fx.compact.take() {
            self.deps.reader.compact(id, through);
        }
        if let Some(keep) = fx.retain.take() {
            self.deps.worker.retain(id, keep);
        }
        if let Some(lost) = fx.lost.take() {
            let record = self.deps.peers.lose(id, lost);
            self.deps.reader.run(record);
            return self.quarantine(id, &lost.to_string().into());
        }
        if let Some(cause) = fx.fatal.take() {
            self.quarantine(id, &cause.into());
        }
    }

    /// Takes one group out of service after a failure.
    fn quarantine(&mut self, group: GroupId, cause: &Arc<str>) {
        tracing::error!(%group, %cause, "the group is quarantined on this node");
        self.retire(group, cause, GroupRole::Quarantined);
    }

    /// Takes all groups out of service: no tick, no heartbeat, no vote. With a failed log, a leader that kept sending
    /// heartbeats would stay leader without ever committing.
    fn go_silent(&mut self, cause: &Arc<str>) {
        let groups: Vec<_> = self.groups.keys().copied().collect();
        groups.into_iter().for_each(|group| self.retire(group, cause, GroupRole::Quarantined));
    }

    fn retire(&mut self, group: GroupId, cause: &Arc<str>, role: GroupRole) {
        let Some(mut running) = self.groups.remove(&group) else { return };
        running.ingress.close(cause);
        let attempts = catch(|| running.group.live_attempts()).unwrap_or_default();
        attempts.iter().for_each(|attempt| self.deps.disarm(attempt, cause));
        let mut fx = CoreEffects::default();
        // After a panic the group may be in any state. If this fails too, the drops of the waiters answer their callers.
        if catch(|| running.group.dissolve(cause, &mut fx)).is_ok() {
            abandon(fx, cause);
        }
        // The state machine may hold proposals in a call that does not return.
        for proposal in running.ingress.take_unanswered() {
            proposal.fail(ProposeError::Uncertain { cause: UncertainCause::Down(cause.clone()) });
        }
        running.apply.remove_group(group, running.generation);
        running.metrics.role(role);
        running.metrics.waiting(&[WaitKind::Down]);
        contained(|| {
            running.state.send_modify(|state| {
                state.role = Role::Down;
                state.leader = None;
                state.down = Some(cause.clone());
            });
        });
        // The drop wakes waiters and watchers of the group.
        contained(|| drop(running));
    }
}

impl ShardDeps {
    fn carry_out(&self, effect: AttemptEffect) {
        match effect {
            AttemptEffect::Arm(send) => {
                self.mailbox.arm(send.attempt);
                let ticket = SnapshotTicket::new(send.attempt, self.reporter.clone());
                self.sends.start(*send, ticket);
            }
            AttemptEffect::Settle { attempt, cause } => {
                self.reporter.report_snapshot(attempt, SnapshotStatus::Failure(cause));
                // A lost attempt has no transfer to cancel, so the cause is the pinned log.
                self.sends.cancel(&attempt, &"the log grew by snapshot_pin_bytes_max meanwhile".into());
            }
            AttemptEffect::Disarm { attempt, cause } => self.disarm(&attempt, &cause.to_string().into()),
        }
    }

    /// The peers that refuse this node, or are refused, as of the last call in either direction.
    fn refusals(&self) -> BTreeMap<NodeId, Arc<str>> {
        let call = self.config.lane_connect_timeout + 2 * self.config.lane_backoff_max;
        self.peers.refused_by().lately(call, Instant::now())
    }

    fn disarm(&self, attempt: &SnapshotAttempt, cause: &Arc<str>) {
        self.mailbox.disarm(attempt.group, attempt.peer);
        self.sends.cancel(attempt, cause);
    }
}

fn note_commit_times(tasks: &[ApplyTask], metrics: &GroupMetrics) {
    let now = Instant::now();
    for task in tasks {
        if let Apply::Entries { waiters, .. } = task {
            let age = |waiter: &Waiter| now.saturating_duration_since(waiter.since());
            waiters.iter().flatten().for_each(|waiter| metrics.commit_time(age(waiter)));
        }
    }
}

fn abandon(fx: CoreEffects, cause: &Arc<str>) {
    fail_tasks(fx.apply, cause);
    fx.readable.into_iter().for_each(|reader| reader.fail(ReadError::Stopped { cause: cause.clone() }));
    fx.refused.into_iter().for_each(|(waiter, error): (Waiter, ProposeError)| waiter.fail(error));
    fx.unread.into_iter().for_each(|(reader, error)| reader.fail(error));
}

/// The active peer with the most of the log, if possible one with room on its disk.
fn best_successor(status: &GroupStatus) -> Option<NodeId> {
    status.peers.iter().filter(|p| p.recent_active).max_by_key(|p| (!p.disk_low, p.matched)).map(|p| p.id)
}

impl RunningGroup {
    /// Adds the present state machine call to the error.
    fn explained(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::NotApplied { index, applied, call: None } => {
                let call = self.apply.call().map(|call| call.to_string().into());
                ReadError::NotApplied { index, applied, call }
            }
            error => error,
        }
    }

    /// What the group waits for, with the present call of the state machine, the progress of transfers and the causes of
    /// refusals.
    fn explain(&self, deps: &ShardDeps) -> Vec<Wait> {
        let mut waits = self.group.explain(self.tick);
        let refusals = deps.refusals();
        for wait in &mut waits {
            match (&mut wait.cause, wait.peer) {
                (WaitCause::Apply { call, .. }, None) => {
                    *call = self.apply.call().map(|call| call.to_string().into());
                }
                (WaitCause::Snapshot { attempt: seen }, Some(peer)) => {
                    let live = self.group.live_attempts();
                    live.iter()
                        .filter(|attempt| attempt.peer == peer)
                        .for_each(|at| deps.sends.observe(at, seen));
                }
                (WaitCause::Refused { why: why @ None, .. }, Some(peer)) => {
                    *why = refusals.get(&peer).cloned()
                }
                (WaitCause::NoQuorum { voters, .. }, _) => {
                    voters.iter_mut().for_each(|voter| voter.refused = refusals.get(&voter.id).cloned());
                }
                _ => {}
            }
        }
        waits
    }

    /// The peers of the group that refuse this node.
    fn refusals(&self) -> Vec<PeerRefusal> {
        let tick_ms = u64::try_from(self.tick.as_millis()).unwrap_or(u64::MAX);
        let founded = self.group.other_founders().map(|(by, ticks)| PeerRefusal {
            by,
            refusal: FOUNDED_DIFFERENTLY.into(),
            meaning: OTHER_LIST,
            age_ms: ticks.saturating_mul(tick_ms),
        });
        let mut all: Vec<_> = founded.collect();
        all.extend(
            self.node_peers.refused_by().of(|peer| self.addresses.contains_key(&peer), Instant::now()),
        );
        all
    }

    /// The first of these refusals.
    fn refused(&mut self) -> Option<Arc<str>> {
        let Some((by, _)) = self.group.other_founders().next() else {
            return self.node_peers.refused_by().text(|peer| self.addresses.contains_key(&peer));
        };
        if self.other_list.as_ref().is_none_or(|(of, _)| *of != by) {
            self.other_list =
                Some((by, format!("refused by node {by}: {FOUNDED_DIFFERENTLY}; {OTHER_LIST}").into()));
        }
        self.other_list.as_ref().map(|(_, text)| text.clone())
    }

    fn locate(&self, hint: &mut Option<LeaderHint>) {
        if let Some(hint) = hint {
            hint.address = self.addresses.get(&hint.node).cloned();
        }
    }

    /// What a late proposal waits for.
    fn holdup(&self) -> Arc<str> {
        let GroupState { commit, applied, .. } = self.group.state();
        match self.apply.call() {
            Some(call) if applied < commit => call.to_string().into(),
            _ => {
                let last = self.group.last_index();
                format!("the log ends at {last}, is committed up to {commit} and applied up to {applied}")
                    .into()
            }
        }
    }

    /// Answers the caller of a leadership transfer that raft has ended: `Ok` if this node no longer leads.
    fn settle_transfer(&mut self) {
        // The group may have begun another one in the tick that ended this one.
        let under_way = self.group.transfer_target();
        if let Some(PendingTransfer { target, answer }) =
            self.transfer.take_if(|transfer| under_way != Some(transfer.target))
        {
            answer.send(match self.group.state().role {
                Role::Leader => Err(TransferLeaderError::Timeout { target }),
                _ => Ok(()),
            });
        }
    }

    /// Publishes changes to watchers and gauges.
    fn publish(&mut self) {
        let state = GroupState { refused: self.refused(), ..self.group.state() };
        self.metrics.commit(state.commit);
        self.metrics.applied(state.applied);
        self.metrics.last_index(self.group.last_index());
        let (write, apply) = self.group.ages();
        let elapsed = |ticks: u64| self.tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
        self.metrics.ages(elapsed(write), elapsed(apply));
        self.state.send_if_modified(|old| {
            if old.term != state.term {
                self.metrics.term(state.term);
            }
            if old.role != state.role {
                self.metrics.role(match state.role {
                    Role::Follower => GroupRole::Follower,
                    Role::Candidate => GroupRole::Candidate,
                    Role::Leader => GroupRole::Leader,
                    Role::Down => GroupRole::Quarantined,
                });
                if state.role == Role::Candidate {
                    self.metrics.campaigned();
                }
            }
            if old.leader != state.leader {
                self.metrics.leader_changed();
            }
            let changed = *old != state;
            if changed {
                *old = state;
            }
            changed
        });
    }
}
