//! One table of diallers that a real node refuses, over gRPC and QUIC. Each row states what the dialler gets, what
//! the listener reports, and the only counter that moves. docs/transports.md shows the table.

use std::mem::discriminant;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::common::*;
use crate::wires::{
    AUTHORITY, Bounds, First, Heard, RecordingTransport, Refusals, Wire, connect, identity, of_node,
};
use towline_tls::dev::{DevAuthority, DevCert};
use towline_tls::{TlsConfig, node_uri};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a dialler does.
enum Dials {
    /// Uses the transport under test, on each lane and with a snapshot.
    Properly { tls: TlsConfig, hello: Hello, to: NodeId },
    /// Sends raw frames.
    ByHand { cert: Option<DevCert>, first: First },
}

/// What the dialler gets.
#[derive(Debug)]
enum Hears {
    Refused(Refusal),
    WrongPeer,
    /// The dialler refuses the listener's certificate.
    Refuses(CertRefusal),
    Alert(u8),
    Ended,
}

struct Case {
    name: &'static str,
    listener: TlsConfig,
    dials: Dials,
    hears: Hears,
    /// What the listener reports.
    was: Refusal,
    counted: &'static str,
}

fn hello() -> Hello {
    Hello {
        cluster: cluster_id(),
        from: node_id(2),
        to: node_id(1),
        incarnation: Incarnation::new(1).unwrap(),
        protocol: PROTOCOL_VERSION,
    }
}

fn offer() -> SnapshotOffer {
    let mut offer = crate::wires::offer(3);
    (offer.message.from, offer.message.to) = (node_id(2), node_id(1));
    offer
}

/// A certificate of the trusted authority, valid between two days from now.
fn dated(id: u64, from_days: i32, to_days: i32) -> DevCert {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let at = |days: i32| if days < 0 { now - DAY * days.unsigned_abs() } else { now + DAY * days as u32 };
    AUTHORITY.issue_for(&[node_uri(node_id(id))], at(from_days)..=at(to_days)).unwrap()
}

/// The rows that are equal for both transports.
fn cases() -> Vec<Case> {
    let foreign = DevAuthority::new().unwrap();
    let signed_by_foreign = |id| identity(&AUTHORITY, &foreign.issue(node_id(id)).unwrap());
    let malformed = || Refusal::Malformed { detail: String::new() };
    let properly = |tls, hello| Dials::Properly { tls, hello, to: node_id(1) };
    let by_hand = |first| Dials::ByHand { cert: Some(AUTHORITY.issue(node_id(2)).unwrap()), first };
    let no_node = AUTHORITY.issue_for(&["urn:other".into()], Duration::ZERO..=DAY * 365 * 200).unwrap();
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION + 1 };
    let mut cases = Vec::new();

    // The engine refuses: both sides get the same refusal.
    let mut by_engine = |name, tls, hello, was: Refusal, counted| {
        let (listener, dials, hears) = (of_node(1), properly(tls, hello), Hears::Refused(was.clone()));
        cases.push(Case { name, listener, dials, hears, was, counted });
    };
    let wrong_cluster = Hello { cluster: ClusterId::new("other").unwrap(), ..hello() };
    let ours = Refusal::WrongCluster { ours: "test".into() };
    by_engine("wrong cluster", of_node(2), wrong_cluster, ours, "wrong_cluster");
    let wrong_node = Hello { to: node_id(3), ..hello() };
    by_engine("wrong node", of_node(2), wrong_node, Refusal::WrongNode { ours: 1 }, "wrong_node");
    let removed = Hello { from: node_id(3), ..hello() };
    let founding = FoundingHash::of(GroupId::DEFAULT, [node_id(1), node_id(2)]);
    let founded = vec![Founded { group: GroupId::DEFAULT, founding }];
    by_engine("no member", of_node(3), removed, Refusal::UnknownPeer { peer: 3, founded }, "unknown_peer");
    let wiped = Hello { incarnation: Incarnation::new(2).unwrap(), ..hello() };
    let was = Refusal::WrongIncarnation { peer: 2 };
    by_engine("wrong incarnation", of_node(2), wiped, was, "wrong_incarnation");
    let was = Refusal::Unauthenticated { detail: String::new() };
    by_engine("another's name", of_node(3), hello(), was, "unauthenticated");
    let later = Hello { protocol: PROTOCOL_VERSION + 1, ..hello() };
    by_engine("version", of_node(2), later, version, "version");

    // TLS refuses.
    let mut refused = |name, listener, tls, hears, was, counted| {
        cases.push(Case { name, listener, dials: properly(tls, hello()), hears, was, counted });
    };
    use CertRefusal::{Expired, NotYetValid, UnknownAuthority};
    let dialler = |refusal: CertRefusal| Hears::Refused(Refusal::Certificate(refusal));
    for (name, tls, hears, was, counted) in [
        (
            "unknown authority",
            signed_by_foreign(2),
            UnknownAuthority,
            UnknownAuthority,
            "certificate_unknown_authority",
        ),
        ("expired", identity(&AUTHORITY, &dated(2, -2, -1)), Expired, Expired, "certificate_expired"),
        // TLS has one alert for both; only the listener knows which.
        ("not valid yet", identity(&AUTHORITY, &dated(2, 1, 2)), Expired, NotYetValid, "certificate_expired"),
    ] {
        refused(name, of_node(1), tls, dialler(hears), Refusal::Certificate(was), counted);
    }
    for (name, listener, refusal) in [
        ("the listener's unknown authority", signed_by_foreign(1), UnknownAuthority),
        ("the listener expired", identity(&AUTHORITY, &dated(1, -2, -1)), Expired),
    ] {
        let was = Refusal::OwnCertificate(refusal.clone());
        refused(name, listener, of_node(2), Hears::Refuses(refusal), was, "own_certificate");
    }
    cases.push(Case {
        name: "the wrong node answers",
        listener: of_node(1),
        dials: Dials::Properly { tls: of_node(2), hello: hello(), to: node_id(3) },
        hears: Hears::WrongPeer,
        was: Refusal::OwnCertificate(CertRefusal::OtherNode { node: 1 }),
        counted: "own_certificate",
    });

    // Raw peers.
    let mut stranger = |name, dials, hears, was, counted| {
        cases.push(Case { name, listener: of_node(1), dials, hears, was, counted });
    };
    let no_cert = Dials::ByHand { cert: None, first: First::Silence };
    let was = Refusal::Certificate(CertRefusal::Missing);
    stranger("no certificate", no_cert, Hears::Alert(116), was, "certificate_missing");
    let nameless = Dials::ByHand { cert: Some(no_node), first: First::Silence };
    let was = Refusal::Certificate(CertRefusal::NoNode);
    stranger("a certificate without a node", nameless, Hears::Alert(49), was, "certificate_node");
    for (name, frame) in [
        ("no hello", &[0x22, 0][..]),
        ("garbage", &[0xff; 64]),
        ("an empty frame", &[]),
        ("half", &[0x0a, 9]),
    ] {
        let first = First::Frame(Bytes::copy_from_slice(frame));
        stranger(name, by_hand(first), Hears::Refused(malformed()), malformed(), "malformed");
    }
    let slow = || Refusal::HandshakeTimeout;
    stranger("a slow hello", by_hand(First::Nothing), Hears::Refused(slow()), slow(), "handshake_timeout");
    stranger("no stream", by_hand(First::Silence), Hears::Ended, slow(), "handshake_timeout");
    cases
}

