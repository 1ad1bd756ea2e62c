//! Connections that do not speak the protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::RawStream;
use super::*;

/// Bytes that a listener and the kernel may take before the listener cuts the connection.
const FLOOD_BYTES_MAX: usize = 64 << 20;

/// Connections with random bytes.
const ATTEMPTS: u64 = 24;

async fn raw(case: &TransportCase, host: &ListeningNode) -> Option<Box<dyn RawStream>> {
    case.within("a raw connection", case.fixture.raw(&host.address)).await
}

/// Reads until the listener ends the connection.
async fn ended(mut stream: Box<dyn RawStream>) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}

/// The engine gets one report for each connection. Needs `TransportFixture::raw`.
pub(in super::super) async fn garbage_is_refused_and_others_are_admitted(
    case: &TransportCase,
    host: ListeningNode,
) {
    let mut random = fastrand::Rng::with_seed(7);
    for attempt in 1..=ATTEMPTS {
        let Some(mut stream) = raw(case, &host).await else { return };
        let length = random.usize(8..2048);
        let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(length).collect();
        // The listener may have cut it already.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let what = "the end of a connection with garbage";
        case.within(what, ended(stream)).await;
        let what = "the report of garbage";
        host.until(case, what, |log| log.refused.len() as u64 >= attempt).await;
    }
    let _link = case.open(&host, Lane::Control).await;
    let seen = host.inbound.look(|log| (log.refused.len() as u64, log.asked.len(), log.sessions));
    case.equal("refusals, diallers and sessions", &seen, &(ATTEMPTS, 1, 1));
}

pub(in super::super) async fn a_silent_dialler_is_cut(case: &TransportCase, host: ListeningNode) {
    let Some(stream) = raw(case, &host).await else { return };
    case.within("the end of a silent connection", ended(stream)).await;
    host.until(case, "the report of silence", |log| log.refused.len() == 1).await;
}

pub(in super::super) async fn a_flood_before_the_hello_is_cut(case: &TransportCase, host: ListeningNode) {
    let Some(mut stream) = raw(case, &host).await else { return };
    let mut random = fastrand::Rng::with_seed(8);
    let block: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(64 << 10).collect();
    let mut taken = 0;
    while case.within("the end of a flood", stream.write_all(&block)).await.is_ok() {
        taken += block.len();
        case.hold(taken <= FLOOD_BYTES_MAX, format_args!("{taken} bytes of garbage are taken"));
    }
    host.until(case, "the report of a flood", |log| log.refused.len() == 1).await;
    case.open(&host, Lane::Control).await;
}
