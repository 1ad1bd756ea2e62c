//! What the log says of a peer that is not reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::{Does, KEY, Script, peer};
use crate::config::Config;

/// Counts the warnings of this thread, which runs everything here.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.is_event() && *of.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An operator with a wrong address saw nothing at the default level: every failed attempt was a line for developers.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_not_reached_is_told_once_an_incident() {
    let warnings = Warnings::default();
    // With a single subscriber, tracing lets the first thread that comes to a line decide whether the line is ever shown.
    let _second = tracing::Dispatch::new(Warnings::default());
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let told = || warnings.0.load(Ordering::Relaxed);
    let script = Script::default();
    script.with(|w| w.connect.insert(KEY, Does::Fail));
    let lanes = script.lanes(Config::default());
    lanes.set_peer(peer(2, 1));
    for incident in 1..=2 {
        let before = script.with(|w| w.connect_failed);
        script.until(|w| w.connect_failed == before + 4).await;
        assert_eq!(told(), incident - 1, "it may only just be starting");
        script.until(|w| w.connect_failed == before + 30).await;
        assert_eq!(told(), incident);
        script.with(|w| w.connect.clear());
        script.until(|w| w.connected.get(&KEY) == Some(&incident)).await;
        script.with(|w| w.connect.insert(KEY, Does::Fail));
        script.kill(KEY.0, KEY.1);
    }
}
