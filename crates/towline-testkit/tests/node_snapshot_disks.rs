//! Full or failing snapshot disks end an attempt, and leave the node and its groups alone.

use crate::common::*;
use towline_storage::faults::DiskFaults;

const FAILED: AttemptOutcome = AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false });

/// The disk is full at the last byte of each attempt, until there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_disk_is_full_at_the_last_byte_fails_attempts_until_there_is_room() {
    let mut setup = LaggingCluster::new(config()).await;
    let last_byte = setup.latest(setup.leader).length - 1;
    setup.full_from_start(setup.behind, last_byte);
    setup.restart_follower().await;
    let first = setup.next_end(0).await;
    assert_eq!(first.outcome, FAILED);
    let second = setup.next_end(first.number).await;
    assert_eq!(second.outcome, FAILED);
    let reports = |kind| setup.counts.sum(REPORTS, &format!("{kind} outcome=applied"));
    assert_eq!(reports("kind=snapshot_finish"), 0);

    // Meanwhile the leader commits, and the follower is up.
    let before = setup.cluster.commands(setup.leader, 1).await.len();
    load(&setup.cluster, 3, 10).await;
    assert_eq!(setup.cluster.commands(setup.leader, 1).await.len(), before + 3);
    assert_eq!(setup.cluster.group(setup.behind, 1).state().down, None);
    assert!(setup.cluster.commands(setup.behind, 1).await.len() < 45, "the failed attempt was restored");
    assert_eq!(setup.counts.sum(TRANSFERS, "direction=received outcome=finished"), 0);

    setup.store(setup.behind).full_at(None);
    setup.assert_heals().await;
}

/// A sender that failed to make a snapshot waited for a full interval of new entries before the next try. On an idle cluster
/// none came.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_can_neither_read_its_file_nor_write_another_serves_as_soon_as_there_is_room() {
    let mut setup = LaggingCluster::new(config()).await;
    setup.damage_leader_file();
    let store = setup.store(setup.leader);
    let made = store.count(SnapshotOp::Create);
    store.full_at(Some(100));
    setup.restart_follower().await;
    let first = setup.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Storage));
    until("another file is tried", || store.count(SnapshotOp::Create) > made).await;
    store.full_at(None);
    assert_eq!(setup.next_end(first.number).await.outcome, AttemptOutcome::Finished);
    setup.assert_heals().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_for_a_snapshot_keeps_its_log_and_serves_from_it() {
    let stores: Arc<Mutex<Vec<FaultySnapshots>>> = Default::default();
    let made = stores.clone();
    let plan = Plan::new(3, 1).config(config()).storage(move |_, storage| {
        let store = FaultySnapshots::new(storage.snapshots);
        store.full_at(Some(100));
        made.lock().unwrap().push(store.clone());
        Storage { snapshots: Arc::new(store), ..storage }
    });
    let mut cluster = plan.start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 100, 100).await;
    let up: Vec<u64> = cluster.up.keys().copied().collect();
    // The second try comes after all loaded commands.
    until("snapshots were tried", || {
        stores.lock().unwrap().iter().filter(|store| store.count(SnapshotOp::Create) > 1).count() >= up.len()
    })
    .await;
    for node in &up {
        let status = within(cluster.group(*node, 1).status()).await.unwrap();
        assert_eq!(status.first_index, 1, "the log is complete");
        // The next try may be writing just now.
        until("the partial file is removed", || cluster.disks[node].snapshots.files() == 0).await;
    }
    // The log serves the follower, which needs no snapshot.
    cluster.restart(behind).await;
    assert_eq!(cluster.settled(1).await.len(), 100);
    let peer = peer_status(&cluster, cluster.leader(1).await, behind).await;
    assert_eq!((peer.attempt, peer.last_attempt), (None, None));

    stores.lock().unwrap().iter().for_each(|store| store.full_at(None));
    // A failed try does not count as made, so the next needs no new entry.
    compacted_past(&cluster, 0).await;
    cluster.settled(1).await;
}

