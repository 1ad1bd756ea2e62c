//! Read rounds: many reads wait together for one round that confirms leadership.
//!
//! A round is a unique context that raft sends around with heartbeats. Raft silently drops a round without a leader, or if
//! the leader has not committed in its term, or if a message is lost. So while reads wait, another round starts after each
//! retry interval. Every round from a read's first round on confirms the read. Every read has a deadline.

use std::collections::{BTreeMap, VecDeque};

use crate::ids::NodeId;

/// With fewer rounds under way than this number, the next round starts at once. Otherwise one round starts per tick. So a
/// read waits at most a tick for its round on a slow link, and a fast link does not carry a round for every read.
const ROUNDS_AT_ONCE: usize = 2;

/// The most rounds with reads under way. At the bound new reads wait for the end of a round.
const ROUNDS_MAX: usize = 64;

/// The pending reads of a group.
#[derive(Debug)]
pub(super) struct Reads<R> {
    /// Makes contexts unique in the cluster, as raft's table of rounds requires.
    origin: [u8; 16],
    next_round: u64,
    /// The tick at which the last round started.
    started_tick: u64,
    waiting: VecDeque<PendingRead<R>>,
    /// In the order of their numbers.
    rounds: VecDeque<Round<R>>,
    /// Confirmed at an index that is not applied yet.
    confirmed: VecDeque<(u64, Vec<PendingRead<R>>)>,
}

#[derive(Debug)]
struct PendingRead<R> {
    reader: R,
    deadline_tick: u64,
}

/// The reads that joined a round before its context left.
#[derive(Debug)]
struct Round<R> {
    number: u64,
    readers: VecDeque<PendingRead<R>>,
}

/// Moves the reads past their deadline to `late`. Reads are ordered by arrival, and so by deadline.
fn take_late<R>(readers: &mut VecDeque<PendingRead<R>>, now_tick: u64, late: &mut Vec<R>) {
    while readers.front().is_some_and(|r| r.deadline_tick <= now_tick) {
        late.extend(readers.pop_front().map(|r| r.reader));
    }
}

impl<R> Reads<R> {
    /// `origin` is unique to this run of the node.
    pub(super) fn new(origin: [u8; 16]) -> Self {
        Self {
            origin,
            next_round: 1,
            started_tick: 0,
            waiting: VecDeque::new(),
            rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, reader: R, deadline_tick: u64) {
        self.waiting.push_back(PendingRead { reader, deadline_tick });
    }

    /// Whether no read is pending.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.rounds.is_empty() && self.confirmed.is_empty()
    }

    /// The number of pending reads.
    pub(super) fn len(&self) -> usize {
        let rounds: usize = self.rounds.iter().map(|r| r.readers.len()).sum();
        let confirmed: usize = self.confirmed.iter().map(|(_, readers)| readers.len()).sum();
        self.waiting.len() + rounds + confirmed
    }

    /// Starts a round if one is due, and returns its context. A round is due if reads wait for their first round, or if no
    /// round started for `retry_ticks`, because the earlier ones may be lost.
    ///
    /// A retry has another number: a late answer to an earlier round must not confirm reads that joined after it.
    pub(super) fn start_round(&mut self, now_tick: u64, retry_ticks: u64) -> Option<Vec<u8>> {
        let paced = self.rounds.len() < ROUNDS_AT_ONCE || self.started_tick < now_tick;
        let joins = !self.waiting.is_empty() && self.rounds.len() < ROUNDS_MAX && paced;
        let retries = !self.rounds.is_empty() && self.started_tick.saturating_add(retry_ticks) <= now_tick;
        if !joins && !retries {
            return None;
        }
        let number = self.next_round;
        self.next_round += 1;
        self.started_tick = now_tick;
        if joins {
            self.rounds.push_back(Round { number, readers: std::mem::take(&mut self.waiting) });
        }
        Some([self.origin.as_slice(), &number.to_be_bytes()].concat())
    }

