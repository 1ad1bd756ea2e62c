//! The thread on which a log is read and purged.
//!
//! raft-engine keeps the last block it decoded in a thread-local cache, by file number, offset and length, without
//! asking which log it came from: a thread that reads the logs of two nodes in one process can get the entries of the
//! wrong one. It can also panic if a purge rewrites what is being read (its bug 370). A thread of its own for each log,
//! which does one thing at a time, rules both out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Jobs that may wait before a reader waits to hand its own over.
const JOBS_MAX: usize = 64;

type Job<E> = Box<dyn FnOnce(&E) + Send>;

/// See the module.
pub(crate) struct Reader<E> {
    jobs: Option<SyncSender<Job<E>>>,
    thread: Option<JoinHandle<()>>,
}

impl<E: Send + Sync + 'static> Reader<E> {
    pub(crate) fn start(engine: Arc<E>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job<E>>(JOBS_MAX);
        let thread = std::thread::Builder::new().name("towline-log-read".into()).spawn(move || {
            for job in queue {
                job(&engine);
            }
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a job on the thread and waits for it. An `Err` holds what a panic said.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&E) -> T + Send + 'static,
    ) -> Result<T, String> {
        let gone = || "the log is closed".to_owned();
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move |engine: &E| {
            let result = catch_unwind(AssertUnwindSafe(|| job(engine))).map_err(|p| panic_text(&*p));
            // Nobody may be waiting any more.
            let _ = answer.send(result);
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Ends the thread; it holds the log no longer when this returns.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It catches what its jobs throw.
            let _ = thread.join();
        }
    }
}

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
}
