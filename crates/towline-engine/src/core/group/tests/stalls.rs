//! A leader whose disk or state machine stands still.

use towline_metrics::labels::WaitKind;

use super::*;
use crate::core::{StallNotice, WaitNotice};
use crate::message::ConfState;
use crate::status::Role;

/// The entry after `last`, which is of the term before.
fn append_at(term: u64, last: u64) -> Message {
    let entries = vec![entry(last + 1, term)];
    Message {
        term,
        index: last,
        log_term: term - 1,
        entries,
        ..Message::new(MessageKind::Append, id(2), id(1))
    }
}

/// Node 1 of a group. A test says whether its disk and its state machine work.
pub(super) struct DrivenNode {
    pub(super) group: GroupCore<u64, u64>,
    /// Writes that are not durable.
    writes: Vec<u64>,
    pub(super) disk_works: bool,
    pub(super) applies: bool,
    /// The last index that the state machine was given.
    handed: u64,
    /// The doubles of the peers.
    pub(super) peers: Vec<DrivenPeer>,
    pub(super) notices: Vec<StallNotice>,
    pub(super) waits: Vec<WaitNotice>,
    pub(super) waiting: Vec<WaitKind>,
    /// The answers to refused proposals.
    pub(super) refused: Vec<ProposeError>,
    sent: Vec<Message>,
}

#[derive(Clone, Copy)]
pub(super) struct DrivenPeer {
    id: NodeId,
    /// Whether its disk takes entries.
    pub(super) appends: bool,
    /// The applied index that it reports. Default: the commit index that it knows.
    pub(super) applied: Option<u64>,
    /// Whether it says that its disk is low.
    pub(super) low: bool,
}

impl DrivenPeer {
    pub(super) fn id(&self) -> NodeId {
        self.id
    }
}

impl DrivenNode {
    pub(super) fn leader(voters: u64) -> Self {
        Self::leads(ConfState { voters: (1..=voters).map(id).collect(), ..ConfState::default() })
    }

    pub(super) fn leads(conf: ConfState) -> Self {
        let mut members = [&conf.voters[..], &conf.voters_outgoing, &conf.learners].concat();
        members.sort_unstable();
        members.dedup();
        let peers = members.into_iter().filter(|peer| *peer != id(1));
        let peers = peers.map(|id| DrivenPeer { id, appends: true, applied: None, low: false }).collect();
        let mut setup = new_setup(1);
        setup.replica.conf_state = conf.clone();
        setup.conf.conf_state = conf;
        let mut node = Self {
            group: GroupCore::new(setup).unwrap(),
            writes: Vec::new(),
            disk_works: true,
            applies: true,
            handed: 0,
            peers,
            notices: Vec::new(),
            waits: Vec::new(),
            waiting: Vec::new(),
            refused: Vec::new(),
            sent: Vec::new(),
        };
        node.ticks(40);
        assert_eq!(node.group.state().role, Role::Leader);
        node
    }

    pub(super) fn propose(&mut self) {
        let mut fx = Effects::default();
        self.group.propose(vec![(Bytes::from_static(b"command"), 1)], &mut fx);
        self.carry_out(fx);
        self.turn();
    }

    pub(super) fn ticks(&mut self, ticks: u64) {
        for _ in 0..ticks {
            let mut fx = Effects::default();
            self.group.tick(&mut fx);
            self.carry_out(fx);
            self.turn();
        }
    }

    /// Polls until nothing is left to do.
    fn turn(&mut self) {
        loop {
            let mut fx = Effects::default();
            if self.disk_works
                && let Some(last) = self.writes.drain(..).next_back()
            {
                self.group.written(last, &mut fx);
            }
            self.group.poll(&mut fx);
            if !self.carry_out(fx) && (self.writes.is_empty() || !self.disk_works) {
                return;
            }
        }
    }

    fn carry_out(&mut self, mut fx: Effects<u64, u64>) -> bool {
        let did = !fx.messages.is_empty() || !fx.apply.is_empty();
        self.notices.append(&mut fx.notices);
        self.waits.append(&mut fx.waits);
        self.refused.extend(fx.refused.drain(..).map(|(_, error)| error));
        self.waiting = fx.waiting.take().unwrap_or_else(|| std::mem::take(&mut self.waiting));
        self.writes.extend(fx.write.take().map(|(number, _)| number));
        for apply in fx.apply.drain(..) {
            if let Apply::Entries { through, .. } = apply {
                self.handed = through.index;
            }
        }
        if self.applies && self.handed > self.group.state().applied {
            self.group.applied(self.handed);
        }
        for message in fx.messages.drain(..) {
            let Some(&peer) = self.peers.iter().find(|peer| peer.id == message.to) else { continue };
            let answer = |kind| Message { term: message.term, ..Message::new(kind, peer.id, id(1)) };
            let answer = match message.kind {
                MessageKind::RequestPreVote => Some(answer(MessageKind::RequestPreVoteResponse)),
                MessageKind::RequestVote => Some(answer(MessageKind::RequestVoteResponse)),
                MessageKind::Append if peer.appends => {
                    let index = message.index + message.entries.len() as u64;
                    Some(Message { index, ..answer(MessageKind::AppendResponse) })
                }
                MessageKind::Heartbeat => {
                    let applied = peer.applied.unwrap_or(message.commit);
                    Some(Message { applied, disk_low: peer.low, ..answer(MessageKind::HeartbeatResponse) })
                }
                _ => None,
            };
            self.sent.push(message);
            if let Some(answer) = answer {
                // A vote may come too late.
                let _ = self.group.step(answer.from, answer);
            }
        }
        did
    }