/// The row that differs.
fn differences(wire: Wire) -> Vec<Case> {
    let (cert, malformed) =
        (AUTHORITY.issue(node_id(2)).unwrap(), Refusal::Malformed { detail: String::new() });
    let hears = match wire {
        // The bound on bytes before a hello cuts the connection before the frame is whole.
        Wire::Grpc => Hears::Ended,
        Wire::Quic => Hears::Refused(malformed.clone()),
    };
    let dials = Dials::ByHand { cert: Some(cert), first: First::Oversized };
    let (listener, counted) = (of_node(1), "malformed");
    vec![Case { name: "an oversized frame", listener, dials, hears, was: malformed, counted }]
}

/// Node 1 of a group of two. The dialler may be node 2.
struct Host {
    node: Node,
    group: Group<ListMachine>,
    at: SocketAddr,
    counts: Counts,
    refusals: Refusals,
}

impl Host {
    async fn start(wire: Wire, tls: TlsConfig, bounds: &Bounds) -> Self {
        let (counts, refusals, disk) = (Counts::default(), Refusals::default(), Disk::default());
        let inner = wire.transport(bounds, tls);
        let transport = Arc::new(RecordingTransport { inner, refusals: refusals.clone() });
        let builder = Node::builder(node_id(1), cluster_id()).config(quick()).storage(disk.storage());
        let builder = counts.on()(node_id(1), builder).transport(transport, wire.anywhere());
        let node = builder.start().await.unwrap();
        let at = node.listen_addrs()[0];
        let nowhere = wire.address("127.0.0.1:1".parse().unwrap());
        let members = vec![(node_id(1), wire.address(at)), (node_id(2), nowhere)];
        let group = node.group(GroupId::DEFAULT, ListMachine::new());
        let group = group.start(Start::Bootstrap(members)).await.unwrap();
        Self { node, group, at, counts, refusals }
    }

    fn rejects(&self, labels: &str) -> u64 {
        self.counts.sum("towline_inbound_rejects_total", labels)
    }

    fn peer(&self, wire: Wire, id: NodeId) -> Peer {
        Peer { id, address: wire.address(self.at) }
    }
}

/// Whether two refusals are equal, apart from their texts.
fn same(a: &Refusal, b: &Refusal) -> bool {
    match (a, b) {
        (Refusal::Malformed { .. } | Refusal::Unauthenticated { .. }, _) => {
            discriminant(a) == discriminant(b)
        }
        _ => a == b,
    }
}

