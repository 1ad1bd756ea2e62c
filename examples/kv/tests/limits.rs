//! File descriptors and signals.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::{Cluster, DEADLINE, Ports, Process, SoloNode, after, wait};

/// Values that fill a log file of 64 MiB, and two layers of the store.
const VALUES: usize = 90;
const VALUE_BYTES: usize = 900_000;

/// A connected client with long timeouts.
fn client(ports: &Ports) -> redis::Connection {
    let client = wait("a connection", || {
        let mut client = ports.client()?;
        redis::cmd("PING").query::<()>(&mut client).is_ok().then_some(client)
    });
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    client
}

/// Asks the nodes of `clients` until one answers, because the leader may change on a busy machine.
fn ask<T: redis::FromRedisValue>(clients: &mut [redis::Connection], command: &redis::Cmd) -> T {
    wait("an answer of the leader", || {
        clients.iter_mut().find_map(|client| {
            command.query(client).inspect_err(|error| eprintln!("asked again: {error}")).ok()
        })
    })
}

fn fill(clients: &mut [redis::Connection]) {
    let value = "v".repeat(VALUE_BYTES);
    for number in 0..VALUES {
        let () = ask(clients, redis::cmd("SET").arg(number).arg(&value));
    }
    assert_eq!(ask::<usize>(clients, redis::cmd("STRLEN").arg(0)), VALUE_BYTES);
}

/// Opens up to `count` silent connections.
fn hoard(port: u16, count: usize) -> Vec<TcpStream> {
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    // A full accept queue drops the first packet of a connection. The system repeats it after one and three seconds. By then
    // the node has emptied its queue, unless it lacks descriptors.
    (0..count).map_while(|_| TcpStream::connect_timeout(&at, Duration::from_secs(4)).ok()).collect()
}

fn assert_healthy(process: &Process) {
    for bad in ["quarantined", "poisoned", "takes no further write", "panicked"] {
        assert!(!process.log().contains(bad), "{bad}: {}", process.log());
    }
}

/// 983 idle clients took all descriptors of one leader after the other. Each could not open its next log file and stopped.
#[test]
fn idle_clients_take_no_descriptors_from_log_and_store() {
    raise_own_limit();
    let mut cluster = Cluster::start_with_descriptors(3, 256);
    cluster.leader();
    let ports = cluster.ports.clone();
    let mut established: Vec<_> = ports.iter().map(client).collect();
    let idle: Vec<_> =
        ports.iter().map(|p| [hoard(p.redis, 300), hoard(p.http, 100), hoard(p.raft, 100)]).collect();
    fill(&mut established);
    for client in &mut established {
        assert_eq!(redis::cmd("PING").query::<String>(client).unwrap(), "PONG");
    }
    drop(idle);
    fill(&mut ports.iter().map(client).collect::<Vec<_>>());
    cluster.assert_equal();
    cluster.running.iter().flatten().for_each(assert_healthy);
    for ports in ports {
        assert!(ports.counter("towline_kv_redis_refused_total", &[]) > 0, "the node refused some clients");
    }
}

/// The limit falls while the node runs, so clients take all descriptors. A test of towline-storage covers the log.
#[test]
fn a_store_without_descriptors_waits() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    raise_own_limit();
    let node = SoloNode::new();
    let mut process = node.lead(&mut node.bootstrap());
    let mut established = [client(&node.ports)];
    let pid = process.pid();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let highest = open.filter_map(|file| file.unwrap().file_name().to_str()?.parse::<u64>().ok()).max();
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let limit = |current| {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap());
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap()
    };
    let before = limit(highest.map(|highest| highest + 1));
    // The clients fill gaps below the highest descriptor.
    let idle = hoard(node.ports.redis, 500);
    wait("all descriptors to be taken", || process.log().contains("no client can be accepted").then_some(()));
    let filling = std::thread::spawn(move || {
        fill(&mut established);
        fill(&mut established);
    });
    wait("the store to need one", || {
        let ended = filling.is_finished();
        let waits = process.log().contains("the key-value store waits for a file descriptor");
        assert!(waits || !ended, "filling ended without a wait: {}", process.log());
        waits.then_some(())
    });
    // Raise the limit: a compaction may need more descriptors than the clients hold.
    limit(before.current);
    filling.join().unwrap();
    let waits = || node.ports.counter("towline_kv_descriptor_waits_total", &["part=\"store\""]);
    wait("the waits to be counted", || (waits() > 0).then_some(()));
    drop(idle);
    fill(&mut [client(&node.ports)]);
    assert!(node.ports.leads());
    assert_healthy(&process);
    process.signal("TERM");
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log());
}

