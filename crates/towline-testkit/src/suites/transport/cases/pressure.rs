//! A slow receiver delays its own sender and no other.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::JoinHandle;

use super::snapshots::accepted;
use super::*;

/// A dispatch that takes longer is waiting for the receiver.
const WAITS: Duration = Duration::from_millis(500);

/// Messages whose delay is measured.
const PROBES: u64 = 40;

/// Sends until a dispatch waits, and returns how many batches the link took.
async fn fill(case: &TransportCase, opened: &mut Opened, bytes: usize) -> u64 {
    let most = (case.can.link_bytes_max / bytes.max(1)) as u64 + 1;
    for taken in 0.. {
        case.hold(
            taken <= most,
            format_args!("the link took {taken} batches of {bytes} bytes from a receiver that reads nothing"),
        );
        match timeout(WAITS, opened.link.dispatch(batch(taken, bytes))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => case.fail(format_args!("a dispatch to a slow peer gets {error}")),
            Err(_) => return taken,
        }
    }
    0
}

/// Sends control messages one by one and checks the delay of each.
async fn prompt(case: &TransportCase, host: &ListeningNode, control: &mut Opened) {
    let before = host.inbound.look(|log| log.count(Lane::Control));
    for probe in 0..PROBES {
        let since = Instant::now();
        case.dispatch(control, heartbeat(probe)).await;
        let what = format_args!("the delivery of control message {probe}");
        host.until(case, what, |log| log.count(Lane::Control) > before + probe as usize).await;
        let took = since.elapsed();
        case.hold(took <= LANE_DELAY_MAX, format_args!("control message {probe} took {took:?}"));
    }
}

pub(in super::super) async fn a_stuck_append_lane_does_not_delay_control(
    case: &TransportCase,
    host: ListeningNode,
) {
    let mut control = case.open(&host, Lane::Control).await;
    let mut appends = case.open(&host, Lane::Append).await;
    host.inbound.append_gate.shut();
    fill(case, &mut appends, 64 << 10).await;
    prompt(case, &host, &mut control).await;
    let mut late = case.open(&host, Lane::Control).await;
    prompt(case, &host, &mut late).await;
}

