//! The frame around every value that this crate writes: version, payload, checksum.
//!
//! ```text
//! version: u8 | payload | crc32c of both: u32, little endian
//! ```
//!
//! Upgrade policy: a reader accepts every version up to its own and refuses later ones by number. Every version, also a
//! future one, starts with its number and ends with the checksum. A reader can therefore tell "later" from "damaged". The
//! golden files hold the bytes of each released version.

use serde::Serialize;
use serde::de::DeserializeOwned;

const CHECKSUM_BYTES: usize = 4;

/// Bytes of one decoded value. The limit keeps damaged lengths from exhausting memory.
pub(crate) const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    #[error("it is cut short at {bytes} bytes")]
    Short { bytes: usize },
    #[error("its checksum does not match")]
    Checksum,
    #[error("it has version {found}, written by a later release; this one reads up to {newest}")]
    Later { found: u8, newest: u8 },
    #[error(
        "it has version {found}, written by a build from before the first release; this one reads from version {oldest} up: \
         found the group again on empty data directories of all its nodes, or run that build"
    )]
    Earlier { found: u8, oldest: u8 },
    #[error("its content does not decode: {detail}")]
    Content { detail: String },
}

pub(crate) fn seal(version: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + payload.len() + CHECKSUM_BYTES);
    out.push(version);
    out.extend_from_slice(payload);
    let checksum = crc32c::crc32c(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out
}

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

/// Opens a frame of which no release wrote an older version than `only`.
pub(crate) fn open_only(only: u8, framed: &[u8]) -> Result<&[u8], Damage> {
    match open(only, framed)? {
        (found, _) if found < only => Err(Damage::Earlier { found, oldest: only }),
        (_, payload) => Ok(payload),
    }
}

/// Encodes a value, for payloads without a fixed layout.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Damage> {
    let config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
    let bytes = bincode::serde::encode_to_vec(value, config)
        .map_err(|e| Damage::Content { detail: e.to_string() })?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(Damage::Content {
            detail: format!("{} bytes, above the limit of {VALUE_BYTES_MAX}", bytes.len()),
        });
    }
    Ok(bytes)
}

/// Decodes a payload that holds one value and nothing else.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Damage> {
    let config = bincode::config::standard().with_limit::<VALUE_BYTES_MAX>();
    let (value, read) = bincode::serde::decode_from_slice(payload, config)
        .map_err(|e| Damage::Content { detail: e.to_string() })?;
    if read != payload.len() {
        return Err(Damage::Content { detail: "more bytes follow".into() });
    }
    Ok(value)
}
