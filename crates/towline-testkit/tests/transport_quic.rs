//! What only QUIC does: versions by ALPN, lanes that share a connection, certificates that are reloaded, and which runtime
//! serves a connection. The rest is in the suite and for both transports in `transport_bounds`, `transport_peers` and
//! `node_refusals`.

use crate::common::*;
use crate::wires::raw::{self, quic_server, quic_welcome};
use crate::wires::{AUTHORITY, Listening, RawLane, connect, identity, of_node};
use quinn::{Connection, SendStream};
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};
use towline_tls::dev::DevAuthority;
use towline_tls::{TlsConfig, TlsFiles};
use towline_wire::{hello_frame, pb};

fn quic(node: u64) -> QuicTransport {
    QuicTransport::new(QuicConfig::default(), of_node(node))
}

/// A node whose handshakes time out soon.
fn quick(node: u64) -> QuicTransport {
    let config = QuicConfig { handshake_timeout: Duration::from_millis(200), ..QuicConfig::default() };
    QuicTransport::new(config, of_node(node))
}

fn peer(at: std::net::SocketAddr) -> Peer {
    Peer { id: node_id(2), address: format!("quic://{at}").parse().unwrap() }
}

/// A raw connection with the certificate of node 1.
async fn raw_connection(at: std::net::SocketAddr, alpn: &[u8]) -> Result<Connection, quinn::ConnectionError> {
    raw::quic_connect(at, raw::client(Some(&AUTHORITY.issue(node_id(1)).unwrap()), alpn)).await
}

async fn raw_to(listening: &Listening) -> Connection {
    raw_connection(listening.at(), ALPN).await.unwrap()
}

const ALPN: &[u8] = b"towline/1";

/// A raw listener with the certificate of node 2.
fn raw_server(alpn: &[u8]) -> quinn::Endpoint {
    quic_server(&AUTHORITY.issue(node_id(2)).unwrap(), alpn)
}

/// Writes raw bytes to a lane.
async fn write(lane: &mut RawLane, bytes: &[u8]) -> usize {
    within(say(lane).write(bytes)).await.unwrap()
}

fn say(lane: &mut RawLane) -> &mut SendStream {
    let RawLane::Quic { say, .. } = lane else { unreachable!() };
    say
}

#[tokio::test]
async fn another_version_is_refused_by_tls_on_both_sides() {
    let listening = Listening::on(&quick(2)).await;
    assert!(raw_connection(listening.at(), b"towline/2").await.is_err());
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: 2 };
    assert_eq!(listening.refusal().await, version);

    // A listener of a later version cannot say which.
    let server = raw_server(b"towline/2");
    let to = peer(server.local_addr().unwrap());
    let accept = tokio::spawn(async move { server.accept().await.unwrap().await });
    let (connected, _) = connect(&quick(1), &to, Lane::Control, &hello(1, 2)).await;
    let version = Refusal::Version { ours: 0, theirs: PROTOCOL_VERSION };
    assert!(matches!(&connected, Err(ConnectError::Refused(got)) if *got == version), "{connected:?}");
    assert!(within(accept).await.unwrap().is_err());
}

/// The listener gets the first packet of a dialler and then nothing.
#[tokio::test]
async fn a_tls_handshake_that_does_not_go_on_is_refused() {
    let listening = Listening::on(&quick(2)).await;
    let trap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = peer(trap.local_addr().unwrap());
    let dialling = tokio::spawn(async move { connect(&quick(1), &to, Lane::Control, &hello(1, 2)).await.0 });
    let mut packet = vec![0; 2048];
    let (length, _) = within(trap.recv_from(&mut packet)).await.unwrap();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(&packet[..length], listening.at()).await.unwrap();
    assert_eq!(listening.refusal().await, Refusal::HandshakeTimeout);
    let connected = within(dialling).await.unwrap();
    assert!(matches!(connected, Err(ConnectError::Unreachable { .. })), "{connected:?}");
}

