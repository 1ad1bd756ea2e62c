//! Bodies in parts with checksums.

use super::*;

/// Reads all parts and checks sizes, checksums and the end.
fn parts(reader: &mut dyn SnapshotReader, bytes_max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(part) = reader.next_part(bytes_max).unwrap() {
        assert!((1..=bytes_max.max(1)).contains(&part.bytes.len()), "{} of {bytes_max}", part.bytes.len());
        assert_eq!(part.crc32c, crc32c::crc32c(&part.bytes), "at most {bytes_max}, at {}", bytes.len());
        bytes.extend_from_slice(&part.bytes);
    }
    assert_eq!(reader.next_part(bytes_max).unwrap(), None, "a part follows the end");
    bytes
}

fn put_part(writer: &mut dyn SnapshotWriter, bytes: &[u8]) {
    writer.write_part(bytes, crc32c::crc32c(bytes)).unwrap();
}

fn invalid<T: std::fmt::Debug>(outcome: io::Result<T>) -> bool {
    outcome.unwrap_err().kind() == io::ErrorKind::InvalidData
}

pub fn every_part_carries_its_own_checksum(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let bytes = body(5 * chunk + 9, 1);
    let meta = open.put(&head(1), &bytes);
    for bytes_max in [1000, chunk - 1, chunk, chunk + 1, 2 * chunk, 4 * chunk + 1, 64 * chunk, usize::MAX] {
        for offset in [0, 1, chunk - 1, chunk, 2 * chunk + 77, 5 * chunk, 5 * chunk + 8, bytes.len()] {
            let mut reader = open.store().open(&meta, offset as u64).unwrap();
            assert!(parts(&mut *reader, bytes_max) == bytes[offset..], "{bytes_max} from {offset}");
        }
    }
    for bytes_max in [0, 1] {
        let mut reader = open.store().open(&meta, 5 * chunk as u64 - 3).unwrap();
        assert_eq!(parts(&mut *reader, bytes_max), bytes[5 * chunk - 3..]);
    }
    // Mixed sizes: the rest of a chunk, then whole chunks.
    let mut reader = open.store().open(&meta, 0).unwrap();
    let mut out = Vec::new();
    for bytes_max in [10, usize::MAX, 2 * chunk, 1, chunk].into_iter().cycle() {
        let Some(part) = reader.next_part(bytes_max).unwrap() else { break };
        assert_eq!(part.crc32c, crc32c::crc32c(&part.bytes));
        out.extend_from_slice(&part.bytes);
    }
    assert!(out == bytes);
}

pub fn parts_end_before_damage(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let bytes = body(6 * chunk + 50, 1);
    for (number, at) in [0, chunk - 1, 2 * chunk, 5 * chunk + 1, 6 * chunk + 49].into_iter().enumerate() {
        let meta = open.put(&head(1 + number as u64), &bytes);
        open.damage(&meta, at);
        let sound = at - at % chunk;
        for bytes_max in [1000, chunk, 4 * chunk, usize::MAX] {
            for offset in [0, 1].map(|offset| offset.min(sound)) {
                let mut reader = open.store().open(&meta, offset as u64).unwrap();
                let mut out = Vec::new();
                let refused = loop {
                    match reader.next_part(bytes_max) {
                        Ok(part) => out.extend_from_slice(&part.expect("the damage was not noticed").bytes),
                        Err(refused) => break refused,
                    }
                };
                assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
                assert!(out == bytes[offset..sound], "bytes before the damage differ");
                for _ in 0..3 {
                    assert!(reader.next_part(bytes_max).is_err(), "a part follows the damage");
                }
            }
        }
    }
}

pub fn parts_do_not_change_while_they_are_held(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let bytes = body(20 * chunk + 9, 1);
    let meta = open.put(&head(1), &bytes);
    let mut reader = open.store().open(&meta, 5).unwrap();
    let mut held = Vec::new();
    let mut at = 5;
    while let Some(part) = reader.next_part(chunk).unwrap() {
        let bytes = part.bytes.len();
        held.push((at, part));
        at += bytes;
        if held.len() % 3 == 0 {
            held.remove(held.len() / 2);
        }
    }
    drop(reader);
    for (at, part) in held {
        assert!(part.bytes == bytes[at..at + part.bytes.len()], "the part at {at} has changed");
    }
}

