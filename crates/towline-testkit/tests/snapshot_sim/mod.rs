//! A simulated cluster of cores that sends snapshots under faults. It counts the snapshots that Raft emits and the reports that
//! Raft gets. After each input it checks that Raft waits for no attempt that is over.

#![allow(dead_code, reason = "each test file uses its part")]

mod disk;
mod reports;
mod runs;
mod script;
mod transfers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use towline_engine::core::{Apply, AttemptEffect, Effects, GroupCore, SendBudget};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::GroupWrite;
use towline_engine::message::{ConfState, LogId, Message};
use towline_engine::reporter::{
    Mailbox, Report, Reporter, SnapshotAttempt, SnapshotFailure, SnapshotStatus, SnapshotTicket,
    UnreachableCause,
};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::status::{PeerProgress, PeerStatus, Role};

use disk::{Disk, meta_at};
pub(crate) use reports::Sabotage;
use reports::{LossyReporter, ReportCounts};
use script::Script;
use transfers::Transfer;

/// The learner, in clusters that have one.
pub(crate) const LEARNER: u64 = 4;
const HEARTBEAT: usize = 2;
/// Transfers that a node sends at a time.
const SLOTS: usize = 2;
const SETTLE_ROUNDS_MAX: usize = 1_000;
const CONVERGE_STEPS_MAX: usize = 40_000;

/// The faults, each with its rate in thousandths of the steps or transfers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) crash_permille: u32,
    pub(crate) cut_permille: u32,
    pub(crate) lost_permille: u32,
    pub(crate) transfer_lost_permille: u32,
    pub(crate) leak_permille: u32,
    pub(crate) make_fails_permille: u32,
    pub(crate) install_crash_permille: u32,
    pub(crate) rot_permille: u32,
    pub(crate) shutdown_permille: u32,
    pub(crate) lose_reports: bool,
    pub(crate) watchdog: bool,
    pub(crate) sabotage: Sabotage,
}

impl Faults {
    pub(crate) fn rough() -> Self {
        Self {
            crash_permille: 4,
            cut_permille: 6,
            lost_permille: 20,
            transfer_lost_permille: 60,
            leak_permille: 30,
            make_fails_permille: 100,
            install_crash_permille: 50,
            rot_permille: 20,
            shutdown_permille: 2,
            watchdog: true,
            ..Self::default()
        }
    }

    pub(crate) fn snapshots_only() -> Self {
        Self { crash_permille: 3, cut_permille: 8, watchdog: true, ..Self::default() }
    }

    /// Ends all faults except lost reports, the missing watchdog and sabotage.
    fn healed(&self) -> Self {
        let Self { lose_reports, watchdog, sabotage, .. } = *self;
        Self { lose_reports, watchdog, sabotage, ..Self::default() }
    }
}

/// The step of an install at which the node crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arrow {
    /// Its file is durable; Raft has not seen it.
    FileDurable,
    /// Raft took the snapshot; nothing is written.
    Taken,
    /// The record is durable; Raft does not know.
    Recorded,
    /// Raft knows; the state machine has the old state.
    Acknowledged,
    /// The state machine is restored; the core does not know.
    Restored,
    /// The end of the install is not yet written.
    Clearing,
    /// The end of the install is written.
    Cleared,
}

impl Arrow {
    pub(crate) const ALL: [Self; 7] = [
        Self::FileDurable,
        Self::Taken,
        Self::Recorded,
        Self::Acknowledged,
        Self::Restored,
        Self::Clearing,
        Self::Cleared,
    ];
}

type Core = GroupCore<u64, u64>;
type Fx = Effects<u64, u64>;

struct Up {
    group: Core,
    mailbox: Arc<Mailbox>,
    reporter: Arc<LossyReporter>,
    run: u64,
    writes: VecDeque<(u64, GroupWrite)>,
    applies: VecDeque<Apply<u64>>,
}

impl Up {
    /// Whether the next task of the state machine is a restore.
    fn restores(&self) -> bool {
        matches!(self.applies.front(), Some(Apply::Restore(_)))
    }
}

#[derive(Default)]
struct Node {
    disk: Disk,
    up: Option<Up>,
}

