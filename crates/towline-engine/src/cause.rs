//! Why something went wrong, in words for the log and for whoever waits.

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// An error with its causes, on one line. A cause that stands at the end of what was said before is not said again.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// What a panic said, if it said something.
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
    fn a_chain_says_every_cause_once() {
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
