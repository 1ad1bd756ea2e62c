//! A node refuses diallers and messages that are not of a member, counts them by cause, and is not disturbed by them.

use crate::common::*;
use crate::wires::connect;

fn hello(from: u64, to: u64, incarnation: Incarnation) -> Hello {
    Hello {
        cluster: cluster_id(),
        from: node_id(from),
        to: node_id(to),
        incarnation,
        protocol: PROTOCOL_VERSION,
    }
}

const ONE: Incarnation = Incarnation::new(1).unwrap();
const TWO: Incarnation = Incarnation::new(2).unwrap();

/// Without certificates. The node is alone in a group of two, so the test can be the other member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_invalid_messages_are_refused_and_counted() {
    let (counts, disk, transport) = (Counts::default(), Disk::default(), MemNet::new().transport());
    let address: PeerAddr = "mem://n1:1".parse().unwrap();
    let builder = Node::builder(node_id(1), cluster_id()).config(quick()).storage(disk.storage());
    let builder = counts.on()(node_id(1), builder).transport(transport.clone(), address.clone());
    let node = builder.start().await.unwrap();
    let peer = Peer { id: node_id(1), address: address.clone() };
    let rejects = |cause: &str| counts.sum("towline_inbound_rejects_total", &format!("cause={cause}"));

    // There is no member before a group is founded.
    let (refused, _) = connect(&*transport, &peer, Lane::Append, &hello(2, 1, ONE)).await;
    assert!(
        matches!(refused, Err(ConnectError::Refused(Refusal::UnknownPeer { peer: 2, .. }))),
        "{refused:?}"
    );

    let nowhere = "mem://127.0.0.1:1".parse().unwrap();
    let members = vec![(node_id(1), address), (node_id(2), nowhere)];
    let group =
        node.group(GroupId::DEFAULT, ListMachine::new()).start(Start::Bootstrap(members)).await.unwrap();
    let (accepted, _log) = connect(&*transport, &peer, Lane::Append, &hello(2, 1, ONE)).await;
    let accepted = accepted.unwrap();
    assert_eq!(accepted.welcome.node, node_id(1));

    let wrong_cluster = Hello { cluster: ClusterId::new("other").unwrap(), ..hello(2, 1, ONE) };
    let version = Hello { protocol: PROTOCOL_VERSION + 1, ..hello(2, 1, ONE) };
    let founding = FoundingHash::of(GroupId::DEFAULT, [node_id(1), node_id(2)]);
    let stranger = |peer| {
        let founded = vec![Founded { group: GroupId::DEFAULT, founding }];
        Refusal::UnknownPeer { peer, founded }
    };
    let expected = [
        (wrong_cluster, Refusal::WrongCluster { ours: "test".into() }, "wrong_cluster"),
        (hello(2, 3, ONE), Refusal::WrongNode { ours: 1 }, "wrong_node"),
        (hello(3, 1, ONE), stranger(3), "unknown_peer"),
        (hello(1, 1, ONE), stranger(1), "unknown_peer"),
        (hello(2, 1, TWO), Refusal::WrongIncarnation { peer: 2 }, "wrong_incarnation"),
        (version, Refusal::Version { ours: PROTOCOL_VERSION, theirs: PROTOCOL_VERSION + 1 }, "version"),
    ];
    for (hello, refusal, cause) in expected {
        let before = rejects(cause);
        let (refused, _) = connect(&*transport, &peer, Lane::Append, &hello).await;
        assert!(matches!(refused, Err(ConnectError::Refused(ref got)) if *got == refusal), "{refused:?}");
        assert_eq!(rejects(cause), before + 1, "{cause}");
    }

    // Invalid messages of a member do not panic, and the lane stays open.
    let (accepted, log) = connect(&*transport, &peer, Lane::Append, &hello(2, 1, ONE)).await;
    let mut link = accepted.unwrap().link;
    for (at, message) in invalid_messages().into_iter().enumerate() {
        let group = if at == 0 { GroupId::new(77) } else { GroupId::DEFAULT };
        within(link.dispatch(Batch { envelopes: vec![Envelope { group, message }] })).await.unwrap();
    }
    until("nacks", || log.nacks().iter().any(|n| n.cause == NackCause::UnknownGroup)).await;
    until("rejects", || {
        ["wrong_node", "unknown_peer", "bad_entries", "bad_term"].iter().all(|cause| rejects(cause) > 0)
    })
    .await;
    assert!(group.status().await.is_ok());
    assert_ne!(group.state().role, Role::Down, "{:?}", group.state().down);
    assert_eq!(log.causes(), []);
    within(node.shutdown(Duration::ZERO)).await;
}

