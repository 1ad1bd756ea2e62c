//! Who comes in, who does not, and what both sides learn; listeners and addresses.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)]

use crate::common::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{
    ConnectError, LinkClosed, PROTOCOL_VERSION, Refusal, Transport, TransportError,
};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_wire::{frames, hello_frame, pb};

/// A dialler that says what it likes.
struct Raw {
    say: mpsc::Sender<pb::Frame>,
    hear: tonic::Streaming<pb::Frame>,
}

async fn raw(at: std::net::SocketAddr) -> Raw {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{at}")).unwrap();
    let mut client = tonic::client::Grpc::new(within(channel.connect()).await.unwrap());
    within(client.ready()).await.unwrap();
    let (say, said) = mpsc::channel(8);
    let path = "/towline.v1.Transport/Lane".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<pb::Frame, pb::Frame>::default();
    let request = tonic::Request::new(ReceiverStream::new(said));
    let hear = within(client.streaming(request, path, codec)).await.unwrap().into_inner();
    Raw { say, hear }
}

impl Raw {
    async fn refused(&mut self) -> Refusal {
        match within(self.hear.message()).await.unwrap().unwrap().kind {
            Some(pb::frame::Kind::Refused(refused)) => refused.try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// What a listener answers to a request that is not the call it serves.
async fn answer(at: std::net::SocketAddr, path: &'static str, content: &'static str) -> (u16, Option<i32>) {
    use tower_service::Service as _;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{at}")).unwrap();
    let mut channel = within(channel.connect()).await.unwrap();
    within(std::future::poll_fn(|cx| channel.poll_ready(cx))).await.unwrap();
    let request = hyper::Request::post(path).header("content-type", content).body(tonic::body::Body::empty());
    let answer = within(channel.call(request.unwrap())).await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).map(|status| status.code() as i32);
    (answer.status().as_u16(), status)
}

fn quick() -> GrpcConfig {
    GrpcConfig { handshake_timeout: std::time::Duration::from_millis(100), ..GrpcConfig::default() }
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
        let (connected, ear) = connect(quick(), listener.local_addr(), Lane::Control).await;
        assert!(matches!(connected, Err(ConnectError::Refused(ref got)) if *got == refusal), "{connected:?}");
        assert_eq!(ear.closed().await, LinkClosed::Abandoned);
        within(listener.shutdown()).await;
        // The engine knows what it refused itself.
        assert!(seen.refused.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_future_version_and_a_wrong_first_frame_are_refused_on_both_sides() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let mut hello = hello();
    hello.protocol = PROTOCOL_VERSION + 1;
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION + 1 };
    let mut peer = raw(listener.local_addr()).await;
    peer.say.send(hello_frame(&hello, Lane::Append)).await.unwrap();
    assert_eq!(peer.refused().await, version);
    assert_eq!(within(seen.refused.recv()).await, Some(version));

    let mut peer = raw(listener.local_addr()).await;
    peer.say.send(frames(batch(1, 0)).unwrap().next().unwrap()).await.unwrap();
    let refusal = peer.refused().await;
    assert!(matches!(refusal, Refusal::Malformed { .. }));
    assert_eq!(within(seen.refused.recv()).await, Some(refusal));
    assert!(seen.delivered.try_recv().is_err());
}

#[tokio::test]
async fn a_slow_handshake_is_refused_on_both_sides() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let mut peer = raw(listener.local_addr()).await;
    assert_eq!(peer.refused().await, Refusal::HandshakeTimeout);
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
}

#[tokio::test]
async fn a_silent_connection_is_cut() {
    let (fake, mut seen) = accepting();
    let listener = listen(quick(), fake).await;
    let mut socket = TcpStream::connect(listener.local_addr()).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(socket.read_to_end(&mut rest)).await;
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
}

#[tokio::test]
async fn garbage_on_the_port_is_refused_and_others_come_in() {
    let (fake, mut seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        let mut socket = TcpStream::connect(listener.local_addr()).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        let _ = within(socket.read_to_end(&mut rest)).await;
        assert!(matches!(within(seen.refused.recv()).await, Some(Refusal::Malformed { .. })));
    }
    assert!(connect(GrpcConfig::default(), listener.local_addr(), Lane::Control).await.0.is_ok());
}

#[tokio::test]
async fn a_flood_before_the_hello_is_cut() {
    let (fake, mut seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let mut peer = raw(listener.local_addr()).await;
    peer.say.send(frames(batch(1, 1 << 20)).unwrap().next().unwrap()).await.unwrap();
    assert!(within(peer.hear.message()).await.is_err());
    assert!(matches!(within(seen.refused.recv()).await, Some(Refusal::Malformed { .. })));
}

#[tokio::test]
async fn other_requests_are_answered_as_grpc_has_it() {
    let (fake, _seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let (at, lane) = (listener.local_addr(), "/towline.v1.Transport/Lane");
    let unimplemented = Some(tonic::Code::Unimplemented as i32);
    assert_eq!(answer(at, "/towline.v1.Transport/Other", "application/grpc").await, (200, unimplemented));
    assert_eq!(answer(at, "/towline.v2.Transport/Lane", "application/grpc").await, (200, unimplemented));
    assert_eq!(answer(at, lane, "text/plain").await, (415, None));
    assert_eq!(answer(at, lane, "application/grpc+proto").await, (200, None));
}

#[tokio::test]
async fn an_oversized_frame_closes_the_lane() {
    let (fake, _seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let mut peer = raw(listener.local_addr()).await;
    peer.say.send(hello_frame(&hello(), Lane::Append)).await.unwrap();
    within(peer.hear.message()).await.unwrap().unwrap();
    let mut frame = frames(batch(1, 0)).unwrap().next().unwrap();
    if let Some(pb::frame::Kind::Batch(batch)) = &mut frame.kind {
        batch.envelopes[0].message.as_mut().unwrap().context = vec![0; 5 << 20].into();
    }
    peer.say.send(frame).await.unwrap();
    // Said as the last word on the lane, which then ends in order.
    let last = peer.refused().await;
    assert!(matches!(&last, Refusal::Malformed { detail } if detail.contains("above the limit")), "{last:?}");
    assert!(within(peer.hear.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_message_no_peer_may_send_costs_its_group_a_nack_and_not_the_lane() {
    let (fake, mut seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let mut peer = raw(listener.local_addr()).await;
    peer.say.send(hello_frame(&hello(), Lane::Append)).await.unwrap();
    within(peer.hear.message()).await.unwrap().unwrap();
    let good = frames(batch(1, 0)).unwrap().next().unwrap();
    let mut proposal = good.clone();
    if let Some(pb::frame::Kind::Batch(batch)) = &mut proposal.kind {
        batch.envelopes[0].message.as_mut().unwrap().msg_type = pb::MessageType::Propose.into();
    }
    peer.say.send(proposal).await.unwrap();
    peer.say.send(good).await.unwrap();
    let nack = pb::Nack { group: 5, cause: pb::NackCause::Rejected.into() };
    let expected = pb::frame::Kind::Nacks(pb::Nacks { nacks: vec![nack] });
    assert_eq!(within(peer.hear.message()).await.unwrap().unwrap().kind, Some(expected));
    assert_eq!(within(seen.delivered.recv()).await, Some((Lane::Append, batch(1, 0))));
}

#[tokio::test]
async fn connections_beyond_the_bound_are_told() {
    let (fake, mut seen) = accepting();
    let config = GrpcConfig { connections_max: 1, ..GrpcConfig::default() };
    let listener = listen(config.clone(), fake).await;
    let (_first, _) = link(config.clone(), listener.local_addr(), Lane::Control).await;
    let (second, _) = connect(config, listener.local_addr(), Lane::Control).await;
    assert!(matches!(second, Err(ConnectError::Refused(Refusal::TooManyConnections))), "{second:?}");
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::TooManyConnections));
}

#[tokio::test]
async fn another_node_than_expected_is_the_wrong_peer() {
    let (fake, _seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake).await;
    let mut to = peer(listener.local_addr());
    to.id = node(9);
    let (_, feedback) = Ear::new();
    let transport = GrpcTransport::default();
    let error = within(transport.connect(&to, Lane::Control, &hello(), feedback)).await.unwrap_err();
    assert!(matches!(error, ConnectError::WrongPeer { .. }), "{error}");
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_something_else_there_is_protocol() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut peer, _) = socket.accept().await.unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest).await;
    });
    let (connected, _) = connect(GrpcConfig::default(), at, Lane::Control).await;
    assert!(matches!(connected, Err(ConnectError::Protocol { .. })), "{connected:?}");
    within(server).await.unwrap();
    let (connected, _) = connect(GrpcConfig::default(), at, Lane::Control).await;
    assert!(matches!(connected, Err(ConnectError::Unreachable { .. })), "{connected:?}");
}

#[tokio::test]
async fn shutdown_closes_what_was_accepted_and_frees_the_address() {
    let (fake, _seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake.clone()).await;
    let at = listener.local_addr();
    let (_link, ear) = link(GrpcConfig::default(), at, Lane::Append).await;
    within(listener.shutdown()).await;
    assert!(matches!(ear.closed().await, LinkClosed::ByPeer { .. }));
    let address = PeerAddr::new(&format!("grpc://{at}")).unwrap();
    within(GrpcTransport::default().listen(&address, fake)).await.unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let (fake, _seen) = accepting();
    let listener = listen(GrpcConfig::default(), fake.clone()).await;
    let address = PeerAddr::new(&format!("grpc://{}", listener.local_addr())).unwrap();
    let error = GrpcTransport::default().listen(&address, fake).await.err().unwrap();
    assert!(matches!(error, TransportError::Bind { .. }));
    assert!(error.to_string().contains(address.as_str()), "{error}");
}

#[tokio::test]
async fn plain_text_stays_on_loopback_unless_allowed() {
    let (fake, _seen) = accepting();
    let transport = GrpcTransport::default();
    for address in ["grpc://0.0.0.0:0", "quic://127.0.0.1:0"] {
        let address = PeerAddr::new(address).unwrap();
        let error = transport.listen(&address, fake.clone()).await.err().unwrap();
        assert!(matches!(error, TransportError::Address { .. }), "{error}");
    }
    let mut to = peer("192.0.2.1:1".parse().unwrap());
    to.id = node(2);
    let (_, feedback) = Ear::new();
    let error = transport.connect(&to, Lane::Control, &hello(), feedback).await.unwrap_err();
    assert!(error.to_string().contains("allow_plaintext_off_loopback"), "{error}");

    let allowed = GrpcConfig { allow_plaintext_off_loopback: true, ..GrpcConfig::default() };
    let address = PeerAddr::new("grpc://0.0.0.0:0").unwrap();
    within(GrpcTransport::new(allowed).listen(&address, fake)).await.unwrap();
}
