//! A stall without a named cause is a bug: under random faults, a call that waits longer than two election timeouts has a cause
//! that a member names. `common::seeds` explains the environment variables.

use crate::common::*;
use crate::snapshot_sim::SnapshotSim;

const CASES: u64 = 16;
const TICKS: u64 = 1_500;
/// Two of the longest election timeouts.
const PATIENCE: u64 = 40;
/// Ticks in which no member need name a cause: between two causes, and from the end of the last one to the answer.
const BETWEEN: u64 = 15;
/// Ticks after which a cluster without faults has nothing left to wait for.
const RECOVERED: u64 = 200;

#[derive(Debug, Clone, Copy)]
enum Call {
    Proposal(u64),
    Read(u64),
}

/// A cluster in which each tick lasts as long as a message takes.
struct Run {
    sim: Sim,
    /// Whether no message is lost without a fault.
    lossless: bool,
    rng: fastrand::Rng,
    now: u64,
    /// The tick at which the present faults end; without faults, that at which the last ones ended.
    faults: Result<u64, u64>,
    /// Open calls with their nodes and beginnings.
    calls: Vec<(Call, NodeId, u64)>,
    /// The last matched index of each peer that lacks entries of its leader, and its tick.
    behind: BTreeMap<(NodeId, u64, NodeId), (u64, u64)>,
    /// The last tick at which a member named a cause.
    named: u64,
    /// Calls that waited longer than [`PATIENCE`], and ticks in which a recovered cluster was looked at.
    stalls: usize,
    looks: usize,
}

impl Run {
    fn new(seed: u64) -> Result<Self, SimViolation> {
        let lost = [0, 0, 10, 50][seed as usize % 4];
        let net = NetOptions { delay: 1..2, silent_drop_permille: lost, ..NetOptions::default() };
        let options = SimOptions {
            net,
            learners: seed / 2 % 2,
            read_timeout_ticks: 400,
            sync_permille: 1_000,
            apply_permille: 1_000,
            flush_permille: 1_000,
            ..SimOptions::default()
        };
        Ok(Self {
            sim: Sim::new(seed, if seed % 3 == 0 { 5 } else { 3 }, options)?,
            lossless: lost == 0,
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            faults: Err(0),
            calls: Vec::new(),
            behind: BTreeMap::new(),
            named: 0,
            stalls: 0,
            looks: 0,
        })
    }

