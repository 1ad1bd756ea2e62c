//! The real program as processes: clusters that serve, lose nodes, and get them back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{
    Cluster, DEADLINE, ELECTION_TIMEOUT, Ports, Process, alone, free_ports, is_alive, program, wait,
};
use redis::{Connection, RedisResult, Value};

/// A write got another word than OK. Whether it may have happened.
fn may_have_happened(error: &redis::RedisError) -> bool {
    !matches!(error.code(), Some("MOVED" | "CLUSTERDOWN" | "TRYAGAIN"))
}

fn set(client: &mut Connection, key: &str, value: &str) -> RedisResult<String> {
    redis::cmd("SET").arg(key).arg(value).query(client)
}

fn get(client: &mut Connection, key: &str) -> RedisResult<Option<String>> {
    redis::cmd("GET").arg(key).query(client)
}

fn command<T: redis::FromRedisValue>(client: &mut Connection, words: &str) -> RedisResult<T> {
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query(client)
}

#[test]
fn clients_are_served_by_the_leader_and_sent_to_it_by_the_others() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut client = cluster.client();

    let expected: [(&str, Value); 15] = [
        ("SET k v", Value::Okay),
        ("GET k", Value::BulkString(b"v".to_vec())),
        ("GET absent", Value::Nil),
        ("INCR n", Value::Int(1)),
        ("INCRBY n 41", Value::Int(42)),
        ("MSET a 1 b 2", Value::Okay),
        (
            "MGET a absent b",
            Value::Array(vec![
                Value::BulkString(b"1".to_vec()),
                Value::Nil,
                Value::BulkString(b"2".to_vec()),
            ]),
        ),
        ("APPEND k w", Value::Int(2)),
        ("STRLEN k", Value::Int(2)),
        ("DEL k a absent", Value::Int(2)),
        ("EXISTS k a b", Value::Int(1)),
        ("TTL b", Value::Int(-1)),
        ("TTL k", Value::Int(-2)),
        ("SET b 3 NX", Value::Nil),
        ("SET t v EX 1000", Value::Okay),
    ];
    for (words, answer) in expected {
        assert_eq!(command::<Value>(&mut client, words).unwrap(), answer, "{words}");
    }
    let ttl: i64 = command(&mut client, "TTL t").unwrap();
    assert!((900..=1_000).contains(&ttl), "{ttl}");
    let error = command::<Value>(&mut client, "INCR t").unwrap_err();
    assert!(error.to_string().contains("not an integer"), "{error}");

    followers_say_where_the_leader_is(&cluster, leader);
    a_pipeline_is_answered_in_order(&mut client);
    frames_no_client_sends_are_answered_and_closed(&cluster.ports[leader]);
    cluster.assert_equal();
}

fn followers_say_where_the_leader_is(cluster: &Cluster, leader: usize) {
    for follower in cluster.others(leader) {
        let mut client = cluster.ports[follower].client().unwrap();
        for key in ["foo", "{foo}bar", "n"] {
            let slot: u16 = command(&mut client, &format!("CLUSTER KEYSLOT {key}")).unwrap();
            for words in [format!("SET {key} x"), format!("GET {key}")] {
                let error = command::<Value>(&mut client, &words).unwrap_err();
                let address = format!("127.0.0.1:{}", cluster.ports[leader].redis);
                assert_eq!(error.redirect_node(), Some((address.as_str(), slot)), "{words}: {error}");
            }
        }
        // As a cluster-aware client does.
        let error = set(&mut client, "followed", "yes").unwrap_err();
        let (address, _) = error.redirect_node().unwrap();
        let mut redirected =
            redis::Client::open(format!("redis://{address}/")).unwrap().get_connection().unwrap();
        set(&mut redirected, "followed", "yes").unwrap();
        assert_eq!(get(&mut redirected, "followed").unwrap().as_deref(), Some("yes"));
    }
}

fn a_pipeline_is_answered_in_order(client: &mut Connection) {
    let mut pipeline = redis::pipe();
    for number in 0..500 {
        pipeline.cmd("INCR").arg("pipelined");
        if number % 100 == 99 {
            pipeline.cmd("GET").arg("pipelined");
        }
    }
    let answers: Vec<i64> = pipeline.query(client).unwrap();
    let mut expected = Vec::new();
    for number in 1..=500 {
        expected.push(number);
        if number % 100 == 0 {
            expected.push(number);
        }
    }
    assert_eq!(answers, expected);
}

