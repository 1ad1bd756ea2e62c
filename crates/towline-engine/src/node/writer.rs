//! The log writer: the one thread that appends. It merges the writes that queued during its last write, so one fsync serves
//! several groups and turns of the shard.

use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::oneshot;
use towline_metrics::NodeMetrics;

use super::disk_watch::DiskWatch;
use super::inbox::{ShardEvent, ShardSender, WriteId};
use super::waiter::{Answer, answer};
use crate::cause::{catch, chain};
use crate::log_store::{GroupWrite, LogBatch, LogStore};

/// The most payload bytes merged into one write. Bounds its memory and time.
const MERGE_BYTES_MAX: usize = 16 << 20;

/// Why the log cannot be written. All pending writes share the cause.
pub(crate) type WriteFailure = Arc<dyn Error + Send + Sync>;

enum WriterTask {
    Write(Vec<(WriteId, GroupWrite)>),
    /// A write with a pending caller. The answer means that this write and all earlier ones are durable. `None` writes
    /// nothing and waits for the earlier writes.
    Waited(Option<Box<GroupWrite>>, Answer<Result<(), WriteFailure>>),
    Stop,
}

/// A handle to the log writer. `unapplied_bytes_max` of each group bounds its queue.
#[derive(Clone)]
pub(crate) struct LogWriter {
    tasks: Sender<WriterTask>,
}

impl LogWriter {
    /// Starts the thread.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
        metrics: NodeMetrics,
        disk: DiskWatch,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (tasks, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("towline-log".into())
            .spawn(move || WriterThread { store, shard, metrics, disk, poisoned: None }.run(&queue))?;
        Ok((Self { tasks }, thread))
    }

    pub(crate) fn write(&self, writes: Vec<(WriteId, GroupWrite)>) {
        // A writer that has ended has reported the cause to the shard.
        let _ = self.tasks.send(WriterTask::Write(writes));
    }

    /// Waits until `write` and all earlier writes are durable.
    ///
    /// # Errors
    /// Why the log cannot be written.
    pub(crate) async fn barrier(&self, write: Option<GroupWrite>) -> Result<(), WriteFailure> {
        self.queue(write).await.unwrap_or_else(|_| Err(failure("the log writer has stopped")))
    }

    /// Like [`barrier`](Self::barrier), but queues at once, before a caller waits.
    pub(crate) fn queue(&self, write: Option<GroupWrite>) -> oneshot::Receiver<Result<(), WriteFailure>> {
        let (done, written) = answer();
        let _ = self.tasks.send(WriterTask::Waited(write.map(Box::new), done));
        written
    }

    pub(crate) fn stop(&self) {
        let _ = self.tasks.send(WriterTask::Stop);
    }
}

struct WriterThread {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    metrics: NodeMetrics,
    disk: DiskWatch,
    poisoned: Option<WriteFailure>,
}

#[derive(Default)]
struct Merged {
    batch: LogBatch,
    writes: Vec<WriteId>,
    waiting: Vec<Answer<Result<(), WriteFailure>>>,
    parts: u64,
    bytes: usize,
    stop: bool,
}

impl WriterThread {
    fn run(mut self, queue: &Receiver<WriterTask>) {
        let span = tracing::info_span!("log", node = self.metrics.node());
        let _entered = span.enter();
        let mut merged = Merged::default();
        while let Ok(task) = queue.recv() {
            merged.add(task);
            while !merged.stop
                && merged.bytes < MERGE_BYTES_MAX
                && let Ok(more) = queue.try_recv()
            {
                merged.add(more);
            }
            self.write(&mut merged);
            if merged.stop {
                return;
            }
        }
    }

    fn write(&mut self, merged: &mut Merged) {
        let started = Instant::now();
        let bytes = merged.batch.payload_bytes() as u64;
        let result = match &self.poisoned {
            Some(cause) => Err(cause.clone()),
            None if merged.batch.is_empty() => Ok(()),
            None => self.append(&mut merged.batch),
        };
        merged.batch.writes.clear();
        if result.is_ok() && merged.parts > 0 {
            self.metrics.log_write(started.elapsed(), bytes, merged.parts);
        }
        for waiting in merged.waiting.drain(..) {
            waiting.send(result.clone());
        }
        let writes = std::mem::take(&mut merged.writes);
        if result.is_ok() && merged.parts > 0 {
            self.disk.wrote(bytes);
        }
        match result {
            Ok(()) if writes.is_empty() => {}
            Ok(()) => self.shard.post(ShardEvent::Written(writes)),
            Err(cause) if self.poisoned.is_none() => {
                self.metrics.log_poisoned();
                self.poisoned = Some(cause.clone());
                let cause: Arc<str> = chain(&*cause).into();
                tracing::error!(%cause, "the log is poisoned: this node goes silent");
                self.shard.post(ShardEvent::LogPoisoned(cause));
            }
            Err(_) => {}
        }
        (merged.parts, merged.bytes) = (0, 0);
    }

    fn append(&self, batch: &mut LogBatch) -> Result<(), WriteFailure> {
        // A store may panic when its disk fails. That counts as a failed write.
        catch(|| self.store.append(batch))
            .map_err(|panic| failure(format!("the log store panicked during a write: {panic}")))?
            .map_err(|error| Arc::new(error) as WriteFailure)
    }
}

fn failure(text: impl Into<Box<dyn Error + Send + Sync>>) -> WriteFailure {
    let cause: Box<dyn Error + Send + Sync> = text.into();
    cause.into()
}

impl Merged {
    fn add(&mut self, task: WriterTask) {
        match task {
            WriterTask::Write(writes) => {
                for (id, write) in writes {
                    self.writes.push(id);
                    self.merge(write);
                }
            }
            WriterTask::Waited(write, done) => {
                if let Some(write) = write {
                    self.merge(*write);
                }
                self.waiting.push(done);
            }
            WriterTask::Stop => self.stop = true,
        }
    }

    fn merge(&mut self, write: GroupWrite) {
        self.parts += 1;
        self.bytes += write.entries.iter().map(crate::message::Entry::payload_bytes).sum::<usize>();
        self.batch.merge(write);
    }
}
