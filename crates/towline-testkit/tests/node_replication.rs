//! What callers of a cluster see: order, reads, typed errors, changes of leader.

use crate::common::*;

fn number(n: u64) -> Bytes {
    n.to_string().into()
}

fn other(node: u64) -> u64 {
    node % 3 + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_reads_an_acknowledged_command() {
    let cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    for n in 1..=5 {
        assert_eq!(cluster.group(leader, 1).propose(number(n)).await, Ok(n));
        for node in cluster.nodes() {
            let list = within(cluster.group(node, 1).read(Consistency::Linearizable)).await.unwrap();
            assert!(list.len() as u64 >= n, "node {node} misses {n}");
        }
    }
    let status = cluster.group(leader, 1).status().await.unwrap();
    assert_eq!(status.peers.len(), 2);
    assert!(status.state.commit >= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_applied_in_the_order_of_their_submits() {
    let cluster = Cluster::start(3, 1).await;
    let group = cluster.group(cluster.leader(1).await, 1);
    let proposals: Vec<_> = (0..500).map(|n| group.submit(number(n)).unwrap()).collect();
    for (position, proposal) in (1..).zip(proposals) {
        assert_eq!(within(proposal).await, Ok(position));
    }
    assert_eq!(cluster.settled(1).await, (0..500).map(number).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_groups_share_the_lanes() {
    let cluster = Cluster::start(3, 20).await;
    for group in 1..=20 {
        let leader = cluster.leader(group).await;
        let handle = cluster.group(leader, group);
        let proposals: Vec<_> = (0..20).map(|n| handle.submit(number(group * 100 + n)).unwrap()).collect();
        for proposal in proposals {
            within(proposal).await.unwrap();
        }
    }
    for group in 1..=20 {
        let expected: Vec<_> = (0..20).map(|n| number(group * 100 + n)).collect();
        assert_eq!(cluster.settled(group).await, expected, "group {group}");
    }
    for (from, to) in [(1, 2), (2, 3), (3, 1)] {
        let links = cluster.net.links(node_id(from), node_id(to));
        assert_eq!(links, 2, "one link a lane, not one a group");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_names_the_leader_which_takes_the_command() {
    let cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let follower = cluster.group(other(leader), 1);
    within(follower.wait_leader(DEADLINE)).await.unwrap();
    let error = follower.propose("x").await.unwrap_err();
    let ProposeError::NotLeader { hint: Some(hint) } = &error else { panic!("{error:?}") };
    assert_eq!(error.outcome(), Outcome::NeverHappened);
    assert!(cluster.group(hint.node.as_u64(), 1).propose("x").await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_and_oversized_commands_are_refused() {
    let config = Config { proposal_bytes_max: ByteSize::bytes(10), ..quick() };
    let cluster = Plan::new(1, 1).config(config).start().await;
    let group = cluster.group(cluster.leader(1).await, 1);
    assert_eq!(group.propose("").await, Err(ProposeError::Empty));
    assert_eq!(group.propose("01234567890").await, Err(ProposeError::TooLarge { bytes: 11, bytes_max: 10 }));
    assert_eq!(group.propose("0123456789").await, Ok(1));
}

/// The answers to one writer, whose commands are unique.
#[derive(Default)]
struct WriterLog {
    acked: BTreeSet<Bytes>,
    never: BTreeSet<Bytes>,
    uncertain: BTreeSet<Bytes>,
}

impl WriterLog {
    fn check(&self, applied: &[Bytes]) {
        let applied_set: BTreeSet<_> = applied.iter().cloned().collect();
        assert_eq!(applied_set.len(), applied.len(), "a command was applied twice");
        let lost: Vec<_> = self.acked.difference(&applied_set).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let ghosts: Vec<_> = self.never.intersection(&applied_set).collect();
        assert!(ghosts.is_empty(), "`never happened`, but did: {ghosts:?}");
    }

    fn note(&mut self, command: Bytes, result: Result<u64, ProposeError>) {
        let kind = match result {
            Ok(_) => &mut self.acked,
            Err(error) if error.outcome() == Outcome::NeverHappened => &mut self.never,
            Err(_) => &mut self.uncertain,
        };
        kind.insert(command);
    }
}

/// Writes to all given handles of groups until `stop` is set.
fn writers(
    groups: Vec<Group<ListMachine>>,
    stop: tokio::sync::watch::Receiver<bool>,
) -> tokio::task::JoinHandle<WriterLog> {
    tokio::spawn(async move {
        let mut seen = WriterLog::default();
        for round in 0_u64.. {
            if *stop.borrow() {
                break;
            }
            let mut waiting = Vec::new();
            for (at, group) in groups.iter().enumerate() {
                for n in 0..8 {
                    let command = Bytes::from(format!("{round}/{at}/{n}"));
                    match group.submit(command.clone()) {
                        Ok(proposal) => waiting.push((command, proposal)),
                        Err(error) => seen.note(command, Err(error)),
                    }
                }
            }
            for (command, proposal) in waiting {
                let result = within(proposal).await;
                seen.note(command, result);
            }
            tokio::task::yield_now().await;
        }
        seen
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_state_the_outcome_when_leaders_die_under_load() {
    let mut cluster = Cluster::start(3, 1).await;
    let mut all = WriterLog::default();
    for _ in 0..3 {
        let leader = cluster.leader(1).await;
        let groups = cluster.nodes().into_iter().map(|n| cluster.group(n, 1)).collect();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let load = writers(groups, stopped);
        let before = cluster.group(leader, 1).state().applied;
        until("some load", || cluster.group(leader, 1).state().applied > before + 100).await;
        cluster.crash(leader);
        cluster.leader(1).await;
        stop.send(true).unwrap();
        let seen = within(load).await.unwrap();
        cluster.restart(leader).await;
        // The rounds repeat their commands, so a mark separates them.
        let applied = cluster.settled(1).await;
        let mark = applied.iter().rposition(|c| c == "mark").map_or(0, |at| at + 1);
        seen.check(&applied[mark..]);
        cluster.acked(1, "mark").await;
        all.acked.extend(seen.acked);
        all.uncertain.extend(seen.uncertain);
    }
    assert!(all.acked.len() > 100, "{}", all.acked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_acknowledged_and_then_it_resumes() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    assert_eq!(cluster.group(leader, 1).propose("before").await, Ok(1));
    let (second, third) = (other(leader), other(other(leader)));
    cluster.crash(second);
    cluster.crash(third);
    let group = cluster.group(leader, 1);
    let error = within(group.propose("alone")).await.unwrap_err();
    assert!(matches!(error, ProposeError::Uncertain { .. }), "{error:?}");
    let error = within(group.propose("alone too")).await.unwrap_err();
    assert!(matches!(error, ProposeError::NotLeader { hint: None }), "{error:?}");
    let error = within(group.read(Consistency::Linearizable)).await.unwrap_err();
    assert!(matches!(error, ReadError::NoLeader | ReadError::Timeout), "{error:?}");
    assert_eq!(group.read(Consistency::Local).await.unwrap().commands(), ["before"]);

    cluster.restart(second).await;
    cluster.acked(1, "after").await;
    cluster.restart(third).await;
    let commands = cluster.settled(1).await;
    assert!(!commands.contains(&"alone too".into()), "{commands:?}");
    assert!(commands.contains(&"before".into()) && commands.contains(&"after".into()), "{commands:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_under_load_and_nothing_is_lost() {
    let cluster = Cluster::start(3, 1).await;
    cluster.leader(1).await;
    let groups = cluster.nodes().into_iter().map(|n| cluster.group(n, 1)).collect();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let load = writers(groups, stopped);
    let mut moved = 0;
    let end = Instant::now() + DEADLINE;
    while moved < 3 {
        assert!(Instant::now() < end, "leadership does not move");
        let leader = cluster.leader(1).await;
        let target = node_id(other(leader));
        match cluster.group(leader, 1).transfer(target).await {
            Ok(()) => moved += 1,
            Err(
                TransferLeaderError::NotReady { .. }
                | TransferLeaderError::NotLeader { .. }
                | TransferLeaderError::Timeout { .. }
                | TransferLeaderError::Busy,
            ) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
    stop.send(true).unwrap();
    let seen = within(load).await.unwrap();
    seen.check(&cluster.settled(1).await);
    assert!(!seen.acked.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_not_transferred_to_dead_nodes_or_strangers() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let group = cluster.group(leader, 1);
    for target in [leader, 9].map(node_id) {
        let error = group.transfer(target).await.unwrap_err();
        assert_eq!(error, TransferLeaderError::NotVoter { target });
    }
    let error = cluster.group(other(leader), 1).transfer(node_id(leader)).await.unwrap_err();
    assert!(matches!(error, TransferLeaderError::NotLeader { .. }), "{error:?}");
    let dead = other(leader);
    cluster.crash(dead);
    let error = within(group.transfer(node_id(dead))).await.unwrap_err();
    assert!(
        matches!(error, TransferLeaderError::NotReady { .. } | TransferLeaderError::Timeout { .. }),
        "{error:?}"
    );
    cluster.acked(1, "goes on").await;
}

/// Stuck state machines delay neither a transfer of leadership nor its error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_ends_in_time_while_every_state_machine_is_stuck() {
    let cluster = Cluster::start(3, 1).await;
    cluster.acked(1, "before").await;
    let mut holds = Vec::new();
    for node in cluster.nodes() {
        holds.push(cluster.group(node, 1).read(Consistency::Local).await.unwrap().hold());
    }
    let leader = cluster.leader(1).await;
    drop(cluster.group(leader, 1).submit("stuck").unwrap());
    until("every machine is stuck", || holds.iter().all(|hold| hold.wait_held(Duration::ZERO))).await;
    eventually("leadership moves", async || transfer(&cluster, |_| {}).await).await;
    let isolate = |target: u64| {
        for node in cluster.nodes().into_iter().filter(|node| *node != target).map(node_id) {
            cluster.net.cut(node, node_id(target));
            cluster.net.cut(node_id(target), node);
        }
    };
    let error = transfer(&cluster, isolate).await.unwrap_err();
    let (TransferLeaderError::NotReady { .. } | TransferLeaderError::Timeout { .. }) = error else {
        panic!("{error:?}")
    };
    cluster.net.heal_all();
    drop(holds);
    cluster.acked(1, "goes on").await;
}

/// Transfers leadership to another node, after `before` ran for that node.
async fn transfer(cluster: &Cluster, before: impl Fn(u64)) -> Result<(), TransferLeaderError> {
    let end = Instant::now() + DEADLINE;
    loop {
        assert!(Instant::now() < end, "no leader takes the request");
        let leads = |(_, state): &(u64, GroupState)| state.role == Role::Leader;
        if let Some((leader, _)) = cluster.states(1).into_iter().find(leads) {
            before(other(leader));
            let ended = within(cluster.group(leader, 1).transfer(node_id(other(leader)))).await;
            if !matches!(ended, Err(TransferLeaderError::NotLeader { .. })) {
                return ended;
            }
            cluster.net.heal_all();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overload_is_refused_and_admitted_commands_stay_fast() {
    const OFFERED: usize = 20_000;
    let config = Config {
        proposal_queue_max: 64,
        unapplied_bytes_max: ByteSize::kib(8),
        proposal_bytes_max: ByteSize::kib(4),
        ..quick()
    };
    let step = Duration::from_millis(5);
    let plan = Plan::new(1, 1).config(config).machine(move |_, _| ListMachine::new().slow(step));
    let cluster = plan.start().await;
    let group = cluster.group(cluster.leader(1).await, 1);
    let command = Bytes::from(vec![7; 100]);
    let mut waiting = Vec::new();
    let mut unapplied_max = 0;
    for n in 0..OFFERED {
        let submitted = Instant::now();
        let proposal = group.submit(command.clone()).unwrap();
        waiting.push(tokio::spawn(async move { (within(proposal).await, submitted.elapsed()) }));
        if n % 1_000 == 0 {
            unapplied_max = unapplied_max.max(group.status().await.unwrap().unapplied_bytes);
        }
    }
    let (mut admitted, mut busy, mut slowest) = (0, 0, Duration::ZERO);
    for answer in waiting {
        match answer.await.unwrap() {
            (Ok(_), time) => {
                admitted += 1;
                slowest = slowest.max(time);
            }
            (Err(ProposeError::Busy), _) => busy += 1,
            (Err(error), _) => panic!("{error:?}"),
        }
    }
    assert_eq!(admitted + busy, OFFERED);
    assert!(admitted > 0 && busy > OFFERED / 2, "{admitted} admitted, {busy} busy");
    // At most one burst of the queue above the bound.
    assert!(unapplied_max <= (8 << 10) + 64 * 400, "{unapplied_max} bytes unapplied");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    // The group is busy until the shard learns that the last batch is applied.
    assert_eq!(cluster.propose(1, "after").await, Ok(admitted as u64 + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_futures_break_nothing() {
    let cluster = Cluster::start(3, 1).await;
    let group = cluster.group(cluster.leader(1).await, 1);
    for n in 0..50 {
        // One poll queues the call; then its future is dropped.
        let mut propose = Box::pin(group.propose(number(n)));
        let mut read = Box::pin(group.read(Consistency::Linearizable));
        is_ready(&mut propose).await;
        is_ready(&mut read).await;
        drop(group.submit(number(1_000 + n)).unwrap());
    }
    assert_eq!(within(group.propose("last")).await, Ok(101));
    let expected: Vec<_> =
        (0..50).flat_map(|n| [number(n), number(1_000 + n)]).chain(["last".into()]).collect();
    assert_eq!(cluster.settled(1).await, expected);
    assert_eq!(group.state().role, Role::Leader);
}
