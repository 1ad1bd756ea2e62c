//! Error codes of streams and connections, and the errors they become. See docs/wire.md.

use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{ConnectError, LinkClosed, PROTOCOL_VERSION, Refusal};
use towline_tls::rustls_config::{Verdict, is_version_alert};

/// No error: the stream or connection is no longer needed.
pub(crate) const DONE: VarInt = VarInt::from_u32(0);
/// A stream was abandoned before its end: its data is incomplete.
pub(crate) const ABANDONED: VarInt = VarInt::from_u32(1);
/// The listener is shutting down.
pub(crate) const SHUTTING_DOWN: VarInt = VarInt::from_u32(2);
/// The reason text of [`SHUTTING_DOWN`].
pub(crate) const SHUTTING_DOWN_TEXT: &[u8] = b"shutting down";
/// A newer connection of the same peer displaced this one.
pub(crate) const REPLACED: VarInt = VarInt::from_u32(3);
/// No hello was accepted in time.
pub(crate) const NO_HELLO: VarInt = VarInt::from_u32(4);
/// The handshake proved no node id. Not expected: TLS refuses such a peer first.
pub(crate) const UNAUTHENTICATED: VarInt = VarInt::from_u32(5);

/// Codes from here on are TLS alerts.
const CRYPTO_ERRORS: u64 = 0x100;
/// QUIC's own code for a listener that refuses a connection.
const CONNECTION_REFUSED: u64 = 0x2;

/// The alert in a connection error, and whether the peer sent it.
pub(crate) fn alert(error: &ConnectionError) -> Option<(u8, bool)> {
    let (code, by_peer) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), false),
        ConnectionError::ConnectionClosed(close) => (u64::from(close.error_code), true),
        _ => return None,
    };
    Some((u8::try_from(code.checked_sub(CRYPTO_ERRORS)?).ok()?, by_peer))
}

/// Records in the verdict what an error says about certificates.
pub(crate) fn learn(verdict: &Verdict, error: &ConnectionError) {
    match alert(error) {
        Some((alert, true)) => verdict.learn_alert(alert),
        Some((alert, false)) => verdict.learn_own_alert(alert),
        None => {}
    }
}

/// The error of a dialler whose connection failed.
pub(crate) fn connect_error(address: &PeerAddr, error: ConnectionError) -> ConnectError {
    let address = address.clone();
    let refused_version = Refusal::Version { ours: 0, theirs: PROTOCOL_VERSION };
    match &error {
        ConnectionError::ConnectionClosed(close) if u64::from(close.error_code) == CONNECTION_REFUSED => {
            ConnectError::Refused(Refusal::TooManyConnections)
        }
        ConnectionError::ApplicationClosed(close) => match close.error_code {
            SHUTTING_DOWN => ConnectError::Refused(Refusal::ShuttingDown),
            REPLACED => ConnectError::Refused(Refusal::TooManyConnections),
            NO_HELLO => ConnectError::Refused(Refusal::HandshakeTimeout),
            _ => ConnectError::Unreachable { address, source: error.into() },
        },
        ConnectionError::TimedOut | ConnectionError::Reset | ConnectionError::LocallyClosed => {
            ConnectError::Unreachable { address, source: error.into() }
        }
        _ => match alert(&error) {
            Some((alert, true)) if is_version_alert(alert) => ConnectError::Refused(refused_version),
            _ => ConnectError::Protocol { address, detail: error.to_string() },
        },
    }
}

/// The close cause of a link whose stream cannot be read.
pub(crate) fn link_closed(error: &ReadError) -> LinkClosed {
    match error {
        ReadError::Reset(code) => LinkClosed::ByPeer { detail: format!("the stream was reset: code {code}") },
        ReadError::ConnectionLost(error) => match error {
            ConnectionError::ApplicationClosed(close) => {
                LinkClosed::ByPeer { detail: String::from_utf8_lossy(&close.reason).into_owned() }
            }
            ConnectionError::ConnectionClosed(_) => LinkClosed::ByPeer { detail: error.to_string() },
            ConnectionError::LocallyClosed => LinkClosed::Abandoned,
            ConnectionError::TransportError(error) => LinkClosed::Violation { detail: error.to_string() },
            error => LinkClosed::Broken { detail: error.to_string() },
        },
        error => LinkClosed::Broken { detail: error.to_string() },
    }
}

/// The connection error behind a failed write, if that is the cause.
pub(crate) fn lost(error: WriteError) -> Option<ConnectionError> {
    match error {
        WriteError::ConnectionLost(error) => Some(error),
        _ => None,
    }
}
