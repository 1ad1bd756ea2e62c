//! The identity of a node and the incarnations of its peers, each in a small file.
//!
//! `identity` holds an [`Identity`] and the groups that were founded or joined here; version 1 had no groups. `peers` maps
//! node ids to [`Incarnation`]s. `lost` maps groups that lost durable entries here to [`LostEntries`]. All are [frames](crate::format), and are [replaced](crate::replace) atomically.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::Serialize;
use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{GroupId, Incarnation, NodeId};
use towline_engine::message::LostEntries;

use crate::dir_lock::DirLock;
use crate::format::{self, Damage};
use crate::replace::{ReplaceError, replace_file};
use crate::sync::lock;

const IDENTITY_FILE: &str = "identity";
const PEERS_FILE: &str = "peers";
/// Exists once a group lost durable entries here.
const LOST_FILE: &str = "lost";
/// Exists if the directory was made for a new node. Holds the incarnation of the identity that may found groups.
const FOUNDING_FILE: &str = "founding";
const IDENTITY_VERSION: u8 = 2;
/// Without groups.
const IDENTITY_VERSION_1: u8 = 1;
const PEERS_VERSION: u8 = 1;
const LOST_VERSION: u8 = 1;
const FOUNDING_VERSION: u8 = 1;

/// An [`IdentityStore`] on small files. Made by [`DataDir::open`](crate::DataDir::open).
#[derive(Debug)]
pub struct IdentityFile {
    dir: PathBuf,
    /// Locked while a file is read and replaced.
    replacing: Mutex<()>,
    _lock: Option<Arc<DirLock>>,
}

impl IdentityFile {
    pub(crate) fn new(dir: &Path, lock: Option<Arc<DirLock>>) -> Self {
        Self { dir: dir.into(), replacing: Mutex::new(()), _lock: lock }
    }

    /// Makes [`may_found`](IdentityStore::may_found) true.
    pub(crate) fn allow_founding(&self) -> Result<(), IdentityError> {
        self.replace(FOUNDING_FILE, FOUNDING_VERSION, &None::<Incarnation>)
    }

    fn read<T>(
        &self,
        name: &str,
        newest: u8,
        decode: impl FnOnce(u8, &[u8]) -> Result<T, Damage>,
    ) -> Result<Option<T>, IdentityError> {
        let path = self.dir.join(name);
        let framed = match fs::read(&path) {
            Ok(framed) => framed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, "read", source)),
        };
        let opened = format::open(newest, &framed).and_then(|(version, payload)| decode(version, payload));
        opened.map(Some).map_err(|damage| corrupt(&path, &damage))
    }

    fn replace<T: Serialize>(&self, name: &str, version: u8, value: &T) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        let payload = format::encode(value).map_err(|damage| corrupt(&path, &damage))?;
        replace_file(&path, &format::seal(version, &payload))
            .map_err(|ReplaceError { path, during, source, .. }| failed(&path, during, source))
    }

    fn read_identity(&self) -> Result<Option<(Identity, BTreeSet<GroupId>)>, IdentityError> {
        self.read(IDENTITY_FILE, IDENTITY_VERSION, |version, payload| match version {
            IDENTITY_VERSION_1 => Ok((format::decode(payload)?, BTreeSet::new())),
            _ => format::decode(payload),
        })
    }
}

impl IdentityStore for IdentityFile {
    fn load(&self) -> Result<Option<Identity>, IdentityError> {
        Ok(self.read_identity()?.map(|(identity, _)| identity))
    }

    fn create(&self, identity: &Identity) -> Result<(), IdentityError> {
        let _replacing = lock(&self.replacing);
        if let Some(there) = self.load()? {
            return Err(IdentityError::Exists { node: there.node, cluster: there.cluster });
        }
        self.replace(IDENTITY_FILE, IDENTITY_VERSION, &(identity, BTreeSet::<GroupId>::new()))?;
        // The permission now belongs to this identity: if the identity is lost, another one may not found groups.
        if self.may_found()? {
            self.replace(FOUNDING_FILE, FOUNDING_VERSION, &Some(identity.incarnation))?;
        }
        Ok(())
    }

    fn may_found(&self) -> Result<bool, IdentityError> {
        let founding = self.read(FOUNDING_FILE, FOUNDING_VERSION, |_, payload| {
            format::decode::<Option<Incarnation>>(payload)
        })?;
        Ok(match founding {
            None => false,
            Some(None) => true,
            Some(Some(by)) => self.load()?.is_some_and(|identity| identity.incarnation == by),
        })
    }

    fn groups(&self) -> Result<BTreeSet<GroupId>, IdentityError> {
        Ok(self.read_identity()?.map(|(_, groups)| groups).unwrap_or_default())
    }

    fn add_group(&self, group: GroupId) -> Result<(), IdentityError> {
        let _replacing = lock(&self.replacing);
        let (identity, mut groups) = self.read_identity()?.ok_or(IdentityError::Absent)?;
        if !groups.insert(group) {
            return Ok(());
        }
        self.replace(IDENTITY_FILE, IDENTITY_VERSION, &(identity, groups))
    }

    fn lost(&self) -> Result<BTreeMap<GroupId, LostEntries>, IdentityError> {
        Ok(self.read(LOST_FILE, LOST_VERSION, |_, payload| format::decode(payload))?.unwrap_or_default())
    }

    fn record_lost(&self, group: GroupId, lost: LostEntries) -> Result<(), IdentityError> {
        let _replacing = lock(&self.replacing);
        let mut all = self.lost()?;
        if all.insert(group, lost) == Some(lost) {
            return Ok(());
        }
        self.replace(LOST_FILE, LOST_VERSION, &all)
    }

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(self.read(PEERS_FILE, PEERS_VERSION, |_, payload| format::decode(payload))?.unwrap_or_default())
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        let _replacing = lock(&self.replacing);
        let mut seen = self.seen()?;
        if seen.insert(peer, incarnation) == Some(incarnation) {
            return Ok(());
        }
        self.replace(PEERS_FILE, PEERS_VERSION, &seen)
    }
}

fn failed(path: &Path, during: &'static str, source: io::Error) -> IdentityError {
    IdentityError::Io { file: path.display().to_string(), during, source }
}

fn corrupt(path: &Path, damage: &Damage) -> IdentityError {
    IdentityError::Corrupt { file: path.display().to_string(), detail: damage.to_string() }
}

#[cfg(test)]
mod tests;
