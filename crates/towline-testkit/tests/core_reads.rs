//! Linearizable reads on a simulated cluster of cores with long round trips or slow disks. A tick is 10 ms, and all settings
//! are the defaults of the engine.

use crate::common::*;
use towline_engine::core::Reject;

const HEARTBEAT: u64 = 10;
const ELECTION_TICKS_MIN: u64 = 100;
const READ_TIMEOUT: u64 = 500;

/// Ticks within which a leader must be elected.
const ELECTION_LIMIT: u64 = 5_000;

/// Ticks of load.
const LOAD: u64 = 1_500;

fn options(delay: u64, sync_steps: u64) -> SimOptions {
    SimOptions {
        net: NetOptions { delay: delay..delay + 1, ..NetOptions::default() },
        heartbeat_ticks: HEARTBEAT as usize,
        election_ticks: ELECTION_TICKS_MIN as usize..2 * ELECTION_TICKS_MIN as usize,
        read_timeout_ticks: READ_TIMEOUT,
        sync_permille: 1_000,
        sync_steps,
        apply_permille: 1_000,
        ..SimOptions::default()
    }
}

/// A cluster of three whose leader is known to all.
fn led(options: SimOptions) -> (Sim, NodeId) {
    let mut sim = Sim::new(1, 3, options).unwrap();
    for _ in 0..ELECTION_LIMIT {
        sim.tick().unwrap();
        let leader = sim.leader();
        let known =
            |id: NodeId| sim.status(id).is_some_and(|s| s.state.leader == leader && s.state.applied > 0);
        if let Some(leader) = leader
            && sim.ids().into_iter().all(known)
        {
            return (sim, leader);
        }
    }
    panic!("no leader");
}

/// Ticks that the reads of a node took.
#[derive(Debug)]
struct Latency {
    mean: f64,
    max: u64,
}

/// A write every third tick and two reads a tick on one node. Every read must succeed; the history checks its value.
fn read_under_load(sim: &mut Sim, leader: NodeId, reader: NodeId) -> Latency {
    let (mut open, mut took): (Vec<(u64, u64)>, Vec<u64>) = (Vec::new(), Vec::new());
    let acked = sim.history().acked_count();
    for tick in 0..LOAD + READ_TIMEOUT {
        if tick < LOAD {
            open.extend((0..2).map(|_| (sim.read(reader).unwrap(), tick)));
            if tick % 3 == 0 {
                sim.propose(leader).unwrap();
            }
        }
        sim.tick().unwrap();
        open.retain(|&(read, since)| match sim.history().read(read) {
            ReadResult::Open => true,
            ReadResult::Saw(_) => {
                took.push(tick - since);
                false
            }
            ReadResult::Failed(error) => panic!("a read of tick {since} failed at tick {tick}: {error}"),
        });
    }
    assert_eq!((open.len(), took.len() as u64), (0, 2 * LOAD));
    let acked = sim.history().acked_count() - acked;
    assert!(acked > LOAD as usize / 4, "{acked} writes of {} were acknowledged", LOAD.div_ceil(3));
    Latency {
        mean: took.iter().sum::<u64>() as f64 / took.len() as f64,
        max: took.into_iter().max().unwrap(),
    }
}

/// Reads at the leader and at a follower, at a round trip given in ticks.
fn read_at_a_distance(delay: u64) {
    let round_trip = 2 * delay;
    let (mut sim, leader) = led(options(delay, 0));
    let follower = sim.ids().into_iter().find(|&id| id != leader).unwrap();
    let at_leader = read_under_load(&mut sim, leader, leader);
    let at_follower = read_under_load(&mut sim, leader, follower);
    // One tick until the round starts, and up to three until the nodes of the simulation take their turns.
    assert!(at_leader.max <= round_trip + 4, "{at_leader:?} at a round trip of {round_trip}");
    assert!(at_follower.max <= 2 * round_trip + 6, "{at_follower:?} at a round trip of {round_trip}");
    assert_eq!(sim.leader(), Some(leader));
}

#[test]
fn reads_take_one_round_trip_at_the_leader_and_two_at_a_follower_20_ms_away() {
    read_at_a_distance(1);
}

/// At a round trip of a heartbeat interval no read succeeded: the readers had begun the next round before the answers of a
/// round arrived.
#[test]
fn reads_take_one_round_trip_at_the_leader_and_two_at_a_follower_100_ms_away() {
    read_at_a_distance(5);
}

#[test]
fn reads_take_one_round_trip_at_the_leader_and_two_at_a_follower_300_ms_away() {
    read_at_a_distance(15);
}

/// The number of open rounds is bounded, so some reads wait for the end of one.
#[test]
fn reads_succeed_at_a_round_trip_of_nearly_an_election_timeout() {
    let (mut sim, leader) = led(options(45, 0));
    let follower = sim.ids().into_iter().find(|&id| id != leader).unwrap();
    let at_leader = read_under_load(&mut sim, leader, leader);
    let at_follower = read_under_load(&mut sim, leader, follower);
    assert!(at_leader.mean <= 1.4 * 90.0 && at_leader.max <= 2 * 90, "{at_leader:?}");
    assert!(at_follower.mean <= 3.0 * 90.0 && at_follower.max <= 4 * 90, "{at_follower:?}");
}

