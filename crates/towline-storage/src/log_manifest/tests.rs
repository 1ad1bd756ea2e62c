use tempfile::TempDir;

use super::*;
use crate::fixtures::{flipped, golden};

fn files() -> LogFiles {
    let mut files = LogFiles::default();
    files.insert(Queue::Append, 7, 67_108_900);
    files.insert(Queue::Append, 8, 69);
    files.insert(Queue::Rewrite, 1, 0);
    files
}

#[test]
fn v1_keeps_its_released_bytes() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    assert_eq!(LogManifest::load(&path).unwrap(), None);
    LogManifest::new(&path, LogFiles::default(), files()).store().unwrap();
    assert_eq!(fs::read(&path).unwrap(), golden("log_files_v1"));
    assert_eq!(LogManifest::load(&path).unwrap(), Some(files()));
}

#[test]
fn the_error_for_any_flipped_bit_names_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    for bad in flipped(&golden("log_files_v1")) {
        fs::write(&path, bad).unwrap();
        let refused = LogManifest::load(&path).unwrap_err();
        let named = matches!(&refused, LogError::Corrupt { place, .. } if place.ends_with("log-files"));
        assert!(named, "{refused}");
    }
}

#[test]
fn only_the_error_for_a_damaged_list_says_to_remove_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    let text = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        LogManifest::load(&path).unwrap_err().to_string()
    };
    let damaged = text(&golden("log_files_v1")[1..]);
    assert!(damaged.contains("its checksum does not match; if no log file was lost"), "{damaged}");
    assert!(damaged.contains("remove this file and start again"), "{damaged}");
    let later = text(&format::seal(MANIFEST_VERSION + 1, b""));
    assert!(later.contains("written by a later release") && !later.contains("remove"), "{later}");
}

#[test]
fn a_new_file_and_a_deletion_must_be_stored_but_not_a_longer_file() {
    let dir = TempDir::new().unwrap();
    let manifest = LogManifest::new(&dir.path().join("log-files"), files(), files());
    assert!(!manifest.synced(Path::new("log/0000000000000008.raftlog"), 4_096));
    assert!(manifest.is_behind());
    assert!(manifest.synced(Path::new("log/0000000000000009.raftlog"), 69));
    assert!(!manifest.synced(Path::new("log/LOCK"), 1), "no log file");
    manifest.store().unwrap();
    assert!(!manifest.is_behind());
    assert!(manifest.forget(Path::new("log/0000000000000007.raftlog")));
    manifest.store().unwrap();
    assert!(!manifest.forget(Path::new("log/0000000000000007.raftlog")), "it has left the list");
    let stored = LogManifest::load(manifest.path()).unwrap().unwrap();
    assert_eq!(stored.of(Queue::Append), &[(8, 4_096), (9, 69)].into());
}

#[test]
fn a_full_disk_after_the_rename_is_a_failed_sync() {
    for renamed in [false, true] {
        let source = io::ErrorKind::StorageFull.into();
        let failed =
            ReplaceError { path: "log-files".into(), during: "sync of the directory", renamed, source };
        assert_eq!(is_full(&store_error(failed)), !renamed);
    }
}
