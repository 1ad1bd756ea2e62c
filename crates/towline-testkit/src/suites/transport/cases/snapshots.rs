//! Offers and transfers that get an answer: accepted, already there, refused.

use super::*;
use crate::doubles::{DECIDING, Gate};

const CHUNK: usize = CHUNK_BYTES_MAX;

/// Offers a snapshot from node 1.
pub(super) async fn offer(
    case: &TransportCase,
    host: &ListeningNode,
    snapshot: &TestSnapshot,
) -> Result<OfferAnswer, TransferError> {
    offer_as(case, host.hello(1), host.peer(), snapshot).await
}

pub(super) async fn offer_as(
    case: &TransportCase,
    said: Hello,
    to: Peer,
    snapshot: &TestSnapshot,
) -> Result<OfferAnswer, TransferError> {
    let transport = case.transport(said.from);
    case.within("an answer to an offer", transport.offer(&to, &said, &snapshot.offer, &ProgressCell::new(0)))
        .await
}

/// The offset and the transfer of an offer that must be accepted.
pub(super) async fn accepted(
    case: &TransportCase,
    host: &ListeningNode,
    snapshot: &TestSnapshot,
) -> (u64, Box<dyn Transfer>) {
    match offer(case, host, snapshot).await {
        Ok(OfferAnswer::Accepted { offset, transfer }) => (offset, transfer),
        Ok(other) => case.fail(format_args!("the offer gets {}", name(&other))),
        Err(error) => case.fail(format_args!("the offer gets {}", chain(&error))),
    }
}

fn name(answer: &OfferAnswer) -> String {
    match answer {
        OfferAnswer::Accepted { offset, .. } => format!("Accepted at {offset}"),
        OfferAnswer::AlreadyHave { commit } => format!("AlreadyHave {{ commit: {commit} }}"),
        OfferAnswer::Refused(refusal) => format!("Refused({refusal:?})"),
    }
}

/// Sends all chunks from `offset`, then the trailer.
pub(super) async fn send_all(
    case: &TransportCase,
    mut transfer: Box<dyn Transfer>,
    snapshot: &TestSnapshot,
    offset: u64,
) -> Result<SnapshotReceipt, TransferError> {
    for chunk in snapshot.chunks(offset) {
        case.within("the sending of a chunk", transfer.send(chunk)).await?;
    }
    case.within("an answer to the end of a transfer", transfer.finish(snapshot.trailer)).await
}

/// Whether the transport carries snapshots. If not, `offer` must return `Unsupported`.
pub(in super::super) async fn carries(case: &TransportCase, host: &ListeningNode) -> bool {
    if !case.can.snapshots {
        match offer(case, host, &TestSnapshot::new(1, 1, 10)).await {
            Err(TransferError::Unsupported) => {}
            Err(error) => case.fail(format_args!("a transport without snapshots gives {}", chain(&error))),
            Ok(answer) => case.fail(format_args!("a transport without snapshots gives {}", name(&answer))),
        }
    }
    case.can.snapshots
}

pub(in super::super) async fn an_offer_arrives_unchanged(case: &TransportCase, host: ListeningNode) {
    let snapshot = TestSnapshot::new(u64::MAX, u64::MAX, 10);
    accepted(case, &host, &snapshot).await;
    let (from, came) = host.inbound.look(|log| log.offers[0].clone());
    case.equal("the session's peer", &from, &node(1));
    case.equal("the offer", &came, &snapshot.offer);
    let hellos: Vec<_> = host.inbound.look(|log| log.asked.iter().map(|(h, _)| h.clone()).collect());
    case.equal("what the listener was asked", &hellos, &vec![host.hello(1)]);
}

/// Empty, around the size of a chunk, and large.
pub(in super::super) async fn a_snapshot_of_any_length_arrives_unchanged(
    case: &TransportCase,
    host: ListeningNode,
) {
    for (number, length) in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 8 << 20].into_iter().enumerate() {
        let snapshot = TestSnapshot::new(1, number as u64, length);
        let (offset, transfer) = accepted(case, &host, &snapshot).await;
        case.equal("the offset", &offset, &0);
        let progress = transfer.progress();
        match send_all(case, transfer, &snapshot, 0).await {
            Ok(receipt) => case.equal("the receipt", &receipt, &SnapshotReceipt { commit: 77 }),
            Err(error) => case.fail(format_args!("{length} bytes get {}", chain(&error))),
        }
        let last = progress.now();
        case.hold(last.acked <= length as u64, format_args!("{last:?} of {length} bytes"));
        let dropped = |log: &InboundLog| log.transfers[number].dropped;
        host.until(case, "the drop of the sink", dropped).await;
        host.inbound.look(|log| {
            let came = &log.transfers[number];
            case.hold(
                came.chunks == snapshot.chunks(0).collect::<Vec<_>>(),
                format_args!("chunks of {length} bytes differ"),
            );
            case.equal("the end", &came.trailer, &Some(snapshot.trailer));
        });
    }
    host.until(case, "the end of the sessions", |log| log.sessions == 0).await;
}

