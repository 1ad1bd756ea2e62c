//! The snapshot files, in memory: finding a snapshot needs no disk access.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use towline_engine::ids::GroupId;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::{ContentId, SnapshotMeta, SnapshotStoreError};

use super::names::Named;
use crate::config::SnapshotConfig;

/// The snapshot files of all groups.
#[derive(Debug, Default)]
pub(super) struct Index {
    groups: BTreeMap<GroupId, GroupFiles>,
    /// The number of partial files left so far. Each gets the next number: a lower number is older.
    left: u64,
}

#[derive(Debug, Default)]
struct GroupFiles {
    /// By name. A content has one right name. A file with another name was renamed or copied by hand, and must not hide the
    /// sound file.
    complete: BTreeMap<Name, Complete>,
    partial: BTreeMap<ContentId, Partial>,
    evicted: u64,
}

/// The content and log position in the name of a complete file.
type Name = (ContentId, LogId);

#[derive(Debug)]
pub(super) struct Complete {
    /// The content of header and trailer, or what is wrong with them.
    pub(super) meta: Result<SnapshotMeta, String>,
    readers: usize,
    /// Removed with its last reader.
    unwanted: bool,
}

impl Complete {
    pub(super) fn new(meta: Result<SnapshotMeta, String>) -> Self {
        Self { meta, readers: 0, unwanted: false }
    }

    fn meta(&self, content: ContentId) -> Result<SnapshotMeta, SnapshotStoreError> {
        self.meta.clone().map_err(|detail| SnapshotStoreError::Corrupt { content, detail })
    }
}

#[derive(Debug, Clone, Copy)]
enum Partial {
    Written,
    Left { bytes: u64, number: u64 },
}

/// The partial files of one group, left by broken transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SnapshotPartials {
    /// Files, without those that a transfer is writing.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Files removed since the store was opened, for the bounds of [`SnapshotConfig`] or to make room for another transfer.
    pub evicted: u64,
}

/// A file that was taken out of the index, for its removal.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) named: Named,
    complete: Option<Complete>,
}

impl Gone {
    pub(super) fn is_unusable(&self) -> bool {
        self.complete.as_ref().is_some_and(|file| file.meta.is_err())
    }
}

impl Index {
    /// The sound complete files, newest first.
    pub(super) fn complete(&self, group: GroupId) -> Vec<SnapshotMeta> {
        let files = self.groups.get(&group).into_iter().flat_map(|g| g.complete.values());
        let mut sound: Vec<_> = files.filter_map(|file| file.meta.clone().ok()).collect();
        sound.sort_by_key(|meta| Reverse(meta.head.at));
        sound
    }

