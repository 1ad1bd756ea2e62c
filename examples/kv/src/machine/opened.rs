//! Opens the store and verifies the state in it. Moves a damaged store aside.
//!
//! fjall 3.1 does not detect all damage. Without its journal it starts with sequence number 0: point reads then see the
//! newest values, and scans see none. It does not check tables against the checksums in its manifest. So the start reads the
//! whole state once and compares it with the checksum beside the applied index.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::config::{FILES_MIN, JOURNAL_BYTES_MIN, StoreConfig};
use super::error::StoreError;
use super::layout::{
    META_KEY, Meta, checksum, data_key, due_checksum, due_key, expiry_of_due, key_of_data, key_of_due, split,
};
use super::room::{Closer, StoreRoom};
use super::snapshot;
use crate::failure::with_causes;

/// fjall's own memtable. Only restoring a snapshot and removing dead keys fill it.
const STORE_MEMTABLE_BYTES: u64 = 8 << 20;
/// The file that fjall writes last when it makes a store.
const VERSION_FILE: &str = "version";
const FIRST_JOURNAL: &str = "0.jnl";

pub(super) struct Opened {
    pub(super) closer: Closer,
    pub(super) room: StoreRoom,
    pub(super) db: Database,
    pub(super) store: Keyspace,
    pub(super) meta: Meta,
}

enum OpenError {
    /// Another start may succeed.
    Store(StoreError),
    /// No start will succeed.
    Damaged(String),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        let damaged = match &error {
            error if error.is_full_disk() => false,
            StoreError::Fjall(error) => is_damage(error),
            StoreError::Codec(_) | StoreError::Corrupt(_) => true,
            _ => false,
        };
        if damaged { Self::Damaged(with_causes(&error)) } else { Self::Store(error) }
    }
}

impl From<fjall::Error> for OpenError {
    fn from(error: fjall::Error) -> Self {
        StoreError::from(error).into()
    }
}

fn is_damage(error: &fjall::Error) -> bool {
    match error {
        // In use, or written by another release.
        fjall::Error::Locked | fjall::Error::InvalidVersion(Some(_)) => false,
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => matches!(
            error.kind(),
            io::ErrorKind::NotFound
                | io::ErrorKind::UnexpectedEof
                | io::ErrorKind::InvalidData
                | io::ErrorKind::InvalidInput
                | io::ErrorKind::AlreadyExists
        ),
        _ => true,
    }
}

pub(super) fn open(path: &Path, config: &StoreConfig, room: &StoreRoom) -> Result<Opened, StoreError> {
    // fjall panics on some damage.
    let opened = catch_unwind(AssertUnwindSafe(|| open_sound(path, config, room)));
    let cause = match opened {
        Ok(Ok(opened)) => return Ok(opened),
        Ok(Err(OpenError::Store(error))) => return Err(error),
        Ok(Err(OpenError::Damaged(cause))) => cause,
        Err(_) => "opening it panicked".into(),
    };
    if room.was_low() {
        // Without room, a sound store fails in the same ways.
        return Err(StoreError::FullDisk(cause));
    }
    let aside = set_aside(path, &cause)?;
    tracing::error!(cause, aside = %aside.display(), "the key-value store is damaged and is built anew");
    open_sound(path, config, room).map_err(|failure| match failure {
        OpenError::Store(error) => error,
        OpenError::Damaged(_) => StoreError::Corrupt("new store"),
    })
}

