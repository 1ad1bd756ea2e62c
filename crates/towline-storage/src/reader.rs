//! The thread on which a log is read and purged.
//!
//! One thread for each log, with one job at a time, avoids two faults of raft-engine. Its cache of the last decoded block
//! is thread-local and does not tell logs apart: a thread that reads two logs can get entries of the wrong one. And a read
//! can panic if a purge rewrites the same data meanwhile (issue 370 of raft-engine).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// The most jobs in the queue. At the bound, callers block.
const JOBS_MAX: usize = 64;

type Job<E> = Box<dyn FnOnce(&E) + Send>;

/// A thread that runs jobs on a log one after the other.
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

    /// Runs a job on the thread and waits for it. `Err` holds the message of a panic.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&E) -> T + Send + 'static,
    ) -> Result<T, String> {
        let gone = || "the log is closed".to_owned();
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move |engine: &E| {
            let result = catch_unwind(AssertUnwindSafe(|| job(engine))).map_err(|p| panic_text(&*p));
            let _ = answer.send(result);
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Ends the thread. It no longer holds the log when this returns.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Its jobs catch their panics.
            let _ = thread.join();
        }
    }
}

pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
}
