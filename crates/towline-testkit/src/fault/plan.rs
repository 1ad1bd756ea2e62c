//! The faults that are set, and how often they happened.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::sync::watch;
use towline_engine::message::{Batch, Envelope, Lane, Message};

use crate::sync::lock;

/// A direction, from the view of the node that uses the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To peers.
    Out,
    /// To this node's listeners.
    In,
}

/// The faults of a lane; none by default. A chance is from 0.0 (never) to 1.0 for each message.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LaneFaults {
    /// The chance that the message is lost.
    pub drop: f64,
    /// The chance that it arrives twice.
    pub duplicate: f64,
    /// The chance that it arrives after the next message, in this batch or a later one.
    pub reorder: f64,
    /// The chance that its last entry is lost, or the last byte of its context.
    pub truncate: f64,
    /// The chance that one bit of its payload is flipped, or of its index if it has no payload.
    pub corrupt: f64,
    /// All messages are lost without a report.
    pub black_hole: bool,
    /// A dispatch takes longer by this time. For [`Direction::Out`] only: a delivery must not block.
    pub delay: Duration,
    /// The most payload bytes per second, for [`Direction::Out`] only.
    pub bytes_per_s: Option<u64>,
    /// The link breaks after this number of messages.
    pub kill_after_messages: Option<u64>,
    /// The link breaks after this number of payload bytes.
    pub kill_after_bytes: Option<u64>,
}

/// The faults of snapshot transfers; none by default. Chunks of a transfer count from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotFaults {
    /// The transfer breaks at this chunk. For [`Direction::In`], the receiver's disk is full.
    pub cut_at_chunk: Option<u64>,
    /// One bit of this chunk is flipped; its checksum stays.
    pub corrupt_chunk: Option<u64>,
    /// This chunk, or the end behind the last chunk, waits until the fault is cleared.
    pub stall_at_chunk: Option<u64>,
    /// The transfer breaks after its last chunk.
    pub drop_trailer: bool,
}

/// How often each fault happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the names of the faults
pub struct FaultCounts {
    pub dropped: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub truncated: u64,
    pub corrupted: u64,
    pub killed: u64,
    pub chunks_corrupted: u64,
    pub transfers_cut: u64,
}

/// Sets the faults of a transport. Clones share them.
#[derive(Debug, Clone)]
pub struct Faults {
    shared: Arc<FaultsShared>,
}

#[derive(Debug)]
struct FaultsShared {
    plan: watch::Sender<FaultPlan>,
    random: Mutex<Rng>,
    counts: Mutex<FaultCounts>,
}

#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    lanes: BTreeMap<(Lane, Direction), LaneFaults>,
    snapshots: BTreeMap<Direction, SnapshotFaults>,
}

impl FaultPlan {
    pub(super) fn snapshots(&self, direction: Direction) -> SnapshotFaults {
        self.snapshots.get(&direction).copied().unwrap_or_default()
    }
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let (plan, random) = (watch::Sender::default(), Mutex::new(Rng::with_seed(seed)));
        Self { shared: Arc::new(FaultsShared { plan, random, counts: Mutex::default() }) }
    }

    /// Sets the faults of a lane.
    pub fn lane(&self, lane: Lane, direction: Direction, faults: LaneFaults) {
        self.shared.plan.send_modify(|plan| {
            plan.lanes.insert((lane, direction), faults);
        });
    }

    /// Sets the faults of snapshot transfers.
    pub fn snapshots(&self, direction: Direction, faults: SnapshotFaults) {
        self.shared.plan.send_modify(|plan| {
            plan.snapshots.insert(direction, faults);
        });
    }

    /// Clears all faults.
    pub fn clear(&self) {
        self.shared.plan.send_replace(FaultPlan::default());
    }

    /// How often each fault has happened.
    pub fn counts(&self) -> FaultCounts {
        *lock(&self.shared.counts)
    }

    pub(super) fn watch(&self) -> watch::Receiver<FaultPlan> {
        self.shared.plan.subscribe()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut FaultCounts)) {
        count(&mut lock(&self.shared.counts));
    }

    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut lock(&self.shared.random))
    }

    fn chance(&self, chance: f64) -> bool {
        chance > 0.0 && self.draw(|random| random.f64() < chance)
    }

    fn on(&self, lane: Lane, direction: Direction) -> LaneFaults {
        self.shared.plan.borrow().lanes.get(&(lane, direction)).copied().unwrap_or_default()
    }

    /// The state of the faults for one link or one session.
    pub(super) fn lane_faults(&self, lane: Lane, direction: Direction) -> FaultyLane {
        FaultyLane { faults: self.clone(), lane, direction, carried: Mutex::default() }
    }
}