/// Moves the store to `kv.damaged`, and removes an older one there.
fn set_aside(path: &Path, cause: &str) -> Result<PathBuf, StoreError> {
    let aside = path.with_extension("damaged");
    remove_dir(&aside).map_err(StoreError::OpenFailed)?;
    fs::rename(path, &aside).map_err(|error| not_moved(path, cause, error))?;
    sync_parent(path).map_err(StoreError::OpenFailed)?;
    Ok(aside)
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

pub(super) fn not_moved(path: &Path, cause: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices => {
            StoreError::MountPoint { path: path.into(), cause: cause.into() }
        }
        _ => StoreError::OpenFailed(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn open_sound(path: &Path, config: &StoreConfig, room: &StoreRoom) -> Result<Opened, OpenError> {
    make_whole(path)?;
    prepare(path)?;
    let room = room.for_store();
    let filter = room.filter(config.memtable_bytes.as_u64());
    let db = Database::builder(path)
        .cache_size(config.cache_bytes.as_u64())
        .max_journaling_size(config.journal_bytes_max.max(JOURNAL_BYTES_MIN).as_u64())
        .worker_threads(config.worker_threads.max(1))
        .max_cached_files(Some(config.files_max.max(FILES_MIN)))
        .with_compaction_filter_factories(Arc::new(move |_| Some(Arc::clone(&filter))))
        .open()?;
    // Declared later, so dropped earlier than `db`, whose drop waits for the compaction.
    let closer = room.closer();
    let options = || KeyspaceCreateOptions::default().max_memtable_size(STORE_MEMTABLE_BYTES);
    let store = db.keyspace("kv", options)?;
    let meta = store.get(META_KEY)?.map_or(Ok(Meta::default()), |bytes| Meta::decode(&bytes))?;
    verify(&store, &meta)?;
    if let Some(next) = meta.generation.checked_add(1) {
        snapshot::remove_from(&db, &store, &room.without_waits(), next)?;
    }
    // A killed process may have left a restored snapshot in the page cache. Removed keys must not come back.
    db.persist(PersistMode::SyncAll)?;
    Ok(Opened { closer, room, db, store, meta })
}

/// Makes the store at `path`, if there is none, under another name first: fjall cannot open a store whose making a kill
/// interrupted.
fn make_whole(path: &Path) -> Result<(), fjall::Error> {
    if path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("new");
    remove_dir(&unfinished)?;
    drop(Database::builder(&unfinished).worker_threads(1).open()?);
    fs::rename(&unfinished, path)?;
    Ok(sync_parent(path)?)
}

/// Checks the directory before fjall does. fjall makes a new store where it finds no version, and forgets its sequence
/// numbers where it finds no journal.
fn prepare(path: &Path) -> Result<(), OpenError> {
    let files = fs::read_dir(path).and_then(|files| files.map(|file| Ok(file?.path())).collect());
    let files: Vec<PathBuf> = files.map_err(StoreError::OpenFailed)?;
    if !files.iter().any(|file| file.file_name().is_some_and(|name| name == VERSION_FILE)) {
        return Err(OpenError::Damaged(format!("its file `{VERSION_FILE}` is missing")));
    }
    if !files.iter().any(|file| file.extension().is_some_and(|extension| extension == "jnl")) {
        // Few changes go through the journal. The checksum of the state shows whether any of them is lost.
        tracing::warn!(store = %path.display(), "the journal of the key-value store is missing");
        let journal = path.join(FIRST_JOURNAL);
        let made =
            File::create(&journal).and_then(|file| file.sync_all()).and_then(|()| sync_parent(&journal));
        made.map_err(StoreError::OpenFailed)?;
    }
    Ok(())
}

/// Reads the whole live state and compares it with `meta`.
fn verify(store: &Keyspace, meta: &Meta) -> Result<(), OpenError> {
    let (mut keys, mut found, mut to_expire): (u64, u128, u128) = (0, 0, 0);
    for item in store.prefix(data_key(meta.generation, b"")) {
        let (stored, record) = item.into_inner()?;
        let key = key_of_data(&stored);
        let (expiry_ms, value) = split(&record)?;
        keys += 1;
        found = found.wrapping_add(checksum(key, expiry_ms, value));
        if expiry_ms != 0 {
            to_expire = to_expire.wrapping_add(due_checksum(key, expiry_ms));
        }
    }
    if (keys, found) != (meta.keys, meta.checksum) {
        let (index, promised) = (meta.index, meta.keys);
        return Err(OpenError::Damaged(format!(
            "its {keys} keys do not match the checksum of the {promised} keys at applied index {index}"
        )));
    }
    for item in store.prefix(due_key(meta.generation, 0, b"").get(..5).unwrap_or_default()) {
        let stored = item.key()?;
        to_expire = to_expire.wrapping_sub(due_checksum(key_of_due(&stored), expiry_of_due(&stored)));
    }
    if to_expire != 0 {
        return Err(OpenError::Damaged("its keys do not match the index of expiries".into()));
    }
    Ok(())
}
