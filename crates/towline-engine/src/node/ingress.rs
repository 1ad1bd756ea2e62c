//! The bounded queues of a group, which callers and peers fill and the shard empties.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::deadlines::Deadlines;
use super::waiter::{ReadWaiter, Unanswered, Waiter};
use crate::config::ValidConfig;
use crate::core::Objection;
use crate::errors::{ProposeError, ReadError};
use crate::ids::{GroupId, NodeId};
use crate::lanes::policy::{ConflatingQueue, keep_round};
use crate::message::{Message, MessageKind};
use crate::sync::lock;
use crate::transport::NackCause;

/// Memory of an append message in the inbox beside its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// The queues of one group. Nothing here blocks: a full queue refuses new elements.
pub(crate) struct Ingress {
    group: GroupId,
    config: ValidConfig,
    queues: Mutex<Queues>,
    scheduled: Arc<Scheduled>,
}

#[derive(Default)]
struct Queues {
    /// Set once the group has ended, with the cause and the time.
    closed: Option<(Arc<str>, Instant)>,
    /// Whether the group is in [`Scheduled`].
    scheduled: bool,
    control: ConflatingQueue<(NodeId, MessageKind), (NodeId, Message)>,
    read_messages: VecDeque<(NodeId, Message)>,
    appends: VecDeque<(NodeId, Message)>,
    append_bytes: usize,
    /// What founders said against the first leader of the group. At most one of each kind for each peer that this node calls.
    objections: BTreeSet<(NodeId, Objection)>,
    proposals: VecDeque<(Bytes, Waiter)>,
    proposal_bytes: usize,
    /// The unanswered proposals, wherever they are.
    deadlines: Deadlines,
    reads: Vec<ReadWaiter>,
    /// Reads in the core, which count against the bound too.
    reads_held: usize,
}

/// The groups whose queues the shard must visit.
pub(crate) struct Scheduled {
    groups: Mutex<Vec<GroupId>>,
    wake: Waker,
}

impl Scheduled {
    pub(crate) fn new(wake: Waker) -> Self {
        Self { groups: Mutex::default(), wake }
    }

    fn add(&self, group: GroupId) {
        lock(&self.groups).push(group);
        self.wake.wake_by_ref();
    }

    pub(crate) fn take(&self, out: &mut Vec<GroupId>) {
        out.append(&mut lock(&self.groups));
    }
}

/// How a message was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Queued,
    /// It replaced an older message.
    Superseded,
}

/// What the shard takes from a group in one turn.
#[derive(Default)]
pub(crate) struct IngressBatch {
    pub(crate) control: Vec<(NodeId, Message)>,
    pub(crate) appends: Vec<(NodeId, Message)>,
    pub(crate) proposals: Vec<(Bytes, Waiter)>,
    pub(crate) reads: Vec<ReadWaiter>,
    pub(crate) objections: BTreeSet<(NodeId, Objection)>,
}

impl Ingress {
    pub(crate) fn new(group: GroupId, config: &ValidConfig, scheduled: Arc<Scheduled>) -> Self {
        Self { group, config: config.clone(), queues: Mutex::default(), scheduled }
    }

    fn schedule(&self, mut queues: MutexGuard<'_, Queues>) {
        if !std::mem::replace(&mut queues.scheduled, true) {
            drop(queues);
            self.scheduled.add(self.group);
        }
    }

    /// Queues a command in the order of the calls. The error goes to the waiter.
    pub(crate) fn propose(&self, command: Bytes, waiter: Waiter) {
        let mut queues = lock(&self.queues);
        let error = if let Some((cause, _)) = &queues.closed {
            Some(ProposeError::Stopped { cause: cause.clone() })
        } else if queues.proposals.len() >= self.config.proposal_queue_max
            || queues.proposal_bytes + command.len() > self.config.proposal_queue_bytes_max.as_usize()
        {
            Some(ProposeError::Busy)
        } else {
            None
        };
        if let Some(error) = error {
            drop(queues);
            return waiter.fail(error);
        }
        queues.proposal_bytes += command.len();
        let _answered = queues.deadlines.push(waiter.unanswered());
        queues.proposals.push_back((command, waiter));
        self.schedule(queues);
    }

    /// Queues a read. The error goes to the waiter.
    pub(crate) fn read(&self, reader: ReadWaiter) {
        let mut queues = lock(&self.queues);
        if let Some((cause, _)) = queues.closed.clone() {
            drop(queues);
            return reader.fail(ReadError::Stopped { cause });
        }
        if queues.reads.len() + queues.reads_held >= self.config.read_queue_max {
            drop(queues);
            return reader.fail(ReadError::Busy);
        }
        queues.reads.push(reader);
        self.schedule(queues);
    }

