//! Nodes whose disk is full. Each has a small file system in memory for its data. A test fills it by a lower limit of its size,
//! and makes room by a higher one.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Cluster, ELECTION_TIMEOUT, SETTINGS, get, run, wait};

const MIB: u64 = 1 << 20;
/// Far more than a test writes.
const ROOM: u64 = 2_048 * MIB;
const VALUE_BYTES: usize = 512 << 10;

/// Where the machine does not let this process mount, the test says so; CI can.
fn can_mount() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let can = run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(dir.path())).status.success();
    if can {
        assert!(run(Command::new("umount").arg(dir.path())).status.success());
    }
    assert!(can || std::env::var_os("CI").is_none(), "CI cannot mount a file system");
    if !can {
        eprintln!("skipped: no file system can be mounted here");
    }
    can
}

fn start(nodes: usize, settings: &str) -> Cluster {
    Cluster::start_on_disks(
        nodes,
        &format!("{SETTINGS}disk_low = '96MiB'\nproposal_timeout = '2s'\nread_timeout = '2s'\n{settings}"),
        ROOM,
    )
}

fn set(client: &mut redis::Connection, key: &str, value: &[u8]) -> redis::RedisResult<()> {
    redis::cmd("SET").arg(key).arg(value).exec(client)
}

fn is_disk_full(error: &redis::RedisError) -> bool {
    error.code() == Some("DISKFULL")
}

/// The own wait of a node for room, if its status names one.
fn waits_for_room(status: &serde_json::Value) -> bool {
    let own = |wait: &serde_json::Value| wait["cause"] == "disk_full" && wait["peer"].is_null();
    status["disk_low"] == true && status["waits"].as_array().is_some_and(|waits| waits.iter().any(own))
}

fn status(cluster: &Cluster, at: usize) -> serde_json::Value {
    wait("a status", || cluster.ports[at].json("/status"))
}

fn wait_low(cluster: &Cluster, at: usize, low: bool) {
    wait(&format!("disk_low is {low}"), || (status(cluster, at)["disk_low"] == low).then_some(()));
    assert_eq!(cluster.ports[at].counter("towline_disk_low", &[]), u64::from(low));
}

/// Writes large values until two of three disks are low: no leader takes commands then, and none hands over. Returns how many
/// were acknowledged, and how many may have happened: those that a leader took while its followers refused them already.
fn fill(cluster: &mut Cluster) -> (u32, u32) {
    let value = vec![b'x'; VALUE_BYTES];
    let (mut acked, mut uncertain) = (0, 0);
    let mut client = cluster.client();
    while acked < 1_000 {
        let key = format!("large-{}", acked + uncertain);
        match set(&mut client, &key, &value) {
            Ok(()) => acked += 1,
            Err(error) if error.code() == Some("UNCERTAIN") => uncertain += 1,
            // The first leader without room may hand over.
            Err(error) if matches!(error.code(), Some("DISKFULL" | "MOVED" | "CLUSTERDOWN")) => {
                client = cluster.client();
            }
            Err(error) => panic!("{key}: {error}"),
        }
        if acked > 4 && (0..3).filter(|at| status(cluster, *at)["disk_low"] == true).count() > 1 {
            std::thread::sleep(ELECTION_TIMEOUT); // not synchronisation: a hand-over that has begun ends in this time
            return (acked, uncertain);
        }
    }
    panic!("the disks never fill up");
}

