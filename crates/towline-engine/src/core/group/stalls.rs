//! Leadership follows progress: a leader whose disk or state machine stands still hands over to a voter that proves progress.

use super::{Effects, GroupCore, TRANSFER_LAG_MAX};
use crate::core::stall::{ApplyState, LogState, StallNotice};
use crate::ids::NodeId;
use crate::message::{Message, MessageKind};
use crate::status::PeerStatus;

/// The longest wait between two transfers for the state machine's sake, in first waits.
const APPLY_WAITS_MAX: u32 = 64;

impl<W, R> GroupCore<W, R> {
    /// Called once a tick, after raft's own.
    pub(super) fn move_leadership(&mut self, fx: &mut Effects<W, R>) {
        if !self.replica.is_leader() {
            // Clearing an empty map is not free, and each group runs this in each tick.
            if !self.peers_applied.is_empty() || !self.peers_lost.is_empty() {
                self.peers_applied.clear();
                self.peers_lost.clear();
            }
            self.stalls.log = LogState::InTime;
            self.stalls.apply = ApplyState::default();
            return;
        }
        self.watch_log(fx);
        self.watch_apply(fx);
    }

    fn watch_log(&mut self, fx: &mut Effects<W, R>) {
        if self.replica.transferring() {
            return;
        }
        let ticks = self.stalls.log_age(self.ticks);
        let outrun = self.stalls.outrun(self.replica.commit(), self.ticks);
        match (self.stalls.log, outrun) {
            (LogState::HandingOver, Some(_)) => {
                self.replica.step_down();
                fx.notices.push(StallNotice::LogStepsDown);
            }
            (LogState::InTime | LogState::Stays, Some(through)) => {
                if let Some(target) = self.successor(0, |peer| peer.matched >= through) {
                    self.replica.transfer_leader(target);
                    self.stalls.log = LogState::HandingOver;
                    fx.notices.push(StallNotice::LogHandsOver { ticks, target });
                }
            }
            (LogState::InTime, None) if self.stalls.is_log_very_late(self.ticks) => {
                self.stalls.log = LogState::Stays;
                fx.notices.push(StallNotice::LogStays { ticks });
            }
            (LogState::Stays | LogState::HandingOver, None) if !self.stalls.is_log_late(self.ticks) => {
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
            let waits = u64::from((1 << state.transfers.min(31)).min(APPLY_WAITS_MAX));
            self.stalls.apply.transfers = state.transfers.saturating_add(1);
            self.stalls.apply.retry_at =
                self.ticks.saturating_add(waits.saturating_mul(self.apply_retry_ticks));
            fx.notices.push(StallNotice::ApplyHandsOver { ticks, target });
        } else if !state.noted {
            fx.notices.push(StallNotice::ApplyStays { ticks });
        }
        self.stalls.apply.noted = true;
    }

    /// The voter with the longest log among those that could take over at once and keep `rule`. Of several, each group and
    /// each try takes another one.
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
        peers.into_iter().max_by_key(|peer| peer.matched).map(|peer| peer.id)
    }

    /// What this leader knows of its peers.
    pub(super) fn peers(&self) -> Vec<PeerStatus> {
        let mut peers = self.replica.peers();
        for peer in &mut peers {
            peer.applied = self.peers_applied.get(&peer.id).copied().unwrap_or_default();
            peer.lost = self.peers_lost.get(&peer.id).copied();
        }
        peers
    }

    /// A peer says how far its state machine is. Only the control lane carries it, so the last word is the newest.
    pub(super) fn note_applied(&mut self, message: &Message) {
        if message.kind == MessageKind::HeartbeatResponse
            && message.term == self.replica.term()
            && self.replica.is_leader()
        {
            // A peer cannot have applied what this leader does not have.
            let applied = message.applied.min(self.replica.last_index());
            self.peers_applied.insert(message.from, applied);
        }
    }
}