/// Messages on which Raft would panic, or which it would trust.
fn invalid_messages() -> Vec<Message> {
    let append = || Message { term: 9, ..Message::new(MessageKind::Append, node_id(2), node_id(1)) };
    let entry = |index, term| Entry { index, term, data: "x".into(), ..Entry::default() };
    vec![
        append(),
        Message { to: node_id(3), ..append() },
        Message { from: node_id(3), ..append() },
        Message { term: 0, ..append() },
        Message { term: u64::MAX, ..append() },
        Message { entries: vec![entry(1, 9), entry(3, 9)], ..append() },
        Message { entries: vec![entry(1, 10)], ..append() },
        Message { index: 5, log_term: 9, commit: 1_000, ..append() },
        Message { commit: 1_000, ..Message::new(MessageKind::Heartbeat, node_id(2), node_id(1)) },
        Message {
            term: 9,
            index: 1_000,
            ..Message::new(MessageKind::AppendResponse, node_id(2), node_id(1))
        },
        Message { term: 9, ..Message::new(MessageKind::ReadIndexResponse, node_id(2), node_id(1)) },
        Message::new(MessageKind::ReadIndex, node_id(2), node_id(1)),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_refused_by_its_incarnation_and_the_cluster_goes_on() {
    let counts = Counts::default();
    let mut cluster = Plan::new(3, 1).customise(counts.on()).start().await;
    let leader = cluster.leader(1).await;
    let wiped = leader % 3 + 1;
    cluster.group(leader, 1).propose("before").await.unwrap();
    // All nodes have met.
    for (from, to) in [(1, 2), (2, 1), (2, 3), (3, 2), (1, 3), (3, 1)] {
        until("links", || cluster.net.links(node_id(from), node_id(to)) == 2).await;
    }
    let term = cluster.group(leader, 1).state().term;
    cluster.crash(wiped);
    cluster.disks.insert(wiped, Disk::default());
    // The start command bootstraps an empty disk.
    cluster.restart(wiped).await;
    let refused =
        |by: u64| counts.sum("towline_inbound_rejects_total", &format!("node={by} cause=wrong_incarnation"));
    until("refusals", || cluster.nodes().into_iter().all(|by| by == wiped || refused(by) > 2)).await;
    for n in 2..20 {
        assert_eq!(cluster.group(leader, 1).propose("goes on").await, Ok(n));
    }
    let alone = cluster.group(wiped, 1);
    let mut states = alone.watch();
    // For several election timeouts it is not elected and hears of no leader.
    let elections = quick().election_timeout_max * 2;
    let elected = tokio::time::timeout(elections, states.wait_for(|s| s.leader.is_some() || s.commit > 0));
    assert!(elected.await.is_err(), "{:?}", alone.state());
    assert_eq!(cluster.group(leader, 1).state().term, term);
    // The wiped node says that it is refused, by whom and why.
    let refused = |state: &GroupState| state.refused.clone().unwrap_or_default();
    until("the refusal", || refused(&alone.state()).contains("another incarnation")).await;
    assert!(refused(&alone.state()).contains("it was emptied"), "{:?}", alone.state());
    let status = within(alone.status()).await.unwrap();
    let by: Vec<_> = status.refusals.iter().map(|refusal| refusal.by.as_u64()).collect();
    assert_eq!(by, cluster.nodes().into_iter().filter(|node| *node != wiped).collect::<Vec<_>>());
    assert!(status.refusals.iter().all(|refusal| refusal.age_ms < 5_000), "{status:?}");
    let status = cluster.group(leader, 1).status().await.unwrap();
    let peer = status.peers.iter().find(|p| p.id == node_id(wiped)).unwrap();
    assert!(!peer.recent_active, "{peer:?}");

    // Its vote does not count: with the third node down there is no majority.
    let third = wiped % 3 + 1;
    let third = if third == leader { third % 3 + 1 } else { third };
    cluster.crash(third);
    let error = within(cluster.group(leader, 1).propose("no majority")).await;
    assert!(error.is_err(), "{error:?}");
    assert_eq!(alone.state().commit, 0);
}

/// A member of another group passes the handshake, and its messages for this group are refused. A node that is no
/// member of any group does not pass the handshake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_keeps_calling_disturbs_nothing() {
    let counts = Counts::default();
    let cluster = Plan::new(3, 1).customise(counts.on()).start().await;
    let leader = cluster.leader(1).await;
    let before = cluster.group(leader, 1).state();
    // Node 4 is a member of group 9 with all others.
    let mut members = cluster.members();
    members.push((node_id(4), "mem://n4:1".parse::<PeerAddr>().unwrap()));
    let mut other: Vec<Group<ListMachine>> = Vec::new();
    for up in cluster.up.values() {
        let start = Start::Bootstrap(members.clone());
        other.push(up.node.group(GroupId::new(9), ListMachine::new()).start(start).await.unwrap());
    }
    let transport = cluster.net.transport();
    let target = |to: u64| Peer { id: node_id(to), address: cluster.address(to) };
    let rejects = || counts.sum("towline_inbound_rejects_total", "cause=unknown_peer");
    let mut links = Vec::new();
    for round in 1..20 {
        for to in cluster.nodes() {
            let (refused, _) = connect(&*transport, &target(to), Lane::Append, &hello(5, to, ONE)).await;
            assert!(matches!(refused, Err(ConnectError::Refused(Refusal::UnknownPeer { peer: 5, .. }))));
            for lane in Lane::ALL {
                let (connected, log) = connect(&*transport, &target(to), lane, &hello(4, to, ONE)).await;
                let mut link = connected.unwrap().link;
                // Every message of a removed member that does not know: campaigns, answers, and those of a former leader.
                let message = |kind| {
                    let led = matches!(kind, MessageKind::Append | MessageKind::Heartbeat);
                    let term = if led { before.term.saturating_sub(1).max(1) } else { before.term + round };
                    let message = Message::new(kind, node_id(4), node_id(to));
                    Message { term, index: 1_000, log_term: term, ..message }
                };
                let kinds = MessageKind::ALL.into_iter().filter(|kind| kind.lane() == Some(lane));
                let envelopes =
                    kinds.map(|kind| Envelope { group: GroupId::DEFAULT, message: message(kind) });
                within(link.dispatch(Batch { envelopes: envelopes.collect() })).await.unwrap();
                // A dropped link would lose its messages.
                links.push((link, log));
            }
        }
        cluster.group(leader, 1).propose("undisturbed").await.unwrap();
    }
    // 19 rounds with 3 nodes: one refused handshake each, and messages of 10 kinds, of which control ones may conflate.
    until("refusals", || rejects() >= 19 * 3 * 3).await;
    let after = cluster.group(leader, 1).state();
    assert_eq!((after.role, after.term, after.leader), (before.role, before.term, before.leader));
    assert!(within(other[0].wait_leader(DEADLINE)).await.is_ok());
}

/// Peers remember one incarnation of a node, which must not change with a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incarnation_outlives_restarts_and_crashes() {
    let mut cluster = Cluster::start(3, 1).await;
    cluster.leader(1).await;
    let identity = |cluster: &Cluster| cluster.disks[&2].identity.load().unwrap().unwrap().incarnation;
    let first = identity(&cluster);
    cluster.stop(2, Duration::from_secs(5)).await;
    cluster.restart(2).await;
    cluster.crash(2);
    cluster.restart(2).await;
    assert_eq!(identity(&cluster), first);
    cluster.settled(1).await;
    let seen = cluster.disks[&1].identity.seen().unwrap();
    assert_eq!(seen.get(&NodeId::new(2).unwrap()), Some(&first));
}
