//! Memory that all connections share for what one client can make large: long commands and large values.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use metrics::Counter;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What one permit stands for.
const UNIT_BYTES: usize = 1 << 10;
/// A client that keeps room which others wait for must be this fast...
const BYTES_PER_SECOND_MIN: u64 = 8 << 20;
/// ...and may fall behind by this.
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// Fewer than a semaphore holds on any system.
const UNITS_MAX: u32 = u32::MAX >> 4;

/// A bounded number of bytes. Connections that find too few left queue in order of arrival.
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    units_max: u32,
    queue_length: Arc<AtomicUsize>,
    /// Counts those that had to queue.
    waits: Counter,
}

/// Bytes of a pool; dropping it gives them back.
pub(super) struct Room {
    permit: OwnedSemaphorePermit,
    due: Instant,
    queue_length: Arc<AtomicUsize>,
}

/// A place in the queue of a pool.
pub(super) struct Queued {
    place: Place,
    permit: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
}

/// What one connection wants of a pool: a place in its queue, then room.
#[derive(Default)]
pub(super) struct Claim {
    queued: Option<Queued>,
    granted: Option<Room>,
}

/// Counts one place in the queue for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn new(queue_length: &Arc<AtomicUsize>) -> Self {
        queue_length.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(queue_length))
    }
}

impl Drop for Place {
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

    /// Room for `bytes`, or the whole pool if they are more, at once or in turn.
    pub(super) fn ask(&self, bytes: usize) -> Result<Room, Queued> {
        let units = units(bytes).min(self.units_max);
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_many_owned(units) {
            return Ok(Room::new(permit, &self.queue_length));
        }
        self.waits.increment(1);
        let place = Place::new(&self.queue_length);
        Err(Queued { place, permit: Box::pin(Arc::clone(&self.permits).acquire_many_owned(units)) })
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

    /// When the client has had it for as long as it may if others wait for it.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// From now on the connection waits for its client.
    pub(super) fn renew(&mut self, now: Instant) {
        self.due = now + BEHIND_MAX;
    }

    /// The client took, or sent, some bytes.
    pub(super) fn moved(&mut self, bytes: usize, now: Instant) {
        let earned = Duration::from_nanos(bytes as u64 * 1_000_000_000 / BYTES_PER_SECOND_MIN);
        self.due = (self.due + earned).min(now + BEHIND_MAX);
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.queue_length.load(Ordering::Relaxed) > 0
    }
}

impl Claim {
    /// Room for `bytes`, if it was granted or there is some. Otherwise this queues for it.
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

    /// Ready while there is no place in a queue. True if room was granted for it now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let Some(queued) = &mut self.queued else { return Poll::Ready(false) };
        self.granted = ready!(queued.poll(cx));
        self.queued = None;
        Poll::Ready(true)
    }

    /// [`take`](Self::take), and waits for it.
    pub(super) fn poll_for(&mut self, pool: &Pool, bytes: usize, cx: &mut Context<'_>) -> Poll<Room> {
        loop {
            if let Some(room) = self.take(pool, bytes) {
                return Poll::Ready(room);
            }
            ready!(self.poll(cx));
        }
    }
}

impl Queued {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Room>> {
        // Pools are never closed.
        let permit = ready!(self.permit.as_mut().poll(cx)).ok();
        Poll::Ready(permit.map(|permit| Room::new(permit, &self.place.0)))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).map_or(UNITS_MAX, |units| units.min(UNITS_MAX))
}
