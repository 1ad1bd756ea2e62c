//! Snapshot transfers that are answered: taken, had already, refused.

use towline_engine::transport::{
    CHUNK_BYTES_MAX, Hello, OfferAnswer, Peer, ProgressCell, Refusal, SnapshotReceipt, SnapshotRefusal,
    Transfer, TransferError, TransferPhase, TransferProgress,
};

use super::super::bench::{Bench, chain, hello, node, run};
use super::super::engine::{Answer, DECIDING, Host};
use super::super::spool::{Parcel, SpoolScript};
use super::Fixture;

/// Offers a parcel to a host, as its sender.
pub(super) async fn offer(bench: &Bench, host: &Host, parcel: &Parcel) -> Result<OfferAnswer, TransferError> {
    offer_as(bench, hello(1, host.node), host.peer(), parcel).await
}

pub(super) async fn offer_as(
    bench: &Bench,
    said: Hello,
    to: Peer,
    parcel: &Parcel,
) -> Result<OfferAnswer, TransferError> {
    let transport = bench.transport(said.from);
    bench
        .within("an answer to an offer", transport.offer(&to, &said, &parcel.offer, &ProgressCell::new(0)))
        .await
}

/// An offer that is accepted.
pub(super) async fn accepted(bench: &Bench, host: &Host, parcel: &Parcel) -> (u64, Box<dyn Transfer>) {
    match offer(bench, host, parcel).await {
        Ok(OfferAnswer::Accepted { offset, transfer }) => (offset, transfer),
        Ok(other) => bench.fail(format_args!("an offer that is welcome gets {}", name(&other))),
        Err(error) => bench.fail(format_args!("an offer that is welcome gets {}", chain(&error))),
    }
}

fn name(answer: &OfferAnswer) -> String {
    match answer {
        OfferAnswer::Accepted { offset, .. } => format!("Accepted at {offset}"),
        OfferAnswer::AlreadyHave { commit } => format!("AlreadyHave {{ commit: {commit} }}"),
        OfferAnswer::Refused(refusal) => format!("Refused({refusal:?})"),
    }
}

/// Sends all chunks from `offset` on, then the end.
pub(super) async fn send_all(
    bench: &Bench,
    mut transfer: Box<dyn Transfer>,
    parcel: &Parcel,
    offset: u64,
) -> Result<SnapshotReceipt, TransferError> {
    for chunk in parcel.chunks(offset) {
        bench.within("the sending of a chunk", transfer.send(chunk)).await?;
    }
    bench.within("an answer to the end of a transfer", transfer.finish(parcel.trailer)).await
}

/// Whether the transport carries snapshots; if not, it must say so.
pub(super) async fn carries(bench: &Bench) -> bool {
    if !bench.can.snapshots {
        let host = bench.host().await;
        match offer(bench, &host, &Parcel::new(1, 1, 10)).await {
            Err(TransferError::Unsupported) => {}
            Err(error) => bench.fail(format_args!("a transport without snapshots gives {}", chain(&error))),
            Ok(answer) => bench.fail(format_args!("a transport without snapshots gives {}", name(&answer))),
        }
    }
    bench.can.snapshots
}

/// Message, place, membership, length, content and attempt, from the peer that passed the handshake.
pub fn the_offer_arrives_equal(fixture: Fixture) {
    run(fixture, "an offer reaches the peer's session as it was made", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let parcel = Parcel::new(u64::MAX, u64::MAX, 10);
        accepted(bench, &host, &parcel).await;
        let (from, came) = host.engine.look(|log| log.offers[0].clone());
        bench.equal("the session's peer", &from, &node(1));
        bench.equal("the offer", &came, &parcel.offer);
        let hellos: Vec<_> = host.engine.look(|log| log.asked.iter().map(|(h, _)| h.clone()).collect());
        bench.equal("what the listener was asked", &hellos, &vec![hello(1, host.node)]);
    });
}

