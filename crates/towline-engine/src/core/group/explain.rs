//! Names the one thing that this node waits for, and, on a leader, each of its peers.
//!
//! Of several causes the first one in the order of [`WaitCause`] is named; `docs/operations.md` has the table. What comes first
//! stops what follows: a disk that hangs keeps a node from voting, a missing quorum keeps entries from being committed.
//! Each must last longer than half of the shortest election timeout. `down` is the driver's: a group out of service has no
//! core.

use std::time::Duration;

use towline_metrics::labels::WaitKind;

use super::{Effects, GroupCore};
use crate::core::explain::{Patience, PeerFacts, Standing};
use crate::explain::{HeardVoter, Wait, WaitCause};
use crate::ids::NodeId;
use crate::message::{ConfState, MessageKind};
use crate::status::Role;
use crate::transport::NackCause;

impl<W, R> GroupCore<W, R> {
    /// Records a message of a peer. A leader counts only answers: a peer that does not hear it asks for votes.
    pub(super) fn note_heard(&mut self, from: NodeId, kind: MessageKind) {
        let answer = matches!(kind, MessageKind::AppendResponse | MessageKind::HeartbeatResponse);
        if (answer || !self.replica.is_leader()) && self.replica.is_member(from) {
            self.facts(from).heard = Some(self.ticks);
        }
    }

    /// Records that a peer refused messages of this group.
    pub(super) fn note_nack(&mut self, peer: NodeId, cause: NackCause) {
        self.facts(peer).refused = Some((self.ticks, Some(cause)));
    }

    /// Records that this node and a peer are not connected because one of them refuses the other. The driver repeats it each
    /// tick while that lasts.
    pub fn note_refusal(&mut self, peer: NodeId) {
        if self.replica.is_member(peer) {
            self.facts(peer).refused = Some((self.ticks, None));
        }
    }

    fn facts(&mut self, peer: NodeId) -> &mut PeerFacts {
        let now = self.ticks;
        self.waits.facts.entry(peer).or_insert_with(|| PeerFacts::new(now))
    }

    /// Called once a tick. Looks for causes once per heartbeat interval. Groups are spread over the ticks.
    pub(super) fn look_for_waits(&mut self, fx: &mut Effects<W, R>) {
        let now = self.ticks;
        if now.wrapping_add(self.id.as_u64()) % self.waits.patience.beat != 0 {
            return;
        }
        let leads = self.replica.is_leader();
        let began = self.waits.lead(leads.then(|| self.replica.term()), now, &mut fx.waits);
        if leads {
            self.look_at_peers(began, fx);
        }
        self.waits.leaderless = match (self.replica.leader(), self.waits.leaderless) {
            (Some(_), _) => None,
            (None, before) => {
                let (since, campaigned) = before.unwrap_or((now, false));
                Some((since, campaigned || self.replica.role() == Role::Candidate))
            }
        };
        let found = self.wait_of_node(leads, began);
        // See `StallNotice`. The lines about the peers tell which voters are missing.
        let logged = match found {
            Some((WaitKind::LogWrite | WaitKind::Apply, _)) => leads,
            // The node itself has a line about its disk, for all groups.
            Some((WaitKind::DiskFull, _)) => self.low_since.is_some(),
            Some((kind, _)) => kind == WaitKind::Redundancy,
            None => false,
        };
        self.waits.stand(found, logged, now, &mut fx.waits);
        if let Some(kinds) = self.waits.changed(now) {
            fx.waiting = Some(kinds);
        }
    }

    fn look_at_peers(&mut self, began: u64, fx: &mut Effects<W, R>) {
        let (now, last, commit) = (self.ticks, self.replica.last_index(), self.replica.commit());
        let Patience { beat, short, long, .. } = self.waits.patience;
        for (peer, _) in self.replica.progress() {
            let facts = self.waits.facts.entry(peer).or_insert_with(|| PeerFacts::new(now));
            let matched = self.replica.matched(peer);
            let lags = facts.log.see(matched, last, now, short);
            // The peer reports its applied index in an answer to a heartbeat. It may have learned the commit index one
            // heartbeat earlier.
            let unapplied = self
                .peers_applied
                .get(&peer)
                .and_then(|&applied| facts.apply.see(applied, matched.min(commit), now, short + 2 * beat));
            let heard = facts.heard.map_or(began, |heard| heard.max(began));
            let refused = facts.refused.is_some_and(|(at, _)| now - at <= long);
            let found = if now - heard > short {
                // A peer that refuses each message, or is refused, sends no other answer.
                Some((if refused { WaitKind::Refused } else { WaitKind::Silent }, heard))
            } else {
                let (attempt, _, backoff) = self.replica.attempts().status(peer);
                match lags {
                    since if attempt.is_some() => Some((WaitKind::Snapshot, since.unwrap_or(now))),
                    since if self.is_peer_low(peer) => Some((WaitKind::DiskFull, since.unwrap_or(now))),
                    Some(since) if refused => Some((WaitKind::Refused, since)),
                    Some(since) if backoff > 0 => Some((WaitKind::Backoff, since)),
                    Some(since) => Some((WaitKind::CatchingUp, since)),
                    None => unapplied.map(|since| (WaitKind::Apply, since)),
                }
            };
            self.waits.stand_peer(peer, found, now, &mut fx.waits);
        }
    }

