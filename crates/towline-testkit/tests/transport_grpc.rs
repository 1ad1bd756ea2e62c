//! What only gRPC does: HTTP on its port, plain text, keep-alive by frames. The rest is in the suite and for both transports
//! in `transport_bounds`, `transport_peers` and `node_refusals`.

use std::net::SocketAddr;

use crate::common::*;
use crate::wires::{Listening, of_node};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn plain() -> GrpcTransport {
    GrpcTransport::default()
}

fn secure(node: u64) -> GrpcTransport {
    GrpcTransport::with_tls(GrpcConfig::default(), of_node(node))
}

fn address(at: impl std::fmt::Display) -> PeerAddr {
    format!("grpc://{at}").parse().unwrap()
}

/// Sends bytes without TLS and reads until the listener ends the connection.
async fn send_raw(at: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let _ = within(socket.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn garbage_on_the_port_is_refused_and_peers_are_admitted() {
    let listening = Listening::on(&plain()).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        &[0xff; 4096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        send_raw(listening.at(), garbage).await;
        assert!(matches!(listening.refusal().await, Refusal::Malformed { .. }));
    }
    listening.link(&plain(), Lane::Control).await;
}

#[tokio::test]
async fn a_silent_connection_and_half_a_tls_handshake_are_cut() {
    let quick = GrpcConfig { handshake_timeout: Duration::from_millis(100), ..GrpcConfig::default() };
    // The second sends the header of a TLS record of 512 bytes.
    for (transport, said) in [
        (GrpcTransport::new(quick.clone()), &[][..]),
        (GrpcTransport::with_tls(quick, of_node(2)), &[22, 3, 1, 2, 0]),
    ] {
        let listening = Listening::on(&transport).await;
        send_raw(listening.at(), said).await;
        assert_eq!(listening.refusal().await, Refusal::HandshakeTimeout);
    }
}

/// The HTTP status and the gRPC status that a listener answers to a request other than the call it serves.
async fn answer(at: SocketAddr, path: &'static str, content: &'static str) -> (u16, Option<i32>) {
    use tower_service::Service as _;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{at}")).unwrap();
    let mut channel = within(channel.connect()).await.unwrap();
    within(std::future::poll_fn(|cx| channel.poll_ready(cx))).await.unwrap();
    let request = tonic::codegen::http::Request::post(path).header("content-type", content);
    let answer = within(channel.call(request.body(tonic::body::Body::empty()).unwrap())).await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).map(|status| status.code() as i32);
    (answer.status().as_u16(), status)
}

#[tokio::test]
async fn other_requests_get_the_answers_of_the_grpc_specification() {
    let listening = Listening::on(&plain()).await;
    let (at, lane) = (listening.at(), "/towline.v1.Transport/Lane");
    let unimplemented = Some(tonic::Code::Unimplemented as i32);
    assert_eq!(answer(at, "/towline.v1.Transport/Other", "application/grpc").await, (200, unimplemented));
    assert_eq!(answer(at, "/towline.v2.Transport/Lane", "application/grpc").await, (200, unimplemented));
    assert_eq!(answer(at, lane, "text/plain").await, (415, None));
    assert_eq!(answer(at, lane, "application/grpc+proto").await, (200, None));
}

#[tokio::test]
async fn a_server_of_another_protocol_is_a_protocol_error() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Peer { id: node_id(2), address: address(socket.local_addr().unwrap()) };
    let server = tokio::spawn(async move {
        let (mut peer, _) = socket.accept().await.unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        let _ = peer.read_to_end(&mut Vec::new()).await;
    });
    let (connected, _) = crate::wires::connect(&plain(), &peer, Lane::Control, &hello(1, 2)).await;
    assert!(matches!(connected, Err(ConnectError::Protocol { .. })), "{connected:?}");
    within(server).await.unwrap();
}

#[tokio::test]
async fn plain_text_stays_on_loopback_unless_allowed_and_tls_may_leave_it() {
    let inbound = RecordingInbound::new(node_id(2));
    let anywhere = address("0.0.0.0:0");
    for refused in [anywhere.clone(), "quic://127.0.0.1:0".parse().unwrap()] {
        let error = plain().listen(&refused, inbound.inbound()).await.err().unwrap();
        assert!(matches!(error, TransportError::Address { .. }), "{error}");
    }
    let far = Peer { id: node_id(2), address: address("192.0.2.1:1") };
    let error = plain().connect(&far, Lane::Control, &hello(1, 2), LinkLog::new().1).await.unwrap_err();
    assert!(error.to_string().contains("allow_plaintext_off_loopback"), "{error}");

    let allowed = GrpcConfig { allow_plaintext_off_loopback: true, ..GrpcConfig::default() };
    for transport in [GrpcTransport::new(allowed), secure(2)] {
        within(transport.listen(&anywhere, inbound.inbound())).await.unwrap();
    }
}

#[tokio::test]
async fn plain_text_and_tls_do_not_mix() {
    for (listener, dialler) in [(secure(2), plain()), (plain(), secure(1))] {
        let listening = Listening::on(&listener).await;
        let (connected, _) = listening.connect(&dialler, Lane::Control).await;
        connected.unwrap_err();
        assert!(matches!(listening.refusal().await, Refusal::Malformed { .. }));
        assert!(listening.inbound.look(|log| log.asked.is_empty()));
    }
}

/// Both ends had the text of a keep-alive that timed out.
#[tokio::test]
async fn a_link_reports_whether_the_peer_closed_it_or_fell_silent() {
    let silent = Flow { black_hole: true, ..Flow::default() };
    for (flow, cause) in [
        (None, "the peer closed the connection"),
        (Some(silent), "keep-alive: the peer did not answer in time"),
    ] {
        let listening = Listening::on(&plain()).await;
        let proxy = TcpProxy::to(listening.at()).await.unwrap();
        let peer = Peer { id: node_id(2), address: address(proxy.local_addr()) };
        let (connected, log) = crate::wires::connect(&plain(), &peer, Lane::Control, &hello(1, 2)).await;
        let _link = connected.unwrap().link;
        match flow {
            None => proxy.cut(),
            Some(flow) => ProxyDirection::ALL.into_iter().for_each(|way| proxy.set(way, flow)),
        }
        let closed = within(log.closed()).await;
        assert!(
            matches!(&closed, LinkClosed::Broken { detail } if detail == cause),
            "{closed:?}, not {cause}"
        );
    }
}

/// HTTP/2 counts empty frames, and cut a connection after a hundred.
#[tokio::test]
async fn any_number_of_keepalives_leaves_a_link_open() {
    let often = GrpcConfig {
        keepalive_interval: Duration::from_millis(2),
        keepalive_timeout: DEADLINE,
        ..GrpcConfig::default()
    };
    let transport = GrpcTransport::new(often.clone());
    let listening = Listening::on(&transport).await;
    let (mut link, _log) = listening.link(&transport, Lane::Append).await;
    let mut beats = tokio::time::interval(often.keepalive_interval);
    for index in 0..300 {
        beats.tick().await;
        within(link.dispatch(batch(index, 0))).await.unwrap();
        listening.arrived().await;
    }
}