/// The log once failed at its first write without room: every node was silent until a person restarted it.
#[test]
fn three_equal_disks_that_fill_together_refuse_writes_serve_reads_and_go_on_once_there_is_room() {
    if !can_mount() {
        return;
    }
    // Small tables, so that compactions meet the full disk too.
    let mut cluster = start(3, "[store]\nmemtable_bytes = '4MiB'\n");
    let all = [0, 1, 2];
    cluster.write_somewhere(&all, "k", "before");
    all.iter().for_each(|at| cluster.resize(*at, 420 * MIB));
    let (acked, uncertain) = fill(&mut cluster);
    let leader = cluster.leader();
    let before = status(&cluster, leader);
    let mut client = cluster.ports[leader].client().unwrap();
    let until = Instant::now() + 3 * ELECTION_TIMEOUT;
    while Instant::now() < until {
        let error = set(&mut client, "k", b"refused").unwrap_err();
        assert!(is_disk_full(&error), "{error}");
        assert_eq!(get(&mut client, "k").unwrap().as_deref(), Some("before"));
        redis::cmd("INFO").exec(&mut client).unwrap();
    }
    // A follower whose disk was low a little earlier lacks the last writes. One at least has them.
    let served = cluster.others(leader).into_iter().filter(|follower| {
        let mut client = cluster.ports[*follower].client().unwrap();
        redis::cmd("READONLY").exec(&mut client).unwrap();
        match get(&mut client, "k") {
            Ok(value) => value.as_deref() == Some("before"),
            Err(error) => {
                assert!(is_disk_full(&error), "{error}");
                false
            }
        }
    });
    assert!(served.count() > 0);
    let after = status(&cluster, leader);
    for field in ["role", "term", "leader"] {
        assert_eq!(after["state"][field], before["state"][field], "{after}");
    }
    (0..3).for_each(|at| cluster.resize(at, ROOM));
    wait("a write", || set(&mut client, "k", b"after").ok());
    cluster.assert_equal();
    let keys: u32 = redis::cmd("DBSIZE").query(&mut client).unwrap();
    assert!((acked + 1..=acked + 1 + uncertain).contains(&keys), "{keys} keys, {acked} acknowledged");
    assert!((0..3).all(|at| cluster.process(at).ended().is_none()));
}

#[test]
fn another_node_leads_while_only_the_disk_of_the_leader_is_full_and_that_node_follows_again() {
    if !can_mount() {
        return;
    }
    let mut cluster = start(3, "");
    let sick = cluster.leader();
    let others = cluster.others(sick);
    cluster.write_somewhere(&[sick], "k", "before");
    cluster.leave(sick, 16 * MIB);
    let started = Instant::now();
    cluster.write_somewhere(&others, "k", "after");
    let took = started.elapsed();
    assert!(took < 5 * ELECTION_TIMEOUT, "clients write again after {took:?}");
    wait_low(&cluster, sick, true);
    let leader = cluster.leader();
    assert_ne!(leader, sick);
    wait("the new leader shows the peer", || {
        peer(&cluster, leader, sick)["disk_low"].as_bool()?.then_some(())
    });
    cluster.resize(sick, ROOM);
    wait_low(&cluster, sick, false);
    wait("the leader shows its room", || (peer(&cluster, leader, sick)["disk_low"] == false).then_some(()));
    cluster.write_somewhere(&others, "k", "again");
    cluster.assert_equal();
    let log = cluster.process(sick).log();
    for line in ["the disk of the log is low", "this leader hands over", "the disk of the log has room again"]
    {
        assert!(log.contains(line), "`{line}` is missing: {log}");
    }
}

/// What a leader shows of a peer.
fn peer(cluster: &Cluster, leader: usize, peer: usize) -> serde_json::Value {
    let status = status(cluster, leader);
    let peers = status["peers"].as_array().unwrap().iter();
    peers.into_iter().find(|of| of["id"] == peer + 1).cloned().unwrap_or_default()
}

#[test]
fn a_quorum_goes_on_while_the_disk_of_a_follower_is_full_and_it_catches_up_afterwards() {
    if !can_mount() {
        return;
    }
    let mut cluster = start(3, "");
    let leader = cluster.leader();
    let sick = cluster.others(leader)[0];
    cluster.write_somewhere(&[leader], "k", "before");
    cluster.leave(sick, 16 * MIB);
    wait_low(&cluster, sick, true);
    let mut client = cluster.client();
    for count in 0..40 {
        set(&mut client, &format!("large-{count}"), &vec![b'x'; VALUE_BYTES]).unwrap();
    }
    let cause = |wait: &serde_json::Value| wait["cause"] == "disk_full" && wait["peer"] == sick + 1;
    wait("the leader names the disk of the peer", || {
        status(&cluster, leader)["waits"].as_array()?.iter().any(cause).then_some(())
    });
    assert_eq!(cluster.leader(), leader);
    assert!(peer(&cluster, leader, sick)["lag"].as_u64().unwrap() > 0);
    cluster.resize(sick, ROOM);
    cluster.assert_equal();
    wait("the leader shows what it applied", || {
        let state = status(&cluster, leader)["state"]["applied"].clone();
        (peer(&cluster, leader, sick)["applied"] == state).then_some(())
    });
    assert_eq!(cluster.process(sick).ended(), None);
}

