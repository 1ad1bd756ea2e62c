use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use super::*;
use crate::snapshot_store::{SnapshotReader, SnapshotWriter};

const GROUP: GroupId = GroupId::DEFAULT;
const CONTENT: ContentId = ContentId([7; 16]);
const DEADLINE: Duration = Duration::from_secs(20);

/// A store that reports what it keeps, and waits or panics on request.
struct Told {
    kept: Sender<Vec<ContentId>>,
    go_on: Mutex<Receiver<Then>>,
}

enum Then {
    Answer,
    Panic,
}

impl SnapshotStore for Told {
    fn complete(&self, _: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(Vec::new())
    }

    fn find(&self, _: GroupId, _: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(None)
    }

    fn create(&self, _: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Busy { content: CONTENT })
    }

    fn receive_while(
        &self,
        _: &SnapshotMeta,
        _: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Busy { content: CONTENT })
    }

    fn open(&self, _: &SnapshotMeta, _: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: CONTENT })
    }

    fn retain(&self, _: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        self.kept.send(keep.to_vec()).unwrap();
        match self.go_on.lock().unwrap().recv_timeout(DEADLINE) {
            Ok(Then::Panic) => panic!("the store"),
            _ => Ok(()),
        }
    }
}

struct Bench {
    worker: SnapshotWorker,
    thread: JoinHandle<()>,
    kept: Receiver<Vec<ContentId>>,
    go_on: Sender<Then>,
}

fn bench() -> Bench {
    let ((kept, told), (go_on, waits)) = (channel(), channel());
    let store = Arc::new(Told { kept, go_on: Mutex::new(waits) });
    let (worker, thread) = SnapshotWorker::start(store, |_| ()).unwrap();
    Bench { worker, thread, kept: told, go_on }
}

/// The worker looked which files are pinned, let go of the pins, and then removed all others. A transfer that pinned a
/// file in between, and found it, had it taken from under its feet: Raft wrote down that it installs a snapshot whose file
/// was gone, and the node was lost.
#[test]
fn no_file_is_pinned_while_files_are_removed() {
    let Bench { worker, thread, kept, go_on } = bench();
    worker.retain(GROUP, Vec::new());
    assert_eq!(kept.recv_timeout(DEADLINE), Ok(Vec::new()), "the removal has begun");
    let (pinned, pins) = channel();
    let other = worker.clone();
    let pinning = std::thread::spawn(move || {
        let pin = other.pin(GROUP, CONTENT);
        pinned.send(()).unwrap();
        pin
    });
    // Nothing is to happen in this time.
    assert!(pins.recv_timeout(Duration::from_millis(200)).is_err(), "it pinned what is about to go");
    go_on.send(Then::Answer).unwrap();
    let pin = pinning.join().unwrap();
    worker.retain(GROUP, Vec::new());
    assert_eq!(kept.recv_timeout(DEADLINE), Ok(vec![CONTENT]), "from now on it is kept");
    go_on.send(Then::Answer).unwrap();
    drop(pin);
    worker.retain(GROUP, Vec::new());
    assert_eq!(kept.recv_timeout(DEADLINE), Ok(Vec::new()));
    go_on.send(Then::Answer).unwrap();
    worker.stop();
    thread.join().unwrap();
}

/// A store that panicked while it removed files ended the worker without a word: no snapshot was ever made again, and no
/// file removed.
#[test]
fn a_store_that_panics_while_it_removes_files_is_asked_again() {
    let Bench { worker, thread, kept, go_on } = bench();
    for then in [Then::Panic, Then::Answer] {
        worker.retain(GROUP, vec![CONTENT]);
        assert_eq!(kept.recv_timeout(DEADLINE), Ok(vec![CONTENT]));
        go_on.send(then).unwrap();
    }
    let _pin = worker.pin(GROUP, CONTENT);
    worker.stop();
    thread.join().unwrap();
}
