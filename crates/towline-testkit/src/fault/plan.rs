//! What goes wrong, and what has gone wrong.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::sync::watch;
use towline_engine::message::{Batch, Envelope, Lane, Message};

/// Which way, seen from the node that uses the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// What this node sends.
    Out,
    /// What its listeners get.
    In,
}

/// What happens on a lane. The default changes nothing. A chance is from 0.0 (never) to 1.0 and is of each message.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LaneFaults {
    /// The chance to be lost.
    pub drop: f64,
    /// The chance to arrive twice.
    pub duplicate: f64,
    /// The chance to arrive behind the next one, in this batch or a later one.
    pub reorder: f64,
    /// The chance to lose its last entry, or the last byte of its context if it has none.
    pub truncate: f64,
    /// The chance that one bit of its payload, or of its index if it has none, is flipped.
    pub corrupt: f64,
    /// None arrives, and nobody is told.
    pub black_hole: bool,
    /// A dispatch takes this much longer. [`Direction::Out`] only: what comes in may not wait.
    pub delay: Duration,
    /// A dispatch waits as if the reader took no more than that many bytes of payload in a second. [`Direction::Out`]
    /// only.
    pub bytes_per_s: Option<u64>,
    /// The link dies once it has carried that many messages.
    pub kill_after_messages: Option<u64>,
    /// The link dies once it has carried that many bytes of payload.
    pub kill_after_bytes: Option<u64>,
}

/// What happens to snapshots. The default changes nothing. Chunks are counted in their transfer, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SnapshotFaults {
    /// The transfer breaks instead of this chunk. Coming in: the receiver's disk is full.
    pub cut_at_chunk: Option<u64>,
    /// One byte of this chunk is another; its checksum stays.
    pub corrupt_chunk: Option<u64>,
    /// This chunk, or the end if there are no more, waits until the fault is over.
    pub stall_at_chunk: Option<u64>,
    /// Each chunk takes this much longer.
    pub delay: Duration,
    /// All chunks go, and the transfer breaks instead of its end.
    pub drop_trailer: bool,
}

/// How often each thing went wrong.
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

/// Switches the faults of a transport. Clones are the same switch.
#[derive(Debug, Clone)]
pub struct Faults {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: watch::Sender<Plan>,
    random: Mutex<Rng>,
    counts: Mutex<FaultCounts>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Plan {
    control: [LaneFaults; 2],
    append: [LaneFaults; 2],
    snapshots: [SnapshotFaults; 2],
}

fn of<T: Copy>([out, into]: [T; 2], direction: Direction) -> T {
    match direction {
        Direction::Out => out,
        Direction::In => into,
    }
}

fn of_mut<T>([out, into]: &mut [T; 2], direction: Direction) -> &mut T {
    match direction {
        Direction::Out => out,
        Direction::In => into,
    }
}

impl Plan {
    pub(super) fn snapshots(&self, direction: Direction) -> SnapshotFaults {
        of(self.snapshots, direction)
    }
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let random = Mutex::new(Rng::with_seed(seed));
        Self { shared: Arc::new(Shared { plan: watch::Sender::default(), random, counts: Mutex::default() }) }
    }

    /// What happens on a lane from now on, instead of whatever happened there before.
    pub fn lane(&self, lane: Lane, direction: Direction, faults: LaneFaults) {
        self.shared.plan.send_modify(|plan| match lane {
            Lane::Control => *of_mut(&mut plan.control, direction) = faults,
            Lane::Append => *of_mut(&mut plan.append, direction) = faults,
        });
    }

    /// What happens to snapshots from now on.
    pub fn snapshots(&self, direction: Direction, faults: SnapshotFaults) {
        self.shared.plan.send_modify(|plan| *of_mut(&mut plan.snapshots, direction) = faults);
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        self.shared.plan.send_replace(Plan::default());
    }

    /// What has gone wrong so far.
    pub fn counts(&self) -> FaultCounts {
        *self.lock_counts()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Plan> {
        self.shared.plan.subscribe()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut FaultCounts)) {
        count(&mut self.lock_counts());
    }

    fn lock_counts(&self) -> MutexGuard<'_, FaultCounts> {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn draw<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.shared.random.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn chance(&self, chance: f64) -> bool {
        chance > 0.0 && self.draw(|random| random.f64() < chance)
    }

    fn on(&self, lane: Lane, direction: Direction) -> LaneFaults {
        let plan = *self.shared.plan.borrow();
        match lane {
            Lane::Control => of(plan.control, direction),
            Lane::Append => of(plan.append, direction),
        }
    }

    /// One link's or one session's way through the faults.
    pub(super) fn way(&self, lane: Lane, direction: Direction) -> Way {
        Way { faults: self.clone(), lane, direction, carried: Mutex::default() }
    }
}

/// One lane of one link, one way.
pub(super) struct Way {
    faults: Faults,
    lane: Lane,
    direction: Direction,
    carried: Mutex<Carried>,
}

#[derive(Default)]
struct Carried {
    messages: u64,
    bytes: u64,
    /// Waits for a later one to go before it.
    behind: Option<Envelope>,
}

impl Way {
    pub(super) fn faults(&self) -> LaneFaults {
        self.faults.on(self.lane, self.direction)
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the link dies of this batch; counts it if not.
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

    /// What becomes of a batch.
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

/// The same bytes but for one bit.
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