fn frames_no_client_sends_are_answered_and_closed(node: &Ports) {
    for (sent, answer) in [
        ("*1\r\n$-1\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*2000000\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("*2\r\n$3\r\nGET\r\n$4294967296\r\n", "-ERR Protocol error: invalid bulk length\r\n"),
        ("*1\r\n$4\r\nPING\r\n*1\r\n:1\r\n", "+PONG\r\n-ERR Protocol error: expected '$', got ':'\r\n"),
    ] {
        let mut socket = node.socket();
        socket.write_all(sent.as_bytes()).unwrap();
        let mut got = String::new();
        socket.read_to_string(&mut got).unwrap(); // to the end: it is closed
        assert_eq!(got, answer, "{}", sent.escape_debug());
    }
}

/// What a writer was told of its writes; each key is written once.
#[derive(Default)]
struct Told {
    acknowledged: Vec<(String, Instant)>,
    refused: Vec<String>,
}

fn writer(name: usize, ports: Vec<Ports>, stop: Arc<AtomicBool>) -> JoinHandle<Told> {
    std::thread::spawn(move || {
        let (mut told, mut at, mut client) = (Told::default(), 0, None);
        for number in 0_u64.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let Some(connection) = client.as_mut() else {
                at = (at + 1) % ports.len();
                client = ports[at].client();
                if client.is_none() {
                    std::thread::yield_now();
                }
                continue;
            };
            let (key, begun) = (format!("w{name}-{number}"), Instant::now());
            match set(connection, &key, &key) {
                Ok(_) => told.acknowledged.push((key, begun)),
                Err(error) => {
                    if !may_have_happened(&error) {
                        told.refused.push(key);
                    }
                    // The next node, not at once: a cluster without a leader refuses in microseconds.
                    std::thread::sleep(Duration::from_millis(5)); // not synchronisation: paces the retries
                    client = None;
                }
            }
        }
        told
    })
}

#[test]
fn killing_the_leader_loses_nothing_acknowledged() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4).map(|name| writer(name, cluster.ports.clone(), stop.clone())).collect();
    wait("load", || cluster.ports[leader].digest().and_then(|(applied, _)| (applied > 200).then_some(())));

    cluster.kill(leader);
    let killed = Instant::now();
    let others = cluster.others(leader);
    let next = cluster.leader_among(&others);
    assert_ne!(next, leader);
    cluster.write_somewhere(&others, "after", "the kill");
    let applied = cluster.ports[next].digest().unwrap().0;
    cluster.restart(leader);
    wait("load after the restart", || {
        cluster.ports[leader].digest().and_then(|(at, _)| (at > applied + 50).then_some(()))
    });
    stop.store(true, Ordering::Relaxed);
    let told: Vec<Told> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();

    let after_kill = told.iter().flat_map(|told| &told.acknowledged).map(|(_, begun)| *begun);
    let first = after_kill.filter(|begun| *begun > killed).min().expect("writes after the kill");
    let took = first - killed;
    assert!(took < 3 * ELECTION_TIMEOUT, "the next leader served after {took:?}");

    let mut client = cluster.client();
    for (key, _) in told.iter().flat_map(|told| &told.acknowledged) {
        assert_eq!(get(&mut client, key).unwrap().as_ref(), Some(key), "acknowledged");
    }
    for key in told.iter().flat_map(|told| &told.refused) {
        assert_eq!(get(&mut client, key).unwrap(), None, "{key} was refused");
    }
    cluster.assert_equal();
}

