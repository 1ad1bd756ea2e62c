//! Lanes between two transports: order, nacks, flow control, ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::common::*;
use towline_engine::ids::GroupId;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    DispatchError, LinkClosed, LinkEvents, LinkFeedback, Nack, NackCause, Transport as _, Violation,
};
use towline_grpc::{GrpcConfig, GrpcTransport};

fn config() -> GrpcConfig {
    GrpcConfig::default()
}

#[tokio::test]
async fn batches_arrive_in_order_and_equal() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let (connected, _ear) = connect(config(), listener.local_addr(), Lane::Append).await;
    let mut connected = connected.unwrap();
    assert_eq!(connected.welcome, welcome());
    for index in 0..200 {
        within(connected.link.dispatch(batch(index, index as usize * 100))).await.unwrap();
    }
    for index in 0..200 {
        let arrived = within(seen.delivered.recv()).await.unwrap();
        assert_eq!(arrived, (Lane::Append, batch(index, index as usize * 100)));
    }
}

/// Each time was added to the time of now, which panicked.
#[tokio::test]
async fn the_longest_times_mean_never() {
    let never = GrpcConfig {
        keepalive_interval: Duration::MAX,
        keepalive_timeout: Duration::MAX,
        handshake_timeout: Duration::MAX,
        ..config()
    };
    let (fake, mut seen) = accepting();
    let listener = listen(never.clone(), fake).await;
    let (mut link, ear) = link(never, listener.local_addr(), Lane::Append).await;
    for index in 0..3 {
        within(link.dispatch(batch(index, 100))).await.unwrap();
        assert_eq!(within(seen.delivered.recv()).await.unwrap(), (Lane::Append, batch(index, 100)));
    }
    assert_eq!(ear.closed_times(), 0);
}

#[tokio::test]
async fn a_batch_of_many_frames_arrives_whole_and_in_order() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let (mut link, _ear) = link(config(), listener.local_addr(), Lane::Append).await;
    let envelopes: Vec<_> = (0..12).flat_map(|index| batch(index, 400_000).envelopes).collect();
    within(link.dispatch(Batch { envelopes: envelopes.clone() })).await.unwrap();
    let mut arrived = Vec::new();
    while arrived.len() < envelopes.len() {
        arrived.extend(within(seen.delivered.recv()).await.unwrap().1.envelopes);
    }
    assert_eq!(arrived, envelopes);
}

#[tokio::test]
async fn nacks_come_back_and_the_lane_goes_on() {
    let nack = Nack { group: GroupId::new(5), cause: NackCause::InboxFull };
    let (fake, mut seen) = fake(None, move |_, _| Ok(vec![nack]));
    let listener = listen(config(), fake).await;
    let (mut link, ear) = link(config(), listener.local_addr(), Lane::Append).await;
    for index in 1..=3 {
        within(link.dispatch(batch(index, 0))).await.unwrap();
        assert_eq!(ear.nacks(index as usize).await.last(), Some(&nack));
        within(seen.delivered.recv()).await.unwrap();
    }
    assert_eq!(ear.closed_times(), 0);
}

#[tokio::test]
async fn a_violation_closes_the_lane_once_with_its_reason() {
    let (fake, _seen) = fake(None, |_, _| Err(Violation { detail: "nonsense".into() }));
    let listener = listen(config(), fake).await;
    let (mut link, ear) = link(config(), listener.local_addr(), Lane::Append).await;
    within(link.dispatch(batch(1, 0))).await.unwrap();
    assert_eq!(ear.closed().await, LinkClosed::ByPeer { detail: "nonsense".into() });
    within(async { while link.dispatch(batch(2, 0)).await.is_ok() {} }).await;
    drop(link);
    assert_eq!(ear.closed_times(), 1);
}

#[tokio::test]
async fn a_peer_that_dies_closes_the_link_exactly_once() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let (mut link, ear) = link(config(), listener.local_addr(), Lane::Control).await;
    drop(listener);
    assert!(!matches!(ear.closed().await, LinkClosed::Abandoned));
    assert!(matches!(within(link.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    drop(link);
    assert_eq!(ear.closed_times(), 1);
}

#[tokio::test]
async fn a_dropped_link_says_abandoned() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let (link, ear) = link(config(), listener.local_addr(), Lane::Control).await;
    drop(link);
    assert_eq!(ear.closed().await, LinkClosed::Abandoned);
}

async fn broken(ear: &Ear) -> String {
    match ear.closed().await {
        LinkClosed::Broken { detail } => detail,
        other => panic!("{other:?}"),
    }
}

/// It had the words of a keep-alive that timed out.
#[tokio::test]
async fn a_connection_that_the_other_side_closed_is_told_from_one_that_keepalive_gave_up() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let proxy = Proxy::to(listener.local_addr()).await;
    let (_link, ear) = link(config(), proxy.at, Lane::Control).await;
    proxy.close();
    assert_eq!(broken(&ear).await, "the peer closed the connection");
}

#[tokio::test]
async fn keepalive_finds_a_black_holed_idle_peer_within_its_bound() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let proxy = Proxy::to(listener.local_addr()).await;
    let (_link, ear) = link(config(), proxy.at, Lane::Control).await;
    let start = Instant::now();
    proxy.stop_forwarding();
    let detail = broken(&ear).await;
    assert_eq!(detail, "keep-alive: the peer did not answer in time");
    let bound = config().keepalive_interval + config().keepalive_timeout;
    assert!(start.elapsed() < bound + Duration::from_secs(1), "{:?}", start.elapsed());
}

