//! Clusters that serve clients, lose nodes, and get them back.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::{Cluster, ELECTION_TIMEOUT, Ports, get, wait};
use redis::{Connection, RedisResult, Value};

/// Whether a write that got this error may have happened.
fn may_have_happened(error: &redis::RedisError) -> bool {
    !matches!(error.code(), Some("MOVED" | "CLUSTERDOWN" | "TRYAGAIN"))
}

fn set(client: &mut Connection, key: &str, value: &str) -> RedisResult<String> {
    redis::cmd("SET").arg(key).arg(value).query(client)
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
fn the_leader_serves_clients_and_followers_send_them_to_it() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut client = cluster.client();

    let expected: [(&str, Value); 18] = [
        ("FLUSHDB", Value::Okay),
        ("SET k v", Value::Okay),
        ("DBSIZE", Value::Int(1)),
        ("GET k", Value::BulkString(b"v".to_vec())),
        ("GET absent", Value::Nil),
        ("INCR n", Value::Int(1)),
        ("INCRBY n 41", Value::Int(42)),
        ("MSET a 1 b 2", Value::Okay),
        ("MGET a absent", Value::Array(vec![Value::BulkString(b"1".to_vec()), Value::Nil])),
        ("APPEND k w", Value::Int(2)),
        ("STRLEN k", Value::Int(2)),
        ("DEL k a absent", Value::Int(2)),
        ("EXISTS k a b", Value::Int(1)),
        ("TTL b", Value::Int(-1)),
        ("TTL k", Value::Int(-2)),
        ("SET b 3 NX", Value::Nil),
        ("SET b 3 GET", Value::BulkString(b"2".to_vec())),
        ("SET t v EX 1000", Value::Okay),
    ];
    for (words, answer) in expected {
        assert_eq!(command::<Value>(&mut client, words).unwrap(), answer, "{words}");
    }
    let ttl: i64 = command(&mut client, "TTL t").unwrap();
    assert!((900..=1_000).contains(&ttl), "{ttl}");
    let error = command::<Value>(&mut client, "INCR t").unwrap_err();
    assert!(error.to_string().contains("not an integer"), "{error}");

    followers_send_clients_to_the_leader(&cluster, leader);
    a_pipeline_is_answered_in_order(&mut client);
    cluster.assert_equal();
}

fn followers_send_clients_to_the_leader(cluster: &Cluster, leader: usize) {
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
    let expected = (1..=500).flat_map(|number| vec![number; if number % 100 == 0 { 2 } else { 1 }]);
    assert_eq!(answers, expected.collect::<Vec<_>>());
}

/// The outcomes of one writer's writes. It writes each key once.
#[derive(Default)]
struct Outcomes {
    acknowledged: Vec<(String, Instant)>,
    refused: Vec<String>,
}

fn writer(name: usize, ports: Vec<Ports>, stop: Arc<AtomicBool>) -> JoinHandle<Outcomes> {
    std::thread::spawn(move || {
        let (mut outcomes, mut at, mut client) = (Outcomes::default(), 0, None);
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
                Ok(_) => outcomes.acknowledged.push((key, begun)),
                Err(error) => {
                    if !may_have_happened(&error) {
                        outcomes.refused.push(key);
                    }
                    std::thread::sleep(Duration::from_millis(5)); // not synchronisation: paces the retries
                    client = None;
                }
            }
        }
        outcomes
    })
}

#[test]
fn killing_the_leader_loses_no_acknowledged_write() {
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
    let outcomes: Vec<Outcomes> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();

    let after_kill = outcomes.iter().flat_map(|each| &each.acknowledged).map(|(_, begun)| *begun);
    let first = after_kill.filter(|begun| *begun > killed).min().expect("writes after the kill");
    let took = first - killed;
    assert!(took < 3 * ELECTION_TIMEOUT, "the next leader served after {took:?}");

    let mut client = cluster.client();
    for (key, _) in outcomes.iter().flat_map(|each| &each.acknowledged) {
        assert_eq!(get(&mut client, key).unwrap().as_ref(), Some(key), "acknowledged");
    }
    for key in outcomes.iter().flat_map(|each| &each.refused) {
        assert_eq!(get(&mut client, key).unwrap(), None, "{key} was refused");
    }
    cluster.assert_equal();
}

