//! Read barriers: reads wait for a round of confirmation, many at a time.
//!
//! A round is a unique context that raft sends around with heartbeats. Raft drops it without a word when there is no
//! leader, when the leader has not committed in its term, or when a message is lost; so every round has a time after
//! which its readers move to a new one, and every reader a deadline.

use std::collections::VecDeque;

/// Rounds under way at once. The second one lets reads that arrive during the first start at once rather than wait; more
/// would only add heartbeats.
const ROUNDS_MAX: usize = 2;

/// All reads of a group that are not confirmed yet.
#[derive(Debug)]
pub(super) struct Reads<R> {
    /// Makes contexts unique in the cluster: raft keys rounds by context, also those of followers.
    origin: [u8; 16],
    next_round: u64,
    waiting: VecDeque<Reader<R>>,
    rounds: VecDeque<Round<R>>,
    /// Confirmed at an index that is not handed to the state machine yet.
    confirmed: VecDeque<(u64, Vec<Reader<R>>)>,
}

#[derive(Debug)]
struct Reader<R> {
    reader: R,
    deadline_tick: u64,
}

#[derive(Debug)]
struct Round<R> {
    number: u64,
    retry_tick: u64,
    readers: Vec<Reader<R>>,
}

impl<R> Reads<R> {
    /// `origin` is unique to this node and its run.
    pub(super) fn new(origin: [u8; 16]) -> Self {
        Self {
            origin,
            next_round: 1,
            waiting: VecDeque::new(),
            rounds: VecDeque::new(),
            confirmed: VecDeque::new(),
        }
    }

    pub(super) fn add(&mut self, reader: R, deadline_tick: u64) {
        self.waiting.push_back(Reader { reader, deadline_tick });
    }

    /// Reads that are not answered yet.
    pub(super) fn len(&self) -> usize {
        let rounds: usize = self.rounds.iter().map(|r| r.readers.len()).sum();
        let confirmed: usize = self.confirmed.iter().map(|(_, readers)| readers.len()).sum();
        self.waiting.len() + rounds + confirmed
    }

