use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::log_store::{GroupWrite, LogBatch};
use crate::message::Entry;
use crate::node::inbox::ShardInbox;
use crate::node::tests::common::{DEADLINE, MemLog};

/// What the log store does in its calls.
#[derive(Default)]
struct LogCalls {
    /// Compactions queue another compaction, so that the queue is never empty.
    refill: OnceLock<LogReader>,
    panics: AtomicBool,
    compactions: AtomicUsize,
    purges: AtomicUsize,
}

impl LogCalls {
    fn called(&self, call: &str) {
        match call {
            "compact" => {
                self.refill.get().into_iter().for_each(|reader| reader.compact(GroupId::DEFAULT, 1));
                self.compactions.fetch_add(1, Ordering::SeqCst);
            }
            "purge" => {
                self.purges.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        assert!(!self.panics.load(Ordering::SeqCst), "a bad block");
    }
}

struct ReaderFixture {
    calls: Arc<LogCalls>,
    inbox: ShardInbox,
    reader: LogReader,
    thread: JoinHandle<()>,
}

/// A reader of a log with one entry, at index 3.
fn start() -> ReaderFixture {
    let (log, calls, inbox) = (MemLog::default(), Arc::new(LogCalls::default()), ShardInbox::new());
    let entries = vec![Entry { index: 3, term: 1, data: "x".into(), ..Entry::default() }];
    let write = GroupWrite { entries, ..GroupWrite::new(GroupId::DEFAULT) };
    log.append(&mut LogBatch { writes: vec![write] }).unwrap();
    let hooked = calls.clone();
    assert!(log.hook.set(Box::new(move |call| hooked.called(call))).is_ok());
    let (tasks, queue) = channel();
    let (shard, purge_interval) = (inbox.sender.clone(), Duration::from_millis(20));
    let thread = ReaderThread { store: Arc::new(log), shard, purge_interval };
    let thread = std::thread::spawn(move || thread.run(&queue));
    ReaderFixture { calls, inbox, reader: LogReader { tasks }, thread }
}

fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1)); // not synchronisation: paces the look at a condition
    }
}

impl ReaderFixture {
    /// The entries of the next fetch that comes back.
    fn fetched(&self) -> usize {
        self.reader.fetch(GroupId::DEFAULT, 1, Fetch { low: 3, high: 4 });
        let (mut events, mut found) = (Vec::new(), None);
        wait("the answer of the fetch", || {
            self.inbox.sender.take(&mut events);
            for event in events.drain(..) {
                if let ShardEvent::Fetched { low: 3, entries, .. } = event {
                    found = Some(entries.map_or(0, |entries| entries.len()));
                }
            }
            found.is_some()
        });
        found.unwrap()
    }

    fn end(self) {
        self.reader.stop();
        self.thread.join().unwrap();
    }
}

#[test]
fn purges_run_although_the_queue_is_never_empty() {
    let running = start();
    assert!(running.calls.refill.set(running.reader.clone()).is_ok());
    running.reader.compact(GroupId::DEFAULT, 1);
    wait("purges under load", || running.calls.purges.load(Ordering::SeqCst) >= 3);
    let done = running.calls.compactions.load(Ordering::SeqCst);
    wait("compactions beside purges", || running.calls.compactions.load(Ordering::SeqCst) > done + 10);
    running.end();
}

#[test]
fn a_panic_of_the_store_ends_one_call_and_not_the_thread() {
    let running = start();
    running.calls.panics.store(true, Ordering::SeqCst);
    let purges = running.calls.purges.load(Ordering::SeqCst);
    assert_eq!(running.fetched(), 0, "a partial answer is dropped");
    running.reader.compact(GroupId::DEFAULT, 1);
    wait("a compaction that panics", || running.calls.compactions.load(Ordering::SeqCst) == 1);
    wait("purges that panic", || running.calls.purges.load(Ordering::SeqCst) > purges + 1);
    running.calls.panics.store(false, Ordering::SeqCst);
    assert_eq!(running.fetched(), 1);
    running.end();
}

/// The record of a loss got a thread of its own, which a stop did not wait for.
#[test]
fn a_call_that_is_queued_runs_on_the_thread_that_a_stop_waits_for() {
    let running = start();
    let (done, ran_on) = channel();
    running.reader.run(move || done.send(std::thread::current().id()).unwrap());
    running.reader.stop();
    assert_eq!(ran_on.recv(), Ok(running.thread.thread().id()));
    running.thread.join().unwrap();
}