#[derive(Default)]
pub(crate) struct SnapshotSim {
    seed: u64,
    rng: fastrand::Rng,
    faults: Faults,
    nodes: BTreeMap<NodeId, Node>,
    messages: VecDeque<Message>,
    transfers: Vec<Transfer>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// The applied entries, by index from 1.
    log: Vec<(u64, Vec<u8>)>,
    conf: ConfState,
    /// Whether a restart empties state machines.
    volatile: bool,
    pub(crate) reports: ReportCounts,
    /// The node that shuts down, and the steps until it is down.
    leaving: Option<(NodeId, usize)>,
    runs: u64,
    commands: u64,
    installed: BTreeMap<NodeId, usize>,
    pub(crate) crashes: usize,
    pub(crate) shutdowns: usize,
    arrows: BTreeMap<Arrow, usize>,
    pub(crate) rotten: usize,
    pub(crate) synthesized: usize,
    /// Transfers that moved bytes, and those of them that resumed.
    pub(crate) streamed: usize,
    pub(crate) resumed: usize,
    pub(crate) script: Script,
}

fn ids(of: impl IntoIterator<Item = u64>) -> Vec<NodeId> {
    of.into_iter().filter_map(NodeId::new).collect()
}

/// Three voters; three voters and a learner; or a joint configuration that replaces node 4 by node 3.
fn conf_state(shape: u64) -> ConfState {
    let voters = ids(1..=3);
    match shape {
        0 => ConfState { voters, ..ConfState::default() },
        1 => ConfState { voters, learners: ids([LEARNER]), ..ConfState::default() },
        _ => ConfState { voters, voters_outgoing: ids([1, 2, 4]), ..ConfState::default() },
    }
}

