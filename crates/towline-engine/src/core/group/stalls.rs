//! Leadership follows progress: a leader whose disk or state machine stands still hands over to a voter that proves progress.
//! A leader whose disk is low hands over to a voter with room.

use super::{Effects, GroupCore, TRANSFER_LAG_MAX};
use crate::core::explain::Patience;
use crate::core::stall::{DiskRoom, LogState, Moves, StallNotice};
use crate::ids::NodeId;
use crate::message::{Entry, Message, MessageKind};
use crate::state_machine::is_command;
use crate::status::PeerStatus;

impl<W, R> GroupCore<W, R> {
    /// Called once a tick, after raft's own.
    pub(super) fn move_leadership(&mut self, fx: &mut Effects<W, R>) {
        if !self.replica.is_leader() {
            // Clearing an empty map is not free, and each group runs this in each tick.
            if !self.peers_applied.is_empty() || !self.peers_lost.is_empty() || !self.peers_low.is_empty() {
                self.peers_applied.clear();
                self.peers_lost.clear();
                self.peers_low.clear();
            }
            self.stalls.log = LogState::InTime;
            (self.stalls.apply, self.stalls.disk) = (Moves::default(), Moves::default());
            return;
        }
        self.watch_log(fx);
        self.watch_apply(fx);
        self.watch_disk(fx);
    }

    fn watch_log(&mut self, fx: &mut Effects<W, R>) {
        if self.replica.transferring() {
            return;
        }
        let ticks = self.stalls.log_age(self.ticks);
        let outrun = self.stalls.outrun(self.replica.commit(), self.ticks);
        match (self.stalls.log, outrun) {
            (LogState::HandingOver(write), Some((late, _))) if write == late => {
                self.replica.step_down();
                fx.notices.push(StallNotice::LogStepsDown);
            }
            // A write after the one that led to a failed hand-over is a reason for another one.
            (_, Some((write, through))) => {
                if let Some(target) = self.successor(0, |peer| peer.matched >= through) {
                    self.replica.transfer_leader(target);
                    self.stalls.log = LogState::HandingOver(write);
                    fx.notices.push(StallNotice::LogHandsOver { ticks, target });
                }
            }
            (LogState::InTime, None) if self.stalls.is_log_very_late(self.ticks) => {
                self.stalls.log = LogState::Stays;
                fx.notices.push(StallNotice::LogStays { ticks });
            }
            (LogState::Stays | LogState::HandingOver(_), None) if !self.stalls.is_log_late(self.ticks) => {
                self.stalls.log = LogState::InTime;
                fx.notices.push(StallNotice::LogRecovered);
            }
            _ => {}
        }
    }

    fn watch_apply(&mut self, fx: &mut Effects<W, R>) {
        let Some((through, ticks)) = self.stalls.stuck_apply(self.ticks) else {
            if std::mem::take(&mut self.stalls.apply).noted {
                fx.notices.push(StallNotice::ApplyRecovered);
            }
            return;
        };
        let state = self.stalls.apply;
        if self.replica.transferring() || self.ticks < state.retry_at {
            return;
        }
        if let Some(target) = self.successor(u64::from(state.transfers), |peer| peer.applied >= through) {
            self.replica.transfer_leader(target);
            self.stalls.apply.begin(self.ticks, self.apply_retry_ticks);
            fx.notices.push(StallNotice::ApplyHandsOver { ticks, target });
        } else if !state.noted {
            fx.notices.push(StallNotice::ApplyStays { ticks });
        }
        self.stalls.apply.noted = true;
    }

    fn watch_disk(&mut self, fx: &mut Effects<W, R>) {
        if self.low_since.is_none() {
            if std::mem::take(&mut self.stalls.disk).noted {
                fx.notices.push(StallNotice::DiskRecovered);
            }
            return;
        }
        let (now, Patience { beat, long, votes, .. }) = (self.ticks, self.waits.patience);
        let state = &mut self.stalls.disk;
        if state.retry_at == 0 {
            // Disks of equal size fill together. The others must have time to say so.
            state.retry_at = now.saturating_add(long);
        }
        if self.replica.transferring() || now < state.retry_at {
            return;
        }
        let tries = u64::from(state.transfers);
        let target = if self.quorum_has_room() { self.successor(tries, |peer| !peer.disk_low) } else { None };
        let state = &mut self.stalls.disk;
        if let Some(target) = target {
            self.replica.transfer_leader(target);
            state.begin(now, votes);
            fx.notices.push(StallNotice::DiskHandsOver { target });
        } else {
            state.retry_at = now.saturating_add(beat);
            if !state.noted {
                fx.notices.push(StallNotice::DiskStays);
            }
        }
        state.noted = true;
    }