/// HTTP/2 counts empty frames, and cut a connection after a hundred.
#[tokio::test]
async fn no_number_of_signs_of_life_ends_a_link() {
    let often =
        GrpcConfig { keepalive_interval: Duration::from_millis(2), keepalive_timeout: DEADLINE, ..config() };
    let (fake, mut seen) = accepting();
    let listener = listen(often.clone(), fake).await;
    let (mut link, _ear) = link(often.clone(), listener.local_addr(), Lane::Append).await;
    let mut beats = tokio::time::interval(often.keepalive_interval);
    for index in 0..300 {
        beats.tick().await;
        within(link.dispatch(batch(index, 0))).await.unwrap();
        assert_eq!(within(seen.delivered.recv()).await.unwrap().0, Lane::Append);
    }
}

#[tokio::test]
async fn a_peer_that_takes_nothing_pushes_back_and_other_lanes_go_on() {
    let calm = GrpcConfig { keepalive_timeout: DEADLINE, ..config() };
    let (fake, mut seen) = accepting();
    let listener = listen(calm.clone(), fake).await;
    let proxy = Proxy::to(listener.local_addr()).await;
    let (mut append, ear) = link(calm.clone(), proxy.at, Lane::Append).await;
    proxy.stop_forwarding();
    // Far more than the windows, the frames under way and the sockets' buffers can hold.
    let mut taken = 0;
    let stuck = async {
        for index in 0..256 {
            append.dispatch(batch(index, 1 << 20)).await.unwrap();
            taken += 1;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(1), stuck).await.is_err());
    assert!(taken < 32, "{taken} MiB were taken");

    // A connection of its own: it does not wait.
    let (mut control, _ear) = link(calm, listener.local_addr(), Lane::Control).await;
    within(control.dispatch(batch(7, 0))).await.unwrap();
    assert_eq!(within(seen.delivered.recv()).await.unwrap(), (Lane::Control, batch(7, 0)));

    // The dispatch above was dropped midway: the link is of no further use.
    assert!(matches!(within(append.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(ear.closed().await, LinkClosed::Abandoned);
}

#[tokio::test]
async fn a_dispatch_dropped_midway_poisons_the_link() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let (mut link, ear) = link(config(), listener.local_addr(), Lane::Append).await;
    let envelopes = (0..12).flat_map(|index| batch(index, 400_000).envelopes).collect();
    {
        // No other task runs in between, so the second frame finds no room.
        let mut dispatch = pin!(link.dispatch(Batch { envelopes }));
        assert!(matches!(dispatch.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    }
    assert!(matches!(within(link.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(ear.closed().await, LinkClosed::Abandoned);
    assert_eq!(ear.closed_times(), 1);
}

#[tokio::test]
async fn a_message_that_fits_in_no_frame_is_an_error_of_its_own() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let (mut link, _ear) = link(config(), listener.local_addr(), Lane::Append).await;
    let error = within(link.dispatch(batch(1, 5 << 20))).await.unwrap_err();
    assert!(matches!(error, DispatchError::TooLarge { bytes, .. } if bytes > 5 << 20));
}

#[tokio::test]
async fn the_newest_streams_of_a_peer_win() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let (_first, oldest) = link(config(), listener.local_addr(), Lane::Append).await;
    let (_second, _) = link(config(), listener.local_addr(), Lane::Append).await;
    let (mut third, newest) = link(config(), listener.local_addr(), Lane::Append).await;
    assert!(matches!(oldest.closed().await, LinkClosed::ByPeer { .. }));
    within(third.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
    assert_eq!(newest.closed_times(), 0);
}

/// An ear that hears one nack and then nothing more until it is let go.
struct Deaf {
    heard: std::sync::mpsc::Sender<()>,
    hold: std::sync::Mutex<std::sync::mpsc::Receiver<()>>,
}

impl LinkEvents for Deaf {
    fn nack(&self, _nack: Nack) {
        let _ = self.heard.send(());
        let _ = self.hold.lock().unwrap().recv_timeout(DEADLINE / 2);
    }

    fn closed(&self, _cause: LinkClosed) {}
}

/// Nacks must not queue without bound for a dialler that does not read them, nor be lost without a trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nacks_a_dialler_does_not_read_are_dropped_and_counted() {
    const GROUPS: u64 = 2_000;
    let nack = |group| Nack { group: GroupId::new(group), cause: NackCause::InboxFull };
    let nacks: Vec<_> = (0..GROUPS).map(nack).collect();
    let (fake, mut seen) = fake(None, move |_, _| Ok(nacks.clone()));
    let dropped = fake.nacks_dropped.clone();
    let listener = listen(config(), fake).await;
    let ((heard, hears), (release, hold)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
    let feedback = LinkFeedback::new(std::sync::Arc::new(Deaf { heard, hold: hold.into() }));
    let to = peer(listener.local_addr());
    let (transport, hello) = (GrpcTransport::new(config()), hello());
    let connected = within(transport.connect(&to, Lane::Append, &hello, feedback)).await;
    let mut link = connected.unwrap().link;
    let mut index = 0;
    within(async {
        while dropped.load(Ordering::Relaxed) == 0 {
            link.dispatch(batch(index, 0)).await.unwrap();
            assert_eq!(seen.delivered.recv().await.unwrap(), (Lane::Append, batch(index, 0)));
            index += 1;
        }
    })
    .await;
    assert!(hears.try_recv().is_ok() && hears.try_recv().is_err(), "the ear is held at its first nack");
    assert_eq!(dropped.load(Ordering::Relaxed) as u64 % GROUPS, 0, "whole frames");
    drop(release);
}
