//! The inbox of the shard: events of other threads, requests of callers, and the handle that posts them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::thread::Thread;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ingress::Scheduled;
use super::shard::RunningGroup;
use super::waiter::{Answer, ReadWaiter, Waiter};
use super::writer::WriteFailure;
use crate::core::{DiskRoom, GroupCore, OfferVerdict};
use crate::errors::TransferLeaderError;
use crate::explain::Wait;
use crate::ids::{GroupId, NodeId};
use crate::message::{Entry, Message};
use crate::snapshot_store::SnapshotMeta;
use crate::snapshots::Made;
use crate::status::GroupStatus;
use crate::sync::lock;
use crate::transport::{SnapshotOffer, SnapshotRefusal};

pub(crate) type ShardGroup = GroupCore<Waiter, ReadWaiter>;

/// The id of a group's write. It distinguishes a late completion from those of the group's next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteId {
    pub(crate) group: GroupId,
    pub(crate) generation: u64,
    pub(crate) number: u64,
}

/// Events of the other threads. Their number is bounded by the work that the shard has given to each of them.
pub(crate) enum ShardEvent {
    Written(Vec<WriteId>),
    LogPoisoned(Arc<str>),
    Applied { group: GroupId, generation: u64, index: u64 },
    ApplyFailed { group: GroupId, generation: u64, cause: Arc<str> },
    Fetched { group: GroupId, generation: u64, low: u64, entries: Result<Vec<Entry>, String> },
    SnapshotMade(Made),
    DiskRoom(DiskRoom),
    Control(Control),
}

/// Requests of callers to the shard.
pub(crate) enum Control {
    Start(Box<StartGroup>),
    /// `room` bounds the number of waiting requests; it is released with the answer.
    Status {
        group: GroupId,
        answer: Answer<GroupStatus>,
        room: OwnedSemaphorePermit,
    },
    /// As for `Status`.
    Explain {
        group: GroupId,
        answer: Answer<Vec<Wait>>,
        room: OwnedSemaphorePermit,
    },
    Transfer {
        group: GroupId,
        target: Option<NodeId>,
        /// Answered when the transfer has ended.
        answer: Answer<Result<(), TransferLeaderError>>,
        /// `None` for a transfer at shutdown.
        room: Option<OwnedSemaphorePermit>,
    },
    /// A peer offers a snapshot.
    Offered {
        from: NodeId,
        offer: Box<SnapshotOffer>,
        answer: Answer<Result<OfferVerdict, SnapshotRefusal>>,
    },
    /// A received snapshot is durable and verified.
    Received {
        from: NodeId,
        received: Box<(Message, SnapshotMeta)>,
        answer: Answer<Result<u64, SnapshotRefusal>>,
    },
    /// The log store asks for a compaction that frees disk space.
    ForceCompaction {
        group: GroupId,
    },
    /// Takes a group out of service. Answers with its last write, which is queued by then, if there is one.
    Close {
        group: GroupId,
        /// Only this generation, or `None` for the running one.
        generation: Option<u64>,
        cause: Arc<str>,
        /// Whether to write the last commit index.
        write: bool,
        answer: Answer<Option<oneshot::Receiver<Result<(), WriteFailure>>>>,
    },
    Stop,
}

/// A recovered group, ready to run.
pub(crate) struct StartGroup {
    pub(crate) id: GroupId,
    pub(super) running: RunningGroup,
    /// The other members.
    pub(crate) peers: BTreeSet<NodeId>,
    pub(crate) started: Answer<()>,
}

/// A handle to the shard's inbox. Never blocks.
#[derive(Clone)]
pub(crate) struct ShardSender {
    /// `None` once the shard has ended.
    events: Arc<Mutex<Option<Vec<ShardEvent>>>>,
    wake: Waker,
}

impl ShardSender {
    /// Posts an event. After the end of the shard it drops the event, and with it the caller's answer.
    pub(crate) fn post(&self, event: ShardEvent) {
        let late = match lock(&self.events).as_mut() {
            Some(events) => {
                match (events.last_mut(), event) {
                    // A newer applied index replaces an older one.
                    (
                        Some(ShardEvent::Applied { group, generation, index }),
                        ShardEvent::Applied { group: of, generation: of_generation, index: newer },
                    ) if (*group, *generation) == (of, of_generation) => *index = newer,
                    (_, event) => events.push(event),
                }
                None
            }
            None => Some(event),
        };
        if late.is_none() {
            self.wake.wake_by_ref();
        }
    }

    /// Swaps the posted events with an empty `into`.
    pub(super) fn take(&self, into: &mut Vec<ShardEvent>) {
        if let Some(events) = lock(&self.events).as_mut() {
            std::mem::swap(events, into);
        }
    }

    /// Drops the posted events and all later ones.
    pub(super) fn close(&self) {
        let unread = lock(&self.events).take();
        drop(unread);
    }
}

/// Wakes the shard thread, with one system call for all posts between two turns.
pub(super) struct Unpark {
    pub(super) woken: AtomicBool,
    pub(super) thread: Mutex<Option<Thread>>,
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel)
            && let Some(thread) = lock(&self.thread).as_ref()
        {
            thread.unpark();
        }
    }
}

/// The shard's inbox, made before the shard's thread because other threads need its handle.
pub(crate) struct ShardInbox {
    pub(crate) sender: ShardSender,
    pub(crate) scheduled: Arc<Scheduled>,
    pub(super) unpark: Arc<Unpark>,
}

impl ShardInbox {
    pub(crate) fn new() -> Self {
        let unpark = Arc::new(Unpark { woken: AtomicBool::new(false), thread: Mutex::default() });
        let wake = Waker::from(unpark.clone());
        let events = Arc::new(Mutex::new(Some(Vec::new())));
        let sender = ShardSender { events, wake: wake.clone() };
        Self { sender, scheduled: Arc::new(Scheduled::new(wake)), unpark }
    }

    pub(crate) fn waker(&self) -> Waker {
        self.sender.wake.clone()
    }
}

/// The shard drops it on every exit, and so drops the answers of queued events.
impl Drop for ShardInbox {
    fn drop(&mut self) {
        self.sender.close();
    }
}
