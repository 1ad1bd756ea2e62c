//! Counts of the snapshots that Raft emitted and the reports that it got. The simulator checks them against Raft's state of each
//! peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use towline_engine::ids::NodeId;
use towline_engine::reporter::{Mailbox, Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};

/// One run of one node.
pub(crate) type NodeRun = (NodeId, u64);

/// Faults of reports, in thousandths of the reports, that test the simulator itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sabotage {
    #[default]
    Nothing,
    /// Reports are lost before the mailbox, also those of the watchdog.
    Drops(u32),
    /// Reports are counted twice.
    Doubles(u32),
}

impl Sabotage {
    fn drops(self) -> u32 {
        if let Self::Drops(permille) = self { permille } else { 0 }
    }

    pub(crate) fn doubles(self) -> u32 {
        if let Self::Doubles(permille) = self { permille } else { 0 }
    }
}

/// The reporter of the tickets and the watchdog of a node.
pub(crate) struct LossyReporter {
    mailbox: Arc<Mailbox>,
    lost_permille: u32,
    rng: Mutex<fastrand::Rng>,
}

impl LossyReporter {
    pub(crate) fn new(mailbox: Arc<Mailbox>, sabotage: Sabotage, lose_all: bool, seed: u64) -> Self {
        let lost_permille = if lose_all { 1_000 } else { sabotage.drops() };
        Self { mailbox, lost_permille, rng: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }
}

impl Reporter for LossyReporter {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.mailbox.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        if self.rng.lock().unwrap().u32(0..1000) >= self.lost_permille {
            self.mailbox.report_snapshot(attempt, status);
        }
    }
}

/// The emitted snapshots that wait for their report. Exempt are those whose node or leadership has ended, because Raft has
/// forgotten them.
#[derive(Debug, Default)]
pub(crate) struct ReportCounts {
    /// By leader and peer, with the term.
    open: BTreeMap<(NodeRun, NodeId), u64>,
    pub(crate) emitted: usize,
    pub(crate) told: usize,
    pub(crate) finished: usize,
    pub(crate) leadership_ended: usize,
    pub(crate) node_ended: usize,
    wrong: Vec<String>,
}

impl ReportCounts {
    pub(crate) fn emitted(&mut self, of: NodeRun, peer: NodeId, term: u64) {
        self.emitted += 1;
        if self.open.insert((of, peer), term).is_some_and(|before| before == term) {
            self.wrong.push(format!("{of:?} got no report of a snapshot to {peer} before the next"));
        }
    }

    pub(crate) fn told(&mut self, of: NodeRun, peer: NodeId, finished: bool) {
        self.told += 1;
        self.finished += usize::from(finished);
        if self.open.remove(&(of, peer)).is_none() {
            self.wrong.push(format!("{of:?} got a second report of a snapshot to {peer}"));
        }
    }

    /// Notes the term in which the node leads now, if it does.
    pub(crate) fn leads(&mut self, of: NodeRun, term: Option<u64>) {
        let before = self.open.len();
        self.open.retain(|(leader, _), in_term| *leader != of || term == Some(*in_term));
        self.leadership_ended += before - self.open.len();
    }

    pub(crate) fn run_ended(&mut self, of: NodeRun) {
        let before = self.open.len();
        self.open.retain(|(leader, _), _| *leader != of);
        self.node_ended += before - self.open.len();
    }

    /// The snapshots without exactly one report, once all transfers have ended.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let never = self.open.iter().map(|(key, term)| format!("{key:?} got no report in term {term}"));
        self.wrong.iter().cloned().chain(never).collect()
    }
}
