//! A group and the least that a driver does for it.

use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::Waker;

use super::*;
use crate::core::{GroupLog, VoidCause};
use crate::message::ConfState;
use crate::reporter::{
    Mailbox, Reporter as _, SnapshotAttempt, SnapshotFailure, SnapshotStatus, SnapshotTicket,
};

/// In ticks.
pub(crate) const HEARTBEAT: u64 = 2;

/// Node 1. Its effects stay in `fx` until a test takes them. Effects on attempts are carried out as the shard does it.
pub(crate) struct TestGroup {
    core: GroupCore<u64, u64>,
    election_ticks: u64,
    pub(crate) fx: Effects<u64, u64>,
    pub(crate) mailbox: Arc<Mailbox>,
    /// The send slots of the node.
    pub(crate) slots: usize,
    /// Each running transfer holds a clone.
    slot: Arc<()>,
    pub(crate) transfers: Vec<RunningTransfer>,
    /// Attempts whose transfers must stop.
    pub(crate) cancelled: Vec<SnapshotAttempt>,
    pub(crate) voided: Vec<VoidCause>,
}

#[derive(Debug)]
pub(crate) struct RunningTransfer {
    pub(crate) ticket: SnapshotTicket,
    pub(crate) meta: SnapshotMeta,
    _slot: Arc<()>,
}

impl RunningTransfer {
    pub(crate) fn fail(self, cause: SnapshotFailure) {
        self.ticket.fail(cause);
    }
}

impl Deref for TestGroup {
    type Target = GroupCore<u64, u64>;

    fn deref(&self) -> &Self::Target {
        &self.core
    }
}

impl DerefMut for TestGroup {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.core
    }
}

impl TestGroup {
    pub(crate) fn new(setup: GroupSetup) -> Self {
        Self {
            election_ticks: setup.replica.election_ticks_min as u64,
            core: GroupCore::new(setup).unwrap(),
            fx: Effects::default(),
            mailbox: Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(()))),
            slots: 1,
            slot: Arc::new(()),
            transfers: Vec::new(),
            cancelled: Vec::new(),
            voided: Vec::new(),
        }
    }

    fn lend(&mut self) {
        let taken = Arc::strong_count(&self.slot) - 1 + self.unsent_attempts();
        let budget = SendBudget { slots: self.slots.saturating_sub(taken), ..self.budget() };
        self.core.lend(budget);
    }

    pub(crate) fn tick(&mut self) {
        self.lend();
        self.core.tick(&mut self.fx);
    }

    pub(crate) fn ticks(&mut self, count: u64) {
        (0..count).for_each(|_| self.tick());
    }

    pub(crate) fn step(&mut self, message: Message) -> Result<(), Reject> {
        self.core.step(message.from, message)
    }

    /// Steps a message that must be accepted.
    pub(crate) fn deliver(&mut self, message: Message) {
        self.step(message).unwrap();
    }

    pub(crate) fn propose(&mut self, commands: impl IntoIterator<Item = Vec<u8>>) {
        let proposals = commands.into_iter().map(|command| (command.into(), 0)).collect();
        self.core.propose(proposals, &mut self.fx);
    }

    pub(crate) fn poll(&mut self) {
        self.core.poll(&mut self.fx);
    }

    /// Polls, and takes the write that this must give.
    pub(crate) fn poll_write(&mut self) -> (u64, GroupWrite) {
        self.poll();
        self.fx.write.take().unwrap()
    }

    pub(crate) fn written(&mut self, number: u64) {
        self.core.written(number, &mut self.fx);
    }

    /// Polls until the group is quiet. Writes are durable and entries applied at once.
    pub(crate) fn turn(&mut self) {
        self.lend();
        self.poll();
        while let Some((number, _)) = self.fx.write.take() {
            self.written(number);
            self.poll();
        }
        let through = self.fx.apply.iter().rev().find_map(|task| match task {
            Apply::Entries { through, .. } => Some(through.index),
            _ => None,
        });
        if let Some(index) = through {
            self.applied(index);
            self.poll();
        }
        self.carry_out();
    }

    /// A [`turn`](Self::turn), and all effects so far.
    pub(crate) fn settle(&mut self) -> Effects<u64, u64> {
        self.turn();
        std::mem::take(&mut self.fx)
    }

    /// The watchdog, while transfers hold the tickets of these attempts.
    pub(crate) fn watch(&mut self, held: &[SnapshotAttempt]) {
        let (core, mailbox) = (&self.core, &self.mailbox);
        core.watch(|attempt| held.contains(attempt) || mailbox.has_outcome(*attempt), &mut self.fx);
        self.carry_out();
    }

    fn carry_out(&mut self) {
        for effect in std::mem::take(&mut self.fx.attempts) {
            match effect {
                AttemptEffect::Arm(send) => {
                    let SnapshotSend { attempt, meta, .. } = *send;
                    self.mailbox.arm(attempt);
                    let ticket = SnapshotTicket::new(attempt, self.mailbox.clone());
                    self.transfers.push(RunningTransfer { ticket, meta, _slot: self.slot.clone() });
                }
                AttemptEffect::Settle { attempt, cause } => {
                    self.mailbox.report_snapshot(attempt, SnapshotStatus::Failure(cause));
                    self.cancelled.push(attempt);
                }
                AttemptEffect::Disarm { attempt, cause } => {
                    self.mailbox.disarm(attempt.group, attempt.peer);
                    self.cancelled.push(attempt);
                    self.voided.push(cause);
                }
            }
        }
    }

    /// Passes the reports in the mailbox to the group. Returns how many changed something, and how many were stale.
    pub(crate) fn drain(&mut self) -> (usize, usize) {
        let mut reports = Vec::new();
        self.mailbox.drain(&mut reports);
        let live = reports.iter().filter(|&&report| self.take_report(report)).count();
        (live, reports.len() - live)
    }

    /// The only transfer that was started and not taken.
    pub(crate) fn take_transfer(&mut self) -> RunningTransfer {
        assert_eq!(self.transfers.len(), 1, "{:?}", self.transfers);
        self.transfers.remove(0)
    }

    /// Ends a transfer, and passes its report to the group.
    pub(crate) fn fail(&mut self, transfer: RunningTransfer, cause: SnapshotFailure) {
        transfer.fail(cause);
        assert_eq!(self.drain(), (1, 0));
    }

    /// A response of node 2 in the current term.
    pub(crate) fn answer(&self, kind: MessageKind) -> Message {
        message(kind, 2, self.state().term)
    }

    /// Node `from` acknowledges the log up to `index`.
    pub(crate) fn acknowledge(&mut self, from: u64, index: u64) {
        let term = self.state().term;
        self.deliver(Message { index, ..message(MessageKind::AppendResponse, from, term) });
    }

    /// Ticks and pre-votes until the group is a candidate whose requests for votes have not left.
    pub(crate) fn campaign(&mut self) {
        self.ticks(self.election_ticks);
        self.settle();
        self.deliver(message(MessageKind::RequestPreVoteResponse, 2, self.state().term + 1));
    }

    /// Makes the group the leader.
    pub(crate) fn lead(&mut self) {
        self.campaign();
        self.settle();
        self.deliver(self.answer(MessageKind::RequestVoteResponse));
        self.settle();
        assert_eq!(self.state().role, crate::status::Role::Leader);
    }
}

