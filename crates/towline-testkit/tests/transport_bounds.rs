//! What a peer, or a stranger, may cost a listener: connections of one peer, handshakes a second. The same for gRPC and
//! QUIC.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::wires::{AUTHORITY, Bounds, First, Wire, of_node};
use async_trait::async_trait;
use towline_engine::ids::{GroupId, Incarnation, NodeId};
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::transport::{
    CertIdentity, ConnectError, Connected, Hello, Inbound, LinkClosed, LinkEvents, LinkFeedback, Listener,
    Nack, PROTOCOL_VERSION, Peer, PeerSession, ProgressCell, Refusal, SinkAnswer, SnapshotOffer,
    SnapshotRefusal, Violation, Welcome,
};
use towline_testkit::cluster::{cluster_id, node_id, until, within};

/// Lets everybody in whose certificate is that of its hello.
#[derive(Default)]
struct Hall {
    refused: Mutex<Vec<Refusal>>,
    delivered: Mutex<Vec<(NodeId, u64)>>,
}

struct Guest(Arc<Hall>, NodeId);

/// An inbound must know itself to hand itself to its sessions.
struct Porter(Arc<Hall>);

impl Inbound for Porter {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        match cert {
            Some(cert) if cert.node == hello.from => Ok(Arc::new(Guest(self.0.clone(), hello.from))),
            _ => Err(Refusal::Unauthenticated { detail: "impostor".into() }),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.refused.lock().unwrap().push(refusal.clone());
    }
}

#[async_trait]
impl PeerSession for Guest {
    fn peer(&self) -> NodeId {
        self.1
    }

    fn welcome(&self) -> Welcome {
        let incarnation = Incarnation::new(22).unwrap();
        Welcome { node: node_id(1), incarnation, protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, _: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        let indexes = batch.envelopes.iter().map(|envelope| (self.1, envelope.message.index));
        self.0.delivered.lock().unwrap().extend(indexes);
        Ok(Vec::new())
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Err(SnapshotRefusal::Unsupported)
    }
}

async fn listen(wire: Wire, bounds: &Bounds) -> (Box<dyn Listener>, Arc<Hall>) {
    let hall = Arc::new(Hall::default());
    let inbound = Arc::new(Porter(hall.clone()));
    let listener = wire.transport(bounds, of_node(1)).listen(&wire.anywhere(), inbound).await.unwrap();
    (listener, hall)
}

/// The dialler's ear: why its link ended.
#[derive(Clone, Default)]
struct Ear(Arc<Mutex<Option<LinkClosed>>>);

impl LinkEvents for Ear {
    fn nack(&self, _: Nack) {}

    fn closed(&self, cause: LinkClosed) {
        *self.0.lock().unwrap() = Some(cause);
    }
}

impl Ear {
    fn ended(&self) -> Option<LinkClosed> {
        self.0.lock().unwrap().clone()
    }
}

/// A connection of its own for a node.
async fn dial(wire: Wire, listener: &dyn Listener, from: u64) -> (Result<Connected, ConnectError>, Ear) {
    let transport = wire.transport(&Bounds::default(), of_node(from));
    let to = Peer { id: node_id(1), address: wire.address(listener.local_addr()) };
    let hello = Hello {
        cluster: cluster_id(),
        from: node_id(from),
        to: node_id(1),
        incarnation: Incarnation::new(from).unwrap(),
        protocol: PROTOCOL_VERSION,
    };
    let ear = Ear::default();
    let feedback = LinkFeedback::new(Arc::new(ear.clone()));
    let connected = within(transport.connect(&to, Lane::Control, &hello, feedback)).await;
    (connected, ear)
}

async fn says(hall: &Hall, connected: &mut Connected, from: u64, index: u64) {
    let mut message = Message::new(MessageKind::Append, node_id(from), node_id(1));
    (message.term, message.index) = (1, index);
    let batch = Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] };
    within(connected.link.dispatch(batch)).await.unwrap();
    until("a delivery", || hall.delivered.lock().unwrap().contains(&(node_id(from), index))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_has_so_many_connections_and_the_newest_win() {
    for wire in Wire::BOTH {
        let max = 3;
        let (listener, hall) = listen(wire, &Bounds { per_peer_max: max, ..Bounds::default() }).await;
        let (other, other_ear) = dial(wire, &*listener, 3).await;
        let mut other = other.unwrap();
        let mut open = Vec::new();
        for n in 1..=8_usize {
            let (connected, ear) = dial(wire, &*listener, 2).await;
            open.push((connected.unwrap(), ear));
            let lost = n.saturating_sub(max);
            until(&format!("{wire:?}: the oldest of {n} connections to go"), || {
                open[..lost].iter().all(|(_, ear)| ear.ended().is_some())
            })
            .await;
            assert!(open[lost..].iter().all(|(_, ear)| ear.ended().is_none()), "{wire:?}: of {n}");
            // Counted each time, and as nothing else.
            until("the count", || *hall.refused.lock().unwrap() == vec![Refusal::TooManyConnections; lost])
                .await;
        }
        for (_, ear) in &open[..5] {
            let ended = ear.ended();
            let told = matches!(&ended, Some(LinkClosed::ByPeer { detail }) if detail.contains("newer"));
            assert!(told, "{wire:?}: {ended:?}");
        }
        // The newest work, and nobody else was concerned.
        for (index, (connected, _)) in (10..).zip(&mut open[5..]) {
            says(&hall, connected, 2, index).await;
        }
        says(&hall, &mut other, 3, 1).await;
        assert_eq!(other_ear.ended(), None);
        within(listener.shutdown()).await;
    }
}

/// A node that was removed still has its certificate. Its connections are bounded before any hello is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_say_nothing_take_no_others_room() {
    for wire in Wire::BOTH {
        let bounds = Bounds { per_peer_max: 2, connections_max: 8, ..Bounds::default() };
        let slow = Bounds { handshake_timeout: std::time::Duration::from_secs(10), ..bounds };
        let (listener, hall) = listen(wire, &slow).await;
        let (at, cert) = (listener.local_addr(), AUTHORITY.issue(node_id(9)).unwrap());
        let silent: Vec<_> = (0..6)
            .map(|_| {
                let cert = cert.clone();
                tokio::spawn(async move { wire.say(at, Some(&cert), First::Silence).await })
            })
            .collect();
        until("four of six to go", || hall.refused.lock().unwrap().len() == 4).await;
        assert_eq!(*hall.refused.lock().unwrap(), vec![Refusal::TooManyConnections; 4], "{wire:?}");
        // With all six there would be room for two.
        for from in 2..8 {
            until(&format!("{wire:?}: room"), || silent.iter().filter(|s| s.is_finished()).count() >= 4)
                .await;
            let (connected, _) = dial(wire, &*listener, from).await;
            std::mem::forget(connected.unwrap());
        }
        silent.iter().for_each(|silent| silent.abort());
    }
}

