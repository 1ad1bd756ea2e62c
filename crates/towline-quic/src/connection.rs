//! Serves one accepted connection until it ends.

use std::sync::Arc;

use quinn::Connection;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline_engine::transport::{CertIdentity, Refusal};
use towline_wire::streams::{Caller, Listening, Phase, Unwanted};

use crate::codes;
use crate::config::{QuicConfig, SHUTDOWN_GRACE};
use crate::stream::accept;

pub(crate) async fn serve(
    listening: &Arc<Listening>,
    config: &QuicConfig,
    connection: Connection,
    identity: Option<CertIdentity>,
) {
    let Some(identity) = identity else {
        connection.close(codes::UNAUTHENTICATED, b"no identity");
        return listening.refused(&Refusal::Unauthenticated { detail: "no identity".into() });
    };
    let node = identity.node;
    let caller = Caller::new(listening, false);
    caller.identify(identity);
    let (closing, unwanted, admitted) =
        (listening.reached(Phase::Closing), caller.unwanted(), caller.admitted());
    tokio::pin!(closing, unwanted, admitted);
    let (mut streams, mut strange) = (JoinSet::new(), true);
    let why = loop {
        tokio::select! {
            () = &mut closing => break Refusal::ShuttingDown,
            why = &mut unwanted => {
                let code = match why {
                    Unwanted::Replaced => codes::REPLACED,
                    Unwanted::Late => codes::NO_HELLO,
                    _ => codes::UNAUTHENTICATED,
                };
                connection.close(code, why.as_str().as_bytes());
                break why.refusal();
            }
            () = &mut admitted, if strange => {
                strange = false;
                connection.set_receive_window(config.connection_window());
            }
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => { streams.spawn(accept(Arc::clone(&caller), send, receive)); }
                Err(error) => {
                    tracing::debug!(peer = %node, %error, "connection ended");
                    break Refusal::Malformed { detail: format!("ended before a hello: {error}") };
                }
            },
        }
    };
    if why == Refusal::ShuttingDown {
        // Each stream sends its final frame and waits a moment for its acknowledgement.
        let _ = timeout(SHUTDOWN_GRACE, async { while streams.join_next().await.is_some() {} }).await;
        connection.close(codes::SHUTTING_DOWN, codes::SHUTTING_DOWN_TEXT);
    }
    streams.shutdown().await;
    caller.gone(&why);
}
