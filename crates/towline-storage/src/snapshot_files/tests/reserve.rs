//! The disk space that is reserved for the log.
//!
//! The log lies beside the snapshots. Without the reserve, a snapshot took the last bytes of the disk, the next append
//! failed, and the node ended.

use super::*;
use crate::faults::DiskFaults;

const MIB: u64 = 1 << 20;
const RESERVE: u64 = 5 * MIB;
/// The room that a new snapshot of this node needs.
const STEP: u64 = writer::SYNC_BYTES;

fn on_small_disk(dir: &Path, disk_reserve_bytes: u64, free_bytes: u64) -> (SnapshotFiles, DiskFaults) {
    let faults = DiskFaults::new();
    faults.leave_free(Some(free_bytes));
    let ops = FileOps::with_hook(Arc::new(faults.for_snapshots()));
    let disk_reserve_bytes = ByteSize::bytes(disk_reserve_bytes);
    let config = SnapshotConfig { disk_reserve_bytes, ..SnapshotConfig::default() };
    (SnapshotFiles::open_with(dir, &config, ops, None).unwrap(), faults)
}

fn free(files: &SnapshotFiles) -> u64 {
    files.dir.ops.free_bytes(Path::new(".")).unwrap()
}

/// The wanted, free and reserved bytes of a refusal.
fn no_room<T>(outcome: Result<T, SnapshotStoreError>) -> Option<(u64, u64, u64)> {
    match outcome {
        Err(SnapshotStoreError::NoRoom { wanted_bytes, free_bytes, reserve_bytes }) => {
            Some((wanted_bytes, free_bytes, reserve_bytes))
        }
        _ => None,
    }
}

#[test]
fn making_a_snapshot_starts_only_if_the_next_step_fits_beside_the_reserve() {
    let dir = TempDir::new().unwrap();
    let (files, disk) = on_small_disk(dir.path(), RESERVE, RESERVE + STEP - 1);
    assert_eq!(no_room(files.create(&head(1))), Some((STEP, RESERVE + STEP - 1, RESERVE)));
    assert_eq!(names(dir.path()).len(), 0);
    disk.leave_free(Some(RESERVE + STEP));
    create(&files, &head(1), b"body").unwrap();
}

#[test]
fn a_snapshot_of_an_expected_length_fits_only_whole_and_beside_the_reserve() {
    let dir = TempDir::new().unwrap();
    let bytes = 40 * MIB;
    let stored = layout::stored_bytes(bytes).unwrap();
    let (files, disk) = on_small_disk(dir.path(), RESERVE, RESERVE + stored - 1);
    assert_eq!(no_room(files.check_room(bytes)), Some((stored, RESERVE + stored - 1, RESERVE)));
    disk.leave_free(Some(RESERVE + stored));
    files.check_room(bytes).unwrap();
}

#[test]
fn making_a_snapshot_fails_before_it_uses_the_reserve() {
    let dir = TempDir::new().unwrap();
    let before = RESERVE + STEP + 8 * MIB;
    let (files, _disk) = on_small_disk(dir.path(), RESERVE, before);
    let mut writer = files.create(&head(1)).unwrap();
    let part = body(MIB as usize, 1);
    let mut written = 0;
    let refused = loop {
        match writer.write_all(&part) {
            Ok(()) => written += MIB,
            Err(refused) => break refused,
        }
        assert!(free(&files) >= RESERVE, "the reserve is used after {written} bytes");
    };
    assert_eq!(written, STEP - MIB, "the room is checked after each step");
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    assert!(refused.to_string().contains(&format!("{RESERVE} of these are kept for the log")), "{refused}");
    assert!(writer.write_all(&part).is_err(), "it stays failed");
    drop(writer);
    assert_eq!(names(dir.path()).len(), 0);
    assert_eq!(free(&files), before, "its bytes are free again");
}

