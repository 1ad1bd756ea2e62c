//! Snapshot transfers that break: each is a reset at the other side, and both let go of everything.

use tokio::time::timeout;
use towline_engine::transport::{Peer, ProgressCell, Transfer, TransferError};

use super::super::bench::{Bench, NOT_YET, chain, hello, run};
use super::super::engine::{Answer, Host, Log};
use super::super::spool::{Parcel, SpoolScript};
use super::Fixture;
use super::snapshots::{accepted, at_least, carries, offer_as};

const RESET: &str = "dropping a transfer aborts it: the peer sees a reset, never an ordinary end of stream";

/// The sink and the session are let go and the snapshot is not finished.
async fn reset_at(bench: &Bench, host: &Host, number: usize) {
    let gone =
        |log: &Log| log.transfers.get(number).is_some_and(|transfer| transfer.gone) && log.sessions == 0;
    host.engine.until(bench, "the receiver letting go of a transfer that was given up", gone).await;
    host.engine.look(|log| {
        let transfer = &log.transfers[number];
        bench.hold(transfer.trailer.is_none(), "a transfer that was given up came to an ordinary end");
        bench.hold(!transfer.finished, "a transfer that was given up was finished");
    });
}

async fn send(bench: &Bench, transfer: &mut Box<dyn Transfer>, parcel: &Parcel, count: usize) {
    for chunk in parcel.chunks(0).take(count) {
        if let Err(error) = bench.within("the sending of a chunk", transfer.send(chunk)).await {
            bench.fail(format_args!("a chunk gets {}", chain(&error)));
        }
    }
}

/// Before the first chunk, in the middle, and with every byte sent.
pub fn a_dropped_transfer_is_a_reset_and_never_an_end(fixture: Fixture) {
    run(fixture, RESET, async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let parcel = Parcel::new(1, 1, 3 << 20);
        for (number, chunks) in [0, 1, 3].into_iter().enumerate() {
            let (_, mut transfer) = accepted(bench, &host, &parcel).await;
            send(bench, &mut transfer, &parcel, chunks).await;
            let what = "the arrival of the chunks";
            host.engine.until(bench, what, |log| log.transfers[number].chunks.len() == chunks).await;
            drop(transfer);
            reset_at(bench, &host, number).await;
        }
        // A snapshot of no bytes at all has no more than its end to tell it from a reset.
        let empty = Parcel::new(1, 1, 0);
        let (_, transfer) = accepted(bench, &host, &empty).await;
        drop(transfer);
        reset_at(bench, &host, 3).await;
    });
}

/// While the receiver takes nothing.
pub fn a_send_dropped_midway_is_a_reset(fixture: Fixture) {
    run(fixture, RESET, async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript::default();
        script.writes.shut();
        let gate = script.writes.clone();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, bench.can.transfer_bytes_max + (4 << 20));
        let (_, mut transfer) = accepted(bench, &host, &parcel).await;
        let mut chunks = parcel.chunks(0);
        let full = async {
            for chunk in chunks.by_ref() {
                match timeout(NOT_YET, transfer.send(chunk)).await {
                    Ok(sent) => bench.hold(sent.is_ok(), "a send to a slow receiver fails"),
                    Err(_) => return true,
                }
            }
            false
        };
        let waited = bench.within("the first send that has to wait", full).await;
        bench.hold(waited, "no send waited for a receiver that takes nothing");
        drop(transfer);
        gate.open();
        reset_at(bench, &host, 0).await;
    });
}

/// The receiver is still at it: its future is dropped, and so is the sink.
pub fn a_finish_dropped_midway_gives_the_transfer_up(fixture: Fixture) {
    run(fixture, "dropping the future of `finish` gives the transfer up on both sides", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript::default();
        script.phases[1].shut();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, 10);
        let (_, mut transfer) = accepted(bench, &host, &parcel).await;
        send(bench, &mut transfer, &parcel, 1).await;
        let finishing = tokio::spawn(transfer.finish(parcel.trailer));
        host.engine.until(bench, "the end at the receiver", |log| log.transfers[0].trailer.is_some()).await;
        finishing.abort();
        let gone = |log: &Log| log.transfers[0].gone && log.sessions == 0;
        host.engine.until(bench, "the receiver letting go of a transfer that was given up", gone).await;
        bench.hold(!host.engine.look(|log| log.transfers[0].finished), "it was finished all the same");
    });
}

