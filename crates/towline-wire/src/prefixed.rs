//! Length-prefixed frames on a byte stream.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use prost::encoding::{
    WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, key_len,
};

use crate::error::WireError;
use crate::frames::decode_frame;
use crate::limits::FRAME_BYTES_MAX;
use crate::pb::{self, frame::Kind};

/// The header before each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefix {
    /// The frame's length: four bytes in network order.
    #[default]
    Length,
    /// The header of gRPC: a zero byte (not compressed), then the length.
    Grpc,
}

const LENGTH_BYTES: usize = size_of::<u32>();

impl Prefix {
    const fn bytes(self) -> usize {
        match self {
            Self::Length => LENGTH_BYTES,
            Self::Grpc => 1 + LENGTH_BYTES,
        }
    }

    fn put(self, length: usize, to: &mut BytesMut) {
        if self == Self::Grpc {
            to.put_u8(0);
        }
        // A frame that this crate made is always within the limits; a longer one is refused by the receiver.
        to.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

/// Payloads of at least this size become a separate piece. Copying a shorter payload is cheaper than sending it alone.
const PIECE_BYTES_MIN: usize = 16 << 10;

/// Encodes a frame behind its four-byte length, with one allocation and one copy.
pub fn prefixed(frame: &pb::Frame) -> Bytes {
    whole(frame, Prefix::Length)
}

fn whole(frame: &pb::Frame, prefix: Prefix) -> Bytes {
    let length = frame.encoded_len();
    let mut bytes = BytesMut::with_capacity(prefix.bytes() + length);
    prefix.put(length, &mut bytes);
    // Encoding fails only without room, and a `BytesMut` grows.
    let _ = frame.encode(&mut bytes);
    bytes.freeze()
}

/// Encodes a frame behind its length as consecutive pieces, some of which may be empty. The payload of a large snapshot
/// chunk is a separate piece and is not copied.
pub fn pieces(frame: &pb::Frame, prefix: Prefix) -> [Bytes; 3] {
    match &frame.kind {
        Some(Kind::Chunk(chunk)) if chunk.data.len() >= PIECE_BYTES_MIN => pieces_of(chunk, prefix),
        _ => [whole(frame, prefix), Bytes::new(), Bytes::new()],
    }
}

/// Field numbers of the schema.
const FRAME_CHUNK: u32 = 8;
const CHUNK_OFFSET: u32 = 1;
const CHUNK_DATA: u32 = 2;

fn pieces_of(chunk: &pb::Chunk, prefix: Prefix) -> [Bytes; 3] {
    let before = pb::Chunk { offset: chunk.offset, ..pb::Chunk::default() };
    let behind = pb::Chunk { crc32c: chunk.crc32c, ..pb::Chunk::default() };
    let data = chunk.data.len();
    let inner = before.encoded_len()
        + key_len(CHUNK_DATA)
        + encoded_len_varint(data as u64)
        + data
        + behind.encoded_len();
    let frame = key_len(FRAME_CHUNK) + encoded_len_varint(inner as u64) + inner;
    let mut first = BytesMut::with_capacity(prefix.bytes() + frame - data - behind.encoded_len());
    prefix.put(frame, &mut first);
    encode_key(FRAME_CHUNK, WireType::LengthDelimited, &mut first);
    encode_varint(inner as u64, &mut first);
    before.encode_raw(&mut first);
    encode_key(CHUNK_DATA, WireType::LengthDelimited, &mut first);
    encode_varint(data as u64, &mut first);
    [first.freeze(), chunk.data.clone(), behind.encode_to_vec().into()]
}

/// Shorter pieces are copied into one buffer. Each separate piece costs memory, and a peer could send
/// bytes one by one.
const KEPT_BYTES_MIN: usize = 256;

/// A chunk's payload of at least this size, pushed as a separate piece, is used without a copy. It keeps the transport's
/// read buffer alive, of which the payload is the largest part.
const WHOLE_BYTES_MIN: usize = 128 << 10;

/// Bytes that may follow the payload of a chunk that is not copied: its checksum.
const BEHIND_BYTES_MAX: usize = 16;

/// Offset and payload length of a chunk, if `first` is exactly the part of a chunk frame of `length` bytes that precedes its
/// payload.
fn chunk_head(first: &[u8], length: usize) -> Option<(u64, usize)> {
    let mut rest = first;
    if decode_key(&mut rest).ok()? != (FRAME_CHUNK, WireType::LengthDelimited) {
        return None;
    }
    let inner = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
    if inner != length.checked_sub(first.len() - rest.len())? {
        return None;
    }
    let mut offset = 0;
    loop {
        match decode_key(&mut rest).ok()? {
            (CHUNK_OFFSET, WireType::Varint) => offset = decode_varint(&mut rest).ok()?,
            (CHUNK_DATA, WireType::LengthDelimited) => {
                let data = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
                return rest.is_empty().then_some((offset, data));
            }
            _ => return None,
        }
    }
}

/// Splits a byte stream into frames. It holds only what was pushed since the last frame, and checks each length before it
/// allocates.
#[derive(Debug, Default)]
pub struct Prefixed {
    prefix: Prefix,
    chunks: VecDeque<Bytes>,
    /// Short pieces, after all chunks.
    tail: BytesMut,
    length: usize,
}

impl Prefixed {
    /// For a stream whose frames have this header.
    pub fn new(prefix: Prefix) -> Self {
        Self { prefix, ..Self::default() }
    }

    /// Appends the next bytes of the stream.
    pub fn push(&mut self, bytes: Bytes) {
        self.length = self.length.saturating_add(bytes.len());
        if bytes.len() < KEPT_BYTES_MIN {
            self.tail.extend_from_slice(&bytes);
        } else {
            self.end_tail();
            self.chunks.push_back(bytes);
        }
    }

    /// Whether no byte is left. A stream that ends with bytes left was truncated.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the next frame, if all of it was pushed. A frame longer than `bytes_max` is refused as soon as its length is
    /// known.
    ///
    /// The payloads of a frame are copies, because the pushed bytes may be slices of a much larger buffer. One exception:
    /// the payload of a large snapshot chunk that was pushed as one piece is that piece.
    ///
    /// # Errors
    /// As [`decode_frame`]. The rest of the stream cannot be decoded.
    pub fn next_frame(&mut self, bytes_max: usize) -> Result<Option<pb::Frame>, WireError> {
        let bytes_max = bytes_max.min(FRAME_BYTES_MAX);
        let Some(length) = self.peek_length()? else { return Ok(None) };
        if length > bytes_max {
            return Err(WireError::FrameTooLarge { bytes: length, bytes_max });
        }
        if self.length < self.prefix.bytes() + length {
            return Ok(None);
        }
        self.end_tail();
        self.skip(self.prefix.bytes());
        let frame = match self.chunk_in_pieces(length) {
            Some((offset, data)) => self.take_chunk(length, offset, data)?,
            None => decode_frame(self.take(length))?,
        };
        Ok(Some(frame))
    }

    /// Offset and payload length of the next frame, if it is a chunk whose payload was pushed as a separate piece.
    fn chunk_in_pieces(&self, length: usize) -> Option<(u64, usize)> {
        let (first, payload) = (self.chunks.front()?, self.chunks.get(1)?);
        let (offset, data) = chunk_head(first, length)?;
        let behind = length.checked_sub(first.len())?.checked_sub(data)?;
        let as_it_is = (WHOLE_BYTES_MIN..=payload.len()).contains(&data) && behind <= BEHIND_BYTES_MAX;
        as_it_is.then_some((offset, data))
    }

    fn take_chunk(&mut self, length: usize, offset: u64, data: usize) -> Result<pb::Frame, WireError> {
        let first = self.chunks.pop_front().unwrap_or_default();
        self.length -= first.len();
        let payload = self.chunks.front_mut().map(|payload| payload.split_to(data)).unwrap_or_default();
        self.length -= payload.len();
        self.drop_empty();
        let mut chunk = pb::Chunk { offset, data: payload, ..pb::Chunk::default() };
        // As for a frame in one piece: of a field that occurs twice, the later one counts.
        let behind = self.take(length - first.len() - data);
        chunk.merge(behind).map_err(|e| WireError::Malformed { detail: e.to_string() })?;
        Ok(pb::Frame { kind: Some(Kind::Chunk(chunk)) })
    }

    fn peek_length(&self) -> Result<Option<usize>, WireError> {
        let mut bytes = self.chunks.iter().flatten().chain(&self.tail).copied();
        if self.prefix == Prefix::Grpc
            && let Some(flag) = bytes.next()
            && flag != 0
        {
            return Err(WireError::Malformed { detail: "a compressed message".into() });
        }
        let mut length = [0; LENGTH_BYTES];
        for byte in &mut length {
            let Some(next) = bytes.next() else { return Ok(None) };
            *byte = next;
        }
        Ok(Some(u32::from_be_bytes(length) as usize))
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    fn skip(&mut self, bytes: usize) {
        self.consume(bytes, |_| {});
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        let mut taken = BytesMut::with_capacity(bytes);
        self.consume(bytes, |chunk| taken.extend_from_slice(chunk));
        taken.freeze()
    }

    fn consume(&mut self, mut bytes: usize, mut each: impl FnMut(&[u8])) {
        while bytes > 0 {
            let Some(front) = self.chunks.front_mut() else { return };
            let now = front.split_to(bytes.min(front.len()));
            each(&now);
            bytes -= now.len();
            self.length -= now.len();
            self.drop_empty();
        }
    }

    fn drop_empty(&mut self) {
        if self.chunks.front().is_some_and(Bytes::is_empty) {
            self.chunks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::HELLO_BYTES_MAX;
    use crate::nacks_frame;
    use towline_engine::ids::GroupId;
    use towline_engine::transport::{Nack, NackCause};

    fn frame(nacks: u64) -> pb::Frame {
        nacks_frame((0..nacks).map(|n| Nack { group: GroupId::new(n), cause: NackCause::InboxFull }))
    }

    #[test]
    fn a_stream_gives_the_same_frames_in_pieces_of_any_size() {
        let sent: Vec<_> = [3, 0, 40, 1].into_iter().map(frame).collect();
        for prefix in [Prefix::Length, Prefix::Grpc] {
            let bytes: Vec<u8> = sent.iter().flat_map(|frame| pieces(frame, prefix)).flatten().collect();
            for size in 1..bytes.len() {
                let (mut prefixed, mut arrived) = (Prefixed::new(prefix), Vec::new());
                for chunk in bytes.chunks(size) {
                    prefixed.push(Bytes::copy_from_slice(chunk));
                    while let Some(frame) = prefixed.next_frame(FRAME_BYTES_MAX).unwrap() {
                        arrived.push(frame);
                    }
                }
                assert_eq!(arrived, sent, "in pieces of {size}");
                assert!(prefixed.is_empty());
            }
        }
    }

    #[test]
    fn pieces_have_the_bytes_of_the_whole_frame_and_share_a_large_payload() {
        let lengths = [0, 1, PIECE_BYTES_MIN - 1, PIECE_BYTES_MIN, PIECE_BYTES_MIN + 1, 1 << 20];
        let numbers = [0, 1, 127, 128, 1 << 40, u64::MAX];
        for (length, offset) in lengths.into_iter().flat_map(|length| numbers.map(|n| (length, n))) {
            for (crc32c, prefix) in [(0, Prefix::Length), (7, Prefix::Grpc), (u32::MAX, Prefix::Length)] {
                let data = Bytes::from(vec![3; length]);
                let chunk = pb::Chunk { offset, data: data.clone(), crc32c };
                let frame = pb::Frame { kind: Some(Kind::Chunk(chunk)) };
                let pieces = pieces(&frame, prefix);
                assert_eq!(pieces.concat(), whole(&frame, prefix), "{length} at {offset}");
                let as_it_is = pieces[1].as_ptr() == data.as_ptr();
                assert_eq!(as_it_is && length > 0, length >= PIECE_BYTES_MIN, "{length}");
            }
        }
    }

    #[test]
    fn a_large_payload_in_a_separate_piece_is_not_copied() {
        let data = Bytes::from(vec![3; WHOLE_BYTES_MIN]);
        let short = data.slice(1..);
        for (data, kept) in [(data, true), (short, false)] {
            for (offset, crc32c) in [(0, 0), (0, 7), (1 << 40, u32::MAX)] {
                let frame =
                    pb::Frame { kind: Some(Kind::Chunk(pb::Chunk { offset, data: data.clone(), crc32c })) };
                let mut prefixed = Prefixed::new(Prefix::Grpc);
                for _ in 0..3 {
                    pieces(&frame, Prefix::Grpc).into_iter().for_each(|piece| prefixed.push(piece));
                }
                for _ in 0..3 {
                    let arrived = prefixed.next_frame(FRAME_BYTES_MAX).unwrap().unwrap();
                    assert_eq!(arrived, frame);
                    let Some(Kind::Chunk(chunk)) = arrived.kind else { panic!("no chunk") };
                    assert_eq!(chunk.data.as_ptr() == data.as_ptr(), kept);
                }
                assert!(prefixed.is_empty());
            }
        }
    }

    /// Random changes before and after the payload.
    #[test]
    fn a_chunk_in_pieces_decodes_like_one_in_a_whole() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut in_pieces = 0;
        for _ in 0..3_000 {
            let data = Bytes::from(vec![random.u8(..); WHOLE_BYTES_MIN + random.usize(..3)]);
            let chunk = pb::Chunk { offset: random.u64(..) >> random.u8(..64), data, crc32c: random.u32(..) };
            let frame = pb::Frame { kind: Some(Kind::Chunk(chunk)) };
            let mut sent = pieces(&frame, Prefix::Length).map(BytesMut::from);
            for _ in 0..random.usize(..3) {
                let piece = &mut sent[[0, 2][random.usize(..2)]];
                match (random.u8(..3), piece.len()) {
                    (0, length @ 5..) => piece[random.usize(4..length)] = random.u8(..),
                    (1, _) => piece.put_u8(random.u8(..)),
                    _ => piece.extend_from_slice(&[0x12, 1, 9][..random.usize(..4)]),
                }
            }
            let length = sent.iter().map(BytesMut::len).sum::<usize>() - 4;
            sent[0][..4].copy_from_slice(&(length as u32).to_be_bytes());
            let (mut prefixed, mut joined) = (Prefixed::default(), Prefixed::default());
            joined.push(sent.concat().into());
            sent.into_iter().for_each(|piece| prefixed.push(piece.freeze()));
            prefixed.end_tail();
            in_pieces += usize::from({
                let mut looked = Prefixed {
                    chunks: prefixed.chunks.clone(),
                    length: prefixed.length,
                    ..Prefixed::default()
                };
                looked.skip(4);
                looked.chunk_in_pieces(length).is_some()
            });
            let (found, expected) =
                (prefixed.next_frame(FRAME_BYTES_MAX), joined.next_frame(FRAME_BYTES_MAX));
            assert_eq!(found.is_ok(), expected.is_ok(), "{found:?} {expected:?}");
            if let (Ok(found), Ok(expected)) = (found, expected) {
                assert!(found == expected, "not the same");
            }
        }
        assert!((300..2_900).contains(&in_pieces), "{in_pieces} were taken apart");
    }

    #[test]
    fn single_bytes_are_joined_in_one_buffer() {
        let mut prefixed = Prefixed::default();
        let sent = frame(200);
        let bytes = whole(&sent, Prefix::Length);
        for at in 0..bytes.len() {
            assert_eq!(prefixed.next_frame(FRAME_BYTES_MAX), Ok(None));
            prefixed.push(bytes.slice(at..=at));
        }
        assert_eq!(prefixed.chunks.len(), 0);
        assert_eq!(prefixed.next_frame(FRAME_BYTES_MAX), Ok(Some(sent)));
        assert!(prefixed.is_empty());
    }

    #[test]
    fn a_compressed_message_is_refused_at_its_first_byte() {
        let mut prefixed = Prefixed::new(Prefix::Grpc);
        prefixed.push(Bytes::from_static(&[1]));
        assert!(matches!(prefixed.next_frame(FRAME_BYTES_MAX), Err(WireError::Malformed { .. })));
    }

    #[test]
    fn a_length_above_the_bound_is_refused_before_the_frame_arrives() {
        for (claimed, bytes_max) in [
            (HELLO_BYTES_MAX + 1, HELLO_BYTES_MAX),
            (u32::MAX as usize, usize::MAX),
            (FRAME_BYTES_MAX + 1, usize::MAX),
        ] {
            let mut prefixed = Prefixed::default();
            prefixed.push(Bytes::copy_from_slice(&(claimed as u32).to_be_bytes()));
            let bytes_max = bytes_max.min(FRAME_BYTES_MAX);
            let refused = WireError::FrameTooLarge { bytes: claimed, bytes_max };
            assert_eq!(prefixed.next_frame(bytes_max), Err(refused));
        }
    }

    #[test]
    fn a_payload_keeps_only_its_own_frame_alive() {
        let datagrams = Bytes::from(vec![0; 1 << 16]);
        let mut prefixed = Prefixed::default();
        prefixed.push(datagrams.slice(..4));
        assert_eq!(prefixed.next_frame(FRAME_BYTES_MAX), Ok(Some(pb::Frame::default())));
        drop(prefixed);
        assert!(datagrams.is_unique());
    }
}
