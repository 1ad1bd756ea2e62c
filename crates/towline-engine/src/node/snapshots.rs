//! Snapshots between the network, the shard and the files.

use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use tokio::sync::oneshot;
use towline_metrics::ByteTally;

use super::counters::Counters;
use super::inbox::{Control, ShardEvent, ShardSender};
use super::peers::Registry;
use super::waiter::answer;
use crate::config::ValidConfig;
use crate::core::{OfferVerdict, RetryPolicy, SnapshotPolicy};
use crate::ids::NodeId;
use crate::message::Message;
use crate::snapshot_store::SnapshotMeta;
use crate::snapshots::SnapshotGroups;
use crate::transport::{SnapshotOffer, SnapshotRefusal};

/// Asks the shard about offers.
pub(crate) struct NodeGroups {
    pub(crate) node: NodeId,
    pub(crate) registry: Registry,
    pub(crate) shard: ShardSender,
}

impl NodeGroups {
    /// A group that does not run here may be about to start: a leader that was told that this is the wrong node would
    /// not ask again for long.
    fn check(&self, offer: &SnapshotOffer) -> Result<(), SnapshotRefusal> {
        let registry = self.registry.read().unwrap_or_else(PoisonError::into_inner);
        if registry.contains_key(&offer.meta.head.group) {
            return Ok(());
        }
        match offer.message.to == self.node && offer.meta.head.conf_state.contains(self.node) {
            true => Err(not_running()),
            false => Err(SnapshotRefusal::WrongNode),
        }
    }

    async fn ask<T>(
        &self,
        control: Control,
        answered: oneshot::Receiver<Result<T, SnapshotRefusal>>,
    ) -> Result<T, SnapshotRefusal> {
        self.shard.post(ShardEvent::Control(control));
        answered.await.unwrap_or_else(|_| Err(not_running()))
    }
}

fn not_running() -> SnapshotRefusal {
    SnapshotRefusal::NotTaken { detail: "the group does not run here now".into() }
}

#[async_trait]
impl SnapshotGroups for NodeGroups {
    async fn offer(&self, from: NodeId, offer: SnapshotOffer) -> Result<OfferVerdict, SnapshotRefusal> {
        self.check(&offer)?;
        let (answer, answered) = answer();
        self.ask(Control::Offered { from, offer: Box::new(offer), answer }, answered).await
    }

    async fn receive(
        &self,
        from: NodeId,
        message: Message,
        meta: SnapshotMeta,
    ) -> Result<u64, SnapshotRefusal> {
        let (answer, answered) = answer();
        self.ask(Control::Received { from, received: Box::new((message, meta)), answer }, answered).await
    }
}

/// Counts the bytes of a transfer that goes out when it ends.
pub(crate) fn sent(counters: Arc<Counters>) -> Arc<dyn Fn(NodeId) -> ByteTally + Send + Sync> {
    Arc::new(move |peer| ByteTally::new(counters.snapshot_sent(peer)))
}

/// The settings as the core counts them: in ticks.
pub(crate) fn policy(config: &ValidConfig) -> SnapshotPolicy {
    SnapshotPolicy {
        every_entries: config.snapshot_entries,
        every_bytes: config.snapshot_log_bytes.as_u64(),
        trailing_entries: config.snapshot_trailing_entries,
        pin_bytes_max: config.snapshot_pin_bytes_max.as_u64(),
        retry: RetryPolicy {
            wait_ticks_min: config.ticks(config.heartbeat_interval),
            wait_ticks_max: config.ticks(config.snapshot_backoff_max),
        },
    }
}
