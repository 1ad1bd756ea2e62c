//! The real program over QUIC and with certificates.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::fs;

use crate::common::{Cluster, Ports, alone, program, run, wait};

fn survives_its_leader(mut cluster: Cluster) {
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
fn a_cluster_over_quic_survives_its_leader() {
    let _alone = alone();
    survives_its_leader(Cluster::secure(&["quic"; 3]));
}

#[test]
fn a_cluster_may_mix_transports() {
    let _alone = alone();
    survives_its_leader(Cluster::secure(&["quic", "grpc", "quic"]));
}

#[test]
fn a_node_of_another_authority_disturbs_nothing_and_is_counted() {
    let _alone = alone();
    let mut cluster = Cluster::secure(&["quic", "quic", "grpc"]);
    // The last one is not the leader's whole majority.
    cluster.kill(2);
    let others = [0, 1];
    let leader = cluster.leader_among(&others);
    let foreign = cluster.dir.path().join("foreign");
    assert!(run(program().args(["certs", "--dir"]).arg(&foreign)).status.success());
    for file in ["node-3.pem", "node-3.key"] {
        fs::copy(foreign.join(file), cluster.certs().join(file)).unwrap();
    }
    cluster.restart(2);
    for at in others {
        wait("refusals", || {
            let cause = "cause=\"certificate_unknown_authority\"";
            (cluster.ports[at].counter("towline_inbound_rejects_total", cause) > 0).then_some(())
        });
    }
    assert!(!cluster.ports[2].is_healthy());
    assert!(cluster.ports[leader].leads());
    cluster.write_somewhere(&[leader], "undisturbed", "1");
}

#[test]
fn certificates_are_read_again_at_a_hangup() {
    let _alone = alone();
    let mut cluster = Cluster::secure(&["quic"]);
    cluster.process(0).signal("HUP");
    wait("a reload", || cluster.process(0).log().contains("certificates reloaded").then_some(()));
    fs::write(cluster.certs().join("node-1.pem"), "nothing").unwrap();
    cluster.process(0).signal("HUP");
    wait("a refused reload", || cluster.process(0).log().contains("were not reloaded").then_some(()));
    cluster.write_somewhere(&[0], "goes", "on");
}

#[test]
fn certificates_are_made_once_and_their_keys_are_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let first = run(program().args(["certs", "--nodes", "2", "--dir"]).arg(&certs));
    assert!(first.status.success());
    for file in ["ca.key", "node-1.key", "node-2.key"] {
        assert_eq!(fs::metadata(certs.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = fs::read(certs.join("node-1.key")).unwrap();
    let second = run(program().args(["certs", "--nodes", "3", "--dir"]).arg(&certs));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("kept") && said.contains("created"), "{said}");
    assert_eq!(fs::read(certs.join("node-1.key")).unwrap(), before);
}

#[test]
fn what_cannot_work_is_refused_with_the_way_out() {
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

/// The one command, with processes of its own.
#[test]
fn one_command_runs_a_cluster_over_quic() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let offsets: Vec<u16> = [0, 100, 200].iter().flat_map(|base| (1..=3).map(move |id| base + id)).collect();
    let first = crate::common::free_ports(&offsets);
    let mut command = program();
    command.args(["cluster", "--transport", "quic", "--base-port", &first.to_string(), "--data"]);
    command.arg(dir.path().join("data"));
    let mut supervisor = crate::common::Process::start(&mut command, &dir.path().join("log"));
    let nodes: Vec<Ports> = (1..=3)
        .map(|id| Ports { scheme: "quic", redis: first + id, raft: first + 100 + id, http: first + 200 + id })
        .collect();
    wait("a leader", || nodes.iter().any(Ports::leads).then_some(()));
    supervisor.signal("TERM");
    assert!(supervisor.wait_end().success(), "{}", supervisor.log());
}