    fn wait_of_node(&mut self, leads: bool, began: u64) -> Option<(WaitKind, u64)> {
        let (now, Patience { short, votes, .. }) = (self.ticks, self.waits.patience);
        let (commit, last) = (self.replica.commit(), self.replica.last_index());
        let applied = self.replica.log().applied();
        let write_age = self.ages().0;
        let uncommitted = self.waits.commit.see(commit, last, now, short);
        let unapplied = self.waits.apply.see(applied, commit, now, short);
        if write_age > short {
            // A write waits for room before it waits for the disk.
            return Some(match self.low_since {
                Some(since) => (WaitKind::DiskFull, since),
                None => (WaitKind::LogWrite, now - write_age),
            });
        }
        if self.snapshots.installing() {
            return Some((WaitKind::Install, now));
        }
        if let Some((since, campaigned)) = self.waits.leaderless
            && now - since > short
        {
            return Some(match self.quorum_heard() {
                heard if now - heard > votes => (WaitKind::NoQuorum, heard),
                _ if campaigned => (WaitKind::Election, since),
                _ => (WaitKind::NoLeader, since),
            });
        }
        if leads {
            let heard = if self.waits.any_peer() { self.quorum_heard().max(began) } else { now };
            if now - heard > short {
                return Some((WaitKind::NoQuorum, heard));
            }
        }
        if self.low_since.is_some() || leads && self.is_full() {
            return Some((WaitKind::DiskFull, self.low_since.unwrap_or(now)));
        }
        if let Some(since) = uncommitted.filter(|_| leads) {
            return Some((WaitKind::Commit, since));
        }
        if let Some(since) = unapplied {
            return Some((WaitKind::Apply, since));
        }
        if leads && self.replica.transferring() {
            return Some((WaitKind::Transfer, now));
        }
        let since = self.missing_voters().map(|(_, since)| since).min().filter(|_| leads)?;
        Some((WaitKind::Redundancy, since))
    }

    /// The voters without which fewer failures are tolerated, and since when. One that only applies slowly has the log.
    fn missing_voters(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let of_peer = |(peer, standing): (Option<NodeId>, Standing)| {
            peer.filter(|_| standing.kind != WaitKind::Apply).map(|peer| (peer, standing.since))
        };
        self.waits.present(self.ticks).filter_map(of_peer).filter(|(peer, _)| self.replica.is_voter(*peer))
    }

    /// The voters; in a joint configuration those of each half, which both need a quorum.
    fn halves(&self) -> impl Iterator<Item = &[NodeId]> {
        let ConfState { voters, voters_outgoing, .. } = &self.snapshots.conf.conf_state;
        [&voters[..], voters_outgoing].into_iter().filter(|half| !half.is_empty())
    }

    fn heard_at(&self, voter: NodeId) -> Option<u64> {
        self.waits.facts.get(&voter).and_then(|facts| facts.heard)
    }

    /// The latest tick by which a quorum of these voters was heard of. This node hears itself.
    fn quorum_of(&self, half: &[NodeId]) -> u64 {
        let heard = |id: &NodeId| if *id == self.me { self.ticks } else { self.heard_at(*id).unwrap_or(0) };
        let by = |at: &u64| half.iter().filter(|id| heard(id) >= *at).count() >= quorum(half);
        half.iter().map(heard).filter(by).max().unwrap_or(0)
    }

    /// The latest tick by which a quorum, this node included, was heard of.
    fn quorum_heard(&self) -> u64 {
        self.halves().map(|half| self.quorum_of(half)).min().unwrap_or(0)
    }

