use tempfile::TempDir;

use super::*;

fn golden() -> Vec<u8> {
    let path = format!("{}/tests/golden/log_files_v1.hex", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).unwrap();
    let text = text.trim();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn files() -> LogFiles {
    let mut files = LogFiles::default();
    files.insert(Queue::Append, 7, 67_108_900);
    files.insert(Queue::Append, 8, 69);
    files.insert(Queue::Rewrite, 1, 0);
    files
}

#[test]
fn v1_is_written_and_read_as_released() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    assert_eq!(LogManifest::load(&path).unwrap(), None);
    LogManifest::new(&path, LogFiles::default(), files()).store().unwrap();
    assert_eq!(fs::read(&path).unwrap(), golden());
    assert_eq!(LogManifest::load(&path).unwrap(), Some(files()));
}

#[test]
fn any_flipped_bit_names_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    let good = golden();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, bad).unwrap();
        let refused = LogManifest::load(&path).unwrap_err();
        assert!(
            matches!(&refused, LogError::Corrupt { place, .. } if place.ends_with("log-files")),
            "{refused}"
        );
    }
}

#[test]
fn a_damaged_list_says_what_to_do_and_a_list_of_a_later_release_may_not_be_removed() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log-files");
    let text = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        LogManifest::load(&path).unwrap_err().to_string()
    };
    let damaged = text(&golden()[1..]);
    assert!(damaged.contains("its checksum does not match; if no log file was lost"), "{damaged}");
    assert!(damaged.contains("remove this file and start again"), "{damaged}");
    let later = text(&format::seal(MANIFEST_VERSION + 1, b""));
    assert!(later.contains("written by a later release") && !later.contains("remove"), "{later}");
}

#[test]
fn a_new_file_and_a_deletion_must_be_stored_and_a_longer_file_need_not() {
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
    assert!(!manifest.forget(Path::new("log/0000000000000007.raftlog")), "it is not listed any more");
    let stored = LogManifest::load(manifest.path()).unwrap().unwrap();
    assert_eq!(stored.of(Queue::Append), &[(8, 4_096), (9, 69)].into());
}
