//! Snapshot transfers that break: the other side sees a reset, and both sides drop all they held.

use super::snapshots::{accepted, at_least, offer_as};
use super::*;

/// Waits until the receiver dropped sink and session, and checks that it did not finish the snapshot.
async fn reset_at(case: &TransportCase, host: &ListeningNode, number: usize) {
    let gone = |log: &InboundLog| {
        log.transfers.get(number).is_some_and(|transfer| transfer.dropped) && log.sessions == 0
    };
    host.until(case, "the receiver's drop of the aborted transfer", gone).await;
    host.inbound.look(|log| {
        let transfer = &log.transfers[number];
        case.hold(transfer.trailer.is_none(), "the aborted transfer ended in order");
        case.hold(!transfer.finished, "the aborted transfer was finished");
    });
}

async fn send(case: &TransportCase, transfer: &mut Box<dyn Transfer>, snapshot: &TestSnapshot, count: usize) {
    for chunk in snapshot.chunks(0).take(count) {
        if let Err(error) = case.within("the sending of a chunk", transfer.send(chunk)).await {
            case.fail(format_args!("a chunk gets {}", chain(&error)));
        }
    }
}

/// Before the first chunk, in the middle, and after the last byte.
pub(in super::super) async fn a_dropped_transfer_is_a_reset(case: &TransportCase, host: ListeningNode) {
    let snapshot = TestSnapshot::new(1, 1, 3 << 20);
    for (number, chunks) in [0, 1, 3].into_iter().enumerate() {
        let (_, mut transfer) = accepted(case, &host, &snapshot).await;
        send(case, &mut transfer, &snapshot, chunks).await;
        let what = "the arrival of the chunks";
        host.until(case, what, |log| log.transfers[number].chunks.len() == chunks).await;
        drop(transfer);
        reset_at(case, &host, number).await;
    }
    // Only its end distinguishes an empty snapshot from a reset.
    let empty = TestSnapshot::new(1, 1, 0);
    let (_, transfer) = accepted(case, &host, &empty).await;
    drop(transfer);
    reset_at(case, &host, 3).await;
}

pub(in super::super) async fn a_dropped_send_is_a_reset(case: &TransportCase, host: ListeningNode) {
    let script = SinkScript::default();
    script.write_gate.shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, case.can.transfer_bytes_max + (4 << 20));
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    let mut chunks = snapshot.chunks(0);
    let full = async {
        for chunk in chunks.by_ref() {
            match timeout(NOT_YET, transfer.send(chunk)).await {
                Ok(sent) => case.hold(sent.is_ok(), "a send to a slow receiver fails"),
                Err(_) => return true,
            }
        }
        false
    };
    let waited = case.within("the first send that waits", full).await;
    case.hold(waited, "no send waited for a receiver that reads nothing");
    drop(transfer);
    script.write_gate.open();
    reset_at(case, &host, 0).await;
}

/// The receiver is still finishing.
pub(in super::super) async fn a_dropped_finish_aborts_the_transfer(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript::default();
    script.phase_gates[1].shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 10);
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    send(case, &mut transfer, &snapshot, 1).await;
    let finishing = tokio::spawn(transfer.finish(snapshot.trailer));
    host.until(case, "the end at the receiver", |log| log.transfers[0].trailer.is_some()).await;
    finishing.abort();
    let gone = |log: &InboundLog| log.transfers[0].dropped && log.sessions == 0;
    host.until(case, "the receiver's drop of the aborted transfer", gone).await;
    case.hold(!host.inbound.look(|log| log.transfers[0].finished), "the aborted transfer was finished");
}

/// The receiver has not decided yet.
pub(in super::super) async fn a_dropped_offer_leaves_nothing(case: &TransportCase, host: ListeningNode) {
    host.inbound.offer_gate.shut();
    let transport = case.transport(host.hello(1).from);
    let (to, said) = (host.peer(), host.hello(1));
    let offering = tokio::spawn(async move {
        let snapshot = TestSnapshot::new(1, 1, 10);
        transport.offer(&to, &said, &snapshot.offer, &ProgressCell::new(0)).await.is_ok()
    });
    host.until(case, "the offer at the receiver", |log| log.deciding == 1).await;
    offering.abort();
    let what = "the receiver's drop of the aborted offer";
    host.until(case, what, |log| log.deciding == 0 && log.sessions == 0).await;
    host.inbound.offer_gate.open();
    case.equal("transfers that began", &host.inbound.look(|log| log.transfers.len()), &0);
}

/// During `send` and during `finish`.
pub(in super::super) async fn a_lost_receiver_breaks_the_transfer(case: &TransportCase) {
    if !case.can.snapshots {
        return;
    }
    for while_finishing in [false, true] {
        let mut host = case.host_of(2).await;
        let script = SinkScript::default();
        script.phase_gates[0].shut();
        host.inbound.accept_offers(&script);
        let snapshot = TestSnapshot::new(1, 1, 3 << 20);
        let (_, mut transfer) = accepted(case, &host, &snapshot).await;
        send(case, &mut transfer, &snapshot, 3).await;
        let error = if while_finishing {
            let finishing = tokio::spawn(transfer.finish(snapshot.trailer));
            let what = "the end at the receiver";
            host.until(case, what, |log| log.transfers[0].trailer.is_some()).await;
            host.drop_listener();
            case.join("the failure of finish", finishing).await.err()
        } else {
            host.until(case, "the chunks", |log| log.transfers[0].chunks.len() == 3).await;
            host.drop_listener();
            Some(until_broken(case, &mut transfer, &snapshot).await)
        };
        match error {
            Some(TransferError::Broken { .. }) => {}
            Some(error) => case.fail(format_args!("it gives {}", chain(&error))),
            None => case.fail("a lost receiver returns a receipt"),
        }
        let gone = |log: &InboundLog| log.transfers[0].dropped && log.sessions == 0;
        host.until(case, "the drop of the sink", gone).await;
        case.hold(!host.inbound.look(|log| log.transfers[0].finished), "the aborted transfer was finished");
    }
}

/// Sends until it fails.
async fn until_broken(
    case: &TransportCase,
    transfer: &mut Box<dyn Transfer>,
    snapshot: &TestSnapshot,
) -> TransferError {
    let chunk = snapshot.chunks(0).next().unwrap();
    let failing = async {
        loop {
            if let Err(error) = transfer.send(chunk.clone()).await {
                return error;
            }
            tokio::task::yield_now().await;
        }
    };
    case.within("the failure of send", failing).await
}

/// Needs `TransportFixture::path`.
pub(in super::super) async fn a_cut_path_breaks_the_transfer_on_both_sides(
    case: &TransportCase,
    host: ListeningNode,
) {
    let Some(path) = case.within("a path", case.fixture.path(&host.address)).await else { return };
    let snapshot = TestSnapshot::new(1, 1, 3 << 20);
    let to = Peer { id: host.node, address: path.address() };
    let offered = offer_as(case, host.hello(1), to, &snapshot).await;
    let Ok(OfferAnswer::Accepted { mut transfer, .. }) = offered else {
        case.fail("an offer over the path is not accepted");
    };
    send(case, &mut transfer, &snapshot, 1).await;
    let progress = transfer.progress();
    at_least(case, "the acknowledgement of a chunk", || progress.now().acked > 0).await;
    path.cut();
    match until_broken(case, &mut transfer, &snapshot).await {
        TransferError::Broken { .. } => {}
        error => case.fail(format_args!("it gives {}", chain(&error))),
    }
    reset_at(case, &host, 0).await;
}
