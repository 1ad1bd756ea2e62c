//! Who comes in, who does not, and what both sides learn; listeners and addresses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

use std::time::Duration;

use crate::common::raw;
use crate::common::*;
use tokio::net::UdpSocket;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, LinkClosed, PROTOCOL_VERSION, Refusal, Transport, TransportError,
};
use towline_quic::{QuicConfig, QuicTransport};
use towline_wire::{frames, hello_frame, pb};

fn quick() -> QuicConfig {
    QuicConfig { handshake_timeout: Duration::from_millis(200), ..QuicConfig::default() }
}

#[tokio::test]
async fn every_refusal_of_the_engine_reaches_the_dialler_typed() {
    for refusal in [
        Refusal::WrongCluster { ours: "other".into() },
        Refusal::WrongNode { ours: 3 },
        Refusal::UnknownPeer { peer: 1 },
        Refusal::WrongIncarnation { peer: 1 },
        Refusal::Unauthenticated { detail: "why".into() },
        Refusal::TooManyConnections,
        Refusal::ShuttingDown,
    ] {
        let (fake, mut seen) = fake(Some(refusal.clone()), |_, _| Ok(Vec::new()));
        let listener = listen(quick(), fake).await;
        let (connected, ear) = connect(&dialler(quick()), listener.local_addr(), Lane::Control).await;
        assert!(matches!(connected, Err(ConnectError::Refused(ref got)) if *got == refusal), "{connected:?}");
        assert_eq!(ear.closed().await, LinkClosed::Abandoned);
        within(listener.shutdown()).await;
        // The engine knows what it refused itself.
        assert!(seen.refused.try_recv().is_err());
    }
}

#[tokio::test]
async fn another_version_is_refused_by_tls_on_both_sides() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let cert = AUTHORITY.issue(node(1)).unwrap();
    assert!(raw::dial(listener.local_addr(), Some(&cert), b"towline/2").await.is_err());
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: 2 };
    assert_eq!(within(seen.refused.recv()).await, Some(version));

    // Ours, at a listener of a later version, which cannot say which.
    let server = raw::server(&AUTHORITY.issue(node(2)).unwrap(), b"towline/2");
    let at = server.local_addr().unwrap();
    let accept = tokio::spawn(async move { server.accept().await.unwrap().await });
    let (connected, _) = connect(&dialler(quick()), at, Lane::Control).await;
    assert!(
        matches!(
            connected,
            Err(ConnectError::Refused(Refusal::Version { ours: 0, theirs: PROTOCOL_VERSION }))
        ),
        "{connected:?}"
    );
    assert!(within(accept).await.unwrap().is_err());
}

#[tokio::test]
async fn a_future_version_in_the_hello_and_a_wrong_first_frame_are_refused_on_both_sides() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let mut hello = hello();
    hello.protocol = PROTOCOL_VERSION + 1;
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION + 1 };
    let raw = raw::good(listener.local_addr()).await;
    let mut lane = raw.lane().await;
    lane.say(&hello_frame(&hello, Lane::Append)).await;
    assert_eq!(lane.refused().await, version);
    assert_eq!(within(seen.refused.recv()).await, Some(version));

    let mut lane = raw.lane().await;
    lane.say(&frames(batch(1, 0)).unwrap().next().unwrap()).await;
    let refusal = lane.refused().await;
    assert!(matches!(refusal, Refusal::Malformed { .. }));
    assert_eq!(within(seen.refused.recv()).await, Some(refusal));
    assert!(seen.delivered.try_recv().is_err());
}

#[tokio::test]
async fn a_slow_hello_is_refused_on_both_sides() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    let mut lane = raw.lane().await;
    // The peer learns of a stream from its first byte.
    within(lane.say.write_all(&[0])).await.unwrap();
    assert_eq!(lane.refused().await, Refusal::HandshakeTimeout);
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
}

#[tokio::test]
async fn a_silent_connection_is_cut() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    let closed = within(raw.connection.closed()).await;
    assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed}");
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
}

/// The first packet of a dialler, and then nothing: its TLS handshake never ends.
#[tokio::test]
async fn a_tls_handshake_that_does_not_go_on_is_refused() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let trap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = trap.local_addr().unwrap();
    let dialling = tokio::spawn(async move { connect(&dialler(quick()), at, Lane::Control).await });
    let mut packet = vec![0; 2048];
    let (length, _) = within(trap.recv_from(&mut packet)).await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(&packet[..length], listener.local_addr()).await.unwrap();
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
    let (connected, _) = within(dialling).await.unwrap();
    assert!(matches!(connected, Err(ConnectError::Unreachable { .. })), "{connected:?}");
}

