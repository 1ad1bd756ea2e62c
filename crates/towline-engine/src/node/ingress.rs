//! What waits for the shard: one bounded set of queues a group, filled by callers and by peers.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;

use super::deadlines::Deadlines;
use super::waiter::{ReadWaiter, Unanswered, Waiter};
use crate::config::ValidConfig;
use crate::errors::{ProposeError, ReadError};
use crate::ids::{GroupId, NodeId};
use crate::lanes::policy::{ConflatingQueue, keep_round};
use crate::message::{Message, MessageKind};
use crate::transport::NackCause;

/// Memory an append message costs in the inbox beside its payload.
const MESSAGE_OVERHEAD_BYTES: usize = 128;

/// The queues of one group. Nothing here blocks; what does not fit is refused to whoever brought it.
pub(crate) struct Ingress {
    group: GroupId,
    limits: Limits,
    queues: Mutex<Queues>,
    scheduled: Arc<Scheduled>,
}

struct Limits {
    proposals_max: usize,
    proposal_bytes_max: usize,
    reads_max: usize,
    appends_max: usize,
    append_bytes_max: usize,
    read_messages_max: usize,
}

#[derive(Default)]
struct Queues {
    /// Why nothing is taken any more.
    closed: Option<Arc<str>>,
    /// Whether the shard was told already.
    scheduled: bool,
    control: ConflatingQueue<(NodeId, MessageKind), (NodeId, Message)>,
    read_messages: VecDeque<(NodeId, Message)>,
    appends: VecDeque<(NodeId, Message)>,
    append_bytes: usize,
    proposals: VecDeque<(Bytes, Waiter)>,
    proposal_bytes: usize,
    /// Proposals in the order of the calls, wherever they are by now, until they are answered.
    deadlines: Deadlines,
    reads: Vec<ReadWaiter>,
    /// Reads that the core holds: they count against the bound too.
    reads_held: usize,
}

/// Groups that have something for the shard, and its wake-up.
pub(crate) struct Scheduled {
    groups: Mutex<Vec<GroupId>>,
    wake: Waker,
}

impl Scheduled {
    pub(crate) fn new(wake: Waker) -> Self {
        Self { groups: Mutex::default(), wake }
    }

    fn add(&self, group: GroupId) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).push(group);
        self.wake.wake_by_ref();
    }

    pub(crate) fn take(&self, out: &mut Vec<GroupId>) {
        out.append(&mut self.groups.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What became of a message that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    /// It waits.
    Queued,
    /// It waits in the place of an older one, which nobody will see.
    Superseded,
}

/// What the shard takes in one turn.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) control: Vec<(NodeId, Message)>,
    pub(crate) appends: Vec<(NodeId, Message)>,
    pub(crate) proposals: Vec<(Bytes, Waiter)>,
    pub(crate) reads: Vec<ReadWaiter>,
}

impl Ingress {
    pub(crate) fn new(group: GroupId, config: &ValidConfig, scheduled: Arc<Scheduled>) -> Self {
        let limits = Limits {
            proposals_max: config.proposal_queue_max,
            proposal_bytes_max: config.proposal_queue_bytes_max.as_usize(),
            reads_max: config.read_queue_max,
            appends_max: config.inbox_messages_max,
            append_bytes_max: config.inbox_bytes_max.as_usize(),
            read_messages_max: config.lane_reads_max,
        };
        Self { group, limits, queues: Mutex::default(), scheduled }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(&self, mut queues: MutexGuard<'_, Queues>) {
        if !std::mem::replace(&mut queues.scheduled, true) {
            drop(queues);
            self.scheduled.add(self.group);
        }
    }

    /// Queues a command in the order of the calls. The error goes to the waiter.
    pub(crate) fn propose(&self, command: Bytes, waiter: Waiter) {
        let mut queues = self.lock();
        let error = if let Some(cause) = &queues.closed {
            Some(ProposeError::Stopped { cause: cause.clone() })
        } else if queues.proposals.len() >= self.limits.proposals_max
            || queues.proposal_bytes + command.len() > self.limits.proposal_bytes_max
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
        let mut queues = self.lock();
        if let Some(cause) = queues.closed.clone() {
            drop(queues);
            return reader.fail(ReadError::Stopped { cause });
        }
        if queues.reads.len() + queues.reads_held >= self.limits.reads_max {
            drop(queues);
            return reader.fail(ReadError::Busy);
        }
        queues.reads.push(reader);
        self.schedule(queues);
    }

    /// Queues a message that the connection of `from` brought.
    ///
    /// # Errors
    /// Why it could not be taken. Control messages conflate and are always taken.
    pub(crate) fn deliver(&self, from: NodeId, message: Message) -> Result<Delivered, NackCause> {
        let mut queues = self.lock();
        let mut delivered = Delivered::Queued;
        if queues.closed.is_some() {
            return Err(NackCause::GroupDown);
        }
        match message.kind {
            MessageKind::Append | MessageKind::AppendResponse | MessageKind::Snapshot => {
                let bytes = message.payload_bytes() + MESSAGE_OVERHEAD_BYTES;
                let full = queues.appends.len() >= self.limits.appends_max
                    || queues.append_bytes + bytes > self.limits.append_bytes_max;
                // One that is larger than the inbox is taken alone: its entry may have been committed under a higher
                // `proposal_bytes_max` than this node's, and the leader sends it until it is taken.
                if full && !queues.appends.is_empty() {
                    return Err(NackCause::InboxFull);
                }
                queues.append_bytes += bytes;
                queues.appends.push_back((from, message));
            }
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => {
                // One heartbeat's answer can release several of these at once, so they are never conflated.
                if queues.read_messages.len() >= self.limits.read_messages_max {
                    return Err(NackCause::InboxFull);
                }
                queues.read_messages.push_back((from, message));
            }
            kind => {
                let merge = |(_, older): &(NodeId, Message), (_, newer): &mut (NodeId, Message)| {
                    keep_round(older, newer)
                };
                if queues.control.push_with((from, kind), (from, message), merge).is_some() {
                    delivered = Delivered::Superseded;
                }
            }
        }
        self.schedule(queues);
        Ok(delivered)
    }

    /// Takes what one turn may handle: all control messages, and at most `burst_max` appends and as many proposals.
    /// What is left is scheduled again.
    pub(crate) fn take(&self, burst_max: usize, taken: &mut Taken) {
        let mut queues = self.lock();
        queues.scheduled = false;
        queues.control.drain(&mut taken.control);
        taken.control.extend(queues.read_messages.drain(..));
        let appends = queues.appends.len().min(burst_max);
        for (from, message) in queues.appends.drain(..appends) {
            taken.appends.push((from, message));
        }
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
        self.lock().deadlines.take_late(before)
    }

    /// Takes every proposal that is not answered, wherever it is.
    pub(crate) fn take_unanswered(&self) -> Vec<Arc<dyn Unanswered>> {
        self.lock().deadlines.take_all()
    }

    /// How many reads the core holds now.
    pub(crate) fn set_reads_held(&self, held: usize) {
        self.lock().reads_held = held;
    }

    /// Takes nothing any more, and tells everybody who waits here.
    pub(crate) fn close(&self, cause: &Arc<str>) {
        let (proposals, reads) = {
            let mut queues = self.lock();
            queues.closed.get_or_insert_with(|| cause.clone());
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
