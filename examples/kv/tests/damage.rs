//! Nodes whose files were lost or exchanged while they were stopped: they come back with the right values, or they are
//! refused and say why.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

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

/// SIGTERM: the state machine is flushed.
fn stop(cluster: &mut Cluster, at: usize) {
    cluster.process(at).signal("TERM");
    let status = cluster.process(at).wait_end();
    assert!(status.success(), "{status}");
    cluster.running[at] = None;
}

/// A cluster with one round of values, and a follower that has them all and was stopped.
fn with_stopped_follower() -> (Cluster, usize) {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    write(&mut cluster, 0);
    cluster.assert_equal();
    stop(&mut cluster, follower);
    (cluster, follower)
}

/// Every key has the value of this round, on the node itself once it leads.
fn assert_leads_with(cluster: &mut Cluster, at: usize, round: u64) {
    let others = cluster.others(at);
    crate::common::wait("the node to lead", || {
        if cluster.ports[at].leads() {
            return Some(());
        }
        // A leader that stops hands over to one of the other two.
        let leader = others
            .iter()
            .copied()
            .find(|other| cluster.running[*other].is_some() && cluster.ports[*other].leads())?;
        stop(cluster, leader);
        cluster.restart(leader);
        cluster.leader();
        None
    });
    let mut client = cluster.ports[at].client().unwrap();
    for key in 0..KEYS {
        let value: String = redis::cmd("GET").arg(format!("k{key}")).query(&mut client).unwrap();
        assert_eq!(value, format!("{round}-{key}"));
    }
}

/// The follower started without a word, served old values at the current place, later led, and spread them by snapshot.
#[test]
fn a_follower_whose_journal_was_removed_shows_and_leads_with_current_values() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    for round in 0..3 {
        write(&mut cluster, round);
        cluster.assert_equal();
        stop(&mut cluster, follower);
        fs::remove_file(cluster.data(follower).join("kv/0.jnl")).unwrap();
        cluster.restart(follower);
        cluster.leader();
        cluster.assert_equal();
    }
    assert_leads_with(&mut cluster, follower, 2);
    cluster.assert_equal();
}

/// A table of the state; keyspace 0 is of the store itself.
fn table(data: &Path) -> PathBuf {
    let keyspaces = fs::read_dir(data.join("kv/keyspaces")).unwrap().map(|file| file.unwrap().path());
    let own = keyspaces.filter(|keyspace| !keyspace.ends_with("0"));
    let tables = own.flat_map(|own| fs::read_dir(own.join("tables")).unwrap());
    tables.map(|file| file.unwrap().path()).max().unwrap()
}

#[test]
fn a_follower_with_a_damaged_table_builds_its_state_anew() {
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
        assert!(process.log().contains(word), "`{word}` is not said: {}", process.log());
    }
}

/// The volume of the log was not mounted. The start command founded the group anew under the incarnation that had voted
/// before, and the peers let the node in: it could vote twice.
#[test]
fn a_node_whose_log_was_lost_is_refused_until_it_is_back() {
    let _alone = alone();
    let (mut cluster, follower) = with_stopped_follower();
    let (data, away) = (cluster.data(follower), cluster.dir.path().join("log-away"));
    fs::rename(data.join("log"), &away).unwrap();
    assert_refused(&cluster, follower, &["0000000000000001.raftlog", "the file is missing"]);
    // The list of log files went with it.
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
