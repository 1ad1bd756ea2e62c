//! Bounds the streams of one peer and lane: the newest wins.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use towline_engine::ids::NodeId;
use towline_engine::message::Lane;

type Table = HashMap<(NodeId, Lane), VecDeque<(u64, oneshot::Sender<()>)>>;

/// The streams that are open. A peer that reconnects must not be locked out by streams whose end we have not seen yet,
/// so at the bound the oldest goes.
#[derive(Debug)]
pub(crate) struct Seats {
    per_lane_max: usize,
    table: Mutex<(u64, Table)>,
}

/// One stream's place. Dropping it frees the place.
#[derive(Debug)]
pub(crate) struct Seat {
    seats: Arc<Seats>,
    key: (NodeId, Lane),
    number: u64,
    /// Resolves when a newer stream took the place.
    pub(crate) lost: oneshot::Receiver<()>,
}

impl Seats {
    pub(crate) fn new(per_lane_max: usize) -> Arc<Self> {
        Arc::new(Self { per_lane_max: per_lane_max.max(1), table: Mutex::default() })
    }

    pub(crate) fn take(self: &Arc<Self>, peer: NodeId, lane: Lane) -> Seat {
        let key = (peer, lane);
        let (keep, lost) = oneshot::channel();
        let mut table = self.lock();
        table.0 += 1;
        let number = table.0;
        let seats = table.1.entry(key).or_default();
        seats.push_back((number, keep));
        while seats.len() > self.per_lane_max {
            // Dropping the sender is the message.
            seats.pop_front();
        }
        Seat { seats: Arc::clone(self), key, number, lost }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Table)> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        if let Some(seats) = table.1.get_mut(&self.key) {
            seats.retain(|(number, _)| *number != self.number);
            if seats.is_empty() {
                table.1.remove(&self.key);
            }
        }
    }
}