#[test]
fn the_soft_limit_of_descriptors_is_raised() {
    let node = SoloNode::new();
    let process = node.lead(&mut after("ulimit -S -n 64", &node.bootstrap()));
    assert!(process.log().contains("file descriptors are divided"), "{}", process.log());
    let many = hoard(node.ports.redis, 200);
    let mut last = many.last().unwrap();
    last.write_all(b"PING\r\n").unwrap();
    last.read_exact(&mut [0; 7]).unwrap();
}

/// Raises the limit of this process for [`hoard`].
fn raise_own_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// SIGHUP ended a node that had no certificates to read again.
#[test]
fn signals_without_a_meaning_are_logged_and_ignored() {
    let node = SoloNode::new();
    let mut process = node.lead(&mut node.bootstrap());
    for name in ["HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "XFSZ", "STKFLT", "34", "64"] {
        process.signal(name);
        wait(&format!("a line about SIG{name}"), || {
            assert!(process.ended().is_none(), "SIG{name} ended it: {}", process.log());
            let (by_name, by_number) = (format!("signal=\"SIG{name}\""), format!("number={name}"));
            let log = process.log();
            (log.contains(&by_name) || log.contains(&by_number)).then_some(())
        });
    }
    for name in ["PIPE", "CHLD", "WINCH"] {
        process.signal(name);
    }
    assert!(node.ports.leads());
    process.signal("TERM");
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log());
}

#[test]
fn a_signal_during_the_start_ends_the_node_and_the_next_start_works() {
    let mut early = 0;
    for (number, name) in ["TERM", "INT"].into_iter().cycle().take(10).enumerate() {
        let node = SoloNode::new();
        let mut process = node.start(&mut node.bootstrap());
        wait("signals to be heard", || process.log().contains("file descriptors").then_some(()));
        let later = Duration::from_millis(5) * u32::try_from(number).unwrap();
        std::thread::sleep(later); // not synchronisation: another moment of the start each time
        process.signal(name);
        assert_eq!(process.wait_end().code(), Some(0), "SIG{name}: {}", process.log());
        early += usize::from(process.log().contains("ended while starting"));
        drop(node.lead(&mut node.bootstrap()));
    }
    assert!(early > 0, "no signal ended a start at once");
}

#[test]
fn a_second_interrupt_ends_a_hanging_stop() {
    // Long election timeouts: a leader without a majority steps down after one, and then its stop ends.
    let settings = "[engine]\nelection_timeout_min = '8s'\nelection_timeout_max = '10s'\n[kv]\nshutdown_timeout = '10m'\n";
    for (first, second) in [("TERM", "INT"), ("INT", "INT")] {
        let mut cluster = Cluster::start_with(2, settings);
        let leader = cluster.leader();
        // A paused node cannot take over the leadership.
        let other = cluster.others(leader)[0];
        cluster.process(other).signal("STOP");
        let process = cluster.process(leader);
        process.signal(first);
        wait("the stop to begin", || process.log().contains("stopping").then_some(()));
        process.signal("TERM");
        wait("a line about SIGTERM", || process.log().contains("stopping already").then_some(()));
        process.signal(second);
        if first == "TERM" {
            // That was the first interrupt. Wait for it, because the system merges two pending ones.
            wait("a line about SIGINT", || process.log().contains("signal=\"SIGINT\"").then_some(()));
            process.signal("INT");
        }
        let status = process.wait_end();
        assert_eq!(status.code(), Some(1), "{}", process.log());
        cluster.process(other).signal("CONT");
    }
}

#[test]
fn stalled_http_clients_keep_no_other_client_out() {
    let node = SoloNode::new();
    let _process = node.lead(&mut node.with_settings("[kv]\nhttp_connections_max = 4\n"));
    let mut slow = hoard(node.ports.http, 8);
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ");
    }
    wait("free connections", || node.ports.is_healthy().then_some(()));
    assert!(node.ports.counter("towline_kv_http_refused_total", &[]) > 0);
    drop(slow);
    let mut long = hoard(node.ports.http, 1).pop().unwrap();
    long.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = long.write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)).as_bytes());
    let mut said = Vec::new();
    let _ = long.read_to_end(&mut said);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    assert!(node.ports.is_healthy());
}
