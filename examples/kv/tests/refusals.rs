//! The exit code and the error of the program for bad input.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::common::{Ports, Process, SoloNode, program, run, wait};

const USAGE: i32 = 2;
const FAILED: i32 = 1;

fn assert_refused(command: &mut Command, code: i32, words: &[&str]) {
    let out = run(command);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{command:?}:\n{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is missing:\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(out.stdout.is_empty(), "errors belong on stderr");
}

#[test]
fn wrong_arguments_are_refused() {
    let node = SoloNode::new();
    assert_refused(program().arg("--nope"), USAGE, &["unexpected argument '--nope'"]);
    assert_refused(program().args(["cluster", "--nodes", "0"]), USAGE, &["--nodes", "1..=9"]);
    assert_refused(node.bootstrap().arg("--nope"), USAGE, &["unexpected argument '--nope'"]);
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
    assert!(!node.data().exists(), "no directory was made");
}

#[test]
fn inconsistent_peers_are_refused() {
    let node = SoloNode::new();
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
    assert!(!node.data().exists(), "no directory was made");
}

#[test]
fn invalid_settings_are_named() {
    let node = SoloNode::new();
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
    assert!(!node.data().exists(), "no directory was made");
}

#[test]
fn an_empty_directory_needs_bootstrap() {
    let node = SoloNode::new();
    assert_refused(&mut node.command(1), USAGE, &["is empty: give --bootstrap", &shown(&node.data())]);
    drop(node.lead(&mut node.bootstrap()));
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let node = SoloNode::new();
    let running = node.lead(&mut node.bootstrap());
    let words = ["is locked by another process", &shown(&node.data())];
    let other = Ports::free();
    let mut second = other.serve(1, &node.data());
    second.args(["--peer", &other.peer(1)]);
    assert_refused(&mut second, FAILED, &words);
    assert!(node.ports.leads(), "the running node goes on");
    drop(running);

    let words = ["belongs to node 1, not to node 2"];
    assert_refused(&mut node.command(2), FAILED, &words);
    let words = ["belongs to cluster `towline-kv`, not to `other`"];
    assert_refused(node.command(1).args(["--cluster", "other"]), FAILED, &words);
    let file = node.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let mut command = node.ports.serve(1, &file);
    command.args(["--bootstrap", "--peer", &node.ports.peer(1)]);
    assert_refused(&mut command, FAILED, &["data directory", &shown(&file)]);
    drop(node.lead(&mut node.bootstrap()));
}

/// T27: one of three nodes was started with one `--peer` left out, and nothing said so.
#[test]
fn a_founder_with_a_peer_left_out_is_refused_by_name_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let ports = [(); 3].map(|()| Ports::free());
    let start = |id: usize, peers: &[usize]| {
        let mut command = ports[id - 1].serve(id, &dir.path().join(id.to_string()));
        command.arg("--bootstrap");
        for peer in peers {
            command.args(["--peer", &ports[peer - 1].peer(*peer)]);
        }
        Process::start(&mut command, &dir.path().join(format!("{id}.log")))
    };
    let running = [start(1, &[1, 2, 3]), start(2, &[1, 2, 3]), start(3, &[1, 3])];
    let says = |id: usize, by: usize| {
        let status = ports[id - 1].json("/status")?;
        let refusal = status["refusals"].as_array()?.iter().find(|refusal| refusal["by"] == by)?.clone();
        let text = status["state"]["refused"].as_str()?.to_owned();
        (refusal["refusal"] == "founded with another list" && text.contains("compare their lists"))
            .then_some(())
    };
    for (id, by) in [(1, 3), (3, 1), (2, 3)] {
        wait(&format!("node {id} to name node {by}"), || says(id, by));
        let line = "a member founded this group with another list";
        wait("its line", || running[id - 1].log().contains(line).then_some(()));
    }
    assert!(ports.iter().all(|ports| !ports.leads()));
}

/// T9: a list binds at the founding only.
#[test]
fn another_list_at_a_later_start_is_one_line() {
    let node = SoloNode::new();
    drop(node.lead(&mut node.bootstrap()));
    let mut wider = node.bootstrap();
    for id in [2, 3] {
        wider.args(["--peer", &Ports::free().peer(id)]);
    }
    let running = node.lead(&mut wider);
    assert_eq!(running.log().matches("the start lists other founders than the group has").count(), 1);
}

#[test]
fn a_port_in_use_is_named() {
    let node = SoloNode::new();
    for port in [node.ports.redis, node.ports.raft, node.ports.http] {
        let held = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let address = format!("127.0.0.1:{port}");
        assert_refused(&mut node.bootstrap(), FAILED, &["cannot listen", &address, "in use"]);
        drop(held);
    }
    drop(node.lead(&mut node.bootstrap()));
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
