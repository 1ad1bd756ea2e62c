//! A slow link stays open while it delivers, however long it takes.

use towline_engine::ids::PeerAddr;
use towline_engine::transport::Chunk;

use super::*;

/// 4 Mbit/s.
const BYTES_PER_S: u64 = 500_000;

/// Bytes of each case: about five seconds.
const BYTES: usize = 10 * APPEND_BYTES;

const APPEND_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 64 << 10;

const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long the byte count of a link may stand still while its peer receives. The engine drops a dispatch after twice
/// as long.
const STANDSTILL_MAX: Duration = Duration::from_millis(1_500);

/// A node behind a slow path, and a control lane over that path.
struct SlowPath {
    host: ListeningNode,
    path: Box<dyn Path>,
    control: Opened,
}

impl SlowPath {
    /// `None` if the fixture has no path that can be slowed down.
    async fn begin(case: &TransportCase) -> Option<Self> {
        let host = case.host_of(2).await;
        let path = case.fixture.path(&host.address).await?;
        let control = open(case, &host, path.address(), Lane::Control).await;
        path.slow_down(BYTES_PER_S).then_some(Self { host, path, control })
    }

    fn peer(&self) -> Peer {
        Peer { id: self.host.node, address: self.path.address() }
    }

    /// Sends heartbeats, whose delay is bounded, until `ended`.
    async fn heartbeats(&mut self, case: &TransportCase, mut ended: impl FnMut() -> bool) {
        for number in 0.. {
            if ended() {
                return;
            }
            let since = Instant::now();
            case.dispatch(&mut self.control, heartbeat(number)).await;
            let what = format_args!("the delivery of heartbeat {number}");
            self.host.until(case, what, |log| log.count(Lane::Control) as u64 > number).await;
            let took = since.elapsed();
            case.hold(took <= LANE_DELAY_MAX, format_args!("heartbeat {number} took {took:?}"));
            sleep(HEARTBEAT).await; // not synchronisation: heartbeat interval
        }
    }

    /// Checks that the transfer needed about the least time and bytes.
    fn check_cost(&self, case: &TransportCase, before: u64, took: Duration) {
        let least = Duration::from_secs_f64(BYTES as f64 / BYTES_PER_S as f64);
        case.hold(took <= least * 3 / 2, format_args!("{BYTES} bytes took {took:?}, not {least:?}"));
        let expected = BYTES as u64..=BYTES as u64 * 13 / 10;
        let carried = self.path.carried().map(|carried| carried.saturating_sub(before));
        if let Some(carried) = carried.filter(|carried| !expected.contains(carried)) {
            case.fail(format_args!("{carried} bytes arrived of {BYTES}"));
        }
        case.hold(!self.control.log.is_closed(), "the link of the heartbeats was closed");
    }
}

async fn open(case: &TransportCase, host: &ListeningNode, address: PeerAddr, lane: Lane) -> Opened {
    let peer = Peer { id: host.node, address };
    case.open_as(host.hello(1), peer, lane).await
}

pub(in super::super) async fn a_snapshot_over_a_slow_link_arrives_in_one_attempt(case: &TransportCase) {
    if !case.can.snapshots {
        return;
    }
    let Some(mut slow) = SlowPath::begin(case).await else { return };
    let (before, begun) = (slow.path.carried().unwrap_or_default(), Instant::now());
    let (to, said, transport) = (slow.peer(), slow.host.hello(1), case.transport(node(1)));
    let sending = tokio::spawn(async move {
        let snapshot = TestSnapshot::new(1, 1, BYTES);
        let offered = transport.offer(&to, &said, &snapshot.offer, &ProgressCell::new(0)).await;
        let mut transfer = match offered {
            Ok(OfferAnswer::Accepted { transfer, .. }) => transfer,
            Ok(_) => return Err("the offer is not accepted".into()),
            Err(error) => return Err(chain(&error)),
        };
        for offset in (0..snapshot.body.len()).step_by(CHUNK_BYTES) {
            let data = snapshot.body.slice(offset..snapshot.body.len().min(offset + CHUNK_BYTES));
            let crc32c = crc32c::crc32c(&data);
            let chunk = Chunk { offset: offset as u64, data, crc32c };
            transfer.send(chunk).await.map_err(|error| chain(&error))?;
        }
        transfer.finish(snapshot.trailer).await.map_err(|error| chain(&error))?;
        Ok(begun.elapsed())
    });
    slow.heartbeats(case, || sending.is_finished()).await;
    let sent: Result<Duration, String> = case.join("the transfer", sending).await;
    match sent {
        Ok(took) => slow.check_cost(case, before, took),
        Err(error) => case.fail(format_args!("the transfer fails: {error}")),
    }
}

pub(in super::super) async fn appends_over_a_slow_link_arrive_once(case: &TransportCase) {
    let Some(mut slow) = SlowPath::begin(case).await else { return };
    let mut appends = open(case, &slow.host, slow.path.address(), Lane::Append).await;
    let (before, begun) = (slow.path.carried().unwrap_or_default(), Instant::now());
    let count = (BYTES / APPEND_BYTES) as u64;
    let taken = appends.link.taken();
    let sending = tokio::spawn(async move {
        for index in 0..count {
            appends.link.dispatch(batch(index, APPEND_BYTES)).await.map_err(|error| chain(&error))?;
        }
        Ok(appends)
    });
    let engine = slow.host.inbound.clone();
    let arrived = || engine.look(|log| log.count(Lane::Append) as u64 >= count);
    let mut failed = false;
    let (mut seen, mut moved, mut standstill) = (0, Instant::now(), Duration::ZERO);
    slow.heartbeats(case, || {
        let now = taken.now();
        if now != seen || sending.is_finished() {
            (seen, moved) = (now, Instant::now());
        }
        standstill = standstill.max(moved.elapsed());
        failed |= sending.is_finished() && begun.elapsed() > case.fixture.deadline();
        failed || arrived()
    })
    .await;
    let took = begun.elapsed();
    let sent: Result<Opened, String> = case.join("the dispatches", sending).await;
    let appends = sent.unwrap_or_else(|error| case.fail(format_args!("a dispatch fails: {error}")));
    let indexes = slow.host.inbound.look(|log| log.indexes(Lane::Append));
    case.equal("what arrives", &indexes, &(0..count).collect());
    case.hold(!appends.log.is_closed(), "the link of the appends was closed");
    // Counting is optional.
    let moves = seen == 0 || standstill <= STANDSTILL_MAX;
    case.hold(moves, format_args!("the count of what was taken stood still for {standstill:?}"));
    slow.check_cost(case, before, took);
}

/// Batches in flight do not delay the discovery.
pub(in super::super) async fn a_slow_link_that_dies_is_noticed(case: &TransportCase) {
    let Some(bound) = case.can.silence_max else { return };
    let Some(slow) = SlowPath::begin(case).await else { return };
    let mut appends = open(case, &slow.host, slow.path.address(), Lane::Append).await;
    let log = appends.log.clone();
    let sending = tokio::spawn(async move {
        for index in 0.. {
            if appends.link.dispatch(batch(index, APPEND_BYTES)).await.is_err() {
                return;
            }
        }
    });
    slow.host.until(case, "a delivery", |log| log.count(Lane::Append) > 0).await;
    slow.path.black_hole();
    let since = Instant::now();
    case.closed(&log).await;
    let took = since.elapsed();
    case.hold(took <= bound, format_args!("it was found after {took:?}, not {bound:?}"));
    case.join("the failure of a dispatch", sending).await;
}