    /// Takes an answered round and its index. It confirms the reads of this and of lower rounds: all began before it.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let Some((origin, number)) = split(context) else { return };
        if *origin != self.origin || number >= self.next_round {
            return;
        }
        let mut readers = Vec::new();
        while self.rounds.front().is_some_and(|r| r.number <= number) {
            readers.extend(self.rounds.pop_front().into_iter().flat_map(|r| r.readers));
        }
        if !readers.is_empty() {
            self.confirmed.push_back((index, readers));
        }
    }

    /// Takes the confirmed reads that need no entry past `applied`.
    pub(super) fn take_confirmed(&mut self, applied: u64) -> Vec<R> {
        let mut ready = Vec::new();
        while self.confirmed.front().is_some_and(|&(index, _)| index <= applied) {
            let confirmed = self.confirmed.pop_front().into_iter().flat_map(|(_, readers)| readers);
            ready.extend(confirmed.map(|r| r.reader));
        }
        ready
    }

    /// Takes the reads past their deadline that no round has confirmed.
    pub(super) fn take_unconfirmed(&mut self, now_tick: u64) -> Vec<R> {
        let mut late = Vec::new();
        for round in &mut self.rounds {
            take_late(&mut round.readers, now_tick, &mut late);
        }
        self.rounds.retain(|round| !round.readers.is_empty());
        take_late(&mut self.waiting, now_tick, &mut late);
        late
    }

    /// Takes the reads past their deadline that are confirmed at an unapplied index, with that index. A node without
    /// connection may never get the entries up to it.
    pub(super) fn take_unapplied(&mut self, now_tick: u64) -> Vec<(R, u64)> {
        let mut late = Vec::new();
        for (index, readers) in &mut self.confirmed {
            let over = readers.partition_point(|r| r.deadline_tick <= now_tick);
            late.extend(readers.drain(..over).map(|r| (r.reader, *index)));
        }
        self.confirmed.retain(|(_, readers)| !readers.is_empty());
        late
    }

    /// Takes all reads.
    pub(super) fn take_all(&mut self) -> Vec<R> {
        let waiting = self.waiting.drain(..);
        let rounds = self.rounds.drain(..).flat_map(|r| r.readers);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, readers)| readers);
        rounds.chain(waiting).chain(confirmed).map(|r| r.reader).collect()
    }
}

/// Splits a context into origin and number.
fn split(context: &[u8]) -> Option<(&[u8], u64)> {
    let (origin, number) = context.split_last_chunk::<8>()?;
    Some((origin, u64::from_be_bytes(*number)))
}

/// The last read round of each peer.
///
/// A repeated round must not reach raft. Raft takes an answered context for a new one and queues it behind later rounds. A
/// late answer to the first sending then confirms those too.
#[derive(Debug, Default)]
pub(super) struct PeerRounds {
    last: BTreeMap<NodeId, (Vec<u8>, u64)>,
}