/// While the receiver thinks about the offer, and when it has just said yes.
pub fn an_offer_dropped_midway_leaves_nothing(fixture: Fixture) {
    run(fixture, "dropping the future of `offer` gives the attempt up", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        host.engine.offers.shut();
        let transport = bench.transport(hello(1, host.node).from);
        let (to, said) = (host.peer(), hello(1, host.node));
        let offering = tokio::spawn(async move {
            let parcel = Parcel::new(1, 1, 10);
            transport.offer(&to, &said, &parcel.offer, &ProgressCell::new(0)).await.is_ok()
        });
        host.engine.until(bench, "the offer at the receiver", |log| log.thinking == 1).await;
        offering.abort();
        let what = "the receiver letting go of an offer that was given up";
        host.engine.until(bench, what, |log| log.thinking == 0 && log.sessions == 0).await;
        host.engine.offers.open();
        bench.equal("transfers that began", &host.engine.look(|log| log.transfers.len()), &0);
    });
}

/// Broken, for a sender that sends and for one that waits for the end.
pub fn a_receiver_that_is_gone_breaks_the_transfer(fixture: Fixture) {
    run(fixture, "a transfer whose stream broke is `TransferError::Broken`", async |bench| {
        if !carries(bench).await {
            return;
        }
        for while_finishing in [false, true] {
            let mut host = bench.host().await;
            let script = SpoolScript::default();
            script.phases[0].shut();
            host.engine.answers(move |_| Answer::Accept(script.clone()));
            let parcel = Parcel::new(1, 1, 3 << 20);
            let (_, mut transfer) = accepted(bench, &host, &parcel).await;
            send(bench, &mut transfer, &parcel, 3).await;
            let error = if while_finishing {
                let finishing = tokio::spawn(transfer.finish(parcel.trailer));
                let what = "the end at the receiver";
                host.engine.until(bench, what, |log| log.transfers[0].trailer.is_some()).await;
                host.drop_listener();
                bench.join("the failure of finish", finishing).await.err()
            } else {
                host.engine.until(bench, "the chunks", |log| log.transfers[0].chunks.len() == 3).await;
                host.drop_listener();
                Some(until_broken(bench, &mut transfer, &parcel).await)
            };
            match error {
                Some(TransferError::Broken { .. }) => {}
                Some(error) => bench.fail(format_args!("it gives {}", chain(&error))),
                None => bench.fail("a receiver that is gone gives a receipt"),
            }
            let gone = |log: &Log| log.transfers[0].gone && log.sessions == 0;
            host.engine.until(bench, "the sink to be let go", gone).await;
            bench.hold(!host.engine.look(|log| log.transfers[0].finished), "it was finished all the same");
        }
    });
}

/// Sends until it fails.
async fn until_broken(bench: &Bench, transfer: &mut Box<dyn Transfer>, parcel: &Parcel) -> TransferError {
    let chunk = parcel.chunks(0).next().unwrap();
    let failing = async {
        loop {
            if let Err(error) = transfer.send(chunk.clone()).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    bench.within("the failure of send", failing).await
}

/// Needs [`TransportFixture::path`].
///
/// [`TransportFixture::path`]: super::super::TransportFixture::path
pub fn a_cut_path_breaks_the_transfer_on_both_sides(fixture: Fixture) {
    run(fixture, "a transfer whose stream broke is `TransferError::Broken`", async |bench| {
        if !carries(bench).await {
            return;
        }
        let host = bench.host().await;
        let Some(path) = bench.within("a path", bench.fixture.path(&host.address)).await else { return };
        let parcel = Parcel::new(1, 1, 3 << 20);
        let to = Peer { id: host.node, address: path.address() };
        let offered = offer_as(bench, hello(1, host.node), to, &parcel).await;
        let Ok(towline_engine::transport::OfferAnswer::Accepted { mut transfer, .. }) = offered else {
            bench.fail("an offer over the path is not accepted");
        };
        send(bench, &mut transfer, &parcel, 1).await;
        let progress = transfer.progress();
        at_least(bench, "the acknowledgement of a chunk", || progress.now().acked > 0).await;
        path.cut();
        match until_broken(bench, &mut transfer, &parcel).await {
            TransferError::Broken { .. } => {}
            error => bench.fail(format_args!("it gives {}", chain(&error))),
        }
        reset_at(bench, &host, 0).await;
    });
}
