//! What is given up of unfinished transfers does not go without a word.

use std::fmt::Debug;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};

use super::*;

/// Keeps the text of each line, and the file it names.
#[derive(Clone, Default)]
pub(super) struct Lines(pub(super) Arc<Mutex<Vec<[String; 2]>>>);

impl Lines {
    /// Hears what this thread says while `act` runs. Where there is one subscriber only, a line that another thread comes
    /// to first, and that nobody listens to there, is switched off for all: so there is always a second one.
    pub(super) fn hear<T>(&self, act: impl FnOnce() -> T) -> T {
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
fn a_partial_file_that_goes_for_the_bounds_is_named_in_the_log() {
    let (dir, lines) = (TempDir::new().unwrap(), Lines::default());
    let config = SnapshotConfig { partials_max: 1, ..SnapshotConfig::default() };
    let files = SnapshotFiles::open_with(dir.path(), &config, FileOps::default(), None).unwrap();
    let left = |index: u64| {
        let bytes = body(2 * CHUNK, index as u8);
        let meta = meta_of(&head(index), &bytes);
        files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
        files.shared.path(&Named::Partial { group: GROUP, content: meta.content }).display().to_string()
    };
    let first = lines.hear(|| [left(1), left(2)])[0].clone();
    let said = ["an unfinished snapshot file is given up".to_owned(), first];
    assert_eq!(*lines.0.lock().unwrap(), [said]);
}

#[test]
fn a_partial_file_that_is_of_no_use_begins_anew_and_the_log_says_so() {
    let (dir, lines) = (TempDir::new().unwrap(), Lines::default());
    let files = open(dir.path());
    let bytes = body(2 * CHUNK, 1);
    let meta = meta_of(&head(1), &bytes);
    files.receive(&meta).unwrap().write_all(&bytes[..CHUNK]).unwrap();
    let partial = files.shared.path(&Named::Partial { group: GROUP, content: meta.content });
    fs::write(&partial, "another file").unwrap();
    let anew = lines.hear(|| files.receive(&meta).unwrap().verified());
    assert_eq!(anew, 0);
    let said = lines.0.lock().unwrap().clone();
    let [[message, cause]] = &said[..] else { panic!("{said:?}") };
    assert!(message.starts_with("an unfinished snapshot file is of no use"), "{said:?}");
    assert!(cause.contains("another file"), "{said:?}");
}