pub(in super::super) async fn a_saturated_append_lane_does_not_delay_control(
    case: &TransportCase,
    host: ListeningNode,
) {
    let mut control = case.open(&host, Lane::Control).await;
    let mut appends = case.open(&host, Lane::Append).await;
    let saturating = tokio::spawn(async move {
        let batch = batch(0, 256 << 10);
        while appends.link.dispatch(batch.clone()).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    host.until(case, "a saturated lane", |log| log.count(Lane::Append) > 20).await;
    prompt(case, &host, &mut control).await;
    case.hold(!saturating.is_finished(), "the saturated lane failed");
    saturating.abort();
}

/// Both peers are reached by the same transport.
pub(in super::super) async fn a_stuck_peer_does_not_delay_another(case: &TransportCase) {
    let (stuck, well) = (case.host_of(2).await, case.host_of(3).await);
    stuck.inbound.append_gate.shut();
    let mut to_stuck = case.open(&stuck, Lane::Append).await;
    fill(case, &mut to_stuck, 64 << 10).await;
    let mut control = case.open(&well, Lane::Control).await;
    prompt(case, &well, &mut control).await;
    let mut appends = case.open(&well, Lane::Append).await;
    for index in 0..PROBES {
        case.dispatch(&mut appends, batch(index, 10_000)).await;
    }
    let what = "the delivery of appends to the other peer";
    well.until(case, what, |log| log.count(Lane::Append) as u64 == PROBES).await;
}

/// A transfer at full speed.
struct Running {
    /// Returns the error that ended the transfer.
    sending: JoinHandle<String>,
    /// Chunks so far.
    sent: Arc<AtomicU64>,
}

/// Starts a transfer whose receiver follows `script`.
async fn transfer(case: &TransportCase, host: &ListeningNode, script: SinkScript) -> Running {
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 32 << 20);
    let (_, mut transfer) = accepted(case, host, &snapshot).await;
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let sending = tokio::spawn(async move {
        for chunk in snapshot.chunks(0).collect::<Vec<_>>().into_iter().cycle() {
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

pub(in super::super) async fn a_stuck_snapshot_does_not_delay_the_lanes(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript { free: 1, ..SinkScript::default() };
    script.write_gate.shut();
    let Running { sending, sent } = transfer(case, &host, script).await;
    host.until(case, "the first chunk", |log| !log.transfers[0].chunks.is_empty()).await;
    let still = async {
        let mut before = u64::MAX;
        while std::mem::replace(&mut before, sent.load(Ordering::Relaxed)) != before {
            // not synchronisation: nothing may be sent during this time
            sleep(NOT_YET).await;
        }
    };
    case.within("a send that waits", still).await;
    lanes_are_prompt(case, &host).await;
    still_running(case, sending).await;
}

pub(in super::super) async fn a_running_snapshot_does_not_delay_the_lanes(
    case: &TransportCase,
    host: ListeningNode,
) {
    let Running { sending, .. } = transfer(case, &host, SinkScript::default()).await;
    host.until(case, "a running transfer", |log| log.transfers[0].chunks.len() > 4).await;
    lanes_are_prompt(case, &host).await;
    still_running(case, sending).await;
}

async fn still_running(case: &TransportCase, sending: JoinHandle<String>) {
    if sending.is_finished() {
        let error = case.join("the end of a transfer", sending).await;
        case.fail(format_args!("the transfer ended by itself: {error}"));
    }
    sending.abort();
}

async fn lanes_are_prompt(case: &TransportCase, host: &ListeningNode) {
    let mut control = case.open(host, Lane::Control).await;
    prompt(case, host, &mut control).await;
    let mut appends = case.open(host, Lane::Append).await;
    let since = Instant::now();
    for index in 0..PROBES {
        case.dispatch(&mut appends, batch(index, 1_000)).await;
    }
    host.until(case, "the delivery of appends", |log| log.count(Lane::Append) as u64 == PROBES).await;
    let took = since.elapsed();
    case.hold(took <= LANE_DELAY_MAX, format_args!("{PROBES} appends took {took:?}"));
}

/// A dispatch waits at the bound of the link. Everything arrives in order once the receiver reads again.
pub(in super::super) async fn a_receiver_that_reads_nothing_blocks_dispatch(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.append_gate.shut();
    let mut opened = case.open(&host, Lane::Append).await;
    fill(case, &mut opened, 64 << 10).await;
    drop(opened);
    let mut again = case.open(&host, Lane::Append).await;
    let more = (case.can.link_bytes_max / (64 << 10)) as u64 + 1;
    let mut waiting = tokio::spawn(async move {
        for index in 0..more {
            again.link.dispatch(batch(1_000_000 + index, 64 << 10)).await.ok()?;
        }
        Some(again)
    });
    case.not_yet("a link takes more than its bound", &mut waiting).await;
    host.inbound.append_gate.open();
    let again = case.join("dispatches once the receiver takes", waiting).await;
    case.hold(again.is_some(), "a dispatch that waited failed");
    let of_second =
        |indexes: Vec<u64>| -> Vec<u64> { indexes.into_iter().filter(|i| *i >= 1_000_000).collect() };
    let what = "the delivery of what had waited";
    host.until(case, what, |log| of_second(log.indexes(Lane::Append)).len() as u64 == more).await;
    let came = host.inbound.look(|log| of_second(log.indexes(Lane::Append)));
    case.hold(came.is_sorted(), "what had waited arrived in another order");
}

pub(in super::super) async fn small_messages_block_dispatch_too(case: &TransportCase) {
    /// Bytes of the smallest message in the tightest encoding.
    const MESSAGE_BYTES: usize = 8;
    let host = case.host_of(2).await;
    host.inbound.append_gate.shut();
    let mut opened = case.open(&host, Lane::Append).await;
    let most = case.can.link_bytes_max / MESSAGE_BYTES;
    let envelopes = vec![append(1, 1, 0); 1_000];
    let batch = Batch { envelopes };
    let mut taken = 0;
    while let Ok(dispatched) = timeout(WAITS, opened.link.dispatch(batch.clone())).await {
        case.hold(dispatched.is_ok(), "a dispatch to a slow peer fails");
        taken += batch.envelopes.len();
        case.hold(
            taken <= most,
            format_args!("the link took {taken} messages from a receiver that reads nothing"),
        );
    }
}

pub(in super::super) async fn a_receiver_that_reads_nothing_blocks_send(
    case: &TransportCase,
    host: ListeningNode,
) {
    let script = SinkScript::default();
    script.write_gate.shut();
    host.inbound.accept_offers(&script);
    let snapshot = TestSnapshot::new(1, 1, 1 << 20);
    let (_, mut transfer) = accepted(case, &host, &snapshot).await;
    let chunk = snapshot.chunks(0).next().unwrap();
    let mut taken = 0;
    while let Ok(sent) = timeout(WAITS, transfer.send(chunk.clone())).await {
        case.hold(sent.is_ok(), "a send to a slow receiver fails");
        taken += chunk.data.len();
        let bound = case.can.transfer_bytes_max;
        case.hold(
            taken <= bound,
            format_args!("the transfer took {taken} bytes, not {bound}, from a receiver that reads nothing"),
        );
    }
    script.write_gate.open();
}
