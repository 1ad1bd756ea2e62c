//! Pools of memory that all connections share, for long commands and large values.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::Counter;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

const UNIT_BYTES: usize = 1 << 10;
/// The least speed of a client that keeps room for which others wait.
const BYTES_PER_SECOND_MIN: u64 = 8 << 20;
/// How far such a client may fall behind.
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// Within the limit of a semaphore on any system.
const UNITS_MAX: u32 = u32::MAX >> 4;

/// A bounded number of bytes. Connections queue for them in order of arrival.
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    units_max: u32,
    queue_length: Arc<AtomicUsize>,
    /// Counts the claims that had to queue.
    waits: Counter,
}

/// Bytes of a pool. Its drop returns them.
pub(super) struct Room {
    permit: OwnedSemaphorePermit,
    due: Instant,
    queue_length: Arc<AtomicUsize>,
}

/// A claim in the queue of a pool.
pub(super) struct QueuedClaim {
    counted: QueueEntry,
    permit: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
}

/// The claim of one connection: first queued, then granted.
#[derive(Default)]
pub(super) struct Claim {
    queued: Option<QueuedClaim>,
    granted: Option<Room>,
}

/// Counts one claim in the queue until its drop.
struct QueueEntry(Arc<AtomicUsize>);

impl QueueEntry {
    fn new(queue_length: &Arc<AtomicUsize>) -> Self {
        queue_length.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(queue_length))
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn new(bytes: usize, waits: Counter) -> Self {
        let units_max = units(bytes);
        Self {
            permits: Arc::new(Semaphore::new(units_max as usize)),
            units_max,
            queue_length: Arc::default(),
            waits,
        }
    }

    /// Asks for room for `bytes`, or for the whole pool if they are more. Queues if the pool has too few.
    pub(super) fn ask(&self, bytes: usize) -> Result<Room, QueuedClaim> {
        let units = units(bytes).min(self.units_max);
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_many_owned(units) {
            return Ok(Room::new(permit, &self.queue_length));
        }
        self.waits.increment(1);
        let counted = QueueEntry::new(&self.queue_length);
        Err(QueuedClaim { counted, permit: Box::pin(Arc::clone(&self.permits).acquire_many_owned(units)) })
    }

    /// Whether `room` is as much as [`ask`](Self::ask) would give.
    pub(super) fn is_enough(&self, room: &Room, bytes: usize) -> bool {
        room.permit.num_permits() >= units(bytes).min(self.units_max) as usize
    }
}

impl Room {
    fn new(permit: OwnedSemaphorePermit, queue_length: &Arc<AtomicUsize>) -> Self {
        let due = Instant::now() + BEHIND_MAX;
        Self { permit, due, queue_length: Arc::clone(queue_length) }
    }

    /// When the client must give the room back if others wait for it.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Starts the time of the client.
    pub(super) fn renew(&mut self, now: Instant) {
        self.due = now + BEHIND_MAX;
    }

    /// Extends the time of the client, which took or sent `bytes`.
    pub(super) fn moved(&mut self, bytes: usize, now: Instant) {
        let earned = Duration::from_nanos(bytes as u64 * 1_000_000_000 / BYTES_PER_SECOND_MIN);
        self.due = (self.due + earned).min(now + BEHIND_MAX);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.queue_length.load(Ordering::Relaxed) > 0
    }
}

impl Claim {
    /// Returns room for `bytes` if it was granted or is free. Otherwise queues for it.
    pub(super) fn take(&mut self, pool: &Pool, bytes: usize) -> Option<Room> {
        if let Some(room) = self.granted.take()
            && pool.is_enough(&room, bytes)
        {
            return Some(room);
        }
        if self.queued.is_none() {
            match pool.ask(bytes) {
                Ok(room) => return Some(room),
                Err(queued) => self.queued = Some(queued),
            }
        }
        None
    }

    /// Pending while the claim is queued. Returns true if the pool granted room just now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(queued) = &mut self.queued else { return Poll::Ready(false) };
        self.granted = ready!(queued.poll(cx));
        self.queued = None;
        Poll::Ready(true)
    }

    /// As [`take`](Self::take), but waits for the room.
    pub(super) fn poll_for(&mut self, pool: &Pool, bytes: usize, cx: &mut Context<'_>) -> Poll<Room> {
        loop {
            if let Some(room) = self.take(pool, bytes) {
                return Poll::Ready(room);
            }
            ready!(self.poll(cx));
        }
    }
}

impl QueuedClaim {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Room>> {
        let permit = ready!(self.permit.as_mut().poll(cx)).ok();
        Poll::Ready(permit.map(|permit| Room::new(permit, &self.counted.0)))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).map_or(UNITS_MAX, |units| units.min(UNITS_MAX))
}