    /// Begins or ends faults of one or two nodes.
    fn draw_faults(&mut self) -> Result<(), SimViolation> {
        match self.faults {
            Ok(end) if self.now >= end => {
                self.faults = Err(self.now);
                self.sim.heal();
                for id in self.sim.ids() {
                    self.sim.hold_writes(id, false);
                    self.sim.hold_applies(id, false);
                    if !self.sim.is_up(id) {
                        self.sim.restart(id)?;
                    }
                }
            }
            Err(_) if self.rng.u8(..) == 0 => {
                self.faults = Ok(self.now + self.rng.u64(20..300));
                for _ in 0..self.rng.usize(1..3) {
                    self.break_one();
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn break_one(&mut self) {
        let ids = self.sim.ids();
        let (id, other) = (ids[self.rng.usize(0..ids.len())], ids[self.rng.usize(0..ids.len())]);
        match self.rng.u8(0..6) {
            0 => self.sim.isolate(id),
            1 => self.sim.cut(id, other),
            2 => ids.into_iter().for_each(|to| self.sim.cut(id, to)),
            3 => self.sim.hold_writes(id, true),
            4 => self.sim.hold_applies(id, true),
            _ => {
                self.sim.crash(id);
                self.calls.retain(|(_, at, _)| *at != id);
            }
        }
    }

    fn tick(&mut self) -> Result<(), SimViolation> {
        self.now += 1;
        self.draw_faults()?;
        let ids = self.sim.ids();
        let some = ids[self.rng.usize(0..ids.len())];
        if let (0, Some(leader)) = (self.rng.u8(0..4), self.sim.leader()) {
            self.calls.push((Call::Proposal(self.sim.propose(leader)?), leader, self.now));
        }
        if self.rng.u8(0..8) == 0 && self.sim.is_up(some) {
            self.calls.push((Call::Read(self.sim.read(some)?), some, self.now));
        }
        self.sim.tick()?;
        if self.sim.leader().is_none() && self.rng.u8(0..4) == 0 {
            // Clocks in step, with one election timeout each, could split the votes for ever.
            self.sim.turn(some, true)?;
        }
        let history = self.sim.history();
        self.calls.retain(|(call, ..)| match *call {
            Call::Proposal(command) => *history.proposal(command) == ProposalResult::Open,
            Call::Read(read) => *history.read(read) == ReadResult::Open,
        });
        self.check_calls();
        self.check_peers();
        Ok(())
    }

    fn check_calls(&mut self) {
        let waits: Vec<_> = self.sim.ids().into_iter().map(|id| (id, self.sim.explain(id))).collect();
        let named = waits.iter().any(|(_, waits)| !waits.is_empty());
        if named {
            self.named = self.now;
        }
        if let Err(end) = self.faults
            && self.now > end + RECOVERED
            && self.lossless
        {
            self.looks += 1;
            assert!(!named, "tick {}: nothing is wrong, and yet: {waits:?}", self.now);
        }
        let Some(stalled) = self.calls.iter().find(|(.., since)| self.now - since > PATIENCE) else { return };
        self.stalls += 1;
        assert!(
            self.now - self.named <= BETWEEN,
            "tick {}: {stalled:?} waits for nothing since tick {}: {:#?}",
            self.now,
            self.named,
            self.sim.ids().into_iter().map(|id| self.sim.status(id)).collect::<Vec<_>>()
        );
    }

    /// A leader names a cause for each peer whose log stands still behind its own.
    fn check_peers(&mut self) {
        let mut behind = BTreeMap::new();
        for id in self.sim.ids() {
            let Some(status) = self.sim.status(id).filter(|s| s.state.role == Role::Leader) else { continue };
            let waits = self.sim.explain(id);
            for peer in status.peers.iter().filter(|peer| peer.matched < status.last_index) {
                let key = (id, status.state.term, peer.id);
                let before = self.behind.get(&key).filter(|(matched, _)| *matched == peer.matched);
                let (matched, since) = before.copied().unwrap_or((peer.matched, self.now));
                let named = waits.iter().any(|wait| wait.peer == Some(peer.id));
                assert!(
                    named || self.now - since <= BETWEEN,
                    "tick {}: {id} names no cause for {peer:?}: {waits:?}",
                    self.now
                );
                behind.insert(key, (matched, since));
            }
        }
        self.behind = behind;
    }
}

#[test]
fn a_call_that_waits_longer_than_two_election_timeouts_has_a_cause_that_a_member_names() {
    let runs = seeds::for_each_seed(CASES, |seed| {
        let run = || {
            let mut run = Run::new(seed)?;
            (0..TICKS).try_for_each(|_| run.tick())?;
            Ok::<_, SimViolation>(run)
        };
        run().unwrap_or_else(|violation| panic!("{violation}"))
    });
    let sum = |of: fn(&Run) -> usize| runs.iter().map(of).sum::<usize>();
    let (stalls, looks) = (sum(|run| run.stalls), sum(|run| run.looks));
    println!("{} runs: {stalls} ticks with a stalled call, {looks} without faults", runs.len());
    if !seeds::replays() {
        assert!(stalls > 10 * runs.len() && looks > 10 * runs.len());
    }
}

/// Transfers and restores stand still at random, in configurations with a learner and in joint ones.
#[test]
fn a_peer_that_gets_no_snapshot_and_a_node_that_restores_none_have_a_cause() {
    let runs = seeds::for_each_seed(30, |seed| {
        let (mut sim, _, behind) = match seed % 3 {
            0 => SnapshotSim::left_behind(crate::snapshot_sim::Sabotage::Nothing, true),
            seed => SnapshotSim::fourth_left_behind(seed),
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut lags, mut installs, mut stalls, mut term) = (0, 0, 0, 0);
        for _ in 0..400 {
            match rng.u8(0..60) {
                0 => sim.script.held = true,
                1 => sim.script.restores_hang = true,
                2 => (sim.script.held, sim.script.restores_hang) = (false, false),
                3 if sim.is_up(behind) => sim.crash(behind),
                4 if !sim.is_up(behind) => sim.start(behind),
                5 => sim.load(20),
                _ => {}
            }
            sim.ticks(1);
            let Some(leader) = sim.leader().filter(|leader| *leader != behind) else { continue };
            let status = sim.status(leader);
            let same = std::mem::replace(&mut term, status.state.term) == term;
            let behind_leader = same && sim.peer(leader, behind).matched < status.last_index;
            let installing = sim.is_up(behind) && sim.is_installing(behind);
            lags = if behind_leader { lags + 1 } else { 0 };
            installs = if installing { installs + 1 } else { 0 };
            stalls += usize::from(lags > PATIENCE || installs > PATIENCE);
            let (of_leader, own) = (sim.explain(leader), sim.explain(behind));
            let named = of_leader.iter().any(|wait| wait.peer == Some(behind));
            assert!(named || lags <= PATIENCE, "{leader} names no cause for {behind}: {of_leader:?}");
            assert!(!own.is_empty() || installs <= PATIENCE, "{behind} names no cause of its own");
        }
        stalls
    });
    let stalls: usize = runs.iter().sum();
    println!("{} runs, {stalls} ticks with a stalled snapshot", runs.len());
    if !seeds::replays() {
        assert!(stalls > 20 * runs.len());
    }
}
