//! Links that break what they carry.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{DispatchError, Link, LinkClosed, LinkEvents, LinkFeedback, Nack};

use super::plan::{Direction, Faults, Way};

/// A link to be, and the feedback to give to the transport below.
pub(super) fn wrap(faults: &Faults, lane: Lane, feedback: LinkFeedback) -> (Unconnected, LinkFeedback) {
    let killed = Arc::new(AtomicBool::new(false));
    let ear = Ear { above: Mutex::new(Some(feedback)), killed: killed.clone() };
    let way = faults.way(lane, Direction::Out);
    (Unconnected { way, killed }, LinkFeedback::new(Arc::new(ear)))
}

pub(super) struct Unconnected {
    way: Way,
    killed: Arc<AtomicBool>,
}

impl Unconnected {
    pub(super) fn over(self, inner: Box<dyn Link>) -> Box<dyn Link> {
        Box::new(FaultyLink { inner: Some(inner), way: self.way, killed: self.killed })
    }
}

/// Hands on what the transport below tells; a death of ours is told as one of the wire.
struct Ear {
    above: Mutex<Option<LinkFeedback>>,
    killed: Arc<AtomicBool>,
}

impl LinkEvents for Ear {
    fn nack(&self, nack: Nack) {
        if let Some(above) = &*self.above.lock().unwrap_or_else(PoisonError::into_inner) {
            above.nack(nack);
        }
    }

    fn closed(&self, cause: LinkClosed) {
        let above = self.above.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(above) = above {
            above.closed(match self.killed.load(Ordering::Acquire) {
                true => LinkClosed::Broken { detail: "fault: killed".into() },
                false => cause,
            });
        }
    }
}

struct FaultyLink {
    /// `None` once it was killed, failed, or a dispatch was dropped midway.
    inner: Option<Box<dyn Link>>,
    way: Way,
    killed: Arc<AtomicBool>,
}

#[async_trait]
impl Link for FaultyLink {
    async fn dispatch(&mut self, mut batch: Batch) -> Result<(), DispatchError> {
        let mut inner = self.inner.take().ok_or(DispatchError::Closed)?;
        let on = self.way.faults();
        if self.way.kills(&batch) {
            self.killed.store(true, Ordering::Release);
            return Err(DispatchError::Closed);
        }
        let reading = on.bytes_per_s.map(|rate| batch.payload_bytes() as f64 / rate.max(1) as f64);
        let wait = on.delay + Duration::from_secs_f64(reading.unwrap_or_default());
        if !wait.is_zero() {
            sleep(wait).await;
        }
        self.way.change(&mut batch);
        if !batch.envelopes.is_empty() {
            inner.dispatch(batch).await?;
        }
        self.inner = Some(inner);
        Ok(())
    }
}
