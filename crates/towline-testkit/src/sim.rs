//! A simulator of a cluster of cores in one thread. One seed determines turns, delays, losses, syncs and crashes, so
//! that a failure replays exactly.
//!
//! Each node is a [`GroupCore`](towline_engine::core::GroupCore), driven in the order of the engine's shard: durable
//! writes, applied entries, reports, messages (control before appends), proposals, the clock, one poll. [`History`]
//! checks that
//! * all nodes apply the same entries in the same order, each command at most once;
//! * an acknowledged command stays at its index on every node;
//! * a command that failed with [`NeverHappened`](towline_engine::errors::Outcome::NeverHappened) is never applied;
//! * a read sees everything that was acknowledged or seen before it began.
//!
//! A node whose disk is low must write no command.
//!
//! ```
//! use towline_testkit::sim::{Chaos, Sim, SimOptions};
//!
//! # fn main() -> Result<(), towline_testkit::sim::SimViolation> {
//! let mut sim = Sim::new(7, 3, SimOptions { chaos: Chaos::rough(), ..SimOptions::default() })?;
//! sim.run(2_000)?;
//! sim.converge()?;
//! assert!(sim.history().acked_count() > 0);
//! # Ok(())
//! # }
//! ```

mod control;
mod disk;
mod history;
mod net;
mod node;
mod options;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use towline_engine::core::{DiskRoom, Reject};
use towline_engine::errors::TransferLeaderError;
use towline_engine::ids::{GroupId, NodeId};
use towline_engine::message::{ConfState, Entry, Message};
use towline_engine::reporter::{Report, UnreachableCause};

pub use self::history::{History, ProposalResult, ReadResult};
pub use self::net::NetOptions;
use self::net::SimNet;
use self::node::{CoreEffects, SimGroup, SimNode};
pub use self::options::{Chaos, SimOptions};

/// Steps within which a healthy cluster must converge.
const CONVERGE_STEPS_MAX: u64 = 20_000;

/// The chance that a node skips ticks before a tick.
const SKIP_PERMILLE: u32 = 50;

/// A property that does not hold. The seed and the options replay it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("seed {seed}, step {step}: {detail}")]
pub struct SimViolation {
    /// The seed of the run.
    pub seed: u64,
    /// The step.
    pub step: u64,
    /// The property and what was found.
    pub detail: String,
}

/// The simulator. Its methods fail with the first property that does not hold.
pub struct Sim {
    seed: u64,
    options: SimOptions,
    rng: fastrand::Rng,
    now: u64,
    members: ConfState,
    nodes: BTreeMap<NodeId, SimNode>,
    net: SimNet,
    history: History,
    rejects: HashMap<Reject, u64>,
    crashes: u64,
    /// No more faults, so that the cluster converges.
    calm: bool,
}

impl Sim {
    /// Starts voters with ids from 1, followed by the learners of the options.
    pub fn new(seed: u64, voters: u64, options: SimOptions) -> Result<Self, SimViolation> {
        let ids = |range: Range<u64>| range.filter_map(NodeId::new).collect::<Vec<_>>();
        let members = ConfState {
            voters: ids(1..voters + 1),
            learners: ids(voters + 1..voters + options.learners + 1),
            ..ConfState::default()
        };
        let nodes = members.voters.iter().chain(&members.learners).map(|&id| (id, SimNode::default()));
        let mut sim = Self {
            seed,
            rng: fastrand::Rng::with_seed(seed),
            now: 0,
            nodes: nodes.collect(),
            members,
            history: History::new(options.history_checked),
            options,
            net: SimNet::default(),
            rejects: HashMap::new(),
            crashes: 0,
            calm: false,
        };
        sim.ids().into_iter().try_for_each(|id| sim.restart(id))?;
        Ok(sim)
    }

    /// Takes `steps` steps.
    pub fn run(&mut self, steps: u64) -> Result<(), SimViolation> {
        (0..steps).try_for_each(|_| self.step())
    }

    /// Takes steps until `wanted` holds, which is `what`.
    pub fn run_until(
        &mut self,
        what: &str,
        steps_max: u64,
        wanted: impl Fn(&Self) -> bool,
    ) -> Result<(), SimViolation> {
        for _ in 0..steps_max {
            if wanted(self) {
                return Ok(());
            }
            self.step()?;
        }
        Err(self.violation(format!("not within {steps_max} steps: {what}")))
    }

