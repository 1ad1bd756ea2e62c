//! The frame around everything this crate writes itself: a version, the payload, a checksum.
//!
//! ```text
//! version: u8 | payload | crc32c of both: u32, little endian
//! ```
//!
//! Upgrade policy: a reader accepts every version up to its own and refuses later ones by name. Every version, also
//! future ones, starts with its number and ends with the checksum, so that "later" and "damaged" stay different
//! answers. The bytes of each released version stay in the tests and must stay readable.

use serde::Serialize;
use serde::de::DeserializeOwned;

const CHECKSUM_BYTES: usize = 4;

/// The most one value may take while it is decoded, so that damaged lengths cannot exhaust memory.
pub(crate) const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Why a frame cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is cut short at {bytes} bytes")]
    Short { bytes: usize },
    #[error("its checksum does not match")]
    Checksum,
    #[error("it has version {found}, written by a later release; this one reads up to {newest}")]
    Later { found: u8, newest: u8 },
    #[error("its content does not decode: {detail}")]
    Content { detail: String },
}

/// Frames a payload.
pub(crate) fn seal(version: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + payload.len() + CHECKSUM_BYTES);
    out.push(version);
    out.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

/// The version and payload of a frame.
pub(crate) fn open(newest: u8, framed: &[u8]) -> Result<(u8, &[u8]), Damage> {
    let short = Damage::Short { bytes: framed.len() };
    let (body, checksum) = framed.split_last_chunk::<CHECKSUM_BYTES>().ok_or(short.clone())?;
    let (&version, payload) = body.split_first().ok_or(short)?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return Err(Damage::Checksum);
    }
    if version == 0 || version > newest {
        return Err(Damage::Later { found: version, newest });
    }
    Ok((version, payload))
}

/// A value in the encoding of every payload that is not of fixed layout.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Damage> {
    let config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
    let bytes = bincode::serde::encode_to_vec(value, config)
        .map_err(|e| Damage::Content { detail: e.to_string() })?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(Damage::Content { detail: format!("{} bytes are too many", bytes.len()) });
    }
    Ok(bytes)
}

/// The value of a payload, which must hold nothing else.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Damage> {
    let config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(payload, config)
        .map_err(|e| Damage::Content { detail: e.to_string() })?;
    if read != payload.len() {
        return Err(Damage::Content { detail: "there are bytes behind it".into() });
    }
    Ok(value)
}
