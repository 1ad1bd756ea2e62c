//! A leader and a follower behind a slow link.

use std::collections::VecDeque;

use super::*;

/// What the link carries in a tick.
const BYTES_PER_TICK: usize = 100;

/// In ticks.
const HEARTBEAT: usize = 2;

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
    /// Appends are lost without a report while this is set.
    broken: bool,
    /// Appends that came after a lost one.
    gaps: usize,
}

impl Slow {
    fn new() -> Self {
        let line = VecDeque::new();
        Self { line, passed: 0, arrived: 0, bytes: 0, waiting_max: 0, mute: false, broken: false, gaps: 0 }
    }

    fn take(&mut self, message: Message) {
        self.bytes += message.payload_bytes();
        if self.broken {
            return;
        }
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
            let term = message.term;
            let answer = Message { term, ..Message::new(MessageKind::AppendResponse, id(3), id(1)) };
            if message.index > self.arrived {
                self.gaps += 1;
                let (index, reject_hint, log_term) = (message.index, self.arrived, term);
                answers.push(Message { index, reject: true, reject_hint, log_term, ..answer });
                continue;
            }
            let through = message.index + message.entries.len() as u64;
            self.arrived = self.arrived.max(through);
            answers.push(Message { index: through, ..answer });
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
    (setup.replica.append_bytes_max, setup.replica.heartbeat_ticks) = (1_000, HEARTBEAT);
    let mut group = GroupCore::new(setup).unwrap();
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
    assert_eq!(slow.gaps, 0, "nothing was lost");
    assert!(slow.waiting_max <= BYTES_PER_TICK * 20 + 1_000, "{} bytes waited", slow.waiting_max);
    assert!(slow.bytes <= log_bytes * 11 / 10, "{} bytes for {log_bytes}", slow.bytes);
    let least = (log_bytes / BYTES_PER_TICK) as u64;
    assert!(ticks <= least * 12 / 10, "{ticks} ticks, not {least}");
}

/// Raft may send nothing more, and what is under way is lost: nothing else would notice. The leader once sent a message
/// beyond its window instead, up to 32 heartbeat intervals later.
#[test]
fn a_peer_whose_appends_were_lost_without_a_report_is_sent_them_within_two_heartbeats() {
    for heals_after in 0..40 {
        let mut slow = Slow::new();
        let mut group = leader(&mut slow);
        slow.broken = true;
        slow.line.clear();
        for _ in 0..heals_after {
            turn(&mut group, &mut slow);
        }
        slow.broken = false;
        assert!(slow.line.is_empty());
        let wait = sent_after(&mut group, &mut slow);
        let delay = 2 * (BYTES_PER_TICK * 20 + 1_000) / BYTES_PER_TICK;
        assert!(wait <= delay + 2 * HEARTBEAT, "{wait} ticks");
        while slow.arrived < group.last_index() {
            turn(&mut group, &mut slow);
        }
    }
}

/// The same of a probe, which raft repeats only when the peer does not have it.
#[test]
fn a_probe_that_was_lost_without_a_report_is_sent_again_within_two_heartbeats() {
    for heals_after in 0..10 {
        let mut slow = Slow::new();
        let mut group = leader(&mut slow);
        while slow.arrived < group.last_index() {
            turn(&mut group, &mut slow);
        }
        slow.broken = true;
        group.replica.report_unreachable(id(3));
        group.propose(vec![(Bytes::from(vec![7; 900]), 0)], &mut TestEffects::default());
        for _ in 0..heals_after {
            turn(&mut group, &mut slow);
        }
        slow.broken = false;
        let wait = sent_after(&mut group, &mut slow);
        assert!(wait <= 2 * HEARTBEAT + 1, "{wait} ticks");
        while slow.arrived < group.last_index() {
            turn(&mut group, &mut slow);
        }
    }
}

/// The ticks until node 3 is sent entries.
fn sent_after(group: &mut TestGroup, slow: &mut Slow) -> usize {
    let before = slow.bytes;
    let mut sent = |_: &usize| {
        turn(group, slow);
        slow.bytes > before
    };
    (1..10_000).find(|tick| sent(tick)).expect("entries")
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
    group.replica.report_unreachable(id(3));
    let before = slow.bytes;
    for _ in 0..10 {
        group.propose(command(), &mut TestEffects::default());
    }
    for _ in 0..8 {
        turn(&mut group, &mut slow);
    }
    assert!(slow.bytes > before, "a probe was sent");
    assert!(slow.bytes - before <= 1_000, "{} bytes", slow.bytes - before);
    while slow.arrived < group.last_index() {
        turn(&mut group, &mut slow);
    }
}

/// A peer whose answers had been lost for a while got no entry for 50 s after they came again.
#[test]
fn after_a_long_time_without_acknowledgements_a_peer_is_sent_more_within_two_heartbeats() {
    for mute_for in [100, 2_000, 2_001, 2_002, 2_003] {
        let mut slow = Slow::new();
        let mut group = leader(&mut slow);
        slow.mute = true;
        for _ in 0..mute_for {
            turn(&mut group, &mut slow);
        }
        slow.mute = false;
        let wait = sent_after(&mut group, &mut slow);
        let delay = 2 * (BYTES_PER_TICK * 20 + 1_000) / BYTES_PER_TICK;
        assert!(wait <= delay + 2 * HEARTBEAT, "{wait} ticks");
        while slow.arrived < group.last_index() {
            turn(&mut group, &mut slow);
        }
    }
}
