//! What the tests of transfers share: the inputs of a transfer, and a store without files.

use std::time::Duration;

use super::TransferSettings;
use crate::ids::{GroupId, NodeId};
use crate::message::{ConfState, LogId, MemberTable};
use crate::snapshot_store::{
    ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError, SnapshotWriter,
};

pub(super) const DEADLINE: Duration = Duration::from_secs(20);
pub(super) const CHUNK_BYTES: usize = 4;
pub(super) const CONTENT: ContentId = ContentId([7; 16]);

pub(super) fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

pub(super) fn settings(bytes_per_second: u64) -> TransferSettings {
    TransferSettings {
        chunk_bytes: CHUNK_BYTES,
        bytes_max: 100,
        receives_max: 1,
        bytes_per_second,
        offer_timeout: DEADLINE,
        progress_timeout: DEADLINE,
        phase_timeout: DEADLINE,
    }
}

pub(super) fn meta(length: u64, content: ContentId) -> SnapshotMeta {
    let (conf_state, members) = (ConfState::default(), MemberTable::new());
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index: 7, term: 2 },
        conf_state,
        members,
    };
    SnapshotMeta { head, length, content }
}

type StoreResult<T> = Result<T, SnapshotStoreError>;
type Complete = dyn Fn(GroupId) -> Vec<SnapshotMeta> + Send + Sync;
type Open = dyn Fn(&SnapshotMeta, u64) -> StoreResult<Box<dyn SnapshotReader>> + Send + Sync;
type Receive =
    dyn Fn(&SnapshotMeta, &mut dyn FnMut(u64) -> bool) -> StoreResult<Box<dyn SnapshotWriter>> + Send + Sync;
type CheckRoom = dyn Fn(u64) -> StoreResult<()> + Send + Sync;
type Retain = dyn Fn(&[ContentId]) + Send + Sync;

/// A store without files. Tests replace the calls that matter to them.
pub(crate) struct TestStore {
    pub(crate) complete: Box<Complete>,
    pub(crate) open: Box<Open>,
    pub(crate) receive: Box<Receive>,
    pub(crate) retain: Box<Retain>,
    pub(crate) check_room: Box<CheckRoom>,
}

impl Default for TestStore {
    fn default() -> Self {
        Self {
            complete: Box::new(|_| Vec::new()),
            open: Box::new(|meta, _| Err(SnapshotStoreError::Missing { content: meta.content })),
            receive: Box::new(|meta, _| Err(SnapshotStoreError::Busy { content: meta.content })),
            retain: Box::new(|_| ()),
            check_room: Box::new(|_| Ok(())),
        }
    }
}

impl SnapshotStore for TestStore {
    fn complete(&self, group: GroupId) -> StoreResult<Vec<SnapshotMeta>> {
        Ok((self.complete)(group))
    }

    fn find(&self, group: GroupId, content: ContentId) -> StoreResult<Option<SnapshotMeta>> {
        Ok((self.complete)(group).into_iter().find(|meta| meta.content == content))
    }

    fn create(&self, _: &SnapshotHead) -> StoreResult<Box<dyn SnapshotWriter>> {
        Err(SnapshotStoreError::Busy { content: CONTENT })
    }

    fn check_room(&self, bytes: u64) -> StoreResult<()> {
        (self.check_room)(bytes)
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> StoreResult<Box<dyn SnapshotWriter>> {
        (self.receive)(meta, goes_on)
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> StoreResult<Box<dyn SnapshotReader>> {
        (self.open)(meta, offset)
    }

    fn retain(&self, _: GroupId, keep: &[ContentId]) -> StoreResult<()> {
        (self.retain)(keep);
        Ok(())
    }
}
