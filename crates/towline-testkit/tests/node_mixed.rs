//! Case 53: a cluster in which each address names its transport. Some nodes are reached over gRPC and some over QUIC, so
//! the two ends of most pairs talk over one transport one way and over the other one back.

use std::sync::Arc;

use crate::common::Counts;
use crate::common::bench::{BYTES, TRANSFERS};
use crate::common::ports::free_port;
use towline_engine::config::Config;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::Transport;
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_quic::{QuicConfig, QuicTransport};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick, until};
use towline_tls::TlsConfig;
use towline_tls::dev::DevAuthority;

/// How each node is reached: whoever leads, there is a follower of each kind.
const SCHEMES: [&str; 5] = ["quic", "grpc", "quic", "grpc", "quic"];

const SENT: &str = "towline_messages_sent_total";

fn addresses() -> Vec<PeerAddr> {
    let address = |scheme: &&str| PeerAddr::new(&format!("{scheme}://{}", free_port())).unwrap();
    SCHEMES.iter().map(address).collect()
}

async fn mixed(config: Config) -> (Cluster, Counts) {
    let (addresses, authority, counts) = (addresses(), DevAuthority::new().unwrap(), Counts::default());
    let plan = Plan::new(SCHEMES.len() as u64, 1).config(config).customise(counts.on());
    let plan = plan.customise(move |id, mut builder| {
        let own = authority.issue(id).unwrap();
        let tls = TlsConfig::from_pem(authority.ca_pem().as_bytes(), own.cert.as_bytes(), own.key.as_bytes());
        let tls = tls.unwrap();
        for (other, address) in (1..).zip(&addresses) {
            builder = builder.peer_address(node_id(other), address.clone());
        }
        let grpc: Arc<dyn Transport> = Arc::new(GrpcTransport::with_tls(GrpcConfig::default(), tls.clone()));
        let quic: Arc<dyn Transport> = Arc::new(QuicTransport::new(QuicConfig::default(), tls));
        // A node listens where its address says, and calls the others where theirs do.
        let own = addresses[id.as_u64() as usize - 1].clone();
        match own.scheme() {
            "grpc" => builder.transport(grpc, own).dialler(quic),
            _ => builder.transport(quic, own).dialler(grpc),
        }
    });
    let cluster = plan.start().await;
    // Whatever the nodes hear of each other from here on came over the two.
    cluster.nodes().into_iter().for_each(|node| cluster.net.kill(node_id(node)));
    (cluster, counts)
}

fn reached_over(scheme: &str, but: u64) -> u64 {
    let of = |node: u64| SCHEMES[node as usize - 1] == scheme;
    (1..=SCHEMES.len() as u64).find(|node| *node != but && of(*node)).unwrap()
}

fn assert_both_carry(counts: &Counts) {
    for scheme in ["transport=grpc", "transport=quic"] {
        for lane in ["lane=control", "lane=append"] {
            assert!(counts.sum(SENT, &[scheme, lane]) > 0, "nothing on {lane} of {scheme}");
        }
    }
    assert_eq!(counts.sum(SENT, &["transport=mem"]), 0, "the nodes have a way around");
}

/// What a node hears came over the transport that its own address names, whatever it calls the peer with. It was counted
/// for the latter.
fn assert_received_over_own(counts: &Counts) {
    for (node, scheme) in (1..).zip(SCHEMES) {
        let node = format!("node={node}");
        for name in ["towline_messages_received_total", "towline_payload_received_bytes_total"] {
            let over = |scheme: &str| counts.sum(name, &[&node, &format!("transport={scheme}")]);
            let other = if scheme == "quic" { "grpc" } else { "quic" };
            assert!(over(scheme) > 0, "{name} of {node} over {scheme}");
            assert_eq!((over(other), over("other")), (0, 0), "{name} of {node} over {other}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_cluster_commits_and_followers_and_leaders_of_both_kinds_come_back() {
    let (mut cluster, counts) = mixed(quick()).await;
    let mut written = 0;
    let mut write = async |cluster: &Cluster| {
        for _ in 0..20 {
            cluster.acked(1, format!("{written}")).await;
            written += 1;
        }
    };
    write(&cluster).await;
    for scheme in ["grpc", "quic"] {
        let leader = cluster.leader(1).await;
        let follower = reached_over(scheme, leader);
        cluster.crash(follower);
        write(&cluster).await;
        cluster.restart(follower).await;
        write(&cluster).await;
        cluster.settled(1).await;
    }
    let leader = cluster.leader(1).await;
    cluster.crash(leader);
    write(&cluster).await;
    cluster.restart(leader).await;
    let commands = cluster.settled(1).await;
    assert!((0..written).all(|n| commands.contains(&format!("{n}").into())), "{commands:?}");
    assert_both_carry(&counts);
    assert_received_over_own(&counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_sends_one_snapshot_over_grpc_and_one_over_quic() {
    let config = Config {
        snapshot_entries: 40,
        snapshot_trailing_entries: 3,
        snapshot_chunk_bytes: 16 << 10,
        ..quick()
    };
    let (mut cluster, counts) = mixed(config).await;
    let leader = cluster.leader(1).await;
    let behind = ["grpc", "quic"].map(|scheme| reached_over(scheme, leader));
    cluster.settled(1).await;
    let applied = behind.map(|node| cluster.group(node, 1).state().applied).into_iter().max().unwrap();
    behind.into_iter().for_each(|node| cluster.crash(node));
    // More than the log keeps, in more than one chunk.
    let mut written = 0;
    loop {
        let leader = cluster.leader(1).await;
        let status = cluster.group(leader, 1).status().await;
        if written >= 60 && status.is_ok_and(|status| status.first_index > applied + 1) {
            break;
        }
        cluster.acked(1, vec![b'.'; 4_000]).await;
        written += 1;
        assert!(written < 2_000, "the log is not compacted");
    }
    for node in behind {
        cluster.restart(node).await;
    }
    assert!(cluster.settled(1).await.len() >= written);
    for scheme in ["transport=grpc", "transport=quic"] {
        until(&format!("a snapshot that was sent over {scheme}"), || {
            counts.sum(TRANSFERS, &[scheme, "direction=sent", "outcome=finished"]) > 0
        })
        .await;
    }
    assert_both_carry(&counts);
    assert_received_over_own(&counts);
    for node in behind {
        let (node_label, own) = (format!("node={node}"), format!("transport={}", SCHEMES[node as usize - 1]));
        let received = |labels: &[&str]| {
            let of = ["direction=received", "outcome=finished", &node_label];
            [TRANSFERS, BYTES].map(|name| counts.sum(name, &[&of, labels].concat()))
        };
        assert!(received(&[&own])[0] > 0);
        assert_eq!(received(&[&own]), received(&[]), "node {node} receives over {own} only");
    }
}