/// Two machines with one certificate, of which one is refused (its disk was emptied, say) and calls for ever: it takes its
/// own places, and none of the other's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_the_same_certificate_take_no_place_of_one_that_was_let_in() {
    for wire in Wire::BOTH {
        let handshake_timeout = std::time::Duration::from_secs(10);
        let bounds = Bounds { per_peer_max: 2, handshake_timeout, ..Bounds::default() };
        let (listener, hall) = listen(wire, &bounds).await;
        let (good, ear) = dial(wire, &*listener, 2).await;
        let mut good = good.unwrap();
        let (at, cert) = (listener.local_addr(), AUTHORITY.issue(node_id(2)).unwrap());
        let silent: Vec<_> = (0..6)
            .map(|_| {
                let cert = cert.clone();
                tokio::spawn(async move { wire.say(at, Some(&cert), First::Silence).await })
            })
            .collect();
        until("four of six to go", || hall.refused.lock().unwrap().len() == 4).await;
        until("them to notice", || silent.iter().filter(|s| s.is_finished()).count() == 4).await;
        assert_eq!(ear.ended(), None, "{wire:?}");
        says(&hall, &mut good, 2, 1).await;
        silent.iter().for_each(|silent| silent.abort());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_come_at_their_pace_and_each_one_beyond_is_counted() {
    for wire in Wire::BOTH {
        let per_second_max = 5;
        let (listener, hall) = listen(wire, &Bounds { per_second_max, ..Bounds::default() }).await;
        let (started, mut admitted, mut cut) = (Instant::now(), 0_u32, 0_usize);
        for from in 2..32 {
            match dial(wire, &*listener, from).await.0 {
                Ok(_) => admitted += 1,
                Err(ConnectError::Refused(Refusal::TooManyConnections)) if wire == Wire::Quic => cut += 1,
                // Over gRPC nobody says so: an answer would cost a TLS handshake, which is what is bounded.
                Err(ConnectError::Unreachable { .. }) if wire == Wire::Grpc => cut += 1,
                Err(error) => panic!("{wire:?}: {error:?}"),
            }
        }
        // A burst of one second's, and what came due since.
        let due = started.elapsed().as_secs_f64() * f64::from(per_second_max);
        assert!(admitted >= per_second_max, "{wire:?}: {admitted}");
        assert!(
            f64::from(admitted) <= f64::from(per_second_max) + due + 1.0,
            "{wire:?}: {admitted} of {due}"
        );
        assert!(cut > 0, "{wire:?}");
        until("the count", || hall.refused.lock().unwrap().len() >= cut).await;
        assert_eq!(*hall.refused.lock().unwrap(), vec![Refusal::TooManyConnections; cut], "{wire:?}");
    }
}
