//! What Raft emitted and what Raft was told, counted where the core says so. The world checks the core's word against Raft's
//! own state of each peer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use towline_engine::ids::NodeId;
use towline_engine::reporter::{Mailbox, Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};

/// One life of one node.
pub(crate) type Life = (NodeId, u64);

/// What is done wrong on purpose, in parts of a thousand of the reports: for tests of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    /// Reports about snapshots are lost before the mailbox, those of the watchdog too.
    Drops(u32),
    /// Reports that Raft was told are entered twice.
    Doubles(u32),
}

impl Plant {
    fn drops(self) -> u32 {
        if let Self::Drops(permille) = self { permille } else { 0 }
    }

    pub(crate) fn doubles(self) -> u32 {
        if let Self::Doubles(permille) = self { permille } else { 0 }
    }
}

/// Where the tickets of a node report, and its watchdog.
pub(crate) struct Lossy {
    mailbox: Arc<Mailbox>,
    lost_permille: u32,
    rng: Mutex<fastrand::Rng>,
}

impl Lossy {
    pub(crate) fn new(mailbox: Arc<Mailbox>, plant: Plant, lose_all: bool, seed: u64) -> Self {
        let lost_permille = if lose_all { 1_000 } else { plant.drops() };
        Self { mailbox, lost_permille, rng: Mutex::new(fastrand::Rng::with_seed(seed)) }
    }
}

impl Reporter for Lossy {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.mailbox.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
        if self.rng.lock().unwrap().u32(0..1000) >= self.lost_permille {
            self.mailbox.report_snapshot(attempt, status);
        }
    }
}

/// Each snapshot that a Raft emitted, until that Raft is told of it once. Two things excuse it from that: the node's life is
/// over, or its leadership in that term is, since with it Raft forgot what it had sent to whom.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// By leader and peer, with the term.
    open: BTreeMap<(Life, NodeId), u64>,
    pub(crate) emitted: usize,
    pub(crate) told: usize,
    pub(crate) finished: usize,
    pub(crate) out_of_office: usize,
    pub(crate) out_of_life: usize,
    wrong: Vec<String>,
}

impl Books {
    pub(crate) fn emitted(&mut self, of: Life, peer: NodeId, term: u64) {
        self.emitted += 1;
        if self.open.insert((of, peer), term).is_some_and(|before| before == term) {
            self.wrong.push(format!("{of:?} was not told of one to {peer} before the next"));
        }
    }

    pub(crate) fn told(&mut self, of: Life, peer: NodeId, finished: bool) {
        self.told += 1;
        self.finished += usize::from(finished);
        if self.open.remove(&(of, peer)).is_none() {
            self.wrong.push(format!("{of:?} was told of one to {peer} once too often"));
        }
    }

    /// The node leads now in this term, or not at all.
    pub(crate) fn leads(&mut self, of: Life, term: Option<u64>) {
        let before = self.open.len();
        self.open.retain(|(leader, _), in_term| *leader != of || term == Some(*in_term));
        self.out_of_office += before - self.open.len();
    }

    pub(crate) fn life_is_over(&mut self, of: Life) {
        let before = self.open.len();
        self.open.retain(|(leader, _), _| *leader != of);
        self.out_of_life += before - self.open.len();
    }

    /// Everything that was not reported exactly once, now that nothing is under way any more.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let never = self.open.iter().map(|(key, term)| format!("{key:?} was never told, in term {term}"));
        self.wrong.iter().cloned().chain(never).collect()
    }
}