pub(in super::super) async fn a_transfer_starts_at_the_offset_the_receiver_names(
    case: &TransportCase,
    host: ListeningNode,
) {
    let snapshot = TestSnapshot::new(1, 1, 3 << 20);
    for (number, offset) in [1, 1 << 20, 3 << 20].into_iter().enumerate() {
        host.inbound.on_offer(move |_| OfferReply::Accept(SinkScript { offset, ..SinkScript::default() }));
        let (named, transfer) = accepted(case, &host, &snapshot).await;
        case.equal("the offset", &named, &offset);
        case.equal("what is acknowledged from the start", &transfer.progress().now().acked, &offset);
        if let Err(error) = send_all(case, transfer, &snapshot, offset).await {
            case.fail(format_args!("a resumed transfer gets {}", chain(&error)));
        }
        host.inbound.look(|log| {
            let came = &log.transfers[number].chunks;
            case.hold(*came == snapshot.chunks(offset).collect::<Vec<_>>(), "chunks after a resume differ");
        });
    }
}

pub(in super::super) async fn already_have_carries_the_commit_index(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.on_offer(|_| OfferReply::AlreadyHave(u64::MAX - 1));
    match offer(case, &host, &TestSnapshot::new(1, 1, 10)).await {
        Ok(OfferAnswer::AlreadyHave { commit }) => case.equal("its commit", &commit, &(u64::MAX - 1)),
        Ok(other) => case.fail(format_args!("it arrived as {}", name(&other))),
        Err(error) => case.fail(format_args!("it arrived as {}", chain(&error))),
    }
    host.until(case, "the end of the session", |log| log.sessions == 0).await;
}

/// One of each kind.
fn refusals() -> Vec<SnapshotRefusal> {
    let detail = || "the reason, ä".to_owned();
    vec![
        SnapshotRefusal::Busy,
        SnapshotRefusal::TooLarge { length: 7, length_max: u64::MAX },
        SnapshotRefusal::WrongNode,
        SnapshotRefusal::StaleTerm { ours: 9, theirs: 8 },
        SnapshotRefusal::Corrupt { detail: detail() },
        SnapshotRefusal::Storage { detail: detail() },
        SnapshotRefusal::NotTaken { detail: detail() },
        SnapshotRefusal::Stalled { millis: 12_345 },
        SnapshotRefusal::Unsupported,
        SnapshotRefusal::Superseded,
    ]
}

pub(in super::super) async fn every_refusal_of_an_offer_arrives_before_any_byte(
    case: &TransportCase,
    host: ListeningNode,
) {
    for refusal in refusals() {
        let ours = refusal.clone();
        host.inbound.on_offer(move |_| OfferReply::Refuse(ours.clone()));
        match offer(case, &host, &TestSnapshot::new(1, 1, 10)).await {
            Ok(OfferAnswer::Refused(came)) => case.equal("the refusal", &came, &refusal),
            Ok(other) => case.fail(format_args!("`{refusal}` arrived as {}", name(&other))),
            Err(error) => case.fail(format_args!("`{refusal}` arrived as {}", chain(&error))),
        }
    }
    host.until(case, "the end of the sessions", |log| log.sessions == 0).await;
    case.equal("transfers that began", &host.inbound.look(|log| log.transfers.len()), &0);
}

/// The sender gets the refusal of the second chunk from `send` or `finish`.
pub(in super::super) async fn every_refusal_of_a_chunk_arrives(case: &TransportCase, host: ListeningNode) {
    for refusal in refusals() {
        let script = SinkScript { refuse: Some((1, refusal.clone())), ..SinkScript::default() };
        refused_by_the_sink(case, &host, script, &refusal).await;
    }
}

pub(in super::super) async fn every_refusal_at_the_end_arrives(case: &TransportCase, host: ListeningNode) {
    for refusal in refusals() {
        let script = SinkScript { outcome: Err(refusal.clone()), ..SinkScript::default() };
        refused_by_the_sink(case, &host, script, &refusal).await;
    }
}

async fn refused_by_the_sink(
    case: &TransportCase,
    host: &ListeningNode,
    script: SinkScript,
    should: &SnapshotRefusal,
) {
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 6 << 20);
    let (_, transfer) = accepted(case, host, &snapshot).await;
    match send_all(case, transfer, &snapshot, 0).await {
        Err(TransferError::Refused(refusal)) => case.equal("the refusal", &refusal, should),
        Err(error) => case.fail(format_args!("`{should}` arrived as {}", chain(&error))),
        Ok(_) => case.fail(format_args!("a transfer that was refused (`{should}`) returns a receipt")),
    }
    let dropped = |log: &InboundLog| log.transfers.iter().all(|transfer| transfer.dropped);
    host.until(case, "the drop of the sink", dropped).await;
}

