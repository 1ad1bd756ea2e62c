use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use super::*;
use crate::snapshots::fixture::{CONTENT, DEADLINE, TestStore};

const GROUP: GroupId = GroupId::DEFAULT;

enum Then {
    Return,
    Panic,
}

/// A worker whose store shows what it retains, and then waits for the test.
struct WorkerFixture {
    worker: SnapshotWorker,
    thread: JoinHandle<()>,
    retained: Receiver<Vec<ContentId>>,
    go_on: Sender<Then>,
}

impl WorkerFixture {
    fn new() -> Self {
        let ((kept, retained), (go_on, then)) = (channel(), channel());
        let then = Mutex::new(then);
        let retain = move |keep: &[ContentId]| {
            kept.send(keep.to_vec()).unwrap();
            let then = lock(&then).recv_timeout(DEADLINE);
            assert!(!matches!(then, Ok(Then::Panic)), "the store panics");
        };
        let store = TestStore { retain: Box::new(retain), ..TestStore::default() };
        let (worker, thread) = SnapshotWorker::start(Arc::new(store), |_| ()).unwrap();
        Self { worker, thread, retained, go_on }
    }

    fn assert_retains(&self, content: &[ContentId]) {
        assert_eq!(self.retained.recv_timeout(DEADLINE), Ok(content.to_vec()));
    }

    fn stop(self) {
        self.worker.stop();
        self.thread.join().unwrap();
    }
}

/// The worker read the pins, unlocked them, and removed all other files. A transfer could pin a file in between, and find
/// it. Raft then recorded the install of a snapshot whose file was gone, and the node was lost.
#[test]
fn no_file_is_pinned_while_files_are_removed() {
    let fixture = WorkerFixture::new();
    fixture.worker.retain(GROUP, Vec::new());
    fixture.assert_retains(&[]);
    let (pinned, pins) = channel();
    let other = fixture.worker.clone();
    let pinning = std::thread::spawn(move || {
        let pin = other.pin(GROUP, CONTENT);
        pinned.send(()).unwrap();
        pin
    });
    // Nothing must happen in this time.
    assert!(pins.recv_timeout(Duration::from_millis(200)).is_err(), "a file that is being removed is pinned");
    fixture.go_on.send(Then::Return).unwrap();
    let pin = pinning.join().unwrap();
    fixture.worker.retain(GROUP, Vec::new());
    fixture.assert_retains(&[CONTENT]);
    fixture.go_on.send(Then::Return).unwrap();
    drop(pin);
    fixture.worker.retain(GROUP, Vec::new());
    fixture.assert_retains(&[]);
    fixture.go_on.send(Then::Return).unwrap();
    fixture.stop();
}

/// A panic of the store ended the worker silently: it made no snapshot any more, and removed no file.
#[test]
fn the_worker_goes_on_after_a_panic_of_the_store() {
    let fixture = WorkerFixture::new();
    for then in [Then::Panic, Then::Return] {
        fixture.worker.retain(GROUP, vec![CONTENT]);
        fixture.assert_retains(&[CONTENT]);
        fixture.go_on.send(then).unwrap();
    }
    let _pin = fixture.worker.pin(GROUP, CONTENT);
    fixture.stop();
}

/// A source that must not be asked.
struct Untouched;

impl SnapshotSource for Untouched {
    fn write_to(self: Box<Self>, _: &mut dyn Write) -> io::Result<()> {
        panic!("the snapshot is begun")
    }
}

/// Each try wrote until the disk had no room.
#[test]
fn a_snapshot_that_is_expected_not_to_fit_is_not_begun() {
    const FREE_BYTES: u64 = 1_000;
    let check_room = |wanted_bytes: u64| match wanted_bytes <= FREE_BYTES {
        true => Ok(()),
        false => Err(SnapshotStoreError::NoRoom { wanted_bytes, free_bytes: FREE_BYTES, reserve_bytes: 0 }),
    };
    let store = TestStore { check_room: Box::new(check_room), ..TestStore::default() };
    let (made, results) = channel();
    let (worker, thread) = SnapshotWorker::start(Arc::new(store), move |m| made.send(m).unwrap()).unwrap();
    // The store refuses to create the one that fits.
    for (bytes_expected, expected) in [(FREE_BYTES + 1, NotMade::NoRoom), (FREE_BYTES, NotMade::Failed)] {
        let (head, source) = (crate::snapshots::fixture::meta(0, CONTENT).head, Box::new(Untouched));
        worker.make(Making { generation: 1, head, durable: LogId::NONE, source, bytes_expected });
        assert_eq!(results.recv_timeout(DEADLINE).unwrap().result, Err(expected));
    }
    worker.stop();
    thread.join().unwrap();
}
