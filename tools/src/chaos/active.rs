//! Faults that run: each begins here, and ends with its drop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::room::{FullDisk, Room};
use super::schedule::{At, Fault, Kind, OneWay};
use super::syncs::SlowSyncs;
use crate::Result;
use crate::cluster::{Cluster, NODES, RIGHT_CLOCK, write_clock};
use crate::process::Stopped;
use crate::relay::{ChangedWays, Way};

/// Longer than any fault lasts.
const HANGS: Duration = Duration::from_secs(600);

/// A fault that runs. Its drop ends it, except that only [`end`](Self::end) starts killed nodes again.
pub(super) enum Active {
    Killed(Vec<usize>),
    Stopped(Vec<Stopped>),
    Syncs(Vec<SlowSyncs>),
    Full(Vec<FullDisk>),
    Ways(ChangedWays),
    Clocks(Vec<SkewedClock>),
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

impl Active {
    pub(super) async fn begin(
        fault: &Fault,
        nodes: &[usize],
        cluster: &mut Cluster,
        rooms: &BTreeMap<usize, Room>,
        data: &Path,
    ) -> Result<Self> {
        Ok(match fault.kind {
            Kind::Kill => {
                nodes.iter().try_for_each(|node| cluster.kill(*node))?;
                Self::Killed(nodes.to_vec())
            }
            Kind::Stop => {
                let stop = |node: &usize| Stopped::new(cluster.process_id(*node)?);
                Self::Stopped(nodes.iter().map(stop).collect::<Result<_>>()?)
            }
            Kind::HangingDisk | Kind::SlowDisk => {
                let delay = if fault.kind == Kind::SlowDisk { fault.delay } else { HANGS };
                let mut syncs = Vec::new();
                for node in nodes {
                    let process = cluster.process_id(*node)?;
                    syncs.push(SlowSyncs::begin(process, delay, &data.join("strace.log")).await?);
                }
                Self::Syncs(syncs)
            }
            Kind::FullDisk => {
                let fill = |node: &usize| rooms.get(node).ok_or("the node has no disk")?.fill(fault.left);
                Self::Full(nodes.iter().map(fill).collect::<Result<_>>()?)
            }
            Kind::OneWayLink | Kind::SlowLink => {
                let way = if fault.kind == Kind::SlowLink { Way::Slow(fault.delay) } else { Way::Cut };
                let relays = cluster.relays().ok_or("the cluster has no relays")?;
                Self::Ways(relays.change(&pairs(fault, nodes), way))
            }
            Kind::SkewedClock => {
                let mut clocks = Vec::new();
                for node in nodes {
                    let file = cluster.clock_file(*node);
                    write_clock(&file, &format!("{:+}", fault.skew))?;
                    clocks.push(SkewedClock(file));
                }
                Self::Clocks(clocks)
            }
        })
    }

    pub(super) fn end(self, cluster: &mut Cluster) -> Result<()> {
        match self {
            Self::Killed(nodes) => nodes.into_iter().try_for_each(|node| cluster.restart(node)),
            other => {
                drop(other);
                Ok(())
            }
        }
    }

    /// Whether the processes of the nodes answer no question.
    pub(super) fn silences(&self) -> bool {
        matches!(self, Self::Killed(_) | Self::Stopped(_))
    }
}

/// Senders and receivers. A slow link is slow in both directions.
fn pairs(fault: &Fault, nodes: &[usize]) -> Vec<(usize, usize)> {
    let slow = fault.kind == Kind::SlowLink;
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
            kind: Kind::OneWayLink,
            at: At::Node(1),
            delay: Duration::ZERO,
            skew: 0,
            left: 0,
            way,
        };
        assert_eq!(pairs(&fault(OneWay::ToAll), &[1]), [(1, 2), (1, 0)]);
        assert_eq!(pairs(&fault(OneWay::FromNext), &[1]), [(2, 1)]);
        let slow = Fault { kind: Kind::SlowLink, ..fault(OneWay::ToNext) };
        assert_eq!(pairs(&slow, &[1]), [(1, 2), (2, 1), (1, 0), (0, 1)]);
    }
}
