//! Disks of snapshots that are full or fail: the attempt pays for it, the node and its groups do not.

use std::time::Duration;

use crate::common::Counts;
use crate::common::bench::{BYTES, Bench, TRANSFERS, config, load};
use towline_engine::config::Config;
use towline_engine::reporter::SnapshotFailure;
use towline_engine::status::AttemptOutcome;
use towline_engine::storage::Storage;
use towline_storage::faults::DiskFaults;
use towline_storage::{DataDir, DataDirConfig};
use towline_testkit::cluster::{Cluster, Plan, node_id, quick, until, within};
use towline_testkit::snapshots::{FaultySnapshots, SnapshotOp};

const FAILED: AttemptOutcome = AttemptOutcome::Failed(SnapshotFailure::Refused { lasting: false });

/// Case 17: full at the very last byte, and again at each attempt until somebody makes room.
#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_whose_disk_is_full_at_the_last_byte_fails_attempts_until_there_is_room() {
    let mut bench = Bench::new(config()).await;
    let last_byte = bench.latest(bench.leader).length - 1;
    bench.full_from_start(bench.behind, last_byte);
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, FAILED);
    let second = bench.next_end(first.number).await;
    assert_eq!(second.outcome, FAILED);
    let reports = |kind| bench.counts.sum("towline_reports_total", &[kind, "outcome=applied"]);
    assert_eq!(reports("kind=snapshot_finish"), 0);

    // Everybody goes on meanwhile: the leader serves, and the node behind is up.
    let before = bench.cluster.commands(bench.leader, 1).await.len();
    load(&bench.cluster, 3, 10).await;
    assert_eq!(bench.cluster.commands(bench.leader, 1).await.len(), before + 3);
    assert_eq!(bench.cluster.group(bench.behind, 1).state().down, None);
    assert!(bench.cluster.commands(bench.behind, 1).await.len() < 45, "nothing of it is restored");
    assert_eq!(bench.counts.sum(TRANSFERS, &["direction=received", "outcome=finished"]), 0);

    bench.store(bench.behind).full_at(None);
    bench.heals().await;
}

/// The leader offered a file that it could not read again and again, and nothing but new entries would have made it write another: on an idle
/// cluster the follower was never served.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_whose_file_has_rotted_fails_one_attempt_and_serves_the_next_from_a_new_file() {
    let mut bench = Bench::new(config()).await;
    bench.rot();
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Storage));
    assert_eq!(bench.next_end(first.number).await.outcome, AttemptOutcome::Finished);
    bench.heals().await;
    let failures = bench.counts.sum("towline_reports_total", &["kind=snapshot_failure", "outcome=applied"]);
    assert_eq!(failures, 1);
}

/// The same while there is no room for the new file. A snapshot that could not be made was not tried again before as many
/// entries had come as for any other, and here none come.
#[tokio::test(flavor = "multi_thread")]
async fn a_sender_that_can_neither_read_its_file_nor_write_another_serves_as_soon_as_there_is_room() {
    let mut bench = Bench::new(config()).await;
    bench.rot();
    let store = bench.store(bench.leader);
    let made = store.count(SnapshotOp::Create);
    store.full_at(Some(100));
    bench.cluster.restart(bench.behind).await;
    let first = bench.next_end(0).await;
    assert_eq!(first.outcome, AttemptOutcome::Failed(SnapshotFailure::Storage));
    until("another file is tried", || store.count(SnapshotOp::Create) > made).await;
    store.full_at(None);
    assert_eq!(bench.next_end(first.number).await.outcome, AttemptOutcome::Finished);
    bench.heals().await;
}

async fn first_index(cluster: &Cluster, node: u64) -> u64 {
    within(cluster.group(node, 1).status()).await.unwrap().first_index
}

/// The disk is full while a node writes a snapshot of its own: it keeps the log instead, and serves from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_no_room_for_a_snapshot_of_its_own_keeps_its_log_until_there_is() {
    let stores: std::sync::Arc<std::sync::Mutex<Vec<FaultySnapshots>>> = Default::default();
    let made = stores.clone();
    let plan = Plan::new(3, 1).config(config()).storage(move |_, storage| {
        let store = FaultySnapshots::new(storage.snapshots);
        store.full_at(Some(100));
        made.lock().unwrap().push(store.clone());
        towline_engine::storage::Storage { snapshots: std::sync::Arc::new(store), ..storage }
    });
    let mut cluster = plan.start().await;
    let leader = cluster.leader(1).await;
    let behind = if leader == 1 { 2 } else { 1 };
    cluster.crash(behind);
    load(&cluster, 100, 100).await;
    let up: Vec<u64> = cluster.up.keys().copied().collect();
    // Twice: the second try stands past all that was loaded.
    until("snapshots were tried", || {
        stores.lock().unwrap().iter().filter(|store| store.count(SnapshotOp::Create) > 1).count() >= up.len()
    })
    .await;
    for node in &up {
        assert_eq!(first_index(&cluster, *node).await, 1, "the log is all there is");
        // Unless the next try is under way just now.
        until("nothing is left of what was begun", || cluster.disks[node].snapshots.files() == 0).await;
    }
    // Served from the log: nobody needs a snapshot.
    cluster.restart(behind).await;
    assert_eq!(cluster.settled(1).await.len(), 100);
    let status = cluster.group(cluster.leader(1).await, 1).status().await.unwrap();
    let peer = status.peers.iter().find(|peer| peer.id == node_id(behind)).unwrap();
    assert_eq!((peer.attempt, peer.last_attempt), (None, None));

    stores.lock().unwrap().iter().for_each(|store| store.full_at(None));
    // Nothing new is needed for another try: one that failed does not count as made.
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while first_index(&cluster, cluster.leader(1).await).await == 1 {
        assert!(std::time::Instant::now() < end, "no snapshot is made though there is room");
        tokio::task::yield_now().await;
    }
    cluster.settled(1).await;
}

