//! Those who do not speak the protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_engine::message::Lane;

use super::super::RawStream;
use super::super::bench::{Bench, run};
use super::super::engine::Host;
use super::Fixture;

/// Bytes that a listener under attack may take before it cuts the connection, in its memory and the kernel's.
const FLOOD_BYTES_MAX: usize = 64 << 20;

/// Connections full of random bytes.
const ATTEMPTS: u64 = 24;

async fn raw(bench: &Bench, host: &Host) -> Option<Box<dyn RawStream>> {
    bench.within("a raw connection", bench.fixture.raw(&host.address)).await
}

/// Reads until the other side has ended the connection.
async fn ended(mut stream: Box<dyn RawStream>) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

/// Each stranger is told of to the engine, once, and costs nobody else anything. Needs [`TransportFixture::raw`].
///
/// [`TransportFixture::raw`]: super::super::TransportFixture::raw
pub fn garbage_is_refused_and_others_come_in(fixture: Fixture) {
    run(fixture, "`refused` is told of a connection that never got as far as a valid hello", async |bench| {
        let host = bench.host().await;
        let mut random = fastrand::Rng::with_seed(7);
        for attempt in 1..=ATTEMPTS {
            let Some(mut stream) = raw(bench, &host).await else { return };
            let length = random.usize(8..2048);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
            // The listener may have cut it already.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let what = "the end of a connection with garbage";
            bench.within(what, ended(stream)).await;
            let what = "the listener's word of garbage";
            host.engine.until(bench, what, |log| log.refused.len() as u64 >= attempt).await;
        }
        let _link = bench.open(&host, Lane::Control).await;
        let seen = host.engine.look(|log| (log.refused.len() as u64, log.asked.len(), log.sessions));
        bench.equal("refusals, diallers and sessions", &seen, &(ATTEMPTS, 1, 1));
    });
}

/// A connection that says nothing does not stay.
pub fn a_silent_dialler_is_cut(fixture: Fixture) {
    run(fixture, "no hello within the handshake timeout is a refusal", async |bench| {
        let host = bench.host().await;
        let Some(stream) = raw(bench, &host).await else { return };
        bench.within("the end of a silent connection", ended(stream)).await;
        host.engine.until(bench, "the listener's word of silence", |log| log.refused.len() == 1).await;
    });
}

/// Whoever sends without end before a hello is cut after a bounded number of bytes.
pub fn a_flood_before_the_hello_is_cut(fixture: Fixture) {
    run(fixture, "what a stranger may make a listener hold is bounded", async |bench| {
        let host = bench.host().await;
        let Some(mut stream) = raw(bench, &host).await else { return };
        let mut random = fastrand::Rng::with_seed(8);
        let block: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 << 10).collect();
        let mut taken = 0;
        while bench.within("the end of a flood", stream.write_all(&block)).await.is_ok() {
            taken += block.len();
            bench.hold(taken <= FLOOD_BYTES_MAX, format_args!("{taken} bytes of garbage are taken"));
        }
        host.engine.until(bench, "the listener's word of a flood", |log| log.refused.len() == 1).await;
        bench.open(&host, Lane::Control).await;
    });
}
