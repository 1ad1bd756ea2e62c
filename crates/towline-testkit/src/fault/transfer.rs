//! Snapshot transfers that break.

use async_trait::async_trait;
use tokio::time::sleep;
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, ProgressCell, SnapshotReceipt, SnapshotRefusal, SnapshotSink, Transfer, TransferError,
};

use super::plan::{Direction, Faults, flip};

pub(super) fn outgoing(faults: &Faults, inner: Box<dyn Transfer>) -> Box<dyn Transfer> {
    let progress = inner.progress();
    Box::new(Outgoing { inner: Some(inner), progress, passage: Passage::new(faults, Direction::Out) })
}

pub(super) fn incoming(faults: &Faults, inner: Box<dyn SnapshotSink>) -> Box<dyn SnapshotSink> {
    Box::new(Incoming { inner, passage: Passage::new(faults, Direction::In) })
}

/// One transfer's way through the faults.
struct Passage {
    faults: Faults,
    direction: Direction,
    /// The number of the next chunk.
    next: u64,
}

/// The transfer is to be broken.
struct Cut;

impl Passage {
    fn new(faults: &Faults, direction: Direction) -> Self {
        Self { faults: faults.clone(), direction, next: 0 }
    }

    async fn chunk(&mut self, chunk: &mut Chunk) -> Result<(), Cut> {
        let number = self.next;
        self.next += 1;
        self.stall(|at| at == number).await;
        let on = self.faults.watch().borrow().snapshots(self.direction);
        if on.cut_at_chunk == Some(number) {
            return Err(self.cut());
        }
        if on.corrupt_chunk == Some(number) {
            chunk.data = self.faults.draw(|random| flip(&chunk.data, random));
            self.faults.count(|counts| counts.chunks_corrupted += 1);
        }
        if !on.delay.is_zero() {
            sleep(on.delay).await;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<(), Cut> {
        let next = self.next;
        self.stall(|at| at >= next).await;
        let on = self.faults.watch().borrow().snapshots(self.direction);
        if on.drop_trailer { Err(self.cut()) } else { Ok(()) }
    }

    fn cut(&self) -> Cut {
        self.faults.count(|counts| counts.transfers_cut += 1);
        Cut
    }

    /// Waits as long as the plan holds this place.
    async fn stall(&self, here: impl Fn(u64) -> bool) {
        let held =
            |plan: &super::plan::Plan| plan.snapshots(self.direction).stall_at_chunk.is_some_and(&here);
        // The switch is held by `self.faults`, so it cannot go away.
        let _ = self.faults.watch().wait_for(|plan| !held(plan)).await;
    }
}

fn broken() -> TransferError {
    TransferError::Broken { detail: "fault: cut".into() }
}

struct Outgoing {
    /// `None` once it was cut, failed, or a send was dropped midway: dropping it is the reset.
    inner: Option<Box<dyn Transfer>>,
    progress: ProgressCell,
    passage: Passage,
}

#[async_trait]
impl Transfer for Outgoing {
    async fn send(&mut self, mut chunk: Chunk) -> Result<(), TransferError> {
        let mut inner = self.inner.take().ok_or_else(broken)?;
        self.passage.chunk(&mut chunk).await.map_err(|Cut| broken())?;
        inner.send(chunk).await?;
        self.inner = Some(inner);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let inner = self.inner.take().ok_or_else(broken)?;
        self.passage.end().await.map_err(|Cut| broken())?;
        inner.finish(trailer).await
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

struct Incoming {
    inner: Box<dyn SnapshotSink>,
    passage: Passage,
}

fn full() -> SnapshotRefusal {
    SnapshotRefusal::Storage { detail: "fault: no space left on device".into() }
}

#[async_trait]
impl SnapshotSink for Incoming {
    async fn write(&mut self, mut chunk: Chunk) -> Result<(), SnapshotRefusal> {
        self.passage.chunk(&mut chunk).await.map_err(|Cut| full())?;
        self.inner.write(chunk).await
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        self.passage.end().await.map_err(|Cut| full())?;
        self.inner.finish(trailer).await
    }

    fn progress(&self) -> ProgressCell {
        self.inner.progress()
    }
}
