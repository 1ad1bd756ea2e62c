use std::time::Duration;

use super::*;
use crate::ids::GroupId;
use crate::message::{ConfState, LogId, MemberTable, MessageKind};
use crate::snapshot_store::{ContentId, SnapshotHead, SnapshotReader, SnapshotWriter};

const DEADLINE: Duration = Duration::from_secs(20);
const EIO: i32 = 5;

/// Part of it is here, and is read again for as long as that may go on.
const PARTIAL: ContentId = ContentId([7; 16]);
/// What a later attempt offers. Its file is damaged, which nothing else is told of.
const OTHER: ContentId = ContentId([8; 16]);

/// How it ends to read the partial file again.
#[derive(Debug, Clone, Copy)]
enum Ends {
    /// As it is asked to.
    Stops,
    /// The disk fails, just when it is asked to.
    DiskFails,
}

impl SnapshotStore for Ends {
    fn complete(&self, _: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(Vec::new())
    }

    fn find(&self, _: GroupId, _: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(None)
    }

    fn create(&self, _: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Busy { content: PARTIAL })
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let content = meta.content;
        if content == OTHER {
            return Err(SnapshotStoreError::Corrupt { content, detail: "the later one's".into() });
        }
        let begun = std::time::Instant::now();
        while goes_on(1) {
            assert!(begun.elapsed() < DEADLINE, "nobody asks it to stop");
            std::thread::yield_now();
        }
        match self {
            Self::Stops => Err(SnapshotStoreError::Stopped { content }),
            Self::DiskFails => {
                Err(SnapshotStoreError::Io { during: "reading", source: io::Error::from_raw_os_error(EIO) })
            }
        }
    }

    fn open(&self, meta: &SnapshotMeta, _: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: meta.content })
    }

    fn retain(&self, _: GroupId, _: &[ContentId]) -> Result<(), SnapshotStoreError> {
        Ok(())
    }
}

/// Wants everything.
struct Wants;

#[async_trait]
impl SnapshotGroups for Wants {
    async fn offer(&self, _: NodeId, _: SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal> {
        Ok(OfferVerdict::Wanted)
    }

    async fn receive(&self, _: NodeId, _: Message, meta: SnapshotMeta) -> Result<u64, SnapshotRefusal> {
        Ok(meta.head.at.index)
    }
}

struct Bench {
    receives: Receives,
    worker: SnapshotWorker,
    keeping: std::thread::JoinHandle<()>,
}

/// To be made on the runtime of a test.
fn bench(store: Ends) -> Bench {
    let store: Arc<dyn SnapshotStore> = Arc::new(store);
    let (worker, keeping) = SnapshotWorker::start(store.clone(), |_| ()).unwrap();
    let receives = Receives::new(ReceivesDeps {
        node: id(1),
        settings: TransferSettings {
            chunk_bytes: 4,
            bytes_max: 100,
            receives_max: 1,
            bytes_per_second: 0,
            offer_timeout: DEADLINE,
            progress_timeout: DEADLINE,
            phase_timeout: DEADLINE,
        },
        store,
        worker: worker.clone(),
        groups: Arc::new(Wants),
        runtime: Handle::current(),
    });
    Bench { receives, worker, keeping }
}

impl Bench {
    /// What the sender of this attempt is told.
    async fn told(&self, attempt: u64, content: ContentId) -> SnapshotRefusal {
        let head = SnapshotHead {
            group: GroupId::DEFAULT,
            at: LogId { index: 7, term: 2 },
            conf_state: ConfState::default(),
            members: MemberTable::new(),
        };
        let offer = SnapshotOffer {
            message: Message { term: 3, ..Message::new(MessageKind::Snapshot, id(2), id(1)) },
            meta: SnapshotMeta { head, length: 20, content },
            attempt,
        };
        let answer =
            self.receives.offer(id(2), offer, ByteTally::new(|_, _| ()), &ProgressCell::new(0)).await;
        answer.err().expect("no file of these can be opened")
    }

    fn stop(self) {
        self.worker.stop();
        self.keeping.join().unwrap();
    }
}

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// The refusal that a sender gets if its partial file is being verified when a later attempt at other content claims the
/// slot. The later attempt gets the slot. A paused clock waits for a reading thread, so no offer times out on a busy machine.
async fn told_when_the_slot_is_wanted(store: Ends) -> SnapshotRefusal {
    let bench = bench(store);
    let (earlier, later) = tokio::join!(bench.told(1, PARTIAL), bench.told(2, OTHER));
    assert!(matches!(&later, SnapshotRefusal::Corrupt { .. }), "{later:?}");
    bench.stop();
    earlier
}

/// The same when the node stops.
async fn told_when_the_node_stops(store: Ends) -> SnapshotRefusal {
    let bench = bench(store);
    let (told, ()) = tokio::join!(bench.told(1, PARTIAL), async { bench.receives.close() });
    bench.stop();
    told
}

/// It was told that another attempt had taken its place, or that the node stops, and nobody heard of the disk.
#[tokio::test(start_paused = true)]
async fn a_disk_that_fails_while_a_part_is_read_again_is_told_whoever_wanted_the_slot_meanwhile() {
    let told = [
        told_when_the_slot_is_wanted(Ends::DiskFails).await,
        told_when_the_node_stops(Ends::DiskFails).await,
    ];
    let reads = io::Error::from_raw_os_error(EIO).to_string();
    for told in told {
        let of_disk = matches!(&told, SnapshotRefusal::Storage { detail } if detail.contains(&reads));
        assert!(of_disk, "{told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stops_to_read_a_part_again_says_for_whom() {
    let told = told_when_the_slot_is_wanted(Ends::Stops).await;
    assert!(matches!(told, SnapshotRefusal::Superseded), "{told:?}");
    let told = told_when_the_node_stops(Ends::Stops).await;
    assert!(matches!(&told, SnapshotRefusal::NotTaken { detail } if detail == "the node stops"), "{told:?}");
}
