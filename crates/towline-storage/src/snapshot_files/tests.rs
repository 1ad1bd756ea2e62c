use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use tempfile::TempDir;
use towline_engine::ids::NodeId;
use towline_engine::message::{ConfState, LogId, Member};
use towline_engine::snapshot_store::{BodyRead, ContentHasher};
use towline_engine::units::ByteSize;

use super::index::{Complete, Index};
use super::*;
use crate::disk::{Hook, Op};
use crate::fixtures::{copy, golden};

mod crashes;
mod format;
mod left_behind;
mod log_lines;
mod misnamed;
mod reserve;
mod slow_disk;

const GROUP: GroupId = GroupId::DEFAULT;
const CHUNK: usize = SNAPSHOT_CHUNK_BYTES;

fn open(dir: &Path) -> SnapshotFiles {
    open_with(dir, FileOps::default())
}

fn open_with(dir: &Path, ops: FileOps) -> SnapshotFiles {
    SnapshotFiles::open_with(dir, &SnapshotConfig::default(), ops, None).unwrap()
}

fn store() -> (TempDir, SnapshotFiles) {
    let dir = TempDir::new().unwrap();
    let files = open(dir.path());
    (dir, files)
}

/// A store in a new directory, whose operations `hook` sees.
fn hooked(hook: &Arc<impl Hook + 'static>) -> (TempDir, SnapshotFiles) {
    let dir = TempDir::new().unwrap();
    let files = open_with(dir.path(), FileOps::with_hook(hook.clone()));
    (dir, files)
}

fn partial(files: &SnapshotFiles, meta: &SnapshotMeta) -> PathBuf {
    files.dir.file(&Named::Partial { group: meta.head.group, content: meta.content })
}

fn head(index: u64) -> SnapshotHead {
    let id = |n| NodeId::new(n).unwrap();
    SnapshotHead {
        group: GROUP,
        founding: Default::default(),
        at: LogId { index, term: 2 },
        conf_state: ConfState { voters: vec![id(1), id(2)], ..ConfState::default() },
        members: [(id(1), Member { address: "grpc://h:1".parse().unwrap(), incarnation: None })].into(),
    }
}

fn body(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| (n / 251) as u8 ^ (n % 251) as u8 ^ seed).collect()
}

fn meta_of(head: &SnapshotHead, body: &[u8]) -> SnapshotMeta {
    let mut hasher = ContentHasher::new(head);
    hasher.update(body);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head: head.clone(), length, content }
}

/// A meta of `times` copies of `part`.
fn meta_of_parts(part: &[u8], times: usize) -> SnapshotMeta {
    let mut hasher = ContentHasher::new(&head(1));
    (0..times).for_each(|_| hasher.update(part));
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head: head(1), length, content }
}

type Outcome = Result<SnapshotMeta, SnapshotStoreError>;

fn create(files: &SnapshotFiles, head: &SnapshotHead, body: &[u8]) -> Outcome {
    fill(files.create(head)?, body)
}

fn receive(files: &SnapshotFiles, meta: &SnapshotMeta, body: &[u8]) -> Outcome {
    let writer = files.receive(meta)?;
    let from = writer.verified() as usize;
    fill(writer, &body[from..])
}

fn fill(mut writer: Box<dyn SnapshotWriter>, body: &[u8]) -> Outcome {
    writer.write_all(body).map_err(|e| failed("write", e))?;
    writer.verify(None)?;
    writer.commit()
}

fn read(files: &SnapshotFiles, meta: &SnapshotMeta) -> Vec<u8> {
    let mut bytes = Vec::new();
    BodyRead::new(files.open(meta, 0).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn names(dir: &Path) -> BTreeSet<String> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}
