//! QUIC and certificates.

use std::fs;

use crate::common::{Cluster, Ports, SETTINGS, program, run, wait};

#[test]
fn a_cluster_over_quic_survives_its_leader() {
    let mut cluster = Cluster::secure(&["quic"; 3], SETTINGS);
    let leader = cluster.leader();
    cluster.write_somewhere(&[leader], "before", "1");
    cluster.kill(leader);
    let others = cluster.others(leader);
    cluster.leader_among(&others);
    cluster.write_somewhere(&others, "after", "2");
    cluster.restart(leader);
    cluster.leader();
    cluster.assert_equal();
}

#[test]
fn a_hangup_reloads_the_certificates() {
    let mut cluster = Cluster::secure(&["quic"], SETTINGS);
    cluster.process(0).signal("HUP");
    wait("a reload", || cluster.process(0).log().contains("certificates reloaded").then_some(()));
    fs::write(cluster.certs().join("node-1.pem"), "nothing").unwrap();
    cluster.process(0).signal("HUP");
    wait("a refused reload", || cluster.process(0).log().contains("were not reloaded").then_some(()));
    cluster.write_somewhere(&[0], "goes", "on");
}

#[test]
fn wrong_transports_and_certificates_are_refused_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    assert!(run(program().args(["certs", "--dir"]).arg(&certs)).status.success());
    let serve = |scheme, id: usize| {
        let ports = Ports { scheme, ..Ports::free() };
        let mut command = ports.serve(id, &dir.path().join("data"));
        command.args(["--bootstrap", "--peer", &ports.peer(id)]);
        command
    };
    let said = |command: &mut std::process::Command, code| {
        let out = run(command);
        assert_eq!(out.status.code(), Some(code), "{command:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(said(&mut serve("quic", 1), 2).contains("give --tls DIR"));
    assert!(said(&mut serve("tcp", 1), 2).contains("no transport `tcp`"));
    assert!(said(serve("quic", 4).arg("--tls").arg(&certs), 1).contains("node-4"));
    fs::copy(certs.join("node-2.pem"), certs.join("node-1.pem")).unwrap();
    fs::copy(certs.join("node-2.key"), certs.join("node-1.key")).unwrap();
    assert!(said(serve("quic", 1).arg("--tls").arg(&certs), 1).contains("is of node 2"));
}

#[test]
fn followers_over_both_transports_get_snapshots() {
    const SCHEMES: [&str; 3] = ["quic", "grpc", "quic"];
    const OVER_GRPC: usize = 1;
    // The log keeps less than a stopped follower misses.
    let settings = format!("{SETTINGS}snapshot_entries = 50\nsnapshot_trailing_entries = 5\n");
    let mut cluster = Cluster::secure(&SCHEMES, &settings);
    // A leader with QUIC has a follower of each kind.
    while cluster.leader() == OVER_GRPC {
        cluster.kill(OVER_GRPC);
        cluster.leader_among(&cluster.others(OVER_GRPC));
        cluster.restart(OVER_GRPC);
    }
    for scheme in ["grpc", "quic"] {
        let leader = cluster.leader();
        let behind = cluster.others(leader).into_iter().find(|at| SCHEMES[*at] == scheme).unwrap();
        cluster.kill(behind);
        let others = cluster.others(behind);
        for number in 0..150 {
            cluster.write_somewhere(&others, &format!("{scheme}-{number}"), "value");
        }
        cluster.restart(behind);
        cluster.leader();
        cluster.assert_equal();
        let transport = format!("transport=\"{scheme}\"");
        let labels = ["direction=\"sent\"", "outcome=\"finished\"", &transport];
        let sent = |at: &usize| cluster.ports[*at].counter("towline_snapshot_transfers_total", &labels);
        wait(&format!("a snapshot over {scheme}"), || others.iter().any(|at| sent(at) > 0).then_some(()));
    }
}

/// T14: the survivors warned of too many connections when a killed follower came back.
#[test]
fn a_follower_that_is_killed_and_comes_back_over_quic_gives_no_warning_of_too_many_connections() {
    let mut cluster = Cluster::secure(&["quic"; 3], SETTINGS);
    let leader = cluster.leader();
    let follower = cluster.others(leader)[0];
    for _ in 0..3 {
        cluster.kill(follower);
        cluster.restart(follower);
        cluster.leader();
    }
    for survivor in cluster.others(follower) {
        let log = cluster.process(survivor).log();
        assert!(!log.contains("too many connections"), "node {}:\n{log}", survivor + 1);
    }
}
