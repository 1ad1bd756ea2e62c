//! A leader, and a follower behind a slow link.

use std::collections::VecDeque;

use super::*;

/// The capacity of the link.
const BYTES_PER_TICK: usize = 100;
const COMMANDS: u64 = 300;
const COMMAND_BYTES: usize = 450;

/// A leader whose appends to node 3 pass a slow link.
struct SlowLink {
    group: TestGroup,
    line: VecDeque<Message>,
    /// Bytes of the first message that have passed.
    passed: usize,
    /// The last index of the log at node 3.
    arrived: u64,
    /// Bytes sent to node 3.
    bytes: usize,
    waiting_max: usize,
    /// Acknowledgements are lost while this is set.
    mute: bool,
    /// Appends are lost without a report while this is set.
    broken: bool,
    /// Appends that came after a lost one.
    gaps: usize,
}

impl SlowLink {
    /// The leader has more to send than the link takes in more than a thousand ticks.
    fn loaded() -> Self {
        let mut setup = new_setup(3);
        setup.replica.append_bytes_max = 1_000;
        let mut group = TestGroup::new(setup);
        group.lead();
        let (line, mute, broken) = (VecDeque::new(), false, false);
        let mut link =
            Self { group, line, passed: 0, arrived: 0, bytes: 0, waiting_max: 0, mute, broken, gaps: 0 };
        for _ in 0..COMMANDS {
            link.group.propose([vec![7; COMMAND_BYTES]]);
            link.turn();
        }
        link
    }

    fn send(&mut self, message: Message) {
        self.bytes += message.payload_bytes();
        if !self.broken {
            self.line.push_back(message);
            self.waiting_max = self.waiting_max.max(self.line.iter().map(Message::payload_bytes).sum());
        }
    }

    /// Returns the answers to what arrives within a tick.
    fn carry(&mut self) -> Vec<Message> {
        self.passed += BYTES_PER_TICK;
        let mut answers = Vec::new();
        while let Some(message) = self.line.front()
            && message.payload_bytes() <= self.passed
            && let Some(message) = self.line.pop_front()
        {
            self.passed -= message.payload_bytes();
            let term = message.term;
            let answer = fixture::message(MessageKind::AppendResponse, 3, term);
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

    /// One tick. Node 2 answers at once. Node 3 answers heartbeats at once, and appends when they have arrived.
    fn turn(&mut self) {
        self.group.tick();
        self.carry().into_iter().for_each(|answer| self.group.deliver(answer));
        loop {
            let messages = self.group.settle().messages;
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let answer = |kind| Message { term: message.term, ..Message::new(kind, message.to, id(1)) };
                match message.kind {
                    MessageKind::Heartbeat => self.group.deliver(answer(MessageKind::HeartbeatResponse)),
                    MessageKind::Append if message.to == id(2) => {
                        let index = message.index + message.entries.len() as u64;
                        self.group.deliver(Message { index, ..answer(MessageKind::AppendResponse) });
                    }
                    MessageKind::Append => self.send(message),
                    _ => {}
                }
            }
        }
    }

    fn turns(&mut self, count: u64) {
        (0..count).for_each(|_| self.turn());
    }

    /// Turns until node 3 has the whole log. Returns their number.
    fn drain(&mut self) -> u64 {
        let mut ticks = 0;
        while self.arrived < self.group.last_index() {
            self.turn();
            ticks += 1;
            assert!(ticks < 10_000, "{} of {} have arrived", self.arrived, self.group.last_index());
        }
        ticks
    }

    /// Asserts that node 3 gets entries within this number of ticks, and then the whole log.
    fn assert_sends_within(&mut self, ticks: u64) {
        let before = self.bytes;
        let sent = (1..10_000).find(|_| {
            self.turn();
            self.bytes > before
        });
        assert!(sent.is_some_and(|tick| tick <= ticks), "{sent:?} ticks");
        self.drain();
    }
}

/// The most bytes that wait for the link: what it carries in two election timeouts, and one message.
const WAITING_MAX: usize = BYTES_PER_TICK * 20 + 1_000;

/// Two delays of an acknowledgement and two heartbeat intervals.
const RECOVERY_TICKS: u64 = (2 * WAITING_MAX / BYTES_PER_TICK) as u64 + 2 * HEARTBEAT;

/// Raft alone had sixteen messages under way, and one more for each heartbeat response: in the end the whole log.
#[test]
fn appends_on_a_slow_link_drain_within_two_election_timeouts_and_are_sent_once() {
    let mut link = SlowLink::loaded();
    let ticks = COMMANDS + link.drain();
    let log_bytes = COMMANDS as usize * COMMAND_BYTES;
    assert_eq!(link.gaps, 0, "nothing was lost");
    assert!(link.waiting_max <= WAITING_MAX, "{} bytes waited", link.waiting_max);
    assert!(link.bytes <= log_bytes * 11 / 10, "{} bytes for {log_bytes}", link.bytes);
    let least = (log_bytes / BYTES_PER_TICK) as u64;
    assert!(ticks <= least * 12 / 10, "{ticks} ticks, not {least}");
}

/// Raft may send nothing more, and nothing reports the loss. Once the next message left up to 32 heartbeat intervals later.
#[test]
fn appends_lost_without_a_report_are_sent_again_within_two_heartbeats() {
    for heals_after in 0..40 {
        let mut link = SlowLink::loaded();
        link.broken = true;
        link.line.clear();
        link.turns(heals_after);
        link.broken = false;
        assert!(link.line.is_empty());
        link.assert_sends_within(RECOVERY_TICKS);
    }
}

/// Raft repeats a probe only if the peer rejects it.
#[test]
fn a_probe_lost_without_a_report_is_sent_again_within_two_heartbeats() {
    for heals_after in 0..10 {
        let mut link = SlowLink::loaded();
        link.drain();
        link.broken = true;
        link.group.replica.report_unreachable(id(3));
        link.group.propose([vec![7; 900]]);
        link.turns(heals_after);
        link.broken = false;
        link.assert_sends_within(2 * HEARTBEAT + 1);
    }
}

/// Raft repeats its probe at each heartbeat response: ten times while the first one is under way.
#[test]
fn a_probe_under_way_on_a_slow_link_is_not_repeated_at_each_heartbeat() {
    let mut link = SlowLink::loaded();
    while !link.line.is_empty() {
        link.turn();
    }
    link.group.replica.report_unreachable(id(3));
    let before = link.bytes;
    (0..10).for_each(|_| link.group.propose([vec![7; 900]]));
    link.turns(8);
    assert!(link.bytes > before, "a probe was sent");
    assert!(link.bytes - before <= 1_000, "{} bytes", link.bytes - before);
    link.drain();
}

/// A peer whose answers had been lost for a while got no entry for 50 s after they came again.
#[test]
fn a_peer_gets_entries_within_two_heartbeats_after_a_long_time_without_acknowledgements() {
    for mute_for in [100, 2_000, 2_001, 2_002, 2_003] {
        let mut link = SlowLink::loaded();
        link.mute = true;
        link.turns(mute_for);
        link.mute = false;
        link.assert_sends_within(RECOVERY_TICKS);
    }
}