#[test]
fn without_a_majority_no_write_is_acknowledged() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let mut client = cluster.client();
    set(&mut client, "before", "1").unwrap();
    let others = cluster.others(leader);
    others.iter().for_each(|other| cluster.kill(*other));

    // The node first still counts as leader, and later knows that it is not.
    let mut refused = Vec::new();
    let mut numbers = 1..;
    wait("ten refusals", || {
        let key = format!("lost-{}", numbers.next()?);
        let mut client = cluster.ports[leader].client()?;
        let error = set(&mut client, &key, "x").expect_err("no majority");
        if !may_have_happened(&error) {
            refused.push(key);
        } else {
            assert!(error.code() == Some("UNCERTAIN") || error.is_timeout(), "{error}");
        }
        (refused.len() >= 10).then_some(())
    });
    let error = get(&mut cluster.ports[leader].client().unwrap(), "before").unwrap_err();
    assert_eq!(error.code(), Some("CLUSTERDOWN"), "{error}");

    // Now only the old leader can lead. It would commit the refused writes, had it proposed them.
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
fn sigterm_hands_over_and_ends_with_success() {
    // Before any election timeout: the next leader got the leadership from the old one.
    const SOON: Duration = Duration::from_millis(2_500);
    let mut cluster =
        Cluster::start_with(3, "[engine]\nelection_timeout_min = '3s'\nelection_timeout_max = '4s'\n");
    let leader = cluster.leader();
    set(&mut cluster.client(), "k", "v").unwrap();
    let asked = Instant::now();
    cluster.process(leader).signal("TERM");
    let others = cluster.others(leader);
    wait("a leader after SIGTERM", || others.iter().find(|at| cluster.ports[**at].leads()));
    let took = asked.elapsed();
    assert!(took < SOON, "leadership was not handed over: no leader for {took:?}");
    assert_eq!(cluster.process(leader).wait_end().code(), Some(0), "{}", cluster.process(leader).log());
    cluster.running[leader] = None;
    let next = cluster.leader_among(&others);
    assert_eq!(get(&mut cluster.ports[next].client().unwrap(), "k").unwrap().as_deref(), Some("v"));
    cluster.restart(leader);
    cluster.leader();
    cluster.assert_equal();
}

#[test]
fn a_paused_leader_serves_no_stale_value() {
    let mut cluster = Cluster::start(3);
    let old = cluster.leader();
    set(&mut cluster.client(), "k", "v1").unwrap();
    // Connections for requests that the leader reads first when it continues.
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

fn metric_names(scrape: &str) -> BTreeSet<String> {
    let types = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

/// Compares a scrape with the table in docs/operations.md.
#[test]
fn a_scrape_shows_exactly_the_documented_metrics() {
    let mut cluster = Cluster::start(3);
    let mut client = cluster.client();
    set(&mut client, "k", "v").unwrap();
    assert_eq!(get(&mut client, "k").unwrap().as_deref(), Some("v"));
    let leader = cluster.leader();
    let page =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md")).unwrap();
    let explained: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `towline_")?.split('`').next())
        .map(|name| format!("towline_{name}"))
        .collect();
    // Histograms have no type before their first sample.
    wait("all documented metrics in a scrape", || {
        let shown = metric_names(&cluster.ports[leader].page("/metrics")?.1);
        let unexplained: Vec<_> = shown.difference(&explained).collect();
        assert!(unexplained.is_empty(), "not in docs/operations.md: {unexplained:?}");
        let missing: Vec<_> = explained.difference(&shown).collect();
        eprintln!("not in the scrape yet: {missing:?}");
        missing.is_empty().then_some(())
    });
}
