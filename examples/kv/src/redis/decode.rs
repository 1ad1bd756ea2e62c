//! Decodes commands from the bytes of a client.
//!
//! A scan first finds a whole frame: a flat array of bulk strings within the limits. Then the codec crate parses it. Its own
//! parser recurses, starts over on every read, and has no limits.

use bytes::{Buf as _, Bytes, BytesMut};
use redis_protocol::resp2::{decode::decode_bytes_mut, types::BytesFrame};

/// Arguments of one command, as in Redis.
pub(super) const ARGS_MAX: usize = 1 << 20;
/// Bytes of an inline command, as in Redis.
pub(super) const INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of a line that holds a length: type, sign, digits.
const LENGTH_LINE_BYTES_MAX: usize = 32;

/// Input that no Redis client sends. The connection answers and closes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Protocol error: {0}")]
pub(super) struct ProtocolError(pub(super) String);

fn bad<T>(text: impl Into<String>) -> Result<T, ProtocolError> {
    Err(ProtocolError(text.into()))
}

/// Finds commands in a buffer. Remembers how far it scanned the first one.
#[derive(Debug)]
pub(super) struct Decoder {
    command_bytes_max: usize,
    scanned: usize,
    args_left: Option<usize>,
    /// Known missing bytes of the argument that is being received.
    missing: usize,
}

impl Decoder {
    pub(super) fn new(command_bytes_max: usize) -> Self {
        Self { command_bytes_max, scanned: 0, args_left: None, missing: 0 }
    }

    /// The least number of bytes that the first command in the buffer still needs.
    pub(super) fn missing(&self) -> usize {
        self.missing
    }

    /// Takes the next whole command off `buf`. Never empty. `None`: the command needs more bytes.
    pub(super) fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
        self.missing = 0;
        loop {
            let args = match buf.first() {
                None => return Ok(None),
                Some(b'*') => {
                    if !self.scan(buf)? {
                        return Ok(None);
                    }
                    (self.scanned, self.args_left) = (0, None);
                    frame_args(buf)?
                }
                Some(_) => match inline(buf)? {
                    None => return Ok(None),
                    Some(args) => args,
                },
            };
            // Redis ignores empty commands.
            if !args.is_empty() {
                return Ok(Some(args));
            }
        }
    }

    /// Whether `buf` begins with a whole command.
    fn scan(&mut self, buf: &BytesMut) -> Result<bool, ProtocolError> {
        if self.args_left.is_none() {
            let Some((count, next)) = length_line(buf, 0, "mbulk")? else { return Ok(false) };
            if count > ARGS_MAX as i64 || count < -1 {
                return bad("invalid multibulk length");
            }
            self.args_left = Some(usize::try_from(count).unwrap_or(0));
            self.scanned = next;
        }
        while let Some(left @ 1..) = self.args_left {
            match buf.get(self.scanned) {
                None => return Ok(false),
                Some(b'$') => {}
                Some(other) => return bad(format!("expected '$', got '{}'", other.escape_ascii())),
            }
            let Some((length, next)) = length_line(buf, self.scanned, "bulk")? else { return Ok(false) };
            let length = match usize::try_from(length) {
                Ok(length) if length <= self.command_bytes_max => length,
                _ => return bad("invalid bulk length"),
            };
            let end = next + length + 2;
            if end > self.command_bytes_max + LENGTH_LINE_BYTES_MAX {
                return bad(format!("too big request, the limit is {} bytes", self.command_bytes_max));
            }
            if buf.len() < end {
                self.missing = end - buf.len();
                return Ok(false);
            }
            if buf.get(end - 2..end) != Some(b"\r\n") {
                return bad("bulk string is not followed by CRLF");
            }
            self.scanned = end;
            self.args_left = Some(left - 1);
        }
        Ok(true)
    }
}

/// The number of a `*N` or `$N` line at `at`, and where the next line starts.
fn length_line(buf: &BytesMut, at: usize, what: &str) -> Result<Option<(i64, usize)>, ProtocolError> {
    let rest = buf.get(at..).unwrap_or_default();
    let window = rest.get(..LENGTH_LINE_BYTES_MAX).unwrap_or(rest);
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        if rest.len() >= LENGTH_LINE_BYTES_MAX {
            return bad(format!("too big {what} count string"));
        }
        return Ok(None);
    };
    let number = window.get(1..end).and_then(crate::machine::parse_integer);
    match number {
        Some(number) => Ok(Some((number, at + end + 2))),
        None if what == "bulk" => bad("invalid bulk length"),
        None => bad("invalid multibulk length"),
    }
}

