//! Nodes that lose files while they are stopped. They come back with the right values, or refuse to start and say why.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::common::{Cluster, Process, wait};

const KEYS: u64 = 200;

fn write(cluster: &mut Cluster, round: u64) {
    let mut client = cluster.client();
    let mut pipe = redis::pipe();
    for key in 0..KEYS {
        pipe.cmd("SET").arg(format!("k{key}")).arg(format!("{round}-{key}")).ignore();
    }
    pipe.query::<()>(&mut client).unwrap();
}

/// Stops a node in order, so it flushes the state machine.
fn stop(cluster: &mut Cluster, at: usize) {
    cluster.process(at).signal("TERM");
    let status = cluster.process(at).wait_end();
    assert!(status.success(), "{status}");
    cluster.running[at] = None;
}

/// A cluster with one round of values, and a stopped follower that has them all.
fn with_stopped_follower() -> (Cluster, usize) {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    write(&mut cluster, 0);
    cluster.assert_equal();
    stop(&mut cluster, follower);
    (cluster, follower)
}

/// A table of the state. Keyspace 0 belongs to fjall.
fn table(data: &Path) -> PathBuf {
    let keyspaces = fs::read_dir(data.join("kv/keyspaces")).unwrap().map(|file| file.unwrap().path());
    let own = keyspaces.filter(|keyspace| !keyspace.ends_with("0"));
    let tables = own.flat_map(|own| fs::read_dir(own.join("tables")).unwrap());
    tables.map(|file| file.unwrap().path()).max().unwrap()
}

#[test]
fn a_follower_with_a_damaged_table_rebuilds_its_state() {
    let (mut cluster, follower) = with_stopped_follower();
    let data = cluster.data(follower);
    let table = File::options().write(true).open(table(&data)).unwrap();
    table.set_len(table.metadata().unwrap().len() / 2).unwrap();
    cluster.restart(follower);
    cluster.leader();
    cluster.assert_equal();
    assert!(data.join("kv.damaged").exists());
    let log = cluster.process(follower).log();
    assert!(log.contains("the key-value store is damaged and is built anew"), "{log}");
}

fn assert_refused(cluster: &Cluster, at: usize, words: &[&str]) {
    let log = cluster.dir.path().join(format!("refused-{}.log", words.len()));
    let mut process = Process::start(&mut cluster.command(at), &log);
    let status = process.wait_end();
    assert_eq!(status.code(), Some(1), "{}", process.log());
    for word in words {
        assert!(process.log().contains(word), "`{word}` is missing: {}", process.log());
    }
}

/// The volume of the log was not mounted. The start founded the group again under the incarnation that had voted before.
/// The peers let the node in, so it could vote twice.
#[test]
fn a_node_whose_log_was_lost_is_refused_until_it_is_back() {
    let (mut cluster, follower) = with_stopped_follower();
    let (data, away) = (cluster.data(follower), cluster.dir.path().join("log-away"));
    fs::rename(data.join("log"), &away).unwrap();
    assert_refused(&cluster, follower, &["0000000000000001.raftlog", "the file is missing"]);
    // The list of log files is lost too.
    fs::rename(data.join("log-files"), cluster.dir.path().join("log-files-away")).unwrap();
    let says = ["group 1 was founded or joined here", "the log has nothing of it", "is its volume mounted"];
    assert_refused(&cluster, follower, &says);
    fs::remove_dir_all(data.join("log")).unwrap();
    fs::rename(&away, data.join("log")).unwrap();
    cluster.restart(follower);
    cluster.leader();
    write(&mut cluster, 1);
    cluster.assert_equal();
}

/// T8: the node stayed in `probe` for ever and held elections. The only line said that an interrupted write was cut off.
#[test]
fn a_node_whose_log_lost_synced_entries_is_found_by_the_leader_and_never_starts_again() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    let mut client = cluster.client();
    for key in 0..50 {
        redis::cmd("SET").arg(format!("k{key}")).arg("value").exec(&mut client).unwrap();
    }
    cluster.assert_equal();
    cluster.kill(follower);
    let data = cluster.data(follower);
    let log = data.join("log/0000000000000001.raftlog");
    let mut bytes = fs::read(&log).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes[end - 1_500..end].fill(0);
    fs::write(&log, bytes).unwrap();
    // Otherwise the start may already find that the state is ahead of the log.
    fs::remove_dir_all(data.join("kv")).unwrap();

    cluster.restart(follower);
    let down = wait("the group is out of service", || {
        cluster.ports[follower].json("/status")?["state"]["down"].as_str().map(str::to_owned)
    });
    assert!(down.starts_with("synced entries were lost: log ends at "), "{down}");
    let said = wait("the leader's line", || {
        let log = cluster.process(leader).log();
        log.lines().find(|line| line.contains("a peer lost synced entries")).map(str::to_owned)
    });
    let (last_index, acknowledged) = down.rsplit_once(", acknowledged ").unwrap();
    let last_index = last_index.rsplit(' ').next().unwrap();
    for part in [format!("last_index={last_index}"), format!("acknowledged={acknowledged}")] {
        assert!(said.contains(&part), "`{part}` is missing: {said}");
    }
    let status = cluster.ports[leader].json("/status").unwrap();
    let shown = status["peers"].as_array().unwrap().iter().find(|peer| peer["id"] == follower + 1).unwrap();
    assert_eq!(shown["lost"]["acknowledged"].to_string(), acknowledged);
    redis::cmd("SET").arg("k").arg("after").exec(&mut client).unwrap();
    wait("the record", || data.join("lost").exists().then_some(()));
    let lines = cluster.process(leader).log().matches("a peer lost synced entries").count();
    assert_eq!(lines, 1);
    cluster.kill(follower);
    assert_refused(
        &cluster,
        follower,
        &["group 1 cannot start: synced entries were lost", "Keep the group stopped"],
    );
}