#[test]
fn a_received_snapshot_that_does_not_fit_is_refused_before_its_first_byte() {
    let dir = TempDir::new().unwrap();
    let bytes = body(2 * CHUNK + 9, 1);
    let meta = meta_of(&head(1), &bytes);
    let stored = bytes.len() as u64 + 3 * 4;
    let (files, disk) = on_small_disk(dir.path(), RESERVE, RESERVE + stored - 1);
    assert_eq!(no_room(files.receive(&meta)), Some((stored, RESERVE + stored - 1, RESERVE)));
    assert_eq!((names(dir.path()).len(), files.partials(GROUP)), (0, SnapshotPartials::default()));
    // The part that is already there needs no more room.
    disk.leave_free(Some(RESERVE + stored));
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
    disk.leave_free(Some(RESERVE + stored - CHUNK as u64));
    assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta);
    assert_eq!(read(&files, &meta), bytes);
}

#[test]
fn partial_files_of_other_transfers_make_room_for_one_that_does_not_fit() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (body(3 * CHUNK, 1), body(2 * CHUNK, 2));
    let (older, newer) = (meta_of(&head(1), &old), meta_of(&head(2), &new));
    let (files, disk) = on_small_disk(dir.path(), RESERVE, u64::MAX);
    files.receive(&older).unwrap().write_all(&old[..2 * CHUNK]).unwrap();
    assert_eq!(files.partials(GROUP).files, 1);
    disk.leave_free(Some(RESERVE + CHUNK as u64));
    assert_eq!(receive(&files, &newer, &new).unwrap(), newer);
    assert_eq!((files.partials(GROUP).evicted, names(dir.path()).len()), (1, 1));
    // The transfer's own partial file stays, even without room for the rest.
    disk.leave_free(Some(u64::MAX));
    files.receive(&older).unwrap().write_all(&old[..2 * CHUNK]).unwrap();
    disk.leave_free(Some(RESERVE));
    assert!(no_room(files.receive(&older)).is_some());
    assert_eq!(files.partials(GROUP).files, 1);
}

#[test]
fn receiving_a_snapshot_fails_if_other_writers_take_its_room() {
    let dir = TempDir::new().unwrap();
    let part = body(MIB as usize, 1);
    let meta = meta_of_parts(&part, 40);
    let (files, disk) = on_small_disk(dir.path(), RESERVE, RESERVE + 41 * MIB);
    let mut writer = files.receive(&meta).unwrap();
    (0..31).for_each(|_| writer.write_all(&part).unwrap());
    // After the next part, eight are missing.
    disk.leave_free(Some(RESERVE + 9 * MIB - 1));
    let refused = writer.write_all(&part).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
    drop(writer);
    assert_eq!(names(dir.path()).len(), 0, "the partial file is removed");
}

#[test]
fn a_complete_body_is_finished_within_the_reserve() {
    let dir = TempDir::new().unwrap();
    let bytes = body(CHUNK + 9, 1);
    let meta = meta_of(&head(1), &bytes);
    let (files, disk) = on_small_disk(dir.path(), RESERVE, u64::MAX);
    files.receive(&meta).unwrap().write_all(&bytes).unwrap();
    disk.leave_free(Some(RESERVE / 2));
    assert_eq!(receive(&files, &meta, &bytes).unwrap(), meta);
    assert_eq!(read(&files, &meta), bytes);
}

#[test]
fn a_reserve_of_zero_disables_the_check() {
    let dir = TempDir::new().unwrap();
    let (files, _disk) = on_small_disk(dir.path(), 0, 4096);
    create(&files, &head(1), b"body").unwrap();
    let bytes = body(CHUNK, 2);
    let full = receive(&files, &meta_of(&head(2), &bytes), &bytes).unwrap_err();
    assert!(matches!(full, SnapshotStoreError::Io { .. }), "the disk itself fails: {full}");
}

#[test]
fn the_check_queries_the_real_file_system() {
    let dir = TempDir::new().unwrap();
    let config = SnapshotConfig { disk_reserve_bytes: ByteSize::MAX, ..SnapshotConfig::default() };
    let files = SnapshotFiles::open_with(dir.path(), &config, FileOps::default(), None).unwrap();
    let (_, free, _) = no_room(files.create(&head(1))).unwrap();
    assert!(free > 0);
}
