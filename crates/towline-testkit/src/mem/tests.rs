use towline_engine::ids::GroupId;
use towline_engine::transport::{Link, Nack, NackCause, Refusal, Violation};

use super::*;
use crate::cluster::{node_id as id, within};
use crate::doubles::{LinkLog, RecordingInbound, batch, hello};

/// A link from node 1 to node 2.
struct LinkFixture {
    net: MemNet,
    listener: Box<dyn Listener>,
    inbound: RecordingInbound,
    link: Box<dyn Link>,
    log: LinkLog,
}

fn peer() -> Peer {
    Peer { id: id(2), address: "mem://b:1".parse().unwrap() }
}

async fn fixture() -> LinkFixture {
    let net = MemNet::new();
    let inbound = RecordingInbound::new(id(2));
    inbound.on_admit(|hello, _| match hello.to.as_u64() {
        2 => Ok(()),
        _ => Err(Refusal::WrongNode { ours: 2 }),
    });
    inbound.on_deliver(|_, batch| match batch.envelopes[0].message.index {
        404 => Ok(vec![Nack { group: GroupId::DEFAULT, cause: NackCause::UnknownGroup }]),
        500 => Err(Violation { detail: "five hundred".into() }),
        _ => Ok(Vec::new()),
    });
    let listener = net.transport().listen(&peer().address, inbound.inbound()).await.unwrap();
    let (log, feedback) = LinkLog::new();
    let connected = net.transport().connect(&peer(), Lane::Append, &hello(1, 2), feedback).await.unwrap();
    LinkFixture { net, listener, inbound, link: connected.link, log }
}

impl LinkFixture {
    async fn assert_delivered(&self, indexes: impl IntoIterator<Item = u64>) {
        for index in indexes {
            assert_eq!(within(self.inbound.next_batch()).await.batch, batch(index, 0));
        }
    }

    /// Connects again.
    async fn connect(&self, to: u64) -> Result<Connected, ConnectError> {
        self.net.transport().connect(&peer(), Lane::Append, &hello(1, to), LinkLog::new().1).await
    }
}

#[tokio::test]
async fn batches_arrive_in_order_and_nacks_come_back() {
    let mut fixture = fixture().await;
    for index in [1, 2, 404] {
        fixture.link.dispatch(batch(index, 0)).await.unwrap();
    }
    fixture.assert_delivered([1, 2, 404]).await;
    assert_eq!(within(fixture.log.wait_nacks(1)).await.len(), 1);
    assert_eq!(fixture.net.links(id(1), id(2)), 1);
}

#[tokio::test]
async fn a_stalled_link_pushes_back_and_goes_on_when_healed() {
    let LinkFixture { net, mut link, inbound, listener, log } = fixture().await;
    net.fault(id(1), id(2), Fault::Stall);
    for index in 0..LINK_BATCHES_MAX as u64 {
        link.dispatch(batch(index, 0)).await.unwrap();
    }
    let waiting = tokio::spawn(async move { link.dispatch(batch(99, 0)).await.map(|()| link) });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    net.heal(id(1), id(2));
    let link = within(waiting).await.unwrap().unwrap();
    let fixture = LinkFixture { net, listener, inbound, link, log };
    fixture.assert_delivered((0..LINK_BATCHES_MAX as u64).chain([99])).await;
}

#[tokio::test]
async fn a_swallowing_link_takes_everything_and_breaks_when_healed() {
    let mut fixture = fixture().await;
    fixture.net.fault(id(1), id(2), Fault::Swallow);
    for index in 0..20 {
        within(fixture.link.dispatch(batch(index, 0))).await.unwrap();
    }
    fixture.net.heal(id(1), id(2));
    assert!(matches!(within(fixture.log.closed()).await, LinkClosed::Broken { .. }));
    assert!(fixture.inbound.look(|log| log.delivered.is_empty()));
}

#[tokio::test]
async fn a_cut_breaks_links_and_refuses_new_ones() {
    let mut fixture = fixture().await;
    fixture.net.cut(id(1), id(2));
    assert!(matches!(within(fixture.log.closed()).await, LinkClosed::Broken { .. }));
    assert!(fixture.link.dispatch(batch(1, 0)).await.is_err());
    let again = fixture.connect(2).await;
    assert!(matches!(again, Err(ConnectError::Unreachable { .. })), "{again:?}");
}

#[tokio::test]
async fn every_end_is_reported_once_with_its_cause() {
    let killed = fixture().await;
    killed.net.kill(id(2));
    assert!(matches!(within(killed.log.closed()).await, LinkClosed::Broken { .. }));

    let mut violated = fixture().await;
    violated.link.dispatch(batch(500, 0)).await.unwrap();
    let cause = within(violated.log.closed()).await;
    assert_eq!(cause, LinkClosed::ByPeer { detail: "five hundred".into() });

    let shut = fixture().await;
    shut.listener.shutdown().await;
    assert!(matches!(within(shut.log.closed()).await, LinkClosed::ByPeer { .. }));

    let dropped = fixture().await;
    drop(dropped.link);
    assert_eq!(within(dropped.log.closed()).await, LinkClosed::Abandoned);
}

#[tokio::test]
async fn a_refusal_reaches_the_dialler_and_an_address_is_taken_once() {
    let fixture = fixture().await;
    let refused = fixture.connect(3).await;
    assert!(matches!(refused, Err(ConnectError::Refused(Refusal::WrongNode { ours: 2 }))));
    let again = fixture.net.transport().listen(&peer().address, fixture.inbound.inbound()).await;
    assert!(matches!(again, Err(TransportError::Bind { .. })));
}
