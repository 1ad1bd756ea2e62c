//! Which files there are, in memory: whoever asks for a snapshot waits for no disk.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use towline_engine::ids::GroupId;
use towline_engine::message::LogId;
use towline_engine::snapshot_store::{ContentId, SnapshotMeta, SnapshotStoreError};

use super::names::Named;
use crate::data_dir::SnapshotConfig;

#[derive(Debug, Default)]
pub(super) struct Index {
    groups: BTreeMap<GroupId, GroupFiles>,
    /// Counts up with each partial file that is left behind: the lower, the older.
    left: u64,
}

#[derive(Debug, Default)]
struct GroupFiles {
    /// As they are named. A content has one name; under another it is a file that somebody renamed or copied, and such
    /// a file must not take the place of the sound one.
    complete: BTreeMap<Name, Complete>,
    partial: BTreeMap<ContentId, Partial>,
    evicted: u64,
}

/// What the name of a complete file says, apart from the group.
type Name = (ContentId, LogId);

/// A complete file.
#[derive(Debug)]
pub(super) struct Complete {
    /// What its two ends say, or what is wrong with them.
    pub(super) meta: Result<SnapshotMeta, String>,
    readers: usize,
    /// Goes with its last reader.
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

/// What broken transfers have left behind for a resume, of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SnapshotPartials {
    /// Files, without those being written.
    pub files: usize,
    /// Bytes they take.
    pub bytes: u64,
    /// Files that had to go for the bounds of [`SnapshotConfig`], or for a transfer that had no room beside them, since
    /// the store was opened.
    pub evicted: u64,
}

/// A file that was taken out of the index and is to be removed.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) named: Named,
    complete: Option<Complete>,
}

impl Gone {
    /// Whether it is a complete file that nobody could read.
    pub(super) fn is_unusable(&self) -> bool {
        self.complete.as_ref().is_some_and(|file| file.meta.is_err())
    }
}

impl Index {
    /// Newest first. What is damaged was named in the log of the process when it was found.
    pub(super) fn complete(&self, group: GroupId) -> Vec<SnapshotMeta> {
        let files = self.groups.get(&group).into_iter().flat_map(|g| g.complete.values());
        let mut sound: Vec<_> = files.filter_map(|file| file.meta.clone().ok()).collect();
        sound.sort_by_key(|meta| Reverse(meta.head.at));
        sound
    }

    /// A sound file of this content, else what is wrong with one that says it is.
    pub(super) fn find(
        &self,
        group: GroupId,
        content: ContentId,
    ) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        let Some(files) = self.groups.get(&group) else { return Ok(None) };
        let found = files.of(content).map(|file| file.meta(content));
        found.reduce(Result::or).transpose()
    }

    /// Whether there is a file of this name, sound or not.
    pub(super) fn is_named(&self, meta: &SnapshotMeta) -> bool {
        self.groups.get(&meta.head.group).is_some_and(|files| files.complete.contains_key(&name(meta)))
    }

    /// A file is complete, or was found so.
    pub(super) fn add(&mut self, group: GroupId, content: ContentId, at: LogId, file: Complete) {
        let complete = &mut self.groups.entry(group).or_default().complete;
        let readers = complete.get(&(content, at)).map_or(0, |old| old.readers);
        complete.insert((content, at), Complete { readers, ..file });
    }

    /// The bytes of this one were checked. Takes out the files that say they are of its content and at another place: the
    /// place is part of the content, so none of them is what it says.
    pub(super) fn take_misnamed(&mut self, meta: &SnapshotMeta) -> Vec<Gone> {
        let (group, content) = (meta.head.group, meta.content);
        let Some(files) = self.groups.get_mut(&group) else { return Vec::new() };
        let others = files.complete.range_mut(names_of(content)).filter(|(name, _)| name.1 != meta.head.at);
        let mut idle = Vec::new();
        for (&name, file) in others {
            if file.meta.is_ok() {
                file.meta = Err("its content is at another place".into());
            }
            if file.readers == 0 {
                idle.push(name);
            }
        }
        files.take(group, idle)
    }

    /// One more reader; whether there is such a file.
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

    /// One reader less; whether the file should go now.
    pub(super) fn unpin(&mut self, meta: &SnapshotMeta) -> bool {
        let file = self.groups.get_mut(&meta.head.group).and_then(|g| g.complete.get_mut(&name(meta)));
        let Some(file) = file else { return false };
        file.readers = file.readers.saturating_sub(1);
        file.readers == 0 && file.unwanted
    }

    /// Takes out a file that nobody wants and nobody reads.
    pub(super) fn take_unwanted(&mut self, meta: &SnapshotMeta) -> Option<Gone> {
        let files = self.groups.get_mut(&meta.head.group)?;
        files.complete.get(&name(meta)).filter(|file| file.readers == 0 && file.unwanted)?;
        files.take(meta.head.group, vec![name(meta)]).pop()
    }

    /// Takes out what is not in `keep` and not in use. Complete files that are being read go later.
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

    /// Its file could not be removed.
    pub(super) fn put_back(&mut self, gone: Gone, bytes: u64) {
        match (gone.named, gone.complete) {
            (Named::Complete { group, at, content }, Some(file)) => self.add(group, content, at, file),
            (Named::Partial { group, content }, _) => self.leave(group, content, bytes),
            _ => {}
        }
    }

    /// A writer of a partial file starts.
    pub(super) fn claim(&mut self, group: GroupId, content: ContentId) -> Result<(), SnapshotStoreError> {
        let partial = &mut self.groups.entry(group).or_default().partial;
        if matches!(partial.get(&content), Some(Partial::Written)) {
            return Err(SnapshotStoreError::Busy { content });
        }
        partial.insert(content, Partial::Written);
        Ok(())
    }

    /// A partial file is no more: complete, or removed.
    pub(super) fn forget(&mut self, group: GroupId, content: ContentId) {
        if let Some(files) = self.groups.get_mut(&group) {
            files.partial.remove(&content);
        }
    }

    /// What a broken transfer has left of this content.
    pub(super) fn left_bytes(&self, group: GroupId, content: ContentId) -> u64 {
        let left = self.groups.get(&group).and_then(|files| files.partial.get(&content));
        left.map_or(0, |file| if let Partial::Left { bytes, .. } = file { *bytes } else { 0 })
    }

    /// A partial file is not being written any more.
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

    /// Takes out all that is left behind of a group, but of this content.
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
    /// The files that say they are of this content.
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
