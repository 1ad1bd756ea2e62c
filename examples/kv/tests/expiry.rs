//! Keys that expire.

use std::time::{Duration, Instant};

use crate::common::{Cluster, get, wait};

/// The time from `since` until a read at the leader does not find the key.
fn gone_after(cluster: &mut Cluster, key: &str, since: Instant) -> Duration {
    wait("the end of the key", || {
        let seen = get(&mut cluster.client(), key);
        matches!(seen, Ok(None)).then(|| since.elapsed())
    })
}

fn set(client: &mut redis::Connection, key: &str, ttl: Duration) {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap();
    let () = redis::cmd("SET").arg(key).arg("v").arg("PX").arg(ttl_ms).query(client).unwrap();
}

/// Expired keys stayed, and counted, until the next write.
#[test]
fn keys_expire_on_every_node_without_writes() {
    let mut cluster = Cluster::start(3);
    let mut client = cluster.client();
    let ttl = Duration::from_millis(400);
    let started = Instant::now();
    set(&mut client, "k", ttl);
    let gone = gone_after(&mut cluster, "k", started);
    assert!(gone >= ttl, "gone after {gone:?}");
    for ports in &cluster.ports {
        let mut client = ports.client().unwrap();
        let () = redis::cmd("READONLY").query(&mut client).unwrap();
        assert_eq!(get(&mut client, "k"), Ok(None), "a later read on any node sees the same");
        let keys: u64 = redis::cmd("DBSIZE").query(&mut client).unwrap();
        assert_eq!(keys, 0);
    }
    cluster.assert_equal();
}

/// The time goes on from the log: no key expires early, and none stays for ever.
#[test]
fn expiry_goes_on_at_a_new_leader_and_after_a_restart_of_all_nodes() {
    let mut cluster = Cluster::start(3);
    let leader = cluster.leader();
    let (short, long) = (Duration::from_secs(5), Duration::from_secs(3_600));
    let mut client = cluster.client();
    let started = Instant::now();
    set(&mut client, "short", short);
    set(&mut client, "long", long);
    cluster.kill(leader);
    let others = cluster.others(leader);
    let gone = gone_after(&mut cluster, "short", started);
    assert!(gone >= short, "gone after {gone:?}");
    for at in others {
        cluster.kill(at);
    }
    for at in 0..3 {
        cluster.restart(at);
    }
    let mut client = cluster.client();
    assert_eq!(get(&mut client, "short"), Ok(None), "what was gone stays gone");
    let ttl: u64 = redis::cmd("TTL").arg("long").query(&mut client).unwrap();
    let least = long.as_secs() - started.elapsed().as_secs() - 1;
    assert!((least..=long.as_secs()).contains(&ttl), "{ttl} s are left, at least {least}");
}
