//! What the system gives the real program: file descriptors, and signals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::{Cluster, DEADLINE, Ports, Process, SETTINGS, after, alone, wait};

/// Values that fill a log file of 64 MiB, and the memory of the store twice.
const VALUES: usize = 90;
const VALUE_BYTES: usize = 900_000;

/// A client that is let in, and waits for as long as a busy machine takes.
fn client(ports: &Ports) -> redis::Connection {
    let client = wait("a client to be let in", || {
        let mut client = ports.client()?;
        redis::cmd("PING").query::<()>(&mut client).is_ok().then_some(client)
    });
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client.set_write_timeout(Some(DEADLINE)).unwrap();
    client
}

/// Asks the nodes of `clients` until one answers: a busy machine may change the leader.
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

/// Connections that say nothing, as many as the port takes.
fn hoard(port: u16, count: usize) -> Vec<TcpStream> {
    let at = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    // A full queue of the listener drops the first packet of a connection. The system sends it again after one second and
    // after three, and the node has emptied its queue by then, unless it has no descriptors left.
    (0..count).map_while(|_| TcpStream::connect_timeout(&at, Duration::from_secs(4)).ok()).collect()
}

fn assert_well(cluster: &mut Cluster) {
    for at in 0..cluster.ports.len() {
        let log = cluster.process(at).log();
        for bad in ["quarantined", "poisoned", "takes no further write", "panicked"] {
            assert!(!log.contains(bad), "node {}: {bad}", at + 1);
        }
    }
}

/// 983 idle clients took all descriptors of the leader, and then those of the next one: each failed to open its next
/// log file, which ended the group for good.
#[test]
fn idle_clients_of_every_port_take_no_descriptors_from_log_and_store() {
    let _alone = alone();
    raise_own_limit();
    let mut cluster = Cluster::start_with_descriptors(3, SETTINGS, 256);
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
    assert_well(&mut cluster);
    for ports in ports {
        assert!(ports.counter("towline_kv_redis_refused_total", "") > 0, "some were refused");
    }
}

/// The same, where nothing keeps clients below the limit: it falls while the node runs. A test of towline-storage does it
/// to the log.
#[test]
fn a_store_without_descriptors_waits_for_some() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let _alone = alone();
    raise_own_limit();
    let node = Alone::new();
    let mut process = node.lead(&[]);
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
    // There may be gaps below the highest one.
    let idle = hoard(node.ports.redis, 500);
    wait("all descriptors to be taken", || process.log().contains("no client can be accepted").then_some(()));
    let filling = std::thread::spawn(move || {
        fill(&mut established);
        fill(&mut established);
    });
    // The store opens a file for each table.
    wait("the store to need one", || {
        let ended = filling.is_finished();
        let waits = process.log().contains("the key-value store waits for a file descriptor");
        assert!(waits || !ended, "filling ended without a wait: {}", process.log());
        waits.then_some(())
    });
    // The clients alone may hold fewer than the store needs next: a compaction opens a file for each of its tables.
    limit(before.current);
    filling.join().unwrap();
    let waits = || node.ports.counter("towline_kv_descriptor_waits_total", "part=\"store\"");
    wait("the waits to be counted", || (waits() > 0).then_some(()));
    drop(idle);
    fill(&mut [client(&node.ports)]);
    assert!(node.ports.leads());
    for bad in ["quarantined", "takes no further write", "panicked"] {
        assert!(!process.log().contains(bad), "{}", process.log());
    }
    process.signal("TERM");
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log());
}

#[test]
fn the_soft_limit_of_descriptors_is_raised() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let ports = Ports::free();
    let mut command = ports.serve(1, &dir.path().join("data"));
    command.args(["--bootstrap", "--peer", &ports.peer(1)]);
    let mut process = Process::start(&mut after("ulimit -S -n 64", &command), &dir.path().join("log"));
    wait("the node to lead", || {
        assert!(process.ended().is_none(), "{}", process.log());
        ports.leads().then_some(())
    });
    assert!(process.log().contains("file descriptors are divided"), "{}", process.log());
    let many = hoard(ports.redis, 200);
    let mut last = many.last().unwrap();
    last.write_all(b"PING\r\n").unwrap();
    last.read_exact(&mut [0; 7]).unwrap();
}

/// Lets this process hold what it hoards.
fn raise_own_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// One node that leads, and its command.
struct Alone {
    dir: tempfile::TempDir,
    ports: Ports,
}

impl Alone {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: Ports::free() }
    }

    fn start(&self, more: &[&str]) -> Process {
        let mut command = self.ports.serve(1, &self.dir.path().join("data"));
        command.args(["--bootstrap", "--peer", &self.ports.peer(1)]).args(more);
        Process::start(&mut command, &self.dir.path().join("log"))
    }

    fn lead(&self, more: &[&str]) -> Process {
        let mut process = self.start(more);
        wait("the node to lead", || {
            assert!(process.ended().is_none(), "{}", process.log());
            self.ports.leads().then_some(())
        });
        process
    }
}

