//! A state machine that is cut off while it is restored: what it holds after a restart is the old state or the new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::ids::NodeId;
use towline_engine::message::LogId;
use towline_engine::status::Role;
use towline_testkit::cluster::{Cluster, DEADLINE, Plan, node_id, quick, until};
use towline_testkit::list::{ListDisk, ListMachine, Replacing, RestoreCut};

type Disks = Arc<Mutex<BTreeMap<NodeId, ListDisk>>>;

struct Bench {
    cluster: Cluster,
    disks: Disks,
    behind: u64,
    loaded: usize,
}

impl Bench {
    async fn new(replacing: Replacing) -> Self {
        let config = Config { snapshot_entries: 20, snapshot_trailing_entries: 3, ..quick() };
        let disks: Disks = Arc::default();
        let of = disks.clone();
        let plan = Plan::new(3, 1).config(config).machine(move |node, _| {
            let mut disks = of.lock().unwrap();
            ListMachine::new().stored_in(disks.entry(node).or_insert_with(|| ListDisk::new(replacing)))
        });
        let cluster = plan.start().await;
        let behind = cluster.leader(1).await % 3 + 1;
        Self { cluster, disks, behind, loaded: 0 }
    }

    fn disk(&self) -> ListDisk {
        self.disks.lock().unwrap()[&node_id(self.behind)].clone()
    }

    fn set_disk(&self, disk: ListDisk) {
        self.disks.lock().unwrap().insert(node_id(self.behind), disk);
    }

    /// The node that is behind goes down, and the others forget what it lacks.
    async fn leave_behind(&mut self) {
        let has = self.disk().at().index;
        self.cluster.crash(self.behind);
        let leader = self.cluster.leader(1).await;
        let (group, end) = (self.cluster.group(leader, 1), Instant::now() + DEADLINE);
        while group.status().await.unwrap().first_index <= has + 1 {
            assert!(Instant::now() < end, "the log is not compacted");
            self.loaded += 1;
            self.cluster.acked(1, format!("{}", self.loaded)).await;
        }
    }

    /// What the others hold, of which every sound state is a beginning.
    async fn whole(&self) -> Vec<Bytes> {
        self.cluster.commands(self.cluster.leader(1).await, 1).await
    }

    /// Started again, with whatever is on its disks: at once it holds the old state or the new one, and catches up.
    async fn comes_back(&mut self, old: &[Bytes], what: &str) {
        let whole = self.whole().await;
        self.cluster.restart(self.behind).await;
        let found = self.cluster.commands(self.behind, 1).await;
        assert!(whole.starts_with(&found), "{what}: a mix: {found:?} of {whole:?}");
        assert!(found.starts_with(old), "{what}: {found:?} is older than {old:?}");
        let settled = self.cluster.settled(1).await;
        assert!(settled.len() >= self.loaded, "{what}: {} of {}", settled.len(), self.loaded);
    }
}

/// Case 68.
async fn cut_at_every_step(replacing: Replacing) {
    let mut bench = Bench::new(replacing).await;
    // Once without a cut, to count the steps.
    bench.leave_behind().await;
    bench.cluster.restart(bench.behind).await;
    bench.cluster.settled(1).await;
    let (disk, steps) = (bench.disk(), bench.disk().steps());
    assert!(disk.restores() >= 1 && steps >= 6, "{steps} steps");
    let mut lost = 0;
    for cut in [RestoreCut::Fatal, RestoreCut::Panic, RestoreCut::Hold] {
        for step in 1..=steps {
            let what = format!("{replacing:?}, {cut:?} at step {step}");
            bench.leave_behind().await;
            let old = {
                let disk = bench.disk().crash();
                ListMachine::new().stored_in(&disk).list().commands()
            };
            let disk = bench.disk();
            let cuts = disk.cuts();
            disk.cut_restore(step, cut);
            bench.cluster.restart(bench.behind).await;
            until(&what, || disk.cuts() > cuts).await;
            if cut == RestoreCut::Hold {
                // The power fails in the middle of it.
                assert!(disk.wait_held(DEADLINE));
                bench.cluster.net.kill(node_id(bench.behind));
                let left = bench.cluster.disks[&bench.behind].crash();
                bench.set_disk(disk.crash());
                disk.release();
                bench.cluster.crash(bench.behind);
                bench.cluster.disks.insert(bench.behind, left);
            } else {
                let group = bench.cluster.group(bench.behind, 1);
                until("quarantine", || group.state().role == Role::Down).await;
                let cause = group.state().down.unwrap();
                assert!(cause.contains(&format!("at step {step}")), "{what}: {cause}");
                // The others go on.
                bench.cluster.acked(1, format!("{}", bench.loaded)).await;
                bench.cluster.stop(bench.behind, Duration::ZERO).await;
            }
            lost += usize::from(bench.disk().at() == LogId::NONE);
            bench.comes_back(&old, &what).await;
        }
    }
    let expected = if replacing == Replacing::InPlace { 3 * 5 } else { 0 };
    assert!(lost >= expected, "{lost} restores were cut off with the state lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_cut_off_while_it_is_restored_holds_the_old_state_or_the_new() {
    cut_at_every_step(Replacing::Aside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_cut_off_while_it_overwrites_its_state_is_restored_from_the_pinned_file() {
    cut_at_every_step(Replacing::InPlace).await;
}

/// Case 68: its state lost, with a log that does not reach back to the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_state_over_a_compacted_log_is_restored_or_refused() {
    let mut bench = Bench::new(Replacing::Aside).await;
    bench.leave_behind().await;
    bench.cluster.restart(bench.behind).await;
    bench.cluster.settled(1).await;
    bench.cluster.crash(bench.behind);
    let disk = bench.cluster.disks[&bench.behind].clone();
    bench.set_disk(ListDisk::new(Replacing::Aside));
    bench.cluster.disks.get_mut(&bench.behind).unwrap().snapshots = Default::default();
    let error = bench.cluster.try_restart(bench.behind).await.unwrap_err().to_string();
    assert!(error.contains("there is no snapshot to restore"), "{error}");
    assert_eq!(bench.disk().restores(), 0);
    bench.cluster.disks.insert(bench.behind, disk);
    bench.comes_back(&[], "lost").await;
    assert!(bench.disk().restores() >= 1);
}
