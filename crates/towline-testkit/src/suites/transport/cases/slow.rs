//! A slow link is alive: it delivers what it can, for as long as it takes, and neither side gives it up.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{Chunk, OfferAnswer, Peer, ProgressCell};

use super::super::bench::{Bench, Opened, chain, heartbeat, hello, node, numbered, run};
use super::super::engine::{Answer, Host};
use super::super::spool::{Parcel, SpoolScript};
use super::super::{LANE_DELAY_MAX, Path};
use super::Fixture;

/// 4 Mbit/s.
const BYTES_PER_S: u64 = 500_000;

/// What goes through it: some five seconds.
const BYTES: usize = 10 * APPEND_BYTES;

/// Of one append, and of one chunk.
const APPEND_BYTES: usize = 256 << 10;
const CHUNK_BYTES: usize = 64 << 10;

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long the count of a link may stand still while its peer receives. A dispatch is given up after twice as long.
const STANDSTILL_MAX: Duration = Duration::from_millis(1_500);

const ALIVE: &str = "a link is alive while its peer receives what it carries, however slowly";

/// A host behind a slow path, and the heartbeats of a leader through it.
struct Slow {
    host: Host,
    path: Box<dyn Path>,
    control: Opened,
}

impl Slow {
    /// `None` where the fixture has no path that can be slowed down.
    async fn begin(bench: &Bench) -> Option<Self> {
        let host = bench.host().await;
        let path = bench.fixture.path(&host.address).await?;
        let control = open(bench, &host, path.address(), Lane::Control).await;
        path.slow_down(BYTES_PER_S).then_some(Self { host, path, control })
    }

    fn peer(&self) -> Peer {
        Peer { id: self.host.node, address: self.path.address() }
    }

    /// Sends heartbeats until `ended`. Each must arrive in time.
    async fn heartbeats(&mut self, bench: &Bench, mut ended: impl FnMut() -> bool) {
        for number in 0.. {
            if ended() {
                return;
            }
            let since = Instant::now();
            bench.dispatch(&mut self.control, heartbeat(number)).await;
            let what = format_args!("the delivery of heartbeat {number}");
            self.host.engine.until(bench, what, |log| log.count(Lane::Control) as u64 > number).await;
            let took = since.elapsed();
            bench.hold(took <= LANE_DELAY_MAX, format_args!("heartbeat {number} took {took:?}"));
            sleep(HEARTBEAT).await; // not synchronisation: as a leader does
        }
    }

    /// It took about as long, and as many bytes, as it must.
    fn was_worth_it(&self, bench: &Bench, before: u64, took: Duration) {
        let least = Duration::from_secs_f64(BYTES as f64 / BYTES_PER_S as f64);
        bench.hold(took <= least * 3 / 2, format_args!("{BYTES} bytes took {took:?}, not {least:?}"));
        let expected = BYTES as u64..=BYTES as u64 * 13 / 10;
        let carried = self.path.carried().map(|carried| carried.saturating_sub(before));
        if let Some(carried) = carried.filter(|carried| !expected.contains(carried)) {
            bench.fail(format_args!("{carried} bytes arrived of {BYTES}"));
        }
        bench.hold(!self.control.ear.is_closed(), "the link of the heartbeats was closed");
    }
}

async fn open(bench: &Bench, host: &Host, address: PeerAddr, lane: Lane) -> Opened {
    let peer = Peer { id: host.node, address };
    bench.open_as(hello(1, host.node), peer, lane).await
}