/// A follower's answer to a heartbeat waits for its log writes, and each takes longer than a heartbeat interval.
#[test]
fn reads_succeed_while_every_fsync_takes_longer_than_two_heartbeats() {
    let fsync = 25;
    let (mut sim, leader) = led(options(1, fsync));
    let follower = sim.ids().into_iter().find(|&id| id != leader).unwrap();
    let at_leader = read_under_load(&mut sim, leader, leader);
    let at_follower = read_under_load(&mut sim, leader, follower);
    // The current write and the next one.
    assert!(at_leader.max <= 2 * fsync + 6, "{at_leader:?}");
    // At a follower the read index request waits too, and the entries are applied once they are durable.
    assert!(at_follower.max <= 6 * fsync + 12, "{at_follower:?}");
}

/// The deadline also holds while rounds are retried without an answer.
#[test]
fn reads_without_a_majority_fail_at_their_deadline() {
    let (mut sim, leader) = led(options(5, 0));
    sim.isolate(leader);
    let read = sim.read(leader).unwrap();
    for tick in 0..READ_TIMEOUT {
        assert_eq!(*sim.history().read(read), ReadResult::Open, "at tick {tick}");
        sim.tick().unwrap();
    }
    assert!(matches!(sim.history().read(read), ReadResult::Failed(_)), "{:?}", sim.history().read(read));
}

/// A leader that hears only late answers, while the others have elected another leader, which acknowledged a command. Each test
/// below tries to make the old leader answer a read from its old state.
struct Deposed {
    sim: Sim,
    old: NodeId,
    followers: Vec<NodeId>,
    term: u64,
}

impl Deposed {
    /// `before` happens while the old leader is still the only one.
    fn new<T>(before: impl FnOnce(&mut Sim, NodeId) -> T) -> (Self, T) {
        let (mut sim, old) = led(options(1, 0));
        let term = sim.status(old).unwrap().state.term;
        let followers: Vec<_> = sim.ids().into_iter().filter(|&id| id != old).collect();
        let result = before(&mut sim, old);
        sim.isolate(old);
        let mut deposed = Self { sim, old, followers, term };
        deposed.elect();
        (deposed, result)
    }

    fn elect(&mut self) {
        let mut command = None;
        for _ in 0..ELECTION_LIMIT {
            // Late answers of the old term keep it from stepping down.
            self.answer(0, &[]);
            self.sim.tick().unwrap();
            let new = self.sim.leader().filter(|&id| id != self.old);
            match (new, command) {
                (Some(new), None) => command = Some(self.sim.propose(new).unwrap()),
                (_, Some(c)) if matches!(self.sim.history().proposal(c), ProposalResult::Acked(_)) => return,
                _ => {}
            }
        }
        panic!("no other leader");
    }

    /// Delivers a follower's answer to a heartbeat of the old leader with this context.
    fn answer(&mut self, follower: usize, context: &[u8]) {
        let from = self.followers[follower];
        let answer = Message {
            term: self.term,
            context: context.to_vec().into(),
            ..Message::new(MessageKind::HeartbeatResponse, from, self.old)
        };
        self.sim.deliver(self.old, from, answer).unwrap().unwrap();
    }

    /// Starts a read at the old leader, and its round.
    fn read(&mut self) -> u64 {
        let state = self.sim.status(self.old).unwrap().state;
        assert_eq!(
            (state.term, state.leader),
            (self.term, Some(self.old)),
            "it still takes itself for the leader"
        );
        let read = self.sim.read(self.old).unwrap();
        self.sim.turn(self.old, false).unwrap();
        read
    }

    /// Lets the old leader apply and answer.
    fn settle(&mut self) {
        (0..20).for_each(|_| self.sim.tick().unwrap());
    }
}

/// The newest context of a heartbeat in flight.
fn open_round(sim: &Sim) -> Vec<u8> {
    let carries_a_round = |m: &Message| m.kind == MessageKind::Heartbeat && !m.context.is_empty();
    let newest = sim.in_flight().into_iter().rfind(carries_a_round);
    newest.expect("a round").context.to_vec()
}

#[test]
fn a_late_answer_confirms_the_reads_of_its_round_and_none_that_began_after_it() {
    let (mut deposed, (early, round)) = Deposed::new(|sim, leader| {
        let early = sim.read(leader).unwrap();
        sim.turn(leader, false).unwrap();
        (early, open_round(sim))
    });
    let late = deposed.read();
    deposed.answer(0, &round);
    deposed.settle();
    let history = deposed.sim.history();
    assert!(matches!(history.read(early), ReadResult::Saw(_)), "{:?}", history.read(early));
    assert_eq!(*history.read(late), ReadResult::Open);
}

/// Raft took an answered context for a new round when it arrived again. A late answer to the first one then confirmed every read
/// that had begun in between.
#[test]
fn a_round_that_a_follower_asks_for_twice_confirms_no_read_that_began_in_between() {
    let (mut deposed, question) = Deposed::new(|sim, leader| {
        let follower = sim.ids().into_iter().find(|&id| id != leader).unwrap();
        let early = sim.read(follower).unwrap();
        sim.turn(follower, false).unwrap();
        let mut sent = sim.in_flight().into_iter().filter(|m| m.kind == MessageKind::ReadIndex);
        let question = sent.next().expect("the request in flight");
        while *sim.history().read(early) == ReadResult::Open {
            sim.tick().unwrap();
        }
        question
    });
    let late = deposed.read();
    let asked_again = deposed.sim.deliver(deposed.old, question.from, question.clone()).unwrap();
    deposed.answer(1, &question.entries[0].data);
    deposed.settle();
    assert_eq!(*deposed.sim.history().read(late), ReadResult::Open);
    assert_eq!(asked_again, Err(Reject::RepeatedRound));
}
