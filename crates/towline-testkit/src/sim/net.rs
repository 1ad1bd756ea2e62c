use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use towline_engine::ids::NodeId;
use towline_engine::message::{Lane, Message, MessageKind};

/// The faults of the network. Chances are in parts of a thousand.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Steps until a message arrives.
    pub delay: Range<u64>,
    /// Lost messages that are reported to the sender.
    pub drop_permille: u32,
    /// Lost messages without a report, as when the peer crashes.
    pub silent_drop_permille: u32,
    /// Messages delivered twice, which lanes never do.
    pub duplicate_permille: u32,
    /// Messages that overtake the one before them, which lanes never do.
    pub overtake_permille: u32,
}

impl Default for NetOptions {
    /// A fast network without faults.
    fn default() -> Self {
        Self {
            delay: 1..4,
            drop_permille: 0,
            silent_drop_permille: 0,
            duplicate_permille: 0,
            overtake_permille: 0,
        }
    }
}

/// Messages in order, each with the step from which it is due.
type Queue = VecDeque<(u64, Message)>;

/// Ordered lanes between every two nodes. Messages of different lanes overtake each other.
#[derive(Debug, Default)]
pub(super) struct SimNet {
    /// By receiver and lane, then by sender: a node looks for its messages at each step.
    lanes: BTreeMap<(NodeId, Lane), BTreeMap<NodeId, Queue>>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Appends with entries by sender and receiver: their number and payload bytes.
    appends: BTreeMap<(NodeId, NodeId), (u64, u64)>,
    /// Lost messages that are not reported yet: sender and receiver.
    pub(super) lost: Vec<(NodeId, NodeId)>,
}

fn chance(rng: &mut fastrand::Rng, permille: u32) -> bool {
    permille > 0 && rng.u32(0..1000) < permille
}

impl SimNet {
    pub(super) fn send(&mut self, now: u64, message: Message, options: &NetOptions, rng: &mut fastrand::Rng) {
        let (from, to) = (message.from, message.to);
        // Snapshots have no lane, and this simulator makes none.
        let Some(lane) = message.kind.lane() else { return };
        if message.kind == MessageKind::Append && !message.entries.is_empty() {
            let (count, bytes) = self.appends.entry((from, to)).or_default();
            *count += 1;
            *bytes += message.payload_bytes() as u64;
        }
        if self.cut.contains(&(from, to)) || chance(rng, options.drop_permille) {
            self.lost.push((from, to));
            return;
        }
        if chance(rng, options.silent_drop_permille) {
            return;
        }
        let queue = self.lanes.entry((to, lane)).or_default().entry(from).or_default();
        let due = now + rng.u64(options.delay.clone());
        let due = queue.back().map_or(due, |&(before, _)| due.max(before));
        if chance(rng, options.duplicate_permille) {
            queue.push_back((due, message.clone()));
        }
        queue.push_back((due, message));
        let last = queue.len() - 1;
        if last > 0 && chance(rng, options.overtake_permille) {
            queue.swap(last - 1, last);
        }
    }

    /// The due messages to `to`, those of the control lane first.
    pub(super) fn receive(&mut self, now: u64, to: NodeId) -> Vec<Message> {
        let mut messages = Vec::new();
        for lane in Lane::ALL {
            for (&from, queue) in self.lanes.get_mut(&(to, lane)).into_iter().flatten() {
                let cut = self.cut.contains(&(from, to));
                while queue.front().is_some_and(|&(due, _)| cut || due <= now) {
                    match queue.pop_front() {
                        Some(_) if cut => self.lost.push((from, to)),
                        Some((_, message)) => messages.push(message),
                        None => break,
                    }
                }
            }
        }
        messages
    }

    /// Loses all messages in flight to a crashed node.
    pub(super) fn lose_all_to(&mut self, node: NodeId) {
        for lane in Lane::ALL {
            for (&from, queue) in self.lanes.get_mut(&(node, lane)).into_iter().flatten() {
                if !queue.is_empty() {
                    queue.clear();
                    self.lost.push((from, node));
                }
            }
        }
    }

    pub(super) fn appends_sent(&self, from: NodeId, to: NodeId) -> (u64, u64) {
        self.appends.get(&(from, to)).copied().unwrap_or_default()
    }

    /// All messages in flight.
    pub(super) fn in_flight(&self) -> impl Iterator<Item = &Message> {
        self.lanes.values().flat_map(BTreeMap::values).flatten().map(|(_, message)| message)
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }
}