fn frame_args(buf: &mut BytesMut) -> Result<Vec<Bytes>, ProtocolError> {
    match decode_bytes_mut(buf) {
        Ok(Some((BytesFrame::Array(frames), ..))) => frames
            .into_iter()
            .map(|frame| match frame {
                BytesFrame::BulkString(bytes) => Ok(bytes),
                _ => bad("expected a bulk string"),
            })
            .collect(),
        Ok(Some((BytesFrame::Null, ..))) => Ok(Vec::new()),
        Ok(_) => bad("expected an array"),
        Err(error) => bad(error.to_string()),
    }
}

/// An inline command: a line of words. Does not interpret quotes.
fn inline(buf: &mut BytesMut) -> Result<Option<Vec<Bytes>>, ProtocolError> {
    let window = buf.get(..INLINE_BYTES_MAX).unwrap_or(buf);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        if buf.len() >= INLINE_BYTES_MAX {
            return bad("too big inline request");
        }
        return Ok(None);
    };
    let line = buf.split_to(end).freeze();
    buf.advance(1);
    let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(input: &[u8]) -> Result<Vec<Vec<Bytes>>, ProtocolError> {
        let (mut decoder, mut buf, mut out) = (Decoder::new(1_000), BytesMut::from(input), Vec::new());
        while let Some(args) = decoder.next(&mut buf)? {
            out.push(args);
        }
        Ok(out)
    }

    #[test]
    fn commands_come_as_arrays_or_lines() {
        let found =
            all(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n\r\n*0\r\n*-1\r\nPING  x\r\n*1\r\n$0\r\n\r\n").unwrap();
        assert_eq!(found, [vec!["GET", "k"], vec!["PING", "x"], vec![""]]);
    }

    #[test]
    fn protocol_errors_have_the_texts_of_redis() {
        let long = [b"*2\r\n$900\r\n".as_slice(), &[b'x'; 900], b"\r\n$900\r\n"].concat();
        let cases: [(&[u8], &str); 9] = [
            (b"*x\r\n", "invalid multibulk length"),
            (b"*1048577\r\n", "invalid multibulk length"),
            (b"*99999999999999999999999999999999", "too big mbulk count string"),
            (b"*1\r\n:5\r\n", "expected '$', got ':'"),
            (b"*1\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$1001\r\n", "invalid bulk length"),
            (b"*1\r\n$1\r\naXX", "bulk string is not followed by CRLF"),
            (&long, "too big request, the limit is 1000 bytes"),
        ];
        for (input, text) in cases {
            assert_eq!(all(input).unwrap_err().0, text, "{}", input.escape_ascii());
        }
        assert_eq!(all(&[b'a'; INLINE_BYTES_MAX]).unwrap_err().0, "too big inline request");
    }

    proptest! {
        #[test]
        fn commands_are_the_same_however_the_stream_is_cut(
            commands in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..5), 1..5),
            cuts in prop::collection::vec(1..9_usize, 1..200),
        ) {
            let mut stream = Vec::new();
            for command in &commands {
                stream.extend(format!("*{}\r\n", command.len()).bytes());
                for arg in command {
                    stream.extend(format!("${}\r\n", arg.len()).bytes());
                    stream.extend(arg);
                    stream.extend(b"\r\n");
                }
            }
            let (mut decoder, mut buf, mut found) = (Decoder::new(1_000), BytesMut::new(), Vec::new());
            let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                rest = later;
                buf.extend_from_slice(now);
                while let Some(args) = decoder.next(&mut buf).unwrap() {
                    found.push(args.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>());
                }
            }
            prop_assert_eq!(found, commands);
        }

        #[test]
        fn no_input_panics(input in prop::collection::vec(prop::sample::select(b"*$-0123 \r\nab".to_vec()), 0..60)) {
            let _ = all(&input);
        }
    }
}