/// A refused handshake, a wrong peer, and no peer.
pub(in super::super) async fn an_offer_without_a_connection_reports_the_cause(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    let refusal = Refusal::UnknownPeer { peer: 1, founded: Vec::new() };
    let ours = refusal.clone();
    host.inbound.on_admit(move |_, _| Err(ours.clone()));
    match offer(case, &host, &TestSnapshot::new(1, 1, 10)).await {
        Err(TransferError::Connect(ConnectError::Refused(came))) => {
            case.equal("the refusal", &came, &refusal)
        }
        Err(error) => case.fail(format_args!("`{refusal}` arrived as {}", chain(&error))),
        Ok(answer) => case.fail(format_args!("a dialler that was refused gets {}", name(&answer))),
    }
    host.inbound.on_admit(|_, _| Ok(()));
    let wrong = Peer { id: node(3), address: host.address.clone() };
    match offer_as(case, hello(1, 3), wrong, &TestSnapshot::new(1, 1, 10)).await {
        Err(TransferError::Connect(ConnectError::WrongPeer { .. })) => {}
        Err(error) => case.fail(format_args!("the wrong peer is {}", chain(&error))),
        Ok(answer) => case.fail(format_args!("the wrong peer gives {}", name(&answer))),
    }
    host.shut_down(case).await;
    match offer(case, &host, &TestSnapshot::new(1, 1, 10)).await {
        Err(TransferError::Connect(ConnectError::Unreachable { .. })) => {}
        Err(error) => case.fail(format_args!("a missing listener is {}", chain(&error))),
        Ok(answer) => case.fail(format_args!("a missing listener gives {}", name(&answer))),
    }
    case.equal("offers that arrived", &host.inbound.look(|log| log.offers.len()), &0);
}

pub(in super::super) async fn progress_is_readable_while_send_waits(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript { free: 1, ..SinkScript::default() };
    script.write_gate.shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, case.can.transfer_bytes_max + (4 << 20));
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    let progress = transfer.progress();
    let chunks: Vec<_> = snapshot.chunks(0).collect();
    let (first, trailer) = (chunks[0].data.len() as u64, snapshot.trailer);
    let mut sending = tokio::spawn(async move {
        for chunk in chunks {
            transfer.send(chunk).await?;
        }
        transfer.finish(trailer).await
    });
    at_least(case, "the first chunk's acknowledgement", || progress.now().acked >= first).await;
    case.not_yet("the transfer took every chunk from a receiver that reads one", &mut sending).await;
    case.equal("what is acknowledged", &progress.now().acked, &first);
    script.write_gate.open();
    let length = snapshot.body.len() as u64;
    let receipt = case.join("the receipt", sending).await;
    case.hold(receipt.is_ok(), "a transfer that waited fails");
    case.hold(progress.now().acked <= length, "more is acknowledged than was sent");
}

