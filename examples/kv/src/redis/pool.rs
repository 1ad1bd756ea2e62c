//! Memory that all connections share for what one client can make large: long commands and large values.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use metrics::Counter;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// What one permit stands for.
const UNIT_BYTES: usize = 1 << 10;
/// Fewer than a semaphore holds on any system.
const UNITS_MAX: u32 = u32::MAX >> 4;

/// A bounded number of bytes. Connections that find too few left queue in order of arrival.
pub(super) struct Pool {
    permits: Arc<Semaphore>,
    units_max: u32,
    /// Counts those that had to queue.
    waits: Counter,
}

/// Bytes of a pool; dropping it gives them back.
pub(super) struct Room {
    permit: OwnedSemaphorePermit,
}

/// A place in the queue of a pool.
pub(super) struct Queued {
    permit: Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send>>,
}

impl Pool {
    pub(super) fn new(bytes: usize, waits: Counter) -> Self {
        let units_max = units(bytes);
        Self { permits: Arc::new(Semaphore::new(units_max as usize)), units_max, waits }
    }

    /// Room for `bytes`, or the whole pool if they are more, at once or in turn.
    pub(super) fn ask(&self, bytes: usize) -> Result<Room, Queued> {
        let units = units(bytes).min(self.units_max);
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_many_owned(units) {
            return Ok(Room { permit });
        }
        self.waits.increment(1);
        Err(Queued { permit: Box::pin(Arc::clone(&self.permits).acquire_many_owned(units)) })
    }

    /// Whether `room` is as much as [`ask`](Self::ask) would give.
    pub(super) fn is_enough(&self, room: &Room, bytes: usize) -> bool {
        room.permit.num_permits() >= units(bytes).min(self.units_max) as usize
    }
}

impl Queued {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Room>> {
        // Pools are never closed.
        Poll::Ready(ready!(self.permit.as_mut().poll(cx)).ok().map(|permit| Room { permit }))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).map_or(UNITS_MAX, |units| units.min(UNITS_MAX))
}
