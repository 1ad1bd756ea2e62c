//! Doubles of the engine's side of the seams, and raw peers.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::transport::*;
use towline_grpc::{GrpcConfig, GrpcTransport};

pub const DEADLINE: Duration = Duration::from_secs(10);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("deadline")
}

pub fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub fn hello() -> Hello {
    Hello {
        cluster: ClusterId::new("test").unwrap(),
        from: node(1),
        to: node(2),
        incarnation: Incarnation::new(11).unwrap(),
        protocol: PROTOCOL_VERSION,
    }
}

pub fn welcome() -> Welcome {
    Welcome { node: node(2), incarnation: Incarnation::new(22).unwrap(), protocol: PROTOCOL_VERSION }
}

pub fn batch(index: u64, bytes: usize) -> Batch {
    let mut message = Message::new(MessageKind::Append, node(1), node(2));
    (message.term, message.index, message.context) = (1, index, vec![7; bytes].into());
    Batch { envelopes: vec![Envelope { group: GroupId::new(5), message }] }
}

type Answer = Box<dyn Fn(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send + Sync>;

/// The listening engine: admits or refuses, and hands on what arrives.
pub struct Fake {
    pub refusal: Option<Refusal>,
    pub answer: Arc<Answer>,
    pub delivered: mpsc::UnboundedSender<(Lane, Batch)>,
    pub refused: mpsc::UnboundedSender<Refusal>,
    pub certs: Mutex<Vec<Option<CertIdentity>>>,
    pub nacks_dropped: Arc<AtomicUsize>,
}

pub struct Seen {
    pub delivered: mpsc::UnboundedReceiver<(Lane, Batch)>,
    pub refused: mpsc::UnboundedReceiver<Refusal>,
}

pub fn fake(
    refusal: Option<Refusal>,
    answer: impl Fn(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send + Sync + 'static,
) -> (Arc<Fake>, Seen) {
    let (delivered, delivered_rx) = mpsc::unbounded_channel();
    let (refused, refused_rx) = mpsc::unbounded_channel();
    let certs = Mutex::default();
    let (answer, nacks_dropped) = (Arc::new(Box::new(answer) as Answer), Arc::default());
    let fake = Fake { refusal, answer, delivered, refused, certs, nacks_dropped };
    (Arc::new(fake), Seen { delivered: delivered_rx, refused: refused_rx })
}

pub fn accepting() -> (Arc<Fake>, Seen) {
    fake(None, |_, _| Ok(Vec::new()))
}

impl Inbound for Fake {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        self.certs.lock().unwrap().push(cert.cloned());
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(Arc::new(Session {
                peer: hello.from,
                answer: Arc::clone(&self.answer),
                delivered: self.delivered.clone(),
                nacks_dropped: Arc::clone(&self.nacks_dropped),
            })),
        }
    }

    fn refused(&self, refusal: &Refusal) {
        let _ = self.refused.send(refusal.clone());
    }
}

struct Session {
    peer: NodeId,
    answer: Arc<Answer>,
    delivered: mpsc::UnboundedSender<(Lane, Batch)>,
    nacks_dropped: Arc<AtomicUsize>,
}

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn welcome(&self) -> Welcome {
        welcome()
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        let answer = (self.answer)(lane, &batch);
        let _ = self.delivered.send((lane, batch));
        answer
    }

    fn nacks_dropped(&self, _: Lane, count: usize) {
        self.nacks_dropped.fetch_add(count, Ordering::Relaxed);
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Err(SnapshotRefusal::Unsupported)
    }
}

/// The dialling engine's ear.
#[derive(Clone)]
pub struct Ear {
    pub nacks: Arc<Mutex<Vec<Nack>>>,
    closed: watch::Sender<Vec<LinkClosed>>,
    nacked: watch::Sender<usize>,
}

impl Ear {
    pub fn new() -> (Self, LinkFeedback) {
        let ear = Self {
            nacks: Arc::default(),
            closed: watch::Sender::default(),
            nacked: watch::Sender::default(),
        };
        let feedback = LinkFeedback::new(Arc::new(ear.clone()));
        (ear, feedback)
    }

    pub async fn closed(&self) -> LinkClosed {
        let mut closed = self.closed.subscribe();
        within(closed.wait_for(|c| !c.is_empty())).await.unwrap()[0].clone()
    }

    pub fn closed_times(&self) -> usize {
        self.closed.borrow().len()
    }

    pub async fn nacks(&self, count: usize) -> Vec<Nack> {
        let mut nacked = self.nacked.subscribe();
        within(nacked.wait_for(|n| *n >= count)).await.unwrap();
        self.nacks.lock().unwrap().clone()
    }
}

impl LinkEvents for Ear {
    fn nack(&self, nack: Nack) {
        self.nacks.lock().unwrap().push(nack);
        self.nacked.send_modify(|n| *n += 1);
    }

    fn closed(&self, cause: LinkClosed) {
        self.closed.send_modify(|c| c.push(cause));
    }
}

pub async fn listen(config: GrpcConfig, inbound: Arc<Fake>) -> Box<dyn Listener> {
    let at = PeerAddr::new("grpc://127.0.0.1:0").unwrap();
    GrpcTransport::new(config).listen(&at, inbound).await.unwrap()
}

pub fn peer(at: SocketAddr) -> Peer {
    Peer { id: node(2), address: PeerAddr::new(&format!("grpc://{at}")).unwrap() }
}

pub async fn connect(
    config: GrpcConfig,
    at: SocketAddr,
    lane: Lane,
) -> (Result<Connected, ConnectError>, Ear) {
    let (ear, feedback) = Ear::new();
    let connected = within(GrpcTransport::new(config).connect(&peer(at), lane, &hello(), feedback)).await;
    (connected, ear)
}

pub async fn link(config: GrpcConfig, at: SocketAddr, lane: Lane) -> (Box<dyn Link>, Ear) {
    let (connected, ear) = connect(config, at, lane).await;
    (connected.unwrap().link, ear)
}

/// A proxy that can stop forwarding without closing anything, or close everything.
pub struct Proxy {
    pub at: SocketAddr,
    black_hole: watch::Sender<bool>,
    closed: watch::Sender<bool>,
}

impl Proxy {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let black_hole = watch::Sender::new(false);
        let closed = watch::Sender::new(false);
        let (state, end) = (black_hole.clone(), closed.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = tokio::net::TcpStream::connect(target).await.unwrap();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                for pump in [
                    pump(near_read, far_write, state.subscribe()),
                    pump(far_read, near_write, state.subscribe()),
                ] {
                    let mut end = end.subscribe();
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = end.wait_for(|closed| *closed) => {}
                            () = pump => {}
                        }
                    });
                }
            }
        });
        Self { at, black_hole, closed }
    }

    /// Closes every connection, at both ends.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    pub fn stop_forwarding(&self) {
        self.black_hole.send_replace(true);
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut black_hole: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            biased;
            _ = black_hole.wait_for(|stop| *stop) => None,
            read = from.read(&mut buffer) => Some(read),
        };
        match read {
            // Holds both sockets open for ever.
            None => std::future::pending::<()>().await,
            Some(Ok(0) | Err(_)) => return,
            Some(Ok(n)) => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
