//! The thread on which a log is read and purged.
//!
//! One thread for each log, with one job at a time, avoids two faults of raft-engine. Its cache of the last decoded block
//! is thread-local and does not tell logs apart: a thread that reads two logs can get entries of the wrong one. And a read
//! can panic if a purge rewrites the same data meanwhile (issue 370 of raft-engine).
//!
//! A purge that waits for room on the disk can wait for hours, and reads must go on. It therefore runs the jobs of the queue
//! while it [waits](pause), between two of its own steps.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The most jobs in the queue. At the bound, callers block.
const JOBS_MAX: usize = 64;

type Job<E> = Box<dyn FnOnce(&E) + Send>;

/// The outcome of a job. `Err` holds the message of a panic.
pub(crate) type JobOutcome<T> = Receiver<Result<T, String>>;

/// Waits for a job, at most this long, and runs it. `false` if there will be none.
type RunNext = Rc<dyn Fn(Duration) -> bool>;

thread_local! {
    /// Set on a reading thread.
    static RUN_NEXT: RefCell<Option<RunNext>> = const { RefCell::new(None) };
}

/// Pauses for about `time`. On a reading thread it runs a job meanwhile. `false`: the log closes, so do not wait any longer.
pub(crate) fn pause(time: Duration) -> bool {
    match RUN_NEXT.with_borrow(Clone::clone) {
        Some(run_next) => run_next(time),
        None => {
            std::thread::sleep(time);
            true
        }
    }
}

/// A thread that runs jobs on a log one after the other.
pub(crate) struct Reader<E> {
    jobs: Option<SyncSender<Job<E>>>,
    thread: Option<JoinHandle<()>>,
}

impl<E: Send + Sync + 'static> Reader<E> {
    pub(crate) fn start(engine: Arc<E>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job<E>>(JOBS_MAX);
        let thread = std::thread::Builder::new().name("towline-log-read".into()).spawn(move || {
            let queue = Rc::new(queue);
            let (again, of) = (queue.clone(), engine.clone());
            let run_next: RunNext = Rc::new(move |time| match again.recv_timeout(time) {
                Ok(job) => {
                    job(&of);
                    true
                }
                Err(ended) => ended == RecvTimeoutError::Timeout,
            });
            RUN_NEXT.set(Some(run_next));
            while let Ok(job) = queue.recv() {
                job(&engine);
            }
            RUN_NEXT.take();
        })?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a job on the thread and waits for it. `Err` holds the message of a panic.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&E) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.begin(job)?.recv().map_err(|_| gone())?
    }

    /// Gives a job to the thread.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        job: impl FnOnce(&E) -> T + Send + 'static,
    ) -> Result<JobOutcome<T>, String> {
        let (answer, answered) = sync_channel(1);
        let job = Box::new(move |engine: &E| {
            let result = catch_unwind(AssertUnwindSafe(|| job(engine))).map_err(|p| panic_text(&*p));
            let _ = answer.send(result);
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        Ok(answered)
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

pub(crate) fn gone() -> String {
    "the log is closed".into()
}

pub(crate) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
}