/// One lane of one link, in one direction.
pub(super) struct FaultyLane {
    faults: Faults,
    lane: Lane,
    direction: Direction,
    carried: Mutex<Carried>,
}

#[derive(Default)]
struct Carried {
    messages: u64,
    bytes: u64,
    /// Waits until a later message has passed it.
    behind: Option<Envelope>,
}

impl FaultyLane {
    pub(super) fn faults(&self) -> LaneFaults {
        self.faults.on(self.lane, self.direction)
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        lock(&self.carried)
    }

    /// Whether the link breaks at this batch, which is counted otherwise.
    pub(super) fn kills(&self, batch: &Batch) -> bool {
        let on = self.faults();
        let mut carried = self.carried();
        let messages = carried.messages + batch.envelopes.len() as u64;
        let bytes = carried.bytes + batch.payload_bytes() as u64;
        let kills = on.kill_after_messages.is_some_and(|after| messages > after)
            || on.kill_after_bytes.is_some_and(|after| bytes > after);
        match kills {
            true => self.faults.count(|counts| counts.killed += 1),
            false => (carried.messages, carried.bytes) = (messages, bytes),
        }
        kills
    }

    /// Applies the faults to a batch.
    pub(super) fn change(&self, batch: &mut Batch) {
        let on = self.faults();
        if on.black_hole {
            self.faults.count(|counts| counts.dropped += batch.envelopes.len() as u64);
            batch.envelopes.clear();
            return;
        }
        let mut carried = self.carried();
        let mut out = Vec::with_capacity(batch.envelopes.len());
        for mut envelope in batch.envelopes.drain(..) {
            if self.faults.chance(on.drop) {
                self.faults.count(|counts| counts.dropped += 1);
                continue;
            }
            if self.faults.chance(on.truncate) {
                truncate(&mut envelope.message);
                self.faults.count(|counts| counts.truncated += 1);
            }
            if self.faults.chance(on.corrupt) {
                self.faults.draw(|random| corrupt(&mut envelope.message, random));
                self.faults.count(|counts| counts.corrupted += 1);
            }
            if carried.behind.is_none() && self.faults.chance(on.reorder) {
                self.faults.count(|counts| counts.reordered += 1);
                carried.behind = Some(envelope);
                continue;
            }
            if self.faults.chance(on.duplicate) {
                self.faults.count(|counts| counts.duplicated += 1);
                out.push(envelope.clone());
            }
            out.push(envelope);
            out.extend(carried.behind.take());
        }
        batch.envelopes = out;
    }
}

fn truncate(message: &mut Message) {
    if message.entries.pop().is_none() {
        message.context.truncate(message.context.len().saturating_sub(1));
    }
}

fn corrupt(message: &mut Message, random: &mut Rng) {
    let payloads = message.entries.iter_mut().flat_map(|entry| [&mut entry.data, &mut entry.context]);
    let mut filled: Vec<_> =
        payloads.chain([&mut message.context]).filter(|bytes| !bytes.is_empty()).collect();
    if filled.is_empty() {
        message.index ^= 1 << random.u32(..8);
        return;
    }
    let chosen = random.usize(..filled.len());
    if let Some(bytes) = filled.get_mut(chosen) {
        **bytes = flip(bytes, random);
    }
}

/// A copy with one flipped bit.
pub(super) fn flip(bytes: &Bytes, random: &mut Rng) -> Bytes {
    let mut changed = bytes.to_vec();
    if !changed.is_empty() {
        let at = random.usize(..changed.len());
        if let Some(byte) = changed.get_mut(at) {
            *byte ^= 1 << random.u32(..8);
        }
    }
    changed.into()
}
