//! What waits when a receiver does not take: the sender, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio::time::timeout;
use towline_engine::message::Lane;
use towline_engine::transport::{OfferAnswer, ProgressCell};

use super::super::LANE_DELAY_MAX;
use super::super::bench::{Bench, NOT_YET, Opened, chain, heartbeat, hello, numbered, run};
use super::super::engine::{Answer, Host};
use super::super::spool::{Parcel, SpoolScript};
use super::Fixture;

const APART: &str = "links of different lanes do not delay each other";

/// A dispatch that takes longer waits for the receiver.
const WAITS: Duration = Duration::from_millis(500);

/// Messages whose delay is looked at.
const PROBES: u64 = 40;

/// Sends until a dispatch has to wait, and gives the number of the batches that were taken.
async fn fill(bench: &Bench, opened: &mut Opened, bytes: usize) -> u64 {
    let most = (bench.can.link_bytes_max / bytes.max(1)) as u64 + 1;
    for taken in 0.. {
        bench
            .hold(taken <= most, format_args!("{taken} batches of {bytes} bytes are taken that nobody read"));
        match timeout(WAITS, opened.link.dispatch(numbered(taken, bytes))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => bench.fail(format_args!("a dispatch to a slow peer gets {error}")),
            Err(_) => return taken,
        }
    }
    0
}

/// Every control message arrives in time, one after the other.
async fn prompt(bench: &Bench, host: &Host, control: &mut Opened) {
    let before = host.engine.look(|log| log.count(Lane::Control));
    for probe in 0..PROBES {
        let since = Instant::now();
        bench.dispatch(control, heartbeat(probe)).await;
        let what = format_args!("the delivery of control message {probe}");
        host.engine.until(bench, what, |log| log.count(Lane::Control) > before + probe as usize).await;
        let took = since.elapsed();
        bench.hold(took <= LANE_DELAY_MAX, format_args!("control message {probe} took {took:?}"));
    }
}

/// The receiver of the append lane takes nothing at all.
pub fn a_stuck_append_lane_does_not_delay_control(fixture: Fixture) {
    run(fixture, APART, async |bench| {
        let host = bench.host().await;
        let mut control = bench.open(&host, Lane::Control).await;
        let mut appends = bench.open(&host, Lane::Append).await;
        host.engine.appends.shut();
        fill(bench, &mut appends, 64 << 10).await;
        prompt(bench, &host, &mut control).await;
        let mut late = bench.open(&host, Lane::Control).await;
        prompt(bench, &host, &mut late).await;
    });
}

/// The append lane carries as much as it can.
pub fn a_saturated_append_lane_does_not_delay_control(fixture: Fixture) {
    run(fixture, APART, async |bench| {
        let host = bench.host().await;
        let mut control = bench.open(&host, Lane::Control).await;
        let mut appends = bench.open(&host, Lane::Append).await;
        let saturating = tokio::spawn(async move {
            let batch = numbered(0, 256 << 10);
            while appends.link.dispatch(batch.clone()).await.is_ok() {
                tokio::task::yield_now().await;
            }
        });
        host.engine.until(bench, "a saturated lane", |log| log.count(Lane::Append) > 20).await;
        prompt(bench, &host, &mut control).await;
        bench.hold(!saturating.is_finished(), "the saturated lane failed");
        saturating.abort();
    });
}

/// One node reads nothing; another, reached by the same transport, is served as ever.
pub fn a_stuck_peer_does_not_delay_another(fixture: Fixture) {
    run(fixture, "links to different peers do not delay each other", async |bench| {
        let (stuck, well) = (bench.host_of(2).await, bench.host_of(3).await);
        stuck.engine.appends.shut();
        let mut to_stuck = bench.open(&stuck, Lane::Append).await;
        fill(bench, &mut to_stuck, 64 << 10).await;
        let mut control = bench.open(&well, Lane::Control).await;
        prompt(bench, &well, &mut control).await;
        let mut appends = bench.open(&well, Lane::Append).await;
        for index in 0..PROBES {
            bench.dispatch(&mut appends, numbered(index, 10_000)).await;
        }
        let what = "the delivery of appends to the other peer";
        well.engine.until(bench, what, |log| log.count(Lane::Append) as u64 == PROBES).await;
    });
}

