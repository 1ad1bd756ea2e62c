//! A body that is larger than any buffer, and than what is written between two syncs.

use std::sync::LazyLock;

use super::*;

const PARTS: usize = 64;
const PART_BYTES: usize = 1 << 20;

/// Each is another.
fn part(number: usize) -> Vec<u8> {
    static COMMON: LazyLock<Vec<u8>> = LazyLock::new(|| body(PART_BYTES, 7));
    let mut bytes = COMMON.clone();
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    bytes[PART_BYTES - 8..].copy_from_slice(&(!number).to_le_bytes());
    bytes
}

fn write(mut writer: Box<dyn SnapshotWriter>, from: usize) -> SnapshotMeta {
    for number in from..PARTS {
        let bytes = part(number);
        writer.write_part(&bytes, crc32c::crc32c(&bytes)).unwrap();
    }
    writer.verify(None).unwrap();
    writer.commit().unwrap()
}

fn assert_reads_back(files: &SnapshotFiles, meta: &SnapshotMeta) {
    let mut reader = BodyRead::new(files.open(meta, 0).unwrap());
    let mut bytes = vec![0; PART_BYTES];
    for number in 0..PARTS {
        reader.read_exact(&mut bytes).unwrap();
        assert!(bytes == part(number), "part {number}");
    }
    assert_eq!(reader.read(&mut bytes).unwrap(), 0);
}

/// Case 13.
#[test]
fn a_snapshot_of_64_mib_is_written_received_broken_off_and_read_back() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let files = open(here.path());
    let meta = write(files.create(&head(1)).unwrap(), 0);
    assert_eq!(meta.length, (PARTS * PART_BYTES) as u64);
    assert_reads_back(&files, &meta);

    let broken = 40;
    {
        let mut writer = open(there.path()).receive(&meta).unwrap();
        (0..broken).for_each(|number| writer.write_all(&part(number)).unwrap());
    }
    let files = open(there.path());
    let writer = files.receive(&meta).unwrap();
    assert_eq!(writer.verified(), (broken * PART_BYTES) as u64);
    assert_eq!(write(writer, broken), meta);
    assert_reads_back(&open(there.path()), &meta);
}
