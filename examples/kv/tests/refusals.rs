//! What the real program says to bad input: the exit code and the words on stderr.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::common::{Ports, Process, program, run, wait};

/// Wrong use.
const USAGE: i32 = 2;
/// Right use of what is not so.
const FAILED: i32 = 1;

fn assert_refused(command: &mut Command, code: i32, words: &[&str]) {
    let out = run(command);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{command:?}:\n{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not said:\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(out.stdout.is_empty(), "errors belong on stderr");
}

/// A node that is its whole cluster.
struct Alone {
    dir: tempfile::TempDir,
    ports: Ports,
}

impl Alone {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ports: Ports::free() }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn command(&self) -> Command {
        self.command_as(1)
    }

    fn command_as(&self, id: usize) -> Command {
        let mut command = self.ports.serve(id, &self.data());
        command.args(["--peer", &self.ports.peer(id)]);
        command
    }

    fn bootstrap(&self) -> Command {
        let mut command = self.command();
        command.arg("--bootstrap");
        command
    }

    /// Runs until it leads.
    fn start(&self) -> Process {
        let mut process = Process::start(&mut self.bootstrap(), &self.dir.path().join("log"));
        wait("the node to lead", || {
            assert!(process.ended().is_none(), "{}", process.log());
            self.ports.leads().then_some(())
        });
        process
    }

    /// With the settings of a file.
    fn with_settings(&self, settings: &str) -> Command {
        let file = self.dir.path().join("settings.toml");
        fs::write(&file, settings).unwrap();
        let mut command = self.bootstrap();
        command.arg("--config").arg(file);
        command
    }
}

#[test]
fn wrong_arguments_are_told() {
    let node = Alone::new();
    assert_refused(program().arg("--nope"), USAGE, &["unexpected argument '--nope'"]);
    assert_refused(program().args(["cluster", "--nodes", "0"]), USAGE, &["--nodes", "1..=9"]);
    assert_refused(node.bootstrap().arg("--nope"), USAGE, &["unexpected argument '--nope'"]);
    assert_refused(node.bootstrap().arg("--join"), USAGE, &["cannot be used with"]);
    assert_refused(program().args(["serve", "--id", "0"]), USAGE, &["invalid node id `0`"]);
    let mut no_peer = node.ports.serve(1, &node.data());
    assert_refused(no_peer.arg("--bootstrap"), USAGE, &["--peer"]);
    for (peer, says) in [
        ("1", "`1` has no `=`"),
        ("1=grpc://127.0.0.1:7101", "has no Redis address"),
        ("0=grpc://127.0.0.1:7101,127.0.0.1:7001", "invalid node id `0`"),
        ("x=grpc://127.0.0.1:7101,127.0.0.1:7001", "invalid node id `x`"),
        ("1=127.0.0.1:7101,127.0.0.1:7001", "invalid address `127.0.0.1:7101`"),
        ("1=grpc://127.0.0.1:7101,127.0.0.1", "invalid address `127.0.0.1`"),
        ("1=grpc://127.0.0.1:7101,127.0.0.1:70000", "invalid address `127.0.0.1:70000`"),
    ] {
        let form = "`ID=grpc://HOST:PORT,REDIS_HOST:PORT` is expected";
        assert_refused(node.bootstrap().args(["--peer", peer]), USAGE, &["--peer", says, form]);
    }
    assert!(!node.data().exists(), "nothing was made");
}

#[test]
fn peers_that_do_not_fit_are_told() {
    let node = Alone::new();
    let other = Ports::free();
    let mut stranger = node.ports.serve(1, &node.data());
    stranger.args(["--bootstrap", "--peer", &other.peer(2)]);
    assert_refused(&mut stranger, USAGE, &["--peer does not name node 1 itself"]);
    let mut elsewhere = node.ports.serve(1, &node.data());
    elsewhere.args(["--bootstrap", "--peer", &other.peer(1)]);
    let words = ["--raft is ", &node.ports.raft_uri(), &other.raft_uri(), "both must be the same"];
    assert_refused(&mut elsewhere, USAGE, &words);
    let words = ["--listen is quic://127.0.0.1:1", &node.ports.raft_uri(), "must name the same transport"];
    assert_refused(node.bootstrap().args(["--listen", "quic://127.0.0.1:1"]), USAGE, &words);
    assert_refused(node.bootstrap().args(["--peer", &other.peer(1)]), USAGE, &["names the same id twice"]);
    assert!(!node.data().exists(), "nothing was made");
}

