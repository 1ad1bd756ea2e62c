//! Three nodes over gRPC with a delay on every link, and how long linearizable reads take on them.

use std::time::{Duration, Instant};

use towline_engine::config::Config;
use towline_engine::errors::ReadError;
use towline_engine::ids::PeerAddr;
use towline_engine::node::{Consistency, Group};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_testkit::cluster::{Cluster, Plan, node_id};
use towline_testkit::list::ListMachine;
use towline_testkit::proxy::{Flow, ProxyDirection, TcpProxy};

use super::ports::free_port;

/// Between two reads of one run. They do not wait for each other.
const READ_INTERVAL: Duration = Duration::from_millis(10);

/// Between two writes meanwhile.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

/// Nodes with the default settings, each behind a proxy that delays everything by half a round trip.
pub(crate) struct Distant {
    pub(crate) cluster: Cluster,
    _proxies: Vec<TcpProxy>,
}

/// How long the reads of a run took, in order, and how many failed.
pub(crate) struct Latencies {
    pub(crate) took: Vec<Duration>,
    pub(crate) failed: Vec<ReadError>,
}

fn grpc(at: std::net::SocketAddr) -> PeerAddr {
    format!("grpc://{at}").parse().unwrap()
}

impl Distant {
    pub(crate) async fn start(round_trip: Duration) -> Self {
        let (mut ports, mut proxies) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let port = free_port();
            let proxy = TcpProxy::to(port).await.unwrap();
            for direction in ProxyDirection::ALL {
                proxy.set(direction, Flow { delay: round_trip / 2, ..Flow::default() });
            }
            ports.push(port);
            proxies.push(proxy);
        }
        let dialled: Vec<_> = proxies.iter().map(TcpProxy::local_addr).collect();
        let plan = Plan::new(3, 1).config(Config::default()).customise(move |id, mut builder| {
            for (other, at) in (1..).zip(&dialled) {
                builder = builder.peer_address(node_id(other), grpc(*at));
            }
            let transport = std::sync::Arc::new(GrpcTransport::new(GrpcConfig::default()));
            builder.transport(transport, grpc(ports[id.as_u64() as usize - 1]))
        });
        let cluster = plan.start().await;
        cluster.nodes().into_iter().for_each(|node| cluster.net.kill(node_id(node)));
        Self { cluster, _proxies: proxies }
    }

    /// A number of reads on a node, at a steady pace, while the leader takes writes.
    pub(crate) async fn read(&self, node: u64, count: usize) -> Latencies {
        let leader = self.cluster.group(self.cluster.leader(1).await, 1);
        let writes = tokio::spawn(write(leader));
        let group = self.cluster.group(node, 1);
        let mut pace = tokio::time::interval(READ_INTERVAL);
        let mut reads = Vec::with_capacity(count);
        for _ in 0..count {
            pace.tick().await;
            let group = group.clone();
            reads.push(tokio::spawn(async move {
                let since = Instant::now();
                group.read(Consistency::Linearizable).await.map(|_| since.elapsed())
            }));
        }
        let mut latencies = Latencies { took: Vec::new(), failed: Vec::new() };
        for read in reads {
            match read.await.unwrap() {
                Ok(took) => latencies.took.push(took),
                Err(error) => latencies.failed.push(error),
            }
        }
        writes.abort();
        latencies.took.sort_unstable();
        latencies
    }

    /// A node that does not lead.
    pub(crate) async fn follower(&self) -> u64 {
        let leader = self.cluster.leader(1).await;
        self.cluster.nodes().into_iter().find(|&node| node != leader).unwrap()
    }
}

async fn write(leader: Group<ListMachine>) {
    let mut pace = tokio::time::interval(WRITE_INTERVAL);
    loop {
        pace.tick().await;
        let leader = leader.clone();
        tokio::spawn(async move { leader.propose("w").await });
    }
}

impl Latencies {
    /// The latency that `percent` of the reads did not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        self.took[(self.took.len() - 1) * percent / 100]
    }
}
