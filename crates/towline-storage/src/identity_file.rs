//! The identity of a node and the incarnations of its peers, each in a small file.
//!
//! `identity` holds an [`Identity`], `peers` a map from node id to [`Incarnation`]; both in a [frame](crate::format),
//! whose upgrade policy holds. A file is replaced as a whole: written under another name, synced, renamed, and the
//! directory synced.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use towline_engine::identity::{Identity, IdentityError, IdentityStore};
use towline_engine::ids::{Incarnation, NodeId};

use crate::data_dir::DirLock;
use crate::format::{self, Damage};

const IDENTITY_FILE: &str = "identity";
const PEERS_FILE: &str = "peers";
const IDENTITY_VERSION: u8 = 1;
const PEERS_VERSION: u8 = 1;

/// An [`IdentityStore`] on two files. Made by [`DataDir::open`](crate::DataDir::open).
#[derive(Debug)]
pub struct IdentityFile {
    dir: PathBuf,
    /// Held while a file is read and replaced.
    replacing: Mutex<()>,
    _lock: Option<Arc<DirLock>>,
}

impl IdentityFile {
    pub(crate) fn new(dir: &Path, lock: Option<Arc<DirLock>>) -> Self {
        Self { dir: dir.into(), replacing: Mutex::new(()), _lock: lock }
    }

    fn read<T: DeserializeOwned>(&self, name: &str, newest: u8) -> Result<Option<T>, IdentityError> {
        let path = self.dir.join(name);
        let framed = match fs::read(&path) {
            Ok(framed) => framed,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, "read", source)),
        };
        let opened = format::open(newest, &framed).and_then(|(_, payload)| format::decode(payload));
        opened.map(Some).map_err(|damage| corrupt(&path, &damage))
    }

    fn replace(&self, name: &str, framed: &[u8]) -> Result<(), IdentityError> {
        let path = self.dir.join(name);
        let next = self.dir.join(format!("{name}.next"));
        let written = File::create(&next).and_then(|mut file| {
            file.write_all(framed)?;
            file.sync_all()
        });
        written.map_err(|e| failed(&next, "write", e))?;
        fs::rename(&next, &path).map_err(|e| failed(&path, "rename", e))?;
        let synced = File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(|e| failed(&path, "sync of the directory", e))
    }
}

impl IdentityStore for IdentityFile {
    fn load(&self) -> Result<Option<Identity>, IdentityError> {
        self.read(IDENTITY_FILE, IDENTITY_VERSION)
    }

    fn create(&self, identity: &Identity) -> Result<(), IdentityError> {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = self.load()? {
            return Err(IdentityError::Exists { node: there.node, cluster: there.cluster });
        }
        let payload = format::encode(identity).map_err(|d| corrupt(&self.dir.join(IDENTITY_FILE), &d))?;
        self.replace(IDENTITY_FILE, &format::seal(IDENTITY_VERSION, &payload))
    }

    fn seen(&self) -> Result<BTreeMap<NodeId, Incarnation>, IdentityError> {
        Ok(self.read(PEERS_FILE, PEERS_VERSION)?.unwrap_or_default())
    }

    fn remember(&self, peer: NodeId, incarnation: Incarnation) -> Result<(), IdentityError> {
        let _replacing = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = self.seen()?;
        if seen.insert(peer, incarnation) == Some(incarnation) {
            return Ok(());
        }
        let payload = format::encode(&seen).map_err(|d| corrupt(&self.dir.join(PEERS_FILE), &d))?;
        self.replace(PEERS_FILE, &format::seal(PEERS_VERSION, &payload))
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
