//! How transfers move, and how they end.

use towline_engine::core::{OfferVerdict, SnapshotSend};
use towline_engine::ids::NodeId;
use towline_engine::message::Message;
use towline_engine::reporter::{SnapshotAttempt, SnapshotFailure, SnapshotTicket};
use towline_engine::snapshot_store::{ContentId, SnapshotMeta};
use towline_engine::transport::SnapshotOffer;

use super::{Arrow, SnapshotSim};

/// One attempt of one run of one node.
pub(super) type Key = (NodeId, u64, SnapshotAttempt);

/// The chunks of a snapshot.
const CHUNKS: u8 = 3;

enum Stage {
    Offer,
    Chunks(u8),
    Durable,
    Answer(bool),
}

/// What the task of a transfer owns.
pub(super) struct Send {
    pub(super) ticket: SnapshotTicket,
    pub(super) message: Message,
    pub(super) meta: SnapshotMeta,
}

pub(super) struct Transfer {
    pub(super) key: Key,
    pub(super) send: Option<Send>,
    stage: Stage,
    receiver_run: u64,
    /// The report is late, perhaps after the end of the attempt.
    slow: bool,
}

/// Decrements a number, and returns whether it was above zero.
fn take_one(left: &mut usize) -> bool {
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

impl Transfer {
    pub(super) fn new(key: Key, send: SnapshotSend, ticket: SnapshotTicket, slow: bool) -> Self {
        let SnapshotSend { message, meta, .. } = send;
        let send = Some(Send { ticket, message, meta });
        Self { key, send, stage: Stage::Offer, receiver_run: 0, slow }
    }
}

impl SnapshotSim {
    /// Advances or ends one transfer.
    pub(super) fn move_a_transfer(&mut self) {
        if self.transfers.is_empty() || self.script.held {
            return;
        }
        let at = self.rng.usize(0..self.transfers.len());
        let (lost, leaked) =
            (self.chance(self.faults.transfer_lost_permille), self.chance(self.faults.leak_permille));
        let mut transfer = self.transfers.swap_remove(at);
        let (sender, to) = (transfer.key.0, transfer.key.2.peer);
        if self.cut.contains(&(sender, to)) && !self.chance(4) {
            return self.transfers.push(transfer); // neither side has noticed yet
        }
        if leaked {
            let Send { ticket, .. } = transfer.send.take().unwrap();
            return std::mem::forget(ticket);
        }
        if lost {
            return; // dropped: the ticket reports
        }
        if transfer.slow && self.chance(800) {
            return self.transfers.push(transfer);
        }
        let send = transfer.send.as_ref().unwrap();
        let (message, meta) = (send.message.clone(), send.meta.clone());
        if matches!(transfer.stage, Stage::Chunks(_)) && !self.readable(sender, &meta) {
            return transfer.send.take().unwrap().ticket.fail(SnapshotFailure::Storage);
        }
        let Some(receiver_run) = self.nodes[&to].up.as_ref().map(|up| up.run) else { return };
        match transfer.stage {
            Stage::Offer if take_one(&mut self.script.lie) => {
                return transfer.send.take().unwrap().ticket.finish();
            }
            Stage::Offer if self.script.voters_alone && !meta.head.conf_state.voters.contains(&to) => {
                return transfer.send.take().unwrap().ticket.fail(SnapshotFailure::Refused { lasting: true });
            }
            Stage::Offer => {
                let content = meta.content;
                let offer = SnapshotOffer { message, meta, attempt: transfer.key.2.number };
                match self.with(to, |group, _| group.offer(sender, &offer)).unwrap() {
                    Err(refusal) => {
                        let cause = SnapshotFailure::Refused { lasting: refusal.is_lasting() };
                        return transfer.send.take().unwrap().ticket.fail(cause);
                    }
                    Ok(OfferVerdict::Have { .. }) => {
                        transfer.stage = Stage::Answer(!self.script.have_is_failure);
                    }
                    Ok(OfferVerdict::Wanted) => {
                        let left = self.begin(to, content);
                        transfer.stage = Stage::Chunks(left);
                    }
                }
                transfer.receiver_run = receiver_run;
            }
            _ if receiver_run != transfer.receiver_run => return, // its connection broke
            Stage::Chunks(0) => {
                self.nodes.get_mut(&to).unwrap().disk.add(meta);
                transfer.stage = Stage::Durable;
                if self.chance(self.faults.install_crash_permille) {
                    self.crash_at(to, Arrow::FileDurable);
                }
            }
            Stage::Chunks(left) => {
                let left = left - 1;
                self.nodes.get_mut(&to).unwrap().disk.partial = Some((meta.content, left));
                if take_one(&mut self.script.break_midway) {
                    return transfer.send.take().unwrap().ticket.fail(SnapshotFailure::Transfer);
                }
                transfer.stage = Stage::Chunks(left);
            }
            Stage::Durable => transfer.stage = Stage::Answer(self.hand_over(sender, to, message, meta)),
            Stage::Answer(true) if take_one(&mut self.script.lose_answers) => return,
            Stage::Answer(taken) => {
                let ticket = transfer.send.take().unwrap().ticket;
                return match taken {
                    true => ticket.finish(),
                    false => ticket.fail(SnapshotFailure::Refused { lasting: false }),
                };
            }
        }
        // A crash of the sender ends the transfer.
        if self.nodes[&sender].up.as_ref().is_some_and(|up| up.run == transfer.key.1) {
            self.transfers.push(transfer);
        }
    }

    /// The number of chunks that the receiver misses.
    fn begin(&mut self, to: NodeId, content: ContentId) -> u8 {
        self.streamed += 1;
        let partial = self.nodes[&to].disk.partial.filter(|&(of, _)| of == content);
        self.resumed += usize::from(partial.is_some());
        partial.map_or(CHUNKS, |(_, left)| left)
    }

    pub(super) fn hand_over(
        &mut self,
        from: NodeId,
        to: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> bool {
        let taken = self.with(to, |group, _| group.receive(from, message, meta));
        if std::mem::take(&mut self.script.close_as_it_receives) {
            self.close(to);
        }
        taken.is_some_and(|taken| taken.is_ok())
    }

    /// Whether the sender can read its file. The file must exist during the transfer, but may rot.
    fn readable(&mut self, sender: NodeId, meta: &SnapshotMeta) -> bool {
        // A volatile state machine needs its file for a restart.
        let rots = self.chance(self.faults.rot_permille) && !self.volatile;
        let disk = &mut self.nodes.get_mut(&sender).unwrap().disk;
        assert!(disk.files.contains(meta), "node {sender} removed a file that it sends");
        if rots && disk.rotten.insert(meta.content) {
            self.rotten += 1;
        }
        !self.nodes[&sender].disk.rotten.contains(&meta.content)
    }
}
