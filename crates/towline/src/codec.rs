//! Encodes application commands with serde and bincode, under a size limit.
//!
//! The bytes carry no version and no checksum. Commands stay in the log of every node until its compaction. So change a
//! command type only by new variants at the end of its enum, and upgrade every node before any node proposes a new variant.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use towline::codec;
//!
//! const COMMAND_BYTES_MAX: usize = 64 << 10;
//!
//! #[derive(Debug, PartialEq, Serialize, Deserialize)]
//! enum Command<'a> {
//!     Add { account: u64, cents: i64 },
//!     Rename { account: u64, name: &'a str }, // borrowed from the bytes: no copy
//! }
//!
//! let command = Command::Rename { account: 7, name: "petty cash" };
//! let bytes = codec::encode(&command, COMMAND_BYTES_MAX)?;
//! assert_eq!(codec::decode::<Command>(&bytes, COMMAND_BYTES_MAX)?, command);
//! # Ok::<(), codec::CodecError>(())
//! ```

use bincode::config::{Configuration, standard};
use bincode::enc::write::Writer;
use bincode::error::{DecodeError, EncodeError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The largest limit: a larger `bytes_max` counts as this one.
pub const BYTES_MAX: usize = 64 << 20;

/// Values up to this size take one allocation.
const FIRST_ALLOCATION_BYTES: usize = 128;

/// Encodes `value` in bincode's standard configuration: little endian, variable-length integers.
///
/// # Errors
/// [`CodecError::TooLarge`] for more than `bytes_max` bytes; [`CodecError::Encode`] if the type cannot be encoded.
pub fn encode<T: Serialize + ?Sized>(value: &T, bytes_max: usize) -> Result<Bytes, CodecError> {
    let bytes_max = bytes_max.min(BYTES_MAX);
    let mut out =
        Bounded { bytes: Vec::with_capacity(FIRST_ALLOCATION_BYTES.min(bytes_max)), bytes_max, full: false };
    match bincode::serde::encode_into_writer(value, &mut out, standard()) {
        Ok(()) => Ok(out.bytes.into()),
        Err(_) if out.full => Err(CodecError::TooLarge { bytes_max }),
        Err(source) => Err(CodecError::Encode { source }),
    }
}

/// Decodes a value that [`encode`] made. `T` may borrow from `bytes`.
///
/// A forged length can claim at most 16 times `bytes_max` of memory, rounded up to 1 MiB, 16 MiB or 1 GiB.
///
/// # Errors
/// [`CodecError::TooLarge`] if `bytes` is longer than `bytes_max`; [`CodecError::Decode`] if it is no `T`;
/// [`CodecError::Trailing`] if bytes follow the value.
pub fn decode<'de, T: Deserialize<'de>>(bytes: &'de [u8], bytes_max: usize) -> Result<T, CodecError> {
    let bytes_max = bytes_max.min(BYTES_MAX);
    if bytes.len() > bytes_max {
        return Err(CodecError::TooLarge { bytes_max });
    }
    // In steps, because bincode's limit is a constant of the type. It counts the memory of containers, not the input.
    const SMALL: Configuration<
        bincode::config::LittleEndian,
        bincode::config::Varint,
        bincode::config::Limit<{ 1 << 20 }>,
    > = standard().with_limit();
    let decoded = match bytes_max {
        0..=0x1_0000 => bincode::serde::borrow_decode_from_slice(bytes, SMALL),
        0x1_0001..=0x10_0000 => {
            bincode::serde::borrow_decode_from_slice(bytes, standard().with_limit::<{ 16 << 20 }>())
        }
        _ => bincode::serde::borrow_decode_from_slice(bytes, standard().with_limit::<{ 1 << 30 }>()),
    };
    match decoded {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => Err(CodecError::Trailing { bytes: bytes.len().saturating_sub(used) }),
        Err(source) => Err(CodecError::Decode { source: Box::new(source) }),
    }
}

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
    full: bool,
}

impl Writer for Bounded {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        if self.bytes.len().saturating_add(bytes.len()) > self.bytes_max {
            self.full = true;
            return Err(EncodeError::UnexpectedEnd);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

/// Why a value could not be encoded or decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value is longer than allowed. Likely the application accepted a command that is too large.
    #[error("longer than the limit of {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The type cannot be encoded, such as a sequence of unknown length.
    #[error("cannot be encoded")]
    Encode {
        /// Bincode's reason.
        source: EncodeError,
    },
    /// The bytes are no value of this type. Likely another version of the application wrote them.
    #[error("not a value of the expected type")]
    Decode {
        /// Bincode's reason.
        source: Box<DecodeError>,
    },
    /// Bytes follow the value. Likely another version of the application wrote them.
    #[error("{bytes} bytes follow the value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl From<CodecError> for towline_engine::state_machine::Fatal {
    fn from(cause: CodecError) -> Self {
        Self::new(cause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_value_never_change() {
        assert_eq!(&encode(&(1_u8, 300_u64, "ab"), 100).unwrap()[..], [1, 251, 44, 1, 2, b'a', b'b']);
    }

    #[test]
    fn the_limit_is_exact_in_both_directions() {
        let value = "x".repeat(99); // one byte of length before it
        let bytes = encode(&value, 100).unwrap();
        assert_eq!(bytes.len(), 100);
        assert!(matches!(encode(&value, 99), Err(CodecError::TooLarge { bytes_max: 99 })));
        assert!(decode::<String>(&bytes, 100).is_ok());
        assert!(matches!(decode::<String>(&bytes, 99), Err(CodecError::TooLarge { bytes_max: 99 })));
    }

    #[test]
    fn bytes_after_a_value_are_refused() {
        assert!(matches!(decode::<u8>(&[1, 2, 3], 100), Err(CodecError::Trailing { bytes: 2 })));
    }

    #[test]
    fn a_forged_length_claims_no_memory() {
        // 253: eight bytes of length follow.
        let forged = [253, 0, 0, 0, 0, 0, 1, 0, 0];
        assert!(matches!(decode::<String>(&forged, 100), Err(CodecError::Decode { .. })));
        assert!(matches!(decode::<Vec<u64>>(&forged, 2 << 20), Err(CodecError::Decode { .. })));
    }
}