    /// The peers' disks finish: they have the whole log up to node `through`.
    fn acknowledge(&mut self, through: u64) {
        let (term, index) = (self.group.state().term, self.group.last_index());
        for peer in 2..=through {
            let answer =
                Message { term, index, ..Message::new(MessageKind::AppendResponse, id(peer), id(1)) };
            self.group.step(id(peer), answer).unwrap();
        }
        self.turn();
    }

    /// The targets to which this node has handed over.
    pub(super) fn called(&self) -> Vec<NodeId> {
        self.sent.iter().filter(|m| m.kind == MessageKind::TimeoutNow).map(|m| m.to).collect()
    }

    /// The target of the transfer leads in the next term.
    pub(super) fn new_leader(&mut self, leader: u64) {
        let term = self.group.state().term + 1;
        let heartbeat = Message { term, ..Message::new(MessageKind::Heartbeat, id(leader), id(1)) };
        self.group.step(id(leader), heartbeat).unwrap();
        self.turn();
    }
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_to_the_voter_that_has_the_entry() {
    let mut node = DrivenNode::leader(3);
    node.peers[0].appends = false;
    node.disk_works = false;
    node.propose();
    node.ticks(20);
    assert_eq!((node.called(), &node.notices[..]), (Vec::new(), &[][..]));
    // With one voter that has the entry and one that has not, nothing is committed.
    node.ticks(1);
    assert!(matches!(node.notices[..], [StallNotice::LogStays { .. }]), "{:?}", node.notices);
    assert_eq!(node.group.state().role, Role::Leader);

    let mut node = DrivenNode::leader(3);
    node.disk_works = false;
    node.propose();
    assert_eq!(node.group.state().commit, node.group.last_index(), "the other two commit it");
    node.ticks(10);
    assert_eq!(node.called(), [], "a write of ten ticks is not late");
    node.ticks(2);
    assert!(matches!(node.notices[..], [StallNotice::LogHandsOver { .. }]), "{:?}", node.notices);
    assert_eq!(node.called().len(), 1);
    let target = node.called()[0].as_u64();
    node.new_leader(target);
    assert_eq!(node.group.state().role, Role::Follower);
}

#[test]
fn a_leader_whose_hand_over_fails_steps_down_and_leads_again_once_its_vote_is_durable() {
    let mut node = DrivenNode::leader(3);
    node.disk_works = false;
    node.propose();
    node.ticks(12 + 11);
    assert_eq!(node.group.state().role, Role::Follower, "{:?}", node.notices);
    assert_eq!(node.notices.last(), Some(&StallNotice::LogStepsDown));
    node.sent.clear();
    node.ticks(1_000);
    assert_eq!(node.sent, [], "it neither leads nor asks for votes");
    let term = node.group.state().term;
    let call = Message { term, ..Message::new(MessageKind::TimeoutNow, id(2), id(1)) };
    let heartbeat = Message { term, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    node.group.step(id(2), heartbeat).unwrap();
    assert_eq!(node.group.step(id(2), call), Err(Reject::Stalled));

    // The late write completes at last; the next one, that of the vote, hangs again.
    let mut fx = Effects::default();
    node.group.written(node.writes.drain(..).next_back().unwrap(), &mut fx);
    node.ticks(30);
    assert_eq!((node.group.state().role, node.writes.len()), (Role::Candidate, 1));
    assert!(node.sent.iter().all(|m| m.kind != MessageKind::RequestVote), "its vote is not durable");
    node.disk_works = true;
    node.ticks(30);
    assert_eq!(node.group.state().role, Role::Leader);
}

/// The leader stepped down without a transfer for the second write, although its disk had made progress.
#[test]
fn a_write_that_is_late_after_a_failed_hand_over_leads_to_another_one() {
    let mut node = DrivenNode::leader(3);
    node.disk_works = false;
    node.propose();
    node.ticks(5);
    node.propose();
    node.ticks(7);
    assert_eq!((node.called().len(), node.writes.len()), (1, 2));
    // The first write completes, and no node takes over.
    let first = node.writes.remove(0);
    node.group.written(first, &mut Effects::default());
    // One election timeout until the first transfer has failed, then as long as a write may take.
    node.ticks(10 + 12);
    assert_eq!((node.called().len(), node.group.state().role), (2, Role::Leader), "{:?}", node.notices);
    node.ticks(12);
    assert_eq!(node.notices.last(), Some(&StallNotice::LogStepsDown), "{:?}", node.notices);
}

#[test]
fn leadership_does_not_travel_between_disks_that_are_slow_by_nearly_the_same_time() {
    let mut node = DrivenNode::leader(3);
    for _ in 0..20 {
        node.disk_works = false;
        node.peers.iter_mut().for_each(|peer| peer.appends = false);
        node.propose();
        node.ticks(11);
        // The other disks finish first.
        node.acknowledge(3);
        node.ticks(2);
        node.disk_works = true;
        node.turn();
    }
    assert_eq!((node.called(), node.notices), (Vec::new(), Vec::new()));
}

#[test]
fn a_follower_whose_disk_was_late_campaigns_when_its_leader_is_gone() {
    let mut node = DrivenNode::leader(3);
    node.new_leader(2);
    node.sent.clear();
    node.disk_works = false;
    let (term, last) = (node.group.state().term, node.group.last_index());
    node.group.step(id(2), append_at(term, last)).unwrap();
    node.turn();
    node.ticks(100);
    assert!(node.sent.iter().all(|m| m.kind != MessageKind::RequestVote), "its log is not durable");
    node.disk_works = true;
    node.turn();
    node.ticks(30);
    assert_eq!(node.group.state().role, Role::Leader);
}

#[test]
fn leadership_stays_where_every_disk_is_slow() {
    let mut node = DrivenNode::leader(3);
    node.disk_works = false;
    node.peers.iter_mut().for_each(|peer| peer.appends = false);
    node.propose();
    node.ticks(1_000);
    assert_eq!((node.called(), node.group.state().role), (Vec::new(), Role::Leader));
    assert!(matches!(node.notices[..], [StallNotice::LogStays { .. }]), "said once: {:?}", node.notices);
    node.disk_works = true;
    node.turn();
    node.ticks(1);
    assert_eq!(node.notices.last(), Some(&StallNotice::LogRecovered));
}

#[test]
fn a_sole_voter_stays_leader_however_slow_its_disk_is() {
    let mut node = DrivenNode::leader(1);
    node.disk_works = false;
    node.propose();
    node.ticks(1_000);
    assert_eq!(node.group.state().role, Role::Leader);
    assert!(matches!(node.notices[..], [StallNotice::LogStays { .. }]), "{:?}", node.notices);
}

#[test]
fn a_leader_whose_state_machine_is_stuck_hands_over_to_a_voter_that_is_past_the_command() {
    let mut node = DrivenNode::leader(3);
    node.applies = false;
    let before = node.group.state().applied;
    node.propose();
    // Node 2 is as far as this one, node 3 is past the command.
    node.peers[0].applied = Some(before);
    node.ticks(51);
    assert_eq!(node.called(), [id(3)]);
    assert!(matches!(node.notices[..], [StallNotice::ApplyHandsOver { .. }]), "{:?}", node.notices);
}

#[test]
fn a_command_that_blocks_every_state_machine_moves_no_leadership() {
    let mut node = DrivenNode::leader(3);
    node.applies = false;
    let before = node.group.state().applied;
    node.peers.iter_mut().for_each(|peer| peer.applied = Some(before));
    node.propose();
    node.ticks(1_000);
    assert_eq!((node.called(), node.group.state().role), (Vec::new(), Role::Leader));
    assert!(matches!(node.notices[..], [StallNotice::ApplyStays { .. }]), "said once: {:?}", node.notices);
    node.applies = true;
    node.propose();
    node.ticks(1);
    assert_eq!(node.notices.last(), Some(&StallNotice::ApplyRecovered));
}

#[test]
fn a_slow_state_machine_that_makes_progress_is_not_stuck() {
    let mut node = DrivenNode::leader(3);
    node.applies = false;
    for _ in 0..20 {
        node.propose();
    }
    for _ in 0..20 {
        node.ticks(40);
        let applied = node.group.state().applied;
        node.group.applied((applied + 1).min(node.handed));
    }
    assert_eq!((node.called(), node.notices), (Vec::new(), Vec::new()));
}

#[test]
fn a_leader_knows_what_its_peers_have_applied() {
    let mut node = DrivenNode::leader(3);
    node.propose();
    node.peers[1].applied = Some(1);
    node.ticks(4);
    let applied: Vec<_> = node.group.status().peers.iter().map(|peer| peer.applied).collect();
    assert_eq!(applied, [node.group.last_index(), 1]);
}
