//! The text of errors and panics, for the log and for pending callers.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Formats an error and its causes on one line. A cause that the text already ends with is left out.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

/// The message of a panic, if it has one.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Runs code that may panic. The error is the text of the panic.
pub(crate) fn catch<T>(run: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic_text(panic.as_ref()).to_owned();
        std::mem::forget(panic); // its drop may panic again; this leaks a few bytes
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PeerAddr;
    use crate::transport::{ConnectError, SnapshotRefusal, TransferError};

    #[test]
    fn a_chain_names_every_cause_once() {
        let address: PeerAddr = "grpc://a:1".parse().unwrap();
        let source = Box::new(std::io::Error::from_raw_os_error(111));
        let error = TransferError::Connect(ConnectError::Unreachable { address, source });
        assert_eq!(
            chain(&error),
            "cannot offer the snapshot: cannot reach grpc://a:1: Connection refused (os error 111)"
        );
        assert_eq!(
            chain(&TransferError::Refused(SnapshotRefusal::Busy)),
            "the receiver gave up: busy with other snapshots"
        );
    }
}
