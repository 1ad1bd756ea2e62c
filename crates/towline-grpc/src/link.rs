//! The dialling side: a connection and a stream of its own for each link.

use std::error::Error as StdError;
use std::future::{self, Future};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Status, Streaming};
use towline_engine::ids::PeerAddr;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    ConnectError, Connected, DispatchError, Hello, Link, LinkClosed, LinkFeedback, Peer, Welcome,
};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::Verdict;
use towline_wire::limits::{FRAME_BYTES_MAX, MESSAGE_BYTES_MAX};
use towline_wire::{Purpose, SharedFeedback, WireError, check_answer, frames, hello_frame, nacks_of, pb};

use crate::address::{Security, Unusable};
use crate::codec::is_violation;
use crate::config::GrpcConfig;
use crate::secured::{self, Dialled, NotDialled};
use crate::service::transport_client::TransportClient;

/// Frames between `dispatch` and HTTP/2. One, so that flow control is felt at once; HTTP/2 itself holds one more.
const FRAMES_WAITING_MAX: usize = 1;

/// How long a dispatch that failed waits for the reader to learn why, so that the link's end is told with its true cause.
const CAUSE_WAIT: Duration = Duration::from_millis(250);

/// Bytes of the headers of a response.
const HEADERS_BYTES_MAX: u32 = 8 << 10;