#[test]
fn settings_that_cannot_be_are_named() {
    let node = Alone::new();
    let huge = format!("[kv]\nconnections_max = {}", i64::MAX);
    for (settings, words) in [
        ("[engine]\nelection_tick = 5", vec!["unknown field `election_tick`", "line 2"]),
        ("[kv]\nports = 5", vec!["unknown field `ports`", "connections_max"]),
        ("[moon]\n", vec!["unknown field `moon`", "`engine`"]),
        ("[engine]\ntick = \"x\"", vec!["tick: \"x\" is not a whole number and a unit, as in \"100ms\""]),
        ("[engine]\ntick = 10", vec!["tick: 10 needs a unit: ns, us, ms, s, m, h, d; as in \"100ms\""]),
        ("[engine]\ntick = \"0ms\"", vec!["setting `tick` is 0ns, but must be at least 1ms"]),
        (
            "[engine]\nelection_timeout_min = \"50ms\"",
            vec!["`election_timeout_min` is 50ms, but must be at least 3 x"],
        ),
        ("[kv]\nshutdown_timeout = \"5\"", vec!["shutdown_timeout = ", "\"5\" needs a unit: ns, us, ms, s"]),
        ("[kv]\nreply_timeout = \"0s\"", vec!["`reply_timeout` is 0ns, but must be at least 1ms"]),
        ("[store]\ncache_bytes = 5", vec!["cache_bytes = ", "5 needs a unit: B, KiB, MiB, GiB, TiB"]),
        (&huge, vec!["`connections_max` is", "but must be at least 1 and at most 1000000"]),
        ("[kv]\nconnections_max = 0", vec!["`connections_max` is 0, but must be at least 1"]),
        ("[store]\nworker_threads = 0", vec!["`worker_threads` is 0, but must be"]),
        (
            "[store]\njournal_bytes_max = \"1B\"",
            vec!["`journal_bytes_max` is 1B, but must be at least 64MiB"],
        ),
        ("[engine", vec!["line 1"]),
    ] {
        let words = [words, vec!["settings.toml"]].concat();
        assert_refused(&mut node.with_settings(settings), USAGE, &words);
    }
    let mut missing = node.bootstrap();
    missing.args(["--config", "/nowhere/settings.toml"]);
    assert_refused(&mut missing, USAGE, &["/nowhere/settings.toml cannot be read", "No such file"]);
    assert!(!node.data().exists(), "nothing was made");
}

#[test]
fn an_empty_directory_needs_to_be_told_what_to_become() {
    let node = Alone::new();
    assert_refused(&mut node.command(), USAGE, &["is empty: give --bootstrap", &shown(&node.data())]);
    let words = ["joining an existing group is not supported by this version"];
    assert_refused(node.command().arg("--join"), FAILED, &words);
    // What these left behind hinders nobody.
    drop(node.start());
}

#[test]
fn a_directory_of_another_is_refused() {
    let node = Alone::new();
    let running = node.start();
    let words = ["is locked by another process", &shown(&node.data())];
    let other = Alone { dir: tempfile::tempdir().unwrap(), ports: Ports::free() };
    let mut second = other.ports.serve(1, &node.data());
    second.args(["--peer", &other.ports.peer(1)]);
    assert_refused(&mut second, FAILED, &words);
    assert!(node.ports.leads(), "the one that runs is not disturbed");
    drop(running);

    let words = ["belongs to node 1, not to node 2"];
    assert_refused(&mut node.command_as(2), FAILED, &words);
    let words = ["belongs to cluster `towline-kv`, not to `other`"];
    assert_refused(node.command().args(["--cluster", "other"]), FAILED, &words);
    let file = node.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = node.ports.serve(1, &file);
    command.args(["--bootstrap", "--peer", &node.ports.peer(1)]);
    assert_refused(&mut command, FAILED, &["data directory", &shown(&file)]);
    // None of these changed it.
    drop(node.start());
}

#[test]
fn a_port_in_use_is_named() {
    let node = Alone::new();
    for port in [node.ports.redis, node.ports.raft, node.ports.http] {
        let held = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = format!("127.0.0.1:{port}");
        assert_refused(&mut node.bootstrap(), FAILED, &["cannot listen", &address, "in use"]);
        drop(held);
    }
    drop(node.start());
}

#[test]
fn a_corrupt_log_is_refused_and_the_place_named() {
    let node = Alone::new();
    let running = node.start();
    let mut client = node.ports.client().unwrap();
    for number in 0..50 {
        redis::cmd("SET").arg(number).arg("x".repeat(100)).query::<()>(&mut client).unwrap();
    }
    drop(running);
    let logs = fs::read_dir(node.data().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let log = logs.filter(|path| path.extension().is_some_and(|e| e == "raftlog")).max().unwrap();
    let sound = fs::read(&log).unwrap();
    let mut bytes = sound.clone();
    // The file is longer than what is written of it.
    let middle = bytes.iter().rposition(|byte| *byte != 0).unwrap() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&log, &bytes).unwrap();
    let words = ["log is corrupt at ", &shown(&log), "at offset "];
    assert_refused(&mut node.command(), FAILED, &words);
    assert_eq!(fs::read(&log).unwrap(), bytes, "what is left is not touched");

    fs::write(&log, &sound).unwrap();
    let _running = node.start();
    let mut client = node.ports.client().unwrap();
    let value: String = redis::cmd("GET").arg(49).query(&mut client).unwrap();
    assert_eq!(value.len(), 100);
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
