//! Links that damage what they carry.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{DispatchError, Link, LinkClosed, LinkEvents, LinkFeedback, Nack};

use super::plan::{Direction, Faults, FaultyLane};
use crate::sync::lock;

/// A link that is not connected yet, and the feedback for the wrapped transport.
pub(super) fn wrap(faults: &Faults, lane: Lane, feedback: LinkFeedback) -> (Unconnected, LinkFeedback) {
    let killed = Arc::new(AtomicBool::new(false));
    let events = FaultyEvents { above: Mutex::new(Some(feedback)), killed: killed.clone() };
    let faulty = faults.lane_faults(lane, Direction::Out);
    (Unconnected { faulty, killed }, LinkFeedback::new(Arc::new(events)))
}

pub(super) struct Unconnected {
    faulty: FaultyLane,
    killed: Arc<AtomicBool>,
}

impl Unconnected {
    pub(super) fn over(self, inner: Box<dyn Link>) -> Box<dyn Link> {
        Box::new(FaultyLink { inner: Some(inner), faulty: self.faulty, killed: self.killed })
    }
}

/// Forwards what the wrapped transport reports. A killed link counts as broken.
struct FaultyEvents {
    above: Mutex<Option<LinkFeedback>>,
    killed: Arc<AtomicBool>,
}

impl LinkEvents for FaultyEvents {
    fn nack(&self, nack: Nack) {
        if let Some(above) = &*lock(&self.above) {
            above.nack(nack);
        }
    }

    fn closed(&self, cause: LinkClosed) {
        if let Some(above) = lock(&self.above).take() {
            above.closed(match self.killed.load(Ordering::Acquire) {
                true => LinkClosed::Broken { detail: "fault: killed".into() },
                false => cause,
            });
        }
    }
}

struct FaultyLink {
    /// `None` once the link was killed, or a dispatch failed or was dropped.
    inner: Option<Box<dyn Link>>,
    faulty: FaultyLane,
    killed: Arc<AtomicBool>,
}

#[async_trait]
impl Link for FaultyLink {
    async fn dispatch(&mut self, mut batch: Batch) -> Result<(), DispatchError> {
        let mut inner = self.inner.take().ok_or(DispatchError::Closed)?;
        let on = self.faulty.faults();
        if self.faulty.kills(&batch) {
            self.killed.store(true, Ordering::Release);
            return Err(DispatchError::Closed);
        }
        let reading = on.bytes_per_s.map(|rate| batch.payload_bytes() as f64 / rate.max(1) as f64);
        let wait = on.delay + Duration::from_secs_f64(reading.unwrap_or_default());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.faulty.change(&mut batch);
        if !batch.envelopes.is_empty() {
            inner.dispatch(batch).await?;
        }
        self.inner = Some(inner);
        Ok(())
    }
}