impl SnapshotSim {
    /// A third of the seeds has a learner, a third a joint configuration, and half of each volatile state machines.
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let conf = conf_state(seed % 3);
        let mut members = [conf.voters.clone(), conf.voters_outgoing.clone(), conf.learners.clone()].concat();
        members.sort_unstable();
        let mut sim = Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            faults,
            nodes: members.into_iter().map(|id| (id, Node::default())).collect(),
            conf,
            volatile: seed / 3 % 2 == 1,
            ..Self::default()
        };
        sim.ids().into_iter().for_each(|id| sim.start(id));
        sim
    }

    fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    fn some_node(&mut self) -> NodeId {
        let ids = self.ids();
        ids[self.rng.usize(0..ids.len())]
    }

    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.u32(0..1000) < permille
    }

    /// One step: a node takes a turn, a message or transfer moves, and a fault may happen.
    pub(crate) fn step(&mut self) {
        if self.chance(self.faults.crash_permille) {
            let id = self.some_node();
            self.crash(id);
        }
        if self.chance(self.faults.shutdown_permille) {
            let id = self.some_node();
            self.begin_shutdown(id);
        }
        self.go_on_with_shutdown();
        if self.chance(30)
            && let Some(id) = self.ids().into_iter().find(|id| self.nodes[id].up.is_none())
        {
            self.start(id);
        }
        if self.chance(self.faults.cut_permille) {
            let id = self.some_node();
            for other in self.ids() {
                self.cut.extend([(id, other), (other, id)]);
            }
        }
        if self.chance(8) {
            self.cut.clear();
        }
        self.calm_step();
    }

    /// A step without faults of nodes or links.
    pub(crate) fn calm_step(&mut self) {
        if self.chance(150) {
            self.propose();
        }
        self.deliver();
        self.move_a_transfer();
        let id = self.some_node();
        self.turn(id);
    }

    fn propose(&mut self) {
        if let Some(leader) = self.leader() {
            self.commands += 1;
            let (command, number) = (self.commands.to_be_bytes().to_vec(), self.commands);
            self.with(leader, |group, fx| group.propose(vec![(command.into(), number)], fx));
        }
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leading = self.nodes.iter().filter_map(|(id, node)| {
            let state = node.up.as_ref()?.group.state();
            (state.role == Role::Leader).then_some((state.term, *id))
        });
        leading.max().map(|(_, id)| id)
    }

    fn deliver(&mut self) {
        for _ in 0..self.rng.usize(0..6) {
            let Some(message) = self.messages.pop_front() else { return };
            let (from, to) = (message.from, message.to);
            let twisted = self.script.lost.is_some_and(|lost| lost(&message));
            if twisted || self.cut.contains(&(from, to)) || self.chance(self.faults.lost_permille) {
                self.with(from, |group, _| {
                    let cause = UnreachableCause::LinkLost;
                    group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: to, cause });
                });
                continue;
            }
            self.with(to, |group, _| {
                let _ = group.step(from, message);
            });
        }
    }

    fn turn(&mut self, id: NodeId) {
        let tick = self.chance(500);
        self.turn_with(id, tick);
    }

    fn turn_with(&mut self, id: NodeId, tick: bool) {
        self.sync(id);
        self.apply(id);
        self.take_reports(id);
        if tick {
            self.watch(id);
        }
        self.with(id, |group, fx| {
            if tick {
                group.tick(fx);
            }
            group.poll(fx);
        });
    }

    fn sync(&mut self, id: NodeId) {
        let crash_at = self.chance(self.faults.install_crash_permille).then(|| self.rng.usize(0..2));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(up) = node.up.as_mut() else { return };
        let Some((number, write)) = up.writes.pop_front() else { return };
        let arrows = match (write.install.is_some(), write.installed) {
            (true, _) => Some([Arrow::Taken, Arrow::Recorded]),
            (false, true) => Some([Arrow::Clearing, Arrow::Cleared]),
            (false, false) => None,
        };
        let crash_at = arrows.zip(crash_at).map(|(arrows, at)| arrows[at]);
        if let Some(arrow @ (Arrow::Taken | Arrow::Clearing)) = crash_at {
            return self.crash_at(id, arrow);
        }
        node.disk.write(write);
        if let Some(arrow) = crash_at {
            return self.crash_at(id, arrow);
        }
        self.with(id, |group, fx| group.written(number, fx));
    }

    fn apply(&mut self, id: NodeId) {
        let (fails, crash) =
            (self.chance(self.faults.make_fails_permille), self.chance(self.faults.install_crash_permille));
        let crash_after = self.rng.bool();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(up) = node.up.as_mut() else { return };
        if self.script.restores_hang && up.restores() {
            return;
        }
        let Some(task) = up.applies.pop_front() else { return };
        match task {
            Apply::Entries { entries, through, .. } => {
                for entry in &entries {
                    assert_eq!(entry.index, node.disk.machine.index + 1, "node {id} skips");
                    note_applied(&mut self.log, entry);
                    node.disk.machine = LogId { index: entry.index, term: entry.term };
                }
                self.with(id, |group, _| group.applied(through.index));
            }
            Apply::Restore(meta) => {
                assert_eq!(
                    node.disk.installing,
                    Some(meta.content),
                    "restored before the record was durable"
                );
                assert!(node.disk.files.contains(&meta), "node {id}: the file of an install is gone");
                if crash && !crash_after {
                    return self.crash_at(id, Arrow::Acknowledged);
                }
                node.disk.machine = meta.head.at;
                *self.installed.entry(id).or_default() += 1;
                if crash {
                    return self.crash_at(id, Arrow::Restored);
                }
                self.with(id, |group, _| group.applied(meta.head.at.index));
            }
            Apply::Snapshot { conf, at, .. } => {
                assert_eq!(node.disk.machine, at, "a snapshot of another log position");
                let meta = meta_at(at, conf.conf_state);
                if !fails {
                    node.disk.add(meta.clone());
                }
                let durable = if self.volatile { LogId::NONE } else { node.disk.machine };
                let made = (!fails).then_some((meta, durable));
                self.with(id, |group, _| group.snapshot_made(made));
            }
        }
    }

    fn take_reports(&mut self, id: NodeId) {
        let Some(up) = self.nodes.get_mut(&id).and_then(|node| node.up.as_mut()) else { return };
        let mut reports = Vec::new();
        up.mailbox.drain(&mut reports);
        let run = up.run;
        for report in reports {
            let told = self.with(id, |group, _| group.take_report(report)).unwrap_or_default();
            let Report::Snapshot { attempt: SnapshotAttempt { peer, .. }, status } = report else { continue };
            if !told {
                continue;
            }
            let seen = self.peers(id).into_iter().find(|seen| seen.id == peer);
            assert!(
                seen.is_some_and(|seen| seen.progress != PeerProgress::Snapshot),
                "Raft did not take the report"
            );
            self.synthesized += usize::from(status == SnapshotStatus::Failure(SnapshotFailure::Lost));
            for _ in 0..1 + usize::from(self.chance(self.faults.sabotage.doubles())) {
                self.reports.told((id, run), peer, status == SnapshotStatus::Finish);
            }
            assert_eq!(
                self.with(id, |group, _| group.take_report(report)),
                Some(false),
                "a second report is stale"
            );
        }
    }

    /// Runs the watchdog, as the shard does at every tick.
    fn watch(&mut self, id: NodeId) {
        let Some(up) = self.nodes[&id].up.as_ref().filter(|_| self.faults.watchdog) else { return };
        let (mailbox, run) = (up.mailbox.clone(), up.run);
        let held: BTreeSet<_> = self.transfers.iter().map(|transfer| transfer.key).collect();
        self.with(id, |group, fx| {
            let is_owed = |attempt: &SnapshotAttempt| {
                held.contains(&(id, run, *attempt)) || mailbox.has_outcome(*attempt)
            };
            group.watch(is_owed, fx);
        });
    }

    /// The peers of a leader, as its Raft knows them.
    fn peers(&self, id: NodeId) -> Vec<PeerStatus> {
        self.nodes[&id].up.as_ref().map(|up| up.group.status().peers).unwrap_or_default()
    }

    /// Calls `run` with the group of a running node and carries out the effects.
    fn with<T>(&mut self, id: NodeId, run: impl FnOnce(&mut Core, &mut Fx) -> T) -> Option<T> {
        let mut fx = Fx::default();
        let node = self.nodes.get_mut(&id)?;
        let up = node.up.as_mut()?;
        let sending = self.transfers.iter().filter(|t| (t.key.0, t.key.1) == (id, up.run)).count();
        let slots = SLOTS.saturating_sub(sending + up.group.unsent_attempts());
        up.group.lend(SendBudget { slots, ..up.group.budget() });
        let result = run(&mut up.group, &mut fx);
        for peer in up.group.status().peers {
            let waits = peer.progress == PeerProgress::Snapshot;
            assert!(!waits || peer.attempt.is_some(), "Raft waits for no attempt: {peer:?}");
        }
        assert!(fx.fatal.is_none() && fx.lost.is_none(), "node {id}: {:?} {:?}", fx.fatal, fx.lost);
        up.writes.extend(fx.write.take());
        up.applies.extend(fx.apply.drain(..));
        let run = up.run;
        let fetched: Vec<_> = fx.fetches.drain(..).map(|f| (f.low, node.disk.range(f.low, f.high))).collect();
        for (low, entries) in fetched {
            up.group.fetched(low, Ok(entries), &mut fx);
        }
        if let Some(through) = fx.compact.take() {
            node.disk.compact(through);
        }
        if let Some(keep) = fx.retain.take() {
            // A received file is pinned until Raft takes it; here until its transfer ends.
            let pinned = |meta: &SnapshotMeta| {
                self.transfers
                    .iter()
                    .any(|t| t.key.2.peer == id && t.send.as_ref().is_some_and(|s| s.meta == *meta))
            };
            let installing = node.disk.installing;
            node.disk
                .files
                .retain(|m| keep.contains(&m.content) || pinned(m) || installing == Some(m.content));
        }
        self.messages.extend(fx.messages.drain(..));
        // In order, as the shard does: an attempt may end in the turn that begins it.
        for effect in fx.attempts.drain(..) {
            match effect {
                AttemptEffect::Arm(send) => {
                    let (attempt, slow) = (send.attempt, self.rng.u8(0..10) == 0);
                    self.reports.emitted((id, run), attempt.peer, attempt.term);
                    up.mailbox.arm(attempt);
                    let ticket = SnapshotTicket::new(attempt, up.reporter.clone());
                    self.transfers.push(Transfer::new((id, run, attempt), *send, ticket, slow));
                }
                AttemptEffect::Settle { attempt, cause } => {
                    up.reporter.report_snapshot(attempt, SnapshotStatus::Failure(cause));
                    self.transfers.retain(|t| t.key != (id, run, attempt));
                }
                AttemptEffect::Disarm { attempt, .. } => {
                    up.mailbox.disarm(attempt.group, attempt.peer);
                    self.transfers.retain(|t| t.key != (id, run, attempt));
                }
            }
        }
        let state = up.group.state();
        self.reports.leads((id, run), (state.role == Role::Leader).then_some(state.term));
        Some(result)
    }

    pub(crate) fn heal(&mut self) {
        self.faults = self.faults.healed();
        self.leaving = None;
        self.cut.clear();
        for id in self.ids() {
            if self.nodes[&id].up.is_none() {
                self.start(id);
            }
        }
    }

    /// Ends all faults. All nodes must become level, and no attempt may be left.
    pub(crate) fn converge(&mut self) {
        self.heal();
        let commands = self.commands;
        for _ in 0..CONVERGE_STEPS_MAX {
            let level = self.nodes.values().all(|n| n.disk.machine.index == self.log.len() as u64);
            let quiet = self.transfers.is_empty() && !self.any_live();
            if level && quiet && self.commands > commands + 5 {
                return;
            }
            self.calm_step();
        }
        let states: Vec<_> = self.nodes.values().map(|n| n.up.as_ref().map(|up| up.group.status())).collect();
        panic!("seed {}: no convergence: {states:#?}", self.seed);
    }

    /// Runs `ticks` ticks of a healthy cluster. A peer that needs a snapshot must get an attempt within two heartbeats of its
    /// backoff. Returns the number of attempts.
    pub(crate) fn promptly(&mut self, ticks: usize) -> usize {
        self.heal();
        let mut waits: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
        let before = self.reports.emitted;
        for _ in 0..ticks {
            self.ids().into_iter().for_each(|id| self.turn_with(id, true));
            self.settle();
            let waiting = self.waiting();
            waits.retain(|pair, _| waiting.contains(pair));
            for pair in waiting {
                let wait = waits.entry(pair).or_default();
                *wait += 1;
                let (seed, (leader, peer)) = (self.seed, pair);
                assert!(
                    *wait <= 2 * HEARTBEAT,
                    "seed {seed}: {peer} waits {wait} ticks for a snapshot of {leader}"
                );
            }
        }
        self.reports.emitted - before
    }

    /// Moves messages, transfers and nodes until nothing moves without a tick.
    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            while !self.messages.is_empty() {
                self.deliver();
            }
            (0..2 * self.transfers.len()).for_each(|_| self.move_a_transfer());
            self.ids().into_iter().for_each(|id| self.turn_with(id, false));
            let hang = self.script.restores_hang;
            let rests = |up: &Up| up.applies.is_empty() || (hang && up.restores());
            let idle = |node: &Node| node.up.as_ref().is_none_or(|up| up.writes.is_empty() && rests(up));
            let still = self.transfers.is_empty() || self.script.held;
            if self.messages.is_empty() && still && self.nodes.values().all(idle) {
                return;
            }
        }
        panic!("seed {}: it never comes to rest", self.seed);
    }

    /// Pairs of a leader and a peer that needs a snapshot and has neither an attempt nor a backoff.
    fn waiting(&self) -> BTreeSet<(NodeId, NodeId)> {
        let mut waiting = BTreeSet::new();
        for (id, node) in &self.nodes {
            let Some(status) = node.up.as_ref().map(|up| up.group.status()) else { continue };
            if status.snapshot_index + 1 < status.first_index {
                continue; // the last snapshot is unreadable, and the next one failed and is tried again
            }
            let left_behind = status.peers.iter().filter(|p| {
                let needs = p.matched + 1 < status.first_index;
                needs && p.attempt.is_none() && p.backoff_ticks == 0
            });
            waiting.extend(left_behind.map(|p| (*id, p.id)));
        }
        waiting
    }

    fn any_live(&self) -> bool {
        self.nodes.values().any(|n| n.up.as_ref().is_some_and(|up| !up.group.live_attempts().is_empty()))
    }

    /// Whether a leader waits for a snapshot without a transfer.
    pub(crate) fn any_latched(&self) -> bool {
        let waits = |up: &Up| {
            let peers = up.group.status().peers;
            let waiting = peers.iter().any(|p| p.progress == PeerProgress::Snapshot);
            waiting && !self.transfers.iter().any(|t| t.key.1 == up.run)
        };
        self.nodes.values().any(|n| n.up.as_ref().is_some_and(waits))
    }

    /// The snapshots that did not get exactly one report.
    pub(crate) fn misreported(&self) -> Vec<String> {
        self.reports.wrong()
    }

    pub(crate) fn assert_one_report_each(&self) {
        assert!(self.misreported().is_empty(), "seed {}: {:#?}", self.seed, self.misreported());
    }

    pub(crate) fn installed(&self) -> usize {
        self.installed.values().sum()
    }

    /// Installs on the learner, if there is one.
    pub(crate) fn installed_by_learner(&self) -> usize {
        let learners = self.conf.learners.iter();
        learners.filter_map(|id| self.installed.get(id)).sum()
    }

    /// Installs in a joint configuration.
    pub(crate) fn installed_while_joint(&self) -> usize {
        if self.conf.voters_outgoing.is_empty() { 0 } else { self.installed() }
    }

    pub(crate) fn crashes_at(&self, arrow: Arrow) -> usize {
        self.arrows.get(&arrow).copied().unwrap_or_default()
    }
}

/// Checks that all nodes apply the same entries.
fn note_applied(log: &mut Vec<(u64, Vec<u8>)>, entry: &towline_engine::message::Entry) {
    let at = entry.index as usize - 1;
    let found = (entry.term, entry.data.to_vec());
    match log.get(at) {
        Some(known) => assert_eq!(*known, found, "two histories at {}", entry.index),
        None => {
            assert_eq!(at, log.len(), "a hole in what was applied");
            log.push(found);
        }
    }
}
