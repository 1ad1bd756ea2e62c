use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use towline_engine::ids::{ClusterId, GroupId, Incarnation};
use towline_engine::message::{Batch, Envelope, Message, MessageKind};
use towline_engine::transport::{
    CertIdentity, LinkEvents, Nack, NackCause, PROTOCOL_VERSION, PeerSession, ProgressCell, Refusal,
    SinkAnswer, SnapshotOffer, SnapshotRefusal, Violation, Welcome,
};

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// Lets everybody in, and shows what came.
struct Host {
    delivered: mpsc::UnboundedSender<u64>,
}

impl Inbound for Host {
    fn admit(&self, hello: &Hello, _cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        if hello.to != id(2) {
            return Err(Refusal::WrongNode { ours: 2 });
        }
        Ok(Arc::new(Session { peer: hello.from, delivered: self.delivered.clone() }))
    }
}

struct Session {
    peer: NodeId,
    delivered: mpsc::UnboundedSender<u64>,
}

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn welcome(&self) -> Welcome {
        Welcome { node: id(2), incarnation: Incarnation::new(9).unwrap(), protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, _lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        let index = batch.envelopes[0].message.index;
        let _ = self.delivered.send(index);
        match index {
            404 => Ok(vec![Nack { group: GroupId::DEFAULT, cause: NackCause::UnknownGroup }]),
            500 => Err(Violation { detail: "five hundred".into() }),
            _ => Ok(Vec::new()),
        }
    }

    async fn offer(&self, _offer: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Err(SnapshotRefusal::Unsupported)
    }
}

enum Event {
    Nack(Nack),
    Closed(LinkClosed),
}

struct Ears(mpsc::UnboundedSender<Event>);

impl LinkEvents for Ears {
    fn nack(&self, nack: Nack) {
        let _ = self.0.send(Event::Nack(nack));
    }

    fn closed(&self, cause: LinkClosed) {
        let _ = self.0.send(Event::Closed(cause));
    }
}

struct Ends {
    net: MemNet,
    _listener: Box<dyn Listener>,
    delivered: mpsc::UnboundedReceiver<u64>,
    link: Box<dyn towline_engine::transport::Link>,
    events: mpsc::UnboundedReceiver<Event>,
}

fn peer() -> Peer {
    Peer { id: id(2), address: "mem://b:1".parse().unwrap() }
}

fn hello(to: u64) -> Hello {
    let cluster = ClusterId::new("test").unwrap();
    let incarnation = Incarnation::new(7).unwrap();
    Hello { cluster, from: id(1), to: id(to), incarnation, protocol: PROTOCOL_VERSION }
}

fn batch(index: u64) -> Batch {
    let message = Message { index, ..Message::new(MessageKind::Append, id(1), id(2)) };
    Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] }
}

async fn ends() -> Ends {
    let net = MemNet::new();
    let (sender, delivered) = mpsc::unbounded_channel();
    let listener =
        net.transport().listen(&peer().address, Arc::new(Host { delivered: sender })).await.unwrap();
    let (told, events) = mpsc::unbounded_channel();
    let feedback = LinkFeedback::new(Arc::new(Ears(told)));
    let connected = net.transport().connect(&peer(), Lane::Append, &hello(2), feedback).await.unwrap();
    Ends { net, _listener: listener, delivered, link: connected.link, events }
}

impl Ends {
    async fn closed(&mut self) -> LinkClosed {
        match timeout(DEADLINE, self.events.recv()).await.unwrap().unwrap() {
            Event::Closed(cause) => {
                // Exactly once: the feedback is gone afterwards.
                assert!(timeout(DEADLINE, self.events.recv()).await.unwrap().is_none());
                cause
            }
            Event::Nack(nack) => panic!("{nack:?}"),
        }
    }
}

