//! Faults that run: each begins here, and ends with its drop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::room::Room;
use super::schedule::{At, Fault, FaultKind, OneWay};
use super::syncs::SlowSyncs;
use crate::Result;
use crate::cluster::{Cluster, NODES, RIGHT_CLOCK, write_clock};
use crate::process::Stopped;
use crate::relay::Way;

/// Longer than any fault lasts.
const HANGS: Duration = Duration::from_secs(600);

/// A fault that runs. Its drop ends it, except that only [`end`](Self::end) starts killed nodes again.
pub(super) struct RunningFault {
    killed: Vec<usize>,
    /// Whether the processes of the nodes answer no question.
    pub(super) silences: bool,
    _ends_with_its_drop: Vec<Box<dyn Send>>,
}

/// A clock that is wrong. Its drop sets the clock right.
pub(super) struct SkewedClock(PathBuf);

impl Drop for SkewedClock {
    fn drop(&mut self) {
        let _ = write_clock(&self.0, RIGHT_CLOCK);
    }
}

/// The nodes of a fault, of which `leader` leads now.
pub(super) fn victims(at: At, leader: usize) -> Vec<usize> {
    match at {
        At::Leader => vec![leader],
        At::Node(node) => vec![node],
        At::Everyone => (0..NODES).collect(),
    }
}

impl RunningFault {
    pub(super) async fn begin(
        fault: &Fault,
        nodes: &[usize],
        cluster: &mut Cluster,
        rooms: &BTreeMap<usize, Room>,
        data: &Path,
    ) -> Result<Self> {
        let (mut killed, mut ends): (_, Vec<Box<dyn Send>>) = (Vec::new(), Vec::new());
        if matches!(fault.kind, FaultKind::OneWayLink | FaultKind::SlowLink) {
            let way = if fault.kind == FaultKind::SlowLink { Way::Slow(fault.delay) } else { Way::Cut };
            let relays = cluster.relays().ok_or("the cluster has no relays")?;
            ends.push(Box::new(relays.change(&pairs(fault, nodes), way)));
        }
        for node in nodes {
            match fault.kind {
                FaultKind::Kill => {
                    cluster.kill(*node)?;
                    killed.push(*node);
                }
                FaultKind::Stop => ends.push(Box::new(Stopped::new(cluster.process_id(*node)?)?)),
                FaultKind::HangingDisk | FaultKind::SlowDisk => {
                    let delay = if fault.kind == FaultKind::SlowDisk { fault.delay } else { HANGS };
                    let (process, log) = (cluster.process_id(*node)?, data.join("strace.log"));
                    ends.push(Box::new(SlowSyncs::begin(process, delay, &log).await?));
                }
                FaultKind::FullDisk => {
                    let room = rooms.get(node).ok_or("the node has no disk")?;
                    ends.push(Box::new(room.fill(fault.left)?));
                }
                FaultKind::OneWayLink | FaultKind::SlowLink => {}
                FaultKind::SkewedClock => {
                    let file = cluster.clock_file(*node);
                    write_clock(&file, &format!("{:+}", fault.skew))?;
                    ends.push(Box::new(SkewedClock(file)));
                }
            }
        }
        let silences = matches!(fault.kind, FaultKind::Kill | FaultKind::Stop);
        Ok(Self { killed, silences, _ends_with_its_drop: ends })
    }

    pub(super) fn end(self, cluster: &mut Cluster) -> Result<()> {
        self.killed.iter().try_for_each(|node| cluster.restart(*node))
    }
}

/// Senders and receivers. A slow link is slow in both directions.
fn pairs(fault: &Fault, nodes: &[usize]) -> Vec<(usize, usize)> {
    let slow = fault.kind == FaultKind::SlowLink;
    let mut pairs = Vec::new();
    for node in nodes {
        for step in 1..NODES {
            let other = (node + step) % NODES;
            let of_pair = slow || step == 1 || !matches!(fault.way, OneWay::ToNext | OneWay::FromNext);
            let to = slow || matches!(fault.way, OneWay::ToAll | OneWay::ToNext);
            let from = slow || !to;
            pairs.extend((of_pair && to).then_some((*node, other)));
            pairs.extend((of_pair && from).then_some((other, *node)));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_link_leaves_the_other_direction() {
        let fault = |way| Fault {
            kind: FaultKind::OneWayLink,
            at: At::Node(1),
            delay: Duration::ZERO,
            skew: 0,
            left: 0,
            way,
        };
        assert_eq!(pairs(&fault(OneWay::ToAll), &[1]), [(1, 2), (1, 0)]);
        assert_eq!(pairs(&fault(OneWay::FromNext), &[1]), [(2, 1)]);
        let slow = Fault { kind: FaultKind::SlowLink, ..fault(OneWay::ToNext) };
        assert_eq!(pairs(&slow, &[1]), [(1, 2), (2, 1), (1, 0), (0, 1)]);
    }
}
