//! One part fails: a disk, a state machine, a peer, a link or the memory of a group. The rest of the cluster goes on.

use crate::common::*;

fn other(node: u64) -> u64 {
    node % 3 + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_group_refuses_only_its_own_messages() {
    // A worker for each group, because the state machine of the full one blocks.
    let config = Config {
        unapplied_bytes_max: ByteSize::kib(64),
        proposal_bytes_max: ByteSize::kib(8),
        apply_workers: 2,
        ..quick()
    };
    let counts = Counts::default();
    let mut cluster = Plan::new(3, 2).config(config).customise(counts.on()).start().await;
    let (leader, full) = (1, 2);
    cluster.lead(1, leader).await;
    cluster.lead(2, leader).await;
    let hold = cluster.group(full, 1).read(Consistency::Local).await.unwrap().hold();
    let command = Bytes::from(vec![1; 4 << 10]);
    let group = cluster.group(leader, 1);
    let nacked = || counts.sum("towline_nacks_sent_total", &format!("node={full} peer={leader}"));
    let heard = || counts.sum("towline_nacks_received_total", &format!("node={leader} peer={full}"));
    eventually("a message is refused", async || {
        // The majority goes on without the full node.
        match within(group.propose(command.clone())).await {
            Ok(_) | Err(ProposeError::Busy) => {}
            // On a busy machine the leader may lose its leadership.
            Err(_) => cluster.lead(1, leader).await,
        }
        if nacked() == 0 || heard() == 0 { Err((nacked(), heard())) } else { Ok(()) }
    })
    .await;
    assert!(counts.sum("towline_inbound_rejects_total", &format!("node={full} cause=inbox_full")) > 0);
    // The shard takes the lane's report in its next turn.
    let report = format!("node={leader} kind=unreachable outcome=applied");
    until("the report", || counts.sum(REPORTS, &report) > 0).await;
    let links = |counts: &Counts| counts.sum("towline_links_closed_total", "");
    let broken = links(&counts);

    // The other group commits, also on the full node.
    for n in 1..=50 {
        assert_eq!(cluster.group(leader, 2).propose("x").await, Ok(n));
    }
    let status = cluster.group(leader, 2).status().await.unwrap();
    let peer = status.peers.iter().find(|p| p.id == node_id(full)).unwrap();
    assert_eq!(peer.progress, PeerProgress::Replicate, "{status:?}");
    until("the other group applies on the full node", || {
        cluster.group(full, 2).state().applied >= status.state.commit
    })
    .await;
    assert_eq!(links(&counts), broken, "the nack leaves the lane open");

    drop(hold);
    cluster.settled(1).await;
    cluster.stop(full, Duration::ZERO).await;
}

/// Compares the latency with that before the fault, with room for a loaded machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_in_a_black_hole_does_not_slow_the_others_down() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let group = cluster.group(leader, 1);
    let median = async || {
        let mut times = Vec::new();
        for _ in 0..100 {
            let began = Instant::now();
            within(group.propose(vec![0; 1_000])).await.unwrap();
            times.push(began.elapsed());
        }
        times.sort();
        times[times.len() / 2]
    };
    let before = median().await;
    for fault in [Fault::Swallow, Fault::Stall] {
        let hole = other(leader);
        for (from, to) in [(leader, hole), (hole, leader)] {
            cluster.net.fault(node_id(from), node_id(to), fault);
        }
        let during = median().await;
        assert!(during < before * 10 + Duration::from_millis(10), "{fault:?}: {before:?} became {during:?}");
        assert_eq!(cluster.group(leader, 1).state().role, Role::Leader);
        cluster.net.heal_all();
    }
    assert!(cluster.settled(1).await.len() == 300);
    cluster.crash(leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_while_links_break() {
    let cluster = Cluster::start(3, 1).await;
    let done = AtomicBool::new(false);
    let mut rng = fastrand::Rng::with_seed(28);
    let breaking = async {
        let mut breaks = 0;
        while !done.load(Ordering::Relaxed) {
            let from = rng.u64(1..=3);
            let to = other(from + rng.u64(0..2));
            if from == to {
                continue;
            }
            until("a link to break", || {
                done.load(Ordering::Relaxed) || cluster.net.links(node_id(from), node_id(to)) > 0
            })
            .await;
            cluster.net.reset(node_id(from), node_id(to));
            breaks += 1;
            tokio::time::sleep(Duration::from_millis(rng.u64(0..4))).await; // not synchronisation: spreads the breaks
        }
        breaks
    };
    let writing = async {
        let mut acked = Vec::new();
        for round in 0..100 {
            let leader = cluster.leader(1).await;
            let group = cluster.group(leader, 1);
            let proposals: Vec<_> = (0..20)
                .map(|n| (round * 100 + n, group.submit(format!("{:05}", round * 100 + n)).unwrap()))
                .collect();
            for (n, proposal) in proposals {
                if within(proposal).await.is_ok() {
                    acked.push(Bytes::from(format!("{n:05}")));
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        acked
    };
    let (acked, breaks) = tokio::join!(writing, breaking);
    let commands = cluster.settled(1).await;
    assert!(commands.is_sorted(), "commands of one caller changed places");
    assert!(acked.iter().all(|c| commands.binary_search(c).is_ok()), "an acknowledged command is missing");
    assert!(acked.len() > 500 && breaks > 10, "{} acknowledged, {breaks} breaks", acked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_peer_is_connected_before_an_election_timeout() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let follower = other(leader);
    cluster.group(leader, 1).propose("before").await.unwrap();
    let term = cluster.group(leader, 1).state().term;
    for _ in 0..3 {
        cluster.crash(follower);
        tokio::time::sleep(Duration::from_millis(300)).await; // not synchronisation: lets the backoff reach its cap
        cluster.restart(follower).await;
        let began = Instant::now();
        let (from, to) = (node_id(leader), node_id(follower));
        until("the lanes", || cluster.net.links(from, to) == 2 && cluster.net.links(to, from) == 2).await;
        let election = quick().election_timeout_min;
        assert!(began.elapsed() < election, "{:?}", began.elapsed());
        let group = cluster.group(follower, 1);
        assert_eq!(within(group.wait_leader(DEADLINE)).await.unwrap(), node_id(leader));
    }
    assert_eq!(cluster.group(leader, 1).state().term, term);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_cannot_write_goes_down_and_another_takes_over() {
    for (ahead, fault) in
        [(1, AppendFault::BeforeDurable), (2, AppendFault::AfterDurable), (7, AppendFault::BeforeDurable)]
    {
        let counts = Counts::default();
        let mut cluster = Plan::new(3, 2).customise(counts.on()).start().await;
        let leader = cluster.leader(1).await;
        cluster.lead(2, leader).await;
        let group = cluster.group(leader, 1);
        let log = cluster.disks[&leader].log.clone();
        log.fail_append(log.appends() + ahead, fault);
        let mut acked = Vec::new();
        let mut failed = Vec::new();
        for n in 0.. {
            let command = Bytes::from(format!("{n}"));
            match within(group.propose(command.clone())).await {
                Ok(_) => acked.push(command),
                Err(error) => {
                    failed.push((command, error));
                    break;
                }
            }
        }
        let began = Instant::now();
        until("both groups are down", || {
            cluster.group(leader, 1).state().role == Role::Down
                && cluster.group(leader, 2).state().role == Role::Down
        })
        .await;
        for group in [1, 2] {
            let state = cluster.group(leader, group).state();
            let cause = state.down.unwrap().to_string();
            assert!(
                cause.starts_with("the log cannot be written: log write failed during append"),
                "{cause}"
            );
        }
        assert!(group.propose("late").await.unwrap_err().outcome() == Outcome::NeverHappened);
        assert!(group.read(Consistency::Linearizable).await.is_err());
        assert_eq!(counts.sum("towline_log_poisoned_total", &format!("node={leader}")), 1);
        let again =
            cluster.up[&leader].node.group(GroupId::new(1), ListMachine::new()).start(Start::Restart).await;
        assert!(matches!(again, Err(StartError::Log { .. })), "{again:?}");

        // The others elect a new leader in time.
        let two = cluster.up.remove(&leader).unwrap();
        for group in [1, 2] {
            let next = cluster.leader(group).await;
            assert_ne!(next, leader);
            cluster.acked(group, "after").await;
        }
        let election = quick().election_timeout_max;
        assert!(began.elapsed() < election * 3 + Duration::from_millis(500), "{:?}", began.elapsed());
        drop(two);

        // The node restarts from its disk, catches up and has every acknowledged command.
        cluster.crash(leader);
        cluster.restart(leader).await;
        let commands = cluster.settled(1).await;
        assert!(acked.iter().all(|c| commands.contains(c)), "{acked:?} not all in {commands:?}");
        for (command, error) in failed {
            if error.outcome() == Outcome::NeverHappened {
                assert!(!commands.contains(&command), "{command:?} was applied after {error}");
            }
        }
        assert!(!commands.contains(&"late".into()));
    }
}

/// With a single voter.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_acknowledges_nothing_after_its_disk_fails() {
    for fault in [AppendFault::BeforeDurable, AppendFault::AfterDurable] {
        let mut cluster = Cluster::start(1, 2).await;
        cluster.leader(1).await;
        cluster.leader(2).await;
        let group = cluster.group(1, 1);
        assert_eq!(group.propose("good").await, Ok(1));
        let log = cluster.disks[&1].log.clone();
        log.fail_append(log.appends() + 1, fault);
        let waiting: Vec<_> = (0..10).map(|n| group.submit(format!("{n}")).unwrap()).collect();
        for proposal in waiting {
            let error = within(proposal).await.unwrap_err();
            assert!(
                matches!(error, ProposeError::Uncertain { .. } | ProposeError::Stopped { .. }),
                "{error:?}"
            );
        }
        assert!(cluster.group(1, 2).propose("x").await.is_err(), "the log is shared");
        cluster.crash(1);
        cluster.restart(1).await;
        let commands = cluster.settled(1).await;
        assert_eq!(commands[0], "good");
        assert_eq!(commands.len() > 1, fault == AppendFault::AfterDurable, "{commands:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_voter_acknowledges_only_what_is_durable() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.leader(1).await;
    let group = cluster.group(1, 1);
    let list = group.read(Consistency::Local).await.unwrap();
    let log = cluster.disks[&1].log.clone();
    let gate = log.hold_syncs();
    let proposal = group.submit("held").unwrap();
    let gate = tokio::task::spawn_blocking(move || {
        assert!(gate.wait_held(DEADLINE));
        gate
    })
    .await
    .unwrap();
    // The shard is not blocked: it answers, and has not committed.
    let status = group.status().await.unwrap();
    assert!(status.state.commit < status.last_index, "{status:?}");
    assert!(list.is_empty());
    let mut proposal = Box::pin(proposal);
    assert!(!is_ready(&mut proposal).await);
    let lost = cluster.disks[&1].crash();
    drop(gate);
    assert_eq!(within(proposal).await, Ok(1));
    // Restart from what a power loss would have left.
    cluster.crash(1);
    cluster.disks.insert(1, lost);
    cluster.restart(1).await;
    assert!(cluster.settled(1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_state_machine_quarantines_only_its_group() {
    let causes = [
        (Trouble::Panic, "state machine panicked in `apply`: told to panic"),
        (Trouble::Fatal, "state machine failed: told to fail"),
        (Trouble::FewReplies, "state machine gave 0 replies to 1 commands"),
    ];
    for (trouble, cause) in causes {
        // Only on node 1, in group 1.
        let plan = Plan::new(3, 2).machine(move |node, group| match (node.as_u64(), group.as_u64()) {
            (1, 1) => ListMachine::new().failing("boom", trouble),
            _ => ListMachine::new(),
        });
        let mut cluster = plan.start().await;
        for group in [1, 2] {
            cluster.lead(group, 1).await;
            cluster.group(1, group).propose("fine").await.unwrap();
        }
        let bad = cluster.group(1, 1);
        let error = within(bad.propose("boom")).await.unwrap_err();
        assert_eq!(error.to_string(), format!("the outcome is not known: the group went down: {cause}"));
        until("quarantine", || bad.state().role == Role::Down).await;
        assert_eq!(bad.state().down.as_deref(), Some(cause));
        assert_eq!(bad.state().leader, None);
        assert!(matches!(bad.propose("x").await, Err(ProposeError::Stopped { .. })));
        assert!(bad.read(Consistency::Local).await.is_err());

        // Other groups on this node go on, and this group on other nodes.
        for n in 2..20 {
            assert_eq!(cluster.group(1, 2).propose("meanwhile").await, Ok(n));
        }
        let next = cluster.leader(1).await;
        assert_ne!(next, 1);
        cluster.acked(1, "elsewhere").await;

        // A restart with a new state machine catches up.
        let node = &cluster.up[&1].node;
        let healed = node.group(GroupId::new(1), ListMachine::new()).start(Start::Restart).await.unwrap();
        cluster.up.get_mut(&1).unwrap().groups.insert(1, healed);
        assert_eq!(cluster.settled(1).await, ["fine", "boom", "elsewhere"]);
    }
}

/// An idle link breaks, and its last messages may be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_idle_link_is_reported_once_to_each_group_that_replicates_over_it() {
    let counts = Counts::default();
    let cluster = Plan::new(3, 5).customise(counts.on()).start().await;
    let (leader, peer) = (1, 2);
    for group in 1..=5 {
        cluster.lead(group, leader).await;
        cluster.settled(group).await;
    }
    let reports = |outcome: &str| {
        let labels = format!("node={leader} peer={peer} kind=unreachable outcome={outcome}");
        counts.sum(REPORTS, &labels)
    };
    // The first links may have opened late, so count only new incidents.
    for _ in 0..3 {
        let before = reports("applied");
        let connects = || counts.sum("towline_link_connects_total", "node=1 peer=2 lane=append");
        let connected = connects();
        cluster.net.reset(node_id(leader), node_id(peer));
        until("the reports", || reports("applied") >= before + 5).await;
        until("the link", || connects() > connected).await;
        // Use the lanes, so that the next break is a new incident.
        for group in 1..=5 {
            cluster.settled(group).await;
        }
        assert_eq!(reports("applied"), before + 5, "one report a group");
    }
}

/// Links report to a node that is stopping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_stops_while_its_links_break() {
    for deadline in [Duration::ZERO, Duration::from_secs(2)] {
        let mut cluster = Cluster::start(3, 5).await;
        let leader = cluster.leader(1).await;
        let net = cluster.net.clone();
        let breaking = tokio::spawn(async move {
            loop {
                for (from, to) in [(1, 2), (2, 3), (3, 1), (2, 1), (3, 2), (1, 3)] {
                    net.reset(node_id(from), node_id(to));
                }
                tokio::time::sleep(Duration::from_millis(1)).await; // not synchronisation: paces the breaks
            }
        });
        let group = cluster.group(leader, 1);
        let waiting: Vec<_> = (0..100).map(|n| group.submit(format!("{n}")).unwrap()).collect();
        within(cluster.stop(leader, deadline)).await;
        for proposal in waiting {
            let _ = within(proposal).await;
        }
        breaking.abort();
        assert_eq!(group.state().role, Role::Down);
        cluster.restart(leader).await;
        cluster.settled(1).await;
    }
}
