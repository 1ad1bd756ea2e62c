use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::core::Fetch;
use crate::log_store::{LogBatch, LogError, LogReadError, Recovered};
use crate::message::Entry;
use crate::node::inbox::ShardInbox;

const DEADLINE: Duration = Duration::from_secs(20);

/// A log store that keeps its reader's queue full, and panics in every call while a flag is set.
#[derive(Default)]
struct BusyLog {
    refill: OnceLock<LogReader>,
    panics: AtomicBool,
    compactions: AtomicUsize,
    purges: AtomicUsize,
}

impl BusyLog {
    fn call(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "a bad block");
    }
}

impl LogStore for BusyLog {
    fn recover(&self, _: GroupId) -> Result<Recovered, LogError> {
        Ok(Recovered::default())
    }

    fn append(&self, _: &mut LogBatch) -> Result<(), LogError> {
        Ok(())
    }

    fn entries(
        &self,
        _: GroupId,
        range: Range<u64>,
        _: usize,
        out: &mut Vec<Entry>,
    ) -> Result<(), LogReadError> {
        // Before the panic, so that the answer is partial.
        out.push(Entry { index: range.start, term: 1, data: "x".into(), ..Entry::default() });
        self.call();
        Ok(())
    }

    fn term(&self, _: GroupId, index: u64) -> Result<u64, LogReadError> {
        Err(LogReadError::Beyond { index, last: 0 })
    }

    fn compact(&self, group: GroupId, through: u64) -> Result<(), LogError> {
        if let Some(reader) = self.refill.get() {
            reader.compact(group, through);
        }
        self.compactions.fetch_add(1, Ordering::SeqCst);
        self.call();
        Ok(())
    }

    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.purges.fetch_add(1, Ordering::SeqCst);
        self.call();
        Ok(Vec::new())
    }

    fn groups(&self) -> Result<Vec<GroupId>, LogError> {
        Ok(Vec::new())
    }

    fn remove(&self, _: GroupId) -> Result<(), LogError> {
        Ok(())
    }
}

struct ReaderFixture {
    store: Arc<BusyLog>,
    inbox: ShardInbox,
    reader: LogReader,
    thread: JoinHandle<()>,
}

fn start(store: BusyLog, purge_interval: Duration) -> ReaderFixture {
    let (store, inbox) = (Arc::new(store), ShardInbox::new());
    let (tasks, queue) = channel();
    let thread = ReaderThread { store: store.clone(), shard: inbox.sender.clone(), purge_interval };
    let thread = std::thread::spawn(move || thread.run(&queue));
    ReaderFixture { store, inbox, reader: LogReader { tasks }, thread }
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
    let running = start(BusyLog::default(), Duration::from_millis(20));
    assert!(running.store.refill.set(running.reader.clone()).is_ok());
    running.reader.compact(GroupId::DEFAULT, 1);
    wait("purges under load", || running.store.purges.load(Ordering::SeqCst) >= 3);
    let done = running.store.compactions.load(Ordering::SeqCst);
    wait("compactions beside purges", || running.store.compactions.load(Ordering::SeqCst) > done + 10);
    running.end();
}

#[test]
fn a_panic_of_the_store_ends_one_call_and_not_the_thread() {
    let running = start(BusyLog::default(), Duration::from_millis(20));
    running.store.panics.store(true, Ordering::SeqCst);
    let purges = running.store.purges.load(Ordering::SeqCst);
    assert_eq!(running.fetched(), 0, "a partial answer is dropped");
    running.reader.compact(GroupId::DEFAULT, 1);
    wait("a compaction that panics", || running.store.compactions.load(Ordering::SeqCst) == 1);
    wait("purges that panic", || running.store.purges.load(Ordering::SeqCst) > purges + 1);
    running.store.panics.store(false, Ordering::SeqCst);
    assert_eq!(running.fetched(), 1);
    running.end();
}
