//! A node on a data directory whose log disk fails: at each of its writes and syncs in turn.

use std::path::{Path, PathBuf};

use crate::common::*;
use towline_storage::faults::{DiskFaults, DiskOp};

const GROUPS: [u64; 2] = [1, 2];

/// Proposals of the script, to both groups in turn.
const SCRIPT: u64 = 8;

/// The beginning of every error that it causes.
const CAUSE: &str = "the log cannot be written: log write failed during ";

/// One voter on the directory, with a log file so small that the script fills more than one.
async fn start(path: &Path, faults: &DiskFaults) -> Cluster {
    let (path, faults): (PathBuf, _) = (path.into(), faults.clone());
    let mut config = DataDirConfig::default();
    config.log.file_bytes = ByteSize::bytes(512);
    // A single node may tick fast, so elections are short.
    let quicker = {
        let ms = Duration::from_millis;
        Config {
            tick: ms(2),
            heartbeat_interval: ms(8),
            election_timeout_min: ms(80),
            election_timeout_max: ms(160),
            lane_backoff_max: ms(50),
            ..quick()
        }
    };
    let plan = Plan::new(1, GROUPS.len() as u64).config(quicker);
    let plan = plan.storage(move |_, _| {
        DataDir::open_with_faults(&path, config.clone(), &faults).expect("opens").into()
    });
    let cluster = plan.start().await;
    for group in GROUPS {
        cluster.leader(group).await;
    }
    cluster
}

fn is_poisoned(cause: &str) -> bool {
    cause.starts_with(CAUSE) && cause.ends_with("(os error 5)")
}

fn check_error(error: &ProposeError) {
    let (ProposeError::Uncertain { cause: UncertainCause::Down(cause) } | ProposeError::Stopped { cause }) =
        error
    else {
        panic!("{error:?}")
    };
    assert!(is_poisoned(cause), "{cause}");
}

/// On the real log: EIO at the n-th write or sync, for each n.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_down_at_each_failed_write_or_sync_and_keeps_what_it_acknowledged() {
    let mut failed = Vec::new();
    for number in 1.. {
        let (dir, faults) = (tempfile::tempdir().unwrap(), DiskFaults::new());
        let cluster = start(dir.path(), &faults).await;
        faults.fail_after(number);
        let mut acked = [Vec::new(), Vec::new()];
        let mut lost = None;
        for n in 0..SCRIPT {
            let (group, command) = (n % 2 + 1, Bytes::from(format!("{n} {}", ".".repeat(100))));
            match within(cluster.group(1, group).propose(command.clone())).await {
                Ok(_) => {
                    assert_eq!(faults.failed(), None, "{number}: acknowledged, and not written");
                    acked[n as usize % 2].push(command);
                }
                Err(error) => {
                    check_error(&error);
                    lost = Some((group, command, error));
                    break;
                }
            }
        }
        let Some((of, command, error)) = lost else {
            assert_eq!(faults.failed(), None, "{number}: no caller got an error");
            break;
        };
        failed.extend(faults.failed());

        // The groups share the log: all go down with the cause.
        for group in GROUPS {
            let handle = cluster.group(1, group);
            until("the node is down", || handle.state().role == Role::Down).await;
            assert!(is_poisoned(&handle.state().down.unwrap()), "{:?}", handle.state());
            let late = within(handle.propose("late")).await.unwrap_err();
            check_error(&late);
            assert_eq!(late.outcome(), Outcome::NeverHappened);
            assert!(within(handle.read(Consistency::Linearizable)).await.is_err());
        }
        let node = &cluster.up[&1].node;
        let again = node.group(GroupId::new(1), ListMachine::new()).start(Start::Restart).await;
        assert!(matches!(again, Err(StartError::Log { .. })), "{again:?}");
        drop(cluster);

        let cluster = start(dir.path(), &DiskFaults::new()).await;
        for group in GROUPS {
            let (found, acked) = (cluster.settled(group).await, &acked[group as usize - 1]);
            assert!(found.starts_with(acked), "{number}: {acked:?} was acknowledged, {found:?} is there");
            // Only an uncertain command may be there besides.
            let more = &found[acked.len()..];
            let uncertain = of == group && error.outcome() == Outcome::MayHaveHappened;
            assert!(more.is_empty() || (uncertain && more == [command.clone()]), "{number}: {more:?}");
        }
    }
    for op in [DiskOp::Write, DiskOp::Sync] {
        let count = failed.iter().filter(|failed| **failed == op).count() as u64;
        assert!(count >= SCRIPT, "{op:?} failed {count} times only");
    }
}
