//! The dialling side: a connection and a stream of its own for each link and each transfer.

use std::error::Error as StdError;
use std::future;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{ConnectError, Hello, Peer, Welcome};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::Verdict;
use towline_wire::limits::FRAME_BYTES_MAX;
use towline_wire::{Purpose, check_answer, hello_frame};

use crate::address::Security;
use crate::config::GrpcConfig;
use crate::secured::{self, Dialled, NotDialled};
use crate::service::transport_client::TransportClient;
use crate::stream::{Sink, Source, detail};
use crate::tasks::Tasks;

/// Frames between a sender and HTTP/2. One, so that flow control is felt at once; HTTP/2 itself holds one more.
const FRAMES_WAITING_MAX: usize = 1;

/// Bytes of the headers of a response.
const HEADERS_BYTES_MAX: u32 = 8 << 10;

/// A stream whose peer has said welcome, on a connection of its own.
pub(crate) async fn open(
    config: &GrpcConfig,
    security: &Security,
    to: &Peer,
    purpose: Purpose,
    hello: &Hello,
) -> Result<(Sink, Source, Welcome), ConnectError> {
    let address = &to.address;
    let sockets = security.resolve(address).await.map_err(|unusable| unusable.dialling(address))?;
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
    Ok((Sink { frames: Some(sender), _tasks: tasks }, Source(answers), welcome))
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
            .executor(tasks.executor())
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
