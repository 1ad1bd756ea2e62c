//! Starts with a damaged store.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::machine::layout::{data_key, record};

impl Harness {
    /// Closes the machine, changes its files, and opens it again.
    fn reopen_after(self, change: impl FnOnce(&Path)) -> Self {
        let Self { dir, machine, passed_ms, .. } = self;
        drop(machine);
        change(&dir.path().join("kv"));
        let machine = open(&dir, &passed_ms);
        let index = machine.durable().index;
        Self { dir, machine, index, passed_ms }
    }

    fn aside(&self) -> PathBuf {
        self.dir.path().join("kv.damaged")
    }
}

/// The tables of the machine's keyspace. Keyspace 0 belongs to fjall.
fn tables(store: &Path) -> Vec<PathBuf> {
    let keyspaces = fs::read_dir(store.join("keyspaces")).unwrap().map(|file| file.unwrap().path());
    let own = keyspaces.filter(|keyspace| !keyspace.ends_with("0"));
    own.flat_map(|own| fs::read_dir(own.join("tables")).unwrap().map(|table| table.unwrap().path())).collect()
}

/// Without its journal, fjall began with sequence number 0. Point reads saw the newest state. Scans, reads of many keys and
/// snapshots for other nodes saw an old state or nothing.
#[test]
fn a_store_without_its_journal_shows_the_state_of_its_applied_index() {
    let mut h = Harness::new();
    for round in 0..6_u64 {
        for key in 0..20_u8 {
            h.one(1, set(&[key], round.to_string().as_bytes(), Expiry::Never));
        }
        h.machine.flush().unwrap();
        let (durable, digest) = (h.machine.durable(), h.digest());
        h = h.reopen_after(|store| {
            let journals = fs::read_dir(store).unwrap().map(|file| file.unwrap().path());
            journals
                .filter(|file| file.extension().is_some_and(|e| e == "jnl"))
                .for_each(|file| fs::remove_file(file).unwrap());
        });
        assert_eq!((h.machine.durable(), h.digest()), (durable, digest), "round {round}");
        assert_eq!(h.value(&[3]), Some(round.to_string().into_bytes()), "round {round}");
        assert!(!h.aside().exists(), "the journal held nothing of the state");
    }
}

/// Exchanges two tables. Each is sound by itself, so fjall does not notice.
#[test]
fn a_damaged_store_is_moved_aside_and_an_empty_one_takes_its_place() {
    let mut h = Harness::new();
    for round in 0..2 {
        for key in [b"a", b"b"] {
            h.one(1, set(key, b"v", Expiry::Never));
            h.machine.flush().unwrap();
        }
        h = h.reopen_after(|store| {
            let tables = tables(store);
            fs::copy(tables.iter().max().unwrap(), tables.iter().min().unwrap()).unwrap();
        });
        assert_eq!((h.machine.durable(), h.machine.view().keys()), (LogId::NONE, 0), "round {round}");
        assert_eq!(h.value(b"b"), None);
        assert_eq!(tables(&h.aside()).len(), 2, "the damaged store is kept");
    }
}

/// Such errors pass. A store moved aside for one would have to come from a peer again.
#[test]
fn a_store_in_use_is_refused_and_not_moved() {
    let mut h = Harness::new();
    h.one(1, set(b"k", b"v", Expiry::Never));
    h.machine.flush().unwrap();
    let refused = KvMachine::open(&h.dir.path().join("kv"), &StoreConfig::default(), &roomy()).err().unwrap();
    assert!(matches!(refused, StoreError::Fjall(fjall::Error::Locked)), "{refused}");
    assert!(!h.aside().exists());
    assert_eq!(h.reopen().value(b"k"), Some(b"v".to_vec()));
}

/// The error said only "Device or resource busy".
#[test]
fn a_store_that_is_a_mount_point_is_refused_with_the_remedy() {
    for number in [16, 18] {
        let error = io::Error::from_raw_os_error(number);
        let refused = opened::not_moved(Path::new("data/kv"), "its file `version` is missing", error);
        assert_eq!(
            refused.to_string(),
            "the key-value store at data/kv cannot be opened (its file `version` is missing), and no new one can take its \
             place because its directory is a mount point; mount the volume at the data directory above it"
        );
    }
    let other = opened::not_moved(Path::new("data/kv"), "", io::Error::from_raw_os_error(13));
    assert!(matches!(other, StoreError::OpenFailed(_)), "{other}");
}

/// Otherwise a damaged node would send its state to others once it leads.
#[test]
fn a_damaged_state_gives_no_snapshot() {
    let mut h = Harness::new();
    h.one(1, set(b"k", b"v", Expiry::Never));
    h.machine.flush().unwrap();
    let mut other = h.machine.store.start_ingestion().unwrap();
    other.write(data_key(0, b"k"), record(0, b"w")).unwrap();
    other.finish().unwrap();
    let written = h.machine.snapshot().unwrap().write_to(&mut io::sink());
    assert_eq!(written.unwrap_err().to_string(), "the state in the key-value store is corrupt");
}
