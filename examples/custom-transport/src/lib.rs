//! A transport over Unix sockets: one socket a lane, and on it frames of `towline-wire`, each behind its length.
//!
//! An address `unix://NAME:PORT` is the socket file `NAME-PORT` in the transport's directory.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use towline_engine::ids::PeerAddr;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::*;
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, MESSAGE_BYTES_MAX};
use towline_wire::pb::frame::Kind;
use towline_wire::{self as wire, Received, WireError, pb};

/// How long a dialler may take for its hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that one listener holds; the next dialler is refused.
pub const CONNECTIONS_MAX: usize = 64;

/// The transport.
#[derive(Debug, Clone)]
pub struct UnixTransport {
    directory: PathBuf,
}

impl UnixTransport {
    /// A transport whose socket files are in `directory`.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    fn path(&self, address: &PeerAddr) -> PathBuf {
        self.directory.join(address.authority().replace(':', "-"))
    }
}

#[async_trait]
impl Transport for UnixTransport {
    fn scheme(&self) -> &'static str {
        "unix"
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let path = self.path(at);
        // A file that nobody listens at was left behind by a process that was killed.
        if path.exists() && UnixStream::connect(&path).await.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        let socket = UnixListener::bind(&path)
            .map_err(|source| TransportError::Bind { address: at.clone(), source })?;
        let port = at.authority().rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(0);
        let closed = watch::Sender::new(false);
        let accepting = tokio::spawn(accept(socket, inbound, closed.subscribe())).abort_handle();
        Ok(Box::new(UnixSockets { path, port, closed, accepting }))
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let address = &to.address;
        let unreachable =
            |e: io::Error| ConnectError::Unreachable { address: address.clone(), source: e.into() };
        let stream = UnixStream::connect(self.path(address)).await.map_err(unreachable)?;
        let (mut read, mut write) = stream.into_split();
        write_frame(&mut write, &wire::hello_frame(hello, lane)).await.map_err(unreachable)?;
        let protocol = |detail| ConnectError::Protocol { address: address.clone(), detail };
        let answer = read_frame(&mut read, HELLO_BYTES_MAX).await.map_err(|e| protocol(e.to_string()))?;
        let answer = answer.ok_or_else(|| protocol("closed without an answer".into()))?;
        let welcome = wire::check_answer(address, to.id, answer)?;
        // Ends with the link, whatever the peer does; dropping its feedback tells so.
        let reader = tokio::spawn(listen_to_answers(read, feedback)).abort_handle();
        Ok(Connected { link: Box::new(UnixLink { write: Some(write), reader }), welcome })
    }
}

struct UnixLink {
    /// `None` once a dispatch failed or was dropped midway.
    write: Option<OwnedWriteHalf>,
    reader: AbortHandle,
}

#[async_trait]
impl Link for UnixLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        // Taken out and put back at the end: if this future is dropped in between, so is the socket.
        let mut write = self.write.take().ok_or(DispatchError::Closed)?;
        let frames = wire::frames(batch).map_err(|error| match error {
            WireError::MessageTooLarge { bytes, bytes_max } => DispatchError::TooLarge { bytes, bytes_max },
            _ => DispatchError::TooLarge { bytes: usize::MAX, bytes_max: MESSAGE_BYTES_MAX },
        })?;
        for frame in frames {
            write_frame(&mut write, &frame).await.map_err(|_| DispatchError::Closed)?;
        }
        self.write = Some(write);
        Ok(())
    }
}

impl Drop for UnixLink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Tells what comes back until the socket ends, then that it has ended.
async fn listen_to_answers(mut read: OwnedReadHalf, feedback: LinkFeedback) {
    let cause = loop {
        match read_frame(&mut read, FRAME_BYTES_MAX).await {
            Ok(Some(pb::Frame { kind: Some(Kind::Refused(refused)) })) => {
                break LinkClosed::ByPeer { detail: refused.detail };
            }
            Ok(Some(frame)) => match wire::nacks_of(frame) {
                Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
                Err(error) => break LinkClosed::Violation { detail: error.to_string() },
            },
            Ok(None) => break LinkClosed::ByPeer { detail: "end of the stream".into() },
            Err(error) => break LinkClosed::Broken { detail: error.to_string() },
        }
    };
    feedback.closed(cause);
}

