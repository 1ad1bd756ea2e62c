//! Snapshot transfers that break.

use async_trait::async_trait;
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, ProgressCell, SnapshotReceipt, SnapshotRefusal, SnapshotSink, Transfer, TransferError,
};

use super::plan::{Direction, FaultPlan, Faults, flip};

pub(super) fn outgoing(faults: &Faults, inner: Box<dyn Transfer>) -> Box<dyn Transfer> {
    let progress = inner.progress();
    Box::new(FaultyTransfer { inner: Some(inner), progress, passage: Passage::new(faults, Direction::Out) })
}

pub(super) fn incoming(faults: &Faults, inner: Box<dyn SnapshotSink>) -> Box<dyn SnapshotSink> {
    Box::new(FaultySink { inner, passage: Passage::new(faults, Direction::In) })
}

/// The state of the faults for one transfer.
struct Passage {
    faults: Faults,
    direction: Direction,
    /// The number of the next chunk.
    next: u64,
}

/// A fault breaks the transfer.
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

    /// Waits while the plan stalls the transfer here.
    async fn stall(&self, here: impl Fn(u64) -> bool) {
        let held = |plan: &FaultPlan| plan.snapshots(self.direction).stall_at_chunk.is_some_and(&here);
        let _ = self.faults.watch().wait_for(|plan| !held(plan)).await;
    }
}

fn broken() -> TransferError {
    TransferError::Broken { detail: "fault: cut".into() }
}

struct FaultyTransfer {
    /// `None` once the transfer was cut, or a send failed or was dropped. Dropping it is the reset.
    inner: Option<Box<dyn Transfer>>,
    progress: ProgressCell,
    passage: Passage,
}

#[async_trait]
impl Transfer for FaultyTransfer {
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

struct FaultySink {
    inner: Box<dyn SnapshotSink>,
    passage: Passage,
}

fn full() -> SnapshotRefusal {
    SnapshotRefusal::Storage { detail: "fault: no space left on device".into() }
}

#[async_trait]
impl SnapshotSink for FaultySink {
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