#[test]
fn a_node_restarted_without_one_free_byte_serves_reads_says_why_it_waits_and_resumes() {
    if !can_mount() {
        return;
    }
    let mut cluster = start(3, "");
    let leader = cluster.leader();
    let sick = cluster.others(leader)[0];
    cluster.write_somewhere(&[leader], "k", "before");
    cluster.assert_equal();
    cluster.kill(sick);
    cluster.leave(sick, 0);
    cluster.restart(sick);
    cluster.leader();
    cluster.write_somewhere(&[leader], "k", "after");
    let mut client = cluster.ports[sick].client().unwrap();
    redis::cmd("READONLY").exec(&mut client).unwrap();
    wait("the status says why", || waits_for_room(&status(&cluster, sick)).then_some(()));
    // It lacks the write, so its own read cannot be served. The leader serves.
    let error = get(&mut client, "k").unwrap_err();
    assert!(is_disk_full(&error), "{error}");
    assert_eq!(get(&mut cluster.client(), "k").unwrap().as_deref(), Some("after"));
    cluster.resize(sick, ROOM);
    cluster.assert_equal();
    assert_eq!(get(&mut client, "k").unwrap().as_deref(), Some("after"));
    assert_eq!(cluster.process(sick).ended(), None);
}

/// The store fails where the room ends in the middle of its write. Its group once stayed out of service until a restart.
#[test]
fn a_group_whose_store_failed_on_a_full_disk_says_so_and_starts_again_once_there_is_room() {
    if !can_mount() {
        return;
    }
    // Small tables, so that the store writes all the time.
    let mut cluster = start(1, "[store]\nmemtable_bytes = '4MiB'\n");
    let stops = AtomicBool::new(false);
    let acked = std::thread::scope(|scope| {
        // Ends the writer also when this test fails.
        let stopper = SetsAtDrop(&stops);
        let writer = scope.spawn(|| write_until(&cluster, &stops));
        wait("the failure of the store", || {
            cluster.leave(0, 0);
            let until = Instant::now() + OUTAGE;
            while Instant::now() < until {
                if status(&cluster, 0)["state"]["role"] == "down" {
                    return Some(());
                }
            }
            cluster.resize(0, ROOM);
            std::thread::sleep(3 * OUTAGE); // not synchronisation: meanwhile the store writes again
            None
        });
        drop(stopper);
        writer.join().unwrap()
    });
    wait("the status says why", || waits_for_room(&status(&cluster, 0)).then_some(()));
    let mut client = cluster.ports[0].client().unwrap();
    for refused in [set(&mut client, "k", b"refused"), get(&mut client, "k").map(drop)] {
        let error = refused.unwrap_err();
        assert!(is_disk_full(&error), "{error}");
    }
    cluster.resize(0, ROOM);
    let roomy = Instant::now();
    wait("a write", || set(&mut client, "k", b"after").ok());
    let took = roomy.elapsed();
    assert!(took < Duration::from_secs(10), "the node serves again after {took:?}");
    for (key, number) in acked {
        let value: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut client).unwrap();
        // A later write may have happened, unacknowledged.
        assert!(value[..8] >= number.to_be_bytes()[..], "write {number} of {key} is lost");
    }
    assert!(cluster.ports[0].counter("towline_kv_group_starts_total", &[]) > 0);
    assert_eq!(cluster.process(0).ended(), None);
}

/// How long the disk is full while a test waits for a failure.
const OUTAGE: Duration = Duration::from_millis(300);

struct SetsAtDrop<'a>(&'a AtomicBool);

impl Drop for SetsAtDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Overwrites a few keys with large values that begin with a number. Returns the last acknowledged number of each key.
fn write_until(cluster: &Cluster, stops: &AtomicBool) -> BTreeMap<String, u64> {
    let (mut acked, mut client) = (BTreeMap::new(), None);
    // Not compressible, so that each table is as large as its values.
    let mut value: Vec<u8> =
        (0..VALUE_BYTES as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect();
    for number in 0_u64.. {
        if stops.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("key-{}", number % 16);
        value[..8].copy_from_slice(&number.to_be_bytes());
        client = client.or_else(|| cluster.ports[0].client());
        match client.as_mut().map(|client| set(client, &key, &value)) {
            Some(Ok(())) => drop(acked.insert(key, number)),
            Some(Err(error)) if error.is_io_error() => client = None,
            _ => {}
        }
    }
    acked
}