struct UnixSockets {
    path: PathBuf,
    port: u16,
    /// Heard by every task that serves a connection.
    closed: watch::Sender<bool>,
    accepting: AbortHandle,
}

#[async_trait]
impl Listener for UnixSockets {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    async fn shutdown(self: Box<Self>) {
        self.accepting.abort();
        self.closed.send_replace(true);
        self.closed.closed().await;
    }
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        self.accepting.abort();
        self.closed.send_replace(true);
        // Gone before anybody binds it anew.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(socket: UnixListener, inbound: Arc<dyn Inbound>, closed: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, _)) = socket.accept().await {
        let (mut read, mut write) = stream.into_split();
        let seat = room.clone().try_acquire_owned(); // held by the task below
        let (inbound, mut closed) = (inbound.clone(), closed.clone());
        tokio::spawn(async move {
            let last = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => Err(Refusal::ShuttingDown),
                last = serve(&mut read, &mut write, &*inbound, seat.is_err()) => last,
            };
            if let Err(last) = last.map_err(|last| wire::refused_frame(&last)) {
                // A dialler that takes not even that will see the end of the stream.
                let _ = timeout(HANDSHAKE_TIMEOUT / 4, write_frame(&mut write, &last)).await;
            }
        });
    }
}

/// Serves one connection to its end. The error is what the dialler is told last.
async fn serve(
    read: &mut OwnedReadHalf,
    write: &mut OwnedWriteHalf,
    inbound: &dyn Inbound,
    surplus: bool,
) -> Result<(), Refusal> {
    let (hello, lane) = hello(read, surplus).await.inspect_err(|refusal| inbound.refused(refusal))?;
    // What the engine refuses, it knows.
    let session = inbound.admit(&hello, None)?;
    let mut answer = Some(wire::welcome_frame(&session.welcome()));
    loop {
        if let Some(frame) = answer.take() {
            write_frame(write, &frame).await.map_err(malformed)?;
        }
        let Some(frame) = read_frame(read, FRAME_BYTES_MAX).await.map_err(malformed)? else { return Ok(()) };
        let Received { batch, rejected } = wire::batch_of(frame).map_err(malformed)?;
        let nacks =
            wire::merge_nacks(session.deliver(lane, batch).map_err(|v| malformed(v.detail))?, &rejected);
        answer = (!nacks.is_empty()).then(|| wire::nacks_frame(nacks));
    }
}

fn malformed(what: impl ToString) -> Refusal {
    Refusal::Malformed { detail: what.to_string() }
}

async fn hello(read: &mut OwnedReadHalf, surplus: bool) -> Result<(Hello, Lane), Refusal> {
    let first = timeout(HANDSHAKE_TIMEOUT, read_frame(read, HELLO_BYTES_MAX)).await;
    let first = first.map_err(|_| Refusal::HandshakeTimeout)?.map_err(malformed)?;
    let hello = wire::check_first_frame(first.ok_or_else(|| malformed("no hello"))?)?;
    // Not before, or the dialler would still be writing and hear of a broken pipe.
    if surplus { Err(Refusal::TooManyConnections) } else { Ok(hello) }
}

/// The next frame, or `None` at an ordinary end of the stream.
async fn read_frame(from: &mut OwnedReadHalf, bytes_max: usize) -> io::Result<Option<pb::Frame>> {
    let bytes = match from.read_u32().await {
        Ok(bytes) => bytes as usize,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if bytes > bytes_max {
        return Err(io::Error::other(WireError::FrameTooLarge { bytes, bytes_max }));
    }
    let mut body = vec![0; bytes];
    from.read_exact(&mut body).await?;
    wire::decode_frame(Bytes::from(body)).map(Some).map_err(io::Error::other)
}

async fn write_frame(to: &mut OwnedWriteHalf, frame: &pb::Frame) -> io::Result<()> {
    let length = u32::try_from(wire::encoded_len(frame)).map_err(io::Error::other)?;
    let mut bytes = BytesMut::new();
    bytes.put_u32(length);
    frame.encode(&mut bytes).map_err(io::Error::other)?;
    to.write_all(&bytes).await
}
