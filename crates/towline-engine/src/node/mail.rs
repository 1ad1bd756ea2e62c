//! The mail of the shard: what the other threads and the callers tell it, and the way to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::thread::Thread;

use tokio::sync::{OwnedSemaphorePermit, watch};
use towline_metrics::GroupMetrics;

use super::answer::Answer;
use super::apply::ApplyWorker;
use super::ingress::{Ingress, Scheduled};
use super::waiter::{ReadWaiter, Waiter};
use crate::core::{Group, OfferVerdict};
use crate::errors::TransferLeaderError;
use crate::ids::{GroupId, NodeId, PeerAddr};
use crate::log_store::GroupWrite;
use crate::message::{Entry, Message};
use crate::snapshot_store::SnapshotMeta;
use crate::snapshots::Made;
use crate::status::{GroupState, GroupStatus};
use crate::transport::{SnapshotOffer, SnapshotRefusal};

pub(crate) type CoreGroup = Group<Waiter, ReadWaiter>;

/// A write of a group, named so that a late completion is not taken for one of the group's next life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteId {
    pub(crate) group: GroupId,
    pub(crate) life: u64,
    pub(crate) number: u64,
}

/// What the other threads tell the shard. Bounded by what the shard itself has under way with each of them.
pub(crate) enum ShardEvent {
    Written(Vec<WriteId>),
    LogPoisoned(Arc<str>),
    Applied { group: GroupId, life: u64, index: u64 },
    ApplyFailed { group: GroupId, life: u64, cause: Arc<str> },
    Fetched { group: GroupId, life: u64, low: u64, entries: Result<Vec<Entry>, String> },
    SnapshotMade(Made),
    Control(Control),
}

/// What a caller asks of the shard.
pub(crate) enum Control {
    Start(Box<StartGroup>),
    /// Holds its room until it is answered, which bounds how many wait.
    Status {
        group: GroupId,
        answer: Answer<GroupStatus>,
        room: OwnedSemaphorePermit,
    },
    Transfer {
        group: GroupId,
        target: Option<NodeId>,
        /// Answered when the transfer has ended.
        answer: Answer<Result<(), TransferLeaderError>>,
        /// `None` for the node's own, at shutdown.
        room: Option<OwnedSemaphorePermit>,
    },
    /// A peer offers a snapshot.
    Offered {
        from: NodeId,
        offer: Box<SnapshotOffer>,
        answer: Answer<Result<OfferVerdict, SnapshotRefusal>>,
    },
    /// One is here, durable and verified.
    Received {
        from: NodeId,
        received: Box<(Message, SnapshotMeta)>,
        answer: Answer<Result<u64, SnapshotRefusal>>,
    },
    /// The log store wants space back.
    Squeeze {
        group: GroupId,
    },
    /// Takes a group out of service; answers with a last write if its hard state is not all durable.
    Close {
        group: GroupId,
        /// Of this life only, or of whichever runs.
        life: Option<u64>,
        cause: Arc<str>,
        answer: Answer<Option<GroupWrite>>,
    },
    Stop,
}

/// A recovered group, ready to run.
pub(crate) struct StartGroup {
    pub(crate) id: GroupId,
    pub(crate) life: u64,
    pub(crate) group: CoreGroup,
    /// The other members.
    pub(crate) peers: BTreeSet<NodeId>,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) state: watch::Sender<GroupState>,
    pub(crate) apply: ApplyWorker,
    pub(crate) metrics: Arc<GroupMetrics>,
    pub(crate) addresses: BTreeMap<NodeId, PeerAddr>,
    pub(crate) started: Answer<()>,
}

/// The way to the shard. Never blocks.
#[derive(Clone)]
pub(crate) struct ShardSender {
    /// `None` once the shard has ended.
    events: Arc<Mutex<Option<Vec<ShardEvent>>>>,
    wake: Waker,
}

impl ShardSender {
    /// After the end of the shard the event is dropped, which tells whoever waits for its answer.
    pub(crate) fn post(&self, event: ShardEvent) {
        let late = match self.lock().as_mut() {
            Some(events) => {
                match (events.last_mut(), event) {
                    // A newer applied index says everything an older one does.
                    (
                        Some(ShardEvent::Applied { group, life, index }),
                        ShardEvent::Applied { group: of, life: of_life, index: newer },
                    ) if (*group, *life) == (of, of_life) => *index = newer,
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

    /// Takes what was posted, in the place of an empty `into`.
    pub(super) fn take(&self, into: &mut Vec<ShardEvent>) {
        if let Some(events) = self.lock().as_mut() {
            std::mem::swap(events, into);
        }
    }

    /// From now on nothing is taken; what was is dropped.
    pub(super) fn close(&self) {
        let unread = self.lock().take();
        drop(unread);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<ShardEvent>>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the shard thread, at most one system call for any number of posts between two turns.
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
            && let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
        {
            thread.unpark();
        }
    }
}

/// The shard's mail, made before its thread because everybody needs a way to it.
pub(crate) struct ShardMail {
    pub(crate) sender: ShardSender,
    pub(crate) scheduled: Arc<Scheduled>,
    pub(super) unpark: Arc<Unpark>,
}

impl ShardMail {
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

/// With the shard, however it ends: nobody may wait for an answer of one that is gone.
impl Drop for ShardMail {
    fn drop(&mut self) {
        self.sender.close();
    }
}
