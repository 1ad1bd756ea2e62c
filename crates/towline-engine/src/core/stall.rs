//! How long the oldest write and the oldest committed entry have been waiting, in ticks, and which of them stands still.
//!
//! A leader whose disk or state machine hangs still sends heartbeats, so Raft alone keeps it leader while it serves nothing.
//! [`Stalls`] measures; [`GroupCore`](super::GroupCore) moves the leadership.

use std::collections::VecDeque;

use crate::ids::NodeId;

/// After how many ticks without progress a leader hands over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StallPolicy {
    /// Ticks that a write may take to become durable.
    pub log_ticks: u64,
    /// Ticks that the state machine may take without applying anything, while committed entries wait for it.
    pub apply_ticks: u64,
}

impl Default for StallPolicy {
    fn default() -> Self {
        Self { log_ticks: 100, apply_ticks: 500 }
    }
}

/// The room on the disk of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DiskRoom {
    /// The node takes commands.
    #[default]
    Enough,
    /// It takes no commands, but for those of earlier terms that a new leader needs for its first commit.
    Low,
    /// It takes no commands.
    Short,
}

/// What a leader does about a stall, for the operator's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StallNotice {
    /// The log has not finished a write, and a quorum of the other voters has its entries: leadership goes to one of them.
    LogHandsOver {
        /// The age of the write, in ticks.
        ticks: u64,
        /// The voter.
        target: NodeId,
    },
    /// The log has not finished a write, and no quorum of the other voters has its entries: leadership stays.
    LogStays {
        /// The age of the write, in ticks.
        ticks: u64,
    },
    /// The target did not take over: this node stepped down.
    LogStepsDown,
    /// The log of this leader finishes its writes again.
    LogRecovered,
    /// The state machine makes no progress: leadership goes to a voter that has applied the oldest waiting command.
    ApplyHandsOver {
        /// Ticks without progress.
        ticks: u64,
        /// The voter.
        target: NodeId,
    },
    /// The state machine makes no progress, and no other voter has applied the oldest waiting command: leadership stays.
    ApplyStays {
        /// Ticks without progress.
        ticks: u64,
    },
    /// The state machine of this leader makes progress again.
    ApplyRecovered,
    /// The disk of this leader is low, and a quorum has room: leadership goes to one of its voters.
    DiskHandsOver {
        /// The voter.
        target: NodeId,
    },
    /// The disk of this leader is low, and no quorum has room, or no voter of it could take over: leadership stays.
    DiskStays,
    /// The disk of this leader has room again.
    DiskRecovered,
}

/// A write under way.
#[derive(Debug, Clone, Copy)]
struct Write {
    number: u64,
    since: u64,
    /// The last index of the log as of this write.
    through: u64,
}

/// What a leader has done about its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LogState {
    #[default]
    InTime,
    /// [`StallNotice::LogStays`] was given.
    Stays,
    /// [`StallNotice::LogHandsOver`] was given, for the write with this number.
    HandingOver(u64),
}

/// Ages of what has not made progress.
#[derive(Debug)]
pub(super) struct Stalls {
    policy: StallPolicy,
    pub(super) log: LogState,
    writes: VecDeque<Write>,
    /// The oldest write, by number, and the tick from which the commit index has covered it.
    covered: Option<(u64, u64)>,
    /// The last index of each batch of committed entries that was given out, with its tick; those not applied.
    unapplied: VecDeque<(u64, u64)>,
    /// The tick of the last progress of the state machine.
    applied_at: u64,
    pub(super) apply: Moves,
    pub(super) disk: Moves,
}

/// The longest wait between two transfers, in first waits.
const WAITS_MAX: u32 = 64;

/// What a leader has done about its state machine, or about its low disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moves {
    /// Whether a notice was given.
    pub(super) noted: bool,
    /// Transfers begun since this leader became unfit.
    pub(super) transfers: u32,
    /// The tick from which the next may begin.
    pub(super) retry_at: u64,
}

impl Moves {
    /// A transfer begins. Each further one waits twice as long.
    pub(super) fn begin(&mut self, now: u64, first_wait: u64) {
        let waits = (1 << self.transfers.min(31)).min(WAITS_MAX);
        self.transfers = self.transfers.saturating_add(1);
        self.retry_at = now.saturating_add(u64::from(waits).saturating_mul(first_wait));
    }
}

impl Stalls {
    pub(super) fn new(policy: StallPolicy) -> Self {
        Self {
            policy,
            log: LogState::InTime,
            writes: VecDeque::new(),
            covered: None,
            unapplied: VecDeque::new(),
            applied_at: 0,
            apply: Moves::default(),
            disk: Moves::default(),
        }
    }

    /// Write `number` was made; the log ends at `through` with it.
    pub(super) fn write_made(&mut self, number: u64, through: u64, now: u64) {
        self.writes.push_back(Write { number, since: now, through });
    }

    /// Everything up to write `number` is durable.
    pub(super) fn written(&mut self, number: u64) {
        while self.writes.front().is_some_and(|write| write.number <= number) {
            self.writes.pop_front();
        }
    }

    /// Ticks since the oldest write that is not durable was made.
    pub(super) fn log_age(&self, now: u64) -> u64 {
        self.writes.front().map_or(0, |write| now.saturating_sub(write.since))
    }

    pub(super) fn is_log_late(&self, now: u64) -> bool {
        self.log_age(now) > self.policy.log_ticks
    }

    /// A leader whose log is late twice over: no quorum has made up for it meanwhile.
    pub(super) fn is_log_very_late(&self, now: u64) -> bool {
        self.log_age(now) > self.policy.log_ticks.saturating_mul(2)
    }

    /// The number of the oldest write and the log's end as of then, if the commit index has covered that for longer than a
    /// write may take. The others are faster by that much, and not only by chance.
    pub(super) fn outrun(&mut self, commit: u64, now: u64) -> Option<(u64, u64)> {
        let write = self.writes.front().filter(|write| write.through <= commit)?;
        let since = match self.covered {
            Some((number, since)) if number == write.number => since,
            _ => self.covered.insert((write.number, now)).1,
        };
        (now.saturating_sub(since) > self.policy.log_ticks).then_some((write.number, write.through))
    }

    /// Committed entries up to `through` were given to the state machine.
    pub(super) fn handed(&mut self, through: u64, now: u64) {
        if self.unapplied.is_empty() {
            self.applied_at = now;
        }
        match self.unapplied.back_mut() {
            // One element a tick bounds the queue by the length of a stall.
            Some((last, since)) if *since == now => *last = through,
            _ => self.unapplied.push_back((through, now)),
        }
    }

    /// The state machine is at `index`.
    pub(super) fn applied(&mut self, index: u64, now: u64) {
        self.applied_at = now;
        while self.unapplied.front().is_some_and(|&(through, _)| through <= index) {
            self.unapplied.pop_front();
        }
    }

    /// Ticks since the oldest committed entry that is not applied was given to the state machine.
    pub(super) fn apply_age(&self, now: u64) -> u64 {
        self.unapplied.front().map_or(0, |&(_, since)| now.saturating_sub(since))
    }

    /// The last index of the oldest batch, and the ticks without progress, if the state machine stands still.
    pub(super) fn stuck_apply(&self, now: u64) -> Option<(u64, u64)> {
        let &(through, _) = self.unapplied.front()?;
        let ticks = now.saturating_sub(self.applied_at);
        (ticks > self.policy.apply_ticks).then_some((through, ticks))
    }
}
