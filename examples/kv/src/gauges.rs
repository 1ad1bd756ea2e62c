//! What this program counts itself, beside the engine.

use metrics::{Counter, Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use towline::metrics::labels;

/// Redis connections that were told that there are too many, and closed.
pub(crate) const REDIS_REFUSED: &str = "towline_kv_redis_refused_total";

static METADATA: Metadata<'static> = Metadata::new("towline_kv", Level::INFO, Some(module_path!()));

/// The counter of refused Redis connections.
pub(crate) fn redis_refused(recorder: &dyn Recorder, node: u64) -> Counter {
    let description = "Redis connections refused because as many as `connections_max` are open.";
    recorder.describe_counter(KeyName::from_const_str(REDIS_REFUSED), Some(Unit::Count), description.into());
    let key = Key::from_parts(REDIS_REFUSED, vec![Label::new(labels::NODE, node.to_string())]);
    recorder.register_counter(&key, &METADATA)
}