pub(crate) async fn connect(
    config: &GrpcConfig,
    security: &Security,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Result<Connected, ConnectError> {
    let Opened { sender, answers, tasks, welcome } = open(config, security, to, lane.into(), hello).await?;
    let (alive, gone) = oneshot::channel();
    let feedback = SharedFeedback::new(feedback);
    let heard = feedback.clone();
    tasks.spawn(async move {
        read(answers, heard).await;
        drop(alive);
    });
    let link = GrpcLink { stream: Some(Stream { sender, gone, feedback, _tasks: tasks }) };
    Ok(Connected { link: Box::new(link), welcome })
}

/// A stream whose peer has answered the handshake, on a connection of its own.
pub(crate) struct Opened {
    pub(crate) sender: mpsc::Sender<pb::Frame>,
    pub(crate) answers: Streaming<pb::Frame>,
    pub(crate) tasks: Tasks,
    pub(crate) welcome: Welcome,
}

pub(crate) async fn open(
    config: &GrpcConfig,
    security: &Security,
    to: &Peer,
    purpose: Purpose,
    hello: &Hello,
) -> Result<Opened, ConnectError> {
    let address = &to.address;
    let sockets = security.resolve(address).await.map_err(|unusable| match unusable {
        Unusable::Forbidden(detail) => ConnectError::Address { address: address.clone(), detail },
        Unusable::Lookup(source) => {
            ConnectError::Unreachable { address: address.clone(), source: source.into() }
        }
    })?;
    // From here on whatever was started ends with this value: when the future is dropped, too.
    let tasks = Tasks::default();
    let (channel, verdict) = dial(config, &tasks, security.tls.as_ref(), to, &sockets).await?;
    // With TLS 1.3 a dialler learns only now that its certificate was refused.
    let no_answer = |status| {
        let refused = verdict.as_ref().and_then(|verdict| verdict.dialler_error(address, to.id));
        refused.unwrap_or_else(|| no_answer(address, status))
    };

    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let closed = |detail: &str| ConnectError::Protocol { address: address.clone(), detail: detail.into() };
    sender.send(hello_frame(hello, purpose)).await.map_err(|_| closed("closed before the hello"))?;
    let mut client = TransportClient::new(channel)
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let answer = client.lane(ReceiverStream::new(receiver)).await;
    let mut answers = answer.map_err(no_answer)?.into_inner();
    let first = answers.message().await.map_err(no_answer)?;
    let first = first.ok_or_else(|| closed("closed without an answer to the hello"))?;
    let welcome = check_answer(address, to.id, first)?;
    Ok(Opened { sender, answers, tasks, welcome })
}

/// One channel on one new connection. Nothing of it is shared with another link.
async fn dial(
    config: &GrpcConfig,
    tasks: &Tasks,
    tls: Option<&TlsConfig>,
    to: &Peer,
    sockets: &[SocketAddr],
) -> Result<(Channel, Option<Verdict>), ConnectError> {
    let address = &to.address;
    let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
    let mut last = None;
    for socket in sockets {
        let endpoint = Endpoint::from_shared(format!("http://{socket}"))
            .map_err(|e| ConnectError::Address { address: address.clone(), detail: e.to_string() })?;
        let (stream, verdict) = match secured::dial(*socket, tls, to.id).await {
            Ok(dialled) => dialled,
            Err(NotDialled { error, verdict }) => {
                if let Some(refused) = verdict.and_then(|verdict| verdict.dialler_error(address, to.id)) {
                    return Err(refused);
                }
                last = Some(error);
                continue;
            }
        };
        let channel = endpoint
            .executor(tasks.clone_for_executor())
            .http2_keep_alive_interval(config.keepalive_interval)
            .keep_alive_timeout(config.keepalive_timeout)
            .keep_alive_while_idle(true)
            .http2_adaptive_window(false)
            .initial_stream_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .http2_max_header_list_size(HEADERS_BYTES_MAX)
            .buffer_size(1)
            .connect_with_connector(Ready(Some(TokioIo::new(stream))))
            .await;
        match channel {
            Ok(channel) => return Ok((channel, verdict)),
            Err(error) => last = Some(error.into()),
        }
    }
    Err(unreachable(last.unwrap_or_else(|| "no address".into())))
}

/// A connection that is there already, for a library that wants to make it.
struct Ready(Option<TokioIo<Dialled>>);

impl tower_service::Service<Uri> for Ready {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = future::Ready<io::Result<TokioIo<Dialled>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A link never connects twice.
    fn call(&mut self, _: Uri) -> Self::Future {
        future::ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Why there was no answer: the connection broke, or what is there does not speak the protocol.
fn no_answer(address: &PeerAddr, status: Status) -> ConnectError {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<std::io::Error>() {
            return ConnectError::Unreachable { address: address.clone(), source: status.into() };
        }
        cause = error.source();
    }
    ConnectError::Protocol { address: address.clone(), detail: detail(&status) }
}

/// Tells what comes back until the stream ends, then that it has ended.
async fn read(mut answers: Streaming<pb::Frame>, feedback: SharedFeedback) {
    let cause = loop {
        match answers.message().await {
            Ok(Some(frame)) => match nacks_of(frame) {
                Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
                Err(error) => break LinkClosed::Violation { detail: error.to_string() },
            },
            Ok(None) => break LinkClosed::ByPeer { detail: "end of the stream".into() },
            Err(status) if is_violation(&status) => {
                break LinkClosed::Violation { detail: status.message().into() };
            }
            // A status that the peer sent has no source here.
            Err(status) if status.source().is_none() => break LinkClosed::ByPeer { detail: detail(&status) },
            Err(status) => break LinkClosed::Broken { detail: detail(&status) },
        }
    };
    feedback.closed(cause);
}

/// The innermost cause says most: the outer ones are "h2 protocol error" and "transport error".
pub(crate) fn detail(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

struct GrpcLink {
    /// `None` once a dispatch failed or was dropped midway.
    stream: Option<Stream>,
}

struct Stream {
    sender: mpsc::Sender<pb::Frame>,
    /// Resolves when the reader has ended.
    gone: oneshot::Receiver<()>,
    feedback: SharedFeedback,
    _tasks: Tasks,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.feedback.closed(LinkClosed::Abandoned);
    }
}

#[async_trait]
impl Link for GrpcLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        // Taken out and put back at the end: if this future is dropped in between, so is the stream.
        let mut stream = self.stream.take().ok_or(DispatchError::Closed)?;
        let frames = frames(batch).map_err(|error| match error {
            WireError::MessageTooLarge { bytes, bytes_max } => DispatchError::TooLarge { bytes, bytes_max },
            // More entries than a frame may have: no message of that kind is within the limit.
            _ => DispatchError::TooLarge { bytes: MESSAGE_BYTES_MAX, bytes_max: MESSAGE_BYTES_MAX },
        })?;
        for frame in frames {
            tokio::select! {
                biased;
                _ = &mut stream.gone => return Err(DispatchError::Closed),
                sent = stream.sender.send(frame) => {
                    if sent.is_err() {
                        let _ = timeout(CAUSE_WAIT, &mut stream.gone).await;
                        return Err(DispatchError::Closed);
                    }
                }
            }
        }
        self.stream = Some(stream);
        Ok(())
    }
}

/// The tasks of one link: connection, request body, reader. Dropping it ends them, which closes the connection.
///
/// Without it, a link that is dropped while its peer takes nothing would leave them waiting for flow control.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

/// Starts the library's own tasks of one link.
#[derive(Debug, Clone)]
struct Executor {
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.clone_for_executor().start(task);
    }

    fn clone_for_executor(&self) -> Executor {
        Executor { started: Arc::clone(&self.started) }
    }
}

impl Executor {
    fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let handle = tokio::spawn(task).abort_handle();
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.retain(|task| !task.is_finished());
        started.push(handle);
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Executor {
    fn execute(&self, task: F) {
        self.start(task);
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let started = std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        started.iter().for_each(AbortHandle::abort);
    }
}
