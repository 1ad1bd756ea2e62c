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
/// How long a client may keep room that others wait for: this, and the time of its bytes at this rate.
const WANTED_GRACE: Duration = Duration::from_secs(2);
const WANTED_BYTES_PER_MS: usize = 8 << 10;
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
    since: Instant,
    queue_length: Arc<AtomicUsize>,
}

/// A place in the queue of a pool.
pub(super) struct Queued {
    place: Place,
    permit: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
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
        Self { permit, since: Instant::now(), queue_length: Arc::clone(queue_length) }
    }

    /// When a client has had it for as long as it may if others wait for it.
    pub(super) fn due(&self) -> Instant {
        let millis = self.permit.num_permits() * UNIT_BYTES / WANTED_BYTES_PER_MS;
        self.since + WANTED_GRACE + Duration::from_millis(millis as u64)
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.queue_length.load(Ordering::Relaxed) > 0
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
