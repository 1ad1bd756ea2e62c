//! Passes the log of the raft crate from slog to tracing.

use std::fmt::{self, Write as _};

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, o};

use crate::ids::{GroupId, NodeId};

/// Makes a logger for one group of one node.
pub(super) fn logger(node: NodeId, group: GroupId) -> Logger {
    Logger::root(ToTracing, o!("node" => node.as_u64(), "group" => group.as_u64()))
}

struct ToTracing;

impl Drain for ToTracing {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, context: &OwnedKVList) -> Result<(), Never> {
        macro_rules! pass {
            ($level:ident) => {
                if tracing::enabled!(target: "raft", tracing::Level::$level) {
                    let fields = fields(record, context);
                    tracing::event!(target: "raft", tracing::Level::$level, "{}{fields}", record.msg());
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => pass!(ERROR),
            Level::Warning => pass!(WARN),
            Level::Info => pass!(INFO),
            Level::Debug => pass!(DEBUG),
            Level::Trace => pass!(TRACE),
        }
        Ok(())
    }
}

fn fields(record: &Record<'_>, context: &OwnedKVList) -> String {
    let mut fields = Fields(String::new());
    // A field that fails to format is left out.
    let _ = record.kv().serialize(record, &mut fields);
    let _ = context.serialize(record, &mut fields);
    fields.0
}

struct Fields(String);

impl slog::Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}