/// Around the size of a chunk, empty, and large: bytes, order, checksums, end and receipt.
pub fn a_snapshot_of_any_length_arrives_equal(fixture: Fixture) {
    const C: usize = CHUNK_BYTES_MAX;
    run(fixture, "a transfer gives the receiver every chunk in order, then the end", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        for (number, length) in [0, 1, C - 1, C, C + 1, 3 * C, 8 << 20].into_iter().enumerate() {
            let parcel = Parcel::new(1, number as u64, length);
            let (offset, transfer) = accepted(bench, &host, &parcel).await;
            bench.equal("the offset", &offset, &0);
            let progress = transfer.progress();
            match send_all(bench, transfer, &parcel, 0).await {
                Ok(receipt) => bench.equal("the receipt", &receipt, &SnapshotReceipt { commit: 77 }),
                Err(error) => bench.fail(format_args!("{length} bytes get {}", chain(&error))),
            }
            let last = progress.now();
            bench.hold(last.acked <= length as u64, format_args!("{last:?} of {length} bytes"));
            let let_go = |log: &super::super::engine::Log| log.transfers[number].gone;
            host.engine.until(bench, "the sink to be let go", let_go).await;
            host.engine.look(|log| {
                let came = &log.transfers[number];
                bench.hold(
                    came.chunks == parcel.chunks(0).collect::<Vec<_>>(),
                    format_args!("chunks of {length} bytes differ"),
                );
                bench.equal("the end", &came.trailer, &Some(parcel.trailer));
            });
        }
        host.engine.until(bench, "the end of the sessions", |log| log.sessions == 0).await;
    });
}

/// The receiver has a prefix already.
pub fn a_transfer_starts_at_the_offset_the_receiver_names(fixture: Fixture) {
    run(fixture, "`Accepted` carries the offset the receiver wants to start at", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let parcel = Parcel::new(1, 1, 3 << 20);
        for (number, offset) in [1, 1 << 20, 3 << 20].into_iter().enumerate() {
            host.engine.answers(move |_| Answer::Accept(SpoolScript { offset, ..SpoolScript::default() }));
            let (named, transfer) = accepted(bench, &host, &parcel).await;
            bench.equal("the offset", &named, &offset);
            bench.equal("what is acknowledged from the start", &transfer.progress().now().acked, &offset);
            if let Err(error) = send_all(bench, transfer, &parcel, offset).await {
                bench.fail(format_args!("a resumed transfer gets {}", chain(&error)));
            }
            host.engine.look(|log| {
                let came = &log.transfers[number].chunks;
                bench
                    .hold(*came == parcel.chunks(offset).collect::<Vec<_>>(), "chunks after a resume differ");
            });
        }
    });
}

/// A success without a byte.
pub fn already_having_it_is_an_answer(fixture: Fixture) {
    run(fixture, "`AlreadyHave` carries the receiver's commit index", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        host.engine.answers(|_| Answer::AlreadyHave(u64::MAX - 1));
        match offer(bench, &host, &Parcel::new(1, 1, 10)).await {
            Ok(OfferAnswer::AlreadyHave { commit }) => bench.equal("its commit", &commit, &(u64::MAX - 1)),
            Ok(other) => bench.fail(format_args!("it arrived as {}", name(&other))),
            Err(error) => bench.fail(format_args!("it arrived as {}", chain(&error))),
        }
        host.engine.until(bench, "the end of the session", |log| log.sessions == 0).await;
    });
}

/// One of each.
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

/// Before any payload.
pub fn every_refusal_of_an_offer_arrives_as_itself_before_a_byte(fixture: Fixture) {
    run(fixture, "a refused offer is `OfferAnswer::Refused` with the receiver's reason", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        for refusal in refusals() {
            let ours = refusal.clone();
            host.engine.answers(move |_| Answer::Refuse(ours.clone()));
            match offer(bench, &host, &Parcel::new(1, 1, 10)).await {
                Ok(OfferAnswer::Refused(came)) => bench.equal("the refusal", &came, &refusal),
                Ok(other) => bench.fail(format_args!("`{refusal}` arrived as {}", name(&other))),
                Err(error) => bench.fail(format_args!("`{refusal}` arrived as {}", chain(&error))),
            }
        }
        host.engine.until(bench, "the end of the sessions", |log| log.sessions == 0).await;
        bench.equal("transfers that began", &host.engine.look(|log| log.transfers.len()), &0);
    });
}

