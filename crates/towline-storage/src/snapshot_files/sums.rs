//! Checksums of chunks from the checksums of their parts, so that one pass over the bytes answers for both: the sum in
//! the file, which covers the chunk's number too, and the sum on the wire, which covers bytes of several chunks.
//!
//! What follows a string changes its checksum in a way that depends on the length of what follows and is linear in
//! the checksum (over bits, with "exclusive or" for addition). The crate's own `crc32c_combine` works that out anew at
//! each call, which takes longer than a pass over a chunk; for the one length that matters it is kept here.

use std::sync::LazyLock;

use super::layout::{SNAPSHOT_CHUNK_BYTES, SUM_BYTES};

/// What becomes of each bit of a checksum that a whole chunk follows.
static BEHIND_A_CHUNK: LazyLock<[u32; 32]> =
    LazyLock::new(|| std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, SNAPSHOT_CHUNK_BYTES)));

/// The checksum of `before` followed by `length` bytes whose own checksum is `sum`. Cheap for a whole chunk alone.
pub(super) fn join(before: u32, sum: u32, length: usize) -> u32 {
    if length != SNAPSHOT_CHUNK_BYTES {
        return crc32c::crc32c_combine(before, sum, length);
    }
    let bits = BEHIND_A_CHUNK.iter().enumerate().filter(|(bit, _)| before >> bit & 1 == 1);
    bits.fold(sum, |all, (_, becomes)| all ^ becomes)
}

/// What stands before chunk `number` in the file, of `length` bytes whose own checksum is `sum`.
pub(super) fn stored(number: u64, sum: u32, length: usize) -> [u8; SUM_BYTES] {
    join(crc32c::crc32c(&number.to_le_bytes()), sum, length).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot_files::layout;

    #[test]
    fn joined_sums_are_those_of_the_bytes() {
        let bytes: Vec<u8> =
            (0..3 * SNAPSHOT_CHUNK_BYTES as u32 / 2).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        for at in [0, 1, 1000, SNAPSHOT_CHUNK_BYTES / 2, SNAPSHOT_CHUNK_BYTES, bytes.len()] {
            let (first, rest) = bytes.split_at(at);
            let joined = join(crc32c::crc32c(first), crc32c::crc32c(rest), rest.len());
            assert_eq!(joined, crc32c::crc32c(&bytes), "{at}");
        }
    }

    #[test]
    fn the_sum_in_the_file_is_the_same_from_either_pass() {
        let bytes: Vec<u8> =
            (0..SNAPSHOT_CHUNK_BYTES as u32).map(|n| (n.wrapping_mul(n) >> 5) as u8).collect();
        for number in [0, 1, 255, 1 << 40, u64::MAX] {
            for length in [1, 1000, SNAPSHOT_CHUNK_BYTES] {
                let bytes = &bytes[..length];
                let stored = stored(number, crc32c::crc32c(bytes), length);
                assert_eq!(stored, layout::chunk_sum(number, bytes), "{number}, {length}");
            }
        }
    }
}