    /// Whether a peer of this leader has said in this term that its disk is low.
    pub(super) fn is_peer_low(&self, peer: NodeId) -> bool {
        self.peers_low.get(&peer) == Some(&self.replica.term())
    }

    /// The voters whose disks are low, as far as this leader knows, in order.
    pub(super) fn low_voters(&self) -> Vec<NodeId> {
        let me = self.low_since.map(|_| self.me);
        let peers = self.peers_low.keys().copied().filter(|&peer| self.is_peer_low(peer));
        let mut low: Vec<_> =
            me.into_iter().chain(peers).filter(|&node| self.replica.is_voter(node)).collect();
        low.sort_unstable();
        low
    }

    /// Whether the voters that answer and have room are a quorum.
    fn quorum_has_room(&self) -> bool {
        let (term, now) = (self.replica.term(), self.ticks);
        self.replica.is_quorum(|node| match node == self.me {
            true => self.low_since.is_none(),
            false => !self.is_peer_low(node) && !self.waits.is_silent(node, term, now),
        })
    }

    /// Whether this leader takes no commands: its disk is low, or low disks leave no quorum with room.
    pub(super) fn is_full(&self) -> bool {
        self.low_since.is_some()
            || !self.peers_low.is_empty() && !self.low_voters().is_empty() && !self.quorum_has_room()
    }

    /// Cuts an append before the first new command. `true`: no entry is left.
    pub(super) fn cut_commands(&self, message: &mut Message) -> bool {
        let here = |entry: &Entry| {
            entry.index <= self.replica.commit() || self.replica.log_term(entry.index) == Some(entry.term)
        };
        // A new leader commits its first entry behind these. Until then no node can read.
        let is_inherited = |entry: &Entry| {
            self.disk_room == DiskRoom::Low && entry.term < message.term && entry.index > message.commit
        };
        let is_append = message.kind == MessageKind::Append && message.term >= self.replica.term();
        let new = message
            .entries
            .iter()
            .position(|entry| is_command(entry) && !here(entry) && !is_inherited(entry));
        let Some(at) = new.filter(|_| is_append) else { return false };
        message.entries.truncate(at);
        at == 0
    }

    /// The voter with the longest log among those that could take over at once and keep `rule`, if possible one with room on
    /// its disk. Of several, each group and each try takes another one.
    fn successor(&self, tries: u64, rule: impl Fn(&PeerStatus) -> bool) -> Option<NodeId> {
        let last = self.replica.last_index();
        let fit = |peer: &PeerStatus| {
            self.replica.is_voter(peer.id)
                && peer.recent_active
                && peer.pending_snapshot == 0
                && last.saturating_sub(peer.matched) <= TRANSFER_LAG_MAX
                && rule(peer)
        };
        let mut peers = self.peers();
        peers.retain(fit);
        let turn = self.id.as_u64().wrapping_add(tries) % (peers.len() as u64).max(1);
        peers.rotate_left(turn as usize);
        peers.into_iter().max_by_key(|peer| (!peer.disk_low, peer.matched)).map(|peer| peer.id)
    }

    /// What this leader knows of its peers.
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let mut peers = self.replica.peers();
        for peer in &mut peers {
            peer.applied = self.peers_applied.get(&peer.id).copied().unwrap_or_default();
            peer.disk_low = self.is_peer_low(peer.id);
            peer.lost = self.peers_lost.get(&peer.id).copied();
        }
        peers
    }

    /// A peer says how far its state machine is, and whether its disk is low. Only the control lane carries these answers, so
    /// they arrive in order.
    pub(super) fn note_answer(&mut self, message: &Message) {
        if message.kind == MessageKind::HeartbeatResponse
            && message.term == self.replica.term()
            && self.replica.is_leader()
        {
            // A peer cannot have applied what this leader does not have.
            let applied = message.applied.min(self.replica.last_index());
            self.peers_applied.insert(message.from, applied);
            match message.disk_low {
                true => self.peers_low.insert(message.from, message.term),
                false => self.peers_low.remove(&message.from),
            };
        }
    }
}