/// A transfer that goes as fast as it can, and how many chunks it has sent.
struct Running {
    /// Why it ended.
    sending: JoinHandle<String>,
    sent: Arc<AtomicU64>,
}

/// Starts a transfer whose receiver plays `script`.
async fn transfer(bench: &Bench, host: &Host, script: SpoolScript) -> Running {
    host.engine.answers(move |_| Answer::Accept(script.clone()));
    let parcel = Parcel::new(1, 1, 32 << 20);
    let transport = bench.transport(parcel.from());
    let (to, said) = (host.peer(), hello(1, host.node));
    let offered = bench
        .within("an answer to an offer", transport.offer(&to, &said, &parcel.offer, &ProgressCell::new(0)))
        .await;
    let Ok(OfferAnswer::Accepted { mut transfer, .. }) = offered else {
        bench.fail("an offer that is welcome is not accepted");
    };
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let sending = tokio::spawn(async move {
        for chunk in parcel.chunks(0).collect::<Vec<_>>().into_iter().cycle() {
            if let Err(error) = transfer.send(chunk).await {
                return chain(&error);
            }
            count.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
        String::new()
    });
    Running { sending, sent }
}

/// The receiver of a snapshot takes nothing more.
pub fn a_stuck_snapshot_does_not_delay_the_lanes(fixture: Fixture) {
    run(fixture, APART, async |bench| {
        if !bench.can.snapshots {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript { free: 1, ..SpoolScript::default() };
        script.writes.shut();
        let Running { sending, sent } = transfer(bench, &host, script).await;
        host.engine.until(bench, "the first chunk", |log| !log.transfers[0].chunks.is_empty()).await;
        let still = async {
            let mut before = u64::MAX;
            while std::mem::replace(&mut before, sent.load(Ordering::Relaxed)) != before {
                // not synchronisation: for as long as this nothing is sent any more
                tokio::time::sleep(NOT_YET).await;
            }
        };
        bench.within("a send that waits", still).await;
        lanes_are_prompt(bench, &host).await;
        still_running(bench, sending).await;
    });
}

/// A snapshot goes as fast as it can.
pub fn a_running_snapshot_does_not_delay_the_lanes(fixture: Fixture) {
    run(fixture, APART, async |bench| {
        if !bench.can.snapshots {
            return;
        }
        let host = bench.host().await;
        let Running { sending, .. } = transfer(bench, &host, SpoolScript::default()).await;
        host.engine.until(bench, "a running transfer", |log| log.transfers[0].chunks.len() > 4).await;
        lanes_are_prompt(bench, &host).await;
        still_running(bench, sending).await;
    });
}

async fn still_running(bench: &Bench, sending: JoinHandle<String>) {
    if sending.is_finished() {
        let error = bench.join("the end of a transfer", sending).await;
        bench.fail(format_args!("the transfer ended by itself: {error}"));
    }
    sending.abort();
}

async fn lanes_are_prompt(bench: &Bench, host: &Host) {
    let mut control = bench.open(host, Lane::Control).await;
    prompt(bench, host, &mut control).await;
    let mut appends = bench.open(host, Lane::Append).await;
    let since = Instant::now();
    for index in 0..PROBES {
        bench.dispatch(&mut appends, numbered(index, 1_000)).await;
    }
    host.engine.until(bench, "the delivery of appends", |log| log.count(Lane::Append) as u64 == PROBES).await;
    let took = since.elapsed();
    bench.hold(took <= LANE_DELAY_MAX, format_args!("{PROBES} appends took {took:?}"));
}

/// A dispatch waits at the named bound, and everything goes on, in order, once the receiver takes again.
pub fn a_receiver_that_takes_nothing_pushes_back(fixture: Fixture) {
    run(fixture, "a link has flow control: `dispatch` waits for the peer to make room", async |bench| {
        let host = bench.host().await;
        host.engine.appends.shut();
        let mut opened = bench.open(&host, Lane::Append).await;
        fill(bench, &mut opened, 64 << 10).await;
        // The one that waited was dropped and the link with it; what the link took before is delivered or lost.
        drop(opened);
        let mut again = bench.open(&host, Lane::Append).await;
        let more = (bench.can.link_bytes_max / (64 << 10)) as u64 + 1;
        let mut waiting = tokio::spawn(async move {
            for index in 0..more {
                again.link.dispatch(numbered(1_000_000 + index, 64 << 10)).await.ok()?;
            }
            Some(again)
        });
        bench.not_yet("a link takes more than its bound", &mut waiting).await;
        host.engine.appends.open();
        let again = bench.join("dispatches once the receiver takes", waiting).await;
        bench.hold(again.is_some(), "a dispatch that waited failed");
        let of_second =
            |indexes: Vec<u64>| -> Vec<u64> { indexes.into_iter().filter(|i| *i >= 1_000_000).collect() };
        let what = "the delivery of what had waited";
        host.engine.until(bench, what, |log| of_second(log.indexes(Lane::Append)).len() as u64 == more).await;
        let came = host.engine.look(|log| of_second(log.indexes(Lane::Append)));
        bench.hold(came.is_sorted(), "what had waited arrived in another order");
    });
}

/// Messages of almost no bytes are bounded too.
pub fn small_messages_push_back_too(fixture: Fixture) {
    run(fixture, "what a link holds is bounded, however small its messages are", async |bench| {
        /// Bytes of the smallest message there is, in the tightest encoding.
        const MESSAGE_BYTES: usize = 8;
        let host = bench.host().await;
        host.engine.appends.shut();
        let mut opened = bench.open(&host, Lane::Append).await;
        let most = bench.can.link_bytes_max / MESSAGE_BYTES;
        let envelopes = vec![super::super::bench::append(1, 1, 0); 1_000];
        let batch = towline_engine::message::Batch { envelopes };
        let mut taken = 0;
        while let Ok(dispatched) = timeout(WAITS, opened.link.dispatch(batch.clone())).await {
            bench.hold(dispatched.is_ok(), "a dispatch to a slow peer fails");
            taken += batch.envelopes.len();
            bench.hold(taken <= most, format_args!("{taken} messages are taken that nobody read"));
        }
    });
}

/// The same for chunks.
pub fn a_transfer_that_is_not_taken_pushes_back(fixture: Fixture) {
    run(fixture, "`Transfer::send` waits for flow control", async |bench| {
        if !bench.can.snapshots {
            return;
        }
        let host = bench.host().await;
        let script = SpoolScript::default();
        script.writes.shut();
        let gate = script.writes.clone();
        host.engine.answers(move |_| Answer::Accept(script.clone()));
        let parcel = Parcel::new(1, 1, 1 << 20);
        let transport = bench.transport(parcel.from());
        let (to, said) = (host.peer(), hello(1, host.node));
        let offered = bench
            .within(
                "an answer to an offer",
                transport.offer(&to, &said, &parcel.offer, &ProgressCell::new(0)),
            )
            .await;
        let Ok(OfferAnswer::Accepted { mut transfer, .. }) = offered else {
            bench.fail("an offer that is welcome is not accepted");
        };
        let chunk = parcel.chunks(0).next().unwrap();
        let mut taken = 0;
        while let Ok(sent) = timeout(WAITS, transfer.send(chunk.clone())).await {
            bench.hold(sent.is_ok(), "a send to a slow receiver fails");
            taken += chunk.data.len();
            let bound = bench.can.transfer_bytes_max;
            bench.hold(taken <= bound, format_args!("{taken} bytes are taken that nobody read, not {bound}"));
        }
        gate.open();
    });
}