    /// Queues a message from the connection of `from`. Control messages conflate, so they always fit.
    ///
    /// # Errors
    /// The group is down, or the queue is full.
    pub(crate) fn deliver(&self, from: NodeId, message: Message) -> Result<Delivered, NackCause> {
        let mut queues = lock(&self.queues);
        let mut delivered = Delivered::Queued;
        if queues.closed.is_some() {
            return Err(NackCause::GroupDown);
        }
        match message.kind {
            MessageKind::Append | MessageKind::AppendResponse | MessageKind::Snapshot => {
                let bytes = message.payload_bytes() + MESSAGE_OVERHEAD_BYTES;
                let full = queues.appends.len() >= self.config.inbox_messages_max
                    || queues.append_bytes + bytes > self.config.inbox_bytes_max.as_usize();
                // An empty queue takes a message of any size. A leader with a higher `proposal_bytes_max` may have
                // committed a larger entry, and it resends the entry until this node takes it.
                if full && !queues.appends.is_empty() {
                    return Err(NackCause::InboxFull);
                }
                queues.append_bytes += bytes;
                queues.appends.push_back((from, message));
            }
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => {
                // One heartbeat's answer can release several of these, so they are not conflated.
                if queues.read_messages.len() >= self.config.lane_reads_max {
                    return Err(NackCause::InboxFull);
                }
                queues.read_messages.push_back((from, message));
            }
            kind => {
                let merge = |(_, older): &(NodeId, Message), (_, newer): &mut (NodeId, Message)| {
                    keep_round(older, newer)
                };
                if queues.control.push((from, kind), (from, message), merge).is_some() {
                    delivered = Delivered::Superseded;
                }
            }
        }
        self.schedule(queues);
        Ok(delivered)
    }

    /// Notes what a peer, of those that this node calls, said against the first leader of the group.
    pub(crate) fn note_objection(&self, peer: NodeId, objection: Objection) {
        let mut queues = lock(&self.queues);
        queues.objections.insert((peer, objection));
        self.schedule(queues);
    }

    /// Takes all control messages and reads, and at most `burst_max` appends and proposals each. Schedules the rest again.
    pub(crate) fn take(&self, burst_max: usize, taken: &mut IngressBatch) {
        let mut queues = lock(&self.queues);
        queues.scheduled = false;
        queues.control.drain(&mut taken.control);
        taken.objections.append(&mut queues.objections);
        taken.control.extend(queues.read_messages.drain(..));
        let appends = queues.appends.len().min(burst_max);
        taken.appends.extend(queues.appends.drain(..appends));
        let bytes: usize =
            taken.appends.iter().map(|(_, m)| m.payload_bytes() + MESSAGE_OVERHEAD_BYTES).sum();
        queues.append_bytes = queues.append_bytes.saturating_sub(bytes);
        let proposals = queues.proposals.len().min(burst_max);
        taken.proposals.extend(queues.proposals.drain(..proposals));
        let bytes: usize = taken.proposals.iter().map(|(command, _)| command.len()).sum();
        queues.proposal_bytes = queues.proposal_bytes.saturating_sub(bytes);
        queues.reads_held += queues.reads.len();
        taken.reads.append(&mut queues.reads);
        if !queues.appends.is_empty() || !queues.proposals.is_empty() {
            self.schedule(queues);
        }
    }

    /// Takes the unanswered proposals that were made at `before` or earlier. The caller must answer them. The queue, the core
    /// or the apply worker may still hold their waiters: a later answer has no effect.
    pub(crate) fn take_late(&self, before: Instant) -> Vec<Arc<dyn Unanswered>> {
        lock(&self.queues).deadlines.take_late(before)
    }

    /// Takes every proposal that is not answered, wherever it is.
    pub(crate) fn take_unanswered(&self) -> Vec<Arc<dyn Unanswered>> {
        lock(&self.queues).deadlines.take_all()
    }

    pub(crate) fn set_reads_held(&self, held: usize) {
        lock(&self.queues).reads_held = held;
    }

    /// Why the group has ended, and how long ago. `None`: it runs.
    pub(crate) fn closed(&self) -> Option<(Arc<str>, Duration)> {
        lock(&self.queues).closed.as_ref().map(|(cause, at)| (cause.clone(), at.elapsed()))
    }

    /// Refuses new elements, and fails the queued proposals and reads.
    pub(crate) fn close(&self, cause: &Arc<str>) {
        let (proposals, reads) = {
            let mut queues = lock(&self.queues);
            queues.closed.get_or_insert_with(|| (cause.clone(), Instant::now()));
            queues.appends.clear();
            queues.read_messages.clear();
            queues.append_bytes = 0;
            queues.proposal_bytes = 0;
            (std::mem::take(&mut queues.proposals), std::mem::take(&mut queues.reads))
        };
        for (_, waiter) in proposals {
            waiter.fail(ProposeError::Stopped { cause: cause.clone() });
        }
        for reader in reads {
            reader.fail(ReadError::Stopped { cause: cause.clone() });
        }
    }
}

#[cfg(test)]
mod tests;
