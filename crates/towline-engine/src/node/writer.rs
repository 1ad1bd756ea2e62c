//! The log writer: one thread, the only one that appends. It writes together whatever queued while its last write ran,
//! so that one fsync serves all groups and all turns of the shard that came meanwhile.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::oneshot;
use towline_metrics::NodeMetrics;

use super::inbox::{ShardEvent, ShardSender, WriteId};
use super::waiter::{Answer, answer};
use crate::cause::{chain, panic_text};
use crate::log_store::{GroupWrite, LogBatch, LogStore};

/// Group writes merged into one durable write at most; a bound on memory and on the time of one write.
const MERGE_BYTES_MAX: usize = 16 << 20;

/// Why the log cannot be written. All pending writes share the cause.
pub(crate) type WriteFailure = Arc<dyn Error + Send + Sync>;

enum Work {
    Write(Vec<(WriteId, GroupWrite)>),
    /// A write somebody waits for; also a barrier: everything before it is durable when it is answered.
    Waited(Option<Box<GroupWrite>>, Answer<Result<(), WriteFailure>>),
    Stop,
}

/// The way to the writer. Bounded by what the groups may have unapplied.
#[derive(Clone)]
pub(crate) struct Writer {
    work: Sender<Work>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        store: Arc<dyn LogStore>,
        shard: ShardSender,
        metrics: NodeMetrics,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (work, queue) = channel();
        let thread = std::thread::Builder::new()
            .name("towline-log".into())
            .spawn(move || WriterThread { store, shard, metrics, poisoned: None }.run(&queue))?;
        Ok((Self { work }, thread))
    }

    pub(crate) fn write(&self, writes: Vec<(WriteId, GroupWrite)>) {
        // A writer that is gone has told the shard why.
        let _ = self.work.send(Work::Write(writes));
    }

    /// Everything queued before is durable, and `write` too, when this resolves.
    ///
    /// # Errors
    /// Why the log cannot be written.
    pub(crate) async fn barrier(&self, write: Option<GroupWrite>) -> Result<(), WriteFailure> {
        self.queue(write).await.unwrap_or_else(|_| Err(failure("the log writer has stopped")))
    }

    /// As [`barrier`](Self::barrier); queued at once, whether or not anybody waits.
    pub(crate) fn queue(&self, write: Option<GroupWrite>) -> oneshot::Receiver<Result<(), WriteFailure>> {
        let (done, written) = answer();
        let _ = self.work.send(Work::Waited(write.map(Box::new), done));
        written
    }

    pub(crate) fn stop(&self) {
        let _ = self.work.send(Work::Stop);
    }
}

struct WriterThread {
    store: Arc<dyn LogStore>,
    shard: ShardSender,
    metrics: NodeMetrics,
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
    fn run(mut self, queue: &Receiver<Work>) {
        let span = tracing::info_span!("log", node = self.metrics.node());
        let _entered = span.enter();
        let mut merged = Merged::default();
        while let Ok(work) = queue.recv() {
            merged.add(work);
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
        // A store may panic when its disk fails; that is a failed write like any other.
        match catch_unwind(AssertUnwindSafe(|| self.store.append(batch))) {
            Ok(result) => result.map_err(|error| Arc::new(error) as WriteFailure),
            Err(panic) => {
                let cause = format!("the log store panicked during a write: {}", panic_text(panic.as_ref()));
                std::mem::forget(panic); // its drop may panic again
                Err(failure(cause))
            }
        }
    }
}

fn failure(text: impl Into<Box<dyn Error + Send + Sync>>) -> WriteFailure {
    let cause: Box<dyn Error + Send + Sync> = text.into();
    cause.into()
}

impl Merged {
    fn add(&mut self, work: Work) {
        match work {
            Work::Write(writes) => {
                for (id, write) in writes {
                    self.writes.push(id);
                    self.merge(write);
                }
            }
            Work::Waited(write, done) => {
                if let Some(write) = write {
                    self.merge(*write);
                }
                self.waiting.push(done);
            }
            Work::Stop => self.stop = true,
        }
    }

    fn merge(&mut self, write: GroupWrite) {
        self.parts += 1;
        self.bytes += write.entries.iter().map(crate::message::Entry::payload_bytes).sum::<usize>();
        self.batch.merge(write);
    }
}
