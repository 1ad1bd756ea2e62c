//! A cluster of cores whose snapshots travel, with everything that can happen to them. It keeps books of what Raft emitted
//! and of what Raft was told.

mod disk;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use towline_engine::core::{
    Apply, Effects, Group, GroupLog, GroupSetup, OfferVerdict, ReplicaSetup, RetryPolicy, SendSlots,
    SnapshotPolicy, SnapshotSend, SnapshotSetup,
};
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::log_store::{ConfRecord, GroupWrite};
use towline_engine::message::{ConfState, Message};
use towline_engine::reporter::{Mailbox, Report, ReportCounter, SnapshotAttempt, SnapshotFailure};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::Applied;
use towline_engine::status::{PeerProgress, Role};
use towline_engine::transport::SnapshotOffer;
use towline_metrics::labels::{ReportKind, ReportOutcome};

use disk::{Disk, meta_at};

const NODES: u64 = 3;
const HEARTBEAT: usize = 2;
const SETTLE_ROUNDS_MAX: usize = 1_000;
const CONVERGE_STEPS_MAX: usize = 40_000;

/// What goes wrong, in parts of a thousand of the steps or of the transfers it can happen to.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    pub(crate) crash_permille: u32,
    pub(crate) cut_permille: u32,
    pub(crate) lost_permille: u32,
    pub(crate) transfer_lost_permille: u32,
    pub(crate) leak_permille: u32,
    pub(crate) make_fails_permille: u32,
    pub(crate) install_crash_permille: u32,
    pub(crate) lose_reports: bool,
    pub(crate) watchdog: bool,
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
            lose_reports: false,
            watchdog: true,
        }
    }

    pub(crate) fn snapshots_only() -> Self {
        Self {
            crash_permille: 3,
            cut_permille: 8,
            lost_permille: 0,
            transfer_lost_permille: 0,
            leak_permille: 0,
            make_fails_permille: 0,
            install_crash_permille: 0,
            ..Self::rough()
        }
    }

    fn none(lose_reports: bool, watchdog: bool) -> Self {
        Self { crash_permille: 0, cut_permille: 0, lose_reports, watchdog, ..Self::snapshots_only() }
    }
}

type Core = Group<u64, u64>;
type Fx = Effects<u64, u64>;

struct Uncounted;

impl ReportCounter for Uncounted {
    fn count(&self, _: NodeId, _: ReportKind, _: ReportOutcome) {}
}

struct Up {
    group: Core,
    mailbox: Arc<Mailbox>,
    life: u64,
    writes: VecDeque<(u64, GroupWrite)>,
    applies: VecDeque<Apply<u64, u64>>,
}

#[derive(Default)]
struct Node {
    disk: Disk,
    up: Option<Up>,
}

/// One attempt of one life of one node.
type Key = (NodeId, u64, SnapshotAttempt);

enum Stage {
    Offer,
    Chunks(u8),
    Durable,
    Answer(bool),
}

struct Transfer {
    key: Key,
    send: Option<SnapshotSend>,
    stage: Stage,
    receiver_life: u64,
    /// The report is late: it comes when nobody waits for it any more, or just slowly.
    slow: bool,
}

#[derive(Default, Debug, Clone)]
struct Entry {
    reported: usize,
    synthesized: usize,
    voided: bool,
    crashed: bool,
}

pub(crate) struct World {
    seed: u64,
    rng: fastrand::Rng,
    faults: Faults,
    nodes: BTreeMap<NodeId, Node>,
    messages: VecDeque<Message>,
    transfers: Vec<Transfer>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// What everybody applied, by index from 1.
    log: Vec<(u64, Vec<u8>)>,
    books: BTreeMap<(NodeId, u64, u64), Entry>,
    lives: u64,
    commands: u64,
    installed: usize,
    crashes: usize,
}

