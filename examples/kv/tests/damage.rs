//! Nodes that lose files while they are stopped. They come back with the right values, or refuse to start and say why.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::common::{Cluster, Process, alone};

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
    let _alone = alone();
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
    let _alone = alone();
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
