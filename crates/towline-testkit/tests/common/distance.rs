//! Three nodes over gRPC with a delay on every link, and the latency of linearizable reads on them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_engine::config::Config;
use towline_engine::errors::ReadError;
use towline_engine::ids::PeerAddr;
use towline_engine::node::{Consistency, Group};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_testkit::cluster::{Cluster, Plan};
use towline_testkit::list::ListMachine;
use towline_testkit::proxy::{Flow, ProxyDirection, TcpProxy};

use super::addresses::{at_addresses, cut_memory_network, free_addresses};

/// The time between two reads of a run. Reads do not wait for each other.
const READ_INTERVAL: Duration = Duration::from_millis(10);

/// The time between two writes during a run.
const WRITE_INTERVAL: Duration = Duration::from_millis(20);

/// Nodes with the default settings, each behind a proxy that delays everything by half a round trip.
pub(crate) struct DistantCluster {
    pub(crate) cluster: Cluster,
    _proxies: Vec<TcpProxy>,
}

/// The latencies of the reads of a run, in order, and the errors.
pub(crate) struct Latencies {
    pub(crate) took: Vec<Duration>,
    pub(crate) failed: Vec<ReadError>,
}

impl DistantCluster {
    pub(crate) async fn start(round_trip: Duration) -> Self {
        let (mut own, mut dialled, mut proxies) = (Vec::new(), Vec::new(), Vec::new());
        for address in free_addresses::<3>("grpc") {
            let proxy = TcpProxy::to(address.authority().parse().unwrap()).await.unwrap();
            for direction in ProxyDirection::ALL {
                proxy.set(direction, Flow { delay: round_trip / 2, ..Flow::default() });
            }
            dialled.push(format!("grpc://{}", proxy.local_addr()).parse::<PeerAddr>().unwrap());
            own.push(address);
            proxies.push(proxy);
        }
        let plan = Plan::new(3, 1).config(Config::default());
        let plan = at_addresses(plan, own, dialled, |_| Arc::new(GrpcTransport::new(GrpcConfig::default())));
        let cluster = plan.start().await;
        cut_memory_network(&cluster);
        Self { cluster, _proxies: proxies }
    }

    /// Reads `count` times on a node, at a steady pace, while the leader takes writes.
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

    /// A follower.
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