/// Log and snapshots share a disk. A snapshot that took its last bytes left none for the next append, which poisoned the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_would_use_the_disk_reserve_is_not_begun_and_the_log_goes_on() {
    const COMMAND_BYTES: usize = 20_000;
    let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::new());
    let mut data = DataDirConfig::default();
    data.snapshots.disk_reserve_bytes = ByteSize::bytes(200_000);
    let looked: Arc<Mutex<Option<FaultySnapshots>>> = Default::default();
    let (path, disk, made) = (dir.path().to_path_buf(), faults.clone(), looked.clone());
    // Otherwise the group would refuse the commands.
    let config = Config { snapshot_entries: 20, disk_low: ByteSize::bytes(0), ..quick() };
    let counts = Counts::default();
    let plan = Plan::new(1, 1).config(config).customise(counts.on()).storage(move |_, _| {
        let storage: Storage = DataDir::open_with_faults(&path, data.clone(), &disk).expect("opens").into();
        let store = FaultySnapshots::new(storage.snapshots);
        *made.lock().unwrap() = Some(store.clone());
        Storage { snapshots: Arc::new(store), ..storage }
    });
    let cluster = plan.start().await;
    cluster.leader(1).await;
    let group = cluster.group(1, 1);
    // The log compresses what it can.
    let mut random = fastrand::Rng::with_seed(17);
    let mut command = || {
        let mut bytes = vec![0; COMMAND_BYTES];
        random.fill(&mut bytes);
        bytes
    };
    while within(group.status()).await.unwrap().last_index < 19 {
        within(group.propose(command())).await.unwrap();
    }
    // Room for the next command, the snapshot after it and half a command more.
    let entries = cluster.commands(1, 1).await.len() + 1;
    faults.leave_free(Some(((entries + 1) * COMMAND_BYTES + COMMAND_BYTES / 2) as u64));
    within(group.propose(command())).await.unwrap();
    let files = |ending: &str| {
        let names = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
        names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(ending)).count()
    };
    let store = looked.lock().unwrap().clone().unwrap();
    // The snapshot is expected to be as long as the log.
    until("a snapshot was refused", || counts.sum("towline_group_snapshots_without_room_total", "") > 0)
        .await;
    assert_eq!(store.count(SnapshotOp::Create), 0);
    for number in 0..3 {
        let written = within(group.propose(command())).await;
        assert!(written.is_ok(), "command {number} after the snapshot: {written:?}");
    }
    assert_eq!((files(""), group.state().down), (0, None));
    assert_eq!(first_index(&cluster, 1).await, 1, "the log is complete");

    faults.leave_free(None);
    eventually("a snapshot is made", async || {
        load(&cluster, 1, 100).await;
        if files(".snapshot") == 0 { Err(()) } else { Ok(()) }
    })
    .await;
}

/// The receiver knows the length from the offer, so a snapshot that does not fit above the reserve moves no byte.
#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_does_not_fit_above_the_disk_reserve_is_refused_until_it_does() {
    const RESERVE: u64 = 1 << 20;
    let (dirs, disks) = ([(); 3].map(|()| tempfile::tempdir().unwrap()), [(); 3].map(|()| DiskFaults::new()));
    let (paths, full) = (dirs.each_ref().map(|dir| dir.path().to_path_buf()), disks.clone());
    let mut data = DataDirConfig::default();
    data.snapshots.disk_reserve_bytes = ByteSize::bytes(RESERVE);
    let counts = Counts::default();
    let plan = Plan::new(3, 1).config(config()).customise(counts.on()).storage(move |id, _| {
        let at = id.as_u64() as usize - 1;
        DataDir::open_with_faults(&paths[at], data.clone(), &full[at]).expect("opens").into()
    });
    let mut cluster = plan.start().await;
    let leader = cluster.leader(1).await;
    let behind = leader % 3 + 1;
    let has = cluster.group(behind, 1).state().applied;
    cluster.crash(behind);
    load(&cluster, 45, 20_000).await;
    compact_past(&cluster, 1, has).await;
    // A snapshot has some 800 KB, and there is room for half of it.
    let disk = &disks[behind as usize - 1];
    disk.leave_free(Some(RESERVE + 400_000));
    cluster.restart(behind).await;
    let of = |outcome| counts.sum(TRANSFERS, &format!("direction=received {outcome}"));
    until("two refusals", || of("outcome=refused") >= 2).await;
    let peer = peer_status(&cluster, cluster.leader(1).await, behind).await;
    assert_eq!(peer.last_attempt.unwrap().outcome, FAILED);
    assert_eq!(counts.sum(BYTES, ""), 0, "no byte moved");
    assert_eq!((of("outcome=failed"), of("outcome=cancelled")), (0, 0));
    assert_eq!(cluster.group(behind, 1).state().down, None);

    disk.leave_free(None);
    assert!(cluster.settled(1).await.len() >= 45);
    assert_eq!(of("outcome=finished"), 1);
}
