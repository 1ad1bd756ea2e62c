//! The counters of this program, beside those of the engine.

use metrics::{Counter, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use towline::metrics::labels;

use crate::redis::Counters;

const REDIS_REFUSED: &str = "towline_kv_redis_refused_total";
const REDIS_WAITS: &str = "towline_kv_redis_waits_total";
const REDIS_CLOSED: &str = "towline_kv_redis_closed_total";
const ACCEPT_FAILURES: &str = "towline_kv_accept_failures_total";
const HTTP_REFUSED: &str = "towline_kv_http_refused_total";
const DESCRIPTOR_WAITS: &str = "towline_kv_descriptor_waits_total";
const SPACE_WAITS: &str = "towline_kv_space_waits_total";
const GROUP_STARTS: &str = "towline_kv_group_starts_total";

const DESCRIPTIONS: [(&str, &str); 8] = [
    (REDIS_REFUSED, "Redis connections refused because as many as `connections_max` are open."),
    (REDIS_WAITS, "Redis commands and replies that waited for memory of all connections, by bound."),
    (REDIS_CLOSED, "Redis connections closed at a deadline that depends on the client, by cause."),
    (HTTP_REFUSED, "HTTP connections refused because as many as `http_connections_max` are open."),
    (
        DESCRIPTOR_WAITS,
        "Pauses of 20 ms in which the log or the store waited for a file descriptor, by which of them.",
    ),
    (
        SPACE_WAITS,
        "Pauses of 20 ms in which the log or the store waited for room on the disk, by which of them.",
    ),
    (GROUP_STARTS, "Attempts to start the group after a full disk took it out of service."),
    (ACCEPT_FAILURES, "Times that the system gave no connection of a client, by port."),
];

static METADATA: Metadata<'static> = Metadata::new("towline_kv", Level::INFO, Some(module_path!()));

/// Counters of one node.
pub(crate) struct Gauges<'a> {
    recorder: &'a dyn Recorder,
    node: u64,
}

impl<'a> Gauges<'a> {
    pub(crate) fn new(recorder: &'a dyn Recorder, node: u64) -> Self {
        for (name, description) in DESCRIPTIONS {
            let name = KeyName::from_const_str(name);
            recorder.describe_counter(name, Some(Unit::Count), description.into());
        }
        Self { recorder, node }
    }

    fn counter(&self, name: &'static str, label: Option<(&'static str, &'static str)>) -> Counter {
        let mut labels = vec![Label::new(labels::NODE, self.node.to_string())];
        labels.extend(label.map(|(key, value)| Label::from_static_parts(key, value)));
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    pub(crate) fn redis(&self) -> Counters {
        let waits = |bound| self.counter(REDIS_WAITS, Some(("bound", bound)));
        let closed = |cause| self.counter(REDIS_CLOSED, Some(("cause", cause)));
        Counters {
            refused: self.counter(REDIS_REFUSED, None),
            accept_failures: self.accept_failures("redis"),
            command_waits: waits("long_commands_max"),
            reply_waits: waits("reply_bytes_max"),
            command_timeouts: closed("command_timeout"),
            write_timeouts: closed("write_timeout"),
            reply_timeouts: closed("reply_timeout"),
        }
    }

    /// Refused connections, and failed calls of `accept`.
    pub(crate) fn http(&self) -> [Counter; 2] {
        [self.counter(HTTP_REFUSED, None), self.accept_failures("http")]
    }

    /// Of the log, and of the store.
    pub(crate) fn descriptor_waits(&self) -> [Counter; 2] {
        ["log", "store"].map(|part| self.counter(DESCRIPTOR_WAITS, Some(("part", part))))
    }

    /// Of the log, and of the store.
    pub(crate) fn space_waits(&self) -> [Counter; 2] {
        ["log", "store"].map(|part| self.counter(SPACE_WAITS, Some(("part", part))))
    }

    /// Attempts to start the group after a full disk.
    pub(crate) fn group_starts(&self) -> Counter {
        self.counter(GROUP_STARTS, None)
    }

    fn accept_failures(&self, port: &'static str) -> Counter {
        self.counter(ACCEPT_FAILURES, Some(("port", port)))
    }
}