impl PeerRounds {
    /// Notes a round of a member. `false`: the member sent this round, or a later one, before.
    pub(super) fn note(&mut self, peer: NodeId, context: &[u8]) -> bool {
        let Some((origin, number)) = split(context) else { return false };
        match self.last.get_mut(&peer) {
            Some((known, last)) if known == origin => {
                let is_new = number > *last;
                *last = number.max(*last);
                is_new
            }
            _ => {
                self.last.insert(peer, (origin.to_vec(), number));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: u64 = 10;

    fn reads() -> Reads<&'static str> {
        Reads::new([7; 16])
    }

    impl Reads<&'static str> {
        /// Adds a read, and starts its round.
        fn begin(&mut self, reader: &'static str, deadline: u64, now_tick: u64) -> Vec<u8> {
            self.add(reader, deadline);
            self.start_round(now_tick, RETRY).unwrap()
        }
    }

    #[test]
    fn a_later_round_confirms_the_earlier_ones_and_not_the_other_way_round() {
        let mut reads = reads();
        let first = reads.begin("a", 100, 0);
        let second = reads.begin("b", 100, 0);
        reads.confirm(&first, 5);
        assert_eq!(reads.take_confirmed(5), ["a"]);
        let third = reads.begin("c", 100, 0);
        reads.confirm(&third, 7);
        reads.confirm(&second, 6);
        assert_eq!(reads.take_confirmed(6), Vec::<&str>::new());
        assert_eq!(reads.take_confirmed(7), ["b", "c"]);
    }

    #[test]
    fn two_rounds_start_at_once_and_further_ones_once_a_tick() {
        let mut reads = reads();
        for reader in ["a", "b"] {
            reads.add(reader, 100);
            assert!(reads.start_round(3, RETRY).is_some());
        }
        reads.add("c", 100);
        assert!(reads.start_round(3, RETRY).is_none());
        assert!(reads.start_round(4, RETRY).is_some());
        assert!(reads.start_round(5, RETRY).is_none(), "no read waits for a first round");
    }

    #[test]
    fn rounds_under_way_are_bounded_and_the_rest_waits_while_retries_go_on() {
        let mut reads = reads();
        let mut started = 0;
        for tick in 0..200 {
            reads.add("a", 1_000);
            started += usize::from(reads.start_round(tick, RETRY).is_some());
        }
        assert_eq!((reads.rounds.len(), reads.waiting.len()), (ROUNDS_MAX, 200 - ROUNDS_MAX));
        // One a tick up to the bound, then one each retry interval.
        assert_eq!(started, ROUNDS_MAX + (200 - ROUNDS_MAX) / RETRY as usize);
        let last = reads.start_round(1_000, RETRY).unwrap();
        reads.confirm(&last, 5);
        assert_eq!(reads.take_confirmed(5).len(), ROUNDS_MAX);
        assert!(reads.start_round(1_001, RETRY).is_some());
        assert_eq!((reads.rounds.len(), reads.waiting.len()), (1, 0));
    }

    /// An answer that took longer than the retry interval once confirmed no read: at a round trip of 100 ms every read failed.
    #[test]
    fn an_answer_that_takes_longer_than_many_retries_confirms_the_reads_of_its_round() {
        let mut reads = reads();
        let first = reads.begin("a", 100, 0);
        for tick in 1..=50 {
            assert!(reads.take_unconfirmed(tick).is_empty());
            assert_eq!(reads.start_round(tick, RETRY).is_some(), tick % RETRY == 0, "tick {tick}");
        }
        reads.begin("b", 100, 51);
        reads.confirm(&first, 5);
        assert_eq!(reads.take_confirmed(9), ["a"], "the other one began after that round");
    }

    #[test]
    fn a_retry_confirms_reads_that_began_before_it_and_no_later_ones() {
        let mut reads = reads();
        let lost = reads.begin("a", 100, 0);
        let retry = reads.start_round(RETRY, RETRY).unwrap();
        assert_ne!(lost, retry);
        reads.begin("b", 100, RETRY);
        reads.confirm(&retry, 6);
        assert_eq!(reads.take_confirmed(9), ["a"]);
    }

    #[test]
    fn a_read_fails_at_its_deadline_also_while_a_round_is_under_way() {
        let mut reads = reads();
        let first = reads.begin("a", 50, 0);
        reads.begin("b", 60, 0);
        reads.add("c", 70);
        assert_eq!(reads.take_unconfirmed(49), Vec::<&str>::new());
        assert_eq!(reads.take_unconfirmed(50), ["a"]);
        assert_eq!((reads.rounds.len(), reads.len()), (1, 2));
        reads.confirm(&first, 5);
        assert_eq!(reads.take_confirmed(9), Vec::<&str>::new());
        assert_eq!(reads.take_unconfirmed(70), ["b", "c"]);
        assert_eq!((reads.rounds.len(), reads.len()), (0, 0));
        assert!(reads.start_round(100, RETRY).is_none(), "no read is left to retry for");
    }

    #[test]
    fn a_confirmed_read_keeps_its_deadline_while_it_waits_for_entries() {
        let mut reads = reads();
        reads.add("a", 50);
        let round = reads.begin("b", 100, 0);
        reads.confirm(&round, 7);
        assert_eq!(reads.take_unconfirmed(50), Vec::<&str>::new());
        assert_eq!(reads.take_unapplied(50), [("a", 7)]);
        assert_eq!((reads.take_confirmed(6), reads.len()), (vec![], 1));
        assert_eq!(reads.take_confirmed(7), ["b"]);
    }

    #[test]
    fn a_round_that_never_started_or_of_another_node_confirms_no_read() {
        for changed_byte in [0, 23] {
            let mut reads = reads();
            let mut context = reads.begin("a", 100, 0);
            context[changed_byte] += 1;
            reads.confirm(&context, 5);
            assert!(reads.take_confirmed(9).is_empty());
        }
    }

    #[test]
    fn a_repeated_round_of_a_peer_is_not_new() {
        let peer = |raw| NodeId::new(raw).unwrap();
        let context = |origin: u8, number: u64| [&[origin; 16][..], &number.to_be_bytes()].concat();
        let mut rounds = PeerRounds::default();
        assert!(rounds.note(peer(2), &context(2, 1)) && rounds.note(peer(2), &context(2, 3)));
        assert!(!rounds.note(peer(2), &context(2, 3)) && !rounds.note(peer(2), &context(2, 2)));
        assert!(rounds.note(peer(3), &context(3, 1)), "each peer counts separately");
        assert!(rounds.note(peer(2), &context(9, 1)), "another run counts from the start");
        assert!(!rounds.note(peer(2), b"short"));
    }
}