#[tokio::test]
async fn batches_arrive_in_order_and_nacks_come_back() {
    let mut ends = ends().await;
    for index in [1, 2, 404] {
        ends.link.dispatch(batch(index)).await.unwrap();
    }
    for index in [1, 2, 404] {
        assert_eq!(timeout(DEADLINE, ends.delivered.recv()).await.unwrap(), Some(index));
    }
    assert!(matches!(timeout(DEADLINE, ends.events.recv()).await, Ok(Some(Event::Nack(_)))));
    assert_eq!(ends.net.links(id(1), id(2)), 1);
}

#[tokio::test]
async fn a_stalled_link_pushes_back_and_goes_on_when_healed() {
    let mut ends = ends().await;
    ends.net.fault(id(1), id(2), Fault::Stall);
    for index in 0..LINK_BATCHES_MAX as u64 {
        ends.link.dispatch(batch(index)).await.unwrap();
    }
    let (net, mut link) = (ends.net.clone(), ends.link);
    let waiting = tokio::spawn(async move { link.dispatch(batch(99)).await.map(|()| link) });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    net.heal(id(1), id(2));
    let _link = timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    for index in (0..LINK_BATCHES_MAX as u64).chain([99]) {
        assert_eq!(timeout(DEADLINE, ends.delivered.recv()).await.unwrap(), Some(index));
    }
}

#[tokio::test]
async fn a_swallowing_link_takes_everything_and_breaks_when_healed() {
    let mut ends = ends().await;
    ends.net.fault(id(1), id(2), Fault::Swallow);
    for index in 0..20 {
        timeout(DEADLINE, ends.link.dispatch(batch(index))).await.unwrap().unwrap();
    }
    ends.net.heal(id(1), id(2));
    assert!(matches!(ends.closed().await, LinkClosed::Broken { .. }));
    assert!(ends.delivered.try_recv().is_err());
}

#[tokio::test]
async fn a_cut_breaks_links_and_refuses_new_ones() {
    let mut ends = ends().await;
    ends.net.cut(id(1), id(2));
    assert!(matches!(ends.closed().await, LinkClosed::Broken { .. }));
    assert!(ends.link.dispatch(batch(1)).await.is_err());
    let (told, _events) = mpsc::unbounded_channel();
    let feedback = LinkFeedback::new(Arc::new(Ears(told)));
    let again = ends.net.transport().connect(&peer(), Lane::Append, &hello(2), feedback).await;
    assert!(matches!(again, Err(ConnectError::Unreachable { .. })), "{again:?}");
}

#[tokio::test]
async fn every_end_is_told_once_with_its_cause() {
    let mut killed = ends().await;
    killed.net.kill(id(2));
    assert!(matches!(killed.closed().await, LinkClosed::Broken { .. }));

    let mut violated = ends().await;
    violated.link.dispatch(batch(500)).await.unwrap();
    assert_eq!(violated.closed().await, LinkClosed::ByPeer { detail: "five hundred".into() });

    let mut shut = ends().await;
    shut._listener.shutdown().await;
    let end = timeout(DEADLINE, shut.events.recv()).await.unwrap();
    assert!(matches!(end, Some(Event::Closed(LinkClosed::ByPeer { .. }))));

    let mut dropped = ends().await;
    drop(dropped.link);
    let end = timeout(DEADLINE, dropped.events.recv()).await.unwrap();
    assert!(matches!(end, Some(Event::Closed(LinkClosed::Abandoned))));
}

#[tokio::test]
async fn a_refusal_reaches_the_dialler_and_an_address_is_taken_once() {
    let ends = ends().await;
    let (told, _events) = mpsc::unbounded_channel();
    let feedback = LinkFeedback::new(Arc::new(Ears(told)));
    let refused = ends.net.transport().connect(&peer(), Lane::Append, &hello(3), feedback).await;
    assert!(matches!(refused, Err(ConnectError::Refused(Refusal::WrongNode { ours: 2 }))));
    let (delivered, _) = mpsc::unbounded_channel();
    let again = ends.net.transport().listen(&peer().address, Arc::new(Host { delivered })).await;
    assert!(matches!(again, Err(TransportError::Bind { .. })));
}
