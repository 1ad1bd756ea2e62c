//! A cluster in which some nodes listen on gRPC and some on QUIC, so most pairs use one transport each way.

use crate::common::*;
use crate::wires::of_node;

/// The transport of each node. Every leader has a follower of each kind.
const SCHEMES: [&str; 5] = ["quic", "grpc", "quic", "grpc", "quic"];

const SENT: &str = "towline_messages_sent_total";

fn addresses() -> Vec<PeerAddr> {
    let address = |scheme: &&str| PeerAddr::new(&format!("{scheme}://{}", free_port())).unwrap();
    SCHEMES.iter().map(address).collect()
}

async fn mixed(config: Config) -> (Cluster, Counts) {
    let (addresses, counts) = (addresses(), Counts::default());
    let plan = Plan::new(SCHEMES.len() as u64, 1).config(config).customise(counts.on());
    let plan = plan.customise(move |id, mut builder| {
        let tls = of_node(id.as_u64());
        for (other, address) in (1..).zip(&addresses) {
            builder = builder.peer_address(node_id(other), address.clone());
        }
        let grpc: Arc<dyn Transport> = Arc::new(GrpcTransport::with_tls(GrpcConfig::default(), tls.clone()));
        let quic: Arc<dyn Transport> = Arc::new(QuicTransport::new(QuicConfig::default(), tls));
        // A node listens on the transport of its address and dials over both.
        let own = addresses[id.as_u64() as usize - 1].clone();
        match own.scheme() {
            "grpc" => builder.transport(grpc, own).dialler(quic),
            _ => builder.transport(quic, own).dialler(grpc),
        }
    });
    let cluster = plan.start().await;
    cut_memory_network(&cluster);
    (cluster, counts)
}

fn reached_over(scheme: &str, but: u64) -> u64 {
    let of = |node: u64| SCHEMES[node as usize - 1] == scheme;
    (1..=SCHEMES.len() as u64).find(|node| *node != but && of(*node)).unwrap()
}

fn assert_both_carry(counts: &Counts) {
    for scheme in ["transport=grpc", "transport=quic"] {
        for lane in ["lane=control", "lane=append"] {
            assert!(counts.sum(SENT, &format!("{scheme} {lane}")) > 0, "nothing on {lane} of {scheme}");
        }
    }
    assert_eq!(counts.sum(SENT, "transport=mem"), 0, "messages crossed the memory network");
}

/// A node receives over the transport of its own address. Received messages were once counted for the transport of the peer.
fn assert_received_over_own(counts: &Counts) {
    for (node, scheme) in (1..).zip(SCHEMES) {
        let node = format!("node={node}");
        for name in ["towline_messages_received_total", "towline_payload_received_bytes_total"] {
            let over = |scheme: &str| counts.sum(name, &format!("{node} transport={scheme}"));
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
    assert!((0..written).all(|n| commands.contains(&n.to_string().into())), "{commands:?}");
    assert_both_carry(&counts);
    assert_received_over_own(&counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_sends_one_snapshot_over_grpc_and_one_over_quic() {
    let patient = Config {
        snapshot_offer_timeout: Duration::from_secs(5),
        snapshot_progress_timeout: Duration::from_secs(5),
        ..config()
    };
    let (mut cluster, counts) = mixed(patient).await;
    let leader = cluster.leader(1).await;
    let behind = ["grpc", "quic"].map(|scheme| reached_over(scheme, leader));
    cluster.settled(1).await;
    let applied = behind.map(|node| cluster.group(node, 1).state().applied).into_iter().max().unwrap();
    behind.into_iter().for_each(|node| cluster.crash(node));
    load(&cluster, 60, 4_000).await;
    compact_past(&cluster, 1, applied).await;
    for node in behind {
        cluster.restart(node).await;
    }
    assert!(cluster.settled(1).await.len() >= 60);
    for scheme in ["transport=grpc", "transport=quic"] {
        until(&format!("a snapshot that was sent over {scheme}"), || {
            counts.sum(TRANSFERS, &format!("{scheme} direction=sent outcome=finished")) > 0
        })
        .await;
    }
    assert_both_carry(&counts);
    assert_received_over_own(&counts);
    for node in behind {
        let own = format!("transport={}", SCHEMES[node as usize - 1]);
        let received = |labels: &str| {
            let labels = format!("direction=received outcome=finished node={node} {labels}");
            [TRANSFERS, BYTES].map(|name| counts.sum(name, &labels))
        };
        assert!(received(&own)[0] > 0);
        assert_eq!(received(&own), received(""), "node {node} receives over {own} only");
    }
}

/// The network loses, duplicates, delays, reorders and damages datagrams.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_replicates_over_quic_on_a_poor_network() {
    let poor = DatagramFlow {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(3),
        lose: 0.02,
        duplicate: 0.02,
        reorder: 0.05,
        corrupt: 0.02,
        ..DatagramFlow::default()
    };
    let (mut dialled, mut proxies, own) = (Vec::new(), Vec::new(), free_addresses::<3>("quic"));
    for (seed, address) in (0..).zip(&own) {
        let proxy = UdpProxy::to(address.authority().parse().unwrap(), seed).await.unwrap();
        ProxyDirection::ALL.into_iter().for_each(|direction| proxy.set(direction, poor));
        dialled.push(format!("quic://{}", proxy.local_addr()).parse::<PeerAddr>().unwrap());
        proxies.push(proxy);
    }
    let plan = at_addresses(Plan::new(3, 1), own, dialled, |id| {
        Arc::new(QuicTransport::new(QuicConfig::default(), of_node(id.as_u64())))
    });
    let cluster = plan.start().await;
    cut_memory_network(&cluster);
    for n in 0..100 {
        cluster.acked(1, format!("{n}")).await;
    }
    let commands = cluster.settled(1).await;
    assert!((0..100).all(|n| commands.contains(&n.to_string().into())), "{commands:?}");
}
