//! Frames on a plain stream of bytes: each behind its length, four bytes in network order.

use std::collections::VecDeque;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use crate::error::WireError;
use crate::frames::decode_frame;
use crate::limits::FRAME_BYTES_MAX;
use crate::pb;

const PREFIX_BYTES: usize = 4;

/// A frame behind its length: one allocation and the one copy there is on the way out.
///
/// A frame that this crate made is always within the limits; a longer one is refused by the receiver.
pub fn prefixed(frame: &pb::Frame) -> Bytes {
    let length = frame.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // It only fails for want of room, and a `BytesMut` grows.
    let _ = frame.encode(&mut bytes);
    bytes.freeze()
}

/// Makes frames out of a stream. It holds no more than was pushed since the last frame, and what it makes room for is
/// bounded before it is.
#[derive(Debug, Default)]
pub struct Prefixed {
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl Prefixed {
    /// Takes what came in next.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.length = self.length.saturating_add(bytes.len());
            self.chunks.push_back(bytes);
        }
    }

    /// Whether nothing is left: a stream that ends otherwise was cut.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The next frame, if it is whole. One that claims more than `bytes_max` is refused as soon as its length is here.
    ///
    /// Its payloads keep its own bytes alive and nothing else: what was pushed may be a slice of something much larger.
    ///
    /// # Errors
    /// As [`decode_frame`]. The stream is of no further use.
    pub fn next_frame(&mut self, bytes_max: usize) -> Result<Option<pb::Frame>, WireError> {
        let bytes_max = bytes_max.min(FRAME_BYTES_MAX);
        let Some(length) = self.peek_length() else { return Ok(None) };
        if length > bytes_max {
            return Err(WireError::FrameTooLarge { bytes: length, bytes_max });
        }
        if self.length < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.skip(PREFIX_BYTES);
        decode_frame(self.take(length)).map(Some)
    }

    fn peek_length(&self) -> Option<usize> {
        let mut bytes = self.chunks.iter().flatten().copied();
        let mut prefix = [0; PREFIX_BYTES];
        for byte in &mut prefix {
            *byte = bytes.next()?;
        }
        Some(u32::from_be_bytes(prefix) as usize)
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
            if !front.has_remaining() {
                self.chunks.pop_front();
            }
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
    fn frames_come_out_whole_however_they_are_cut() {
        let sent: Vec<_> = [3, 0, 40, 1].into_iter().map(frame).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(prefixed).collect();
        for size in 1..bytes.len() {
            let (mut prefixed, mut arrived) = (Prefixed::default(), Vec::new());
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

    #[test]
    fn a_length_beyond_the_bound_is_refused_before_its_bytes_come() {
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
