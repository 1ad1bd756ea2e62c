//! The transports of this workspace under the suite.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::common::*;
use crate::wires::of_node;
use tokio::net::TcpStream;
use towline_testkit::suites::transport::{Capabilities, Path, RawStream, TransportFixture};
use towline_testkit::transport_suite;

struct MemFixture {
    net: MemNet,
    hosts: AtomicU64,
}

impl MemFixture {
    fn new() -> Self {
        Self { net: MemNet::with_keepalive(Duration::from_millis(600)), hosts: AtomicU64::default() }
    }
}

/// The path from node 1 to node 2, the only one that the suite asks for.
pub(crate) struct MemPath {
    pub(crate) net: MemNet,
    pub(crate) address: PeerAddr,
}

#[async_trait]
impl TransportFixture for MemFixture {
    fn transport(&self, _node: NodeId) -> Arc<dyn Transport> {
        self.net.transport()
    }

    fn address(&self) -> PeerAddr {
        PeerAddr::new(&format!("mem://host-{}:0", self.hosts.fetch_add(1, Ordering::Relaxed))).unwrap()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The queue of the link, and one batch in the hand of each side.
            link_bytes_max: (LINK_BATCHES_MAX + 2) * MESSAGE_BYTES_MAX,
            transfer_bytes_max: (TRANSFER_CHUNKS_MAX + 2) * CHUNK_BYTES_MAX,
            connections_max: LISTENER_LINKS_MAX,
            // Keep-alive, and the delay of a loaded machine.
            silence_max: Some(Duration::from_secs(3)),
            ..Capabilities::default()
        }
    }

    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        Some(Box::new(MemPath { net: self.net.clone(), address: to.clone() }))
    }
}

impl Path for MemPath {
    fn address(&self) -> PeerAddr {
        self.address.clone()
    }

    fn cut(&self) {
        self.net.reset(node_id(1), node_id(2));
    }

    fn black_hole(&self) {
        self.net.fault(node_id(1), node_id(2), Fault::Swallow);
        self.net.fault(node_id(2), node_id(1), Fault::Swallow);
    }

    fn slow_down(&self, bytes_per_s: u64) -> bool {
        self.net.fault(node_id(1), node_id(2), Fault::Rate(bytes_per_s));
        true
    }

    fn carried(&self) -> Option<u64> {
        Some(self.net.carried(node_id(1), node_id(2)))
    }
}

transport_suite!(in_memory, MemFixture::new);

struct Grpc;

fn grpc() -> GrpcConfig {
    GrpcConfig {
        connections_max: 8,
        handshake_timeout: Duration::from_millis(500),
        keepalive_interval: Duration::from_millis(200),
        keepalive_timeout: Duration::from_millis(400),
        ..GrpcConfig::default()
    }
}

fn socket(at: &PeerAddr) -> SocketAddr {
    at.authority().parse().unwrap()
}

#[async_trait]
impl TransportFixture for Grpc {
    fn transport(&self, _node: NodeId) -> Arc<dyn Transport> {
        Arc::new(GrpcTransport::new(grpc()))
    }

    fn address(&self) -> PeerAddr {
        PeerAddr::new("grpc://127.0.0.1:0").unwrap()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // The window of the stream, the frames on both sides of it, and the kernel's buffers.
            link_bytes_max: 16 << 20,
            connections_max: grpc().connections_max,
            // Keep-alive, and the delay of a loaded machine.
            silence_max: Some(Duration::from_secs(3)),
            ..Capabilities::default()
        }
    }

    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        Some(TcpProxy::to(socket(to)).await.unwrap().into_path("grpc"))
    }

    async fn raw(&self, to: &PeerAddr) -> Option<Box<dyn RawStream>> {
        Some(Box::new(TcpStream::connect(socket(to)).await.unwrap()))
    }
}

transport_suite!(over_grpc, || Grpc);

/// gRPC with certificates.
struct GrpcTls;

#[async_trait]
impl TransportFixture for GrpcTls {
    fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        Arc::new(GrpcTransport::with_tls(grpc(), of_node(node.as_u64())))
    }

    fn address(&self) -> PeerAddr {
        Grpc.address()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { authenticates: true, ..Grpc.capabilities() }
    }

    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        Grpc.path(to).await
    }

    async fn raw(&self, to: &PeerAddr) -> Option<Box<dyn RawStream>> {
        Grpc.raw(to).await
    }
}

transport_suite!(over_grpc_tls, || GrpcTls);

/// One transport a node, as in a process: its lanes and transfers share a connection.
#[derive(Default)]
struct Quic {
    nodes: Mutex<HashMap<NodeId, Arc<QuicTransport>>>,
}

fn quic() -> QuicConfig {
    QuicConfig {
        connections_max: 8,
        handshake_timeout: Duration::from_millis(500),
        keepalive_interval: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(400),
        ..QuicConfig::default()
    }
}

#[async_trait]
impl TransportFixture for Quic {
    fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        let mut nodes = self.nodes.lock().unwrap();
        let make = || Arc::new(QuicTransport::new(quic(), of_node(node.as_u64())));
        Arc::clone(nodes.entry(node).or_insert_with(make)) as Arc<dyn Transport>
    }

    fn address(&self) -> PeerAddr {
        PeerAddr::new("quic://127.0.0.1:0").unwrap()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            authenticates: true,
            connections_max: quic().connections_max,
            silence_max: Some(Duration::from_secs(3)),
            ..Capabilities::default()
        }
    }

    async fn path(&self, to: &PeerAddr) -> Option<Box<dyn Path>> {
        Some(Box::new(UdpPath(UdpProxy::to(socket(to), 1).await.unwrap())))
    }
}

struct UdpPath(UdpProxy);

impl Path for UdpPath {
    fn address(&self) -> PeerAddr {
        PeerAddr::new(&format!("quic://{}", self.0.local_addr())).unwrap()
    }

    /// Changes the port, which no connection survives.
    fn cut(&self) {
        self.0.cut();
    }

    fn black_hole(&self) {
        for direction in ProxyDirection::ALL {
            self.0.set(direction, DatagramFlow { black_hole: true, ..DatagramFlow::default() });
        }
    }

    fn slow_down(&self, bytes_per_s: u64) -> bool {
        for direction in ProxyDirection::ALL {
            let flow = DatagramFlow { bytes_per_s: Some(bytes_per_s), ..DatagramFlow::default() };
            self.0.set(direction, flow);
        }
        true
    }

    fn carried(&self) -> Option<u64> {
        Some(self.0.bytes(ProxyDirection::Forth))
    }
}

transport_suite!(over_quic, Quic::default);