    /// The sound file of a content, else the error of a corrupt file with that name.
    pub(super) fn find(
        &self,
        group: GroupId,
        content: ContentId,
    ) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        let Some(files) = self.groups.get(&group) else { return Ok(None) };
        let found = files.of(content).map(|file| file.meta(content));
        found.reduce(Result::or).transpose()
    }

    /// Whether a file has this name, sound or not.
    pub(super) fn is_named(&self, meta: &SnapshotMeta) -> bool {
        self.groups.get(&meta.head.group).is_some_and(|files| files.complete.contains_key(&name(meta)))
    }

    pub(super) fn add(&mut self, group: GroupId, content: ContentId, at: LogId, file: Complete) {
        let complete = &mut self.groups.entry(group).or_default().complete;
        let readers = complete.get(&(content, at)).map_or(0, |old| old.readers);
        complete.insert((content, at), Complete { readers, ..file });
    }

    /// Takes out the files that claim the content of `meta` at another log position. The bytes of `meta` were checked, and
    /// the position is part of the content, so those files are corrupt.
    pub(super) fn take_misnamed(&mut self, meta: &SnapshotMeta) -> Vec<Gone> {
        let (group, content) = (meta.head.group, meta.content);
        let Some(files) = self.groups.get_mut(&group) else { return Vec::new() };
        let others = files.complete.range_mut(names_of(content)).filter(|(name, _)| name.1 != meta.head.at);
        let mut idle = Vec::new();
        for (&name, file) in others {
            if file.meta.is_ok() {
                file.meta = Err("its content belongs to another log position".into());
            }
            if file.readers == 0 {
                idle.push(name);
            }
        }
        files.take(group, idle)
    }

    pub(super) fn pin(&mut self, meta: &SnapshotMeta) -> Result<(), SnapshotStoreError> {
        let content = meta.content;
        let file = self.groups.get_mut(&meta.head.group).and_then(|g| g.complete.get_mut(&name(meta)));
        let file = file.ok_or(SnapshotStoreError::Missing { content })?;
        if file.meta(content)? != *meta {
            return Err(SnapshotStoreError::Missing { content });
        }
        file.readers += 1;
        Ok(())
    }

    /// Removes a reader. Returns whether the file can now be removed.
    pub(super) fn unpin(&mut self, meta: &SnapshotMeta) -> bool {
        let file = self.groups.get_mut(&meta.head.group).and_then(|g| g.complete.get_mut(&name(meta)));
        let Some(file) = file else { return false };
        file.readers = file.readers.saturating_sub(1);
        file.readers == 0 && file.unwanted
    }

    /// Takes out a file that is unwanted and has no reader.
    pub(super) fn take_unwanted(&mut self, meta: &SnapshotMeta) -> Option<Gone> {
        let files = self.groups.get_mut(&meta.head.group)?;
        files.complete.get(&name(meta)).filter(|file| file.readers == 0 && file.unwanted)?;
        files.take(meta.head.group, vec![name(meta)]).pop()
    }

    /// Takes out the files that are not in `keep` and not in use. Complete files with readers are removed later.
    pub(super) fn retain(&mut self, group: GroupId, keep: &[ContentId]) -> Vec<Gone> {
        let Some(files) = self.groups.get_mut(&group) else { return Vec::new() };
        for ((content, _), file) in &mut files.complete {
            file.unwanted = !keep.contains(content);
        }
        let idle = files.complete.iter().filter(|(_, file)| file.unwanted && file.readers == 0);
        let idle: Vec<Name> = idle.map(|(&name, _)| name).collect();
        let left: Vec<ContentId> =
            files.left().map(|(content, ..)| content).filter(|content| !keep.contains(content)).collect();
        let mut out = files.take(group, idle);
        for content in left {
            files.partial.remove(&content);
            out.push(Gone { named: Named::Partial { group, content }, complete: None });
        }
        out
    }

    /// Adds a file again that could not be removed.
    pub(super) fn put_back(&mut self, gone: Gone, bytes: u64) {
        match (gone.named, gone.complete) {
            (Named::Complete { group, at, content }, Some(file)) => self.add(group, content, at, file),
            (Named::Partial { group, content }, _) => self.leave(group, content, bytes),
            _ => {}
        }
    }

    /// Reserves a partial file for a writer.
    pub(super) fn claim(&mut self, group: GroupId, content: ContentId) -> Result<(), SnapshotStoreError> {
        let partial = &mut self.groups.entry(group).or_default().partial;
        if matches!(partial.get(&content), Some(Partial::Written)) {
            return Err(SnapshotStoreError::Busy { content });
        }
        partial.insert(content, Partial::Written);
        Ok(())
    }

    /// Drops a partial file that became complete or was removed.
    pub(super) fn forget(&mut self, group: GroupId, content: ContentId) {
        if let Some(files) = self.groups.get_mut(&group) {
            files.partial.remove(&content);
        }
    }

    /// The bytes of the partial file of a content.
    pub(super) fn left_bytes(&self, group: GroupId, content: ContentId) -> u64 {
        let left = self.groups.get(&group).and_then(|files| files.partial.get(&content));
        left.map_or(0, |file| if let Partial::Left { bytes, .. } = file { *bytes } else { 0 })
    }

    /// Releases a partial file whose writer has ended.
    pub(super) fn leave(&mut self, group: GroupId, content: ContentId, bytes: u64) {
        self.left += 1;
        let file = Partial::Left { bytes, number: self.left };
        self.groups.entry(group).or_default().partial.insert(content, file);
    }

    /// Takes out the oldest partial files of a group until the rest is within the bounds.
    pub(super) fn evict(&mut self, group: GroupId, config: &SnapshotConfig) -> Vec<Gone> {
        let mut evicted = Vec::new();
        let Some(files) = self.groups.get_mut(&group) else { return evicted };
        loop {
            let now = files.partials();
            if now.files <= config.partials_max && now.bytes <= config.partial_bytes_max.as_u64() {
                return evicted;
            }
            let oldest = files.left().min_by_key(|&(_, _, number)| number).map(|(content, ..)| content);
            let Some(content) = oldest else { return evicted };
            evicted.push(files.evict(group, content));
        }
    }

    /// Takes out all partial files of a group except that of `content`.
    pub(super) fn evict_others(&mut self, group: GroupId, content: ContentId) -> Vec<Gone> {
        let Some(files) = self.groups.get_mut(&group) else { return Vec::new() };
        let others: Vec<_> = files.left().map(|(left, ..)| left).filter(|left| *left != content).collect();
        others.into_iter().map(|other| files.evict(group, other)).collect()
    }

    pub(super) fn partials(&self, group: GroupId) -> SnapshotPartials {
        self.groups.get(&group).map(GroupFiles::partials).unwrap_or_default()
    }
}

impl GroupFiles {
    /// The files whose names claim this content.
    fn of(&self, content: ContentId) -> impl Iterator<Item = &Complete> {
        self.complete.range(names_of(content)).map(|(_, file)| file)
    }

    fn take(&mut self, group: GroupId, names: Vec<Name>) -> Vec<Gone> {
        let took = names.into_iter().filter_map(|name| self.complete.remove_entry(&name));
        let gone = took.map(|((content, at), file)| Gone {
            named: Named::Complete { group, at, content },
            complete: Some(file),
        });
        gone.collect()
    }

    fn evict(&mut self, group: GroupId, content: ContentId) -> Gone {
        self.partial.remove(&content);
        self.evicted += 1;
        Gone { named: Named::Partial { group, content }, complete: None }
    }

    fn left(&self) -> impl Iterator<Item = (ContentId, u64, u64)> {
        self.partial.iter().filter_map(|(&content, file)| match *file {
            Partial::Left { bytes, number } => Some((content, bytes, number)),
            Partial::Written => None,
        })
    }

    fn partials(&self) -> SnapshotPartials {
        self.left().fold(
            SnapshotPartials { evicted: self.evicted, ..SnapshotPartials::default() },
            |sum, (_, bytes, _)| SnapshotPartials {
                files: sum.files + 1,
                bytes: sum.bytes.saturating_add(bytes),
                ..sum
            },
        )
    }
}

fn name(meta: &SnapshotMeta) -> Name {
    (meta.content, meta.head.at)
}

fn names_of(content: ContentId) -> RangeInclusive<Name> {
    (content, LogId::default())..=(content, LogId { index: u64::MAX, term: u64::MAX })
}
