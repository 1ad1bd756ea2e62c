use super::*;
use crate::message::MessageKind;
use crate::snapshot_store::ContentId;
use crate::snapshots::fixture::{CONTENT as PARTIAL, DEADLINE, TestStore, id, meta, settings};

const EIO: i32 = 5;

/// The content of a later attempt. Its file is damaged.
const OTHER: ContentId = ContentId([8; 16]);

/// How reading the partial file ends.
#[derive(Debug, Clone, Copy)]
enum ReadEnd {
    Stops,
    /// The disk fails in the moment in which the read must stop.
    DiskFails,
}

/// A store that reads a partial file until it must stop.
fn store(end: ReadEnd) -> TestStore {
    let receive = move |meta: &SnapshotMeta, goes_on: &mut dyn FnMut(u64) -> bool| {
        let content = meta.content;
        if content == OTHER {
            return Err(SnapshotStoreError::Corrupt { content, detail: "of the later attempt".into() });
        }
        let begun = std::time::Instant::now();
        while goes_on(1) {
            assert!(begun.elapsed() < DEADLINE, "the read is not stopped");
            std::thread::yield_now();
        }
        Err(match end {
            ReadEnd::Stops => SnapshotStoreError::Stopped { content },
            ReadEnd::DiskFails => {
                SnapshotStoreError::Io { during: "reading", source: io::Error::from_raw_os_error(EIO) }
            }
        })
    };
    TestStore { receive: Box::new(receive), ..TestStore::default() }
}

struct WantsAll;

#[async_trait]
impl SnapshotGroups for WantsAll {
    async fn offer(&self, _: NodeId, _: SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal> {
        Ok(OfferVerdict::Wanted)
    }

    async fn receive(&self, _: NodeId, _: Message, meta: SnapshotMeta) -> Result<u64, SnapshotRefusal> {
        Ok(meta.head.at.index)
    }
}

struct ReceiveFixture {
    receives: Receives,
    worker: SnapshotWorker,
    thread: std::thread::JoinHandle<()>,
}

impl ReceiveFixture {
    /// Must be called on a runtime.
    fn new(end: ReadEnd) -> Self {
        let store: Arc<dyn SnapshotStore> = Arc::new(store(end));
        let (worker, thread) = SnapshotWorker::start(store.clone(), |_| ()).unwrap();
        let receives = Receives::new(ReceivesDeps {
            node: id(1),
            settings: settings(0),
            store,
            worker: worker.clone(),
            groups: Arc::new(WantsAll),
            runtime: Handle::current(),
        });
        Self { receives, worker, thread }
    }

    /// The refusal that the sender of this attempt gets.
    async fn refusal(&self, attempt: u64, content: ContentId) -> SnapshotRefusal {
        let message = Message { term: 3, ..Message::new(MessageKind::Snapshot, id(2), id(1)) };
        let offer = SnapshotOffer { message, meta: meta(20, content), attempt };
        let answer =
            self.receives.offer(id(2), offer, ByteTally::new(|_, _| ()), &ProgressCell::new(0)).await;
        answer.err().expect("no file can be opened")
    }

    fn stop(self) {
        self.worker.stop();
        self.thread.join().unwrap();
    }
}

/// The refusal of a sender whose partial file is being read when a later attempt at other content claims the slot. A paused
/// clock waits for a reading thread, so no offer times out on a busy machine.
async fn refusal_when_superseded(end: ReadEnd) -> SnapshotRefusal {
    let fixture = ReceiveFixture::new(end);
    let (earlier, later) = tokio::join!(fixture.refusal(1, PARTIAL), fixture.refusal(2, OTHER));
    assert!(matches!(&later, SnapshotRefusal::Corrupt { .. }), "{later:?}");
    fixture.stop();
    earlier
}

/// The refusal of a sender whose partial file is being read when the node stops.
async fn refusal_when_the_node_stops(end: ReadEnd) -> SnapshotRefusal {
    let fixture = ReceiveFixture::new(end);
    let (refusal, ()) = tokio::join!(fixture.refusal(1, PARTIAL), async { fixture.receives.close() });
    fixture.stop();
    refusal
}

/// The sender heard that a later attempt had superseded it, or that the node stops, and no line named the disk.
#[tokio::test(start_paused = true)]
async fn a_disk_failure_during_a_stopped_read_reaches_the_sender() {
    let cause = io::Error::from_raw_os_error(EIO).to_string();
    for refusal in [
        refusal_when_superseded(ReadEnd::DiskFails).await,
        refusal_when_the_node_stops(ReadEnd::DiskFails).await,
    ] {
        let of_disk = matches!(&refusal, SnapshotRefusal::Storage { detail } if detail.contains(&cause));
        assert!(of_disk, "{refusal:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_read_is_refused_with_the_cause_of_the_stop() {
    let refusal = refusal_when_superseded(ReadEnd::Stops).await;
    assert!(matches!(refusal, SnapshotRefusal::Superseded), "{refusal:?}");
    let refusal = refusal_when_the_node_stops(ReadEnd::Stops).await;
    let stops = matches!(&refusal, SnapshotRefusal::NotTaken { detail } if detail == "the node stops");
    assert!(stops, "{refusal:?}");
}
