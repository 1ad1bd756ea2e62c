//! Free ports, and plans whose nodes reach each other over real transports.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::state_machine::StateMachine;
use towline_engine::transport::Transport;
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_testkit::cluster::{Cluster, Plan, node_id};

/// A local address without a listener, the same for TCP and UDP.
///
/// A restarted node must find its port free. So the ports lie below the ephemeral ports of diallers, and below 20,000 to
/// 30,000, which the tests of examples/kv use at the same time.
pub(crate) fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let offset = std::process::id().wrapping_mul(64).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_000 + (offset % 10_000) as u16));
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return at;
        }
    }
}

/// Free addresses of one scheme.
pub(crate) fn free_addresses<const N: usize>(scheme: &str) -> [PeerAddr; N] {
    [(); N].map(|()| PeerAddr::new(&format!("{scheme}://{}", free_port())).unwrap())
}

/// Lets the nodes of a plan listen at `own` and dial each other at `dialled`, in the order of their numbers.
pub(crate) fn at_addresses<M: StateMachine>(
    plan: Plan<M>,
    own: impl Into<Vec<PeerAddr>>,
    dialled: impl Into<Vec<PeerAddr>>,
    transport: impl Fn(NodeId) -> Arc<dyn Transport> + Send + Sync + 'static,
) -> Plan<M> {
    let (own, dialled) = (own.into(), dialled.into());
    plan.customise(move |id, mut builder| {
        for (other, address) in (1..).zip(&dialled) {
            builder = builder.peer_address(node_id(other), address.clone());
        }
        builder.transport(transport(id), own[id.as_u64() as usize - 1].clone())
    })
}

/// Lets three nodes reach each other over plain gRPC.
pub(crate) fn over_grpc<M: StateMachine>(plan: Plan<M>) -> Plan<M> {
    let own = free_addresses::<3>("grpc");
    at_addresses(plan, own.clone(), own, |_| Arc::new(GrpcTransport::new(GrpcConfig::default())))
}

/// Cuts the network in memory, so that nodes reach each other only over their real transports.
pub(crate) fn cut_memory_network<M: StateMachine>(cluster: &Cluster<M>) {
    cluster.nodes().into_iter().for_each(|node| cluster.net.kill(node_id(node)));
}
