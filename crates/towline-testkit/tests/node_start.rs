//! A refused start has a typed error with its cause, and a stopped node releases all that it held.

use std::error::Error;
use std::io::{self, Write as _};

use crate::common::*;
use crate::wires::{Bounds, Wire, of_node};
use towline_storage::DataDirError;

const ONE: GroupId = GroupId::DEFAULT;

fn address() -> PeerAddr {
    "mem://n1:1".parse().unwrap()
}

fn builder(net: &MemNet, disk: &Disk) -> NodeBuilder {
    let builder = Node::builder(node_id(1), cluster_id()).config(quick());
    builder.storage(disk.storage()).transport(net.transport(), address())
}

fn alone() -> Vec<(NodeId, PeerAddr)> {
    vec![(node_id(1), address())]
}

async fn start(node: &Node, group: GroupId, how: Start) -> Result<(), StartError> {
    node.group(group, ListMachine::new()).start(how).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_cannot_start_says_why() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let config = Config { groups_max: 2, ..quick() };
    let node = builder(&net, &disk).config(config).start().await.unwrap();
    assert!(!node.has_group(ONE).unwrap());
    let error = start(&node, ONE, Start::Restart).await.unwrap_err();
    assert!(matches!(error, StartError::NothingStored { group: ONE }), "{error}");
    let error = start(&node, ONE, Start::Join).await.unwrap_err();
    assert!(matches!(error, StartError::JoinRefused), "{error}");
    let stranger = vec![(node_id(2), address())];
    let error = start(&node, ONE, Start::Bootstrap(stranger)).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid member list: node 1 itself is missing");
    let twice = [alone(), alone()].concat();
    let error = start(&node, ONE, Start::Bootstrap(twice)).await.unwrap_err();
    assert_eq!(error.to_string(), "invalid member list: node 1 appears twice");
    assert!(!node.has_group(ONE).unwrap(), "a refused start stores nothing");

    start(&node, ONE, Start::Bootstrap(alone())).await.unwrap();
    for again in [Start::Bootstrap(alone()), Start::Restart] {
        let error = start(&node, ONE, again).await.unwrap_err();
        assert!(matches!(error, StartError::AlreadyRuns { group: ONE }), "{error}");
    }
    start(&node, GroupId::new(2), Start::Bootstrap(alone())).await.unwrap();
    let error = start(&node, GroupId::new(3), Start::Bootstrap(alone())).await.unwrap_err();
    assert!(matches!(error, StartError::TooManyGroups { groups_max: 2 }), "{error}");

    node.shutdown(Duration::ZERO).await;
    let node = builder(&net, &disk).start().await.unwrap();
    let error = start(&node, ONE, Start::Bootstrap(alone())).await.unwrap_err();
    assert!(matches!(error, StartError::AlreadyBootstrapped { group: ONE }), "{error}");
    start(&node, ONE, Start::Restart).await.unwrap();
}

/// A node with another node's certificate started, and every peer refused it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_node_is_refused_at_the_start() {
    for wire in Wire::BOTH {
        let of = |id| wire.transport(&Bounds::default(), of_node(id));
        let bare = || Node::builder(node_id(1), cluster_id()).storage(Disk::default().storage());
        let listens = bare().transport(of(2), wire.anywhere()).start().await;
        let dials = bare().transport(of(1), wire.anywhere()).dialler(of(2)).start().await;
        for refused in [listens, dials] {
            let error = refused.unwrap_err();
            let scheme = wire.scheme();
            assert!(
                matches!(error, StartError::OtherCertificate { scheme: s, found, expected }
                    if s == scheme && found == node_id(2) && expected == node_id(1)),
                "{wire:?}: {error}"
            );
        }
        let own = bare().transport(of(1), wire.anywhere()).start().await.unwrap();
        within(own.shutdown(Duration::ZERO)).await;
    }
}

