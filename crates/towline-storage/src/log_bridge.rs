//! raft-engine says what it does through `log`; this hands it to tracing.

use log::{Level, LevelFilter, Log, Metadata, Record};

/// Forwards the records of raft-engine, and only those, unless the program has set a logger of its own (such as the one
/// of `tracing-subscriber`): that one keeps everything.
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