fn check(about: &str, error: &ConnectError, hears: &Hears) {
    let holds = match (error, hears) {
        (ConnectError::Refused(got), Hears::Refused(should)) => same(got, should),
        (ConnectError::WrongPeer { .. }, Hears::WrongPeer) => true,
        (ConnectError::Certificate { refusal, .. }, Hears::Refuses(should)) => refusal == should,
        _ => false,
    };
    assert!(holds, "{about}: the dialler hears {error:?}, not {hears:?}");
}

async fn refused(wire: Wire, case: Case) {
    let about = format!("{wire:?}, {}", case.name);
    let bounds = Bounds::default();
    let host = Host::start(wire, case.listener, &bounds).await;
    // The node must know the first incarnation to refuse another one.
    if case.counted == "wrong_incarnation" {
        let transport = wire.transport(&bounds, of_node(2));
        connect(&*transport, &host.peer(wire, node_id(1)), Lane::Control, &hello()).await.0.unwrap();
    }
    let attempts = match case.dials {
        Dials::Properly { tls, hello, to } => {
            let (transport, to) = (wire.transport(&bounds, tls), host.peer(wire, to));
            for lane in Lane::ALL {
                let (connected, _) = connect(&*transport, &to, lane, &hello).await;
                check(&about, &connected.expect_err(&about), &case.hears);
            }
            match within(transport.offer(&to, &hello, &offer(), &ProgressCell::new(0))).await {
                Err(TransferError::Connect(error)) => check(&about, &error, &case.hears),
                Err(error) => panic!("{about}: a snapshot gets {error:?}"),
                Ok(OfferAnswer::Refused(refusal)) => panic!("{about}: the engine saw an offer: {refusal:?}"),
                Ok(_) => panic!("{about}: a snapshot is taken"),
            }
            Lane::ALL.len() + 1
        }
        Dials::ByHand { cert, first } => {
            let heard = wire.say(host.at, cert.as_ref(), first).await;
            let holds = match (&heard, &case.hears) {
                (Heard::Refused(got), Hears::Refused(should)) => same(got, should),
                (Heard::Alert(got), Hears::Alert(should)) => got == should,
                (Heard::Ended(_), Hears::Ended) => true,
                _ => false,
            };
            assert!(holds, "{about}: the dialler hears {heard:?}, not {:?}", case.hears);
            1
        }
    };
    until(&format!("{about}: {attempts} refusals"), || host.refusals.lock().unwrap().len() >= attempts).await;
    // The shutdown ends all connections, so no refusal follows.
    let running = host.group.status().await.is_ok();
    assert!(running, "{about}: the group is disturbed");
    let Host { node, counts, refusals, .. } = host;
    within(node.shutdown(Duration::ZERO)).await;
    let said = refusals.lock().unwrap().clone();
    assert!(said.iter().all(|said| same(said, &case.was)), "{about}: the listener says {said:?}");
    assert_eq!(said.len(), attempts, "{about}: once for each attempt: {said:?}");
    let rejects = |labels: &str| counts.sum("towline_inbound_rejects_total", labels);
    let cause = format!("cause={}", case.counted);
    assert_eq!(rejects(&cause), attempts as u64, "{about}: counted as {}", case.counted);
    assert_eq!(rejects(""), attempts as u64, "{about}: counted as something else, too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_type_on_both_sides_and_its_counter_over_grpc() {
    for case in cases().into_iter().chain(differences(Wire::Grpc)) {
        refused(Wire::Grpc, case).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_type_on_both_sides_and_its_counter_over_quic() {
    for case in cases().into_iter().chain(differences(Wire::Quic)) {
        refused(Wire::Quic, case).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_beyond_the_bound_is_refused_by_type_and_counted() {
    for wire in Wire::BOTH {
        let bounds = Bounds { connections_max: 1, ..Bounds::default() };
        let host = Host::start(wire, of_node(1), &bounds).await;
        let (transport, to) = (wire.transport(&bounds, of_node(2)), host.peer(wire, node_id(1)));
        let mut links = vec![connect(&*transport, &to, Lane::Control, &hello()).await.0.unwrap()];
        // A second lane of a QUIC transport is no second connection.
        if wire == Wire::Quic {
            links.push(connect(&*transport, &to, Lane::Append, &hello()).await.0.unwrap());
        }
        let second = wire.transport(&bounds, of_node(2));
        let error = connect(&*second, &to, Lane::Append, &hello()).await.0.unwrap_err();
        let too_many = Refusal::TooManyConnections;
        check(&format!("{wire:?}"), &error, &Hears::Refused(too_many.clone()));
        until("the refusal", || *host.refusals.lock().unwrap() == [too_many.clone()]).await;
        assert_eq!(host.rejects("cause=too_many_connections"), 1);
        assert_eq!(host.rejects(""), 1);
    }
}
