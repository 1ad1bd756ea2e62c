//! `towline-kv cluster`: the supervisor and its child processes.

use crate::common::{Ports, Process, after, free_ports, is_alive, program, signal, wait};

/// A supervisor and its children. All end with the test.
struct Supervised {
    process: Process,
    children: Vec<u32>,
    ports: Vec<Ports>,
}

impl Supervised {
    fn start(dir: &tempfile::TempDir) -> Self {
        Self::start_after("true", "grpc", dir)
    }

    /// Starts it from a shell, after the command `setup`.
    fn start_after(setup: &str, scheme: &'static str, dir: &tempfile::TempDir) -> Self {
        let base = free_ports(&[1, 2, 3, 101, 102, 103, 201, 202, 203]);
        let mut command = program();
        command.args(["cluster", "--transport", scheme, "--base-port", &base.to_string(), "--data"]);
        let mut command = after(setup, command.arg(dir.path().join("data")));
        let process = Process::start(&mut command, &dir.path().join("log"));
        let ports =
            (base + 1..=base + 3).map(|redis| Ports { scheme, redis, raft: redis + 100, http: redis + 200 });
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

    fn stop(&mut self, name: &str) {
        self.process.signal(name);
        assert_eq!(self.process.wait_end().code(), Some(0), "{}", self.process.log());
        self.assert_no_child_left();
    }

    fn assert_no_child_left(&self) {
        wait("the end of all children", || self.children.iter().all(|pid| !is_alive(*pid)).then_some(()));
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        for pid in self.children.iter().filter(|pid| is_alive(**pid)) {
            signal(*pid, "KILL");
        }
    }
}

#[test]
fn one_command_runs_a_cluster_over_quic_until_an_interrupt() {
    let dir = tempfile::tempdir().unwrap();
    Supervised::start_after("true", "quic", &dir).stop("INT");
}

/// Under `nohup`, the supervisor stopped its nodes when its terminal was closed.
#[test]
#[cfg(target_os = "linux")]
fn the_supervisor_stops_at_a_hangup_unless_it_was_started_with_hangups_ignored() {
    let dir = tempfile::tempdir().unwrap();
    // The test process may itself ignore hangups.
    let default = "exec env --default-signal=HUP \"$0\" \"$@\"; true";
    Supervised::start_after(default, "grpc", &dir).stop("HUP");

    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start_after("trap '' HUP", "grpc", &dir);
    supervised.process.signal("HUP");
    supervised.process.signal("USR1");
    wait("a line about SIGUSR1", || supervised.process.log().contains("SIGUSR1").then_some(()));
    assert!(supervised.process.ended().is_none(), "{}", supervised.process.log());
    supervised.stop("TERM");
    let log = supervised.process.log();
    assert!(!log.contains("stopping already"), "SIGHUP had stopped it: {log}");
}

#[test]
fn the_supervisor_stops_all_nodes_when_one_died() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start(&dir);
    signal(supervised.children[1], "KILL");
    assert_eq!(supervised.process.wait_end().code(), Some(1), "{}", supervised.process.log());
    let log = supervised.process.log();
    assert!(log.contains("error: node 2 ended: signal: 9"), "{log}");
    supervised.assert_no_child_left();
}

/// Then no destructor and no signal handler of the supervisor runs.
#[test]
fn the_children_end_when_the_supervisor_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut supervised = Supervised::start(&dir);
    supervised.process.signal("KILL");
    assert_eq!(supervised.process.wait_end().code(), None);
    supervised.assert_no_child_left();
    // The nodes start again from their data.
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
