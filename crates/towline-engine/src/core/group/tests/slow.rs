//! A leader and a follower behind a slow link.

use std::collections::VecDeque;

use super::*;

/// What the link carries in a tick.
const BYTES_PER_TICK: usize = 100;

const COMMANDS: u64 = 300;
const COMMAND_BYTES: usize = 450;

/// The appends that wait for the link to node 3, and what has arrived of the log there.
struct Slow {
    line: VecDeque<Message>,
    /// Bytes of the first message that have passed.
    passed: usize,
    arrived: u64,
    bytes: usize,
    waiting_max: usize,
    /// Acknowledgements are lost while this is set.
    mute: bool,
}

impl Slow {
    fn new() -> Self {
        Self { line: VecDeque::new(), passed: 0, arrived: 0, bytes: 0, waiting_max: 0, mute: false }
    }

    fn take(&mut self, message: Message) {
        self.bytes += message.payload_bytes();
        self.line.push_back(message);
        self.waiting_max = self.waiting_max.max(self.line.iter().map(Message::payload_bytes).sum());
    }

    /// Gives the answers to what arrives within a tick.
    fn tick(&mut self) -> Vec<Message> {
        self.passed += BYTES_PER_TICK;
        let mut answers = Vec::new();
        while let Some(message) = self.line.front()
            && message.payload_bytes() <= self.passed
            && let Some(message) = self.line.pop_front()
        {
            self.passed -= message.payload_bytes();
            assert!(message.index <= self.arrived, "a gap before {}", message.index + 1);
            let through = message.index + message.entries.len() as u64;
            self.arrived = self.arrived.max(through);
            let answer = Message::new(MessageKind::AppendResponse, id(3), id(1));
            answers.push(Message { term: message.term, index: through, ..answer });
        }
        if self.line.is_empty() {
            self.passed = 0;
        }
        if self.mute { Vec::new() } else { answers }
    }
}

/// Node 2 answers at once; node 3 answers heartbeats at once, and appends when they have arrived.
fn turn(group: &mut TestGroup, slow: &mut Slow) {
    group.tick(&mut TestEffects::default());
    for answer in slow.tick() {
        group.step(id(3), answer).unwrap();
    }
    loop {
        let mut fx = settle(group);
        if fx.messages.is_empty() && fx.apply.is_empty() {
            return;
        }
        for apply in fx.apply.drain(..) {
            if let Apply::Entries { through, .. } = apply {
                group.applied(through.index);
            }
        }
        for message in fx.messages.drain(..) {
            let answer = |kind| Message { term: message.term, ..Message::new(kind, message.to, id(1)) };
            match message.kind {
                MessageKind::Heartbeat => {
                    group.step(message.to, answer(MessageKind::HeartbeatResponse)).unwrap();
                }
                MessageKind::Append if message.to == id(2) => {
                    let index = message.index + message.entries.len() as u64;
                    let taken = Message { index, ..answer(MessageKind::AppendResponse) };
                    group.step(message.to, taken).unwrap();
                }
                MessageKind::Append => slow.take(message),
                _ => {}
            }
        }
    }
}

/// A leader with more to send than the link takes in more than a thousand ticks.
fn leader(slow: &mut Slow) -> TestGroup {
    let mut setup = setup(3, Vec::new());
    setup.replica.append_bytes_max = 1_000;
    let mut group = Group::new(setup).unwrap();
    campaign(&mut group);
    settle(&mut group);
    let grant = Message { term: 1, ..Message::new(MessageKind::RequestVoteResponse, id(2), id(1)) };
    group.step(id(2), grant).unwrap();
    turn(&mut group, slow);
    assert_eq!(group.state().role, crate::status::Role::Leader);
    for waiter in 0..COMMANDS {
        let command = Bytes::from(vec![7; COMMAND_BYTES]);
        group.propose(vec![(command, waiter)], &mut TestEffects::default());
        turn(&mut group, slow);
    }
    group
}

/// Raft alone had sixteen messages under way, and one more for each answer to a heartbeat: in the end all that there was.
#[test]
fn what_is_under_way_over_a_slow_link_is_drained_within_two_election_timeouts_and_sent_once() {
    let mut slow = Slow::new();
    let mut group = leader(&mut slow);
    let mut ticks = COMMANDS;
    while slow.arrived < group.last_index() {
        turn(&mut group, &mut slow);
        ticks += 1;
        assert!(ticks < 5_000, "{} of {} have arrived", slow.arrived, group.last_index());
    }
    let log_bytes = COMMANDS as usize * COMMAND_BYTES;
    assert!(slow.waiting_max <= BYTES_PER_TICK * 20 + 1_000, "{} bytes waited", slow.waiting_max);
    assert!(slow.bytes <= log_bytes * 11 / 10, "{} bytes for {log_bytes}", slow.bytes);
    let least = (log_bytes / BYTES_PER_TICK) as u64;
    assert!(ticks <= least * 12 / 10, "{ticks} ticks, not {least}");
}

/// Without another message there would be no other answer.
#[test]
fn a_peer_whose_acknowledgements_were_lost_is_sent_more_after_a_while() {
    let mut slow = Slow::new();
    let mut group = leader(&mut slow);
    slow.mute = true;
    for _ in 0..100 {
        turn(&mut group, &mut slow);
    }
    slow.mute = false;
    let mut ticks = 0;
    while slow.arrived < group.last_index() {
        turn(&mut group, &mut slow);
        ticks += 1;
        assert!(ticks < 5_000, "{} of {} have arrived", slow.arrived, group.last_index());
    }
}

/// Raft sends its probe again with each answer to a heartbeat: ten times while the first one is under way.
#[test]
fn a_probe_that_is_under_way_over_a_slow_link_is_not_sent_at_each_heartbeat() {
    let mut slow = Slow::new();
    let mut group = leader(&mut slow);
    while !slow.line.is_empty() {
        turn(&mut group, &mut slow);
    }
    let command = || vec![(Bytes::from(vec![7; 900]), 0)];
    crate::reporter::RaftReports::report_unreachable(&mut group.replica, id(3));
    let before = slow.bytes;
    for _ in 0..10 {
        group.propose(command(), &mut TestEffects::default());
    }
    for _ in 0..8 {
        turn(&mut group, &mut slow);
    }
    assert!(slow.bytes > before, "a probe was sent");
    assert!(slow.bytes - before <= 2 * 1_000, "{} bytes", slow.bytes - before);
    while slow.arrived < group.last_index() {
        turn(&mut group, &mut slow);
    }
}

/// The time between two messages beyond a window grew to 512 heartbeat intervals: a peer whose answers had been lost for a
/// while got no entry for 50 s after they came again.
#[test]
fn after_a_long_time_without_acknowledgements_a_peer_is_sent_more_within_forty_heartbeats() {
    let mut slow = Slow::new();
    let mut group = leader(&mut slow);
    let heartbeat_ticks = setup(3, Vec::new()).replica.heartbeat_ticks;
    slow.mute = true;
    for _ in 0..2_000 {
        turn(&mut group, &mut slow);
    }
    slow.mute = false;
    for _ in 0..10 {
        let before = slow.bytes;
        let wait = (1..=40 * heartbeat_ticks).find(|_| {
            turn(&mut group, &mut slow);
            slow.bytes > before || slow.arrived == group.last_index()
        });
        assert!(wait.is_some(), "{} of {} have arrived", slow.arrived, group.last_index());
    }
}
