//! Lanes between two transports: order, nacks, flow control, ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::common::*;
use towline_engine::ids::GroupId;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    CertIdentity, DispatchError, LinkClosed, LinkEvents, LinkFeedback, Nack, NackCause, Transport, Violation,
};
use towline_quic::QuicConfig;

fn config() -> QuicConfig {
    QuicConfig::default()
}

#[tokio::test]
async fn batches_arrive_in_order_and_equal_and_the_engine_learns_who_sent_them() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake.clone()).await;
    let (connected, _ear) = connect(&dialler(config()), listener.local_addr(), Lane::Append).await;
    let mut connected = connected.unwrap();
    assert_eq!(connected.welcome, welcome());
    assert_eq!(*fake.certs.lock().unwrap(), [Some(CertIdentity { node: node(1) })]);
    for index in 0..200 {
        within(connected.link.dispatch(batch(index, index as usize * 100))).await.unwrap();
    }
    for index in 0..200 {
        let arrived = within(seen.delivered.recv()).await.unwrap();
        assert_eq!(arrived, (Lane::Append, batch(index, index as usize * 100)));
    }
}

/// The keep-alive was added to the time of now, which panicked.
#[tokio::test]
async fn the_longest_times_mean_never() {
    let never = QuicConfig {
        keepalive_interval: Duration::MAX,
        idle_timeout: Duration::MAX,
        handshake_timeout: Duration::MAX,
        ..config()
    };
    let (fake, mut seen) = accepting();
    let listener = listen(never.clone(), fake).await;
    let (mut link, ear) = link(&dialler(never), listener.local_addr(), Lane::Append).await;
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
    let (mut link, _ear) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
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
    let (mut link, ear) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
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
    let (mut link, ear) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
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
    let (mut link, ear) = link(&dialler(config()), listener.local_addr(), Lane::Control).await;
    drop(listener);
    assert!(!matches!(ear.closed().await, LinkClosed::Abandoned));
    assert!(matches!(within(link.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    drop(link);
    assert_eq!(ear.closed_times(), 1);
}

#[tokio::test]
async fn a_dropped_link_says_abandoned_and_leaves_the_others_of_its_connection() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let dialler = dialler(config());
    let (dropped, dropped_ear) = link(&dialler, listener.local_addr(), Lane::Control).await;
    let (mut kept, kept_ear) = link(&dialler, listener.local_addr(), Lane::Append).await;
    drop(dropped);
    assert_eq!(dropped_ear.closed().await, LinkClosed::Abandoned);
    within(kept.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
    assert_eq!(kept_ear.closed_times(), 0);
}

#[tokio::test]
async fn keepalive_finds_a_black_holed_idle_peer_within_its_bound() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let proxy = Proxy::to(listener.local_addr()).await;
    let (_link, ear) = link(&dialler(config()), proxy.at, Lane::Control).await;
    let start = Instant::now();
    proxy.stop_forwarding();
    assert!(matches!(ear.closed().await, LinkClosed::Broken { .. }));
    let bound = config().keepalive_interval + config().idle_timeout;
    assert!(start.elapsed() < bound + Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn an_idle_link_stays_open_for_many_timeouts_of_every_kind() {
    let (fake, mut seen) = accepting();
    let quick = QuicConfig {
        keepalive_interval: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(250),
        handshake_timeout: Duration::from_millis(200),
        ..config()
    };
    let listener = listen(quick.clone(), fake).await;
    let (mut link, ear) = link(&dialler(quick), listener.local_addr(), Lane::Control).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // not synchronisation: silence is what is tested
    assert_eq!(ear.closed_times(), 0);
    within(link.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_lane_whose_peer_takes_nothing_pushes_back_and_others_of_the_same_connection_go_on() {
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let hold = std::sync::Mutex::new(hold);
    let (fake, mut seen) = fake(None, move |lane, _| {
        // The engine never blocks; here it does, as a receiver that is slow on one lane.
        if lane == Lane::Append {
            let _ = tokio::task::block_in_place(|| hold.lock().unwrap().recv());
        }
        Ok(Vec::new())
    });
    let listener = listen(config(), fake).await;
    let dialler = dialler(config());
    // Two, so that together they want more than one stream's window.
    let (mut also, _ear) = link(&dialler, listener.local_addr(), Lane::Append).await;
    let (mut append, ear) = link(&dialler, listener.local_addr(), Lane::Append).await;
    let (mut control, _ear) = link(&dialler, listener.local_addr(), Lane::Control).await;
    let (mut taken, mut also_taken) = (0, 0);
    let stuck = async {
        for index in 0..256 {
            append.dispatch(batch(index, 1 << 20)).await.unwrap();
            taken += 1;
        }
    };
    let stuck = async {
        tokio::join!(stuck, async {
            for index in 0..256 {
                also.dispatch(batch(index, 1 << 20)).await.unwrap();
                also_taken += 1;
            }
        })
    };
    {
        let mut stuck = std::pin::pin!(stuck);
        assert!(tokio::time::timeout(Duration::from_secs(1), stuck.as_mut()).await.is_err());
        // Of a size that needs room of its own, while the others still hold theirs.
        within(control.dispatch(batch(7, 1 << 20))).await.unwrap();
        assert_eq!(within(seen.delivered.recv()).await.unwrap(), (Lane::Control, batch(7, 1 << 20)));
    }
    assert!(taken < 8 && also_taken < 8, "{taken} and {also_taken} MiB were taken");

    // The dispatch above was dropped midway: the link is of no further use.
    assert!(matches!(within(append.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(ear.closed().await, LinkClosed::Abandoned);
    drop(release);
}

/// A stream that is dropped is finished by the library; a lane that was given up must never look like an end in order.
#[tokio::test]
async fn a_link_that_is_dropped_resets_its_stream_and_the_last_one_closes_the_connection() {
    let server = raw::server(&AUTHORITY.issue(node(2)).unwrap(), b"towline/1");
    let at = server.local_addr().unwrap();
    let dialler = dialler(config());
    let (connected, (connection, mut lane)) =
        tokio::join!(connect(&dialler, at, Lane::Append), raw::welcome_one(&server));
    let mut link = connected.0.unwrap().link;
    let (other, _) = tokio::join!(connect(&dialler, at, Lane::Control), raw::welcome_lane(&connection));
    {
        // More than the window holds: the rest is not under way yet.
        let dispatch = link.dispatch(batch(1, 4_000_000));
        let mut dispatch = std::pin::pin!(dispatch);
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(dispatch.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
    }
    assert!(matches!(within(link.dispatch(batch(2, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(connected.1.closed().await, LinkClosed::Abandoned);
    let mut read = vec![0; 64 << 10];
    let end = within(async {
        loop {
            match lane.hear.read(&mut read).await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    });
    let end = end.await;
    assert!(matches!(end, Err(quinn::ReadError::Reset(_))), "{end:?}");
    drop(other);
    let closed = within(connection.closed()).await;
    assert!(closed.to_string().contains("no lane is left"), "{closed}");
}

#[tokio::test]
async fn a_listener_that_breaks_the_protocol_ends_the_link() {
    let server = raw::server(&AUTHORITY.issue(node(2)).unwrap(), b"towline/1");
    let at = server.local_addr().unwrap();
    let dialler = dialler(config());
    let (connected, (_connection, mut lane)) =
        tokio::join!(connect(&dialler, at, Lane::Append), raw::welcome_one(&server));
    let (connected, ear) = connected;
    let mut link = connected.unwrap().link;
    within(lane.say.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff])).await.unwrap();
    assert!(matches!(ear.closed().await, LinkClosed::Violation { .. }));
    assert!(matches!(within(link.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
}

#[tokio::test]
async fn a_message_that_fits_in_no_frame_is_an_error_of_its_own() {
    let (fake, _seen) = accepting();
    let listener = listen(config(), fake).await;
    let (mut link, _ear) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
    let error = within(link.dispatch(batch(1, 5 << 20))).await.unwrap_err();
    assert!(matches!(error, DispatchError::TooLarge { bytes, .. } if bytes > 5 << 20));
}

#[tokio::test]
async fn the_newest_streams_of_a_peer_win() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let dialler = dialler(config());
    let (_first, oldest) = link(&dialler, listener.local_addr(), Lane::Append).await;
    let (_second, _) = link(&dialler, listener.local_addr(), Lane::Append).await;
    let (mut third, newest) = link(&dialler, listener.local_addr(), Lane::Append).await;
    assert!(matches!(oldest.closed().await, LinkClosed::ByPeer { .. }));
    within(third.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
    assert_eq!(newest.closed_times(), 0);
}

#[tokio::test]
async fn the_newest_connections_of_a_peer_win() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake).await;
    let (_first, oldest) = link(&dialler(config()), listener.local_addr(), Lane::Control).await;
    let (_second, _) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
    let (mut third, newest) = link(&dialler(config()), listener.local_addr(), Lane::Append).await;
    assert!(matches!(oldest.closed().await, LinkClosed::ByPeer { .. }));
    within(third.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
    assert_eq!(newest.closed_times(), 0);
}

#[tokio::test]
async fn a_peer_that_comes_back_is_reached_by_a_new_connection() {
    let (fake, mut seen) = accepting();
    let listener = listen(config(), fake.clone()).await;
    let (at, dialler) = (listener.local_addr(), dialler(config()));
    let (_lost, ear) = link(&dialler, at, Lane::Append).await;
    within(listener.shutdown()).await;
    ear.closed().await;
    let address = peer(at).address;
    let listener =
        towline_quic::QuicTransport::new(config(), of_node(2)).listen(&address, fake).await.unwrap();
    let (mut link, _ear) = link(&dialler, listener.local_addr(), Lane::Append).await;
    within(link.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
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
    let (dialler, hello) = (dialler(config()), hello());
    let connected = within(dialler.connect(&to, Lane::Append, &hello, feedback)).await;
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