/// The receiver refuses the second chunk; the sender hears why in `send` or in `finish`.
pub fn every_refusal_midway_arrives_as_itself(fixture: Fixture) {
    run(
        fixture,
        "a receiver that gives up midway is `TransferError::Refused` with its reason",
        async |bench| {
            if !carries(bench).await {
                return;
            }
            let host = bench.host().await;
            for refusal in refusals() {
                let script = SpoolScript { refuse: Some((1, refusal.clone())), ..SpoolScript::default() };
                refused_by_the_sink(bench, &host, script, &refusal).await;
            }
        },
    );
}

/// The receiver has every byte and refuses then.
pub fn every_refusal_at_the_end_arrives_as_itself(fixture: Fixture) {
    run(
        fixture,
        "a receiver that could not take it is `TransferError::Refused` with its reason",
        async |bench| {
            if !carries(bench).await {
                return;
            }
            let host = bench.host().await;
            for refusal in refusals() {
                let script = SpoolScript { outcome: Err(refusal.clone()), ..SpoolScript::default() };
                refused_by_the_sink(bench, &host, script, &refusal).await;
            }
        },
    );
}

async fn refused_by_the_sink(bench: &Bench, host: &Host, script: SpoolScript, should: &SnapshotRefusal) {
    host.engine.answers(move |_| Answer::Accept(script.clone()));
    let parcel = Parcel::new(1, 1, 6 << 20);
    let (_, transfer) = accepted(bench, host, &parcel).await;
    match send_all(bench, transfer, &parcel, 0).await {
        Err(TransferError::Refused(refusal)) => bench.equal("the refusal", &refusal, should),
        Err(error) => bench.fail(format_args!("`{should}` arrived as {}", chain(&error))),
        Ok(_) => bench.fail(format_args!("a transfer that was refused (`{should}`) passes for finished")),
    }
    let let_go = |log: &super::super::engine::Log| log.transfers.iter().all(|transfer| transfer.gone);
    host.engine.until(bench, "the sink to be let go", let_go).await;
}

/// The peer does not let the sender in at all; and there is no peer.
pub fn a_handshake_refused_is_the_cause_of_a_failed_offer(fixture: Fixture) {
    use towline_engine::transport::ConnectError;
    run(fixture, "an offer without a connection is `TransferError::Connect` with the cause", async |bench| {
        if !carries(bench).await {
            return;
        }
        let mut host = bench.host().await;
        let refusal = Refusal::UnknownPeer { peer: 1 };
        let ours = refusal.clone();
        host.engine.admits(move |_, _| Err(ours.clone()));
        match offer(bench, &host, &Parcel::new(1, 1, 10)).await {
            Err(TransferError::Connect(ConnectError::Refused(came))) => {
                bench.equal("the refusal", &came, &refusal)
            }
            Err(error) => bench.fail(format_args!("`{refusal}` arrived as {}", chain(&error))),
            Ok(answer) => bench.fail(format_args!("a dialler that was refused gets {}", name(&answer))),
        }
        host.engine.admits(|_, _| Ok(()));
        let wrong = Peer { id: node(3), address: host.address.clone() };
        match offer_as(bench, hello(1, node(3)), wrong, &Parcel::new(1, 1, 10)).await {
            Err(TransferError::Connect(ConnectError::WrongPeer { .. })) => {}
            Err(error) => bench.fail(format_args!("the wrong peer is {}", chain(&error))),
            Ok(answer) => bench.fail(format_args!("the wrong peer gives {}", name(&answer))),
        }
        host.shut_down(bench).await;
        match offer(bench, &host, &Parcel::new(1, 1, 10)).await {
            Err(TransferError::Connect(ConnectError::Unreachable { .. })) => {}
            Err(error) => bench.fail(format_args!("nobody there is {}", chain(&error))),
            Ok(answer) => bench.fail(format_args!("nobody there gives {}", name(&answer))),
        }
        bench.equal("offers that arrived", &host.engine.look(|log| log.offers.len()), &0);
    });
}