/// A group of `voters` nodes. The recovered entries are applied.
pub(crate) fn setup(voters: u64, log: GroupLog, election_ticks: usize) -> GroupSetup {
    let applied = log.applied();
    let conf_state = ConfState { voters: (1..=voters).map(id).collect(), ..ConfState::default() };
    GroupSetup {
        replica: ReplicaSetup {
            node: id(1),
            group: GroupId::DEFAULT,
            log,
            hard_state: HardState { term: u64::from(applied > 0), vote: None, commit: applied },
            conf_state: conf_state.clone(),
            heartbeat_ticks: HEARTBEAT as usize,
            election_ticks: election_ticks..election_ticks + 1,
            election_ticks_min: election_ticks,
            append_bytes_max: 1 << 20,
            append_inflight_max: 16,
            commit_broadcast: true,
            uncommitted_bytes_max: 1 << 20,
            committed_bytes_max: 1 << 20,
        },
        origin: [1; 16],
        quiet_ticks: 0,
        read_timeout_ticks: 200,
        read_retry_ticks: HEARTBEAT,
        unapplied_bytes_max: 1 << 20,
        stall: StallPolicy { log_ticks: 10, apply_ticks: 50 },
        founding_memory_ticks: 80,
        conf: ConfRecord { conf_state, ..ConfRecord::default() },
        snapshots: SnapshotSetup::default(),
    }
}

pub(crate) fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

pub(crate) fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![1].into(), ..Entry::default() }
}

/// A message to node 1.
pub(crate) fn message(kind: MessageKind, from: u64, term: u64) -> Message {
    Message { term, ..Message::new(kind, id(from), id(1)) }
}

/// The text of the panic that `run` must cause.
pub(crate) fn panic_of(run: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(run)).expect_err("no panic");
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().copied().unwrap_or_default().into(),
    }
}