#[tokio::test]
async fn garbage_on_the_port_is_dropped_and_others_come_in() {
    let (fake, mut seen) = accepting();
    let listener = listen(QuicConfig::default(), fake).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for seed in 0..2_000_u32 {
        // Long headers, short ones and neither, of every length; some with the version of QUIC.
        let byte =
            |i: u32| (seed.wrapping_mul(2_654_435_761).wrapping_add(i.wrapping_mul(40_503)) >> 8) as u8;
        let mut garbage: Vec<u8> = (0..seed % 1_400).map(byte).collect();
        if seed % 3 == 0 && garbage.len() > 4 {
            garbage[0] |= 0xc0;
            garbage[1..5].copy_from_slice(&1_u32.to_be_bytes());
        }
        let _ = socket.send_to(&garbage, listener.local_addr()).await;
    }
    let dialler = dialler(QuicConfig::default());
    let (mut link, _ear) = link(&dialler, listener.local_addr(), Lane::Control).await;
    within(link.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
}

#[tokio::test]
async fn garbage_instead_of_a_hello_is_refused_by_type() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    // A length beyond that of a hello, a frame that is none, and an end in the middle.
    for garbage in [&[0xff; 8][..], &[0, 0, 0, 3, 0xff, 0xff, 0xff], &[0, 0, 0, 9, 1]] {
        let mut lane = raw.lane().await;
        within(lane.say.write_all(garbage)).await.unwrap();
        lane.say.finish().unwrap();
        assert!(matches!(lane.refused().await, Refusal::Malformed { .. }));
        assert!(matches!(within(seen.refused.recv()).await, Some(Refusal::Malformed { .. })));
    }
}

#[tokio::test]
async fn a_connection_whose_hellos_are_all_refused_is_closed() {
    let (fake, _seen) = fake(Some(Refusal::UnknownPeer { peer: 1 }), |_, _| Ok(Vec::new()));
    let listener = listen(QuicConfig::default(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    for _ in 0..8 {
        let mut lane = raw.lane().await;
        lane.say(&hello_frame(&hello(), Lane::Append)).await;
        assert_eq!(lane.refused().await, Refusal::UnknownPeer { peer: 1 });
    }
    let closed = within(raw.connection.closed()).await;
    assert!(closed.to_string().contains("too many hellos"), "{closed}");
}

#[tokio::test]
async fn an_oversized_frame_closes_the_lane_before_its_body_comes() {
    let (fake, _seen) = accepting();
    let listener = listen(QuicConfig::default(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    let mut lane = raw.lane().await;
    lane.say(&hello_frame(&hello(), Lane::Append)).await;
    assert!(matches!(lane.hear().await.unwrap().kind, Some(pb::frame::Kind::Welcome(_))));
    within(lane.say.write_all(&(5_u32 << 20).to_be_bytes())).await.unwrap();
    let refusal = lane.refused().await;
    assert!(
        matches!(&refusal, Refusal::Malformed { detail } if detail.contains("above the limit")),
        "{refusal}"
    );
    assert!(lane.hear().await.is_none());
}

/// A peer that is refused has a certificate, and sixteen streams. What it sends before a hello is accepted is bounded for all
/// of them together; who is let in gets the windows of the settings.
#[tokio::test]
async fn a_flood_before_the_hello_finds_no_room() {
    let (fake, _seen) = accepting();
    let slow = QuicConfig { handshake_timeout: Duration::from_secs(10), ..QuicConfig::default() };
    let listener = listen(slow, fake).await;
    let raw = raw::good(listener.local_addr()).await;
    let zeros = vec![0; 1 << 20];
    let mut stranger = raw.lane().await;
    let mut member = raw.lane().await;
    member.say(&hello_frame(&hello(), Lane::Append)).await;
    // As many as the listener has room for are taken at once.
    let before = within(stranger.say.write(&zeros)).await.unwrap();
    assert!(before <= 32 << 10, "{before} bytes were taken before any hello was answered");
    assert!(matches!(member.hear().await.unwrap().kind, Some(pb::frame::Kind::Welcome(_))));
    within(member.say.write_all(&(4_u32 << 20).to_be_bytes())).await.unwrap();
    let after = within(member.say.write(&zeros)).await.unwrap();
    assert!(after > 512 << 10, "{after} bytes were taken of one that was let in");
}

#[tokio::test]
async fn a_message_no_peer_may_send_costs_its_group_a_nack_and_not_the_lane() {
    let (fake, mut seen) = accepting();
    let listener = listen(QuicConfig::default(), fake).await;
    let raw = raw::good(listener.local_addr()).await;
    let mut lane = raw.lane().await;
    lane.say(&hello_frame(&hello(), Lane::Append)).await;
    lane.hear().await.unwrap();
    let good = frames(batch(1, 0)).unwrap().next().unwrap();
    let mut proposal = good.clone();
    if let Some(pb::frame::Kind::Batch(batch)) = &mut proposal.kind {
        batch.envelopes[0].message.as_mut().unwrap().msg_type = pb::MessageType::Propose.into();
    }
    lane.say(&proposal).await;
    lane.say(&good).await;
    let nack = pb::Nack { group: 5, cause: pb::NackCause::Rejected.into() };
    let expected = pb::frame::Kind::Nacks(pb::Nacks { nacks: vec![nack] });
    assert_eq!(lane.hear().await.unwrap().kind, Some(expected));
    assert_eq!(within(seen.delivered.recv()).await, Some((Lane::Append, batch(1, 0))));
}

#[tokio::test]
async fn connections_beyond_the_bound_are_told() {
    let (fake, mut seen) = accepting();
    let config = QuicConfig { connections_max: 1, ..QuicConfig::default() };
    let listener = listen(config.clone(), fake).await;
    let first = dialler(config.clone());
    let (_first, _) = link(&first, listener.local_addr(), Lane::Control).await;
    // A further lane of the same peer is no further connection.
    let (_also, _) = link(&first, listener.local_addr(), Lane::Append).await;
    let (second, _) = connect(&dialler(config), listener.local_addr(), Lane::Control).await;
    assert!(matches!(second, Err(ConnectError::Refused(Refusal::TooManyConnections))), "{second:?}");
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::TooManyConnections));
}

#[tokio::test]
async fn handshakes_beyond_the_rate_are_told() {
    let (fake, mut seen) = accepting();
    let config = QuicConfig { handshakes_per_second_max: 1, ..QuicConfig::default() };
    let listener = listen(config.clone(), fake).await;
    let (_first, _) = link(&dialler(config.clone()), listener.local_addr(), Lane::Control).await;
    let (second, _) = connect(&dialler(config), listener.local_addr(), Lane::Control).await;
    assert!(matches!(second, Err(ConnectError::Refused(Refusal::TooManyConnections))), "{second:?}");
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::TooManyConnections));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (connected, _) = connect(&dialler(quick()), socket.local_addr().unwrap(), Lane::Control).await;
    assert!(matches!(connected, Err(ConnectError::Unreachable { .. })), "{connected:?}");
}