/// The receiver takes one chunk and is then slow.
pub fn progress_is_readable_while_send_waits(fixture: Fixture) {
    run(fixture, "`progress` is current, also while `send` waits", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript { free: 1, ..SpoolScript::default() };
        script.writes.shut();
        let gate = script.writes.clone();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, bench.can.transfer_bytes_max + (4 << 20));
        let (_, mut transfer) = accepted(bench, &host, &parcel).await;
        let progress = transfer.progress();
        let chunks: Vec<_> = parcel.chunks(0).collect();
        let (first, trailer) = (chunks[0].data.len() as u64, parcel.trailer);
        let mut sending = tokio::spawn(async move {
            for chunk in chunks {
                transfer.send(chunk).await?;
            }
            transfer.finish(trailer).await
        });
        at_least(bench, "the first chunk's acknowledgement", || progress.now().acked >= first).await;
        bench.not_yet("every chunk was taken that nobody read", &mut sending).await;
        bench.equal("what is acknowledged", &progress.now().acked, &first);
        gate.open();
        let length = parcel.body.len() as u64;
        let receipt = bench.join("the receipt", sending).await;
        bench.hold(receipt.is_ok(), "a transfer that waited fails");
        bench.hold(progress.now().acked <= length, "more is acknowledged than was sent");
    });
}

/// Waits for what has no event.
pub(super) async fn at_least(bench: &Bench, what: &str, mut is: impl FnMut() -> bool) {
    bench
        .within(what, async {
            while !is() {
                // not synchronisation: between two looks of the loop
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
}

/// The receiver is held in one chunk, says so, and takes it then. It has no other word of that than its phase.
pub fn a_receiver_that_stores_for_long_is_heard_of_and_that_it_receives_again(fixture: Fixture) {
    run(fixture, "a receiver goes back and forth between receiving and storing", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript { free: 1, ..SpoolScript::default() };
        script.writes.shut();
        let gate = script.writes.clone();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, CHUNK_BYTES_MAX + 10);
        let (_, mut transfer) = accepted(bench, &host, &parcel).await;
        let progress = transfer.progress();
        for chunk in parcel.chunks(0) {
            let sent = bench.within("the sending of a chunk", transfer.send(chunk)).await;
            bench.hold(sent.is_ok(), "a chunk fails");
        }
        let says = |acked: usize, phase| TransferProgress { acked: acked as u64, phase };
        let (stores, receives) = (
            says(CHUNK_BYTES_MAX, TransferPhase::Storing),
            says(parcel.body.len(), TransferPhase::Receiving),
        );
        at_least(bench, "the phase of a receiver that stores", || progress.now() == stores).await;
        gate.open();
        at_least(bench, "the phase of one that receives again", || progress.now() == receives).await;
        let receipt = bench.within("a receipt", transfer.finish(parcel.trailer)).await;
        bench.hold(receipt.is_ok(), "a transfer whose receiver stored fails");
    });
}

/// The receiver is held in each phase of ending it.
pub fn phases_are_readable_while_finish_waits(fixture: Fixture) {
    run(fixture, "while a receiver finishes, the transport keeps sending progress", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript::default();
        let gates = script.phases.clone();
        gates.iter().for_each(super::super::engine::Gate::shut);
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, 10);
        let (_, transfer) = accepted(bench, &host, &parcel).await;
        let progress = transfer.progress();
        bench.equal("the first phase", &progress.now().phase, &TransferPhase::Receiving);
        let trailer = parcel.trailer;
        let chunk = parcel.chunks(0).next().unwrap();
        let finishing = tokio::spawn(async move {
            let mut transfer = transfer;
            transfer.send(chunk).await?;
            transfer.finish(trailer).await
        });
        let phases = [TransferPhase::Verifying, TransferPhase::Syncing, TransferPhase::Stepping];
        for (phase, gate) in phases.into_iter().zip(gates) {
            at_least(bench, &format!("the phase {phase:?}"), || progress.now().phase >= phase).await;
            bench.equal("the phase", &progress.now().phase, &phase);
            bench.equal("what is acknowledged", &progress.now().acked, &10);
            gate.open();
        }
        bench.hold(bench.join("the receipt", finishing).await.is_ok(), "a slow end fails");
    });
}