pub fn a_body_may_be_written_in_parts_of_any_size(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let sizes = [1000, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk + 5, 64 * chunk];
    for (number, size) in sizes.into_iter().enumerate() {
        let bytes = body(6 * chunk + 77, number as u64);
        let meta = meta_of(&head(1 + number as u64), &bytes);
        let mut writer = open.receive(&meta);
        for (number, part) in bytes.chunks(size).enumerate() {
            // Mixed with bytes without checksums.
            match number % 5 {
                3 => writer.write_all(part).unwrap(),
                _ => put_part(&mut *writer, part),
            }
            put_part(&mut *writer, &[]);
            assert!(writer.verified() <= bytes.len() as u64);
        }
        writer.verify(Some(&trailer(&meta))).unwrap();
        assert_eq!(writer.commit().unwrap(), meta);
        assert!(open.read(&meta, 0) == bytes, "{size}");
        let mut writer = open.store().create(&meta.head).unwrap();
        bytes.chunks(size).for_each(|part| put_part(&mut *writer, part));
        writer.verify(None).unwrap();
        assert_eq!(writer.commit().unwrap(), meta);
        open.restart();
        assert!(open.read(&meta, 0) == bytes, "{size}");
    }
}

pub fn a_broken_transfer_resumes_in_parts(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    for (number, broken_at) in
        [1, chunk - 1, chunk, chunk + 1, 2 * chunk, 2 * chunk + 77].into_iter().enumerate()
    {
        let bytes = body(5 * chunk + 100, number as u64);
        let meta = meta_of(&head(1 + number as u64), &bytes);
        let mut writer = open.receive(&meta);
        bytes[..broken_at].chunks(2 * chunk).for_each(|part| put_part(&mut *writer, part));
        writer.flush().unwrap();
        drop(writer);
        open.restart();
        let mut writer = open.receive(&meta);
        assert_eq!(writer.verified(), broken_at as u64);
        bytes[broken_at..].chunks(2 * chunk).for_each(|part| put_part(&mut *writer, part));
        writer.verify(Some(&trailer(&meta))).unwrap();
        assert_eq!(writer.commit().unwrap(), meta);
        assert!(open.read(&meta, 0) == bytes, "{broken_at}");
    }
}

pub fn a_part_with_a_wrong_checksum_is_refused(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let mut number = 0;
    // Parts at the start and in the middle of a chunk.
    for before in [0, 1, chunk, chunk + 9] {
        for length in [1, 1000, chunk, 2 * chunk, 2 * chunk + 9] {
            number += 1;
            let bytes = body(before + length, number);
            let meta = meta_of(&head(number), &bytes);
            let mut writer = open.receive(&meta);
            writer.write_all(&bytes[..before]).unwrap();
            let verified = writer.verified();
            let part = &bytes[before..];
            let sum = crc32c::crc32c(part);
            for wrong in [sum ^ 1, sum ^ 1 << 31, !sum] {
                assert!(invalid(writer.write_part(part, wrong)), "{length} behind {before}");
            }
            for at in [0, length / 2, length - 1] {
                let mut bad = part.to_vec();
                bad[at] ^= 1;
                assert!(invalid(writer.write_part(&bad, sum)), "byte {at} of {length} behind {before}");
            }
            assert!(invalid(writer.write_part(&[], 1)));
            assert_eq!(writer.verified(), verified, "the writer took a refused part");
            writer.write_part(part, sum).unwrap();
            writer.verify(Some(&trailer(&meta))).unwrap();
            assert_eq!(writer.commit().unwrap(), meta);
        }
    }
}

pub fn a_part_beyond_the_end_is_refused_and_removed(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    for length in [0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk + 7] {
        for more in [1, chunk, 2 * chunk] {
            let long = body(length + more, 1);
            let meta = meta_of(&head(1), &long[..length]);
            assert_refused(&open, &meta, |writer| {
                let _ = writer.write_part(&long, crc32c::crc32c(&long));
            });
            assert_refused(&open, &meta, |writer| {
                put_part(writer, &long[..length]);
                let _ = writer.write_part(&long[length..], crc32c::crc32c(&long[length..]));
            });
        }
    }
}

pub fn a_part_after_verify_voids_the_verification(open: OpenSnapshotStore) {
    let bytes = body(3 * open.chunk(), 1);
    for length in [1, open.chunk()] {
        let mut writer = open.store().create(&head(1)).unwrap();
        put_part(&mut *writer, &bytes[..length]);
        writer.verify(None).unwrap();
        put_part(&mut *writer, &bytes[length..]);
        assert!(corrupt(writer.commit()));
        open.assert_gone(&meta_of(&head(1), &bytes));
    }
}