#[tokio::test]
async fn garbage_on_the_port_is_dropped_and_others_come_in() {
    let listening = Listening::on(&quic(2)).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    for length in 0..1_400 {
        let mut garbage = vec![0; length];
        random.fill(&mut garbage);
        // Some have a long header and the version of QUIC.
        if length % 3 == 0 && length > 4 {
            garbage[0] |= 0xc0;
            garbage[1..5].copy_from_slice(&1_u32.to_be_bytes());
        }
        let _ = socket.send_to(&garbage, listening.at()).await;
    }
    let (mut link, _log) = listening.link(&quic(1), Lane::Control).await;
    within(link.dispatch(batch(1, 0))).await.unwrap();
    listening.arrived().await;
}

#[tokio::test]
async fn a_hello_that_ends_in_the_middle_is_refused_by_type() {
    let listening = Listening::on(&quick(2)).await;
    let mut lane = raw::quic_lane(&raw_to(&listening).await).await;
    write(&mut lane, &[0, 0, 0, 9, 1]).await;
    say(&mut lane).finish().unwrap();
    assert!(matches!(lane.refused().await, Refusal::Malformed { .. }));
    assert!(matches!(listening.refusal().await, Refusal::Malformed { .. }));
}

#[tokio::test]
async fn a_connection_whose_hellos_are_all_refused_is_closed() {
    let listening = Listening::on(&quic(2)).await;
    let unknown = Refusal::UnknownPeer { peer: 1, founded: Vec::new() };
    let answer = unknown.clone();
    listening.inbound.on_admit(move |_, _| Err(answer.clone()));
    let raw = raw_to(&listening).await;
    for _ in 0..8 {
        let mut lane = raw::quic_lane(&raw).await;
        lane.say(&hello_frame(&hello(1, 2), Lane::Append)).await;
        assert_eq!(lane.refused().await, unknown);
    }
    let closed = within(raw.closed()).await;
    assert!(closed.to_string().contains("too many hellos"), "{closed}");
}

/// A refused peer has a certificate and sixteen streams. One bound covers what all of them send before a hello is accepted;
/// an admitted lane gets the configured window.
#[tokio::test]
async fn a_flood_before_the_hello_finds_no_room() {
    let config = QuicConfig { handshake_timeout: Duration::from_secs(10), ..QuicConfig::default() };
    let listening = Listening::on(&QuicTransport::new(config, of_node(2))).await;
    let raw = raw_to(&listening).await;
    let zeros = vec![0; 1 << 20];
    let (mut stranger, mut member) = (raw::quic_lane(&raw).await, raw::quic_lane(&raw).await);
    member.say(&hello_frame(&hello(1, 2), Lane::Append)).await;
    // The first write takes as many bytes as the listener has room for.
    let before = write(&mut stranger, &zeros).await;
    assert!(before <= 32 << 10, "{before} bytes were taken before any hello was answered");
    assert!(matches!(member.hear().await.unwrap().kind, Some(pb::frame::Kind::Welcome(_))));
    write(&mut member, &(4_u32 << 20).to_be_bytes()).await;
    let after = write(&mut member, &zeros).await;
    assert!(after > 512 << 10, "{after} bytes were taken of an admitted lane");
}

#[tokio::test]
async fn a_server_of_another_protocol_is_a_protocol_error() {
    let server = raw_server(ALPN);
    let to = peer(server.local_addr().unwrap());
    let serve = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let (mut say, _hear) = connection.accept_bi().await.unwrap();
        say.write_all(&[0, 0, 0, 2, 0xff, 0xff]).await.unwrap();
        connection.closed().await
    });
    let (connected, _) = connect(&quick(1), &to, Lane::Control, &hello(1, 2)).await;
    assert!(matches!(connected, Err(ConnectError::Protocol { .. })), "{connected:?}");
    // A dialler without a lane closes the connection.
    within(serve).await.unwrap();
}

#[tokio::test]
async fn an_address_of_another_transport_is_refused() {
    let (inbound, address) =
        (RecordingInbound::new(node_id(2)), PeerAddr::new("grpc://127.0.0.1:0").unwrap());
    let error = quic(2).listen(&address, inbound.inbound()).await.err().unwrap();
    assert!(matches!(error, TransportError::Address { .. }), "{error}");
    let to = Peer { id: node_id(2), address };
    let error = quic(1).connect(&to, Lane::Control, &hello(1, 2), LinkLog::new().1).await.unwrap_err();
    assert!(matches!(error, ConnectError::Address { .. }), "{error}");
}