    /// Draws faults and load, then one node takes a turn.
    pub fn step(&mut self) -> Result<(), SimViolation> {
        self.now += 1;
        if !self.calm {
            self.chaos()?;
        }
        let ids = self.ids();
        if let Some(&id) = ids.get(self.rng.usize(0..ids.len())) {
            let tick = self.chance(self.options.tick_permille);
            self.turn(id, tick)?;
        }
        Ok(())
    }

    /// Every node takes a turn with a tick of its clock. Delays in steps are then in ticks.
    pub fn tick(&mut self) -> Result<(), SimViolation> {
        self.now += 1;
        self.ids().into_iter().try_for_each(|id| self.turn(id, true))
    }

    /// Ends all faults and starts all nodes. The cluster must then elect a leader, acknowledge a command, and apply the
    /// same entries on every node.
    pub fn converge(&mut self) -> Result<(), SimViolation> {
        self.calm = true;
        self.options.net = NetOptions::default();
        self.net.heal();
        for id in self.ids() {
            self.hold_writes(id, false);
            self.hold_applies(id, false);
            self.set_disk_room(id, DiskRoom::Enough)?;
            if !self.is_up(id) {
                self.restart(id)?;
            }
        }
        let until = self.now + CONVERGE_STEPS_MAX;
        let acked = |sim: &Self, command: Option<u64>| {
            matches!(command.map(|c| sim.history.proposal(c)), Some(ProposalResult::Acked(_)))
        };
        let mut last = None;
        while !acked(self, last) || !self.is_level() {
            if self.now > until {
                return Err(self.violation(format!("the cluster does not converge: {}", self.describe())));
            }
            let open = last.is_some_and(|c| *self.history.proposal(c) == ProposalResult::Open);
            if !open
                && !acked(self, last)
                && let Some(leader) = self.leader()
            {
                last = Some(self.propose(leader)?);
            }
            self.step()?;
        }
        Ok(())
    }

    /// Whether every node has applied all applied entries.
    fn is_level(&self) -> bool {
        self.nodes.values().all(|n| n.machine.through.index == self.history.last_index())
    }

    fn describe(&self) -> String {
        let lines = self.nodes.iter().map(|(id, n)| {
            format!(
                "node {id} durable to {}: {:?}",
                n.disk.last_index(),
                n.group.as_ref().map(|g| g.status())
            )
        });
        lines.collect::<Vec<_>>().join("; ")
    }

