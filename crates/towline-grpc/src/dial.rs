//! The dialling side: a connection and a stream of its own for each link and each transfer.

use std::error::Error as StdError;
use std::future::{self, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use hyper::header::{CONTENT_TYPE, HeaderValue, TE};
use hyper::http::StatusCode;
use hyper::{Method, Request, Response, Version};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower_service::Service as _;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{BytesTaken, ConnectError, Hello, Peer, Welcome};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::Verdict;
use towline_wire::{Purpose, check_answer, hello_frame};

use crate::address::Security;
use crate::alive::ANSWER_WAIT;
use crate::config::{GrpcConfig, window};
use crate::secured::{self, Dialled, NotDialled, WireEnd};
use crate::stream::{Ended, LANE, Outgoing, Sink, Source, detail};
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
    let (channel, verdict, end) = dial(config, &tasks, security.tls.as_ref(), to, &sockets).await?;
    // With TLS 1.3 a dialler learns only now that its certificate was refused.
    let no_answer = |status| {
        let refused = verdict.as_ref().and_then(|verdict| verdict.dialler_error(address, to.id));
        refused.unwrap_or_else(|| no_answer(address, status))
    };

    let (sender, receiver) = mpsc::channel(FRAMES_WAITING_MAX);
    let closed = |detail: &str| ConnectError::Protocol { address: address.clone(), detail: detail.into() };
    sender.send(hello_frame(hello, purpose)).await.map_err(|_| closed("closed before the hello"))?;
    let taken = BytesTaken::default();
    let answer = call(channel, Outgoing::request(receiver, taken.clone())).await.map_err(no_answer)?;
    let mut answers = Source::response(answer.into_body(), end, taken.clone());
    let first = answers.frame().await.map_err(|ended| match ended {
        Ended::Status(status) => no_answer(status),
        Ended::Violation(detail) => closed(&detail),
    })?;
    let first = first.ok_or_else(|| closed("closed without an answer to the hello"))?;
    let welcome = check_answer(address, to.id, first)?;
    Ok((Sink { frames: Some(sender), taken, _tasks: tasks }, answers, welcome))
}

/// The one call of a connection. A peer that answers with a status alone, or with something that is not gRPC, does not
/// take it.
async fn call(mut channel: Channel, body: Body) -> Result<Response<Body>, Status> {
    let broken = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    poll_fn(|cx| channel.poll_ready(cx)).await.map_err(broken)?;
    let mut request = Request::new(body);
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(LANE);
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    let answer = channel.call(request).await.map_err(broken)?;
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ if answer.status() != StatusCode::OK => {
            Err(Status::unknown(format!("HTTP status {}", answer.status())))
        }
        _ => Ok(answer),
    }
}

/// One channel on one new connection. Nothing of it is shared with another link.
async fn dial(
    config: &GrpcConfig,
    tasks: &Tasks,
    tls: Option<&TlsConfig>,
    to: &Peer,
    sockets: &[SocketAddr],
) -> Result<(Channel, Option<Verdict>, WireEnd), ConnectError> {
    let address = &to.address;
    let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
    let mut last = None;
    for socket in sockets {
        let endpoint = Endpoint::from_shared(format!("http://{socket}"))
            .map_err(|e| ConnectError::Address { address: address.clone(), detail: e.to_string() })?;
        let (stream, verdict, end) = match secured::dial(config, *socket, tls, to.id).await {
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
            .keep_alive_timeout(ANSWER_WAIT)
            .keep_alive_while_idle(true)
            .http2_adaptive_window(false)
            .initial_stream_window_size(window(config.stream_window_bytes))
            .initial_connection_window_size(window(config.connection_window_bytes))
            .http2_max_header_list_size(HEADERS_BYTES_MAX)
            .buffer_size(1)
            .connect_with_connector(Ready(Some(TokioIo::new(stream))))
            .await;
        match channel {
            Ok(channel) => return Ok((channel, verdict, end)),
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