/// A snapshot, sent as fast as flow control takes it.
pub fn a_snapshot_over_a_slow_link_arrives_in_one_attempt(fixture: Fixture) {
    run(fixture, ALIVE, async |bench| {
        if !bench.can.snapshots {
            return;
        }
        let Some(mut slow) = Slow::begin(bench).await else { return };
        slow.host.engine.answers(|_| Answer::Accept(SpoolScript::default()));
        let (before, begun) = (slow.path.carried().unwrap_or_default(), Instant::now());
        let (to, said, transport) = (slow.peer(), hello(1, slow.host.node), bench.transport(node(1)));
        let sending = tokio::spawn(async move {
            let parcel = Parcel::new(1, 1, BYTES);
            let offered = transport.offer(&to, &said, &parcel.offer, &ProgressCell::new(0)).await;
            let mut transfer = match offered {
                Ok(OfferAnswer::Accepted { transfer, .. }) => transfer,
                Ok(_) => return Err("the offer is not accepted".into()),
                Err(error) => return Err(chain(&error)),
            };
            for offset in (0..parcel.body.len()).step_by(CHUNK_BYTES) {
                let data = parcel.body.slice(offset..parcel.body.len().min(offset + CHUNK_BYTES));
                let crc32c = crc32c::crc32c(&data);
                let chunk = Chunk { offset: offset as u64, data, crc32c };
                transfer.send(chunk).await.map_err(|error| chain(&error))?;
            }
            transfer.finish(parcel.trailer).await.map_err(|error| chain(&error))?;
            Ok(begun.elapsed())
        });
        slow.heartbeats(bench, || sending.is_finished()).await;
        let sent: Result<Duration, String> = bench.join("the transfer", sending).await;
        match sent {
            Ok(took) => slow.was_worth_it(bench, before, took),
            Err(error) => bench.fail(format_args!("the transfer fails: {error}")),
        }
    });
}

/// Appends, sent as fast as flow control takes them.
pub fn appends_over_a_slow_link_arrive_once(fixture: Fixture) {
    run(fixture, ALIVE, async |bench| {
        let Some(mut slow) = Slow::begin(bench).await else { return };
        let mut appends = open(bench, &slow.host, slow.path.address(), Lane::Append).await;
        let (before, begun) = (slow.path.carried().unwrap_or_default(), Instant::now());
        let count = (BYTES / APPEND_BYTES) as u64;
        let taken = appends.link.taken();
        let sending = tokio::spawn(async move {
            for index in 0..count {
                appends.link.dispatch(numbered(index, APPEND_BYTES)).await.map_err(|error| chain(&error))?;
            }
            Ok(appends)
        });
        let engine = slow.host.engine.clone();
        let arrived = || engine.look(|log| log.count(Lane::Append) as u64 >= count);
        let mut failed = false;
        let (mut seen, mut moved, mut standstill) = (0, Instant::now(), Duration::ZERO);
        slow.heartbeats(bench, || {
            let now = taken.now();
            if now != seen || sending.is_finished() {
                (seen, moved) = (now, Instant::now());
            }
            standstill = standstill.max(moved.elapsed());
            failed |= sending.is_finished() && begun.elapsed() > bench.fixture.deadline();
            failed || arrived()
        })
        .await;
        let took = begun.elapsed();
        let sent: Result<Opened, String> = bench.join("the dispatches", sending).await;
        let appends = sent.unwrap_or_else(|error| bench.fail(format_args!("a dispatch fails: {error}")));
        let indexes = slow.host.engine.look(|log| log.indexes(Lane::Append));
        bench.equal("what arrives", &indexes, &(0..count).collect());
        bench.hold(!appends.ear.is_closed(), "the link of the appends was closed");
        // Some links do not count.
        let moves = seen == 0 || standstill <= STANDSTILL_MAX;
        bench.hold(moves, format_args!("the count of what was taken stood still for {standstill:?}"));
        slow.was_worth_it(bench, before, took);
    });
}

/// What is under way when it dies keeps no caller waiting.
pub fn a_slow_link_that_dies_is_noticed(fixture: Fixture) {
    run(fixture, "a dead link is found within its bound, whatever it had to carry", async |bench| {
        let Some(bound) = bench.can.silence_max else { return };
        let Some(slow) = Slow::begin(bench).await else { return };
        let mut appends = open(bench, &slow.host, slow.path.address(), Lane::Append).await;
        let ear = appends.ear.clone();
        let sending = tokio::spawn(async move {
            for index in 0.. {
                if appends.link.dispatch(numbered(index, APPEND_BYTES)).await.is_err() {
                    return;
                }
            }
        });
        slow.host.engine.until(bench, "a delivery", |log| log.count(Lane::Append) > 0).await;
        slow.path.black_hole();
        let since = Instant::now();
        ear.closed(bench).await;
        let took = since.elapsed();
        bench.hold(took <= bound, format_args!("it was found after {took:?}, not {bound:?}"));
        bench.join("the failure of a dispatch", sending).await;
    });
}