/// Two runs of one group at a time could vote twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_starts_at_once_one_is_refused() {
    for how in [Start::Bootstrap(alone()), Start::Restart] {
        let (net, disk) = (MemNet::new(), Disk::default());
        if how == Start::Restart {
            let node = builder(&net, &disk).start().await.unwrap();
            start(&node, ONE, Start::Bootstrap(alone())).await.unwrap();
            node.shutdown(Duration::ZERO).await;
        }
        let node = builder(&net, &disk).start().await.unwrap();
        let (first, second) = tokio::join!(start(&node, ONE, how.clone()), start(&node, ONE, how.clone()));
        let refused = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
        assert!(matches!(refused[..], [StartError::AlreadyRuns { .. }]), "{how:?}: {refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_failed_or_was_dropped_can_be_made_again() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let node = builder(&net, &disk).config(Config { groups_max: 1, ..quick() }).start().await.unwrap();
    let mut given_up = Box::pin(start(&node, ONE, Start::Bootstrap(alone())));
    is_ready(&mut given_up).await;
    drop(given_up);
    eventually("a start", async || {
        let how = if node.has_group(ONE).unwrap() { Start::Restart } else { Start::Bootstrap(alone()) };
        match start(&node, ONE, how).await {
            // The dropped start may still have stored the group.
            Err(error @ StartError::AlreadyBootstrapped { .. }) => Err(error),
            done => {
                done.unwrap();
                Ok(())
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_start_says_why() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let bare = || Node::builder(node_id(1), cluster_id());
    let error = bare().transport(net.transport(), address()).start().await.unwrap_err();
    assert_eq!(error.to_string(), "the node has no storage: call `NodeBuilder::storage`");
    let error = bare().storage(disk.storage()).start().await.unwrap_err();
    assert_eq!(error.to_string(), "the node has no transport: call `NodeBuilder::transport`");
    let config = Config { election_timeout_min: Duration::from_millis(10), ..quick() };
    let error = builder(&net, &disk).config(config).start().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "setting `election_timeout_min` is 10ms, but must be at least 3 x heartbeat_interval, 120ms"
    );

    let node = builder(&net, &disk).start().await.unwrap();
    start(&node, ONE, Start::Bootstrap(alone())).await.unwrap();
    let error = builder(&net, &Disk::default()).start().await.unwrap_err();
    assert!(matches!(error, StartError::Listen(TransportError::Bind { .. })), "{error}");
    node.shutdown(Duration::ZERO).await;

    let with = |id, cluster| {
        let builder = Node::builder(node_id(id), cluster).storage(disk.storage());
        builder.transport(net.transport(), address()).start()
    };
    let error = with(2, cluster_id()).await.unwrap_err();
    assert_eq!(error.to_string(), "the data directory belongs to node 1, not to node 2");
    let error = with(1, ClusterId::new("other").unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "the data directory belongs to cluster `test`, not to `other`");
    let damaged = Disk::default();
    damaged.identity.damage_peers();
    let error = builder(&net, &damaged).start().await.unwrap_err();
    assert_eq!(error.to_string(), "identity file peers cannot be read: torn");
    let unowned = Storage { identity: Disk::default().storage().identity, ..disk.storage() };
    let node = builder(&net, &disk).storage(unowned).start().await.unwrap();
    let error = start(&node, ONE, Start::Restart).await.unwrap_err();
    assert!(matches!(error, StartError::NoIdentity { group: ONE }), "{error}");
}

fn grpc() -> Arc<dyn Transport> {
    Arc::new(GrpcTransport::new(GrpcConfig::default()))
}

async fn on_disk(path: &std::path::Path, at: &PeerAddr) -> Result<Node, StartError> {
    let dir = DataDir::open(path).unwrap_or_else(|error| panic!("{error}"));
    Node::builder(node_id(1), cluster_id())
        .config(quick())
        .storage(dir)
        .transport(grpc(), at.clone())
        .start()
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_end_of_a_node_releases_its_directory_and_port_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let free = on_disk(dir.path(), &"grpc://127.0.0.1:0".parse().unwrap()).await.unwrap();
    let at: PeerAddr = format!("grpc://{}", free.listen_addrs()[0]).parse().unwrap();
    free.shutdown(Duration::ZERO).await;
    let members = vec![(node_id(1), at.clone()), (node_id(2), "grpc://127.0.0.1:1".parse().unwrap())];
    for round in 0..6 {
        let node = on_disk(dir.path(), &at).await.unwrap();
        let how = if round == 0 { Start::Bootstrap(members.clone()) } else { Start::Restart };
        let group = node.group(ONE, ListMachine::new()).start(how).await.unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::InUse { .. })));
        match round % 3 {
            0 => assert!(node.shutdown(Duration::from_secs(5)).await.is_complete()),
            1 => assert!(node.shutdown(Duration::ZERO).await.is_complete()),
            _ => drop(node),
        }
        let error = within(group.propose("late")).await.unwrap_err();
        assert!(matches!(error, ProposeError::Stopped { .. }), "{error:?}");
    }
}

/// The runtime of a caller does not end with the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_a_callers_runtime_leaves_nothing_behind() {
    let net = MemNet::new();
    let disks = [Disk::default(), Disk::default()];
    let at = |n: u64| -> PeerAddr { format!("mem://n{n}:1").parse().unwrap() };
    for dropped in [false, true, false] {
        let (mut nodes, mut held) = (Vec::new(), Vec::new());
        for n in [1, 2] {
            let builder = Node::builder(node_id(n), cluster_id()).config(quick());
            let storage = disks[n as usize - 1].storage();
            held.push((Arc::downgrade(&storage.log), Arc::downgrade(&storage.identity)));
            let builder = builder.storage(storage).transport(net.transport(), at(n));
            let node = builder.runtime(tokio::runtime::Handle::current()).start().await.unwrap();
            let how = match node.has_group(ONE).unwrap() {
                true => Start::Restart,
                false => Start::Bootstrap([1, 2].map(|n| (node_id(n), at(n))).to_vec()),
            };
            start(&node, ONE, how).await.unwrap();
            nodes.push(node);
        }
        until("links", || net.links(node_id(1), node_id(2)) == 2).await;
        for node in nodes {
            match dropped {
                true => drop(node),
                false => assert!(node.shutdown(Duration::ZERO).await.is_complete()),
            }
        }
        let storage_held = || held.iter().any(|(l, i)| l.strong_count() + i.strong_count() > 0);
        match dropped {
            true => until("storage let go", || !storage_held()).await,
            false => assert!(!storage_held()),
        }
        until("no links", || net.links(node_id(1), node_id(2)) + net.links(node_id(2), node_id(1)) == 0)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_transfers_leadership_flushes_and_answers_every_caller() {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let group = cluster.group(leader, 1);
    let list = group.read(Consistency::Local).await.unwrap();
    group.propose("first").await.unwrap();
    let term = group.state().term;
    let mut waiting: Vec<_> = (0..100).map(|n| group.submit(format!("{n}")).unwrap()).collect();
    let mut read = Box::pin(group.read(Consistency::Linearizable));
    is_ready(&mut read).await;
    let began = Instant::now();
    cluster.stop(leader, Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let _ = within(read).await;
    for proposal in waiting.drain(..) {
        let _ = within(proposal).await;
    }
    assert_eq!(list.flushes(), 1);
    let error = group.propose("late").await.unwrap_err();
    assert_eq!(error.to_string(), "stopped: the node was shut down");
    assert_eq!(error.outcome(), Outcome::NeverHappened);
    // The transfer made the next leader, so it leads in the next term.
    let next = cluster.leader(1).await;
    assert_eq!(cluster.group(next, 1).state().term, term + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_does_not_delay_a_stop_with_a_zero_deadline() {
    let plan = Plan::new(1, 1).machine(|_, _| ListMachine::new().slow(Duration::from_millis(50)));
    let mut cluster = plan.start().await;
    let group = cluster.group(cluster.leader(1).await, 1);
    let list = group.read(Consistency::Local).await.unwrap();
    let mut waiting = Vec::new();
    let hold = list.hold();
    for n in 0..200 {
        waiting.push(group.submit(format!("{n}")).unwrap());
        // One batch a command. The first entry of the log is the leader's empty one.
        until("a commit", || group.state().commit >= n + 2).await;
    }
    drop(hold);
    let began = Instant::now();
    cluster.stop(1, Duration::ZERO).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for proposal in waiting {
        match within(proposal).await {
            Ok(_) | Err(ProposeError::Uncertain { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// A disk with a log of `last` entries in two terms.
fn stored(last: u64, commit: u64) -> Disk {
    let disk = Disk::default();
    let entries: Vec<_> = (1..=last)
        .map(|index| Entry {
            index,
            term: 1 + index / 6,
            data: format!("{index}").into(),
            ..Entry::default()
        })
        .collect();
    let member = Member { address: address(), incarnation: None };
    let conf = ConfRecord {
        founding: Default::default(),
        conf_state: ConfState { voters: vec![node_id(1)], ..ConfState::default() },
        index: 0,
        members: [(node_id(1), member)].into(),
    };
    let hard_state = Some(HardState { term: 2, vote: None, commit });
    let write = GroupWrite { entries, hard_state, conf: Some(conf), ..GroupWrite::new(ONE) };
    disk.log.append(&mut LogBatch { writes: vec![write] }).unwrap();
    let incarnation = Incarnation::new(1).unwrap();
    let identity = Identity { cluster: cluster_id(), node: node_id(1), incarnation };
    disk.storage().identity.create(&identity).unwrap();
    disk
}

async fn restart(disk: &Disk, machine: ListMachine) -> Result<usize, StartError> {
    let net = MemNet::new();
    let node = builder(&net, disk).start().await.unwrap();
    let group = node.group(ONE, machine).start(Start::Restart).await?;
    let list = within(async {
        loop {
            if let Ok(list) = group.read(Consistency::Linearizable).await {
                break list;
            }
        }
    })
    .await;
    Ok(list.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_checks_the_log_against_itself_and_the_state_machine() {
    let at = |index, term| ListMachine::new().durable_at(LogId { index, term });
    // A volatile machine gets the whole log, and a durable one only the rest.
    assert_eq!(restart(&stored(10, 4), ListMachine::new()).await.unwrap(), 10);
    assert_eq!(restart(&stored(10, 4), at(8, 2)).await.unwrap(), 2);
    assert_eq!(restart(&stored(10, 10), at(10, 2)).await.unwrap(), 0);

    let text = async |disk, machine| restart(&disk, machine).await.unwrap_err().to_string();
    assert_eq!(
        text(stored(10, 11), ListMachine::new()).await,
        "group 1 cannot start: entry 11 is committed, but the log ends at 10"
    );
    assert_eq!(
        text(stored(10, 4), at(11, 2)).await,
        "group 1 cannot start: the state machine is at 11, past the end of the log, 10: entries that this node \
         acknowledged are lost; put the missing files back, but no older copy of them; if they are lost, keep this node \
         stopped, because this version cannot replace a member"
    );
    let foreign = "group 1 cannot start: the state machine is at entry 8 of term 1, but the log has term 2 there: they are \
                   of different histories";
    // The entry is not committed: either may be right.
    assert_eq!(text(stored(10, 4), at(8, 1)).await, foreign);
    // The entry is committed: the machine is wrong.
    assert_eq!(
        text(stored(10, 10), at(8, 1)).await,
        format!(
            "{foreign}, and there is no snapshot to restore; remove the files of the state machine: the log is whole and is \
             applied again"
        )
    );
    let compacted = stored(10, 10);
    compacted.log.compact(ONE, 5).unwrap();
    assert_eq!(
        text(compacted.clone(), ListMachine::new()).await,
        "group 1 cannot start: the state machine is at 0, the log begins after 5, and there is no snapshot to restore; \
         put the missing files back, but no older copy of them; if they are lost, keep this node stopped, because this \
         version cannot replace a member"
    );
    assert_eq!(restart(&compacted, at(5, 1)).await.unwrap(), 5);
    let failing = ListMachine::new().failing("3", Trouble::Fatal);
    let error = restart(&stored(10, 10), failing).await.unwrap_err();
    let fatal = error.source().unwrap().downcast_ref::<Fatal>().unwrap();
    assert_eq!(
        format!("{error}: {fatal}: {}", fatal.source().unwrap()),
        "group 1 cannot start: state machine failed: told to fail"
    );
}

/// A snapshot of the commands up to an index of [`stored`].
fn snapshot(disk: &Disk, at: LogId) {
    let head = SnapshotHead {
        founding: Default::default(),
        group: ONE,
        at,
        conf_state: ConfState::default(),
        members: BTreeMap::new(),
    };
    let store = disk.storage().snapshots;
    let mut writer = store.create(&head).unwrap();
    for index in 1..=at.index {
        let command = format!("{index}");
        writer.write_all(&(command.len() as u32).to_be_bytes()).unwrap();
        writer.write_all(command.as_bytes()).unwrap();
    }
    writer.verify(None).unwrap();
    writer.commit().unwrap();
}

/// A state machine with a wrong log position, for example with the files of another node, served values that the log never had.
/// Or it was refused although there was a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_machine_of_another_history_is_restored_from_a_snapshot() {
    for (index, term) in [(8, 1), (5, 7)] {
        let disk = stored(10, 10);
        snapshot(&disk, LogId { index: 5, term: 1 });
        if index == 5 {
            disk.log.compact(ONE, 5).unwrap();
        }
        let machine = ListMachine::new().durable_at(LogId { index, term });
        assert_eq!(restart(&disk, machine).await.unwrap(), 10, "machine at {index} of term {term}");
    }
}

/// The volume of the log was not mounted. The node founded the group again under the incarnation that had voted, and its peers
/// admitted it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_was_lost_is_refused_and_founds_nothing() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let two = GroupId::new(2);
    let node = builder(&net, &disk).start().await.unwrap();
    start(&node, ONE, Start::Bootstrap(alone())).await.unwrap();
    start(&node, two, Start::Bootstrap(alone())).await.unwrap();
    node.shutdown(Duration::ZERO).await;

    let lost = Disk { log: Default::default(), ..disk.clone() };
    let error = builder(&net, &lost).start().await.unwrap_err();
    assert!(matches!(error, StartError::GroupLost { group: ONE }), "{error}");
    assert!(lost.log.groups().unwrap().is_empty(), "nothing was founded");
    // An older copy of the log, from before the second group.
    disk.log.remove(two).unwrap();
    let error = builder(&net, &disk).start().await.unwrap_err();
    assert!(matches!(error, StartError::GroupLost { group } if group == two), "{error}");
}

/// A founder that lost its disk must not found the group again: it could vote twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_automatic_start_founds_only_storage_that_was_made_for_a_new_node() {
    let (net, disk) = (MemNet::new(), Disk::default());
    let auto = async |disk: &Disk| {
        let node = builder(&net, disk).start().await.unwrap();
        let started = start(&node, ONE, Start::auto(alone())).await;
        node.shutdown(Duration::ZERO).await;
        started
    };
    let error = auto(&disk).await.unwrap_err();
    assert!(matches!(error, StartError::NothingStored { group: ONE }), "{error}");
    assert!(disk.identity.load().unwrap().is_none(), "nothing was founded");
    disk.identity.allow_founding();
    auto(&disk).await.unwrap();
    let founded = disk.identity.load().unwrap();
    auto(&disk).await.unwrap();
    assert_eq!(disk.identity.load().unwrap(), founded, "the second start uses the stored state");
    let error = auto(&Disk::default()).await.unwrap_err();
    assert!(matches!(error, StartError::NothingStored { group: ONE }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_group_is_founded_leaves_a_node_that_starts() {
    for (fault, is_founded) in [(AppendFault::BeforeDurable, false), (AppendFault::AfterDurable, true)] {
        let disk = Disk::default();
        disk.log.fail_append(1, fault);
        let node = builder(&MemNet::new(), &disk).start().await.unwrap();
        let error = start(&node, ONE, Start::Bootstrap(alone())).await.unwrap_err();
        assert!(matches!(error, StartError::Log { group: ONE, .. }), "{error}");
        let disk_error =
            error.source().and_then(Error::source).and_then(|cause| cause.downcast_ref::<io::Error>());
        assert!(disk_error.is_some(), "{error:?}");
        node.shutdown(Duration::ZERO).await;

        let disk = disk.crash();
        assert!(disk.identity.load().unwrap().is_some(), "the identity is written before the log");
        assert!(disk.identity.groups().unwrap().is_empty(), "the group is listed after the log has it");
        let node = builder(&MemNet::new(), &disk).start().await.unwrap();
        assert_eq!(node.has_group(ONE).unwrap(), is_founded);
        let how = if is_founded { Start::Restart } else { Start::Bootstrap(alone()) };
        start(&node, ONE, how).await.unwrap();
        assert_eq!(disk.identity.groups().unwrap(), [ONE].into(), "listed before the group runs");
    }
}
