//! Forwards what raft-engine logs through `log` to tracing.

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Forwards the records of raft-engine only. Does nothing if the program has set another logger, such as that of
/// `tracing-subscriber`.
pub(crate) fn install() {
    if log::set_boxed_logger(Box::new(Bridge)).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

struct Bridge;

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("raft_engine")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (source, text) = (record.target(), record.args());
        match record.level() {
            Level::Error => tracing::error!(source, "{text}"),
            Level::Warn => tracing::warn!(source, "{text}"),
            Level::Info => tracing::info!(source, "{text}"),
            Level::Debug => tracing::debug!(source, "{text}"),
            Level::Trace => tracing::trace!(source, "{text}"),
        }
    }

    fn flush(&self) {}
}
