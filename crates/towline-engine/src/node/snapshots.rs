//! Connects snapshot transfers to the shard and the settings.

use std::sync::PoisonError;

use async_trait::async_trait;
use tokio::sync::oneshot;

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

/// Passes offers and received snapshots to the shard.
pub(crate) struct NodeGroups {
    pub(crate) node: NodeId,
    pub(crate) registry: Registry,
    pub(crate) shard: ShardSender,
}

impl NodeGroups {
    /// Refuses an offer for a group that does not run. The refusal of a member is not `WrongNode`, because its group may be
    /// about to start: `WrongNode` is lasting, and after a lasting refusal the leader waits much longer.
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

/// The core's snapshot settings, with times in ticks.
pub(crate) fn policy(config: &ValidConfig) -> SnapshotPolicy {
    SnapshotPolicy {
        every_entries: config.snapshot_entries,
        every_bytes: config.snapshot_log_bytes.as_u64(),
        trailing_entries: config.snapshot_trailing_entries,
        trailing_bytes: config.snapshot_trailing_bytes.as_u64(),
        pin_bytes_max: config.snapshot_pin_bytes_max.as_u64(),
        retry: RetryPolicy {
            wait_ticks_min: config.ticks(config.heartbeat_interval),
            wait_ticks_max: config.ticks(config.snapshot_backoff_max),
        },
    }
}
