//! Names the one thing that this node waits for, and, on a leader, each of its peers.
//!
//! Of several causes the first one in the order of [`WaitCause`] is named; `docs/operations.md` has the table. What comes first
//! stops what follows: a disk that hangs keeps a node from voting, a missing quorum keeps entries from being committed.
//! Each must last longer than half of the shortest election timeout. `down` is the driver's: a group out of service has no
//! core.

use std::time::Duration;

use towline_metrics::labels::WaitKind;

use super::{Effects, GroupCore};
use crate::core::explain::{Lag, Patience, PeerFacts, Standing};
use crate::explain::{HeardVoter, Wait, WaitCause};
use crate::ids::NodeId;
use crate::status::Role;

impl<W, R> GroupCore<W, R> {
    /// Records a message of a peer.
    pub(super) fn note_heard(&mut self, from: NodeId) {
        if let Some(facts) = self.waits.facts.get_mut(&from) {
            facts.heard = Some(self.ticks);
        } else if self.replica.is_member(from) {
            let facts = PeerFacts { heard: Some(self.ticks), refused: None, lag: Lag::new(self.ticks) };
            self.waits.facts.insert(from, facts);
        }
    }

    /// Records that a peer refused messages of this group.
    pub(super) fn note_refused(&mut self, peer: NodeId) {
        if let Some(facts) = self.waits.facts.get_mut(&peer) {
            facts.refused = Some(self.ticks);
        }
    }

    /// Called once a tick. Looks for causes once per heartbeat interval, each group in a tick of its own.
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
        let (now, last) = (self.ticks, self.replica.last_index());
        let Patience { short, long, .. } = self.waits.patience;
        for (peer, _) in self.replica.progress() {
            let facts = self.waits.facts.entry(peer).or_insert_with(|| PeerFacts {
                heard: None,
                refused: None,
                lag: Lag::new(now),
            });
            let lags = facts.lag.see(self.replica.matched(peer), last, now, short);
            let heard = facts.heard.map_or(began, |heard| heard.max(began));
            let refused = facts.refused.is_some_and(|at| now - at <= long);
            let found = if now - heard > short {
                // A peer that refuses each message sends no other answer.
                Some((if refused { WaitKind::Refused } else { WaitKind::Silent }, heard))
            } else {
                let (attempt, _, backoff) = self.replica.attempts().status(peer);
                match lags {
                    since if attempt.is_some() => Some((WaitKind::Snapshot, since.unwrap_or(now))),
                    since if self.is_peer_low(peer) => Some((WaitKind::DiskFull, since.unwrap_or(now))),
                    Some(since) if refused => Some((WaitKind::Refused, since)),
                    Some(since) if backoff > 0 => Some((WaitKind::Backoff, since)),
                    Some(since) => Some((WaitKind::CatchingUp, since)),
                    None => None,
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
        let missing =
            self.waits.present(now).filter(|(peer, _)| peer.is_some_and(|p| self.replica.is_voter(p)));
        let since = missing.map(|(_, standing)| standing.since).min().filter(|_| leads)?;
        Some((WaitKind::Redundancy, since))
    }

    fn other_voters(&self) -> impl Iterator<Item = NodeId> {
        self.replica.progress().map(|(peer, _)| peer).filter(move |peer| self.replica.is_voter(*peer))
    }

    /// The voters that a quorum needs, this node included.
    fn quorum(&self) -> usize {
        let voters = self.other_voters().count() + usize::from(self.replica.is_voter(self.me));
        voters / 2 + 1
    }

    /// The latest tick by which a quorum, this node included, was heard of.
    fn quorum_heard(&self) -> u64 {
        let heard = |peer| self.waits.facts.get(&peer).and_then(|facts| facts.heard).unwrap_or(0);
        let mut heard: Vec<_> = self.other_voters().map(heard).collect();
        if self.replica.is_voter(self.me) {
            heard.push(self.ticks);
        }
        heard.sort_unstable_by(|a, b| b.cmp(a));
        heard.get(self.quorum() - 1).copied().unwrap_or(0)
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
                let heard = |id| {
                    let heard = self.waits.facts.get(&id).and_then(|facts| facts.heard);
                    HeardVoter { id, heard: heard.map(|at| time(self.ticks.saturating_sub(at))) }
                };
                let mut voters: Vec<_> = self.other_voters().map(heard).collect();
                voters.sort_unstable_by_key(|voter| voter.id);
                WaitCause::NoQuorum { needed: self.quorum(), voters }
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
                let peers = self.waits.present(self.ticks).filter_map(|(peer, _)| peer);
                let missing: Vec<_> = peers.filter(|peer| self.replica.is_voter(*peer)).collect();
                let sound = (self.other_voters().count() + 1).saturating_sub(missing.len());
                WaitCause::Redundancy { tolerated: sound.saturating_sub(self.quorum()), missing }
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
        Some(match kind {
            WaitKind::Silent => WaitCause::Silent { acked },
            WaitKind::Snapshot => WaitCause::Snapshot { attempt: attempt? },
            WaitKind::DiskFull if self.is_peer_low(peer) => WaitCause::DiskFull { low: vec![peer] },
            WaitKind::Refused => WaitCause::Refused { acked },
            WaitKind::Backoff if acked < last => {
                WaitCause::Backoff { remaining: time(backoff), last_attempt }
            }
            WaitKind::CatchingUp if acked < last => WaitCause::CatchingUp { acked, last },
            _ => return None,
        })
    }
}
