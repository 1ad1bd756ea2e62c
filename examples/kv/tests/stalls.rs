//! Nodes whose disk stands still.

use std::fs;
use std::process::Command;
use std::time::Instant;

use crate::common::{Cluster, ELECTION_TIMEOUT, Process, run, wait};

/// `strace` delays each sync of one thread, by far longer than the test lasts. Its end ends the delay.
struct Hang(#[allow(dead_code)] Process);

impl Hang {
    fn of_log(pid: u32, log: &std::path::Path) -> Self {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let thread = threads.map(|task| task.unwrap().path()).find(|task| {
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "towline-log")
        });
        let thread = thread.expect("the thread that writes the log");
        let number = thread.file_name().unwrap().to_str().unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-q", "-p", number, "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        strace.args(["-e", "inject=fdatasync,fsync:delay_enter=600000000"]);
        let strace = Process::start(&mut strace, log);
        wait("strace is attached", || {
            let status = fs::read_to_string(thread.join("status")).unwrap();
            (!status.contains("TracerPid:\t0\n")).then_some(())
        });
        Self(strace)
    }
}

/// Where the kernel or the machine does not let one process trace another, the test says so; CI has it.
fn can_trace() -> bool {
    let tries =
        std::panic::catch_unwind(|| run(Command::new("strace").args(["-q", "-o", "/dev/null", "true"])));
    let can = tries.is_ok_and(|output| output.status.success());
    assert!(can || std::env::var_os("CI").is_none(), "CI has no strace");
    if !can {
        eprintln!("skipped: strace cannot trace here");
    }
    can
}

/// The leader once stayed leader, served nothing and logged nothing.
#[test]
fn another_node_leads_while_the_disk_of_the_leader_hangs_and_the_sick_node_follows_afterwards() {
    if !can_trace() {
        return;
    }
    let mut cluster = Cluster::start(3);
    let sick = cluster.leader();
    let others = cluster.others(sick);
    cluster.write_somewhere(&[sick], "k", "before");
    let log = cluster.dir.path().join("strace.log");
    let hang = Hang::of_log(cluster.process(sick).pid(), &log);
    let started = Instant::now();
    let mut client = cluster.ports[sick].client().unwrap();
    let stuck =
        std::thread::spawn(move || redis::cmd("SET").arg("k").arg("meanwhile").query::<String>(&mut client));
    cluster.write_somewhere(&others, "k", "after");
    let took = started.elapsed();
    assert!(took < 5 * ELECTION_TIMEOUT, "clients write again after {took:?}");
    let _either = stuck.join().unwrap(); // applied, or its outcome is unknown
    let said = cluster.process(sick).log();
    assert!(said.contains("a log write has not completed: this leader hands over"), "{said}");
    let role = |cluster: &Cluster| cluster.ports[sick].json("/status").unwrap()["state"]["role"].clone();
    assert_eq!(role(&cluster), "follower");
    drop(hang);
    cluster.assert_equal();
    assert_eq!(cluster.process(sick).ended(), None);
}