fn conf_state() -> ConfState {
    ConfState { voters: (1..=NODES).filter_map(NodeId::new).collect(), ..ConfState::default() }
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let mut world = Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            faults,
            nodes: conf_state().voters.into_iter().map(|id| (id, Node::default())).collect(),
            messages: VecDeque::new(),
            transfers: Vec::new(),
            cut: BTreeSet::new(),
            log: Vec::new(),
            books: BTreeMap::new(),
            lives: 0,
            commands: 0,
            installed: 0,
            crashes: 0,
        };
        world.ids().into_iter().for_each(|id| world.start(id));
        world
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

    /// Starts as the engine does: finishes an install, restores a machine behind the log, replays the rest.
    fn start(&mut self, id: NodeId) {
        self.lives += 1;
        let life = self.lives;
        let node = self.nodes.get_mut(&id).unwrap();
        let disk = &mut node.disk;
        if let Some(content) = disk.installing {
            if disk.machine.index < disk.truncated.index {
                let meta =
                    disk.files.iter().find(|m| m.content == content).expect("an installing file is kept");
                disk.machine = meta.head.at;
            }
            disk.installing = None;
        }
        assert!(disk.machine.index >= disk.truncated.index, "node {id} lost its state");
        let commit = disk.hard_state.commit.max(disk.machine.index).max(disk.truncated.index);
        assert!(commit <= disk.last_index(), "node {id}: {commit} past {}", disk.last_index());
        for entry in disk.range(disk.machine.index + 1, commit + 1) {
            note_applied(&mut self.log, &entry);
            disk.machine = Applied { index: entry.index, term: entry.term };
        }
        let applied = disk.machine.index;
        let log = GroupLog::new(
            disk.truncated,
            disk.terms(),
            disk.last_index(),
            disk.range(applied + 1, disk.last_index() + 1),
            applied,
            4 << 10,
        );
        let timeout = self.rng.usize(10..20);
        let mailbox = Arc::new(Mailbox::new(Waker::noop().clone(), Arc::new(Uncounted)));
        let mut origin = [0; 16];
        origin[..8].copy_from_slice(&life.to_be_bytes());
        let hard_state = towline_engine::message::HardState { commit, ..disk.hard_state };
        let group = Group::new(GroupSetup {
            replica: ReplicaSetup {
                node: id,
                group: GroupId::DEFAULT,
                log,
                hard_state,
                conf_state: conf_state(),
                heartbeat_ticks: HEARTBEAT,
                election_ticks: timeout..timeout + 1,
                election_ticks_min: 10,
                append_bytes_max: 1 << 10,
                append_inflight_max: 8,
                commit_broadcast: true,
                uncommitted_bytes_max: 64 << 10,
                committed_bytes_max: 4 << 10,
            },
            origin,
            quiet_ticks: if life > NODES { 10 } else { 0 },
            read_timeout_ticks: 60,
            read_retry_ticks: HEARTBEAT as u64,
            unapplied_bytes_max: 64 << 10,
            conf: ConfRecord { conf_state: conf_state(), ..ConfRecord::default() },
            snapshots: SnapshotSetup {
                mailbox: mailbox.clone(),
                slots: SendSlots::new(2),
                available: disk.latest(),
                policy: SnapshotPolicy {
                    every_entries: 8,
                    every_bytes: u64::MAX,
                    trailing_entries: 2,
                    // The limit on pins would find a leaked ticket too, as soon as the log has grown enough.
                    pin_bytes_max: if self.faults.watchdog { 8 << 10 } else { u64::MAX },
                    retry: RetryPolicy { wait_ticks_min: HEARTBEAT as u64, wait_ticks_max: 40 },
                    watchdog: self.faults.watchdog && !self.faults.lose_reports,
                },
                seed: self.seed ^ life,
            },
        });
        let group = group.unwrap_or_else(|error| panic!("node {id} does not start: {error}"));
        node.up = Some(Up { group, mailbox, life, writes: VecDeque::new(), applies: VecDeque::new() });
    }

    fn crash(&mut self, id: NodeId) {
        let Some(up) = self.nodes.get_mut(&id).unwrap().up.take() else { return };
        self.crashes += 1;
        for ((node, life, _), entry) in &mut self.books {
            entry.crashed |= (*node, *life) == (id, up.life);
        }
        // What it sends dies with it; what it receives dies on its way.
        self.transfers.retain(|t| t.key.0 != id);
        self.messages.retain(|m| m.to != id);
    }

    /// Some node takes a turn, something moves, and something may go wrong.
    pub(crate) fn step(&mut self) {
        if self.chance(self.faults.crash_permille) {
            let id = self.some_node();
            self.crash(id);
        }
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

    /// A step in which nothing goes wrong beyond what the faults say of transfers.
    pub(crate) fn calm_step(&mut self) {
        if self.chance(150)
            && let Some(leader) = self.leader()
        {
            self.commands += 1;
            let command = self.commands.to_be_bytes().to_vec();
            let number = self.commands;
            self.with(leader, |group, fx| group.propose(vec![(command.into(), number)], fx));
        }
        self.deliver();
        self.move_a_transfer();
        let id = self.some_node();
        self.turn(id);
    }

    fn leader(&self) -> Option<NodeId> {
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
            if self.cut.contains(&(from, to)) || self.chance(self.faults.lost_permille) {
                self.with(from, |group, _| {
                    let cause = towline_engine::reporter::UnreachableCause::LinkLost;
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
            self.disown_leaked(id);
        }
        self.with(id, |group, fx| {
            if tick {
                group.tick(fx);
            }
            group.poll(fx);
        });
    }

    fn sync(&mut self, id: NodeId) {
        let crash_at = self.chance(self.faults.install_crash_permille).then(|| self.rng.u8(0..2));
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(up) = node.up.as_mut() else { return };
        let Some((number, write)) = up.writes.pop_front() else { return };
        let installs = write.install.is_some() || write.installed;
        if installs && crash_at == Some(0) {
            return self.crash(id);
        }
        node.disk.write(write);
        if installs && crash_at == Some(1) {
            return self.crash(id);
        }
        self.with(id, |group, fx| group.written(number, fx));
    }

    fn apply(&mut self, id: NodeId) {
        let (fails, crash) =
            (self.chance(self.faults.make_fails_permille), self.chance(self.faults.install_crash_permille));
        let crash_after = self.rng.bool();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(task) = node.up.as_mut().and_then(|up| up.applies.pop_front()) else { return };
        match task {
            Apply::Entries { entries, through, .. } => {
                for entry in &entries {
                    assert_eq!(entry.index, node.disk.machine.index + 1, "node {id} skips");
                    note_applied(&mut self.log, entry);
                    node.disk.machine = Applied { index: entry.index, term: entry.term };
                }
                self.with(id, |group, _| group.applied(through.index));
            }
            Apply::Reads(_) => {}
            Apply::Restore(meta) => {
                assert_eq!(
                    node.disk.installing,
                    Some(meta.content),
                    "restored before the record was durable"
                );
                assert!(node.disk.files.contains(&meta), "node {id}: the file of an install is gone");
                if crash && !crash_after {
                    return self.crash(id);
                }
                node.disk.machine = meta.head.at;
                self.installed += 1;
                if crash {
                    return self.crash(id);
                }
                self.with(id, |group, _| group.applied(meta.head.at.index));
            }
            Apply::Snapshot { conf, at } => {
                assert_eq!(node.disk.machine, at, "a snapshot of another place than it says");
                let meta = meta_at(at, conf.conf_state);
                if !fails && !node.disk.files.contains(&meta) {
                    node.disk.files.push(meta.clone());
                }
                let durable = node.disk.machine;
                let made = (!fails).then_some((meta, durable));
                self.with(id, |group, _| group.snapshot_made(made));
            }
        }
    }

    fn take_reports(&mut self, id: NodeId) {
        let Some(up) = self.nodes.get_mut(&id).and_then(|node| node.up.as_mut()) else { return };
        let mut reports = Vec::new();
        up.mailbox.drain(&mut reports);
        let life = up.life;
        for report in reports {
            let Report::Snapshot { attempt, .. } = report else { continue };
            if self.faults.lose_reports {
                continue;
            }
            let told = self.with(id, |group, _| group.take_report(report)).unwrap_or(false);
            if told {
                let entry = self.books.get_mut(&(id, life, attempt.number)).expect("a report of nothing");
                entry.reported += 1;
                assert!(!entry.voided || attempt_may_be_both(entry), "{attempt:?} was void: {entry:?}");
            }
        }
    }

    /// As the shard does it at every tick.
    fn disown_leaked(&mut self, id: NodeId) {
        if self.faults.lose_reports || !self.faults.watchdog {
            return;
        }
        let Some(up) = self.nodes.get_mut(&id).and_then(|node| node.up.as_mut()) else { return };
        let works =
            |attempt: &SnapshotAttempt| self.transfers.iter().any(|t| t.key == (id, up.life, *attempt));
        let mut leaked = up.group.live_attempts();
        leaked.retain(|attempt| !works(attempt) && !up.mailbox.has_outcome(*attempt));
        let life = up.life;
        for attempt in leaked {
            let told = self.with(id, |group, fx| {
                group.disown(attempt, fx);
                std::mem::take(&mut fx.latched).len()
            });
            let entry = self.books.get_mut(&(id, life, attempt.number)).expect("leaked but never emitted");
            entry.synthesized += told.unwrap_or_default();
        }
    }

    /// Runs something on the group of a node that is up and carries its effects out.
    fn with<T>(&mut self, id: NodeId, run: impl FnOnce(&mut Core, &mut Fx) -> T) -> Option<T> {
        let mut fx = Fx::default();
        let node = self.nodes.get_mut(&id)?;
        let up = node.up.as_mut()?;
        let result = run(&mut up.group, &mut fx);
        assert!(fx.fatal.is_none(), "node {id}: {:?}", fx.fatal);
        up.writes.extend(fx.write.take());
        up.applies.extend(fx.apply.drain(..));
        let life = up.life;
        let fetched: Vec<_> = fx.fetches.drain(..).map(|f| (f.low, node.disk.range(f.low, f.high))).collect();
        for (low, entries) in fetched {
            up.group.fetched(low, entries);
        }
        if let Some(through) = fx.compact.take() {
            node.disk.compact(through);
        }
        if let Some(keep) = fx.retain.take() {
            // A file that was received and not stepped yet is pinned; here it is as long as its transfer.
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
        for attempt in fx.cancelled.drain(..) {
            if let Some(entry) = self.books.get_mut(&(id, life, attempt.number)) {
                entry.voided = true;
            }
            self.transfers.retain(|t| t.key != (id, life, attempt));
        }
        assert!(fx.latched.is_empty(), "a peer waited for no attempt");
        for send in fx.snapshots.drain(..) {
            let attempt = send.ticket.attempt();
            let before = self.books.insert((id, life, attempt.number), Entry::default());
            assert!(before.is_none(), "{attempt:?} was emitted twice");
            let slow = self.rng.u8(0..10) == 0;
            let key = (id, life, attempt);
            self.transfers.push(Transfer {
                key,
                send: Some(send),
                stage: Stage::Offer,
                receiver_life: 0,
                slow,
            });
        }
        Some(result)
    }

    /// One transfer gets a step further, or comes to an end of some kind.
    fn move_a_transfer(&mut self) {
        if self.transfers.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.transfers.len());
        let (lost, leaked) =
            (self.chance(self.faults.transfer_lost_permille), self.chance(self.faults.leak_permille));
        let mut transfer = self.transfers.swap_remove(at);
        let (sender, to) = (transfer.key.0, transfer.key.2.peer);
        if self.cut.contains(&(sender, to)) && !self.chance(4) {
            return self.transfers.push(transfer); // nobody has noticed yet
        }
        if leaked {
            let SnapshotSend { ticket, .. } = transfer.send.take().unwrap();
            return std::mem::forget(ticket);
        }
        if lost {
            return; // dropped: the ticket reports
        }
        if transfer.slow && self.chance(800) {
            return self.transfers.push(transfer);
        }
        let receiver_life = self.nodes[&to].up.as_ref().map(|up| up.life);
        let send = transfer.send.as_ref().unwrap();
        let (message, meta) = (send.message.clone(), send.meta.clone());
        match transfer.stage {
            Stage::Offer => {
                let offer = SnapshotOffer { message, meta, attempt: transfer.key.2.number };
                match self.with(to, |group, _| group.offer(sender, &offer)) {
                    None => return,
                    Some(Err(refusal)) => {
                        let cause = SnapshotFailure::Refused { lasting: refusal.is_lasting() };
                        return transfer.send.take().unwrap().ticket.fail(cause);
                    }
                    Some(Ok(OfferVerdict::Have { .. })) => transfer.stage = Stage::Answer(true),
                    Some(Ok(OfferVerdict::Wanted)) => transfer.stage = Stage::Chunks(3),
                }
                transfer.receiver_life = receiver_life.unwrap();
            }
            _ if receiver_life != Some(transfer.receiver_life) => return, // its connection broke
            Stage::Chunks(0) => {
                let files = &mut self.nodes.get_mut(&to).unwrap().disk.files;
                if !files.contains(&meta) {
                    files.push(meta);
                }
                transfer.stage = Stage::Durable;
                if self.chance(self.faults.install_crash_permille) {
                    self.crash(to);
                }
            }
            Stage::Chunks(left) => transfer.stage = Stage::Chunks(left - 1),
            Stage::Durable => {
                let taken = self.with(to, |group, _| group.receive(sender, message, meta)).unwrap();
                transfer.stage = Stage::Answer(taken.is_ok());
            }
            Stage::Answer(taken) => {
                let ticket = transfer.send.take().unwrap().ticket;
                return match taken {
                    true => ticket.finish(),
                    false => ticket.fail(SnapshotFailure::Refused { lasting: false }),
                };
            }
        }
        // A crash of the sender meanwhile takes it along.
        if self.nodes[&sender].up.as_ref().is_some_and(|up| up.life == transfer.key.1) {
            self.transfers.push(transfer);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.faults = Faults::none(self.faults.lose_reports, self.faults.watchdog);
        self.cut.clear();
        for id in self.ids() {
            if self.nodes[&id].up.is_none() {
                self.start(id);
            }
        }
    }

    /// Nothing goes wrong any more: everybody must get level, and no attempt may be left.
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

    /// So many ticks of a healthy cluster, in which all that is said arrives before the next tick. Whoever needs a snapshot,
    /// and whose backoff is over, is sent one within two heartbeats. Gives how often somebody was.
    pub(crate) fn promptly(&mut self, ticks: usize) -> usize {
        self.heal();
        let mut waits: BTreeMap<(NodeId, NodeId), usize> = BTreeMap::new();
        let before = self.books.len();
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
        self.books.len() - before
    }

    /// Lets everything move that can without a tick.
    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            while !self.messages.is_empty() {
                self.deliver();
            }
            (0..2 * self.transfers.len()).for_each(|_| self.move_a_transfer());
            self.ids().into_iter().for_each(|id| self.turn_with(id, false));
            let idle =
                |node: &Node| node.up.as_ref().is_none_or(|up| up.writes.is_empty() && up.applies.is_empty());
            if self.messages.is_empty() && self.transfers.is_empty() && self.nodes.values().all(idle) {
                return;
            }
        }
        panic!("seed {}: it never comes to rest", self.seed);
    }

    /// Leaders and their peers whose log begins too late for the peer, and who are sent nothing although they might be.
    fn waiting(&self) -> BTreeSet<(NodeId, NodeId)> {
        let mut waiting = BTreeSet::new();
        for (id, node) in &self.nodes {
            let Some(status) = node.up.as_ref().map(|up| up.group.status()) else { continue };
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

    /// Whether a leader waits for a snapshot that nobody moves.
    pub(crate) fn any_latched(&self) -> bool {
        let waits = |up: &Up| {
            let peers = up.group.status().peers;
            let waiting = peers.iter().any(|p| p.progress == PeerProgress::Snapshot);
            waiting && !self.transfers.iter().any(|t| t.key.1 == up.life)
        };
        self.nodes.values().any(|n| n.up.as_ref().is_some_and(waits))
    }

    pub(crate) fn assert_one_report_each(&self) {
        for (key, entry) in &self.books {
            let told = entry.reported + entry.synthesized;
            let over = entry.voided || entry.crashed;
            assert!(told <= 1, "seed {}: {key:?} {entry:?}", self.seed);
            assert!(told == 1 || over, "seed {}: nobody reported on {key:?} {entry:?}", self.seed);
        }
    }

    pub(crate) fn emitted(&self) -> usize {
        self.books.len()
    }

    pub(crate) fn reported(&self) -> usize {
        self.books.values().map(|entry| entry.reported).sum()
    }

    pub(crate) fn synthesized(&self) -> usize {
        self.books.values().map(|entry| entry.synthesized).sum()
    }

    pub(crate) fn voided(&self) -> usize {
        self.books.values().filter(|entry| entry.voided && entry.reported == 0).count()
    }

    pub(crate) fn installed(&self) -> usize {
        self.installed
    }

    pub(crate) fn crashes(&self) -> usize {
        self.crashes
    }
}

/// A transfer that was cancelled because its pin became too dear is reported as well, once.
fn attempt_may_be_both(entry: &Entry) -> bool {
    entry.reported == 1 && entry.synthesized == 0
}

/// Everybody applies the same entries.
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