#[test]
fn without_a_majority_nothing_is_acknowledged() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut client = cluster.client();
    set(&mut client, "before", "1").unwrap();
    let others = cluster.others(leader);
    others.iter().for_each(|other| cluster.kill(*other));

    // The first ones meet a leader that does not know yet; the last ones a node that does.
    let mut refused = Vec::new();
    let mut words: HashMap<String, usize> = HashMap::new();
    let mut number = 0;
    wait("ten refusals", || {
        number += 1;
        let key = format!("lost-{number}");
        let mut client = cluster.ports[leader].client()?;
        let error = set(&mut client, &key, "x").expect_err("nobody may acknowledge");
        let word = error.code().unwrap_or("none").to_owned();
        if !may_have_happened(&error) {
            refused.push(key);
        } else {
            assert!(word == "UNCERTAIN" || error.is_timeout(), "{error}");
        }
        *words.entry(word).or_default() += 1;
        (refused.len() >= 10).then_some(())
    });
    assert!(words.contains_key("CLUSTERDOWN"), "{words:?}");
    let error = get(&mut cluster.ports[leader].client().unwrap(), "before").unwrap_err();
    assert_eq!(error.code(), Some("CLUSTERDOWN"), "{error}");

    // One is enough, and with it only the old leader can lead: had it proposed what it refused, that would now happen.
    cluster.restart(others[0]);
    cluster.write_somewhere(&[leader, others[0]], "resumed", "yes");
    cluster.restart(others[1]);
    let mut client = cluster.client();
    assert_eq!(get(&mut client, "before").unwrap().as_deref(), Some("1"));
    for key in refused {
        assert_eq!(get(&mut client, &key).unwrap(), None, "{key} was refused");
    }
    cluster.assert_equal();
}

#[test]
fn a_wiped_node_is_refused_by_its_peers() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    set(&mut cluster.client(), "k", "v").unwrap();
    let others = cluster.others(leader);
    let (wiped, witness) = (others[0], others[1]);
    cluster.kill(wiped);
    std::fs::remove_dir_all(cluster.data(wiped)).unwrap();
    cluster.restart(wiped);

    // Long enough that it asked for votes, several times.
    let refusals =
        |at: usize| cluster.ports[at].counter("towline_inbound_rejects_total", "wrong_incarnation");
    let served = std::cell::Cell::new(false);
    wait("both peers refuse it, again and again", || {
        served.set(served.get() || cluster.ports[wiped].is_healthy());
        (refusals(leader) >= 5 && refusals(witness) >= 5).then_some(())
    });
    assert!(!served.get() && !cluster.ports[wiped].is_healthy(), "a node without its past says it is well");
    let mut at_wiped = cluster.ports[wiped].client().unwrap();
    assert_eq!(get(&mut at_wiped, "k").unwrap_err().code(), Some("CLUSTERDOWN"));

    let pair = [leader, witness];
    let leader = cluster.leader_among(&pair);
    let mut client = cluster.ports[leader].client().unwrap();
    set(&mut client, "k2", "v2").unwrap();
    assert_eq!(get(&mut client, "k").unwrap().as_deref(), Some("v"));
    assert_eq!(cluster.ports[wiped].digest().map(|(applied, _)| applied), Some(0));
}

#[test]
fn sigterm_hands_over_and_ends_with_success() {
    // No election can begin so soon: who leads then was made the leader.
    const SOON: Duration = Duration::from_millis(2_500);
    let _alone = alone();
    let mut cluster =
        Cluster::start_with(3, "[engine]\nelection_timeout_min = '3s'\nelection_timeout_max = '4s'\n");
    let leader = cluster.leader();
    set(&mut cluster.client(), "k", "v").unwrap();
    let asked = Instant::now();
    cluster.process(leader).signal("TERM");
    let others = cluster.others(leader);
    let stopped = std::thread::scope(|scope| {
        let ports = cluster.ports.clone();
        let pair = others.clone();
        let served = scope.spawn(move || {
            wait("a leader after SIGTERM", || {
                pair.iter().find(|at| ports[**at].leads()).map(|_| asked.elapsed())
            })
        });
        let status = cluster.running[leader].as_mut().unwrap().wait_end();
        assert_eq!(status.code(), Some(0), "{}", cluster.process(leader).log());
        served.join().unwrap()
    });
    assert!(stopped < SOON, "leadership was not handed over: no leader for {stopped:?}");
    cluster.running[leader] = None;
    let next = cluster.leader_among(&others);
    assert_eq!(get(&mut cluster.ports[next].client().unwrap(), "k").unwrap().as_deref(), Some("v"));
    cluster.restart(leader);
    cluster.leader();
    cluster.assert_equal();
}

