//! A crash during a restore leaves the state machine with the old state or the new one.

use crate::common::*;

type Disks = Arc<Mutex<BTreeMap<NodeId, ListDisk>>>;

struct RestoreCluster {
    cluster: Cluster,
    disks: Disks,
    behind: u64,
    loaded: usize,
}

impl RestoreCluster {
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

    /// Crashes the follower and compacts the logs of the others past its state.
    async fn leave_behind(&mut self) {
        let has = self.disk().at().index;
        self.cluster.crash(self.behind);
        eventually("the log is compacted", async || {
            self.loaded += 1;
            self.cluster.acked(1, format!("{}", self.loaded)).await;
            let first = first_index(&self.cluster, 1).await;
            if first > has + 1 { Ok(()) } else { Err(first) }
        })
        .await;
    }

    /// The leader's commands. Every sound state is a prefix of them.
    async fn whole(&self) -> Vec<Bytes> {
        self.cluster.commands(self.cluster.leader(1).await, 1).await
    }

    /// Restarts the follower. It must hold the old state or the new one, and catch up.
    async fn restarts_sound(&mut self, old: &[Bytes], what: &str) {
        let whole = self.whole().await;
        self.cluster.restart(self.behind).await;
        let found = self.cluster.commands(self.behind, 1).await;
        assert!(whole.starts_with(&found), "{what}: a mix: {found:?} of {whole:?}");
        assert!(found.starts_with(old), "{what}: {found:?} is older than {old:?}");
        let settled = self.cluster.settled(1).await;
        assert!(settled.len() >= self.loaded, "{what}: {} of {}", settled.len(), self.loaded);
    }
}

async fn cut_at_every_step(replacing: Replacing) {
    let mut setup = RestoreCluster::new(replacing).await;
    // The first restore runs without a cut, to count the steps.
    setup.leave_behind().await;
    setup.cluster.restart(setup.behind).await;
    setup.cluster.settled(1).await;
    let (disk, steps) = (setup.disk(), setup.disk().steps());
    assert!(disk.restores() >= 1 && steps >= 6, "{steps} steps");
    let mut lost = 0;
    for cut in [RestoreCut::Fatal, RestoreCut::Panic, RestoreCut::Hold] {
        for step in 1..=steps {
            let what = format!("{replacing:?}, {cut:?} at step {step}");
            setup.leave_behind().await;
            let old = {
                let disk = setup.disk().crash();
                ListMachine::new().stored_in(&disk).list().commands()
            };
            let disk = setup.disk();
            let cuts = disk.cuts();
            disk.cut_restore(step, cut);
            setup.cluster.restart(setup.behind).await;
            until(&what, || disk.cuts() > cuts).await;
            if cut == RestoreCut::Hold {
                // The power fails during the restore.
                assert!(disk.wait_held(DEADLINE));
                setup.cluster.net.kill(node_id(setup.behind));
                let left = setup.cluster.disks[&setup.behind].crash();
                setup.set_disk(disk.crash());
                disk.release();
                setup.cluster.crash(setup.behind);
                setup.cluster.disks.insert(setup.behind, left);
            } else {
                let group = setup.cluster.group(setup.behind, 1);
                until("quarantine", || group.state().role == Role::Down).await;
                let cause = group.state().down.unwrap();
                assert!(cause.contains(&format!("at step {step}")), "{what}: {cause}");
                setup.cluster.acked(1, format!("{}", setup.loaded)).await;
                setup.cluster.stop(setup.behind, Duration::ZERO).await;
            }
            lost += usize::from(setup.disk().at() == LogId::NONE);
            setup.restarts_sound(&old, &what).await;
        }
    }
    let expected = if replacing == Replacing::InPlace { 3 * 5 } else { 0 };
    assert!(lost >= expected, "{lost} cuts lost the state");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashes_in_a_restore_holds_the_old_state_or_the_new() {
    cut_at_every_step(Replacing::Aside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_crashes_while_it_overwrites_its_state_is_restored_from_the_pinned_file() {
    cut_at_every_step(Replacing::InPlace).await;
}

/// The state is lost, and the log does not begin at entry 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_lost_its_state_over_a_compacted_log_is_restored_or_refused() {
    let mut setup = RestoreCluster::new(Replacing::Aside).await;
    setup.leave_behind().await;
    setup.cluster.restart(setup.behind).await;
    setup.cluster.settled(1).await;
    setup.cluster.crash(setup.behind);
    let disk = setup.cluster.disks[&setup.behind].clone();
    setup.set_disk(ListDisk::new(Replacing::Aside));
    setup.cluster.disks.get_mut(&setup.behind).unwrap().snapshots = Default::default();
    let error = setup.cluster.try_restart(setup.behind).await.unwrap_err().to_string();
    assert!(error.contains("there is no snapshot to restore"), "{error}");
    assert_eq!(setup.disk().restores(), 0);
    setup.cluster.disks.insert(setup.behind, disk);
    setup.restarts_sound(&[], "lost").await;
    assert!(setup.disk().restores() >= 1);
}