/// Polls until a condition holds.
pub(super) async fn at_least(case: &TransportCase, what: &str, mut is: impl FnMut() -> bool) {
    case.within(what, async {
        while !is() {
            // not synchronisation: poll interval under a deadline
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Only the phase shows the sender that the receiver stores a chunk.
pub(in super::super) async fn the_sender_sees_storing_and_then_receiving(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript { free: 1, ..SinkScript::default() };
    script.write_gate.shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, CHUNK_BYTES_MAX + 10);
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    let progress = transfer.progress();
    for chunk in snapshot.chunks(0) {
        let sent = case.within("the sending of a chunk", transfer.send(chunk)).await;
        case.hold(sent.is_ok(), "a chunk fails");
    }
    let says = |acked: usize, phase| TransferProgress { acked: acked as u64, phase };
    let (stores, receives) =
        (says(CHUNK_BYTES_MAX, TransferPhase::Storing), says(snapshot.body.len(), TransferPhase::Receiving));
    at_least(case, "the phase `Storing`", || progress.now() == stores).await;
    script.write_gate.open();
    at_least(case, "the phase `Receiving`", || progress.now() == receives).await;
    let receipt = case.within("a receipt", transfer.finish(snapshot.trailer)).await;
    case.hold(receipt.is_ok(), "a transfer whose receiver stored fails");
}

pub(in super::super) async fn phases_are_readable_while_finish_waits(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript::default();
    script.phase_gates.iter().for_each(Gate::shut);
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 10);
    let (_, transfer) = accepted(case, &host, &snapshot).await;
    let progress = transfer.progress();
    case.equal("the first phase", &progress.now().phase, &TransferPhase::Receiving);
    let trailer = snapshot.trailer;
    let chunk = snapshot.chunks(0).next().unwrap();
    let finishing = tokio::spawn(async move {
        let mut transfer = transfer;
        transfer.send(chunk).await?;
        transfer.finish(trailer).await
    });
    let phases = [TransferPhase::Verifying, TransferPhase::Syncing, TransferPhase::Stepping];
    for (phase, gate) in phases.into_iter().zip(&script.phase_gates) {
        at_least(case, &format!("the phase {phase:?}"), || progress.now().phase >= phase).await;
        case.equal("the phase", &progress.now().phase, &phase);
        case.equal("what is acknowledged", &progress.now().acked, &10);
        gate.open();
    }
    case.hold(case.join("the receipt", finishing).await.is_ok(), "a transfer with a slow end fails");
}

/// A receiver with a partial file reads it again before it answers.
pub(in super::super) async fn progress_is_readable_while_offer_waits(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.offer_gate.shut();
    let transport = case.transport(node(1));
    let (to, said, deciding) = (host.peer(), host.hello(1), ProgressCell::new(0));
    let cell = deciding.clone();
    let mut offering = tokio::spawn(async move {
        let snapshot = TestSnapshot::new(1, 1, 10);
        transport.offer(&to, &said, &snapshot.offer, &cell).await
    });
    at_least(case, "the progress of the deciding receiver", || deciding.now() == DECIDING).await;
    case.not_yet("`offer` returned before the receiver answered", &mut offering).await;
    host.inbound.offer_gate.open();
    match case.join("an answer to an offer", offering).await {
        Ok(OfferAnswer::Accepted { offset: 0, transfer }) => {
            let first = TransferProgress { acked: 0, phase: TransferPhase::Receiving };
            case.equal("the progress of a new transfer", &transfer.progress().now(), &first);
        }
        Ok(other) => case.fail(format_args!("the offer gets {}", name(&other))),
        Err(error) => case.fail(format_args!("the offer gets {}", chain(&error))),
    }
}

/// Chunks of two groups in turn.
pub(in super::super) async fn concurrent_transfers_do_not_mix(case: &TransportCase, host: ListeningNode) {
    host.inbound.on_offer(|offer| {
        let outcome = Ok(SnapshotReceipt { commit: offer.attempt * 100 });
        OfferReply::Accept(SinkScript { outcome, ..SinkScript::default() })
    });
    let snapshots = [TestSnapshot::new(1, 1, 4 << 20), TestSnapshot::new(2, 2, 4 << 20)];
    let (_, mut first) = accepted(case, &host, &snapshots[0]).await;
    let (_, mut second) = accepted(case, &host, &snapshots[1]).await;
    for (a, b) in snapshots[0].chunks(0).zip(snapshots[1].chunks(0)) {
        let sent = case.within("a chunk of the first", first.send(a)).await;
        case.hold(sent.is_ok(), "the first of two transfers fails");
        let sent = case.within("a chunk of the second", second.send(b)).await;
        case.hold(sent.is_ok(), "the second of two transfers fails");
    }
    for (transfer, snapshot) in [second, first].into_iter().zip(snapshots.iter().rev()) {
        let receipt = case.within("a receipt", transfer.finish(snapshot.trailer)).await;
        let commit = receipt.map(|receipt| receipt.commit).unwrap_or_default();
        case.equal("the receipt", &commit, &(snapshot.offer.attempt * 100));
    }
    host.inbound.look(|log| {
        for (came, snapshot) in log.transfers.iter().zip(&snapshots) {
            case.hold(came.chunks == snapshot.chunks(0).collect::<Vec<_>>(), "the chunks are mixed up");
            case.equal("the end", &came.trailer, &Some(snapshot.trailer));
        }
    });
}

pub(in super::super) async fn finish_waits_for_the_receipt(case: &TransportCase, host: ListeningNode) {
    let script = SinkScript::default();
    script.phase_gates[2].shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 10);
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    let (chunk, trailer) = (snapshot.chunks(0).next().unwrap(), snapshot.trailer);
    let mut finishing = tokio::spawn(async move {
        transfer.send(chunk).await?;
        transfer.finish(trailer).await
    });
    host.until(case, "the end at the receiver", |log| log.transfers[0].trailer.is_some()).await;
    case.not_yet("a receipt came before the receiver finished", &mut finishing).await;
    script.phase_gates[2].open();
    match case.join("the receipt", finishing).await {
        Ok(receipt) => case.equal("the receipt", &receipt, &SnapshotReceipt { commit: 77 }),
        Err(error) => case.fail(format_args!("the end gets {}", chain(&error))),
    }
    case.hold(host.inbound.look(|log| log.transfers[0].finished), "the receiver had not finished");
}