/// SIGHUP ended a node that had no certificates to read again.
#[test]
fn signals_that_mean_nothing_are_ignored_with_a_line() {
    let _alone = alone();
    let node = Alone::new();
    let mut process = node.lead(&[]);
    for name in ["HUP", "USR1", "USR2", "ALRM", "VTALRM", "PROF", "IO", "XFSZ"] {
        process.signal(name);
        wait(&format!("a line about SIG{name}"), || {
            assert!(process.ended().is_none(), "SIG{name} ended it: {}", process.log());
            process.log().contains(&format!("signal=\"SIG{name}\"")).then_some(())
        });
    }
    for (name, logged) in [("STKFLT", "signal=\"SIGSTKFLT\""), ("34", "number=34"), ("64", "number=64")] {
        process.signal(name);
        wait(&format!("a line about SIG{name}"), || {
            assert!(process.ended().is_none(), "SIG{name} ended it: {}", process.log());
            process.log().contains(logged).then_some(())
        });
    }
    process.signal("PIPE");
    process.signal("CHLD");
    process.signal("WINCH");
    assert!(node.ports.leads());
    process.signal("TERM");
    assert_eq!(process.wait_end().code(), Some(0), "{}", process.log());
}

#[test]
fn a_signal_while_the_node_starts_ends_it_and_the_next_start_works() {
    let _alone = alone();
    let mut early = 0;
    // Each comes a little later in the start.
    for (number, name) in ["TERM", "INT"].into_iter().cycle().take(10).enumerate() {
        let node = Alone::new();
        let mut process = node.start(&[]);
        wait("signals to be heard", || process.log().contains("file descriptors").then_some(()));
        let later = Duration::from_millis(5) * u32::try_from(number).unwrap();
        std::thread::sleep(later); // not synchronisation: another moment of the start each time
        process.signal(name);
        assert_eq!(process.wait_end().code(), Some(0), "SIG{name}: {}", process.log());
        early += usize::from(process.log().contains("ended while starting"));
        // It starts again from whatever there is.
        drop(node.lead(&[]));
    }
    assert!(early > 0, "no signal ended a start at once");
}

#[test]
fn a_stop_that_hangs_ends_at_the_second_interrupt() {
    let _alone = alone();
    // A leader that hears no other node steps down after an election timeout, and then its stop ends.
    let settings = "[engine]\nelection_timeout_min = '8s'\nelection_timeout_max = '10s'\n[kv]\nshutdown_timeout = '10m'\n";
    for (first, second) in [("TERM", "INT"), ("INT", "INT")] {
        let mut cluster = Cluster::start_with(2, settings);
        let leader = cluster.leader();
        // Leadership cannot be handed over to a process that stands still.
        let other = cluster.others(leader)[0];
        cluster.process(other).signal("STOP");
        let process = cluster.process(leader);
        process.signal(first);
        wait("the stop to begin", || process.log().contains("stopping").then_some(()));
        process.signal("TERM");
        wait("a line about SIGTERM", || process.log().contains("stopping already").then_some(()));
        process.signal(second);
        if first == "TERM" {
            // The first interrupt is no second one. Two that come at once are one.
            wait("a line about SIGINT", || process.log().contains("signal=\"SIGINT\"").then_some(()));
            process.signal("INT");
        }
        let status = process.wait_end();
        assert_eq!(status.code(), Some(1), "{}", process.log());
        cluster.process(other).signal("CONT");
    }
}

#[test]
fn http_clients_that_do_not_go_on_keep_nobody_out() {
    let _alone = alone();
    let node = Alone::new();
    let settings = node.dir.path().join("settings.toml");
    std::fs::write(&settings, "[kv]\nhttp_connections_max = 4\n").unwrap();
    let _process = node.lead(&["--config", settings.to_str().unwrap()]);
    // Headers that never end, and none at all.
    let mut slow = hoard(node.ports.http, 8);
    for stream in &mut slow {
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nX-Slow: ");
    }
    wait("connections past the bound to be refused, and the others to be closed", || {
        node.ports.is_healthy().then_some(())
    });
    assert!(node.ports.counter("towline_kv_http_refused_total", "") > 0);
    drop(slow);
    // More headers than the port reads.
    let mut long = hoard(node.ports.http, 1).pop().unwrap();
    long.set_read_timeout(Some(DEADLINE)).unwrap();
    let _ = long.write_all(format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000)).as_bytes());
    let mut said = Vec::new();
    let _ = long.read_to_end(&mut said);
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&said));
    assert!(node.ports.is_healthy());
}
