//! A small Redis client: one request, one reply.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The longest bulk reply that the tools ask for.
const BULK_BYTES_MAX: usize = 16 << 20;
const LINE_BYTES_MAX: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple(String),
    Error(String),
    Integer(i64),
    Bulk(Option<Vec<u8>>),
    Array(Vec<Reply>),
}

pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream), request: Vec::new() })
    }

    /// After an error, or when cancelled, the reply is unknown: drop the connection.
    pub(crate) async fn ask(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.request.clear();
        encode(words, &mut self.request);
        self.stream.write_all(&self.request).await?;
        self.reply().await
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let line = self.line().await?;
        if let Some(count) = line.strip_prefix('*') {
            let count = number(count)?;
            let mut elements = Vec::new();
            // No request of the tools gets nested arrays.
            for _ in 0..count.max(0) {
                let line = self.line().await?;
                elements.push(self.scalar(&line).await?);
            }
            return Ok(Reply::Array(elements));
        }
        self.scalar(&line).await
    }

    async fn scalar(&mut self, line: &str) -> io::Result<Reply> {
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| malformed(line))?;
        Ok(match kind {
            "+" => Reply::Simple(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number(rest)?),
            "_" => Reply::Bulk(None),
            "$" => match usize::try_from(number(rest)?) {
                Err(_) => Reply::Bulk(None),
                Ok(length) if length > BULK_BYTES_MAX => return Err(malformed(line)),
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes).await?;
                    bytes.truncate(length);
                    Reply::Bulk(Some(bytes))
                }
            },
            _ => return Err(malformed(line)),
        })
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
        match line.strip_suffix("\r\n") {
            Some(text) => Ok(text.to_owned()),
            None if line.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            None => Err(malformed(&line)),
        }
    }
}

fn encode(words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

fn number(text: &str) -> io::Result<i64> {
    text.parse().map_err(|_| malformed(text))
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a Redis reply: {line:?}"))
}

/// The address in `MOVED slot host:port`.
pub(crate) fn moved_to(error: &str) -> Option<SocketAddr> {
    error.strip_prefix("MOVED ")?.split_whitespace().nth(1)?.parse().ok()
}

/// Whether an error promises that the write never takes effect.
pub(crate) fn never_happened(error: &str) -> bool {
    ["MOVED ", "CLUSTERDOWN ", "BUSY ", "TRYAGAIN ", "DISKFULL "].iter().any(|word| error.starts_with(word))
}
