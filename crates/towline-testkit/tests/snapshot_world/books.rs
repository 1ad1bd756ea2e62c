//! What Raft emitted and what Raft was told, counted at Raft itself: behind every fence, queue and watchdog of the engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use towline_engine::ids::NodeId;
use towline_engine::reporter::{RaftDoor, RaftReports, SnapshotStatus};

/// One life of one node.
pub(crate) type Life = (NodeId, u64);

/// What the door itself does wrong, in parts of a thousand of the reports: for tests of the books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    Drops(u32),
    Doubles(u32),
}

#[derive(Debug)]
pub(crate) enum Passed {
    Emitted { peer: NodeId, term: u64 },
    Told { peer: NodeId, finished: bool },
}

/// The way out of a Raft and the way in.
pub(crate) struct Door {
    passed: Arc<Mutex<Vec<Passed>>>,
    plant: Plant,
    rng: fastrand::Rng,
}

impl Door {
    pub(crate) fn new(passed: Arc<Mutex<Vec<Passed>>>, plant: Plant, seed: u64) -> Self {
        Self { passed, plant, rng: fastrand::Rng::with_seed(seed) }
    }
}

impl RaftDoor for Door {
    fn emitted(&mut self, peer: NodeId, term: u64, _index: u64) {
        self.passed.lock().unwrap().push(Passed::Emitted { peer, term });
    }

    fn snapshot(&mut self, peer: NodeId, status: SnapshotStatus, raft: &mut dyn RaftReports) {
        let hit = self.rng.u32(0..1000);
        let times = match self.plant {
            Plant::Drops(permille) if hit < permille => 0,
            Plant::Doubles(permille) if hit < permille => 2,
            _ => 1,
        };
        for _ in 0..times {
            let finished = status == SnapshotStatus::Finish;
            self.passed.lock().unwrap().push(Passed::Told { peer, finished });
            raft.report_snapshot(peer, status);
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
    /// What passed the door of a node, which leads now in this term, or not at all.
    pub(crate) fn enter(&mut self, of: Life, passed: Vec<Passed>, leads: Option<u64>) {
        for passed in passed {
            match passed {
                Passed::Emitted { peer, term } => {
                    self.emitted += 1;
                    if self.open.insert((of, peer), term).is_some_and(|before| before == term) {
                        self.wrong.push(format!("{of:?} was not told of one to {peer} before the next"));
                    }
                }
                Passed::Told { peer, finished } => {
                    self.told += 1;
                    self.finished += usize::from(finished);
                    if self.open.remove(&(of, peer)).is_none() {
                        self.wrong.push(format!("{of:?} was told of one to {peer} once too often"));
                    }
                }
            }
        }
        let before = self.open.len();
        self.open.retain(|(leader, _), term| *leader != of || leads == Some(*term));
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