    /// The context of a new round for everybody who waits, if one may start.
    pub(super) fn start_round(&mut self, retry_tick: u64) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.rounds.len() >= ROUNDS_MAX {
            return None;
        }
        let number = self.next_round;
        self.next_round += 1;
        self.rounds.push_back(Round { number, retry_tick, readers: self.waiting.drain(..).collect() });
        Some([self.origin.as_slice(), &number.to_be_bytes()].concat())
    }

    /// A round came back with an index. It confirms the rounds before it too: their reads came earlier.
    pub(super) fn confirm(&mut self, context: &[u8], index: u64) {
        let Some((origin, number)) = context.split_last_chunk::<8>() else { return };
        if *origin != self.origin {
            return;
        }
        let number = u64::from_be_bytes(*number);
        let mut readers = Vec::new();
        // A round that was given up is not here any more, but its readers are in a later one: confirming only rounds
        // up to this number never answers a read that started after it.
        while self.rounds.front().is_some_and(|r| r.number <= number) {
            readers.extend(self.rounds.pop_front().into_iter().flat_map(|r| r.readers));
        }
        if !readers.is_empty() {
            self.confirmed.push_back((index, readers));
        }
    }

    /// Reads that may be answered once everything up to `handed` is applied.
    pub(super) fn take_confirmed(&mut self, handed: u64) -> Vec<R> {
        let mut ready = Vec::new();
        while self.confirmed.front().is_some_and(|&(index, _)| index <= handed) {
            let confirmed = self.confirmed.pop_front().into_iter().flat_map(|(_, readers)| readers);
            ready.extend(confirmed.map(|r| r.reader));
        }
        ready
    }

    /// Gives up rounds that took too long, so that their readers join the next; returns readers past their deadline.
    pub(super) fn tick(&mut self, now_tick: u64) -> Vec<R> {
        if self.rounds.iter().any(|r| r.retry_tick <= now_tick) {
            for round in self.rounds.drain(..).rev() {
                round.readers.into_iter().rev().for_each(|r| self.waiting.push_front(r));
            }
        }
        let mut late = Vec::new();
        // Deadlines are set in the order of arrival, which `waiting` keeps.
        while self.waiting.front().is_some_and(|r| r.deadline_tick <= now_tick) {
            late.extend(self.waiting.pop_front().map(|r| r.reader));
        }
        // The entries a confirmed read waits for may never come to a node that was cut off meanwhile.
        for (_, readers) in &mut self.confirmed {
            let over = readers.partition_point(|r| r.deadline_tick <= now_tick);
            late.extend(readers.drain(..over).map(|r| r.reader));
        }
        self.confirmed.retain(|(_, readers)| !readers.is_empty());
        late
    }

    /// Readers past their deadline that are confirmed at an index the state machine has not come to. Before
    /// [`tick`](Self::tick), which takes them without their index.
    pub(super) fn take_not_applied(&mut self, now_tick: u64) -> Vec<(R, u64)> {
        let mut late = Vec::new();
        for (index, readers) in &mut self.confirmed {
            let over = readers.partition_point(|r| r.deadline_tick <= now_tick);
            late.extend(readers.drain(..over).map(|r| (r.reader, *index)));
        }
        self.confirmed.retain(|(_, readers)| !readers.is_empty());
        late
    }

    /// Takes everybody.
    pub(super) fn take_all(&mut self) -> Vec<R> {
        let waiting = self.waiting.drain(..);
        let rounds = self.rounds.drain(..).flat_map(|r| r.readers);
        let confirmed = self.confirmed.drain(..).flat_map(|(_, readers)| readers);
        rounds.chain(waiting).chain(confirmed).map(|r| r.reader).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads() -> Reads<&'static str> {
        Reads::new([7; 16])
    }

    #[test]
    fn a_later_round_confirms_the_earlier_ones_and_not_the_other_way_round() {
        let mut reads = reads();
        reads.add("a", 100);
        let first = reads.start_round(10).unwrap();
        reads.add("b", 100);
        let second = reads.start_round(10).unwrap();
        reads.confirm(&first, 5);
        assert_eq!(reads.take_confirmed(5), ["a"]);
        reads.add("c", 100);
        let third = reads.start_round(10).unwrap();
        reads.confirm(&third, 7);
        reads.confirm(&second, 6);
        assert_eq!(reads.take_confirmed(6), Vec::<&str>::new());
        assert_eq!(reads.take_confirmed(7), ["b", "c"]);
    }

    #[test]
    fn rounds_under_way_are_bounded_and_the_rest_waits() {
        let mut reads = reads();
        for reader in ["a", "b"] {
            reads.add(reader, 100);
            assert!(reads.start_round(10).is_some());
        }
        reads.add("c", 100);
        assert!(reads.start_round(10).is_none());
        assert_eq!(reads.len(), 3);
    }

    #[test]
    fn a_lost_round_is_tried_again_until_the_deadline() {
        let mut reads = reads();
        reads.add("a", 100);
        let lost = reads.start_round(10).unwrap();
        assert!(reads.tick(9).is_empty() && reads.start_round(20).is_none());
        assert!(reads.tick(10).is_empty());
        let again = reads.start_round(20).unwrap();
        reads.confirm(&lost, 5);
        assert_eq!(
            reads.take_confirmed(9),
            Vec::<&str>::new(),
            "the round that was given up confirms nobody"
        );
        reads.confirm(&again, 6);
        assert_eq!(reads.take_confirmed(9), ["a"]);
        reads.add("b", 100);
        reads.start_round(110).unwrap();
        assert_eq!(reads.tick(110), ["b"]);
    }

    #[test]
    fn a_confirmed_read_keeps_its_deadline_while_it_waits_for_entries() {
        let mut reads = reads();
        reads.add("a", 50);
        reads.add("b", 100);
        let round = reads.start_round(10).unwrap();
        reads.confirm(&round, 7);
        assert_eq!(reads.tick(50), ["a"]);
        assert_eq!((reads.take_confirmed(6), reads.len()), (vec![], 1));
        assert_eq!(reads.take_confirmed(7), ["b"]);
    }

    #[test]
    fn a_round_of_another_node_confirms_nobody() {
        let mut reads = reads();
        reads.add("a", 100);
        let mut context = reads.start_round(10).unwrap();
        context[0] ^= 1;
        reads.confirm(&context, 5);
        assert!(reads.take_confirmed(9).is_empty());
    }
}