/// The log lies beside the snapshots. A snapshot that took the last bytes of the disk left none for the next append of the
/// log, and the node was over.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_would_take_the_logs_last_room_is_given_up_and_the_log_goes_on() {
    const COMMAND_BYTES: usize = 20_000;
    let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::new());
    let mut data = DataDirConfig::default();
    data.snapshots.disk_reserve_bytes = 200_000;
    let looked: std::sync::Arc<std::sync::Mutex<Option<FaultySnapshots>>> = Default::default();
    let (path, disk, made) = (dir.path().to_path_buf(), faults.clone(), looked.clone());
    let config = Config { snapshot_entries: 20, ..quick() };
    let plan = Plan::new(1, 1).config(config).storage(move |_, _| {
        let storage: Storage = DataDir::open_with_faults(&path, data.clone(), &disk).expect("opens").into();
        let store = FaultySnapshots::new(storage.snapshots);
        *made.lock().unwrap() = Some(store.clone());
        Storage { snapshots: std::sync::Arc::new(store), ..storage }
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
    // What the next command takes in the log and the snapshot after it in its file, and half a command more.
    let entries = cluster.commands(1, 1).await.len() + 1;
    faults.leave_free(Some(((entries + 1) * COMMAND_BYTES + COMMAND_BYTES / 2) as u64));
    within(group.propose(command())).await.unwrap();
    let files = |ending: &str| {
        let names = std::fs::read_dir(dir.path().join("snapshots")).unwrap();
        names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with(ending)).count()
    };
    let store = looked.lock().unwrap().clone().unwrap();
    until("a snapshot was tried", || store.count(SnapshotOp::Create) > 0 && files(".tmp") == 0).await;
    for number in 0..3 {
        let written = within(group.propose(command())).await;
        assert!(written.is_ok(), "command {number} behind the snapshot: {written:?}");
    }
    assert_eq!((files(""), group.state().down), (0, None));
    assert_eq!(first_index(&cluster, 1).await, 1, "the log is all there is");

    faults.leave_free(None);
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while files(".snapshot") == 0 {
        assert!(std::time::Instant::now() < end, "no snapshot is made though there is room");
        load(&cluster, 1, 100).await;
    }
}

/// The length of an offer is known, so one that does not fit above the reserve moves no byte, however often it is tried.
#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_does_not_fit_above_the_reserve_is_refused_before_a_byte_moves_and_taken_once_it_does()
{
    const RESERVE: u64 = 1 << 20;
    let (dirs, disks) = ([(); 3].map(|()| tempfile::tempdir().unwrap()), [(); 3].map(|()| DiskFaults::new()));
    let (paths, full) = (dirs.each_ref().map(|dir| dir.path().to_path_buf()), disks.clone());
    let mut data = DataDirConfig::default();
    data.snapshots.disk_reserve_bytes = RESERVE;
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
    while first_index(&cluster, cluster.leader(1).await).await <= has + 1 {
        load(&cluster, 1, 10).await;
    }
    // A snapshot is some 800 KB; there is room for half of one.
    let disk = &disks[behind as usize - 1];
    disk.leave_free(Some(RESERVE + 400_000));
    cluster.restart(behind).await;
    let of = |outcome| counts.sum(TRANSFERS, &["direction=received", outcome]);
    until("it is refused, and again", || of("outcome=refused") >= 2).await;
    let leader = cluster.leader(1).await;
    let status = within(cluster.group(leader, 1).status()).await.unwrap();
    let peer = status.peers.into_iter().find(|peer| peer.id == node_id(behind)).unwrap();
    assert_eq!(peer.last_attempt.unwrap().outcome, FAILED);
    assert_eq!(counts.sum(BYTES, &[]), 0, "a byte of it moved");
    assert_eq!((of("outcome=failed"), of("outcome=cancelled")), (0, 0));
    assert_eq!(cluster.group(behind, 1).state().down, None);

    disk.leave_free(None);
    assert!(cluster.settled(1).await.len() >= 45);
    assert_eq!(of("outcome=finished"), 1);
}