/// The receiver has to read again what it has of the snapshot before it can say where to go on.
pub fn a_receiver_that_decides_for_long_is_heard_of(fixture: Fixture) {
    run(
        fixture,
        "while a receiver decides on an offer, the transport keeps `deciding` current",
        async |bench| {
            if !carries(bench).await {
                return;
            }
            let host = bench.host().await;
            host.engine.offers.shut();
            let transport = bench.transport(node(1));
            let (to, said, deciding) = (host.peer(), hello(1, host.node), ProgressCell::new(0));
            let cell = deciding.clone();
            let mut offering = tokio::spawn(async move {
                let parcel = Parcel::new(1, 1, 10);
                transport.offer(&to, &said, &parcel.offer, &cell).await
            });
            at_least(bench, "the phase of a receiver that decides", || deciding.now() == DECIDING).await;
            bench.not_yet("an answer that the receiver has not given", &mut offering).await;
            host.engine.offers.open();
            match bench.join("an answer to an offer", offering).await {
                Ok(OfferAnswer::Accepted { offset: 0, transfer }) => {
                    let first = TransferProgress { acked: 0, phase: TransferPhase::Receiving };
                    bench.equal("the progress of a transfer that begins", &transfer.progress().now(), &first);
                }
                Ok(other) => bench.fail(format_args!("an offer that is welcome gets {}", name(&other))),
                Err(error) => bench.fail(format_args!("an offer that is welcome gets {}", chain(&error))),
            }
        },
    );
}

/// Of two groups, chunk by chunk in turn.
pub fn two_transfers_at_once_do_not_mix(fixture: Fixture) {
    run(fixture, "a transfer is a stream of its own", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        host.engine.answers(|offer| {
            let outcome = Ok(SnapshotReceipt { commit: offer.attempt * 100 });
            Answer::Accept(SpoolScript { outcome, ..SpoolScript::default() })
        });
        let parcels = [Parcel::new(1, 1, 4 << 20), Parcel::new(2, 2, 4 << 20)];
        let (_, mut first) = accepted(bench, &host, &parcels[0]).await;
        let (_, mut second) = accepted(bench, &host, &parcels[1]).await;
        for (a, b) in parcels[0].chunks(0).zip(parcels[1].chunks(0)) {
            let sent = bench.within("a chunk of the first", first.send(a)).await;
            bench.hold(sent.is_ok(), "the first of two transfers fails");
            let sent = bench.within("a chunk of the second", second.send(b)).await;
            bench.hold(sent.is_ok(), "the second of two transfers fails");
        }
        for (transfer, parcel) in [second, first].into_iter().zip(parcels.iter().rev()) {
            let receipt = bench.within("a receipt", transfer.finish(parcel.trailer)).await;
            let commit = receipt.map(|receipt| receipt.commit).unwrap_or_default();
            bench.equal("the receipt", &commit, &(parcel.offer.attempt * 100));
        }
        host.engine.look(|log| {
            for (came, parcel) in log.transfers.iter().zip(&parcels) {
                bench.hold(came.chunks == parcel.chunks(0).collect::<Vec<_>>(), "the chunks are mixed up");
                bench.equal("the end", &came.trailer, &Some(parcel.trailer));
            }
        });
    });
}

/// Not when the bytes are on their way, and not when they are there.
pub fn a_receipt_comes_only_after_the_receiver_has_it(fixture: Fixture) {
    run(fixture, "`finish` waits until the peer has it durable, verified and taken by Raft", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript::default();
        let last = script.phases[2].clone();
        last.shut();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, 10);
        let (_, mut transfer) = accepted(bench, &host, &parcel).await;
        let (chunk, trailer) = (parcel.chunks(0).next().unwrap(), parcel.trailer);
        let mut finishing = tokio::spawn(async move {
            transfer.send(chunk).await?;
            transfer.finish(trailer).await
        });
        host.engine.until(bench, "the end at the receiver", |log| log.transfers[0].trailer.is_some()).await;
        bench.not_yet("a receipt came before the receiver had it", &mut finishing).await;
        last.open();
        match bench.join("the receipt", finishing).await {
            Ok(receipt) => bench.equal("the receipt", &receipt, &SnapshotReceipt { commit: 77 }),
            Err(error) => bench.fail(format_args!("the end gets {}", chain(&error))),
        }
        bench.hold(host.engine.look(|log| log.transfers[0].finished), "the receiver had not finished");
    });
}