    /// The one thing that this node waits for, and each peer if this node leads, as of the last heartbeat interval. `tick` is
    /// the length of a tick.
    pub fn explain(&self, tick: Duration) -> Vec<Wait> {
        let time = |ticks: u64| tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
        let present = self.waits.present(self.ticks);
        let wait = |(peer, Standing { kind, since, .. }): (Option<NodeId>, Standing)| {
            let cause = match peer {
                None => self.cause_of_node(kind, &time)?,
                Some(peer) => self.cause_of_peer(peer, kind, &time)?,
            };
            Some(Wait { peer, age: time(self.ticks.saturating_sub(since)), cause })
        };
        present.filter_map(wait).collect()
    }

    /// `None` if the cause has ended since.
    fn cause_of_node(&self, kind: WaitKind, time: &impl Fn(u64) -> Duration) -> Option<WaitCause> {
        let (commit, last) = (self.replica.commit(), self.replica.last_index());
        let (leads, leaderless) = (self.replica.is_leader(), self.replica.leader().is_none());
        Some(match kind {
            WaitKind::LogWrite if self.ages().0 > 0 => WaitCause::LogWrite { last },
            WaitKind::Install => WaitCause::Install { index: self.snapshots.installing_at()? },
            WaitKind::NoQuorum if leads || leaderless => {
                let half = self.halves().min_by_key(|half| self.quorum_of(half))?;
                let heard = |&id: &NodeId| {
                    let heard = self.heard_at(id).map(|at| time(self.ticks.saturating_sub(at)));
                    HeardVoter { id, heard, refused: None }
                };
                let mut voters: Vec<_> = half.iter().filter(|id| **id != self.me).map(heard).collect();
                voters.sort_unstable_by_key(|voter| voter.id);
                WaitCause::NoQuorum { needed: quorum(half), voters }
            }
            WaitKind::Election if leaderless => WaitCause::Election { term: self.replica.term() },
            WaitKind::NoLeader if leaderless => WaitCause::NoLeader,
            WaitKind::Transfer => WaitCause::Transfer { target: self.transfer_target()? },
            WaitKind::DiskFull if leads && self.is_full() => WaitCause::DiskFull { low: self.low_voters() },
            WaitKind::DiskFull if self.low_since.is_some() => WaitCause::DiskFull { low: vec![self.me] },
            WaitKind::Commit if leads && commit < last => WaitCause::Commit { commit, last },
            WaitKind::Apply if self.replica.log().applied() < commit => {
                WaitCause::Apply { applied: self.replica.log().applied(), commit, call: None }
            }
            WaitKind::Redundancy if leads => {
                let missing: Vec<_> = self.missing_voters().map(|(peer, _)| peer).collect();
                let spare = |half: &[NodeId]| {
                    let sound = half.iter().filter(|id| !missing.contains(id)).count();
                    sound.saturating_sub(quorum(half))
                };
                let tolerated = self.halves().map(spare).min()?;
                WaitCause::Redundancy { missing, tolerated }
            }
            _ => return None,
        })
    }

    fn cause_of_peer(
        &self,
        peer: NodeId,
        kind: WaitKind,
        time: &impl Fn(u64) -> Duration,
    ) -> Option<WaitCause> {
        if !self.replica.is_leader() {
            return None;
        }
        let (acked, last) = (self.replica.matched(peer), self.replica.last_index());
        let (attempt, last_attempt, backoff) = self.replica.attempts().status(peer);
        let applied = self.peers_applied.get(&peer).copied().unwrap_or_default();
        let commit = acked.min(self.replica.commit());
        Some(match kind {
            WaitKind::Silent => WaitCause::Silent { acked },
            WaitKind::DiskFull if self.is_peer_low(peer) => WaitCause::DiskFull { low: vec![peer] },
            WaitKind::Refused => {
                let (_, cause) = self.waits.facts.get(&peer)?.refused?;
                WaitCause::Refused { acked, why: cause.map(|cause| cause.to_string().into()) }
            }
            // One follows the other within a heartbeat interval.
            WaitKind::Snapshot | WaitKind::Backoff | WaitKind::CatchingUp => match attempt {
                Some(attempt) => WaitCause::Snapshot { attempt },
                None if acked >= last => return None,
                None if backoff > 0 => WaitCause::Backoff { remaining: time(backoff), last_attempt },
                None => WaitCause::CatchingUp { acked, last },
            },
            WaitKind::Apply if applied < commit => WaitCause::Apply { applied, commit, call: None },
            _ => return None,
        })
    }
}

fn quorum(voters: &[NodeId]) -> usize {
    voters.len() / 2 + 1
}