#[test]
fn a_leader_that_was_paused_serves_nothing_stale() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let old = cluster.leader();
    set(&mut cluster.client(), "k", "v1").unwrap();
    // Asked while it cannot answer: these are the first bytes it reads when it goes on.
    let mut before: Vec<TcpStream> = (0..8).map(|_| cluster.ports[old].socket()).collect();
    cluster.process(old).signal("STOP");
    let others = cluster.others(old);
    let next = wait("another leader", || others.iter().copied().find(|at| cluster.ports[*at].leads()));
    wait("a write by it", || set(&mut cluster.ports[next].client()?, "k", "v2").ok());
    for socket in &mut before {
        socket.write_all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n").unwrap();
    }
    before.push(cluster.ports[old].socket()); // the system accepts for it
    before.last_mut().unwrap().write_all(b"GET k\r\n").unwrap();

    cluster.process(old).signal("CONT");
    for socket in &mut before {
        let mut answer = [0; 256];
        let length = socket.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        let fine = ["-MOVED ", "-CLUSTERDOWN ", "-TRYAGAIN ", "$2\r\nv2\r\n"];
        assert!(fine.iter().any(|fine| answer.starts_with(fine)), "stale: {answer:?}");
    }
    wait("it follows", || {
        let status = cluster.ports[old].json("/status")?;
        (status["state"]["role"] == "follower" && status["state"]["leader"].is_u64()).then_some(())
    });
    cluster.assert_equal();
}

#[test]
fn garbage_at_the_port_for_peers_changes_nothing() {
    const CONNECTIONS: usize = 40;
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut client = cluster.client();
    set(&mut client, "k", "0").unwrap();
    let term = |cluster: &Cluster| cluster.ports[leader].json("/status").unwrap()["state"]["term"].clone();
    let (term_before, memory_before) = (term(&cluster), cluster.process(leader).resident_bytes());

    let mut noise: u64 = 0x9e37_79b9_7f4a_7c15;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.to_be_bytes()[0]
    })
    .take(1 << 20)
    .collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A frame header that promises 16 MiB, then bytes.
    let huge = [preface.as_slice(), &settings, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &random].concat();
    // A call with a message that promises 4 GiB would need headers; the transport's own tests send those.
    let noisy = [preface.as_slice(), &settings, &random].concat();
    let http1 = b"POST /towline HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n".as_slice();
    let mut held = Vec::new();
    for number in 0..CONNECTIONS {
        let garbage = [random.as_slice(), http1, &huge, &noisy][number % 4];
        let address = SocketAddr::from(([127, 0, 0, 1], cluster.ports[leader].raft));
        let mut socket = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let _ = socket.write_all(garbage); // it may be closed under our hands
        held.push(socket);
        set(&mut client, "k", &number.to_string()).expect("writes go on");
    }
    assert_eq!(get(&mut client, "k").unwrap(), Some((CONNECTIONS - 1).to_string()));
    assert_eq!(term(&cluster), term_before, "the leader lost its office");
    if let (Some(before), Some(after)) = (memory_before, cluster.process(leader).resident_bytes()) {
        assert!(after < before + (32 << 20), "memory grew from {before} to {after}");
    }
    drop(held);
    cluster.assert_equal();
}

/// The supervisor and what it started; all end with the test, by their ids.
struct Supervised {
    process: Process,
    children: Vec<u32>,
    ports: Vec<Ports>,
}

impl Supervised {
    fn start(dir: &tempfile::TempDir) -> Self {
        Self::start_after("true", dir)
    }

    /// `setup` is a command of the shell that starts it.
    fn start_after(setup: &str, dir: &tempfile::TempDir) -> Self {
        let base = free_ports(&[1, 2, 3, 101, 102, 103, 201, 202, 203]);
        let mut command = program();
        command.args(["cluster", "--nodes", "3", "--base-port", &base.to_string(), "--data"]);
        let mut command = crate::common::after(setup, command.arg(dir.path().join("data")));
        let process = Process::start(&mut command, &dir.path().join("log"));
        let ports = (1..=3).map(|id| Ports {
            scheme: "grpc",
            redis: base + id,
            raft: base + 100 + id,
            http: base + 200 + id,
        });
        let mut supervised = Self { process, children: Vec::new(), ports: ports.collect() };
        wait("three children", || {
            let log = supervised.process.log();
            let pids = log.lines().filter(|line| line.contains("started"));
            supervised.children =
                pids.filter_map(|line| line.split_once("pid=")?.1.split(' ').next()?.parse().ok()).collect();
            (supervised.children.len() == 3).then_some(())
        });
        wait("a leader", || supervised.ports.iter().any(Ports::leads).then_some(()));
        supervised
    }