    /// Runs one turn of a node, in the order of the engine's shard.
    pub fn turn(&mut self, id: NodeId, tick: bool) -> Result<(), SimViolation> {
        self.sync(id)?;
        if !self.is_up(id) {
            return Ok(());
        }
        self.apply(id)?;
        let arrived = self.net.receive(self.now, id);
        self.report_lost();
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        node.inbox.messages.extend(arrived);
        let inbox = (
            std::mem::take(&mut node.inbox.fetches),
            std::mem::take(&mut node.inbox.unreachable),
            std::mem::take(&mut node.inbox.messages),
        );
        let fetched: Vec<_> = inbox.0.into_iter().map(|f| (f.low, node.disk.range(f.low, f.high))).collect();
        self.with(id, |group, fx| {
            fetched.into_iter().for_each(|(low, entries)| group.fetched(low, Ok(entries), fx));
            for peer in inbox.1 {
                let cause = UnreachableCause::LinkLost;
                group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer, cause });
            }
        })?;
        for message in inbox.2 {
            let _ = self.deliver(id, message.from, message)?;
        }
        let skipped = if tick && !self.calm && self.chance(SKIP_PERMILLE) { self.rng.u64(1..100) } else { 0 };
        self.with(id, |group, fx| {
            if tick {
                group.skip_ticks(skipped);
                group.tick(fx);
            }
            group.poll(fx);
        })?;
        Ok(())
    }

    /// Steps a message into a node, as from the connection of `from`. A refusal that the engine answers with a nack is
    /// reported to the sender.
    pub fn deliver(
        &mut self,
        id: NodeId,
        from: NodeId,
        message: Message,
    ) -> Result<Result<(), Reject>, SimViolation> {
        let result = self.with(id, |group, _| group.step(from, message))?.unwrap_or(Ok(()));
        if let Err(reject) = result {
            *self.rejects.entry(reject).or_default() += 1;
            if matches!(reject, Reject::Full | Reject::BadEntries | Reject::DiskFull) {
                self.net.lost.push((from, id));
                self.report_lost();
            }
        }
        Ok(result)
    }

    /// Runs `run` on the group of a node and carries out its effects. `None` if the node is down.
    pub fn with<T>(
        &mut self,
        id: NodeId,
        run: impl FnOnce(&mut SimGroup, &mut CoreEffects) -> T,
    ) -> Result<Option<T>, SimViolation> {
        let mut fx = CoreEffects::default();
        let Some(group) = self.nodes.get_mut(&id).and_then(|n| n.group.as_mut()) else { return Ok(None) };
        let result = run(group, &mut fx);
        self.carry_out(id, fx)?;
        Ok(Some(result))
    }

    fn carry_out(&mut self, id: NodeId, mut fx: CoreEffects) -> Result<(), SimViolation> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if let Some((number, write)) = fx.write.take() {
            let term = node.group.as_ref().map_or(0, |group| group.state().term);
            let may_write = |entry: &Entry| match node.disk_room {
                DiskRoom::Enough => true,
                DiskRoom::Low => entry.data.is_empty() || entry.term < term,
                DiskRoom::Short => entry.data.is_empty(),
            };
            if let Some(entry) = write.entries.iter().find(|entry| !may_write(entry)) {
                let detail =
                    format!("node {id} writes command {} while its disk has no room for it", entry.index);
                return Err(self.violation(detail));
            }
            node.disk.write(number, write);
            if self.options.sync_lies
                && let Some(group) = &mut node.group
            {
                group.written(number, &mut fx);
            }
        }
        let applied = node.machine.through.index;
        node.inbox.applies.extend(fx.apply);
        node.inbox.fetches.extend(fx.fetches);
        for message in fx.messages {
            self.net.send(self.now, message, &self.options.net, &mut self.rng);
        }
        self.report_lost();
        for (command, error) in fx.refused {
            self.history.refused(command, error).map_err(|detail| self.violation(detail))?;
        }
        fx.unread.into_iter().for_each(|(read, error)| self.history.unread(read, error));
        for read in fx.readable {
            self.history.saw(id, read, applied).map_err(|detail| self.violation(detail))?;
        }
        if let Some(lost) = fx.lost {
            if self.options.history_checked {
                return Err(self.violation(format!("node {id}: {lost}")));
            }
            self.crash(id);
        }
        match fx.fatal {
            Some(fatal) => Err(self.violation(format!("node {id} cannot go on: {fatal}"))),
            None => Ok(()),
        }
    }

    fn sync(&mut self, id: NodeId) -> Result<(), SimViolation> {
        let sync = self.chance(self.options.sync_permille);
        let Some(node) = self.nodes.get_mut(&id).filter(|n| n.disk.pending() > 0) else { return Ok(()) };
        if !sync || node.hold_writes {
            return Ok(());
        }
        let count = match (self.options.sync_steps, node.syncing) {
            (0, _) => self.rng.usize(1..=node.disk.pending()),
            (steps, None) => {
                node.syncing = Some((self.now + steps, node.disk.pending()));
                return Ok(());
            }
            (_, Some((end, _))) if self.now < end => return Ok(()),
            (_, Some((_, count))) => count,
        };
        node.syncing = None;
        let crash = !self.calm && self.chance(self.options.chaos.crash_at_sync_permille);
        let when = self.rng.u8(0..3);
        if crash && when == 0 {
            self.crash(id);
            return Ok(());
        }
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let synced = node.disk.sync(count).map_err(|detail| self.violation(detail))?;
        if crash && when == 1 {
            self.crash(id);
            return Ok(());
        }
        if let Some(number) = synced {
            self.with(id, |group, fx| group.written(number, fx))?;
        }
        if crash {
            self.crash(id);
        }
        Ok(())
    }

    fn apply(&mut self, id: NodeId) -> Result<(), SimViolation> {
        let (apply, flush) =
            (self.chance(self.options.apply_permille), self.chance(self.options.flush_permille));
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        if !apply || node.hold_applies || node.inbox.applies.is_empty() {
            return Ok(());
        }
        let count = self.rng.usize(1..=node.inbox.applies.len());
        let result = node.apply(id, count, &mut self.history);
        if flush {
            node.machine.durable = node.machine.through;
        }
        let through = node.machine.through.index;
        result.map_err(|detail| self.violation(detail))?;
        self.with(id, |group, _| group.applied(through))?;
        Ok(())
    }

    /// Reports lost messages to their senders, as the lanes do.
    fn report_lost(&mut self) {
        for (sender, receiver) in self.net.lost.drain(..) {
            if let Some(node) = self.nodes.get_mut(&sender) {
                node.inbox.unreachable.push(receiver);
            }
        }
    }

    fn chaos(&mut self) -> Result<(), SimViolation> {
        let chaos = self.options.chaos.clone();
        let ids = self.ids();
        let some = ids.get(self.rng.usize(0..ids.len())).copied();
        let other = ids.get(self.rng.usize(0..ids.len())).copied();
        let (Some(some), Some(other)) = (some, other) else { return Ok(()) };
        if self.chance(chaos.propose_permille) {
            // Mostly on the leader, sometimes on any node.
            let at = if self.chance(800) { self.leader().unwrap_or(some) } else { some };
            let count = self.rng.usize(1..4);
            let padding = self.rng.usize(0..64);
            self.propose_many(at, count, padding)?;
        }
        if self.chance(chaos.read_permille) {
            self.read(some)?;
        }
        if self.chance(chaos.transfer_permille)
            && let Some(leader) = self.leader()
        {
            let _ = self.transfer(leader, other)?;
        }
        if self.chance(chaos.crash_permille) {
            self.crash(some);
        }
        if self.chance(chaos.restart_permille)
            && let Some(&down) = ids.iter().find(|id| !self.is_up(**id))
        {
            self.restart(down)?;
        }
        if self.chance(chaos.heal_permille) {
            self.heal();
        }
        if self.chance(chaos.disk_low_permille) {
            let room = if self.rng.bool() { DiskRoom::Low } else { DiskRoom::Short };
            self.set_disk_room(some, room)?;
        }
        if self.chance(chaos.disk_room_permille) {
            self.set_disk_room(other, DiskRoom::Enough)?;
        }
        if self.chance(chaos.partition_permille) {
            match self.rng.bool() {
                true => self.isolate(some),
                false => self.cut(some, other),
            }
        }
        Ok(())
    }

    /// Proposes a command on a node and returns its number in the history.
    pub fn propose(&mut self, id: NodeId) -> Result<u64, SimViolation> {
        Ok(self.propose_many(id, 1, 0)?.start)
    }

    /// Proposes `count` commands at once, each with `padding` extra bytes. A node that is down leaves them open.
    pub fn propose_many(
        &mut self,
        id: NodeId,
        count: usize,
        padding: usize,
    ) -> Result<Range<u64>, SimViolation> {
        let commands: Vec<u64> = (0..count).map(|_| self.history.invoke_proposal()).collect();
        let range = commands.first().map_or(0..0, |&first| first..first + count as u64);
        let proposals = commands.into_iter().map(|command| {
            let mut data = command.to_be_bytes().to_vec();
            data.resize(data.len() + padding, 0);
            (Bytes::from(data), command)
        });
        let proposals = proposals.collect();
        self.with(id, |group, fx| group.propose(proposals, fx))?;
        Ok(range)
    }

    /// Starts a read on a node and returns its number in the history.
    pub fn read(&mut self, id: NodeId) -> Result<u64, SimViolation> {
        let read = self.history.invoke_read();
        self.with(id, |group, _| group.read(read))?;
        Ok(read)
    }

    /// Asks a leader to transfer its leadership. `Ok(None)` if the node is down.
    pub fn transfer(
        &mut self,
        leader: NodeId,
        to: NodeId,
    ) -> Result<Option<Result<(), TransferLeaderError>>, SimViolation> {
        self.with(leader, |group, _| group.transfer(to))
    }

    fn chance(&mut self, permille: u32) -> bool {
        permille > 0 && self.rng.u32(0..1000) < permille
    }

    fn violation(&self, detail: String) -> SimViolation {
        SimViolation { seed: self.seed, step: self.now, detail }
    }
}