#[tokio::test]
async fn an_idle_link_stays_open_longer_than_every_timeout() {
    let config = QuicConfig {
        keepalive_interval: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(250),
        handshake_timeout: Duration::from_millis(200),
        ..QuicConfig::default()
    };
    let transport = |node| QuicTransport::new(config.clone(), of_node(node));
    let listening = Listening::on(&transport(2)).await;
    let (mut link, log) = listening.link(&transport(1), Lane::Control).await;
    tokio::time::sleep(Duration::from_secs(1)).await; // not synchronisation: the test is about silence
    assert_eq!(log.causes(), []);
    within(link.dispatch(batch(1, 0))).await.unwrap();
    listening.arrived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn two_stuck_lanes_do_not_block_another_lane_of_their_connection() {
    let (listening, dialler) = (Listening::on(&quic(2)).await, quic(1));
    listening.inbound.append_gate.shut();
    // Two stuck lanes: together they want more than the window of one stream.
    let (mut first, log) = listening.link(&dialler, Lane::Append).await;
    let (mut second, _log) = listening.link(&dialler, Lane::Append).await;
    let (mut control, _log) = listening.link(&dialler, Lane::Control).await;
    let mut taken = [0, 0];
    {
        let [of_first, of_second] = &mut taken;
        let mut stuck = std::pin::pin!(async {
            tokio::join!(
                async {
                    while first.dispatch(batch(*of_first, 1 << 20)).await.is_ok() {
                        *of_first += 1;
                    }
                },
                async {
                    while second.dispatch(batch(*of_second, 1 << 20)).await.is_ok() {
                        *of_second += 1;
                    }
                }
            )
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), stuck.as_mut()).await.is_err());
        // This size needs room of its own, while the others still hold theirs.
        within(control.dispatch(batch(7, 1 << 20))).await.unwrap();
        assert_eq!(listening.arrived().await, (Lane::Control, batch(7, 1 << 20)));
    }
    assert!(taken.iter().all(|taken| *taken < 8), "{taken:?} MiB were taken");

    // The dispatch above was dropped midway, so the link takes nothing more.
    assert!(matches!(within(first.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(within(log.closed()).await, LinkClosed::Abandoned);
    listening.inbound.append_gate.open();
}

/// The library finishes a stream that is dropped. An abandoned lane must not look like an orderly end.
#[tokio::test]
async fn a_dropped_link_resets_its_stream_and_the_last_one_closes_the_connection() {
    let (server, dialler) = (raw_server(ALPN), quic(1));
    let to = peer(server.local_addr().unwrap());
    let welcome = RecordingInbound::new(node_id(2)).welcome();
    let said = hello(1, 2);
    let accept = async {
        let connection = within(server.accept()).await.unwrap().await.unwrap();
        let lane = quic_welcome(&connection, &welcome).await;
        (connection, lane)
    };
    let (connected, (connection, (_say, mut hear))) =
        tokio::join!(connect(&dialler, &to, Lane::Append, &said), accept);
    let mut link = connected.0.unwrap().link;
    let (other, _lane) =
        tokio::join!(connect(&dialler, &to, Lane::Control, &said), quic_welcome(&connection, &welcome));
    {
        // More than the window holds, so that a part is not sent yet.
        let mut dispatch = std::pin::pin!(link.dispatch(batch(1, 4_000_000)));
        assert!(!is_ready(&mut dispatch).await);
    }
    assert!(matches!(within(link.dispatch(batch(2, 0))).await, Err(DispatchError::Closed)));
    assert_eq!(within(connected.1.closed()).await, LinkClosed::Abandoned);
    let mut buffer = vec![0; 64 << 10];
    let end = within(async {
        loop {
            match hear.read(&mut buffer).await {
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
    let (server, dialler, said) = (raw_server(ALPN), quic(1), hello(1, 2));
    let to = peer(server.local_addr().unwrap());
    let accept = async {
        let connection = within(server.accept()).await.unwrap().await.unwrap();
        let (mut say, _hear) = quic_welcome(&connection, &RecordingInbound::new(node_id(2)).welcome()).await;
        within(say.write_all(&[0, 0, 0, 3, 0xff, 0xff, 0xff])).await.unwrap();
        (connection, say)
    };
    let ((connected, log), _lane) = tokio::join!(connect(&dialler, &to, Lane::Append, &said), accept);
    let mut link = connected.unwrap().link;
    let closed = within(log.closed()).await;
    assert!(matches!(closed, LinkClosed::Violation { .. }), "{closed:?}");
    assert!(matches!(within(link.dispatch(batch(1, 0))).await, Err(DispatchError::Closed)));
}

#[tokio::test]
async fn reloaded_certificates_count_for_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::in_dir(dir.path(), node_id(2));
    let put = |ca: &DevAuthority| {
        let cert = ca.issue(node_id(2)).unwrap();
        std::fs::write(&files.ca, ca.ca_pem()).unwrap();
        std::fs::write(&files.cert, cert.cert).unwrap();
        std::fs::write(&files.key, cert.key).unwrap();
    };
    put(&AUTHORITY);
    let tls = TlsConfig::from_files(files.clone()).unwrap();
    let listening = Listening::on(&QuicTransport::new(QuicConfig::default(), tls.clone())).await;
    let old = quic(1);
    let (mut link, _log) = listening.link(&old, Lane::Append).await;

    let other = DevAuthority::new().unwrap();
    put(&other);
    tls.reload().unwrap();
    let own = identity(&other, &other.issue(node_id(1)).unwrap());
    let new = QuicTransport::new(QuicConfig::default(), own);
    let (connected, _log) = listening.connect(&new, Lane::Control).await;
    connected.unwrap();
    let (refused, _) = listening.connect(&quic(1), Lane::Control).await;
    assert!(matches!(refused, Err(ConnectError::Certificate { .. })), "{refused:?}");
    // The older connection stays.
    within(link.dispatch(batch(1, 0))).await.unwrap();
    listening.arrived().await;
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The most tasks that this runtime had at a time while it offered a snapshot, which itself is none.
fn tasks_of_an_offer(bulk: &Runtime, transport: &QuicTransport, to: &Peer) -> usize {
    bulk.block_on(async {
        let (hello, offer, cell) = (hello(1, 2), crate::wires::offer(1), ProgressCell::new(0));
        let mut most = 0;
        let sample = async {
            loop {
                most = most.max(bulk.metrics().num_alive_tasks());
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = within(transport.offer(to, &hello, &offer, &cell)) => {
                assert!(matches!(answer, Ok(towline_engine::transport::OfferAnswer::Refused(_))));
            }
            () = sample => {}
        }
        most
    })
}

/// A connection lives on the runtime that made it. After a break a transfer made the next one, and the heartbeats of that
/// peer went through the low-priority threads of snapshots.
#[test]
fn a_snapshot_that_needs_a_connection_makes_it_on_the_runtime_of_the_lanes() {
    let (host, lanes, bulk) = (runtime(), runtime(), runtime());
    let listening = host.block_on(Listening::on(&quic(2)));
    let refusal = towline_engine::transport::SnapshotRefusal::Unsupported;
    listening.inbound.on_offer(move |_| OfferReply::Refuse(refusal.clone()));
    let to = listening.peer();
    // Control: without an earlier lane the dialling runtime does the work.
    assert!(tasks_of_an_offer(&bulk, &quic(1), &to) > 0);

    let transport = quic(1);
    lanes.block_on(async { drop(listening.link(&transport, Lane::Control).await) });
    let idle = Instant::now();
    while bulk.metrics().num_alive_tasks() + lanes.metrics().num_alive_tasks() > 0 {
        assert!(idle.elapsed() < DEADLINE, "the connections do not end");
        std::thread::yield_now();
    }
    assert_eq!(tasks_of_an_offer(&bulk, &transport, &to), 0);

    // The transport still works once the runtime of the lanes has ended.
    drop(lanes);
    assert!(tasks_of_an_offer(&bulk, &transport, &to) > 0);
    host.block_on(listening.listener.shutdown());
}