#[tokio::test]
async fn something_else_there_is_protocol() {
    let server = raw::server(&AUTHORITY.issue(node(2)).unwrap(), b"towline/1");
    let at = server.local_addr().unwrap();
    let serve = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut say, _hear) = connection.accept_bi().await.unwrap();
        say.write_all(&[0, 0, 0, 2, 0xff, 0xff]).await.unwrap();
        connection.closed().await
    });
    let (connected, _) = connect(&dialler(quick()), at, Lane::Control).await;
    assert!(matches!(connected, Err(ConnectError::Protocol { .. })), "{connected:?}");
    // And a dialler without a lane holds no connection.
    within(serve).await.unwrap();
}

#[tokio::test]
async fn shutdown_closes_what_was_accepted_and_frees_the_address() {
    let (fake, _seen) = accepting();
    let listener = listen(QuicConfig::default(), fake.clone()).await;
    let at = listener.local_addr();
    let (_link, ear) = link(&dialler(QuicConfig::default()), at, Lane::Append).await;
    within(listener.shutdown()).await;
    let closed = ear.closed().await;
    assert_eq!(closed, LinkClosed::ByPeer { detail: Refusal::ShuttingDown.to_string() });
    let address = PeerAddr::new(&format!("quic://{at}")).unwrap();
    within(QuicTransport::new(QuicConfig::default(), of_node(2)).listen(&address, fake)).await.unwrap();
}

#[tokio::test]
async fn addresses_in_use_and_of_other_transports_are_named() {
    let (fake, _seen) = accepting();
    let listener = listen(QuicConfig::default(), fake.clone()).await;
    let transport = QuicTransport::new(QuicConfig::default(), of_node(2));
    let address = PeerAddr::new(&format!("quic://{}", listener.local_addr())).unwrap();
    let error = transport.listen(&address, fake.clone()).await.err().unwrap();
    assert!(matches!(error, TransportError::Bind { .. }));
    assert!(error.to_string().contains(address.as_str()), "{error}");

    let address = PeerAddr::new("grpc://127.0.0.1:0").unwrap();
    let error = transport.listen(&address, fake).await.err().unwrap();
    assert!(matches!(error, TransportError::Address { .. }), "{error}");
    let (_, feedback) = Ear::new();
    let mut to = peer(listener.local_addr());
    to.address = address;
    let error = transport.connect(&to, Lane::Control, &hello(), feedback).await.unwrap_err();
    assert!(matches!(error, ConnectError::Address { .. }), "{error}");
}
