//! Log lines about partial files that are removed or restarted.

use std::fmt::Debug;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

use super::*;

/// Records the message of each log line, and the file that it names.
#[derive(Clone, Default)]
pub(super) struct Lines(pub(super) Arc<Mutex<Vec<[String; 2]>>>);

impl Lines {
    /// Records the lines of this thread while `act` runs. Keeps a second subscriber alive: with a single one, tracing would
    /// disable a line for all threads once a thread without a subscriber reaches it first.
    pub(super) fn during<T>(&self, act: impl FnOnce() -> T) -> T {
        static SECOND: OnceLock<Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| Dispatch::new(Self::default()));
        tracing::subscriber::with_default(self.clone(), act)
    }
}

impl Visit for Lines {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let mut lines = self.0.lock().unwrap();
        let place = if field.name() == "message" { 0 } else { 1 };
        lines.last_mut().unwrap()[place] = format!("{value:?}");
    }
}

impl Subscriber for Lines {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        of.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(Default::default());
        event.record(&mut self.clone());
    }
}

#[test]
fn the_log_names_a_partial_file_removed_for_the_bounds() {
    let (dir, lines) = (TempDir::new().unwrap(), Lines::default());
    let config = SnapshotConfig { partials_max: 1, ..SnapshotConfig::default() };
    let files = SnapshotFiles::open_with(dir.path(), &config, FileOps::default(), None).unwrap();
    let left = |index: u64| {
        let bytes = body(2 * CHUNK, index as u8);
        let meta = meta_of(&head(index), &bytes);
        files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
        partial(&files, &meta).display().to_string()
    };
    let first = lines.during(|| [left(1), left(2)])[0].clone();
    let said = ["a partial snapshot file is removed".to_owned(), first];
    assert_eq!(*lines.0.lock().unwrap(), [said]);
}

#[test]
fn the_log_says_that_a_partial_file_cannot_be_resumed() {
    let lines = Lines::default();
    let (_dir, files) = store();
    let bytes = body(2 * CHUNK, 1);
    let meta = meta_of(&head(1), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
    fs::write(partial(&files, &meta), "another file").unwrap();
    let verified = lines.during(|| files.receive(&meta).unwrap().verified());
    assert_eq!(verified, 0);
    let said = lines.0.lock().unwrap().clone();
    let [[message, cause]] = &said[..] else { panic!("{said:?}") };
    assert!(message.starts_with("a partial snapshot file cannot be resumed"), "{said:?}");
    assert!(cause.contains("another file"), "{said:?}");
}
