//! Three nodes that reach each other over QUIC alone: replication, a lost leader, a follower brought back by a snapshot.

use std::sync::Arc;
use std::time::Duration;

use crate::common::ports::free_port;
use towline_engine::config::Config;
use towline_engine::ids::PeerAddr;
use towline_engine::status::AttemptOutcome;
use towline_quic::{QuicConfig, QuicTransport};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick};
use towline_testkit::proxy::{DatagramFlow, Direction, UdpProxy};
use towline_tls::TlsConfig;
use towline_tls::dev::DevAuthority;

/// As a network that is poor in every way: datagrams are lost, come twice, late, out of order and damaged.
fn poor() -> DatagramFlow {
    DatagramFlow {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(3),
        lose: 0.02,
        duplicate: 0.02,
        reorder: 0.05,
        corrupt: 0.02,
        ..DatagramFlow::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_replicates_over_a_network_that_is_poor_in_every_way() {
    let cluster = over_quic_through(quick(), true).await;
    for n in 0..100 {
        cluster.acked(1, format!("{n}")).await;
    }
    let commands = cluster.settled(1).await;
    assert!((0..100).all(|n| commands.contains(&format!("{n}").into())), "{commands:?}");
}

async fn over_quic(config: Config) -> Cluster {
    over_quic_through(config, false).await
}

async fn over_quic_through(config: Config, poor_network: bool) -> Cluster {
    let addresses: Vec<PeerAddr> =
        (0..3).map(|_| format!("quic://{}", free_port()).parse().unwrap()).collect();
    let mut called = addresses.clone();
    if poor_network {
        for (seed, address) in called.iter_mut().enumerate() {
            let proxy = UdpProxy::to(address.authority().parse().unwrap(), seed as u64).await.unwrap();
            Direction::ALL.into_iter().for_each(|direction| proxy.set(direction, poor()));
            *address = format!("quic://{}", proxy.local_addr()).parse().unwrap();
            // Until the process ends.
            std::mem::forget(proxy);
        }
    }
    let authority = DevAuthority::new().unwrap();
    let plan = Plan::new(3, 1).config(config).customise(move |id, mut builder| {
        let own = authority.issue(id).unwrap();
        let tls = TlsConfig::from_pem(authority.ca_pem().as_bytes(), own.cert.as_bytes(), own.key.as_bytes());
        let transport = Arc::new(QuicTransport::new(QuicConfig::default(), tls.unwrap()));
        for (other, address) in (1..).zip(&called) {
            builder = builder.peer_address(node_id(other), address.clone());
        }
        builder.transport(transport, addresses[id.as_u64() as usize - 1].clone())
    });
    let cluster = plan.start().await;
    // Whatever the nodes hear of each other from here on came over QUIC.
    cluster.nodes().into_iter().for_each(|node| cluster.net.kill(node_id(node)));
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_replicates_and_outlives_its_leader() {
    let mut cluster = over_quic(quick()).await;
    for n in 0..50 {
        cluster.acked(1, format!("{n}")).await;
    }
    let leader = cluster.leader(1).await;
    cluster.crash(leader);
    for n in 50..60 {
        cluster.acked(1, format!("{n}")).await;
    }
    cluster.restart(leader).await;
    cluster.net.kill(node_id(leader));
    let commands = cluster.settled(1).await;
    assert!((0..60).all(|n| commands.contains(&format!("{n}").into())), "{commands:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_the_log_has_left_behind_is_brought_back_by_a_snapshot() {
    let config = Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: 16 << 10,
        ..quick()
    };
    let mut cluster = over_quic(config).await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    let applied = cluster.group(behind, 1).state().applied;
    cluster.crash(behind);
    // More than the log keeps, in more than one chunk.
    let mut written = 0;
    while written < 60 || first_index(&cluster).await <= applied + 1 {
        cluster.acked(1, vec![b'.'; 4_000]).await;
        written += 1;
        assert!(written < 2_000, "the log is not compacted");
    }
    cluster.restart(behind).await;
    cluster.net.kill(node_id(behind));
    assert!(cluster.settled(1).await.len() >= written);
    let leader = cluster.leader(1).await;
    assert_eq!(cluster.attempt_ended(leader, 1, behind).await.outcome, AttemptOutcome::Finished);
}

async fn first_index(cluster: &Cluster) -> u64 {
    let leader = cluster.leader(1).await;
    cluster.group(leader, 1).status().await.map_or(0, |status| status.first_index)
}