    fn assert_nobody_left(&self) {
        wait("the end of all children", || self.children.iter().all(|pid| !is_alive(*pid)).then_some(()));
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        for pid in self.children.iter().filter(|pid| is_alive(**pid)) {
            crate::common::signal(*pid, "KILL");
        }
    }
}

#[test]
fn the_supervisor_ends_its_children_when_interrupted() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start(&dir);
    supervised.process.signal("INT");
    assert_eq!(supervised.process.wait_end().code(), Some(0), "{}", supervised.process.log());
    supervised.assert_nobody_left();
}

/// `cluster` under `nohup` stopped its nodes when its terminal was closed.
#[test]
#[cfg(target_os = "linux")]
fn the_supervisor_stops_at_a_hangup_unless_it_was_started_with_hangups_ignored() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    // These tests may themselves run with hangups ignored.
    let mut supervised = Supervised::start_after("exec env --default-signal=HUP \"$0\" \"$@\"; true", &dir);
    supervised.process.signal("HUP");
    assert_eq!(supervised.process.wait_end().code(), Some(0), "{}", supervised.process.log());
    supervised.assert_nobody_left();

    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start_after("trap '' HUP", &dir);
    supervised.process.signal("HUP");
    supervised.process.signal("USR1");
    wait("a line about SIGUSR1", || supervised.process.log().contains("SIGUSR1").then_some(()));
    assert!(supervised.process.ended().is_none(), "{}", supervised.process.log());
    supervised.process.signal("TERM");
    assert_eq!(supervised.process.wait_end().code(), Some(0), "{}", supervised.process.log());
    supervised.assert_nobody_left();
    let log = supervised.process.log();
    assert!(!log.contains("stopping already"), "SIGHUP had stopped it: {log}");
}

#[test]
fn the_supervisor_says_when_a_child_died() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start(&dir);
    crate::common::signal(supervised.children[1], "KILL");
    assert_eq!(supervised.process.wait_end().code(), Some(1), "{}", supervised.process.log());
    let log = supervised.process.log();
    assert!(log.contains("error: node 2 ended: signal: 9"), "{log}");
    supervised.assert_nobody_left();
}

/// No destructor and no signal handler runs then: the children find out by themselves.
#[test]
fn the_children_end_when_the_supervisor_is_killed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start(&dir);
    supervised.process.signal("KILL");
    assert_eq!(supervised.process.wait_end().code(), None);
    supervised.assert_nobody_left();
    // What they left is whole: the same nodes start again from it.
    let (ports, data) = (supervised.ports.clone(), dir.path().join("data"));
    let mut again = (1..=3)
        .map(|id| {
            let mut command = ports[id - 1].serve(id, &data.join(id.to_string()));
            ports.iter().enumerate().for_each(|(at, other)| {
                command.args(["--peer", &other.peer(at + 1)]);
            });
            Process::start(&mut command, &dir.path().join("again"))
        })
        .collect::<Vec<_>>();
    wait("a leader again", || {
        for process in &mut again {
            assert!(process.ended().is_none(), "{}", process.log());
        }
        ports.iter().any(Ports::leads).then_some(())
    });
}

/// The names of the metrics on a page.
fn metric_names(scrape: &str) -> std::collections::BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// What the page of a node that serves shows is what docs/operations.md explains, no more and no less.
#[test]
fn a_scrape_shows_what_operators_are_told_of() {
    let _alone = alone();
    let mut cluster = Cluster::start(3);
    let mut client = cluster.client();
    set(&mut client, "k", "v").unwrap();
    assert_eq!(get(&mut client, "k").unwrap().as_deref(), Some("v"));
    let leader = cluster.leader();
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md")).unwrap();
    let explained: std::collections::BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `towline_")?.split('`').next())
        .map(|name| format!("towline_{name}"))
        .collect();
    // Histograms have no type before their first sample.
    wait("all that is explained on the page", || {
        let shown = metric_names(&cluster.ports[leader].page("/metrics")?.1);
        let (missing, unexplained) = (explained.difference(&shown), shown.difference(&explained));
        assert_eq!(unexplained.collect::<Vec<_>>(), Vec::<&String>::new(), "not in docs/operations.md");
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            eprintln!("not on the page yet: {missing:?}");
        }
        missing.is_empty().then_some(())
    });
}
