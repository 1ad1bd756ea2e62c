//! Joins checksums, so that one pass over the bytes gives two sums: that in the file, which also covers the chunk's number,
//! and that on the wire, which covers several chunks.
//!
//! Appending bytes maps the checksum of a string linearly (over bits, with exclusive or as addition), by a map that depends
//! only on their number. `crc32c_combine` computes this map at each call, which takes longer than a pass over a chunk. This
//! module keeps the map of one whole chunk.

use std::sync::LazyLock;

use super::layout::{SNAPSHOT_CHUNK_BYTES, SUM_BYTES};

/// The image of each checksum bit when a whole chunk follows.
static BEHIND_A_CHUNK: LazyLock<[u32; 32]> =
    LazyLock::new(|| std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, SNAPSHOT_CHUNK_BYTES)));

/// The checksum of a string with checksum `before` and `length` more bytes with checksum `sum`. Fast only for a whole chunk.
pub(super) fn join(before: u32, sum: u32, length: usize) -> u32 {
    if length != SNAPSHOT_CHUNK_BYTES {
        return crc32c::crc32c_combine(before, sum, length);
    }
    let bits = BEHIND_A_CHUNK.iter().enumerate().filter(|(bit, _)| before >> bit & 1 == 1);
    bits.fold(sum, |all, (_, becomes)| all ^ becomes)
}

/// The checksum in the file of chunk `number`, from its length and the checksum of its bytes.
pub(super) fn stored(number: u64, sum: u32, length: usize) -> [u8; SUM_BYTES] {
    join(crc32c::crc32c(&number.to_le_bytes()), sum, length).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot_files::layout;

    #[test]
    fn joined_sums_equal_the_sum_of_the_whole() {
        let bytes: Vec<u8> =
            (0..3 * SNAPSHOT_CHUNK_BYTES as u32 / 2).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        for at in [0, 1, 1000, SNAPSHOT_CHUNK_BYTES / 2, SNAPSHOT_CHUNK_BYTES, bytes.len()] {
            let (first, rest) = bytes.split_at(at);
            let joined = join(crc32c::crc32c(first), crc32c::crc32c(rest), rest.len());
            assert_eq!(joined, crc32c::crc32c(&bytes), "{at}");
        }
    }

    #[test]
    fn a_stored_sum_equals_the_sum_of_number_and_bytes() {
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
