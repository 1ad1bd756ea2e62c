//! The four small values that the log stores for a group beside its entries, each in a [frame](crate::format).

use towline_engine::ids::{FoundingHash, NodeId};
use towline_engine::log_store::ConfRecord;
use towline_engine::message::{ConfState, HardState, LogId, MemberTable};
use towline_engine::snapshot_store::ContentId;

use crate::format::{self, Damage};

pub(crate) const HARD_STATE_KEY: &[u8] = b"h";
pub(crate) const CONF_KEY: &[u8] = b"c";
pub(crate) const TRUNCATED_KEY: &[u8] = b"t";
pub(crate) const INSTALLING_KEY: &[u8] = b"i";

const HARD_STATE_VERSION: u8 = 1;
const CONF_VERSION: u8 = 2;
const TRUNCATED_VERSION: u8 = 1;
const INSTALLING_VERSION: u8 = 1;

/// `term | vote (0: none) | commit`, each u64 little endian.
pub(crate) fn encode_hard_state(state: &HardState) -> Vec<u8> {
    let vote = state.vote.map_or(0, NodeId::as_u64);
    format::seal(HARD_STATE_VERSION, &words([state.term, vote, state.commit]))
}

pub(crate) fn decode_hard_state(framed: &[u8]) -> Result<HardState, Damage> {
    let (_, payload) = format::open(HARD_STATE_VERSION, framed)?;
    let [term, vote, commit] = read_words(payload)?;
    Ok(HardState { term, vote: NodeId::new(vote), commit })
}

/// `index | term`, each u64 little endian.
pub(crate) fn encode_truncated(at: LogId) -> Vec<u8> {
    format::seal(TRUNCATED_VERSION, &words([at.index, at.term]))
}

pub(crate) fn decode_truncated(framed: &[u8]) -> Result<LogId, Damage> {
    let (_, payload) = format::open(TRUNCATED_VERSION, framed)?;
    let [index, term] = read_words(payload)?;
    Ok(LogId { index, term })
}

/// The 16 bytes of the id, or no bytes when no installation is under way.
///
/// The record is overwritten and never deleted. A deleted value can come back: raft-engine may move the value to another
/// file and purge the file with the deletion.
pub(crate) fn encode_installing(content: Option<ContentId>) -> Vec<u8> {
    format::seal(INSTALLING_VERSION, content.as_ref().map_or(&[], |c| &c.0))
}

pub(crate) fn decode_installing(framed: &[u8]) -> Result<Option<ContentId>, Damage> {
    let (_, payload) = format::open(INSTALLING_VERSION, framed)?;
    if payload.is_empty() {
        return Ok(None);
    }
    payload.try_into().map(|id| Some(ContentId(id))).map_err(|_| Damage::Short { bytes: framed.len() })
}

/// Membership, index, member table and founding hash, in that order.
pub(crate) fn encode_conf(conf: &ConfRecord) -> Result<Vec<u8>, Damage> {
    let payload = format::encode(&(&conf.conf_state, conf.index, &conf.members, conf.founding))?;
    Ok(format::seal(CONF_VERSION, &payload))
}

pub(crate) fn decode_conf(framed: &[u8]) -> Result<ConfRecord, Damage> {
    let payload = format::open_only(CONF_VERSION, framed)?;
    let (conf_state, index, members, founding): (ConfState, u64, MemberTable, FoundingHash) =
        format::decode(payload)?;
    Ok(ConfRecord { conf_state, index, members, founding })
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn read_words<const N: usize>(payload: &[u8]) -> Result<[u64; N], Damage> {
    if payload.len() != N * size_of::<u64>() {
        return Err(Damage::Short { bytes: payload.len() });
    }
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(payload.chunks_exact(size_of::<u64>())) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    }
    Ok(words)
}

#[cfg(test)]
mod tests;
